"""Upgrades documents that an earlier version wrote: keys of artifacts, recipes and preprocessing that have new names.

Each reader calls its function before it checks the document. A table maps an old key to the new one.
"""

from typing import Any

RECIPE_KEYS: dict[str, str] = {
    "about": "description",
    "batch": "batch_size",
    "accumulate": "accumulation_steps",
    "matrix_lr": "muon_lr",
    "matrix_momentum": "muon_momentum",
    "decay_on": "weight_decay_on",
    "warmup": "warmup_fraction",
    "clip": "max_grad_norm",
    "ema": "ema_decay",
    "grow_from": "initial_image_scale",
    "grow_until": "image_growth_fraction",
    "zero_branches": "zero_init_residual",
    "patch_std": "patch_init_std",
    "recompute": "gradient_checkpointing",
    "normalise": "normalize",
    "penalty": "probe_l2",
    "head_start": "head_init",
    "lora_on": "lora_target",
    "validation": "validation_fraction",
    "test": "test_fraction",
    "memory": "image_cache_gib",
}
PREPROCESS_KEYS: dict[str, str] = {}


def rename_keys(document: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    """Returns the document with old keys replaced; keys that the table does not list are kept."""
    return {keys.get(name, name): value for name, value in document.items()}


def upgrade_recipe(document: dict[str, Any]) -> dict[str, Any]:
    """Returns a recipe's JSON document with today's field names."""
    return rename_keys(document, RECIPE_KEYS)
