# %% [markdown]
# # Where does it look?
#
# **Goal:** see which parts of an image a prediction is based on, and notice when such a picture lies.
#
# **The figure it builds:** figure 6 of [the ViT paper](https://arxiv.org/abs/2010.11929), attention from the output to
# the image, and a test of it.
#
# [The chapter on attention](attention.py) showed attention maps. They look like an explanation. We compute three kinds of
# maps for a photo, and then test whether they say what we think they say.

# %%
import copy
import inspect
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

import vitrail
from vitrail.explanation.attention import roll_out_attention

classifier = vitrail.load("cifar10-small")
photo = "../../examples/photos/cat.jpg"
prediction = classifier.predict(photo)
print(", ".join(f"{each.label} {each.probability:.0%}" for each in prediction[:3]))

# %% [markdown]
# ## Three maps
#
# - **Attention**: how much the last layer's tokens listen to each patch.
# - **Rollout** ([Abnar and Zuidema 2020](https://arxiv.org/abs/2005.00928)): attention of all layers. If token A listens
#   to B, and B has listened to C one layer before, then A has heard of C. Following all such chains is a product of
#   matrices. The residual connections of [the chapter on blocks](block.py) count as listening to oneself.
# - **Balanced gradients** (`libragrad`, the default): how the probability of a class would react to each patch, with
#   corrections that keep the shares of the parts of a block in balance ([Explanations](../explanations.md)). It needs to
#   know the class: "why a cat?" and "why a dog?" are different questions.

# %%
print(inspect.getsource(roll_out_attention))

# %% mystnb={"image": {"alt": "A photo of a cat, and three maps over its patches: attention, rollout and balanced gradients; they mark different patches"}}
methods = ("attention", "rollout", "libragrad")
maps = {method: vitrail.explain(classifier, photo, method=method, target="cat").map for method in methods}
figure, panels = plt.subplots(1, 4, figsize=(10, 2.8))
panels[0].imshow(classifier.read_image(photo).permute(1, 2, 0))
panels[0].set_title("what the model sees")
for axes, (method, values) in zip(panels[1:], maps.items()):
    limit = np.abs(values).max()
    axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(method)
for axes in panels:
    axes.axis("off")
plt.show()

# %% [markdown]
# Three maps of one prediction, and they disagree. They cannot all be the reason.
#
# ## A map that lies
#
# Here is a test that any explanation of a prediction should pass: if the prediction changes, the map must change. We
# break the model on purpose. Its head, which turns the pooled vector into classes, gets its rows in reverse order, so
# that cats become something else.

# %%
broken = replace(classifier, vit=copy.deepcopy(classifier.vit))
broken.vit.head.weight.copy_(classifier.vit.head.weight.flip(0))
broken.vit.head.bias.copy_(classifier.vit.head.bias.flip(0))
print("the broken model says:", broken.predict(photo).label)
for method in methods:
    before, after = maps[method], vitrail.explain(broken, photo, method=method, target="cat").map
    print(
        f"{method:10} correlation of the maps for 'cat' before and after: {np.corrcoef(before.flat, after.flat)[0, 1]:.3f}"
    )
    assert np.allclose(before, after, atol=1e-5) == (method != "libragrad")

# %% [markdown]
# The broken model no longer sees a cat. Attention and rollout show exactly the same picture as before, with which one
# would "explain" the cat. They do not lie about where the model looks; they lie if one reads them as the reason for an
# answer. They never see the head, and they have no class. vitrail calls them *class-blind*.
#
# ## Measure it
#
# A fair test of a map: remove the patches that it calls most important, one after the other. If they really carry the
# evidence, the probability falls fast. The area under this curve is the *deletion score*; smaller is better. To remove a
# patch here means to paint it with the mean color of the image.

# %%
pixels_CHW = classifier.read_image(photo)
patch = classifier.vit.config.patch


def remove(pixels_CHW, order):
    """Returns images (B, C, H, W) with the first 0, 1, 2, ... patches of an order painted over."""
    image, images = pixels_CHW.clone(), [pixels_CHW]
    color = pixels_CHW.double().mean(dim=(1, 2)).round().to(torch.uint8)[:, None, None]
    columns = pixels_CHW.shape[2] // patch
    for i in order:
        row, column = divmod(int(i), columns)
        image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = color
        images.append(image.clone())
    return torch.stack(images)


def deletion_curve(values):
    """Returns the probability of cat after the removal of 0, 1, 2, ... patches, the most relevant first."""
    order = np.argsort(-values, axis=None, kind="stable")
    logits = classifier.logits(remove(pixels_CHW, order))
    return logits.softmax(dim=1)[:, classifier.classes.index("cat")].numpy()


# %% mystnb={"image": {"alt": "Probability of cat while patches are removed: it falls fastest in the order of balanced gradients, slower for rollout and attention"}}
curves = {method: deletion_curve(values) for method, values in maps.items()}
plt.figure(figsize=(6, 3.2))
for method, curve in curves.items():
    plt.plot(curve, label=f"{method}: area {curve.mean():.2f}")
plt.xlabel("patches removed")
plt.ylabel("probability of cat")
plt.legend()
plt.show()
assert curves["libragrad"].mean() < min(curves["attention"].mean(), curves["rollout"].mean())

# %% [markdown]
# One photo proves little. [Explanations](../explanations.md) has these scores for eleven methods on many images, with
# intervals and control maps, and `vitrail faithfulness MODEL DATA` measures them on yours. The result there is the same:
# attention and rollout are hardly better than a map that always marks the center.
#
# ## Exercises
#
# ### Exercise 1: rollout by hand
#
# Follow the chains. The attention of layer `i` is `record.attention(i)`, with the shape (B, N, T, T): image, head, and
# a row of weights for each token.

# %%
with vitrail.recording(classifier.vit) as record:
    classifier.logits(pixels_CHW[None])


def my_rollout(record, depth):
    """Returns how much each token has heard of each patch after all layers, (T, T)."""
    return record.attention(depth - 1)[0].mean(dim=0)  # your code; this is the last layer alone


def test_rollout(my_rollout):
    result_TT = my_rollout(record, classifier.vit.config.depth)
    assert torch.allclose(result_TT.sum(dim=1), torch.ones(len(result_TT)), atol=1e-4), "each row must sum to 1"
    expected = torch.tensor(maps["rollout"]).flatten()
    difference = (result_TT.mean(dim=0) - expected).abs().max().item()
    assert difference < 1e-4, f"the mean over tokens differs from vitrail's rollout by {difference:.4f}"
    print("my_rollout passes its test")


# %% tags=["raises-exception"]
test_rollout(my_rollout)


# %% tags=["solution", "hide-cell"]
def solved_rollout(record, depth):
    heard_TT = torch.eye(record.attention(0).shape[-1])
    for layer in range(depth):
        weights_TT = record.attention(layer)[0].mean(dim=0)  # the mean over heads
        heard_TT = (weights_TT + torch.eye(len(weights_TT))) / 2 @ heard_TT
    return heard_TT


test_rollout(solved_rollout)

# %% [markdown]
# ### Exercise 2: a class-blind test
#
# Write a function that finds out whether a method is class-blind, with `vitrail.explain` alone.


# %%
def is_class_blind(method):
    """Returns whether the map of a method is the same for every class."""
    return True  # your code


def test_class_blind(is_class_blind):
    for method, expected in {"attention": True, "rollout": True, "libragrad": False, "gradcam": False}.items():
        assert is_class_blind(method) == expected, f"{method}: the answer is {expected}"
    print("is_class_blind passes its test")


# %% tags=["raises-exception"]
test_class_blind(is_class_blind)


# %% tags=["solution", "hide-cell"]
def solved_class_blind(method):
    first, second = (vitrail.explain(classifier, photo, method=method, target=each).map for each in ("cat", "truck"))
    return bool(np.allclose(first, second, atol=1e-6))


test_class_blind(solved_class_blind)

# %% [markdown]
# ## Your own photo
#
# In a terminal, with any photo, and with the run folder of your own training in place of `cifar10-small`:
#
# <!-- in the test: my-photo.jpg becomes examples/photos/temple.jpg -->
# ```sh
# vitrail explain cifar10-small my-photo.jpg                        # the default method
# vitrail explain cifar10-small my-photo.jpg --method attention     # the attention of the last layer
# ```
#
# Both print what the picture shows and its file, `explanations/my-photo.attention.png`.
# In a notebook, `vitrail.explain(classifier, "my-photo.jpg", method="attention")` shows the picture itself.
#
# ## What to read next
#
# [Explanations](../explanations.md): all methods, all scores, and where the default loses.
