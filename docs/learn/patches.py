# %% [markdown]
# # An image as patches
#
# **Goal:** turn an image into a short list of vectors, which is all that a Transformer can read.
#
# **The figure it builds:** figure 1 of [An Image is Worth 16x16 Words](https://arxiv.org/abs/2010.11929) (Dosovitskiy et
# al. 2021), from the photo at the bottom to the row of boxes named "linear projection of flattened patches".
#
# A Transformer was made for text. It reads a list of vectors, one for each word. A photo of 224 x 224 pixels is not a
# list of words. One could call every pixel a word, but 50,176 words are too many: the chapter on attention shows that the work grows
# with the square of their number. So a Vision Transformer (ViT) cuts the image into squares, and each square is a word.

# %%
import inspect

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_image

import vitrail
from vitrail.model.vit import PatchEmbed

# %% [markdown]
# ## Pixels
#
# scikit-learn brings a photo along. We take a square of it, 224 pixels high and wide.
#
# In this book the name of a tensor (an array of numbers) ends in a letter for each of its axes. `image_CHW` has three
# axes: `C` channels (red, green, blue), `H` rows of pixels, `W` columns of pixels. vitrail's own code does the same.

# %%
photo_HWC = torch.tensor(load_sample_image("china.jpg"))[40:264, 200:424]
image_CHW = photo_HWC.permute(2, 0, 1) / 255  # channels first, as PyTorch expects; 0 is black, 1 is full brightness
print(image_CHW.shape, image_CHW.min(), image_CHW.max())

# %% [markdown]
# ## Patches
#
# A *patch* is a square of `patch` x `patch` pixels. `unfold(axis, size, step)` cuts an axis into pieces: here the rows
# into 14 pieces of 16, then the columns. `h` and `w` are the rows and columns of patches, the *patch grid*.

# %%
patch = 16
patches_ChwHW = image_CHW.unfold(1, patch, patch).unfold(2, patch, patch)
print(patches_ChwHW.shape)

# %% mystnb={"image": {"alt": "The photo of a temple, and the same photo as a grid of 14 by 14 patches with gaps between them"}}
h, w = patches_ChwHW.shape[1:3]
figure = plt.figure(figsize=(9, 4.5))
left, right = figure.subfigures(1, 2)
left.subplots().imshow(image_CHW.permute(1, 2, 0))
left.axes[0].axis("off")
for axes, (row, column) in zip(right.subplots(h, w).flat, torch.cartesian_prod(torch.arange(h), torch.arange(w))):
    axes.imshow(patches_ChwHW[:, row, column].permute(1, 2, 0), vmin=0, vmax=1)
    axes.axis("off")
plt.show()

# %% [markdown]
# ## From a patch to a vector
#
# A patch has 3 x 16 x 16 = 768 numbers. Written one after the other, they are a vector. A grid of 14 x 14 patches
# gives 196 vectors: `P` is the axis of the patches, row by row.

# %%
patches_PV = patches_ChwHW.permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)  # V: the values of a patch
print(patches_PV.shape)

# %% [markdown]
# The model should not work with raw pixels. It multiplies each vector by a matrix that it learns, and adds a learned
# vector. This is a linear layer, the same for every patch. Its output has `D` numbers, the *width* of the model.

# %%
width = 96
linear = torch.nn.Linear(3 * patch * patch, width)
tokens_PD = linear(patches_PV)
print(tokens_PD.shape)

# %% [markdown]
# These 196 vectors are called *tokens*. Everything that follows in a ViT reads tokens and returns tokens.
#
# ## What vitrail does
#
# `PatchEmbed` is the class that training and serving use. This is its source, printed from the package:

# %%
print(inspect.getsource(PatchEmbed))

# %% [markdown]
# There is no cutting and no flattening in it, but a convolution (`Conv2d`). A convolution lays a small window on the
# image, multiplies the pixels below it by weights, adds them up, and moves on by `stride` pixels. If it moves on by
# exactly the size of the window, the windows are the patches. So it is the same linear layer. We check this: we give
# the convolution the weights of our linear layer and compare the tokens.

# %%
config = vitrail.ViTConfig(width=width, depth=1, heads=3, mlp_width=192, patch=patch, image_size=224)
patch_embed = PatchEmbed(config)
with torch.no_grad():
    patch_embed.proj.weight.copy_(linear.weight.view(width, 3, patch, patch))
    patch_embed.proj.bias.copy_(linear.bias)
tokens_BhwD = patch_embed(image_CHW[None])  # B: a batch of one image
difference = (tokens_BhwD.flatten(0, 2) - tokens_PD).abs().max().item()
print(f"largest difference: {difference:.1e}")
assert difference < 1e-5

# %% [markdown]
# The difference is not zero because the two ways add the same numbers in another order, and a computer rounds after
# every addition.
#
# ## What training makes of the matrix
#
# `cifar10-small` is a small ViT that comes with vitrail. Its patches have 4 x 4 pixels. Each row of its matrix has as
# many numbers as a patch, so we can look at a row as if it were a patch: it is the patch to which this output responds
# most. The paper shows the same picture of its model (figure 7, left).

# %% mystnb={"image": {"alt": "Forty-eight small color patches: some are plain colors, some are edges in different directions"}}
trained = vitrail.load("cifar10-small").vit
filters_DCHW = trained.patch_embed.proj.weight
strongest = filters_DCHW.flatten(1).norm(dim=1).argsort(descending=True)[:48]
figure, grid = plt.subplots(4, 12, figsize=(9, 3.2))
for axes, i in zip(grid.flat, strongest):
    filter_CHW = filters_DCHW[i]
    low, high = filter_CHW.min(), filter_CHW.max()
    axes.imshow(((filter_CHW - low) / (high - low)).permute(1, 2, 0))
    axes.axis("off")
plt.show()

# %% [markdown]
# Some outputs measure a color, others an edge of some direction. The model was not told to look for edges.
#
# ## Exercises
#
# Each exercise has a function that does not work yet and a test. The test fails until you have written the function.
#
# ### Exercise 1: cut without unfold
#
# Cut an image into flattened patches with `reshape` and `permute` alone.


# %%
def cut(image_CHW, patch):
    """Returns the flattened patches, (P, C * patch * patch)."""
    return image_CHW  # your code


def test_cut(cut):
    expected_PV = image_CHW.unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)
    result_PV = cut(image_CHW, 16)
    assert result_PV.shape == expected_PV.shape, (
        f"the shape is {tuple(result_PV.shape)}, not {tuple(expected_PV.shape)}"
    )
    assert torch.equal(result_PV, expected_PV), "the shape is right, the order of the values is not"
    print("cut passes its test")


# %% tags=["raises-exception"]
test_cut(cut)


# %% tags=["solution", "hide-cell"]
def solved_cut(image_CHW, patch):
    channels, height, width = image_CHW.shape
    image_ChHwW = image_CHW.reshape(channels, height // patch, patch, width // patch, patch)
    return image_ChHwW.permute(1, 3, 0, 2, 4).reshape(-1, channels * patch * patch)


test_cut(solved_cut)

# %% [markdown]
# ### Exercise 2: put the image together again
#
# Write the inverse of `cut`. It shows that the patches have lost nothing of the image.


# %%
def put_together(patches_PV, rows, patch):
    """Returns the image (C, H, W) of flattened patches, which form `rows` rows."""
    return patches_PV  # your code


def test_put_together(put_together):
    result = put_together(patches_PV, 14, 16)
    assert result.shape == image_CHW.shape, f"the shape is {tuple(result.shape)}, not {tuple(image_CHW.shape)}"
    assert torch.equal(result, image_CHW), "the shape is right, but it is another image"
    print("put_together passes its test")


# %% tags=["raises-exception"]
test_put_together(put_together)


# %% tags=["solution", "hide-cell"]
def solved_put_together(patches_PV, rows, patch):
    patches_hwCHW = patches_PV.reshape(rows, len(patches_PV) // rows, -1, patch, patch)
    h, w, channels = patches_hwCHW.shape[:3]
    return patches_hwCHW.permute(2, 0, 3, 1, 4).reshape(channels, h * patch, w * patch)


test_put_together(solved_put_together)

# %% [markdown]
# ### Exercise 3: count
#
# How many tokens does an image give, and how many numbers does the patch embedding learn? ViT-B/16 and ViT-B/32 are
# two sizes of the paper: width 768, with patches of 16 and of 32 pixels.


# %%
def count(image_size, patch, width, channels=3):
    """Returns the number of tokens and the number of learned numbers of the patch embedding."""
    return 0, 0  # your code


def test_count(count):
    for size, patch, width in ((224, 16, 768), (224, 32, 768), (32, 4, 96)):
        config = vitrail.ViTConfig(patch=patch, image_size=size, width=width)
        module = PatchEmbed(config)
        expected = config.grid[0] * config.grid[1], sum(parameter.numel() for parameter in module.parameters())
        assert count(size, patch, width) == expected, f"for patches of {patch} pixels the answer is {expected}"
    print("count passes its test")


# %% tags=["raises-exception"]
test_count(count)


# %% tags=["solution", "hide-cell"]
def solved_count(image_size, patch, width, channels=3):
    return (image_size // patch) ** 2, width * (channels * patch * patch + 1)  # + 1: the bias


test_count(solved_count)

# %% [markdown]
# ## What to read next
#
# The tokens do not say where in the image they come from. [The chapter on positions](positions.py) adds that. The code of this
# chapter is in [vit.py](../../src/vitrail/model/vit.py).
