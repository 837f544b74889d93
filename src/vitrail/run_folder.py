"""The folder that training writes: what is in it, under which name.

runs/NAME/
  classifier.safetensors                       the artefact
  recipe.json                                  data and recipe as asked for, which a resume reads
  checkpoint/                                  what an exact resume needs
  metrics.jsonl                                a line per epoch, or per penalty of a head fitted on features
  result.json                                  the figures at the end
  curves.png  confusion.png  attention.png     the pictures
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.classifier import ARTEFACT
from vitrail.errors import UsageError, VitrailError
from vitrail.files import write_json, write_text
from vitrail.train.recipes import Recipe, recipe_from_json


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of a run."""

    path: Path

    @property
    def artefact(self) -> Path:
        """The classifier."""
        return self.path / ARTEFACT

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoint"

    def picture(self, name: str) -> Path:
        """curves, confusion or attention."""
        return self.path / f"{name}.png"

    def start(self, data: str | Path, fingerprint: str, recipe: Recipe, model: dict[str, Any] | None = None) -> None:
        """Notes what was asked for, and the weights that it starts from, if any; a resume holds on to it."""
        document = {"data": str(data), "fingerprint": fingerprint, "recipe": recipe.to_json()}
        write_json(self.path / "recipe.json", {**document, "from": model} if model else document)

    def started_from(self) -> dict[str, Any] | None:
        """What `start` noted of the weights."""
        return self._document().get("from")

    def check_data(self, fingerprint: str) -> None:
        """Raises `VitrailError` where the data are not those that the run was started on."""
        if self._document().get("fingerprint") != fingerprint:
            raise VitrailError(
                f"the data are not those that {self.path} was started on",
                "resume on the same files, or start a new run on these",
            )

    def recipe(self) -> Recipe:
        """The recipe that the run was started with; raises `UsageError` if there is none."""
        document = self._document()
        try:
            return recipe_from_json(document["recipe"])
        except (ValueError, KeyError, TypeError, UsageError) as error:
            raise VitrailError(f"{self.path / 'recipe.json'} is damaged ({error!r})", "start a new run") from None

    def _document(self) -> dict[str, Any]:
        try:
            document = json.loads((self.path / "recipe.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{self.path} is not a run that can be resumed", "start it without --resume") from None
        except ValueError as error:
            raise VitrailError(f"{self.path / 'recipe.json'} is damaged ({error})", "start a new run") from None
        return document if isinstance(document, dict) else {}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the run for this process; raises `UsageError` where another one is training in it."""
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            yield
            return
        with (self.path / "recipe.json").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(f"another process is training in {self.path}", "wait for it, or stop it") from None
            yield

    def metrics(self) -> list[dict[str, Any]]:
        """A row per epoch."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break  # a killed run may leave half a line; its epoch will come again
        return rows

    def record(self, row: dict[str, Any]) -> None:
        """Adds an epoch's row."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def forget_after(self, epoch: int) -> None:
        """Drops the rows of later epochs: a resumed run will write them again."""
        self.rewrite([row for row in self.metrics() if row["epoch"] <= epoch])

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Puts these rows in the place of all that were there."""
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def refuse_taken(out: str | Path | None) -> None:
    """Raises `UsageError` where a new run would meet files that are there."""
    path = Path(out or "")
    if out is not None and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} is not empty", "go on with --resume, or choose another --out")


def new_run(data: str | Path, out: str | Path | None) -> RunFolder:
    """A folder that no other run has: `out`, or runs/NAME with the first free number after it."""
    refuse_taken(out)
    try:
        if out is not None:
            Path(out).mkdir(parents=True, exist_ok=True)
            (Path(out) / "recipe.json").open("x").close()  # of two runs that meet here, one stops
            return RunFolder(Path(out))
        for path in numbered(data):
            try:
                path.mkdir(parents=True)
                return RunFolder(path)
            except FileExistsError:
                continue
    except FileExistsError:
        raise UsageError(f"another run has just begun in {out}", "choose another --out") from None
    except OSError as error:
        raise VitrailError(f"{out or 'runs'} cannot be written: {error.strerror}", "choose another --out") from None
    raise UsageError("every name for the run is taken", "choose one with --out")


def old_run(data: str | Path, out: str | Path | None) -> RunFolder:
    """The run to go on with: `out`, or the last of runs/NAME, runs/NAME-2, ..."""
    if out is not None:
        return RunFolder(Path(out))
    first, *rest = numbered(data)
    last = first
    for path in rest:
        if not path.exists():
            break
        last = path
    return RunFolder(last)


def numbered(data: str | Path) -> list[Path]:
    """runs/NAME, runs/NAME-2, ... after the data's own name."""
    name = (Path(data).resolve() if Path(data).exists() else Path(data)).stem.strip() or "run"
    return [Path("runs", name), *(Path("runs", f"{name}-{i}") for i in range(2, 10_000))]
