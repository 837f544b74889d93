# %% [markdown]
# # Where a patch is
#
# **Goal:** give each token its place in the image.
#
# **The figure it builds:** the boxes "patch + position embedding" in figure 1 of
# [the ViT paper](https://arxiv.org/abs/2010.11929), and the map of similar positions in its figure 7.
#
# [The chapter on patches](patches.py) made a list of tokens from an image. The blocks of a Transformer treat this list as a set:
# they do not know which token is the first. We first show this, then mend it in three ways.

# %%
import inspect

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cosine_similarity

import vitrail
from vitrail.model.position import LearnedEmbedding, RotaryEmbedding, SinCosEmbedding

# %% [markdown]
# ## A set of patches
#
# We build a small ViT without positions. Its weights are random; that is enough here. `shuffle` cuts an image into
# patches and puts them together in another order, like a puzzle that was put together wrongly.


# %%
def make_vit(position):
    torch.manual_seed(0)
    config = vitrail.ViTConfig(
        width=64, depth=3, heads=4, mlp_width=128, patch=8, image_size=64, pool="mean", prefix_tokens=0, classes=10,
        position=position,
    )  # fmt: skip
    vit = vitrail.ViT(config).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit


def shuffle(image_BCHW, order):
    """Returns an image whose patches of 8 x 8 pixels have another order."""
    patches_BVP = torch.nn.functional.unfold(image_BCHW, 8, stride=8)
    return torch.nn.functional.fold(patches_BVP[:, :, order], image_BCHW.shape[-2:], 8, stride=8)


image_BCHW = torch.randn(1, 3, 64, 64)
order = torch.randperm(64)
for position in ("none", "learned", "sincos", "rotary"):
    vit = make_vit(position)
    with torch.no_grad():
        change = (vit(image_BCHW) - vit(shuffle(image_BCHW, order))).abs().max().item()
    print(f"{position:8} the shuffled image changes the output by {change:.6f}")
    assert (change < 1e-4) == (position == "none")

# %% [markdown]
# Without positions (`none`), a photo and its shuffled puzzle are the same for the model. The other three see a
# difference.
#
# ## Learned positions
#
# The paper's way is the simplest: one more vector for each place of the grid, which training finds, is added to the
# token of that place. It is a tensor of shape `(h, w, D)`: rows of patches, columns of patches, width.

# %%
print(inspect.getsource(LearnedEmbedding.__init__))
print(inspect.getsource(LearnedEmbedding.add))

# %% [markdown]
# At the start these vectors are small random numbers. The model is not told which places are neighbors. We look at
# what a trained model has found. The *cosine similarity* of two vectors is 1 if they point in the same direction, and 0
# if they have nothing in common. Each small map shows, for one place (red), how similar the vectors of all places are
# to the vector of that place.

# %% mystnb={"image": {"alt": "Sixteen maps of 8 by 8 squares: in each, the squares near the marked place are the brightest, with the same row and column brighter than the rest"}}
vit = vitrail.load("cifar10-small").vit
grid_hwD = vit.position.grid.detach()
h, w = grid_hwD.shape[:2]
centered_hwD = grid_hwD - grid_hwD.mean(dim=(0, 1))
figure, panels = plt.subplots(4, 4, figsize=(6, 6))
for axes, (row, column) in zip(
    panels.flat, torch.cartesian_prod(torch.arange(0, h, 2), torch.arange(0, w, 2)).tolist()
):
    axes.imshow(cosine_similarity(centered_hwD, centered_hwD[row, column], dim=-1), vmin=-1, vmax=1)
    axes.plot(column, row, "s", color="red", markersize=4)
    axes.axis("off")
plt.show()

# %% [markdown]
# The model has learned that the image has rows and columns, only because this helped to tell cats from ships.
#
# Learned positions have a drawback. They are made for one grid. For a larger image, vitrail resizes them like a picture
# (`LearnedEmbedding.resize`), which is good enough in practice.
#
# ## Sines and cosines
#
# The positions can also be computed, so that nothing is learned. A clock shows how: the second hand tells near times
# apart, the hour hand far ones. Each pair of numbers in the vector is a hand of such a clock, `sin(place * frequency)`
# and `cos(place * frequency)`, and the hands turn at different speeds. Half of the vector is for the column, half for
# the row.

# %%
print(inspect.getsource(SinCosEmbedding.add))

# %% mystnb={"image": {"alt": "Curves of sines over 14 columns: the fast ones go up and down several times, the slow ones are almost straight"}}
config = vitrail.ViTConfig(width=64, heads=4, position="sincos", image_size=224)
zeros_BhwD = torch.zeros(1, 14, 14, 64)
positions_hwD = SinCosEmbedding(config).add(zeros_BhwD)[0]
plt.figure(figsize=(8, 3))
for i in (0, 2, 4, 8, 15):
    plt.plot(positions_hwD[0, :, i], marker="o", label=f"number {i} of the vector")
plt.xlabel("column of the patch")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Rotary positions
#
# The third way does not touch the tokens. The next chapter explains that tokens compare a *query* with a *key*, two vectors.
# Rotary positions turn these two vectors by an angle that grows with the place. If both are turned, only the difference
# of the angles matters for the comparison, and so the distance between the two places. DINOv3 and many language models
# do this.

# %%
print(inspect.getsource(RotaryEmbedding.rotation))

# %% [markdown]
# ## Exercises
#
# ### Exercise 1: one clock hand after the other
#
# Compute sine and cosine positions for a line of places: the first half of a vector has the sines, the second the
# cosines. The frequency of hand number `i` of `n` is `10000 ** (-i / (n - 1))`.


# %%
def clock(columns, n):
    """Returns (columns, 2n): n sines, then n cosines."""
    return torch.zeros(columns, 2 * n)  # your code


def test_clock(clock):
    result = clock(14, 16)
    assert result.shape == (14, 32), f"the shape is {tuple(result.shape)}"
    expected = positions_hwD[0, :, :32]  # the columns' half of vitrail's positions
    difference = (result - expected).abs().max().item()
    assert difference < 1e-5, f"the largest difference from SinCosEmbedding is {difference:.2f}"
    print("clock passes its test")


# %% tags=["raises-exception"]
test_clock(clock)


# %% tags=["solution", "hide-cell"]
def solved_clock(columns, n):
    frequency = 10000.0 ** (-torch.arange(n) / (n - 1))
    angle = torch.arange(columns)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


test_clock(solved_clock)

# %% [markdown]
# ### Exercise 2: only the distance counts
#
# Turn pairs of numbers by `angle = column * frequency`. A pair `(a, b)` becomes
# `(a cos - b sin, a sin + b cos)`. Number `i` of the vector forms a pair with number `i + n`.


# %%
def turn(vector, column, frequency):
    """Returns the vector, (2n,), turned by its column; `frequency` has n numbers."""
    return vector  # your code


def test_turn(turn):
    torch.manual_seed(0)
    query, key, frequency = torch.randn(16), torch.randn(16), torch.rand(8)
    near, shifted = (
        turn(query, 2, frequency) @ turn(key, 5, frequency),
        turn(query, 12, frequency) @ turn(key, 15, frequency),
    )
    far = turn(query, 2, frequency) @ turn(key, 9, frequency)
    assert torch.isclose(near, shifted, atol=1e-4), "places 2 and 5 must give the same product as 12 and 15"
    assert not torch.isclose(near, far, atol=1e-2), "another distance must give another product"
    assert torch.isclose(turn(query, 7, frequency).norm(), query.norm(), atol=1e-4), "turning must not change a length"
    print("turn passes its test")


# %% tags=["raises-exception"]
test_turn(turn)


# %% tags=["solution", "hide-cell"]
def solved_turn(vector, column, frequency):
    a, b = vector.chunk(2)
    cos, sin = (column * frequency).cos(), (column * frequency).sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos])


test_turn(solved_turn)

# %% [markdown]
# ## What to read next
#
# [The chapter on attention](attention.py): how tokens exchange information. All positions are in
# [position.py](../../src/vitrail/model/position.py); [own_position.py](../../examples/own_position.py) adds one of your
# own.
