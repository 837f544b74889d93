"""Class-balanced sampling: which images an epoch has, and in which order.

An epoch has as many images as the training set, so that the number of steps does not change. Each class gets a number
of draws, and continues with its images where the epoch before ended: over a run all images of a class are seen equally
often. All of it depends only on the labels, the seed and the epoch, so it is the same for any number of processes and
workers, and after a resume.
"""

import numpy as np

from vitrail.data.randomness import derive_seed, epoch_permutation


def class_quotas(class_counts_Y: np.ndarray, strength: float) -> np.ndarray:
    """Returns the number of draws of each class in an epoch, int64 (Y,); they sum to the number of images.

    They are proportional to (images of the class) ** (1 - strength): equal for 1, as in the data for 0.
    """
    n = int(class_counts_Y.sum())
    has_images = class_counts_Y > 0
    shares = np.where(has_images, np.maximum(class_counts_Y, 1).astype(float) ** (1 - strength), 0.0)
    exact = shares / shares.sum() * n
    quotas = np.maximum(np.floor(exact), has_images).astype(np.int64)
    while (missing := n - int(quotas.sum())) > 0:
        quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
    for _ in range(-missing):  # with one draw at least for each class, the sum can be too large
        quotas[quotas.argmax()] -= 1
    return quotas


def balanced_draws(labels: np.ndarray, classes: int, seed: int, epoch: int, strength: float) -> np.ndarray:
    """Returns the draws of an epoch, in order, int64 (n,).

    A draw is the index of an image, plus `n` for each time that the epoch has had the image before: the augmentation
    of an image is drawn with this number, so that its copies differ. The index is the draw modulo `n`.
    """
    n = len(labels)
    quotas = class_quotas(np.bincount(labels, minlength=classes), strength)
    by_class = np.split(np.argsort(labels, kind="stable"), np.bincount(labels, minlength=classes).cumsum()[:-1])
    draws = [
        class_draws(members, int(quota), n, ("class", seed, label), epoch)
        for label, (members, quota) in enumerate(zip(by_class, quotas, strict=True))
        if len(members)
    ]
    return np.concatenate(draws)[epoch_permutation(n, seed, epoch)]


def class_draws(members: np.ndarray, quota: int, n: int, key: tuple[int | str, ...], epoch: int) -> np.ndarray:
    """Returns the draws of one class: all its images in random order, then all in another order, and so on."""
    first, last = epoch * quota, (epoch + 1) * quota - 1
    rounds = range(first // len(members), last // len(members) + 1)
    orders = [
        members[np.random.Generator(np.random.Philox(derive_seed(*key, number))).permutation(len(members))]
        + n * (number - rounds[0])
        for number in rounds
    ]
    start = first - rounds[0] * len(members)
    draws: np.ndarray = np.concatenate(orders)[start : start + quota]
    return draws
