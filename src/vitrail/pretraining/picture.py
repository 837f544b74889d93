"""Pictures of the progress: some images, what is visible of them, and what the decoder makes of it."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import eval_mode
from vitrail.data.images import Images
from vitrail.data.preprocess import Preprocess
from vitrail.files import write_atomically
from vitrail.pretraining.masked_autoencoder import (
    MaskedAutoencoder,
    draw_visible,
    patch_statistics,
    patchify,
    unpatchify,
)

SHOWN_IMAGES = 8
TITLES = ("image", "visible", "reconstruction")


def draw_reconstructions(
    model: MaskedAutoencoder, images: Images, preprocess: Preprocess, mask: float, path: Path, title: str
) -> None:
    """Draws a row for each of some images: the image, its visible patches, and the reconstruction of the others.

    The decoder predicts pixels relative to mean and deviation of their patch, so these are those of the image.
    """
    from matplotlib.figure import Figure

    numbers = np.linspace(0, len(images) - 1, min(SHOWN_IMAGES, len(images))).astype(int)
    columns = reconstruct(model, images.load_batch(preprocess, numbers), preprocess, mask, numbers)
    rows = len(numbers)
    figure = Figure(figsize=(5, 1.6 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, len(TITLES), squeeze=False)
    for axes_row, shown in zip(grid, zip(*columns, strict=True), strict=True):
        for axes, image_CHW in zip(axes_row, shown, strict=True):
            pixels = image_CHW.permute(1, 2, 0).clamp(0, 1).numpy()
            axes.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
    for axes, name in zip(grid[0], TITLES, strict=True):
        axes.set_title(name)
    figure.suptitle(title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


@torch.no_grad()
def reconstruct(
    model: MaskedAutoencoder, pixels_BCHW: Tensor, preprocess: Preprocess, mask: float, numbers: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns images, images with masked patches in gray, and reconstructions, from 0 to 1, (B, C, H, W) each."""
    device, patch = next(model.parameters()).device, model.encoder.config.patch
    images_BCHW = preprocess.normalize(pixels_BCHW.to(device))
    grid = (images_BCHW.shape[2] // patch, images_BCHW.shape[3] // patch)
    visible_BK = draw_visible(numbers, grid[0] * grid[1], mask, "shown").to(device)
    with eval_mode(model):
        predicted_BPV = model(images_BCHW, visible_BK)
    target_BPV = patchify(images_BCHW, patch)
    mean_BP1, deviation_BP1 = patch_statistics(target_BPV)
    is_visible_BP1 = torch.zeros_like(mean_BP1).scatter(1, visible_BK[..., None], 1.0).bool()
    rebuilt_BPV = torch.where(is_visible_BP1, target_BPV, predicted_BPV * deviation_BP1 + mean_BP1)
    values = torch.tensor(preprocess.std, device=device), torch.tensor(preprocess.mean, device=device)
    std_1C11, mean_1C11 = (each.view(1, -1, 1, 1) for each in values)

    def to_pixels(patches_BPV: Tensor) -> Tensor:
        return (unpatchify(patches_BPV, patch, grid) * std_1C11 + mean_1C11).cpu()

    gray_BPV = torch.where(is_visible_BP1, patchify(images_BCHW * std_1C11 + mean_1C11, patch), 0.5)
    return to_pixels(target_BPV), unpatchify(gray_BPV, patch, grid).cpu(), to_pixels(rebuilt_BPV)
