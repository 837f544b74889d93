"""Maps -> coloured pixels, with colours that every eye can read and patch edges where they are."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

    from vitrail.explanation.explanation import Explanation

SEQUENTIAL_COLORMAP = "cividis"  # made for colour-blind readers (Nuñez, Anderton & Renslow 2018); brighter is more
FOR_COLOR, AGAINST_COLOR = "#e66100", "#3d5fc4"  # orange for, blue against: apart for every kind of colour blindness


def color_limits(map_hw: np.ndarray, signed: bool) -> tuple[float, float]:
    """The values at the ends of the colour scale: the 1st and 99th percentile, so that one loud patch does not black
    out the others; for a signed map the same distance on both sides of zero.
    """
    if signed:
        most = float(np.percentile(np.abs(map_hw), 99)) or 1e-12
        return -most, most
    low, high = (float(value) for value in np.percentile(map_hw, [1, 99]))
    return low, max(high, low + 1e-12)


def scale_map(map_hw: np.ndarray, signed: bool = False) -> np.ndarray:
    """The map between its limits: from 0 to 1, or from -1 to 1 where it is signed."""
    low, high = color_limits(map_hw, signed)
    shown: np.ndarray = np.clip(map_hw / high, -1, 1) if signed else np.clip((map_hw - low) / (high - low), 0, 1)
    return shown


def enlarge_map(map_hw: np.ndarray, height: int, width: int, smooth: bool = False) -> np.ndarray:
    """The map at the image's size: each patch a plain square, or smoothed, which is only for the eye."""
    h, w = map_hw.shape
    if not smooth:
        return np.kron(map_hw, np.ones((height // h, width // w)))
    from PIL import Image

    big = Image.fromarray(map_hw.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(big), map_hw.min(), map_hw.max())


def color_map(signed: bool) -> "Colormap":
    """Dark to bright; for a signed map blue over white to orange."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    if not signed:
        return colormaps[SEQUENTIAL_COLORMAP]
    return LinearSegmentedColormap.from_list(
        "for and against", ["#16255c", AGAINST_COLOR, "#f7f7f7", FOR_COLOR, "#7a2b00"]
    )


def overlay_map(explanation: "Explanation", strength: float = 0.75, smooth: bool = False) -> np.ndarray:
    """The image, greyed, under the coloured map: floats (H, W, 3) from 0 to 1.

    The more a patch counts in a signed map, for or against, the less the image shows through; others cover it evenly.
    """
    height, width = explanation.image.shape[:2]
    value_hw = enlarge_map(scale_map(explanation.map, explanation.signed), height, width, smooth)
    grey = to_rgb(explanation.image).mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
    if explanation.signed:
        cover = strength * np.abs(value_hw)[..., None]
        colour = np.where(value_hw[..., None] >= 0, parse_color(FOR_COLOR), parse_color(AGAINST_COLOR)) * (
            0.65 + 0.35 * grey
        )
    else:
        cover = np.full((height, width, 1), 0.6 * strength / 0.75)
        colour = color_map(False)(value_hw)[..., :3]
    mixed: np.ndarray = (1 - cover) * grey + cover * colour
    return mixed


def parse_color(colour: str) -> np.ndarray:
    """#rrggbb -> three floats from 0 to 1."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def to_rgb(image_HWC: np.ndarray) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (H, W, 3), grey images repeated."""
    return image_HWC if image_HWC.shape[2] == 3 else image_HWC.repeat(3, axis=2)
