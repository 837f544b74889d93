"""Maps -> pixels: a color scale for color-blind readers, patch edges where they are, overlays on the image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.explanation.relevance_map import RelevanceMap

if TYPE_CHECKING:
    from matplotlib.colors import Colormap


SEQUENTIAL_COLORMAP = "cividis"  # for color-blind readers (Nuñez, Anderton & Renslow 2018); brighter is more
FOR_COLOR, AGAINST_COLOR = "#e66100", "#3d5fc4"  # orange, blue: distinct for every kind of color blindness


@dataclass(frozen=True)
class OverlayStyle:
    """How a signed map covers its image: its opacity at the ends of the scale, and what shows through."""

    opacity: float
    gamma: float = 1.0  # of the opacity between 0 and the ends of the scale
    color_floor: float = 0.65  # brightness of the colors over black; 0.35 more over white
    gray_floor: float = 0.0  # brightness of the image where it is black
    gray_gain: float = 1.0


FIGURE_STYLE = OverlayStyle(opacity=0.75)
TILE_STYLE = OverlayStyle(opacity=0.9, gamma=0.8, color_floor=0.75, gray_floor=0.2, gray_gain=0.7)  # small pictures


def color_limits(map_hw: np.ndarray, signed: bool) -> tuple[float, float]:
    """Returns the ends of the color scale: the 1st and the 99th percentile, so that no extreme patch hides the others.

    The scale of a signed map is symmetric about zero.
    """
    if signed:
        limit = float(np.percentile(np.abs(map_hw), 99)) or 1e-12
        return -limit, limit
    low, high = (float(value) for value in np.percentile(map_hw, [1, 99]))
    return low, max(high, low + 1e-12)


def scale_map(map_hw: np.ndarray, signed: bool = False) -> np.ndarray:
    """Returns the map clipped to its color limits and scaled to 0..1, or to -1..1 if it is signed."""
    low, high = color_limits(map_hw, signed)
    if signed:
        signed_hw: np.ndarray = np.clip(map_hw / high, -1, 1)
        return signed_hw
    scaled_hw: np.ndarray = np.clip((map_hw - low) / (high - low), 0, 1)
    return scaled_hw


def enlarge_map(map_hw: np.ndarray, height: int, width: int, smooth: bool = False) -> np.ndarray:
    """Returns the map at the size of an image: each patch is a plain rectangle, or bicubic with `smooth`."""
    if smooth:
        from PIL import Image

        image = Image.fromarray(map_hw.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
        return np.clip(np.asarray(image), map_hw.min(), map_hw.max())
    h, w = map_hw.shape
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    large_HW: np.ndarray = map_hw[np.ix_(rows, columns)].astype(np.float64)
    return large_HW


def color_map(signed: bool) -> "Colormap":
    """Dark to bright; for a signed map from blue through white to orange."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    if not signed:
        return colormaps[SEQUENTIAL_COLORMAP]
    colors = ["#16255c", AGAINST_COLOR, "#f7f7f7", FOR_COLOR, "#7a2b00"]
    return LinearSegmentedColormap.from_list("for and against", colors)


def overlay_map(explanation: RelevanceMap, smooth: bool = False) -> np.ndarray:
    """Returns the image in gray under the colored map: floats (H, W, 3) from 0 to 1.

    In a signed map the image shows through where the relevance is near zero; another map covers it evenly.
    """
    height, width = explanation.image.shape[:2]
    value_HW = enlarge_map(scale_map(explanation.map, explanation.signed), height, width, smooth)
    gray_HW1 = to_rgb(explanation.image).mean(axis=2, keepdims=True) / 255
    if explanation.signed:
        return paint_signed(gray_HW1, value_HW[..., None], FIGURE_STYLE)
    color_HW3 = color_map(False)(value_HW)[..., :3]
    overlay_HW3: np.ndarray = (1 - 0.6) * gray_HW1 + 0.6 * color_HW3
    return overlay_HW3


def paint_signed(gray_HW1: np.ndarray, value_HW1: np.ndarray, style: OverlayStyle) -> np.ndarray:
    """Orange where values in -1..1 are positive, blue where they are negative, over a gray image in 0..1: (H, W, 3)."""
    color = np.where(value_HW1 >= 0, parse_color(FOR_COLOR), parse_color(AGAINST_COLOR))
    color = color * (style.color_floor + 0.35 * gray_HW1)
    opacity = style.opacity * np.abs(value_HW1) ** style.gamma
    painted_HW3: np.ndarray = (1 - opacity) * (style.gray_floor + style.gray_gain * gray_HW1) + opacity * color
    return painted_HW3


def parse_color(color: str) -> np.ndarray:
    """#rrggbb -> three floats from 0 to 1."""
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def to_rgb(image_HWC: np.ndarray) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (H, W, 3) from one or three channels."""
    return image_HWC if image_HWC.shape[2] == 3 else image_HWC.repeat(3, axis=2)
