# %% [markdown]
# # Augmentation, MixUp and CutMix
#
# **Goal:** make many training images out of each one, so that the model cannot learn them by heart.
#
# **The figure it builds:** the mixed images of table 1 of
# [the CutMix paper](https://arxiv.org/abs/1905.04899) with their labels, and, in small, the comparison of
# [DeiT](https://arxiv.org/abs/2012.12877) (its table 8) with and without each kind of augmentation.
#
# [The chapter on training](digits.py) ended with *overfitting*: the model read its training images better than hidden
# ones. More images are the best cure, and mostly there are no more. *Augmentation* changes each training image at random
# each time it is used. A cat that is mirrored is still a cat, but its pixels are others.

# %%
import inspect
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn.functional import cross_entropy

from vitrail.data.augment import Augment, build_augmentation, mix_batch, shift_images
from vitrail.data.preprocess import Preprocess
from vitrail.exporting.sample_photos import decode_sample_photos

preprocess = Preprocess(image_size=(112, 112))
classes = ("cat", "coffee", "rocket", "astronaut")
photos_BCHW = torch.stack([preprocess.fit_image(photo) for photo in decode_sample_photos(channels=3).values()])
labels_B = torch.arange(4)


def show(images, titles=None, columns=6):
    """Draws images (C, H, W) of whole numbers from 0 to 255, row by row."""
    rows = -(-len(images) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.9 * rows), squeeze=False)
    for i, axes in enumerate(panels.flat):
        axes.axis("off")
        if i < len(images):
            axes.imshow(images[i].permute(1, 2, 0))
            axes.set_title(titles[i] if titles else "", fontsize=9)
    figure.tight_layout()
    plt.show()


# %% [markdown]
# ## Flips and shifts
#
# The two simplest changes: mirror the image left to right, and shift it by a few pixels. Shifting leaves a border without
# pixels; it is filled with a reflection of the image. `Augment` holds the settings, `build_augmentation` makes the
# functions. The number of the image, the seed and the epoch decide the change, so a training can be repeated exactly.

# %% mystnb={"image": {"alt": "Two photos, a cat and a rocket, each six times: mirrored in some pictures and shifted by up to an eighth of the width"}}
print(inspect.getsource(shift_images))
shifts = build_augmentation(Augment(flip=0.5, crop="padded", crop_padding=0.125), preprocess)
pairs_BCHW = photos_BCHW[[0, 2]]
versions = [shifts.augment_batch(pairs_BCHW, np.array([0, 2]), seed=0, epoch=epoch) for epoch in range(6)]
show([versions[epoch][i] for i in range(2) for epoch in range(6)], [f"epoch {epoch + 1}" for epoch in range(6)] * 2)

# %% [markdown]
# Whether a change is allowed depends on the task. A mirrored 2 is no 2, and a mirrored street sign is none either. vitrail
# therefore turns flips off for `digits`. A person who knows the images must decide this; a program cannot.
#
# ## RandAugment
#
# [RandAugment](https://arxiv.org/abs/1909.13719) draws a few operations from a list: turn, shear, shift, brighten, change
# the contrast, reduce the number of colors, and so on. Two numbers control it: how many operations an image gets
# (`policy_ops`), and how strong they are (`policy_magnitude`, from 0 to 30). vitrail uses torchvision's implementation.

# %% mystnb={"image": {"alt": "The cat under RandAugment, three rows of six: hardly changed at magnitude 3, turned and recolored at 9, strongly distorted at 20"}}
images, titles = [], []
for magnitude in (3, 9, 20):
    policy = Augment(policy="randaugment", policy_ops=2, policy_magnitude=magnitude)
    augmentation = build_augmentation(policy, preprocess)
    torch.manual_seed(1)
    images += [augmentation.augment_image(photos_BCHW[0]) for _ in range(6)]
    titles += [f"magnitude {magnitude}"] * 6
show(images, titles)

# %% [markdown]
# All rows have the same operations, from weak to strong. Gray borders are where a shifted or turned image has no pixels.
# If you could not name the image any more, the model should not have to, either.
#
# ## Soft labels
#
# So far the image changed and the label stayed. The next two methods change the label, too. A label can be written as a
# probability for each class: 1 for the right one, 0 for the others. Such a row may also say "60% cat, 40% rocket"; then
# it is a *soft label*. Cross-entropy works for soft labels without change: it is the mean of the losses of all classes,
# weighted by the label.

# %%
logits_BY = torch.tensor([[2.0, 0.0, 1.0, -1.0]])
soft_BY = torch.tensor([[0.6, 0.0, 0.4, 0.0]])
of_cat, of_rocket = (cross_entropy(logits_BY, torch.tensor([label])) for label in (0, 2))
print(f"loss for cat {of_cat:.3f}, for rocket {of_rocket:.3f}, for 60% cat {cross_entropy(logits_BY, soft_BY):.3f}")
assert torch.isclose(cross_entropy(logits_BY, soft_BY), 0.6 * of_cat + 0.4 * of_rocket)

# %% [markdown]
# ## MixUp and CutMix
#
# Take two images and a random number $\lambda$ (lambda) between 0 and 1.
#
# - [MixUp](https://arxiv.org/abs/1710.09412) fades them: each pixel is $\lambda$ times the first image plus $1 - \lambda$
#   times the second.
# - [CutMix](https://arxiv.org/abs/1905.04899) pastes a rectangle of the second image into the first. Its area is the
#   fraction $1 - \lambda$ of the image.
#
# In both cases the label is $\lambda$ times the first label plus $1 - \lambda$ times the second. `mix_batch` mixes each
# image of a batch with the one before it. All images of a batch share one $\lambda$.

# %% mystnb={"image": {"alt": "Four photos of cat, coffee, rocket and astronaut; below, each faded with another by MixUp; below, each with a pasted rectangle by CutMix; the titles give the soft labels"}}
print(inspect.getsource(mix_batch))


def describe(soft_Y):
    """Returns a soft label in words."""
    return "\n".join(f"{name} {share:.0%}" for name, share in zip(classes, soft_Y) if share > 0.005)


images, titles = list(photos_BCHW), [f"{name} 100%" for name in classes]
for settings in (Augment(mixup=0.8), Augment(cutmix=1.0)):
    torch.manual_seed(4)
    mixed_BCHW, soft_BY = mix_batch(settings, photos_BCHW / 255, labels_B, classes=4)
    assert torch.allclose(soft_BY.sum(dim=1), torch.ones(4))
    images += list(mixed_BCHW)
    titles += [describe(soft_Y) for soft_Y in soft_BY]
show(images, titles, columns=4)

# %% [markdown]
# The number after `mixup=` and `cutmix=` is called $\alpha$ (alpha). It says how $\lambda$ is drawn: from the *beta
# distribution* with $\alpha$ twice. With $\alpha = 1$ every $\lambda$ is equally likely. Below 1, values near 0 and 1 are
# more likely, and most images are hardly mixed.

# %% mystnb={"image": {"alt": "Three histograms of lambda: for alpha 0.2 most values are near 0 or 1, for 0.8 a little more there, for 1 all are equally likely"}}
figure, panels = plt.subplots(1, 3, figsize=(8, 2), sharey=True)
for axes, alpha in zip(panels, (0.2, 0.8, 1.0)):
    axes.hist(np.random.default_rng(0).beta(alpha, alpha, 20_000), bins=20, density=True)
    axes.set(title=f"alpha {alpha}", xlabel="lambda")
panels[0].set_ylabel("density")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## With and without, measured
#
# Which of these help? That is an experiment, and it takes longer than this page may. The following command trains a small
# ViT (64 wide, 4 blocks) on 1,000 images of CIFAR-10, 100 of each class, for 100 epochs. It does so with each kind of
# augmentation, and with several *seeds*: each seed draws other training images and other first weights. The result is
# tested on all 10,000 test images. The page reads the file that the command writes:
#
# <!-- not run: half an hour -->
# ```sh
# python -m benchmarks.augmentation data/cifar10 --out docs/learn/results/augmentation.jsonl
# ```

# %% mystnb={"image": {"alt": "Accuracy on training and test images by kind of augmentation; without any, the model knows its training images by heart and has the lowest accuracy on test images"}}
rows = [json.loads(line) for line in Path("results/augmentation.jsonl").read_text().splitlines()]
kinds = list(dict.fromkeys(row["kind"] for row in rows))
scores = {
    split: {kind: np.array([row[f"{split}_accuracy"] for row in rows if row["kind"] == kind]) for kind in kinds}
    for split in ("train", "test")
}
figure, axes = plt.subplots(figsize=(7, 3.2))
for split, marker in (("train", "x"), ("test", "o")):
    for height, kind in enumerate(kinds):
        values = scores[split][kind]
        axes.plot(values, [height] * len(values), marker, color="tab:blue" if split == "test" else "0.5",
                  label=f"{'training' if split == 'train' else 'test'} images" if height == 0 else None)  # fmt: skip
axes.set(xlabel="accuracy, one mark for each seed", yticks=range(len(kinds)), yticklabels=kinds, xlim=(0, 1.02))
axes.invert_yaxis()
axes.legend()
figure.tight_layout()
plt.show()
for kind in kinds:
    train, test = scores["train"][kind], scores["test"][kind]
    gain = test - scores["test"]["none"]
    print(
        f"{kind:18} training {train.mean():.1%}, test {test.mean():.1%}, "
        f"{100 * gain.mean():+.1f} points ({', '.join(f'{100 * each:+.1f}' for each in gain)})"
    )

# %% [markdown]
# RandAugment, MixUp and CutMix are used together with flips and shifts. Without augmentation the model knows its training
# images by heart (100%) and reads fewer than half of the test images. Flips and shifts help by some points, RandAugment
# and MixUp by about ten, CutMix by a little less, and all together most. The differences between seeds are far smaller
# than these gains. Only with everything turned on does the model no longer know its training images by heart.
#
# Do not take this for a law. A thousand images are very few. With many images, or few epochs, strong augmentation slows
# learning down and can make the result worse: the recipe for CIFAR-10 in the next chapter uses flips and shifts alone.
# The strengths are those of DeiT, not the result of a search. Measure on your own images.
#
# ## Exercises
#
# ### Exercise 1: MixUp by hand
#
# Mix each image with the one before it, the first with the last, for a given $\lambda$.


# %%
def my_mixup(images_BCHW, labels_B, share, classes):
    """Returns the mixed images, and soft labels (B, Y); `share` is lambda."""
    return images_BCHW, torch.nn.functional.one_hot(labels_B, classes).float()  # your code


def test_mixup(my_mixup):
    torch.manual_seed(4)
    expected_BCHW, expected_BY = mix_batch(Augment(mixup=0.8), photos_BCHW / 255, labels_B, classes=4)
    share = expected_BY[0, 0].item()
    mixed_BCHW, soft_BY = my_mixup(photos_BCHW / 255, labels_B, share, 4)
    assert (soft_BY - expected_BY).abs().max() < 1e-5, f"the labels must be\n{expected_BY}"
    assert (mixed_BCHW - expected_BCHW).abs().max() < 1e-5, "the labels are right, the images are not"
    print("my_mixup passes its test")


# %% tags=["raises-exception"]
test_mixup(my_mixup)


# %% tags=["solution", "hide-cell"]
def solved_mixup(images_BCHW, labels_B, share, classes):
    soft_BY = torch.nn.functional.one_hot(labels_B, classes).float()
    mixed_BCHW = share * images_BCHW + (1 - share) * images_BCHW.roll(1, dims=0)
    return mixed_BCHW, share * soft_BY + (1 - share) * soft_BY.roll(1, dims=0)


test_mixup(solved_mixup)

# %% [markdown]
# ### Exercise 2: the label of CutMix
#
# The rectangle of CutMix has a random center, so a part of it may lie outside of the image. Then less of the second
# image is visible than $1 - \lambda$ says, and the label must follow what is visible. Compute the share of the first
# image from the rectangle: its center, its height and its width, in whole pixels.


# %%
def visible_share(center, size, image_size):
    """Returns which fraction of the first image stays visible; each argument is (row or height, column or width)."""
    return 1 - size[0] * size[1] / (image_size[0] * image_size[1])  # your code; the rectangle may stick out


def test_share(visible_share):
    for center, size in (((50, 50), (40, 20)), ((0, 50), (40, 20)), ((105, 3), (60, 30)), ((0, 0), (224, 224))):
        covered = torch.zeros(112, 112)
        top, left = center[0] - size[0] // 2, center[1] - size[1] // 2
        covered[max(top, 0) : max(top + size[0], 0), max(left, 0) : max(left + size[1], 0)] = 1
        expected, result = 1 - covered.mean().item(), visible_share(center, size, (112, 112))
        assert abs(result - expected) < 1e-6, (
            f"center {center}, size {size}: the share is {expected:.3f}, not {result:.3f}"
        )
    print("visible_share passes its test")


# %% tags=["raises-exception"]
test_share(visible_share)


# %% tags=["solution", "hide-cell"]
def solved_share(center, size, image_size):
    visible = 1
    for middle, length, limit in zip(center, size, image_size):
        first = max(middle - length // 2, 0)
        last = min(middle - length // 2 + length, limit)
        visible *= last - first
    return 1 - visible / (image_size[0] * image_size[1])


test_share(solved_share)

# %% [markdown]
# ## What to read next
#
# [CIFAR-10](cifar10.py) uses these changes for a real training. [The recipe fields](../reference/recipes.md) list every
# setting of augmentation, and `vitrail train photos --mixup 0.8 --cutmix 1.0 --policy randaugment` turns them on.
