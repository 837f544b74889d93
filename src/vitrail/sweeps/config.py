"""A sweep as a value: everything that a process needs to join it, stored in its config.json."""

from dataclasses import dataclass
from typing import Any, Literal

from vitrail.options import check_fields, option
from vitrail.parts import require_parts
from vitrail.sweeps.metrics import MINIMIZED, Metric, choose_shown_score
from vitrail.sweeps.space import Space, parse_space, rename_fields, space_to_json
from vitrail.tasks import SINGLE_LABEL, TaskName
from vitrail.training.recipe import Recipe, recipe_from_json
from vitrail.weights.upgrade import rename_keys

Pruner = Literal["median", "hyperband", "none"]
Sampler = Literal["tpe", "random"]

FORMAT = 3  # format 2 has no task: one class per image, or grades
KEYS_OF_FORMAT_1 = {
    "by": "metric",
    "images": "validation_images",
    "prune": "pruner",
    "search": "sampler",
    "seed": "sweep_seed",
}


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What a sweep tries, and how it compares its trials."""

    data: str  # an absolute address
    fingerprint: str
    task: TaskName = SINGLE_LABEL  # of the data
    validation_images: int = option(0, "validation images, by which trials are compared", ge=1)
    epochs: int = option(1, "epochs of a trial whose recipe names none", ge=1)
    recipe: Recipe
    space: Space
    model: str | None = None
    torch_files: bool = False
    pictures: bool = True  # of trials and of the sweep
    device: str | None = None
    trials: int = option(20, "number of trials", ge=1, le=100_000)
    sampler: Sampler = option("tpe", "tpe learns from earlier trials, random does not; a small space is tried in full")
    pruner: Pruner = option("median", "stop trials early by their first epochs: median, hyperband, or none")
    metric: Metric = option("accuracy", "validation metric by which trials are compared")
    sweep_seed: int = option(0, "seed of the sampler", ge=0)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def direction(self) -> str:
        """The direction of optimization, as Optuna calls it."""
        return "minimize" if self.metric in MINIMIZED else "maximize"

    @property
    def shown_score(self) -> Metric:
        """The score that tables and pictures show."""
        return choose_shown_score(self.task, self.metric)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON document."""
        parts = self.recipe.parts()
        return {
            "format": FORMAT,
            **({"parts": parts} if parts else {}),
            **vars(self),
            "recipe": self.recipe.to_json(),
            "space": space_to_json(self.space),
        }


def config_from_json(document: dict[str, Any]) -> SweepConfig:
    """Reads what `to_json` wrote, in this or an older format.

    Raises `TypeError`, `ValueError`, `KeyError` or `UsageError` for anything else, `VitrailError` without its plugins.
    """
    document = dict(document)
    require_parts(document.pop("parts", None), "the sweep")
    file_format = document.pop("format", 1)
    if file_format == 1:
        document = rename_keys(document, KEYS_OF_FORMAT_1)
        document["space"] = rename_fields(document["space"])
    elif file_format not in (2, FORMAT):
        raise ValueError(f"format {file_format!r} is not known")
    recipe, space = recipe_from_json(document["recipe"]), parse_space(document["space"])
    return SweepConfig(**{**document, "recipe": recipe, "space": space})
