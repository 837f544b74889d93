"""The names of the classes that public checkpoints were trained on."""

from functools import cache

from vitrail.weights.parsed_config import make_unique


def get_class_names(labels: str, count: int) -> tuple[str, ...]:
    """Returns the names of `count` outputs for a set of classes; numbered names for a set that is not included."""
    if not labels or not count:
        return ()
    if labels == "imagenet-1k" and count == 1000:
        return load_imagenet_classes()
    return tuple(f"{labels} {index}" for index in range(count))


@cache
def load_imagenet_classes() -> tuple[str, ...]:
    """Returns the names of ImageNet-1k in the order of every public head, as torchvision has them.

    Two names (crane, maillot) occur twice; the second of each gets its index.
    """
    from torchvision.models import ViT_B_16_Weights

    return make_unique(tuple(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"]))
