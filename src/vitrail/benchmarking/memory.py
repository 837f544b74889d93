"""Peak memory of a candidate, without that of the others."""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

from vitrail.benchmarking.candidates import Candidate

CALLS = 2
STATUS_FILE = Path("/proc/self/status")


def measure_peak_memory(candidates: Sequence[Candidate], device: torch.device, threads: int) -> list[int | None]:
    """Returns the peak memory in bytes of building each candidate and running two batches, without imported libraries.

    On CPU it is resident memory, each candidate in a process of its own; on a GPU the memory that torch allocated. None
    on systems other than Linux, and for candidates whose peak is that of compiling or exporting.
    """
    if device.type == "cuda":
        return [measure_on_gpu(each, device) if each.has_comparable_memory else None for each in candidates]
    if not STATUS_FILE.exists():
        return [None] * len(candidates)
    context = multiprocessing.get_context("forkserver")
    libraries = sorted({candidate.library.replace("-", "_") for candidate in candidates})
    # The fork server imports them once, so that they are not part of any candidate's memory.
    context.set_forkserver_preload(["vitrail.benchmarking.candidates", *libraries])
    return [measure_in_process(context, each, threads) if each.has_comparable_memory else None for each in candidates]


def measure_on_gpu(candidate: Candidate, device: torch.device) -> int:
    """Returns the peak of torch's allocator, minus the memory allocated before."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run = candidate.build()
    for _ in range(CALLS):
        run()
    return torch.cuda.max_memory_allocated(device) - before


def measure_in_process(context: ForkServerContext, candidate: Candidate, threads: int) -> int | None:
    """Returns the peak in a new process; None if it dies, for example of too little memory."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=report_peak, args=(candidate, threads, sender))
    process.start()
    sender.close()
    try:
        peak: int = receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()
    return peak


def report_peak(candidate: Candidate, threads: int, sender: Connection) -> None:
    """Sends the peak resident memory, minus that before the candidate is built."""
    torch.set_num_threads(threads)
    before = read_resident_memory("VmRSS")
    run = candidate.build()
    for _ in range(CALLS):
        run()
    sender.send(read_resident_memory("VmHWM") - before)


def read_resident_memory(field: str) -> int:
    """Returns the resident memory of this process in bytes: now (VmRSS) or at its peak (VmHWM)."""
    line = next(line for line in STATUS_FILE.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
