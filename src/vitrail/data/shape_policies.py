"""The automatic augmentations of torchvision for bands: they change the shape of an image, and none of its values.

Brightness, contrast, posterize and the like are defined for 8-bit gray and color images.
"""

from typing import Any

from torchvision.transforms import v2

SHAPE_OPERATIONS = ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")  # torchvision's names


def keep_shapes(space: dict[str, Any]) -> dict[str, Any]:
    """Returns the operations of a policy that change shapes only."""
    return {name: operation for name, operation in space.items() if name in SHAPE_OPERATIONS}


class ShapeRandAugment(v2.RandAugment):  # type: ignore[misc]
    """RandAugment without color operations."""

    _AUGMENTATION_SPACE = keep_shapes(v2.RandAugment._AUGMENTATION_SPACE)


class ShapeTrivialAugment(v2.TrivialAugmentWide):  # type: ignore[misc]
    """TrivialAugment without color operations."""

    _AUGMENTATION_SPACE = keep_shapes(v2.TrivialAugmentWide._AUGMENTATION_SPACE)
