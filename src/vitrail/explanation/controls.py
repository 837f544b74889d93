"""Control maps, which do not depend on the model: every explanation method should score better than they do."""

import zlib
from collections.abc import Callable

import numpy as np
from torch import Tensor


def random_map(pixels_BCHW: Tensor, h: int, w: int, seed: int) -> np.ndarray:
    """Returns uniform random values, (B, P); equal images have equal maps, so that the control is class-blind."""
    keys = [zlib.crc32(image.cpu().numpy().tobytes()) for image in pixels_BCHW]
    return np.stack([np.random.default_rng([seed, key]).random(h * w) for key in keys])


def center_map(pixels_BCHW: Tensor, h: int, w: int, seed: int) -> np.ndarray:
    """Returns a Gaussian at the center, (B, P), where photographers often place the object."""
    y, x = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)[None]
    return np.tile(np.exp(-(y**2 + x**2) / 0.5).ravel(), (len(pixels_BCHW), 1))


def edge_map(pixels_BCHW: Tensor, h: int, w: int, seed: int) -> np.ndarray:
    """Returns the mean magnitude of the brightness gradient (Sobel) in each patch, (B, P)."""
    from scipy.ndimage import sobel

    gray_BHW = pixels_BCHW.float().mean(dim=1).cpu().numpy()
    # one image at a time: scipy's filter smooths along every other axis, and would mix the images of a batch
    magnitude_BHW = np.stack([np.hypot(sobel(gray_HW, axis=0), sobel(gray_HW, axis=1)) for gray_HW in gray_BHW])
    b, height, width = magnitude_BHW.shape
    patches: np.ndarray = magnitude_BHW.reshape(b, h, height // h, w, width // w).mean(axis=(2, 4)).reshape(b, -1)
    return patches


Control = Callable[[Tensor, int, int, int], np.ndarray]  # pixels, rows, columns, seed -> map (B, P)
CONTROLS: dict[str, Control] = {
    "random": random_map,
    "center": center_map,
    "edges": edge_map,
}
