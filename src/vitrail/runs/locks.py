"""Locks on open files. They end with the process that holds them: a child that is forked closes its copies.

Otherwise data-loading workers, which can outlive a killed parent by seconds, would keep the parent's locks.
"""

import os
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are not noticed
    fcntl = None  # type: ignore[assignment]

_locked_files: set[IO[Any]] = set()


def _close_inherited_files() -> None:
    for file in _locked_files:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_files)


def lock_file(file: IO[Any], *, wait: bool) -> None:
    """Locks an open file for this process alone.

    Raises `BlockingIOError` if another process holds it and `wait` is false, `OSError` if the disk has no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    _locked_files.add(file)


def unlock_file(file: IO[Any]) -> None:
    """Closes a locked file, which ends its lock."""
    _locked_files.discard(file)
    file.close()
