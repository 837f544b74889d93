"""The memory that a contender takes at its highest, measured where nobody else's counts."""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from vitrail.benchmarking.candidates import Candidate

CALLS = 2
STATUS = Path("/proc/self/status")


def measure_peak_memory(contenders: Sequence[Candidate], device: torch.device, threads: int) -> list[int | None]:
    """Bytes beyond what the libraries take by being imported, at the highest of building and two calls.

    On CPU resident memory, each contender in a process of its own; on a GPU what torch's allocator gave out. None
    where the system does not say (it does on Linux), and for what is compiled or exported first.
    """
    if device.type == "cuda":
        return [measure_on_gpu(each, device) if each.has_comparable_memory else None for each in contenders]
    if not STATUS.exists():
        return [None] * len(contenders)
    context = multiprocessing.get_context("forkserver")
    libraries = sorted({each.library.replace("-", "_") for each in contenders})
    context.set_forkserver_preload(
        ["vitrail.benchmarking.candidates", *libraries]
    )  # imported once, before anyone is measured
    return [measure_in_process(context, each, threads) if each.has_comparable_memory else None for each in contenders]


def measure_on_gpu(contender: Candidate, device: torch.device) -> int:
    """The highest that torch's allocator gave out, beyond what it held before."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run = contender.build()
    for _ in range(CALLS):
        run()
    return torch.cuda.max_memory_allocated(device) - before


def measure_in_process(
    context: multiprocessing.context.ForkServerContext, contender: Candidate, threads: int
) -> int | None:
    """In a process of its own."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=report_peak, args=(contender, threads, theirs))
    process.start()
    theirs.close()
    try:
        peak: int = ours.recv()
    except EOFError:  # it died, of too much memory perhaps
        return None
    finally:
        process.join()
    return peak


def report_peak(contender: Candidate, threads: int, answer: Connection) -> None:
    """Sends how far the highest resident memory lies above that before the contender was built."""
    torch.set_num_threads(threads)
    before = read_resident_memory("VmRSS")
    run = contender.build()
    for _ in range(CALLS):
        run()
    answer.send(read_resident_memory("VmHWM") - before)


def read_resident_memory(field: str) -> int:
    """Bytes that this process holds now (VmRSS) or held at most (VmHWM)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
