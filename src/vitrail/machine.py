"""This machine: devices, CPU cores, native bf16, steal time, and the memory allocator."""

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
    """Returns the device of this name, present or not; raises `UsageError` if torch knows no such device."""
    try:
        return torch.device(name)
    except RuntimeError:
        raise missing_device_error(name) from None


def missing_device_error(name: str) -> UsageError:
    return UsageError(f"there is no device {name!r} here", "leave it out to use the best available device")


def pick_device(name: str | None = None) -> torch.device:
    """Returns the named device, or the best available one; raises `UsageError` for one that this machine lacks.

    Allocates nothing: otherwise each of several processes would take memory of the first GPU.
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
    """Returns the number of usable devices of a type: cpu, cuda, mps."""
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(kind == "cpu" or (kind == "mps" and torch.backends.mps.is_available()))


def count_cores() -> int:
    """Returns the cores that this process may use, with its CPU affinity and its container's CPU quota."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(available, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return available


def has_native_bf16(device: torch.device) -> bool:
    """Returns whether this device computes in bf16 natively, and so faster than in float32.

    GPUs before NVIDIA's Ampere (T4, V100, RTX 20) only emulate bf16: they compute it in float32, with conversions.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def describe_numerics(device: torch.device) -> dict[str, str | int]:
    """Returns what the last bits of a sum depend on, besides its terms."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "vitrail": __version__,
        "torch": torch.__version__,
        "the device": f"{device.type} {name}",
        "the number of threads": torch.get_num_threads(),
    }


def describe_hardware(device: torch.device) -> dict[str, str | int]:
    """Returns what to report beside a timing."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {"device": f"{device.type} {name}", "threads": torch.get_num_threads(), "torch": torch.__version__}


def processor_name() -> str:
    """Returns the processor's name and its bf16 units."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    units = [("AMX", torch.cpu._is_amx_tile_supported()), ("AVX512-BF16", torch.cpu._is_avx512_bf16_supported())]
    return ", ".join([name, *(unit for unit, is_present in units if is_present)])


def measure_steal_time(stat: Path = Path("/proc/stat")) -> Callable[[], float | None]:
    """Starts to measure CPU steal time; returns a function that returns it as a fraction of busy time, 0 to 1.

    Steal time is the time that a hypervisor withholds from CPUs that have work, of all processes. Only Linux reports it
    (proc(5)); elsewhere the function returns None.
    """
    before = read_cpu_ticks(stat)

    def fraction() -> float | None:
        after = read_cpu_ticks(stat)
        if before is None or after is None:
            return None
        stolen, busy = (later - earlier for later, earlier in zip(after, before, strict=True))
        return stolen / (stolen + busy) if stolen + busy > 0 else 0.0

    return fraction


def read_cpu_ticks(stat: Path) -> tuple[int, int] | None:
    """Returns (stolen, busy) ticks of all CPUs since boot; None if the system does not report them."""
    try:
        user, nice, system, _, _, interrupts, soft, stolen = map(int, stat.read_text().split("\n")[0].split()[1:9])
    except (OSError, ValueError):
        return None
    return stolen, user + nice + system + interrupts + soft


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory; returns whether it did.

    By default glibc returns large blocks to the kernel after each step and faults them in again page by page. That
    costs a tenth of a small model's step, and several times the step if other processes compete for the cores.
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
