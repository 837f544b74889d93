"""The names of the classes that public checkpoints were trained on."""

from functools import cache


def get_class_names(labels: str, count: int) -> tuple[str, ...]:
    """The names of `count` outputs trained on a set of labels; numbers where the names are not at hand."""
    if not labels or not count:
        return ()
    if labels == "imagenet-1k" and count == 1000:
        return load_imagenet_classes()
    return tuple(f"{labels} {number}" for number in range(count))


@cache
def load_imagenet_classes() -> tuple[str, ...]:
    """The thousand names of ImageNet-1k in the order of every public head, as torchvision keeps them.

    Two names stand for two classes each (crane, maillot); the second of each gets its number.
    """
    from torchvision.models import ViT_B_16_Weights

    seen: set[str] = set()
    names = []
    for number, name in enumerate(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"]):
        names.append(f"{name} ({number})" if name in seen else name)
        seen.add(name)
    return tuple(names)
