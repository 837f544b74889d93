"""Maps -> pixels: a color scale for color-blind readers, patch edges where they are, overlays on the photo."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.explanation.relevance_map import RelevanceMap

if TYPE_CHECKING:
    from matplotlib.colors import Colormap


SEQUENTIAL_COLORMAP = "cividis"  # for color-blind readers (Nuñez, Anderton & Renslow 2018); brighter is more
HIGH_COLOR = "#fee838"  # the bright end of cividis
FOR_COLOR, AGAINST_COLOR = "#e66100", "#3d5fc4"  # orange, blue: distinct for every kind of color blindness


@dataclass(frozen=True)
class OverlayStyle:
    """How a map covers its photo: the color is opaque to this degree at the ends of the scale.

    The photo keeps its hue. Where the map is zero the photo is dimmed, so that marks also stand out from a bright
    photo; where the map is strong the photo is lifted from black, so that marks on a dark photo do not turn brown.
    """

    opacity: float
    saturation: float = 1.0  # of the photo; below 1, so that orange and blue of the photo are not taken for marks
    gamma: float = 1.0  # of the opacity between 0 and the ends of the scale
    dimmed: float = 0.55  # brightness of a white photo where the map is zero
    dark_floor: float = 0.05  # brightness of a black photo where the map is zero
    marked_floor: float = 0.35  # brightness of a black photo under the color where the map is strong


SIGNED_STYLE = OverlayStyle(opacity=0.75, saturation=0.35)
POSITIVE_STYLE = OverlayStyle(opacity=0.6)
TILE_STYLE = OverlayStyle(opacity=0.85, saturation=0.35, gamma=0.8, dark_floor=0.12)  # small pictures


def color_limits(map_hw: np.ndarray, signed: bool) -> tuple[float, float]:
    """Returns the ends of the color scale: the 1st and the 99th percentile, so that no extreme patch hides the others.

    The scale of a signed map is symmetric about zero.
    """
    if signed:
        limit = float(np.percentile(np.abs(map_hw), 99)) or 1e-12
        return -limit, limit
    low, high = (float(value) for value in np.percentile(map_hw, [1, 99]))
    return low, max(high, low + 1e-12)


def scale_map(map_hw: np.ndarray, signed: bool = False, content_hw: np.ndarray | None = None) -> np.ndarray:
    """Returns the map clipped to its color limits and scaled to 0..1, or to -1..1 if it is signed.

    The limits are those of the patches that hold the photo, if these are given.
    """
    low, high = color_limits(map_hw if content_hw is None else map_hw[content_hw], signed)
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
    """Returns the photo in its colors under the map: floats (H, W, 3) from 0 to 1.

    Patches of a signed map are orange or blue, over a photo in pale colors; of another map they are yellow. Near zero
    the photo is only dimmed.
    """
    height, width = explanation.image.shape[:2]
    value_HW = enlarge_map(scale_map(explanation.map, explanation.signed, explanation.content), height, width, smooth)
    style = SIGNED_STYLE if explanation.signed else POSITIVE_STYLE
    return paint_map(to_rgb(explanation.image) / 255, value_HW[..., None], explanation.signed, style)


def paint_map(photo_HW3: np.ndarray, value_HW1: np.ndarray, signed: bool, style: OverlayStyle) -> np.ndarray:
    """Colors a photo in 0..1 by values in 0..1, or in -1..1 of a signed map: (H, W, 3)."""
    color = parse_color(HIGH_COLOR)
    if signed:
        color = np.where(value_HW1 >= 0, parse_color(FOR_COLOR), parse_color(AGAINST_COLOR))
    strength_HW1 = np.abs(value_HW1)
    gray_HW1 = photo_HW3.mean(axis=2, keepdims=True)
    photo_HW3 = gray_HW1 + style.saturation * (photo_HW3 - gray_HW1)
    dim_HW3 = style.dark_floor + (style.dimmed - style.dark_floor) * photo_HW3
    lifted_HW3 = style.marked_floor + (1 - style.marked_floor) * photo_HW3
    under_HW3 = (1 - strength_HW1) * dim_HW3 + strength_HW1 * lifted_HW3
    opacity_HW1 = style.opacity * strength_HW1**style.gamma
    painted_HW3: np.ndarray = (1 - opacity_HW1) * under_HW3 + opacity_HW1 * color
    return painted_HW3


def parse_color(color: str) -> np.ndarray:
    """#rrggbb -> three floats from 0 to 1."""
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def to_rgb(image_HWC: np.ndarray) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (H, W, 3) from one or three channels."""
    return image_HWC if image_HWC.shape[2] == 3 else image_HWC.repeat(3, axis=2)
