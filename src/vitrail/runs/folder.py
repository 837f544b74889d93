"""The folder that training writes.

runs/NAME/
  classifier.safetensors                       the artifact
  recipe.json                                  how the run was started; a resume reads it
  check.json  classes.png                      findings of the data check, some images of each class
  checkpoint/                                  the two newest checkpoints
  teacher.safetensors                          with --teacher: its answers for the training images
  metrics.jsonl                                a row per epoch, or per penalty of a linear head; with pretrained weights
                                               epoch 0 is the start
  result.json                                  the final scores
  curves.png  confusion.png  attention.png     pictures; predictions.png of numbers
  report.html  report.json                     the report, for people and for programs
  diverged.json                                the batch at which training diverged, if it did
  tensorboard/  wandb/                         with --logger
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.classifier import ARTIFACT_NAME
from vitrail.data.addresses import PYTHON_PREFIX
from vitrail.data.shards.index import SPLITS
from vitrail.documents import EarlyStop
from vitrail.errors import UsageError, VitrailError
from vitrail.files import check_writable, describe_write_error, fsync, read_json_object, write_text
from vitrail.parts import require_parts
from vitrail.runs.locks import lock_file, unlock_file
from vitrail.training.checkpoint import list_checkpoints
from vitrail.training.recipe import Recipe, recipe_from_json

MAX_CONFIG_BYTES = 1 << 30  # recipe.json names every unreadable image
CONFIG_FILE = "recipe.json"
OUT_HINT = "choose another --out"
Unreadable = dict[str, list[str]]  # split of the source -> names of its unreadable images; splits may share names


@dataclass(frozen=True)
class RunConfig:
    """How a run was started, as recipe.json holds it."""

    data: str
    fingerprint: str  # of the data
    recipe: Recipe
    unreadable: Unreadable = field(default_factory=dict)
    pretrained: dict[str, Any] | None = None  # the weights that training started from; none for random ones
    launch_id: str | None = None  # of a launcher that restarts dead processes
    options: tuple[str, ...] = ()  # options that the resume command repeats
    teacher: dict[str, Any] | None = None  # the model that teaches, the unlabeled images and the baseline

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON document; a key without a value is left out."""
        document = {
            "data": self.data,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe.to_json(),
            "unreadable": self.unreadable,
        }
        optional = {
            "from": self.pretrained,
            "job": self.launch_id,
            "options": list(self.options),
            "parts": self.recipe.parts(),
            "teacher": self.teacher,
        }
        return document | {key: value for key, value in optional.items() if value}


def config_from_json(document: dict[str, Any]) -> RunConfig:
    """Reads what `to_json` wrote. The oldest runs list unreadable images without their split: of any split."""
    unreadable = document.get("unreadable") or {}
    if not isinstance(unreadable, dict):
        unreadable = {split: list(map(str, unreadable)) for split in SPLITS}
    return RunConfig(
        data=str(document.get("data")),
        fingerprint=document.get("fingerprint", ""),
        recipe=recipe_from_json(document["recipe"]),
        unreadable=unreadable,
        pretrained=document.get("from"),
        launch_id=document.get("job"),
        options=tuple(map(str, document.get("options") or ())),
        teacher=document.get("teacher"),
    )


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of a run."""

    path: Path
    draws: bool = True  # whether the run gets pictures

    @property
    def artifact(self) -> Path:
        """The file of the classifier."""
        return self.path / ARTIFACT_NAME

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoint"

    @property
    def check_file(self) -> Path:
        return self.path / "check.json"

    @property
    def config_file(self) -> Path:
        """The file that makes a folder a run."""
        return self.path / CONFIG_FILE

    @property
    def result_file(self) -> Path:
        """The final scores; a run that has them is finished."""
        return self.path / "result.json"

    @property
    def classes_picture(self) -> Path | None:
        """The path of the picture of the classes; None for a run without pictures."""
        return self.picture("classes") if self.draws else None

    def picture(self, name: str) -> Path:
        """Returns the path of a picture: classes, curves, confusion or attention."""
        return self.path / f"{name}.png"

    def load_config(self) -> RunConfig:
        """How the run was started; raises `UsageError` if this is not a run, `VitrailError` if the file is damaged.

        Also raises `VitrailError` if the recipe has a part of a plugin that is not registered.
        """
        document = self._load_document()
        require_parts(document.get("parts"), str(self.path))
        try:
            return config_from_json(document)
        except (ValueError, KeyError, TypeError, UsageError) as error:
            raise VitrailError(f"{self.config_file} is damaged ({error!r})", "start a new run") from None

    def load_recipe(self) -> Recipe:
        """Returns the recipe that the run was started with; raises as `load_config` does."""
        return self.load_config().recipe

    @property
    def data_source(self) -> str | None:
        """The DATA of the run; None for data from Python, and if the folder holds no readable recipe.json."""
        try:
            data = str(self._load_document()["data"])
            return None if data.startswith(PYTHON_PREFIX) else data
        except (VitrailError, KeyError, TypeError, OSError):
            return None

    @property
    def launch_id(self) -> str | None:
        """The launch that began the run; None without a launcher, and if this is not a run."""
        try:
            return self._load_document().get("job")
        except VitrailError:
            return None

    def resume_command(self) -> str:
        """Returns the command line that resumes the run."""
        config = self.load_config()
        if config.data.startswith(PYTHON_PREFIX):
            return f"vitrail.train(data, resume=True, out={str(self.path)!r})"
        return shlex.join(["vitrail", "train", config.data, "--resume", "--out", str(self.path), *config.options])

    def is_finished(self) -> bool:
        """Returns whether the run has its classifier and its scores."""
        return self.result_file.exists() and self.artifact.exists()

    def was_finished_before(self, time_s: float) -> bool:
        """Returns whether the run had its result before a moment, in seconds since 1970."""
        return self.result_file.exists() and self.result_file.stat().st_mtime < time_s

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; raises `UsageError` if another process is training in it.

        On a disk without locks nothing is held.
        """
        file = self.config_file.open("rb")
        try:
            lock_file(file, wait=False)
        except BlockingIOError:
            file.close()
            raise UsageError(f"another process is training in {self.path}", "wait for it, or stop it") from None
        except OSError:  # some network disks
            pass
        try:
            yield
        finally:
            unlock_file(file)

    def load_metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl, one per epoch; empty without the file."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break  # a killed run may leave half a line; that epoch is trained again
        return rows

    def load_early_stop(self) -> EarlyStop | None:
        """Returns when and why training stopped early; None if it did not, and without a readable result.json."""
        try:
            return read_json_object(self.result_file).get("stopped_early")
        except (OSError, ValueError):
            return None

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds an epoch's row; raises `VitrailError` if it cannot be written."""
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
            fsync(path)  # before the checkpoint that follows: a resume repeats no row of an epoch in the checkpoint
            fsync(self.path)
        except OSError as error:
            raise VitrailError(
                f"{path} cannot be written: {describe_write_error(error)}", "free some space, then use --resume"
            ) from None

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Replaces all rows."""
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def drop_metrics_after(self, epoch: int) -> None:
        """Drops the rows of later epochs, which a resumed run writes again."""
        self.write_metrics([row for row in self.load_metrics() if row["epoch"] <= epoch])

    def check_exists(self) -> None:
        """Raises `VitrailError` if the folder has vanished; nothing else notices before the next checkpoint."""
        if not self.checkpoints.is_dir():
            raise VitrailError(f"the run folder {self.path} has vanished", "start again with another --out")

    def check_writable(self) -> None:
        """Raises `VitrailError` if no file can be made in the folder."""
        check_writable(self.checkpoints if self.checkpoints.is_dir() else self.path, OUT_HINT)

    def require_checkpoints(self) -> None:
        """Makes the folder of checkpoints if it is missing; raises `UsageError` if a finished run has lost its own.

        Such a run would start again and overwrite its result.
        """
        if not list_checkpoints(self.checkpoints) and self.result_file.exists():
            raise UsageError(
                f"{self.path} is finished and its checkpoints are gone, so there is nothing to resume",
                "its files are unchanged; for another run choose another --out",
            )
        self.checkpoints.mkdir(exist_ok=True)

    def _load_document(self) -> dict[str, Any]:
        try:
            return read_json_object(self.config_file, MAX_CONFIG_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{self.path} is not a run that can be resumed", "start it without --resume") from None
        except ValueError as error:
            raise VitrailError(f"{self.config_file} is damaged ({error})", "start a new run") from None
