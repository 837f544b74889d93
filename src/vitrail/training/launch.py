"""Which torchrun launch started this process, so that restarted workers recognize the run that their launch began."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """A torchrun launch; its id stays the same when it restarts its workers."""

    id: str
    started_at: float | None  # seconds since 1970; None where the system does not tell (not on Linux)


def current_launch() -> Launch | None:
    """Returns the launch that started this process, or None without torchrun.

    Its id is torchrun's own, or if that is not set the launcher's process id and start time.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return None
    ticks = parent_start_ticks()
    if run_id == "none":  # torchrun's default
        if ticks is None:
            return None
        run_id = f"{platform.node()}-{os.getppid()}-{ticks}"
    return Launch(run_id, None if ticks is None else ticks_to_time(ticks))


def parent_start_ticks() -> int | None:
    """Returns the start time of the parent process in clock ticks since boot; None if not on Linux."""
    try:
        return int(Path(f"/proc/{os.getppid()}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except OSError:
        return None


def ticks_to_time(ticks: int) -> float:
    """Converts clock ticks since boot to seconds since 1970."""
    boot_time = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot_time + ticks / os.sysconf("SC_CLK_TCK")
