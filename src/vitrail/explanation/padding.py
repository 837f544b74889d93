"""Padding in letterboxed images: patches that hold none of the photo, which no map may mark."""

import torch
from torch import Tensor

from vitrail.data.preprocess import Preprocess


def content_patches(pixels_BCHW: Tensor, preprocess: Preprocess, grid: tuple[int, int]) -> Tensor:
    """Returns where the patches of an (h, w) grid hold any of the photo, (B, h, w); all do unless `fit` is `pad`.

    `Preprocess.pad` centers the photo between two bars of the padding color, above and below it or at its sides. So
    the bars are the rows, or the columns, of that color at both edges. A photo on a ground of that color has them at
    all four edges: there nothing is padding.
    """
    height, width = pixels_BCHW.shape[-2:]
    rows_Bh, columns_Bw = (torch.ones(len(pixels_BCHW), n, dtype=torch.bool, device=pixels_BCHW.device) for n in grid)
    if preprocess.fit == "pad":
        color = torch.tensor(preprocess.mean_pixel, dtype=pixels_BCHW.dtype, device=pixels_BCHW.device)
        is_bar_BHW = (pixels_BCHW == color[:, None, None]).all(dim=1)
        above_below, left_right = count_bars(is_bar_BHW.all(dim=2)), count_bars(is_bar_BHW.all(dim=1))
        has_rows_B, has_columns_B = above_below[0] > 0, left_right[0] > 0
        rows_Bh = outside_bars(above_below, height, grid[0]) | has_columns_B[:, None]
        columns_Bw = outside_bars(left_right, width, grid[1]) | has_rows_B[:, None]
    return rows_Bh[:, :, None] & columns_Bw[:, None, :]


def count_bars(is_bar_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Returns how many lines of the padding color are before and after the photo, (B,) each.

    They are as many, or one more after the photo.
    """
    before_B, after_B = (each.to(torch.int64).cumprod(dim=1).sum(dim=1) for each in (is_bar_BN, is_bar_BN.flip(1)))
    before_B = torch.minimum(before_B, after_B)
    return before_B, torch.minimum(after_B, before_B + 1)


def outside_bars(bars: tuple[Tensor, Tensor], size: int, patches: int) -> Tensor:
    """Returns which of the patches along an edge of `size` pixels do not lie in the bars at both ends, (B, patches)."""
    before_B, after_B = bars
    starts = torch.arange(patches, device=before_B.device) * size // patches
    ends = (torch.arange(patches, device=before_B.device) + 1) * size // patches
    return (ends > before_B[:, None]) & (starts < size - after_B[:, None])
