"""The settings of a pre-training: its recipe, and the settings of the masked autoencoder."""

from dataclasses import dataclass

from vitrail.data.augment import Augment
from vitrail.options import check_fields, option
from vitrail.training.recipe import Recipe

# The augmentation, optimizer and schedule of the paper (table 8), and a model for small images
MAE_RECIPE = Recipe(
    name="mae",
    description="a masked autoencoder (arXiv 2111.06377)",
    model=dict(width=96, depth=5, heads=3, mlp_width=384, prefix_tokens=0, pool="mean", qk_norm=True),
    augment=Augment(crop="resized", crop_scale=0.5),
    epochs=100,
    batch_size=256,
    lr=1e-3,
    weight_decay=0.05,
    max_grad_norm=None,
    normalize="data",
)
RECIPE_OPTIONS = (
    "epochs", "batch_size", "lr", "weight_decay", "warmup_fraction", "seed", "precision", "image_cache_gib", "workers",
    "skip_unreadable",
)  # fmt: skip
AUGMENT_OPTIONS = ("flip", "crop", "crop_scale")
MODEL_OPTIONS = ("width", "depth", "heads", "mlp_width", "patch", "image_size", "prefix_tokens", "position", "pool")


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """The settings of a masked autoencoder besides those of the recipe. Raises `UsageError` for an impossible one."""

    mask: float = option(0.75, "fraction of the patches that is masked", ge=0, lt=1)
    decoder_width: int = option(64, "length of a token in the decoder", ge=4)
    decoder_depth: int = option(2, "blocks of the decoder", ge=1)
    decoder_heads: int = option(4, "attention heads of the decoder", ge=1)
    probe_every: int = option(10, "epochs between two probes and pictures", ge=1)

    def __post_init__(self) -> None:
        check_fields(self)
