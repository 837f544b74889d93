"""A model over several processes: DDP replicas, FSDP2 shards, and tensors that are sharded over processes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitrail.errors import VitrailError
from vitrail.model.vit import ViT
from vitrail.training.distributed import World


def broadcast_parameters(module: nn.Module, world: World) -> None:
    """Copies the main process's weights and buffers to all processes."""
    if world.size > 1:
        for tensor in module.state_dict().values():
            on_device = tensor.detach().to(world.device)
            dist.broadcast(on_device, src=0)
            tensor.copy_(on_device)


def wrap_ddp(vit: nn.Module, world: World) -> nn.Module:
    """Returns the module to call in training: DDP averages gradients over processes; FSDP2 does so by itself."""
    if world.size == 1 or world.is_sharded:
        return vit
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(vit, device_ids=device_ids, init_sync=False, gradient_as_bucket_view=True)


def shard_model(vit: nn.Module, world: World) -> None:
    """Shards every weight over the processes with FSDP2; a block's weights are gathered while it computes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    empty_parameters = {parameter for parameter in vit.parameters() if not parameter.numel()}  # no prefix tokens
    for block in vit.get_submodule("blocks").children():
        fully_shard(block, mesh=mesh)
    fully_shard(vit, mesh=mesh, ignored_params=empty_parameters)
    for parameter in empty_parameters:
        parameter.data = parameter.data.to(world.device)


def check_replicas(modules: dict[str, nn.Module], world: World) -> None:
    """Raises `VitrailError` if the processes' replicas of these modules, given by name, do not have the same bits."""
    if world.size == 1 or world.is_sharded:
        return
    hashes_by_rank = world.all_gather({name: hash_module(module) for name, module in modules.items()})
    for name, main_hash in hashes_by_rank[0].items():
        different = [rank for rank, hashes in enumerate(hashes_by_rank) if hashes[name] != main_hash]
        if different:
            raise VitrailError(
                f"the {name} of process {different[0]} is no longer that of process 0",
                "a device or the network is faulty; resume from the last checkpoint with --resume",
            )


def hash_module(module: nn.Module) -> str:
    """Returns a hash of a module's names, weights and buffers."""
    hasher = hashlib.blake2b(digest_size=16)
    for name, tensor in module.state_dict().items():
        hasher.update(name.encode())
        hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


@contextmanager
def sync_gradients(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Inside, `backward` averages gradients over processes if `enabled`, else it only adds to the local gradients."""
    if isinstance(model, DistributedDataParallel) and not enabled:
        with model.no_sync():
            yield
        return
    if dist.is_available() and is_fsdp_module(model):
        model.set_requires_gradient_sync(enabled)  # type: ignore[operator]
    yield


def is_fsdp_module(module: nn.Module) -> bool:
    """Returns whether FSDP2 has sharded this module."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def is_dtensor(tensor: Tensor) -> bool:
    """Returns whether other processes hold the rest of this tensor."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns the gathered tensor; a collective if the tensor is sharded."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def full_cpu_tensor(tensor: Tensor, keep: bool) -> Tensor:
    """Returns a contiguous CPU copy of the gathered tensor, or an empty tensor if not `keep`; a collective."""
    gathered = full_tensor(tensor.detach())
    return gathered.to("cpu", copy=True).contiguous() if keep else gathered.new_empty(0)


def local_shard(tensor: Tensor) -> Tensor:
    """Returns the shard of a tensor that this process holds; all of it if the tensor is not sharded."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shards a full tensor, which every process has, as `like` is sharded, if it has the same shape."""
    if not is_dtensor(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gather_model(vit: nn.Module, world: World) -> nn.Module:
    """Returns an unsharded copy of a sharded ViT in the main process; a collective.

    The copy of the other processes has no meaningful weights. A ViT that is not sharded is returned as it is.
    """
    if not world.is_sharded or not isinstance(vit, ViT):
        return vit
    tensors = {name: full_cpu_tensor(tensor, keep=world.is_main) for name, tensor in vit.state_dict().items()}
    unsharded = ViT(vit.config)
    if world.is_main:
        unsharded.load_state_dict(tensors)
    return unsharded
