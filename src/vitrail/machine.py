"""Settings of this machine: the device to use, and an allocator that keeps what it has."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from vitrail.errors import UsageError
from vitrail.version import __version__

GIB = 1 << 30


def parse_device(name: str) -> torch.device:
    """The device of this name, be it here or not; raises `UsageError` where no device is called so."""
    try:
        return torch.device(name)
    except RuntimeError:
        raise missing_device_error(name) from None


def missing_device_error(name: str) -> UsageError:
    """What is said of a device that cannot be had."""
    return UsageError(f"there is no device {name!r} here", "leave it out to use the best there is")


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or the best there is; raises `UsageError` for one that this machine lacks.

    Nothing is put on it: of several processes each would take memory of the first GPU.
    """
    if name:
        device = parse_device(name)
        if (device.index or 0) >= count_devices(device.type):
            raise missing_device_error(name)
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def count_devices(kind: str) -> int:
    """How many devices of a kind this machine has that vitrail can use."""
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(kind == "cpu" or (kind == "mps" and torch.backends.mps.is_available()))


def count_cores() -> int:
    """The cores that this process may use: fewer than there are where it or its container is held to some."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(available, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return available


def has_native_bf16(device: torch.device) -> bool:
    """Whether this device computes in bf16 natively, and so faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def describe_numerics(device: torch.device) -> dict[str, str | int]:
    """What decides the last bits of a sum beside the numbers in it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "vitrail": __version__,
        "torch": torch.__version__,
        "the device": f"{device.type} {name}",
        "the number of threads": torch.get_num_threads(),
    }


def describe_hardware(device: torch.device) -> dict[str, str | int]:
    """What a timing should say it was made on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {"device": f"{device.type} {name}", "threads": torch.get_num_threads(), "torch": torch.__version__}


def processor_name() -> str:
    """The processor's name, and what it has for bf16."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = named[0] if named else platform.processor() or platform.machine()
    units = [("AMX", torch.cpu._is_amx_tile_supported()), ("AVX512-BF16", torch.cpu._is_avx512_bf16_supported())]
    return ", ".join([name, *(unit for unit, here in units if here)])


def measure_steal_time(stat: Path = Path("/proc/stat")) -> Callable[[], float | None]:
    """Begins to count the time that the host of a virtual machine keeps its processors from work that they have.

    The function that comes back says what part it was of all the time in which they had work, 0 to 1, whoever gave it
    to them; None where the system does not say it: only Linux does, as `steal` (proc(5)).
    """
    before = read_cpu_ticks(stat)

    def fraction() -> float | None:
        after = read_cpu_ticks(stat)
        if before is None or after is None:
            return None
        taken, worked = (later - earlier for later, earlier in zip(after, before, strict=True))
        return taken / (taken + worked) if taken + worked > 0 else 0.0

    return fraction


def read_cpu_ticks(stat: Path) -> tuple[int, int] | None:
    """Of all processors together since the start: ticks that the host took, ticks of work."""
    try:
        user, nice, system, _, _, interrupts, soft, taken = map(int, stat.read_text().split("\n")[0].split()[1:9])
    except (OSError, ValueError):
        return None
    return taken, user + nice + system + interrupts + soft


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory; returns whether it did.

    By default large blocks go back to the kernel after each step and come again page by page, which costs a tenth of
    a small model's step, and several times its length when other processes compete for the cores.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
    settings = ((m_mmap_threshold, GIB), (m_trim_threshold, 2 * GIB - 1), (m_top_pad, GIB // 4))
    return all(mallopt(option, value) == 1 for option, value in settings)
