"""Starts a run or a sweep in a folder that no other one has."""

from collections.abc import Iterable
from pathlib import Path

from vitrail.errors import UsageError, VitrailError
from vitrail.files import check_free_space, check_writable, create_json, describe_write_error
from vitrail.runs.folder import CONFIG_FILE, OUT_HINT, RunConfig, RunFolder
from vitrail.runs.names import numbered_folders

TEMPORARY_PREFIX = f".{Path(CONFIG_FILE).stem}-"
RUNS = "runs"  # the parent of default run folders


def check_out(out: str | Path | None) -> None:
    """Raises `UsageError` if `out` holds files, `VitrailError` if a run could not be written."""
    path = Path(out or RUNS)
    if out is not None and not is_free(path):
        raise UsageError(f"{path} is not empty", "continue it with --resume, or choose another --out")
    check_writable(path, OUT_HINT)


def is_free(path: Path) -> bool:
    """Returns whether a run may begin at a path: nothing is there, or no more than traces of one that was killed."""
    return not path.exists() or (path.is_dir() and not any(map(is_foreign, path.iterdir())))


def is_foreign(path: Path) -> bool:
    """Returns whether a path is more than the traces of a run that was killed before it had a recipe.json."""
    is_temporary = path.name.startswith(TEMPORARY_PREFIX) and path.suffix == ".json"
    is_empty_checkpoints = path.name == "checkpoint" and path.is_dir() and not any(path.iterdir())
    return not (is_temporary or is_empty_checkpoints)


def check_disk_space(out: str | Path | None, needed_bytes: int) -> None:
    """Raises `VitrailError` if the disk of a run has fewer free bytes."""
    check_free_space(Path(out or RUNS), needed_bytes, f"free some space, or {OUT_HINT}")


def create_run(config: RunConfig, name: str, out: str | Path | None = None) -> RunFolder:
    """Makes the folder `out`, or the first free one of runs/NAME, runs/NAME-2, ..., and writes its recipe.json.

    The file appears whole, in one moment: a run that is killed before can be started again, one that is killed after
    can be resumed. Raises `UsageError` if the folder is taken, `VitrailError` if it cannot be written.
    """
    check_out(out)
    candidates: Iterable[Path] = numbered_folders(RUNS, name) if out is None else [Path(out)]
    for path in candidates:
        try:
            path.mkdir(parents=True, exist_ok=out is not None)
            folder = RunFolder(path)
            folder.checkpoints.mkdir(exist_ok=True)
            create_json(folder.config_file, config.to_json())
            return folder
        except FileExistsError:
            if out is not None:
                raise UsageError(f"another run has just begun in {out}", OUT_HINT) from None
        except OSError as error:
            raise VitrailError(f"{out or RUNS} cannot be written: {describe_write_error(error)}", OUT_HINT) from None
    raise UsageError("every name for the run is taken", "choose one with --out")
