"""Leases on trials: the process that holds a trial's lock works on it, and the lock ends with the process.

On one machine the lock alone decides. A lease of another machine also counts while its file is touched, which its
holder does every few seconds: a trial is taken from another machine only if its file has not been touched for long, by
the clock of the observer. So no clocks are compared, and the file system's locks need not work across machines.
"""

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

from vitrail.runs.locks import lock_file, unlock_file

HEARTBEAT_INTERVAL_S = 10.0
HEARTBEAT_TIMEOUT_S = 120.0  # after this time without a heartbeat, the lease of another machine has ended


def machine_id() -> str:
    """Identifies this machine until it is restarted."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return boot_id.read_text().strip() if boot_id.exists() else socket.gethostname()


class Lease:
    """The right to work on a trial. `was_abandoned`: its last holder did not release it."""

    def __init__(self, path: Path, file: IO[str], was_abandoned: bool):
        self.path, self.file, self.was_abandoned = path, file, was_abandoned
        self.is_over = threading.Event()
        self.content = json.dumps({"machine": machine_id(), "process": os.getpid(), "lease": uuid4().hex})
        self._write(self.content)
        threading.Thread(target=self._send_heartbeats, daemon=True).start()

    def is_held(self) -> bool:
        """Returns whether no other machine has taken the trial since, because it took this process for dead."""
        try:
            return self.path.read_text(encoding="utf-8") == self.content
        except OSError:  # a vanished folder is noticed by the next write
            return True

    def release(self) -> None:
        """Ends the lease."""
        self.is_over.set()
        if self.is_held():
            self._write("")
        unlock_file(self.file)

    def _write(self, text: str) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.file.write(text)
        self.file.flush()

    def _send_heartbeats(self) -> None:
        while not self.is_over.wait(HEARTBEAT_INTERVAL_S) and self.is_held():
            with suppress(OSError):  # a vanished folder is noticed by the next write
                os.utime(self.path)


@dataclass
class LeaseObserver:
    """What a process has seen of the leases of other machines."""

    heartbeats: dict[Path, tuple[float, float]] = field(default_factory=dict)  # file -> (mtime, first seen, our clock)

    def take(self, path: Path) -> Lease | None:
        """Takes the lease on a trial; None if another process holds it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            lock_file(file, wait=False)
        except OSError:
            file.close()
            return None
        file.seek(0)
        content = file.read()
        if content and self.is_elsewhere(content) and not self.has_timed_out(path):
            unlock_file(file)
            return None
        return Lease(path, file, was_abandoned=bool(content))

    def is_elsewhere(self, content: str) -> bool:
        """Returns whether another machine wrote the content of a lease."""
        try:
            return bool(json.loads(content)["machine"] != machine_id())
        except (ValueError, KeyError, TypeError):  # its writer was killed while it wrote
            return False

    def has_timed_out(self, path: Path) -> bool:
        """Returns whether a file has not been touched for the timeout, since this process first looked."""
        modified = path.stat().st_mtime
        last_modified, since = self.heartbeats.get(path, (None, 0.0))
        if modified != last_modified:
            self.heartbeats[path] = (modified, time.monotonic())
            return False
        return time.monotonic() - since > HEARTBEAT_TIMEOUT_S
