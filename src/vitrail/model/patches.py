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
        height, width = image_BCHW.shape[-2:]
        if height % self.patch or width % self.patch or min(height, width) < self.patch:
            raise ValueError(f"an image of {height}x{width} pixels does not divide into patches of {self.patch}")
        patches_BDhw: Tensor = self.proj(image_BCHW)
        return patches_BDhw.permute(0, 2, 3, 1)
