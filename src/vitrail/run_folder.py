"""The folder that training writes: what is in it, under which name.

runs/NAME/
  classifier.safetensors                       the artefact
  recipe.json                                  data and recipe as asked for, which a resume reads
  checkpoint/                                  what an exact resume needs
  metrics.jsonl                                a line per epoch
  result.json                                  the figures at the end
  curves.png  confusion.png  attention.png     the pictures
"""

import json
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

    def start(self, data: str | Path, recipe: Recipe) -> None:
        """Makes the folder and notes what was asked for; raises `VitrailError` where it cannot be written."""
        write_json(self.path / "recipe.json", {"data": str(data), "recipe": recipe.to_json()})

    def recipe(self) -> Recipe:
        """The recipe that the run was started with; raises `UsageError` if there is none."""
        try:
            return recipe_from_json(json.loads((self.path / "recipe.json").read_text(encoding="utf-8"))["recipe"])
        except FileNotFoundError:
            raise UsageError(f"{self.path} is not a run that can be resumed", "start it without --resume") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise VitrailError(f"{self.path / 'recipe.json'} is damaged ({error!r})", "start a new run") from None

    def metrics(self) -> list[dict[str, Any]]:
        """A row per epoch."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]

    def record(self, row: dict[str, Any]) -> None:
        """Adds an epoch's row."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_after(self, epoch: int) -> None:
        """Drops the rows of later epochs: a resumed run will write them again."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["epoch"] <= epoch]
        write_text(self.path / "metrics.jsonl", "".join(kept))


def run_folder(data: str | Path, out: str | Path | None, resume: bool) -> RunFolder:
    """The folder to write: `out`, or runs/NAME with a number after it while that exists (a resume takes the last).

    Raises `UsageError` where a new run would meet files that are there.
    """
    if out is not None:
        path = Path(out)
        if not resume and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} is not empty", "go on with --resume, or choose another --out")
        return RunFolder(path)
    name = (Path(data).resolve() if Path(data).exists() else Path(data)).stem.strip() or "run"
    names = [name, *(f"{name}-{i}" for i in range(2, 10_000))]
    first_free = next(i for i, each in enumerate(names) if not Path("runs", each).exists())
    return RunFolder(Path("runs", names[max(first_free - 1, 0) if resume else first_free]))
