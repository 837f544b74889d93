"""The process group that trains one model: its collectives, and how a process joins it.

A single process is a `World` of size 1; it needs no process group and its collectives return at once. torchrun's
environment variables, or a process group that exists already (Ray Train), give larger worlds. All processes run the
same program and call the same collectives in the same order. The main process has rank 0; it also prints and writes.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vitrail import console
from vitrail.errors import UsageError, VitrailError, first_line

T = TypeVar("T")
SLOW_GROUP_TIMEOUT = timedelta(days=1)  # for objects that the others await: the data check, the report
# gloo raises RuntimeError for everything, and NCCL raises DistBackendError for everything, even for a GPU without
# memory or a wrong setting. So only the text tells a lost connection from another error.
CONNECTION_ERROR = re.compile(
    r"connection (was likely )?(closed|reset|refused|abort)|broken pipe|connectFullMesh failed"  # the system's, gloo's
    r"|timed out waiting \d+ ?ms|timeout waiting for key|wait timeout|socket timeout"
    r"|ncclRemoteError|NCCL communicator was aborted",
    re.IGNORECASE,
)


class PeerLost(VitrailError):
    """The group of processes has lost one, or has not formed; all of its processes must be started again."""


@dataclass(frozen=True)
class World:
    """The processes that train one model together, seen from one of them."""

    rank: int = 0
    size: int = 1
    local_size: int = 1  # processes on this machine
    device: torch.device = torch.device("cpu")
    is_sharded: bool = False  # FSDP2: each process holds a shard of every weight; else DDP: each holds all weights
    slow_group: Any = None  # process group for Python objects, with a long timeout

    @property
    def is_main(self) -> bool:
        """Whether this process has rank 0: it prints and writes."""
        return self.rank == 0

    def sum(self, *numbers: float) -> tuple[float, ...]:
        """Returns the sum of each number over all processes."""
        if self.size == 1:
            return numbers
        device = self.device if self.device.type == "cuda" else torch.device("cpu")
        sums = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """Replaces a tensor of the device by its sum over all processes, and returns it; does not wait for a GPU."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Returns, for each flag, whether it is true in any process; does not wait for a GPU."""
        if self.size == 1:
            return tuple(bool(flag) for flag in flags)
        counts = torch.tensor(flags, dtype=torch.int64)
        dist.all_reduce(counts, group=self.slow_group if self.device.type == "cuda" else None)
        return tuple(count > 0 for count in counts.tolist())

    def all_gather(self, value: T) -> list[T]:
        """Returns the values of all processes, ordered by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.slow_group)
        return values

    def broadcast(self, value: T) -> T:
        """Returns the main process's value in all processes."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.slow_group)
        return values[0]

    def on_main(self, function: Callable[[], T]) -> T:
        """Calls the function in the main process only; all processes return its result or raise its `VitrailError`.

        The function must not call collectives.
        """
        if self.size == 1:
            return function()
        result: T | None = None
        error: VitrailError | None = None
        if self.is_main:
            try:
                result = function()
            except VitrailError as raised:
                error = raised
        result, error = self.broadcast((result, error))
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # None only if the function returned it

    @contextmanager
    def raise_on_all(self) -> Iterator[None]:
        """If the body raises a `VitrailError` in any process, all processes raise the one of the lowest rank.

        All processes must call the same collectives inside, also before they raise.
        """
        error: VitrailError | None = None
        try:
            yield
        except VitrailError as raised:
            if self.size == 1:
                raise
            error = raised
        if first_error := next(filter(None, self.all_gather(error)), None):
            raise first_error

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """On each machine the first process runs the body before the others, so they find what it has downloaded."""
        is_local_main = self.rank % self.local_size == 0
        if not is_local_main:
            self.all_gather(None)
        try:
            yield
        finally:
            if is_local_main:
                self.all_gather(None)


SINGLE_PROCESS = World()


@contextmanager
def join_world(device: torch.device, *, fsdp: bool = False) -> Iterator[World]:
    """Yields the world that this process was started in; inside, only the main process logs.

    An existing process group is used and not destroyed. Raises `PeerLost` if another process of the group ends.
    """
    is_owner = not in_process_group() and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if is_owner:
        device = local_device(device)
        init_process_group(device)
    was_quiet = console.quiet
    try:
        world = current_world(device, fsdp) if in_process_group() else World(device=device)
        console.quiet = was_quiet or not world.is_main
        yield world
    except RuntimeError as error:
        if in_process_group() and dist.get_world_size() > 1 and is_connection_error(error):
            raise PeerLost(
                "another process of the group has ended", "start again with --resume, unless the launcher does"
            ) from error
        raise
    finally:
        console.quiet = was_quiet
        if is_owner:
            dist.destroy_process_group()


def is_connection_error(error: RuntimeError | TimeoutError) -> bool:
    """Returns whether an error was raised because another process of the group does not answer."""
    if isinstance(error, TimeoutError | dist.DistNetworkError | dist.DistStoreError):
        return True
    return CONNECTION_ERROR.search(str(error)) is not None


def in_process_group() -> bool:
    """Returns whether this process is in a process group."""
    return dist.is_available() and dist.is_initialized()


def current_world(device: torch.device, fsdp: bool) -> World:
    """Returns the world of the existing process group."""
    size = dist.get_world_size()
    if device.type == "mps" and size > 1:
        raise UsageError("torch has no process group for mps", "train with --device cpu, or with one process")
    if str(device) == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    if size == 1:
        return World(device=device)
    slow_group = dist.new_group(backend="gloo", timeout=SLOW_GROUP_TIMEOUT)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return World(dist.get_rank(), size, local_size, device, fsdp, slow_group)


def local_device(device: torch.device) -> torch.device:
    """Returns the GPU for this process's local rank; raises `UsageError` if the machine has too few GPUs."""
    if device.type != "cuda":
        return device
    local_rank, gpu_count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local_rank >= gpu_count:
        raise UsageError(f"process {local_rank} finds {gpu_count} GPUs on its machine", "start one process per GPU")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def init_process_group(device: torch.device) -> None:
    """Joins the processes that torchrun started: gloo on CPU, NCCL on GPU."""
    from vitrail.training.rendezvous import rendezvous_store

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        store = rendezvous_store(rank, size)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, TimeoutError) as error:
        action = "does not reach the others" if is_connection_error(error) else "cannot join the others"
        raise PeerLost(f"process {rank} of {size} {action}: {first_line(error)}") from error
