"""Maps that know nothing of the model: what any method has to beat."""

from collections.abc import Callable

import numpy as np
from torch import Tensor


def by_lot(pixels_BCHW: Tensor, h: int, w: int, seed: int) -> np.ndarray:
    """Every patch by lot, (B, P)."""
    return np.random.default_rng(seed).random((len(pixels_BCHW), h * w))


def centre(pixels_BCHW: Tensor, h: int, w: int, seed: int) -> np.ndarray:
    """A bump in the middle, (B, P): photographers put things there."""
    y, x = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)[None]
    return np.tile(np.exp(-(y**2 + x**2) / 0.5).ravel(), (len(pixels_BCHW), 1))


def edges(pixels_BCHW: Tensor, h: int, w: int, seed: int) -> np.ndarray:
    """The mean steepness of brightness in a patch (Sobel), (B, P): where there is something to see."""
    from scipy.ndimage import sobel

    grey_BHW = pixels_BCHW.float().mean(dim=1).cpu().numpy()
    steep_BHW = np.hypot(sobel(grey_BHW, axis=1), sobel(grey_BHW, axis=2))
    b, height, width = steep_BHW.shape
    blocks: np.ndarray = steep_BHW.reshape(b, h, height // h, w, width // w).mean(axis=(2, 4)).reshape(b, -1)
    return blocks


Control = Callable[[Tensor, int, int, int], np.ndarray]  # pixels, rows, columns, seed -> map (B, P)
CONTROLS: dict[str, Control] = {
    "random": by_lot,
    "centre": centre,
    "edges": edges,
}
