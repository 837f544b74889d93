"""Images of a model that is not a ViT as vectors of cells, for the explanation methods that need no tokens.

The cells form a grid, in the place of patches. A vector holds the normalized pixels of a cell; a cell that is removed
has the mean color. Shapes: B batch, P cells, D pixels of the largest cell times channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.explanation.inputs import PatchInputs
from vitrail.explanation.recording import promote_to_float32
from vitrail.explanation.targets import ClassTarget, make_target_rule
from vitrail.module_classifier import ModuleClassifier

MAX_CELLS = 14  # in a row or a column, as many as the patches of a ViT-B/16
MIN_CELL_PIXELS = 4
MAX_BATCH_IMAGES = 16  # that pass through the model at once; what its layers need is not known


@dataclass
class PixelInputs(PatchInputs):
    """Cells of normalized pixels, (B, P, D), and the module from images to logits."""

    module: nn.Module = field(kw_only=True)
    cells: "CellGrid" = field(kw_only=True)

    @property
    def max_batch_size(self) -> int:
        return MAX_BATCH_IMAGES

    def logits(self, x_BTD: Tensor) -> Tensor:
        return promote_to_float32(self.module(self.cells.join(x_BTD)))

    def logits_of_patches(self, keep_BP: Tensor, x_BTD: Tensor | None = None) -> Tensor:
        x_BTD = self.x_BTD if x_BTD is None else x_BTD
        keep_BT1 = x_BTD.new_zeros(x_BTD.shape[:2]).scatter_(1, keep_BP, 1.0).unsqueeze(-1)
        return self.logits(keep_BT1 * x_BTD)  # zero is the mean color

    def drop_prefix(self, x_BT: Tensor) -> Tensor:
        return x_BT


class CellGrid:
    """Divides images of one size into cells, whose sides differ by at most one pixel."""

    def __init__(self, height: int, width: int, device: torch.device):
        self.shape = cell_counts(height, width)
        self.rows = divide(height, self.shape[0], device)
        self.columns = divide(width, self.shape[1], device)

    def split(self, x_BCHW: Tensor) -> Tensor:
        """Returns the pixels of each cell, row by row: (B, P, D), with zeros where a cell is not the largest."""
        padded = F.pad(x_BCHW, (0, 1, 0, 1))
        cells = padded[:, :, self.rows.pixels][:, :, :, :, self.columns.pixels]  # B, C, h, rows, w, columns
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def join(self, x_BPD: Tensor) -> Tensor:
        """Returns the images of the cells: (B, C, H, W)."""
        sides = self.rows.pixels.shape[1], self.columns.pixels.shape[1]
        cells = x_BPD.view(len(x_BPD), *self.shape, -1, *sides)
        rows, columns = self.rows, self.columns
        pixels_HWBC = cells[:, rows.cell[:, None], columns.cell, :, rows.offset[:, None], columns.offset]
        return pixels_HWBC.permute(2, 3, 0, 1)


@dataclass(frozen=True)
class Division:
    """The parts of a side of `size` pixels."""

    pixels: Tensor  # (parts, largest part): the index of each pixel; `size` where a part is smaller
    cell: Tensor  # (size,): the part of each pixel
    offset: Tensor  # (size,): the place of each pixel in its part


def divide(size: int, parts: int, device: torch.device) -> Division:
    starts = torch.arange(parts + 1, device=device) * size // parts
    index = torch.arange(size, device=device)
    cell = torch.bucketize(index, starts[1:], right=True)
    pixels = starts[:-1, None] + torch.arange(-(-size // parts), device=device)
    return Division(torch.where(pixels < starts[1:, None], pixels, size), cell, index - starts[cell])


def cell_counts(height: int, width: int) -> tuple[int, int]:
    """Returns the rows and columns of cells of an image."""
    rows, columns = (max(1, min(MAX_CELLS, side // MIN_CELL_PIXELS)) for side in (height, width))
    return rows, columns


def split_images(
    classifier: ModuleClassifier, pixels_BCHW: Tensor, targets: Sequence[ClassTarget | None]
) -> PixelInputs:
    """Returns uint8 pixels of the model's size as cells; a target of None is the predicted class."""
    with torch.no_grad():
        cells = CellGrid(pixels_BCHW.shape[-2], pixels_BCHW.shape[-1], classifier.device)
        x_BPD = cells.split(classifier.normalize(pixels_BCHW))
    return PixelInputs(
        x_BPD, cells.shape, make_target_rule(targets), torch.zeros_like(x_BPD[:1]), module=classifier.module,
        cells=cells, temperature=classifier.temperature, task=classifier.task,
    )  # fmt: skip
