"""Who is at work on a trial: whoever holds its lock, which ends with the process, however it ends.

On one machine the lock alone says it, at once. Of a process on another machine the file's time says it too, which
its holder moves every few seconds: a trial is taken from there only when nothing has moved for long, by the clock of
whoever looks. So no two clocks are compared, and a file system whose locks do not reach other machines loses nothing.
"""

import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from uuid import uuid4

from vitrail.runs.folder import locked_files

BEAT = 10.0  # seconds between two signs of life
SILENCE = 120.0  # seconds without one, after which another machine's trial is taken up


def this_machine() -> str:
    """A name that two machines do not share, and that a restart changes."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


class Lease:
    """The right to work on a trial; `died` says that whoever had it before did not give it back."""

    def __init__(self, path: Path, file: IO[str], died: bool):
        self.path, self.file, self.was_abandoned = path, file, died
        self.over = threading.Event()
        self.said = json.dumps({"machine": this_machine(), "process": os.getpid(), "lease": uuid4().hex})
        locked_files.add(file)  # type: ignore[arg-type]
        self.write(self.said)
        threading.Thread(target=self.beat, daemon=True).start()

    def write(self, text: str) -> None:
        """Puts a text in the place of what the file says."""
        self.file.seek(0)
        self.file.truncate()
        self.file.write(text)
        self.file.flush()

    def beat(self) -> None:
        """Moves the file's time until the lease is over."""
        while not self.over.wait(BEAT) and self.ours():
            with suppress(OSError):  # a folder that has vanished is found out where something is written
                os.utime(self.path)

    def ours(self) -> bool:
        """Whether no other machine has taken the trial up since, which took this one for dead."""
        try:
            return self.path.read_text(encoding="utf-8") == self.said
        except OSError:  # a folder that has vanished is found out where something is written
            return True

    def release(self) -> None:
        """Lets anyone else take the trial up."""
        self.over.set()
        if self.ours():
            self.write("")
        locked_files.discard(self.file)
        self.file.close()


@dataclass
class LeaseObserver:
    """What one process has seen of the leases of others."""

    seen: dict[Path, tuple[float, float]] = field(default_factory=dict)  # file -> its time, and since when by our clock

    def take(self, path: Path) -> Lease | None:
        """The lease on a trial, or None while somebody is at work on it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        file.seek(0)
        said = file.read()
        if said and self.elsewhere(said) and not self.silent(path):
            file.close()
            return None
        return Lease(path, file, died=bool(said))

    def elsewhere(self, said: str) -> bool:
        """Whether another machine wrote this."""
        try:
            return bool(json.loads(said)["machine"] != this_machine())
        except (ValueError, KeyError, TypeError):  # killed while it wrote, so long ago that the lock is free
            return False

    def silent(self, path: Path) -> bool:
        """Whether a file's time has not moved for as long as it takes."""
        moved = path.stat().st_mtime
        before, since = self.seen.get(path, (None, 0.0))
        if moved != before:
            self.seen[path] = (moved, time.monotonic())
            return False
        return time.monotonic() - since > SILENCE
