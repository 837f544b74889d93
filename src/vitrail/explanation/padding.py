"""Padding in letterboxed images: patches that hold none of the photo, which no map may mark."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vitrail.data.preprocess import Preprocess

ImageSize = tuple[int, int]  # height and width of an image before it is fitted to the model's size
Bars = tuple[Tensor, Tensor]  # lines of padding before and after each photo, (B,) each


def content_patches(
    pixels_BCHW: Tensor, preprocess: Preprocess, grid: tuple[int, int], sizes: Sequence[ImageSize] | None = None
) -> Tensor:
    """Returns where the patches of an (h, w) grid hold any of the photo, (B, h, w); all do unless `fit` is `pad`.

    The `sizes` that the images had before say it exactly. Without them, the padding is found in the pixels.
    """
    height, width = pixels_BCHW.shape[-2:]
    if preprocess.fit != "pad":
        return torch.ones(len(pixels_BCHW), *grid, dtype=torch.bool)
    bars = find_bars(pixels_BCHW, preprocess) if sizes is None else compute_bars(sizes, preprocess)
    rows_Bh, columns_Bw = (outside_bars(*each) for each in zip(bars, (height, width), grid, strict=True))
    return rows_Bh[:, :, None] & columns_Bw[:, None, :]


def compute_bars(sizes: Sequence[ImageSize], preprocess: Preprocess) -> tuple[Bars, Bars]:
    """Returns the bars above and below, and left and right, of images that had these sizes."""
    bars = []
    for axis in range(2):
        inner_B = torch.tensor([preprocess.resized_size(*size)[axis] for size in sizes])
        before_B = (preprocess.fitted_size[axis] - inner_B) // 2  # as in `Preprocess.pad`
        bars.append((before_B, (preprocess.image_size[axis] - before_B - inner_B).clamp(min=0)))
    return bars[0], bars[1]


def find_bars(pixels_BCHW: Tensor, preprocess: Preprocess) -> tuple[Bars, Bars]:
    """Returns the bars above and below, and left and right, of the photos in these pixels.

    `Preprocess.pad` centers the photo between two bars of the padding color, above and below it or at its sides. So
    the bars are the rows, or the columns, of that color at both edges. A photo on a ground of that color has them at
    all four edges: there nothing is padding. A photo with two such bars of its own cannot be told from a padded one.
    """
    color = torch.tensor(preprocess.mean_pixel, dtype=pixels_BCHW.dtype)
    is_bar_BHW = (pixels_BCHW == color[:, None, None]).all(dim=1)
    rows, columns = count_bars(is_bar_BHW.all(dim=2)), count_bars(is_bar_BHW.all(dim=1))
    has_rows_B, has_columns_B = rows[0] > 0, columns[0] > 0
    above_B, below_B = (each.masked_fill(has_columns_B, 0) for each in rows)
    left_B, right_B = (each.masked_fill(has_rows_B, 0) for each in columns)
    return (above_B, below_B), (left_B, right_B)


def count_bars(is_bar_BN: Tensor) -> Bars:
    """Returns how many lines of the padding color are before and after the photo.

    They are as many, or one more after the photo.
    """
    before_B, after_B = (each.to(torch.int64).cumprod(dim=1).sum(dim=1) for each in (is_bar_BN, is_bar_BN.flip(1)))
    before_B = torch.minimum(before_B, after_B)
    return before_B, torch.minimum(after_B, before_B + 1)


def outside_bars(bars: Bars, size: int, patches: int) -> Tensor:
    """Returns which of the patches along an edge of `size` pixels do not lie in the bars at both ends, (B, patches)."""
    before_B, after_B = bars
    starts = torch.arange(patches) * size // patches
    ends = (torch.arange(patches) + 1) * size // patches
    return (ends > before_B[:, None]) & (starts < size - after_B[:, None])
