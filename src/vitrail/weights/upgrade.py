"""Upgrades JSON documents that an earlier version wrote. Tables map an old key to its new name.

Artifacts of format 1 were written before version 0.2. Each reader upgrades a document before it checks it.
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
AUGMENT_KEYS: dict[str, str] = {
    "crop_area": "crop_scale",
    "policy_changes": "policy_ops",
    "policy_strength": "policy_magnitude",
    "erasing": "random_erasing",
}
PREPROCESS_KEYS: dict[str, str] = {"smallest": "min_size"}
FIT_VALUES: dict[str, str] = {"squash": "stretch"}
ORIGIN_KEYS: dict[str, str] = {"licence": "license"}
THRESHOLD_KEYS: dict[str, str] = {"wanted": "target_accuracy"}  # rows of origin["calibration"]["thresholds"]
CALIBRATION_KEYS: dict[str, str] = {"why": "reason"}
SCORE_KEYS: dict[str, str] = {}  # origin["metrics"][split]


def rename_keys(document: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    """Returns the document with old keys replaced; keys that the table does not list are kept."""
    return {keys.get(name, name): value for name, value in document.items()}


def upgrade_recipe(document: dict[str, Any]) -> dict[str, Any]:
    """Returns a recipe's JSON document with today's field names."""
    new = upgrade_fit(rename_keys(document, RECIPE_KEYS))
    if isinstance(augment := new.get("augment"), dict):
        new["augment"] = rename_keys(augment, AUGMENT_KEYS)
    return new


def upgrade_preprocess(document: dict[str, Any]) -> dict[str, Any]:
    """Returns a preprocessing's JSON document with today's field names."""
    return upgrade_fit(rename_keys(document, PREPROCESS_KEYS))


def upgrade_fit(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the document with today's name for the value of `fit`."""
    fit = document.get("fit")
    return {**document, "fit": FIT_VALUES[fit]} if isinstance(fit, str) and fit in FIT_VALUES else document


def upgrade_artifact(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the document of an artifact or an ONNX file of any format as a document of today's format.

    Format 1 has other names, format 2 no task: its classifiers give one class per image. Before format 5 nothing was
    fitted that tells how unlike an image is.
    """
    document = document if document["format"] > 4 else {**document, "unlike": None}
    if document["format"] > 2:
        return document
    new = {**document, "task": "single_label", "thresholds": []}
    if document["format"] == 2:
        return new
    new["preprocess"] = upgrade_preprocess(document["preprocess"])
    new["origin"] = upgrade_origin(document["origin"])
    return new


def upgrade_origin(origin: dict[str, Any]) -> dict[str, Any]:
    """Returns where the weights came from with today's keys; also of the classifier that training started from."""
    new = rename_keys(origin, ORIGIN_KEYS)
    if isinstance(recipe := origin.get("recipe"), dict):
        new["recipe"] = upgrade_recipe(recipe)
    if isinstance(metrics := origin.get("metrics"), dict):
        new["metrics"] = {
            split: rename_keys(scores, SCORE_KEYS) if isinstance(scores, dict) else scores
            for split, scores in metrics.items()
        }
    if isinstance(calibration := origin.get("calibration"), dict):
        new["calibration"] = rename_keys(calibration, CALIBRATION_KEYS)
        rows = new["calibration"].get("thresholds")
        if isinstance(rows, list):
            new["calibration"]["thresholds"] = [
                rename_keys(row, THRESHOLD_KEYS) if isinstance(row, dict) else row for row in rows
            ]
    if isinstance(start := origin.get("from"), dict) and isinstance(start.get("origin"), dict):
        new["from"] = {**start, "origin": upgrade_origin(start["origin"])}
    return new
