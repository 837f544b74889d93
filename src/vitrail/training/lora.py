"""LoRA: low-rank updates of matrices, trained instead of the matrices (Hu et al. 2021, arXiv 2106.09685).

The `peft` library adds the updates to the ViT and merges them; after training the ViT is an ordinary one.
"""

import copy

from torch import nn

from vitrail.errors import UsageError
from vitrail.installation import install_hint
from vitrail.model.vit import ViT
from vitrail.training.recipe import Recipe

LORA_TARGETS = {
    "qkv": ("attn.qkv",),
    "attention": ("attn.qkv", "attn.proj"),
    "blocks": ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
}


def check_peft() -> None:
    """Raises `UsageError` if the library is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UsageError("LoRA needs the library peft", install_hint("lora")) from None


def add_lora(vit: ViT, recipe: Recipe) -> None:
    """Adds LoRA updates to the blocks that are not frozen; only they and the head are then trainable.

    At first an update changes nothing, because one of its two factors is zero. Raises `UsageError` without peft.
    """
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model

    assert recipe.lora_rank is not None
    names = LORA_TARGETS[recipe.lora_target]
    first_block = recipe.freeze if isinstance(recipe.freeze, int) else 0
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,  # type: ignore[arg-type]  # peft only divides by it
        lora_dropout=recipe.lora_dropout,
        target_modules=[f"blocks.{i}.{name}" for i in range(first_block, len(vit.blocks)) for name in names],
    )
    inject_adapter_in_model(config, vit)
    vit.head.requires_grad_(True)


def merge_lora(vit: ViT) -> ViT:
    """Returns a copy of the ViT with every LoRA update added to its matrix."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(vit)
    for name, layer in list(merged.named_modules()):
        if isinstance(layer, BaseTunerLayer) and isinstance(layer, nn.Module):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(merged.get_submodule(parent), attribute, layer.get_base_layer())
    return merged
