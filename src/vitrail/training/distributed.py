"""Many processes that train one model: who they are, what they say to one another, how the model is spread over them.

A process alone is a `World` of size 1, which needs no process group and says nothing to anybody. torchrun's
environment, or a process group that somebody else has made (Ray Train), gives larger ones. Every process runs the same
program and meets the others at the same lines; process 0, the main one, also prints and writes.
"""

import hashlib
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitrail import console
from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.model import ViT

T = TypeVar("T")
SLOW_GROUP_TIMEOUT = timedelta(days=1)  # for what process 0 does while the others wait: checking the data, the report
LOST = re.compile(r"connection (closed|reset|refused)|connectFullMesh|gloo|NCCL|broken pipe|timed? ?out", re.I)


class PeerLost(VitrailError):
    """Another process of the group has ended; only starting the group again helps."""


@dataclass(frozen=True)
class World:
    """The processes that train one model together, as one of them sees them."""

    rank: int = 0
    size: int = 1
    local_size: int = 1  # processes on this machine
    device: torch.device = torch.device("cpu")
    is_sharded: bool = False  # each process keeps a part of every weight (FSDP2), else all of them (DDP)
    slow_group: Any = None  # a group of its own for what may take long

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def sum(self, *numbers: float) -> tuple[float, ...]:
        """The sum of each number over all processes."""
        if self.size == 1:
            return numbers
        place = self.device if self.device.type == "cuda" else torch.device("cpu")
        sums = torch.tensor(numbers, dtype=torch.float64, device=place)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is up in some process."""
        return tuple(bool(number) for number in self.sum(*flags))

    def all_gather(self, value: T) -> list[T]:
        """What every process has, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.slow_group)
        return values

    def broadcast(self, value: T) -> T:
        """What process 0 has; the others wait for it as long as it takes."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.slow_group)
        return values[0]

    @contextmanager
    def raise_on_all(self) -> Iterator[None]:
        """A part of the work that fails everywhere if it fails somewhere, with the error of the lowest rank.

        Inside, all wait for one another alike or not at all, also on the way to an error.
        """
        error: VitrailError | None = None
        try:
            yield
        except VitrailError as raised:
            if self.size == 1:
                raise
            error = raised
        if first := next(filter(None, self.all_gather(error)), None):
            raise first

    def local_main_first(self) -> AbstractContextManager[None]:
        """On each machine its first process does this before the others: what it fetches, they find."""
        return _first_comes_first(self) if self.size > 1 else nullcontext()

    def wrap_ddp(self, vit: nn.Module) -> nn.Module:
        """The model whose forward and backward the processes share: gradients are averaged over them.

        A sharded one shares by itself.
        """
        if self.size == 1:
            return vit
        if self.is_sharded:
            return vit
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(vit, device_ids=ids, init_sync=False, gradient_as_bucket_view=True)

    def shard_model(self, vit: nn.Module) -> None:
        """Leaves each process a part of every weight; a block's are put together while it computes (FSDP2)."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        nothing = {parameter for parameter in vit.parameters() if not parameter.numel()}  # no prefix tokens
        blocks = vit.get_submodule("blocks")
        for block in blocks.children():
            fully_shard(block, mesh=mesh)
        fully_shard(vit, mesh=mesh, ignored_params=nothing)
        for parameter in nothing:
            parameter.data = parameter.data.to(self.device)

    def broadcast_parameters(self, vit: nn.Module) -> None:
        """Gives every process the weights of process 0."""
        if self.size > 1:
            for tensor in vit.state_dict().values():
                moved = tensor.detach().to(self.device)
                dist.broadcast(moved, src=0)
                tensor.copy_(moved)

    def check_replicas(self, modules: dict[str, nn.Module]) -> None:
        """Raises `VitrailError` where processes that should hold the same weights do not."""
        if self.size == 1 or self.is_sharded:
            return
        digests = self.all_gather({name: hash_module(module) for name, module in modules.items()})
        for name, mine in digests[0].items():
            others = [rank for rank, theirs in enumerate(digests) if theirs[name] != mine]
            if others:
                raise VitrailError(
                    f"the {name} of process {others[0]} is not that of process 0 any more",
                    "a device or the network is faulty; go on from the last checkpoint with --resume",
                )


SINGLE_PROCESS = World()


@contextmanager
def _first_comes_first(world: World) -> Iterator[None]:
    first = world.rank % world.local_size == 0
    if not first:
        world.all_gather(None)
    try:
        yield
    finally:
        if first:
            world.all_gather(None)


def hash_module(module: nn.Module) -> str:
    """A hash of everything that a module holds."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in module.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


@contextmanager
def join_world(device: torch.device, *, fsdp: bool = False) -> Iterator[World]:
    """The world that this process was started in; inside, only its main process talks.

    A process group that is there already is used and left as it is. Raises `PeerLost` where another process ends.
    """
    own = not in_process_group() and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if own:
        device = local_device(device)
        init_process_group(device)
    quiet = console.quiet
    try:
        world = current_world(device, fsdp) if in_process_group() else World(device=device)
        console.quiet = quiet or not world.is_main
        yield world
    except RuntimeError as error:
        if in_process_group() and dist.get_world_size() > 1 and LOST.search(str(error)):
            raise PeerLost(
                "another process of the group has ended", "start again with --resume, unless the launcher does"
            ) from error
        raise
    finally:
        console.quiet = quiet
        if own:
            dist.destroy_process_group()


def in_process_group() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def current_world(device: torch.device, fsdp: bool) -> World:
    """The world of the process group that is there."""
    size = dist.get_world_size()
    if device.type == "mps" and size > 1:
        raise UsageError("torch has no process group for mps", "train with --device cpu, or with one process")
    if str(device) == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    if size == 1:
        return World(device=device)
    patient = dist.new_group(backend="gloo", timeout=SLOW_GROUP_TIMEOUT)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return World(dist.get_rank(), size, local, device, fsdp, patient)


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine; raises `UsageError` where there are too few."""
    if device.type != "cuda":
        return device
    number, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= there:
        raise UsageError(f"process {number} finds {there} GPUs on its machine", "start one process for each GPU")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def launch_id() -> str | None:
    """What names the launch that this process belongs to, however often it has been started again; none without one.

    torchrun's own name where it has one, else the launcher's number and the moment when it was started.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None or name != "none":
        return name
    ticks = launcher_start_ticks()
    return None if ticks is None else f"{platform.node()}-{os.getppid()}-{ticks}"


def launcher_start_ticks() -> int | None:
    """The clock ticks between the machine's start and that of this process's launcher; None off Linux."""
    try:
        return int(Path(f"/proc/{os.getppid()}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except OSError:
        return None


def launcher_start_time() -> float | None:
    """When the launcher of this process was started, in seconds since 1970; None where the system does not say."""
    if (ticks := launcher_start_ticks()) is None:
        return None
    machine_started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return machine_started + ticks / os.sysconf("SC_CLK_TCK")


def init_process_group(device: torch.device) -> None:
    """Joins the processes that torchrun has started: gloo on CPU, NCCL on GPU."""
    from vitrail.training.rendezvous import rendezvous_store

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        store = rendezvous_store(rank, size)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, TimeoutError) as error:
        raise PeerLost(f"process {rank} of {size} does not reach the others: {first_line(error)}") from error


# FSDP2's tensors: each process has a part


def is_fsdp_module(module: nn.Module) -> bool:
    """Whether FSDP2 has spread this module."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def is_dtensor(tensor: Tensor) -> bool:
    """Whether other processes have the rest of this tensor."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every process; all of them must ask."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def full_cpu_tensor(tensor: Tensor, keep: bool) -> Tensor:
    """The whole of a tensor in main memory, contiguous; empty where it is not to be kept. All processes must ask."""
    together = full_tensor(tensor.detach())
    return together.to("cpu", copy=True).contiguous() if keep else together.new_empty(0)


def gather_model(vit: ViT, world: World) -> ViT:
    """On the main process a ViT that it can use by itself; what the others get is not to be used. All must ask."""
    if not world.is_sharded:
        return vit
    tensors = {name: full_cpu_tensor(tensor, keep=world.is_main) for name, tensor in vit.state_dict().items()}
    alone = ViT(vit.config)
    if world.is_main:
        alone.load_state_dict(tensors)
    return alone


def local_shard(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every process has, spread as another one of its shape is."""
    if not is_dtensor(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def sync_gradients(model: nn.Module, now: bool) -> Iterator[None]:
    """Inside, a backward pass averages gradients over the processes, or leaves that to a later part of the batch."""
    if isinstance(model, DistributedDataParallel) and not now:
        with model.no_sync():
            yield
        return
    if dist.is_available() and is_fsdp_module(model):
        model.set_requires_gradient_sync(now)  # type: ignore[operator]
    yield
