"""The folder that training writes: what is in it, under which name.

runs/NAME/
  classifier.safetensors                       the artefact
  recipe.json                                  data and recipe as asked for, which a resume reads
  check.json  classes.png                      what the check of the data found, some images of every class
  checkpoint/                                  what an exact resume needs
  metrics.jsonl                                a line per epoch, or per penalty of a head fitted on features
  result.json                                  the figures at the end
  curves.png  confusion.png  attention.png     the pictures
  report.html  report.json                     the report, for people and for programs
  diverged.json                                the batch at which the loss went astray, where it did
  tensorboard/                                 where it was asked for
"""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vitrail.classifier import ARTIFACT_NAME
from vitrail.data.shards.address import is_shards, shard_set_name
from vitrail.data.shards.index import SPLITS
from vitrail.errors import UsageError, VitrailError
from vitrail.files import describe_write_error, fsync, read_json_object, save_json, write_text
from vitrail.training.checkpoint import list_checkpoints
from vitrail.training.recipe import Recipe, recipe_from_json

LONGEST = 1 << 30  # bytes of recipe.json that are read: it names every image that could not be
Unreadable = dict[str, list[str]]  # names of images by the source's split: two of its splits may name theirs alike
locked_files: set[IO[bytes]] = set()  # what this process has locked


def let_go() -> None:
    """Closes in a forked process what its parent has locked: workers outlive a parent that is killed by seconds."""
    for file in locked_files:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=let_go)


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of a run."""

    path: Path

    @property
    def artifact(self) -> Path:
        """The classifier."""
        return self.path / ARTIFACT_NAME

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoint"

    @property
    def data_source(self) -> str | None:
        """The DATA that training was asked for; None where this folder does not say."""
        try:
            return str(self._document()["data"])
        except (VitrailError, KeyError, TypeError, OSError):
            return None

    def picture(self, name: str) -> Path:
        """classes, curves, confusion or attention."""
        return self.path / f"{name}.png"

    def start_note(self) -> dict[str, Any] | None:
        """What was noted of the weights that it starts from."""
        return self._document().get("from")

    def check_data(self, fingerprint: str) -> None:
        """Raises `VitrailError` where the data are not those that the run was started on."""
        if self._document().get("fingerprint") != fingerprint:
            raise VitrailError(
                f"the data are not those that {self.path} was started on",
                "resume on the same files, or start a new run on these",
            )

    def resume_command(self) -> str:
        """What to type to go on with the run."""
        document = self._document()
        words = ["vitrail", "train", str(document.get("data")), "--resume", "--out", str(self.path)]
        return shlex.join([*words, *map(str, document.get("options") or ())])

    @property
    def job(self) -> str | None:
        """The launch that began it, where a launcher starts dead processes again."""
        try:
            return self._document().get("job")
        except VitrailError:
            return None

    def finished_before(self, moment: float) -> bool:
        """Whether the run had its result before a moment, in seconds since 1970."""
        result = self.path / "result.json"
        return result.exists() and result.stat().st_mtime < moment

    def load_unreadable(self) -> Unreadable:
        """The images that the run was started without; an older run left those of a name out of every split."""
        noted = self._document().get("unreadable") or {}
        return noted if isinstance(noted, dict) else {split: list(map(str, noted)) for split in SPLITS}

    def load_recipe(self) -> Recipe:
        """The recipe that the run was started with; raises `UsageError` if there is none."""
        document = self._document()
        try:
            return recipe_from_json(document["recipe"])
        except (ValueError, KeyError, TypeError, UsageError) as error:
            raise VitrailError(f"{self.path / 'recipe.json'} is damaged ({error!r})", "start a new run") from None

    def _document(self) -> dict[str, Any]:
        try:
            document = read_json_object(self.path / "recipe.json", LONGEST)
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{self.path} is not a run that can be resumed", "start it without --resume") from None
        except ValueError as error:
            raise VitrailError(f"{self.path / 'recipe.json'} is damaged ({error})", "start a new run") from None
        return document

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; raises `UsageError` where another one is training in it.

        On a disk that knows no locks nothing is held.
        """
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            yield
            return
        with (self.path / "recipe.json").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"another process is training in {self.path}", "wait for it, or stop it") from None
            except OSError:  # some network disks
                pass
            locked_files.add(file)
            try:
                yield
            finally:
                locked_files.discard(file)

    def load_metrics(self) -> list[dict[str, Any]]:
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

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds an epoch's row; raises `VitrailError` where it cannot be written."""
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
            fsync(path)  # before the checkpoint that follows: a resume writes no row of an epoch that is in it
            fsync(self.path)
        except OSError as error:
            raise VitrailError(
                f"{path} cannot be written: {describe_write_error(error)}", "make room, then --resume"
            ) from None

    def refuse_vanished(self) -> None:
        """Raises `VitrailError` where the folder is gone: nothing else would notice before a checkpoint is due."""
        if not self.checkpoints.is_dir():
            raise VitrailError(f"the run folder {self.path} has vanished", "start again with another --out")

    def probe(self) -> None:
        """Raises `VitrailError` where nothing can be written into the folder."""
        refuse_unwritable(self.checkpoints if self.checkpoints.is_dir() else self.path)

    def require_checkpoints(self) -> None:
        """Makes the folder of checkpoints where it is gone; raises `UsageError` where the run of none is finished.

        Such a run would begin again, over everything that it has.
        """
        if not list_checkpoints(self.checkpoints) and (self.path / "result.json").exists():
            raise UsageError(
                f"{self.path} is finished and its checkpoints are gone, so there is nothing to go on with",
                "what it has is kept; for another run choose another --out",
            )
        self.checkpoints.mkdir(exist_ok=True)

    def drop_metrics_after(self, epoch: int) -> None:
        """Drops the rows of later epochs: a resumed run will write them again."""
        self.write_metrics([row for row in self.load_metrics() if row["epoch"] <= epoch])

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Puts these rows in the place of all that were there."""
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def refuse_taken(out: str | Path | None) -> None:
    """Raises an error where a new run would meet files that are there, or could write nothing."""
    path = Path(out or "runs")
    if out is not None and path.exists() and (not path.is_dir() or any(map(is_ours, path.iterdir()))):
        raise UsageError(f"{path} is not empty", "go on with --resume, or choose another --out")
    refuse_unwritable(nearest(path))


def is_ours(path: Path) -> bool:
    """Whether a file counts: not what a run killed in its first moment left."""
    claim = path.name.startswith(CLAIM) and path.suffix == ".json"
    nothing_saved = path.name == "checkpoint" and path.is_dir() and not any(path.iterdir())
    return not (claim or nothing_saved)


def nearest(path: Path) -> Path:
    """The folder itself, or the first above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def refuse_unwritable(folder: Path) -> None:
    """Raises `VitrailError` where no file can be made in a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        raise VitrailError(
            f"{folder} cannot be written: {describe_write_error(error)}", "choose another --out"
        ) from None


def refuse_full(out: str | Path | None, need: int) -> None:
    """Raises `VitrailError` where a disk has fewer than `need` bytes left."""
    place = nearest(Path(out or "runs"))
    free = shutil.disk_usage(place).free
    if free < need:
        raise VitrailError(
            f"{place} has {free / 1e6:,.1f} MB left and the run needs {need / 1e6:,.1f}",
            "make room, or choose another --out",
        )


CLAIM = ".recipe-"


def create_run(
    data: str | Path,
    out: str | Path | None,
    fingerprint: str,
    recipe: Recipe,
    unreadable: Unreadable,
    start: dict[str, Any] | None = None,
    job: str | None = None,
    options: Sequence[str] = (),
) -> RunFolder:
    """A folder that no other run has, with what was asked for noted in it.

    It is `out`, or runs/NAME with the first free number after it. `start` says which weights it starts from, `job`
    which launch began it, `options` what the command that goes on has to say beside data and folder. The note appears
    whole, in one moment: a run that is killed before can be started again, one that is killed after can be resumed.
    """
    refuse_taken(out)
    document = {"data": str(data), "fingerprint": fingerprint, "recipe": recipe.to_json(), "unreadable": unreadable}
    if start:
        document["from"] = start
    if job:
        document["job"] = job
    if options:
        document["options"] = list(options)
    try:
        if out is not None:
            Path(out).mkdir(parents=True, exist_ok=True)
            return claim(RunFolder(Path(out)), document)
        for path in candidate_folders(data):
            try:
                path.mkdir(parents=True)
                return claim(RunFolder(path), document)
            except FileExistsError:
                continue
    except FileExistsError:
        raise UsageError(f"another run has just begun in {out}", "choose another --out") from None
    except OSError as error:
        raise VitrailError(
            f"{out or 'runs'} cannot be written: {describe_write_error(error)}", "choose another --out"
        ) from None
    raise UsageError("every name for the run is taken", "choose one with --out")


def claim(folder: RunFolder, document: dict[str, Any]) -> RunFolder:
    """The folder with its note; raises `FileExistsError` where another run was quicker."""
    folder.checkpoints.mkdir(exist_ok=True)
    aside = folder.path / f"{CLAIM}{os.getpid()}.json"
    save_json(aside, document)
    fsync(aside)
    try:
        os.link(aside, folder.path / "recipe.json")
    except FileExistsError:
        raise
    except OSError:  # a file system without links: only the order of two runs in one moment is lost
        if (folder.path / "recipe.json").exists():
            raise FileExistsError from None
        os.rename(aside, folder.path / "recipe.json")
    finally:
        aside.unlink(missing_ok=True)
    fsync(folder.path)
    return folder


def find_run(data: str | Path, out: str | Path | None) -> RunFolder:
    """The run to go on with: `out`, or the last of runs/NAME, runs/NAME-2, ... that was begun."""
    if out is not None:
        return RunFolder(Path(out))
    first, *rest = candidate_folders(data)
    last = first
    for path in rest:
        if not path.exists():
            break
        if (path / "recipe.json").exists():
            last = path
    return RunFolder(last)


def find_run_of_job(
    job: str | None, data: str | Path, out: str | Path | None, launched: float | None = None
) -> RunFolder | None:
    """The run that this launch began before its processes were started again; None where it began none.

    A launch may bear the name of an earlier one: what was finished before its launcher was started (`launched`, in
    seconds since 1970) is not its own.
    """
    if job is None:
        return None
    for path in [Path(out)] if out is not None else candidate_folders(data):
        if not path.exists():
            return None
        run = RunFolder(path)
        if run.job == job and not (launched and run.finished_before(launched)):
            return run
    return None


def candidate_folders(data: str | Path) -> list[Path]:
    """runs/NAME, runs/NAME-2, ... after the data's own name."""
    name = (
        shard_set_name(str(data))
        if is_shards(data)
        else (Path(data).resolve() if Path(data).exists() else Path(data)).stem
    )
    name = name.strip() or "run"
    return [Path("runs", name), *(Path("runs", f"{name}-{i}") for i in range(2, 10_000))]
