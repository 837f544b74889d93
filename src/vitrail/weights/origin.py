"""Where weights came from, as an artefact says it: anything may stand there, but what is read of it has these types."""

from typing import Any

from vitrail.errors import VitrailError
from vitrail.options import matches_type

Kinds = dict[str, Any]  # names and types
RECIPE: Kinds = {"name": str | None, "epochs": float | None}
DATA: Kinds = {"name": str | None, "fingerprint": str | None, "images": dict | None, "split": dict | None}
SPLIT: Kinds = {"test": float, "validation": float, "seed": int}
SCORES: Kinds = {
    "accuracy": float, "images": int, "accuracy_interval": tuple[float, float] | None, "optimistic": bool | None,
}  # fmt: skip
CALIBRATION: Kinds = {
    "temperature": float, "fitted_on": str, "images": int, "why": str | None, "thresholds": tuple[dict[str, Any], ...],
}  # fmt: skip
THRESHOLD: Kinds = {"wanted": float, "threshold": float, "coverage": float, "accuracy": float}


def check_origin(origin: dict[str, Any]) -> None:
    """Raises `VitrailError` for the first part that is not as vitrail writes it; one that is not there is no harm."""
    parts: dict[str, Kinds] = {"recipe": RECIPE, "data": DATA, "metrics": {}, "calibration": CALIBRATION}
    for name, kinds in parts.items():
        if name in origin:
            check_types(origin[name], kinds, name)
    for split, scores in origin.get("metrics", {}).items():
        check_types(scores, SCORES, f"metrics of {split!r}")
    for row in origin.get("calibration", {}).get("thresholds", []):
        check_types(row, THRESHOLD, "thresholds")
    data = origin.get("data", {})
    if data.get("split"):
        check_types(data["split"], SPLIT, "split")
    counts = data.get("images") or {}
    check_types(counts, dict.fromkeys(counts, int), "images")


def check_types(found: Any, kinds: Kinds, what: str) -> None:
    """Raises `VitrailError` unless this is an object with these names and types."""
    if not isinstance(found, dict):
        raise VitrailError(f"its origin cannot be read: {what} is no object")
    for name, kind in kinds.items():
        value = found.get(name)
        if not matches_type(tuple(value) if isinstance(value, list) else value, kind):
            raise VitrailError(f"its origin cannot be read: {name} of {what} is {repr(value)[:40]}")
