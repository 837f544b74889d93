"""Image -> patch vectors, by a convolution whose stride is its size."""

from torch import Tensor, nn

from vitrail.model.config import ViTConfig


class PatchEmbed(nn.Module):
    """Each patch, flattened and projected to the model's width: image (B, C, H, W) -> patches (B, h, w, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.patch = config.patch
        self.proj = nn.Conv2d(config.channels, config.width, kernel_size=config.patch, stride=config.patch)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        check_divides(image_BCHW, self.patch)
        patches_BDhw: Tensor = self.proj(image_BCHW)
        return patches_BDhw.permute(0, 2, 3, 1)


def check_divides(image_BCHW: Tensor, patch: int) -> None:
    """Raises `ValueError` for an image that is not made of whole patches."""
    height, width = image_BCHW.shape[-2:]
    if height % patch or width % patch or min(height, width) < patch:
        raise ValueError(f"an image of {height}x{width} pixels does not divide into patches of {patch}")
