"""What a sweep was asked for, and the folder that it writes.

sweeps/NAME/
  asked.json                  data, recipe, fields and how they are searched, which a resume reads
  study.db                    the trials, as Optuna keeps them (SQLite)
  trials/000/ ...             an ordinary run folder each
  locks/                      who is at work on which trial
  sweep.json  sweep.csv       the table, written anew after every trial
  slices.png  parallel.png    accuracy by each field, and all fields at once
  best/                       the best one, scored on test (finish)
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from vitrail.errors import UsageError, VitrailError
from vitrail.files import describe_write_error, fsync, save_json, write_json
from vitrail.options import check_fields, option
from vitrail.runs.folder import candidate_folders, locked_files, refuse_unwritable
from vitrail.sweeps.space import format_value, option_name, parse_space, space_to_json
from vitrail.training.recipe import Recipe, recipe_from_json

Pruner = Literal["median", "hyperband", "none"]
Sampler = Literal["tpe", "random"]
Metric = Literal["accuracy", "loss"]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep as a value: everything that a process needs to join it."""

    data: str
    fingerprint: str
    images: int = option(0, "validation images, which choose", ge=1)
    epochs: int = option(1, "epochs of a trial where none of its own are given", ge=1)
    recipe: Recipe
    space: dict[str, Any]  # field -> Choice or Range
    model: str | None = None
    torch_files: bool = False
    device: str | None = None
    trials: int = option(20, "trials in all", ge=1, le=100_000)
    sampler: Sampler = option("tpe", "tpe learns from the trials before, random does not; few points are all tried")
    pruner: Pruner = option("median", "end a trial early by its epochs so far: median, hyperband, or none")
    metric: Metric = option("accuracy", "what of validation is compared")
    seed: int = option(0, "decides which points are tried", ge=0)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def direction(self) -> str:
        """As Optuna says it."""
        return "maximize" if self.metric == "accuracy" else "minimize"

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**vars(self), "recipe": self.recipe.to_json(), "space": space_to_json(self.space)}


OLD_KEYS = {"search": "sampler", "prune": "pruner", "by": "metric"}  # keys of the first format


def config_from_json(document: dict[str, Any]) -> SweepConfig:
    """Reads what `to_json` wrote; raises `TypeError`, `KeyError` or `UsageError` for anything else."""
    document = {OLD_KEYS.get(key, key): value for key, value in document.items()}
    return SweepConfig(
        **{**document, "recipe": recipe_from_json(document["recipe"]), "space": parse_space(document["space"])}
    )


@dataclass(frozen=True)
class SweepFolder:
    """Paths and small files of a sweep."""

    path: Path

    @property
    def note(self) -> Path:
        """What was asked for."""
        return self.path / "asked.json"

    @property
    def storage(self) -> str:
        """Where Optuna keeps the trials."""
        return f"sqlite:///{(self.path / 'study.db').resolve()}"

    def trial_folder(self, number: int) -> Path:
        """A trial's run folder."""
        return self.path / "trials" / f"{number:03d}"

    def lock_path(self, number: int) -> Path:
        """The file that whoever is at work on a trial holds."""
        return self.path / "locks" / f"{number:03d}"

    def load_config(self) -> SweepConfig:
        """What was asked for; raises `UsageError` where this is no sweep, `VitrailError` where it is damaged."""
        try:
            return config_from_json(json.loads(self.note.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{self.path} is not a sweep that can be resumed", "start it without --resume") from None
        except (ValueError, KeyError, TypeError, UsageError, RecursionError) as error:
            raise VitrailError(f"{self.note} is damaged ({error!r})", "start a new sweep") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, this process alone hands out trials and writes the table; waits for whoever does."""
        import fcntl

        with (self.path / "locks" / "sweep").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            locked_files.add(file)
            try:
                yield
            finally:
                locked_files.discard(file)

    def extend(self, trials: int) -> None:
        """Raises the number of trials; one that is not more is left as it is."""
        with self.locked():
            asked = self.load_config()
            if trials > asked.trials:
                write_json(self.note, replace(asked, trials=trials).to_json())


def create_sweep(asked: SweepConfig, out: str | Path | None) -> SweepFolder:
    """A folder that no other sweep has, with what was asked for noted in it: `out`, or sweeps/NAME with a number.

    The note appears whole, in one moment, so a sweep that is killed before can be started again.
    """
    places = (
        [Path(out)] if out is not None else [Path("sweeps", *path.parts[1:]) for path in candidate_folders(asked.data)]
    )
    for path in places:
        try:
            if out is None and path.exists():
                continue
            refuse_taken(path)
            (path / "locks").mkdir(parents=True, exist_ok=True)
            refuse_unwritable(path)
            aside = path / f".asked-{uuid4().hex}.json"
            save_json(aside, asked.to_json())
            fsync(aside)
            try:
                os.link(aside, path / "asked.json")
            finally:
                aside.unlink(missing_ok=True)
            fsync(path)
            return SweepFolder(path)
        except FileExistsError:
            if out is not None:
                raise UsageError(f"another sweep has just begun in {path}", "join it with --resume") from None
        except OSError as error:
            raise VitrailError(
                f"{path} cannot be written: {describe_write_error(error)}", "choose another --out"
            ) from None
    raise UsageError("every name for the sweep is taken", "choose one with --out")


def refuse_taken(path: Path) -> None:
    """Raises `UsageError` where a new sweep would meet files that are there."""
    if not path.exists():
        return
    if not path.is_dir() or any(
        each.name != "locks" and not each.name.startswith(".asked-") for each in path.iterdir()
    ):
        raise UsageError(f"{path} is not empty", "go on with --resume, or choose another --out")


def find_sweep(data: str | Path, out: str | Path | None) -> SweepFolder:
    """The sweep to go on with: `out`, or the last of sweeps/NAME, sweeps/NAME-2, ... that was begun."""
    if out is not None:
        return SweepFolder(Path(out))
    first, *rest = (SweepFolder(Path("sweeps", *path.parts[1:])) for path in candidate_folders(data))
    last = first
    for folder in rest:
        if not folder.path.exists():
            break
        if folder.note.exists():
            last = folder
    return last


def refuse_changed(folder: SweepFolder, asked: SweepConfig, wished: dict[str, Any]) -> None:
    """Raises `UsageError` naming what a resume wishes otherwise than the sweep was started with."""
    for name, value in wished.items():
        before = getattr(asked, name)
        if value is None or value == before:
            continue
        if name == "space":
            fields = sorted(set(before) ^ set(value)) or [each for each in before if before[each] != value[each]]
            raise UsageError(
                f"{folder.path} was started with another space (it differs in {', '.join(fields)})",
                "resume it without --vary, or choose another --out",
            )
        if name == "recipe":
            raise UsageError(f"{folder.path} was started with another recipe", "resume it without recipe options")
        flag = {"model": "from", "seed": "sweep-seed"}.get(name, option_name(name))
        raise UsageError(
            f"{folder.path} was started with {name} {format_value(before)}, not {format_value(value)}",
            f"resume it without --{flag}",
        )
