"""The folder that a sweep writes.

sweeps/NAME/
  config.json                 what is tried and how; a resume reads it (asked.json in sweeps of format 1)
  study.db                    the trials, as Optuna stores them (SQLite)
  trials/000/ ...             a run folder for each trial
  locks/                      which process works on which trial
  sweep.json  sweep.csv       the table, rewritten after every trial
  slices.png  parallel.png    accuracy by each field, and all fields at once
  best/                       the best run with its score on test (--score-test)
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vitrail.data.source import name_of_data
from vitrail.errors import UsageError, VitrailError
from vitrail.files import check_writable, create_json, describe_write_error, write_json
from vitrail.runs.folder import OUT_HINT, RunFolder
from vitrail.runs.locks import lock_file, unlock_file
from vitrail.runs.names import newest_folder, numbered_folders
from vitrail.sweeps.config import SweepConfig, config_from_json

SWEEPS = "sweeps"  # the parent of default sweep folders


@dataclass(frozen=True)
class SweepFolder:
    """Paths and small files of a sweep."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The file that makes a folder a sweep."""
        new, old = self.path / "config.json", self.path / "asked.json"
        return old if old.exists() and not new.exists() else new

    @property
    def study_file(self) -> Path:
        """Optuna's database."""
        return self.path / "study.db"

    @property
    def table_file(self) -> Path:
        """The table as JSON."""
        return self.path / "sweep.json"

    def run_folder(self, trial: int) -> RunFolder:
        """Returns the run of a trial."""
        return RunFolder(self.path / "trials" / f"{trial:03d}")

    def lock_path(self, trial: int) -> Path:
        """Returns the file that the process at work on a trial locks."""
        return self.path / "locks" / f"{trial:03d}"

    def load_config(self) -> SweepConfig:
        """Returns the sweep as a value; raises `UsageError` if this is not a sweep, `VitrailError` if it is damaged."""
        try:
            return config_from_json(json.loads(self.config_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{self.path} is not a sweep that can be resumed", "start it without --resume") from None
        except (ValueError, KeyError, TypeError, UsageError, RecursionError) as error:
            raise VitrailError(f"{self.config_file} is damaged ({error!r})", "start a new sweep") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Inside, this process alone starts trials and writes the table; waits for another one that does."""
        file = (self.path / "locks" / "sweep").open("ab")
        try:
            lock_file(file, wait=True)
            yield
        finally:
            unlock_file(file)

    def extend(self, trials: int) -> None:
        """Raises the number of trials; never lowers it."""
        with self.lock():
            config = self.load_config()
            if trials > config.trials:
                write_json(self.path / "config.json", replace(config, trials=trials).to_json())


def create_sweep(config: SweepConfig, out: str | Path | None) -> SweepFolder:
    """Makes the folder `out`, or the first free one of sweeps/NAME, sweeps/NAME-2, ..., and writes its config.json.

    The file appears whole, in one moment: a sweep that is killed before can be started again. Raises `UsageError` if
    the folder is taken, `VitrailError` if it cannot be written.
    """
    name = name_of_data(config.data)
    candidates: Iterable[Path] = numbered_folders(SWEEPS, name) if out is None else [Path(out)]
    for path in candidates:
        if out is None and path.exists():
            continue
        try:
            check_out(path)
            (path / "locks").mkdir(parents=True, exist_ok=True)
            check_writable(path, OUT_HINT)
            folder = SweepFolder(path)
            create_json(folder.config_file, config.to_json())
            return folder
        except FileExistsError:
            if out is not None:
                raise UsageError(f"another sweep has just begun in {path}", "join it with --resume") from None
        except OSError as error:
            raise VitrailError(f"{path} cannot be written: {describe_write_error(error)}", OUT_HINT) from None
    raise UsageError("every name for the sweep is taken", "choose one with --out")


def check_out(path: Path) -> None:
    """Raises `UsageError` if a path holds more than the traces of a sweep that was killed before its config.json."""
    if not path.exists():
        return
    if not path.is_dir() or any(
        file.name != "locks" and not (file.name.startswith(".config-") and file.suffix == ".json")
        for file in path.iterdir()
    ):
        raise UsageError(f"{path} is not empty", "continue it with --resume, or choose another --out")


def find_sweep(data: str | Path, out: str | Path | None) -> SweepFolder:
    """Returns the sweep in `out`, else the newest of sweeps/NAME, sweeps/NAME-2, ..."""
    if out is not None:
        return SweepFolder(Path(out))
    folders = numbered_folders(SWEEPS, name_of_data(data))
    return SweepFolder(newest_folder(folders, lambda path: SweepFolder(path).config_file.exists()))
