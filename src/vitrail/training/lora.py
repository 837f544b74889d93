"""LoRA: matrices get an update of low rank, which is trained in their stead (Hu et al. 2021, arXiv 2106.09685).

The `peft` library puts the updates into the ViT and merges them; what leaves training is an ordinary ViT.
"""

import copy

from torch import nn

from vitrail.errors import UsageError
from vitrail.model import ViT
from vitrail.training.recipes import Recipe

LORA_TARGETS = {
    "qkv": ("attn.qkv",),
    "attention": ("attn.qkv", "attn.proj"),
    "blocks": ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
}


def check_peft() -> None:
    """Raises `UsageError` where the library is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UsageError("LoRA needs the library peft", "pip install 'vitrail[lora]'") from None


def add_lora(vit: ViT, recipe: Recipe) -> None:
    """Puts updates into the blocks that are not frozen; they and the head are what is left to train.

    At first an update changes nothing: one of its two factors is zero. Raises `UsageError` without peft.
    """
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model

    assert recipe.lora_rank is not None
    first = recipe.freeze if isinstance(recipe.freeze, int) else 0
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,  # type: ignore[arg-type]  # peft only divides by it
        lora_dropout=recipe.lora_dropout,
        target_modules=[
            f"blocks.{i}.{m}" for i in range(first, len(vit.blocks)) for m in LORA_TARGETS[recipe.lora_target]
        ],
    )
    inject_adapter_in_model(config, vit)
    vit.head.requires_grad_(True)


def merge_lora(vit: ViT) -> ViT:
    """A copy in which every update is part of its matrix."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(vit)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, BaseTunerLayer) and isinstance(layer, nn.Module):
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(plain.get_submodule(parent), last, layer.get_base_layer())
    return plain
