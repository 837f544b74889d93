"""The Vision Transformer: image -> patches -> tokens -> blocks -> pooled -> logits, a file per stage.

Letters for shapes, in every file: B batch, T tokens, P patches, D width, N heads, K head width,
C channels, H W pixels, h w grid, R prefix tokens, S tokens attended to, M hidden width of the MLP, Y classes.
"""

from vitrail.model.config import Learned, NoPosition, Position, Rotary, SinCos, ViTConfig
from vitrail.model.vit import ViT

__all__ = ["Learned", "NoPosition", "Position", "Rotary", "SinCos", "ViT", "ViTConfig"]
