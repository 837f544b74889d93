"""The memory that a contender takes at its highest, measured where nobody else's counts."""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from vitrail.benchmarking.contenders import Contender

CALLS = 2
STATUS = Path("/proc/self/status")


def peaks(contenders: Sequence[Contender], device: torch.device, threads: int) -> list[int | None]:
    """Bytes beyond what the libraries take by being imported, at the highest of building and two calls.

    On CPU resident memory, each contender in a process of its own; on a GPU what torch's allocator gave out. None
    where the system does not say (it does on Linux), and for what is compiled or exported first.
    """
    if device.type == "cuda":
        return [on_gpu(each, device) if each.is_light else None for each in contenders]
    if not STATUS.exists():
        return [None] * len(contenders)
    context = multiprocessing.get_context("forkserver")
    libraries = sorted({each.who.replace("-", "_") for each in contenders})
    context.set_forkserver_preload(
        ["vitrail.benchmarking.contenders", *libraries]
    )  # imported once, before anyone is measured
    return [apart(context, each, threads) if each.is_light else None for each in contenders]


def on_gpu(contender: Contender, device: torch.device) -> int:
    """The highest that torch's allocator gave out, beyond what it held before."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run = contender.make()
    for _ in range(CALLS):
        run()
    return torch.cuda.max_memory_allocated(device) - before


def apart(context: multiprocessing.context.ForkServerContext, contender: Contender, threads: int) -> int | None:
    """In a process of its own."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(contender, threads, theirs))
    process.start()
    theirs.close()
    try:
        peak: int = ours.recv()
    except EOFError:  # it died, of too much memory perhaps
        return None
    finally:
        process.join()
    return peak


def measure(contender: Contender, threads: int, answer: Connection) -> None:
    """Sends how far the highest resident memory lies above that before the contender was built."""
    torch.set_num_threads(threads)
    before = resident("VmRSS")
    run = contender.make()
    for _ in range(CALLS):
        run()
    answer.send(resident("VmHWM") - before)


def resident(field: str) -> int:
    """Bytes that this process holds now (VmRSS) or held at most (VmHWM)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
