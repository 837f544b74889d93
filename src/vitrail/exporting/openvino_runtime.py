"""Runs a graph with OpenVINO on the CPU."""

import functools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.installation import install_hint
from vitrail.machine import parse_device

TELEMETRY = "openvino_telemetry"  # sends every import to a server unless the user declines


def import_openvino() -> Any:
    """Returns the module openvino, which then sends no statistics; raises `UsageError` if it is not installed."""
    return import_quietly("openvino")


def import_nncf() -> Any:
    """Returns the module nncf, which quantizes; raises `UsageError` if it is not installed."""
    import_openvino()
    return import_quietly("nncf")


def import_quietly(name: str) -> Any:
    """Imports a package of OpenVINO as if its telemetry were not installed; it works without it."""
    if sys.modules.get(name) is not None:
        return sys.modules[name]
    loaded = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # an import of it fails
    try:
        return __import__(name)
    except ImportError:
        raise UsageError(f"{name} is not installed", install_hint("openvino")) from None
    finally:
        del sys.modules[TELEMETRY]
        if loaded is not None:
            sys.modules[TELEMETRY] = loaded


def get_core() -> Any:
    """Returns the one `openvino.Core` of this process, which lives as long as the process.

    Every core gives the thread that compiles with it another stack for signal handlers, and takes the stack back when
    it is deleted. Two cores that are deleted in the order of their creation leave the thread with a stack that is
    unmapped, and the next signal with a handler in Python (Ctrl-C, the end of a worker of torch's DataLoader) kills the
    process with a segmentation fault.
    """
    return create_core(os.getpid())


@functools.cache
def create_core(process: int) -> Any:
    return import_openvino().Core()


def check_device(device: str) -> None:
    """Raises `UsageError` for a device other than the CPU."""
    if parse_device(device).type != "cpu":
        raise UsageError(f"OpenVINO has no device {device!r} here", "leave out --device to use the CPU")


@dataclass
class OpenvinoSession:
    """A graph that is compiled when a process runs it for the first time.

    OpenVINO's threads do not survive a fork, so a process must not compile before it forks the processes that run the
    graph, and every process compiles for itself.
    """

    read: Callable[[], Any] = field(repr=False)  # returns the graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    threads: int | None = None  # None: as many as torch has
    precision: str | None = "f32"  # of the float operations; None: the fastest that the processor has
    compiled: Any = field(default=None, repr=False)
    process: int = 0  # that compiled it
    lock: Any = field(default_factory=threading.Lock, repr=False)  # a compiled graph runs one batch at a time

    def run(self, feed: dict[str, Any], outputs: Sequence[str]) -> list[Tensor]:
        """Runs the graph on arrays by name and returns these outputs; raises `VitrailError` if it fails."""
        with self.lock:
            try:
                compiled = self.compile()
                results = compiled(feed)
                return [torch.from_numpy(results[compiled.output(name)].copy()) for name in outputs]
            except RuntimeError as error:
                raise VitrailError(f"OpenVINO cannot run the model ({first_line(error)})") from None

    def compile(self) -> Any:
        """Returns the graph compiled for this process."""
        if self.process == os.getpid():
            return self.compiled
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads or torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # every process would choose the same cores
        }
        if self.precision is not None:
            options["INFERENCE_PRECISION_HINT"] = self.precision
        self.compiled = get_core().compile_model(self.read(), "CPU", options)
        self.process = os.getpid()
        return self.compiled
