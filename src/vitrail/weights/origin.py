"""Checks an artifact's `origin`: it may hold anything, but the fields that vitrail reads must have these types."""

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from vitrail.errors import VitrailError
from vitrail.json_types import JsonObject
from vitrail.options import matches_type

Types = dict[str, Any]  # field name -> type
RECIPE: Types = {"name": str | None, "epochs": float | None}
DATA: Types = {"name": str | None, "fingerprint": str | None, "images": dict | None, "split": dict | None}
SPLIT: Types = {"test": float, "validation": float, "seed": int}
SCORES: Types = {
    "accuracy": float | None, "images": int, "accuracy_interval": tuple[float, float] | None, "optimistic": bool | None,
}  # fmt: skip
CALIBRATION: Types = {
    "temperature": float, "fitted_on": str, "images": int, "reason": str | None,
    "thresholds": tuple[dict[str, Any], ...],
}  # fmt: skip
TEACHER: Types = {"model": str | None, "distillation": str | None, "unlabeled_images": int | None}
THRESHOLD: Types = {"target_accuracy": float, "threshold": float, "coverage": float, "accuracy": float}


def read_origin(origin: JsonObject) -> dict[str, Any]:
    """Returns an origin for code that reads fields which `check_origin` has checked."""
    return origin


def check_origin(origin: dict[str, Any]) -> None:
    """Raises `VitrailError` for the first field of the wrong type; missing sections are allowed."""
    sections: dict[str, Types] = {
        "recipe": RECIPE, "data": DATA, "metrics": {}, "calibration": CALIBRATION, "teacher": TEACHER,
    }  # fmt: skip
    for name, types in sections.items():
        if name in origin:
            check_types(origin[name], types, name)
    for split, scores in origin.get("metrics", {}).items():
        check_types(scores, SCORES, f"metrics of {split!r}")
    for row in origin.get("calibration", {}).get("thresholds", []):
        check_types(row, THRESHOLD, "thresholds")
    data = origin.get("data", {})
    if data.get("split"):
        check_types(data["split"], SPLIT, "split")
    counts = data.get("images") or {}
    check_types(counts, dict.fromkeys(counts, int), "images")


def check_types(section: Any, types: Types, name: str) -> None:
    if not isinstance(section, dict):
        raise VitrailError(f"its origin cannot be read: {name} is not an object")
    for field, expected in types.items():
        value = section.get(field)
        if not matches_type(tuple(value) if isinstance(value, list) else value, expected):
            raise VitrailError(f"its origin cannot be read: {field} of {name} is {repr(value)[:40]}")


def describe_teacher(origin: dict[str, Any]) -> str | None:
    """Returns a sentence on the teacher that a model learned from, without a full stop; None if it had none."""
    teacher = origin.get("teacher")
    if not isinstance(teacher, dict):
        return None
    unlabeled = teacher.get("unlabeled_images") or 0
    more = f", also on {unlabeled:,} images without labels" if unlabeled else ""
    what = {"soft": "its probabilities", "hard": "its classes", "features": "its features"}
    learned = what.get(str(teacher.get("distillation")), "its answers")
    return f"Learned from a teacher ({learned}{more}): {teacher.get('model') or 'a model in Python'}"


def without_paths(value: Any) -> Any:
    """Returns a copy of a JSON value in which every absolute path is only its last part.

    An export may be published, and a path tells the name of a user and how a machine is arranged.
    """
    if isinstance(value, dict):
        return {key: without_paths(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(each) for each in value]
    if not isinstance(value, str) or "://" in value:
        return value.rsplit("/", 1)[-1] if isinstance(value, str) and value.startswith("file://") else value
    if value.startswith(("~", "./", "../")) or PurePosixPath(value).is_absolute():
        return PurePosixPath(value).name
    return PureWindowsPath(value).name if PureWindowsPath(value).is_absolute() else value
