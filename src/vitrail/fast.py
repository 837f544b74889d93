"""An inference-only copy of a trained ViT: LayerScale folded, another dtype, weights packed for oneDNN or compiled.

The copy computes the same function. Its outputs differ by rounding only (figures in docs/benchmarks.md).
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.model.block import Block, LayerScale
from vitrail.model.config import to_pair
from vitrail.model.mlp import Mlp, SwiGluMlp
from vitrail.model.vit import PatchEmbed, ViT, check_divisible


def make_fast_vit(vit: ViT, dtype: torch.dtype, *, compile: Sequence[int] = ()) -> ViT:
    """Returns a copy for inference in this dtype, packed for oneDNN on a CPU whose torch has it.

    LayerScale is folded into the projection before it, in the ViT's own dtype. Batches of the sizes in `compile`, of
    images of the config's size, run code from torch.compile.
    """
    folded = copy.deepcopy(vit).eval().requires_grad_(False)
    for block in folded.blocks:
        assert isinstance(block, Block)
        fold_layer_scale(block)
    folded.to(dtype)
    packed = copy.deepcopy(folded)
    if vit.prefix.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        pack_weights(packed)
    return compile_for_batches(folded, compile, fallback=packed) if compile else packed


def fold_layer_scale(block: Block) -> None:
    """Multiplies each LayerScale into the last linear layer of its branch."""
    fc2 = block.mlp.fc2 if isinstance(block.mlp, Mlp | SwiGluMlp) else None  # a plugin's MLP keeps its LayerScale
    for name, linear in (("ls1", block.attn.proj), ("ls2", fc2)):
        scale = getattr(block, name)
        if isinstance(scale, LayerScale) and isinstance(linear, nn.Linear):
            linear.weight.mul_(scale.gamma[:, None])
            linear.bias.mul_(scale.gamma)
            setattr(block, name, nn.Identity())


class PackedLinear(nn.Module):
    """A linear layer in oneDNN's weight layout, fused with an optional GELU: (..., I) -> (..., O).

    Without packing oneDNN reorders the weights for every batch. Packed weights cannot be read, saved or moved.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, gelu: str | None = None):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), None)
        self.bias = None if bias_O is None else bias_O.detach()
        self.activation, self.approximate = ("gelu", gelu) if gelu else ("none", "")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], self.approximate)
        return y


class PackedPatchEmbed(nn.Module):
    """The patch projection as one matrix product: image (B, C, H, W) -> patches (B, h, w, D)."""

    def __init__(self, embed: PatchEmbed):
        super().__init__()
        self.patch = embed.patch
        self.proj = PackedLinear(embed.proj.weight.flatten(1), embed.proj.bias)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        check_divisible(image_BCHW, self.patch)
        patches_BChpwp = image_BCHW.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # type: ignore[no-untyped-call]
        patches_BhwD: Tensor = self.proj(patches_BChpwp.permute(0, 2, 4, 1, 3, 5).flatten(3))
        return patches_BhwD


def pack_weights(vit: ViT) -> None:
    """Replaces the patch projection, every linear layer and the GELU after it by packed modules."""
    replacements: dict[tuple[nn.Module, str], nn.Module] = {(vit, "patch_embed"): PackedPatchEmbed(vit.patch_embed)}
    for module in vit.modules():
        gelu = module.act.approximate if isinstance(module, Mlp) and isinstance(module.act, nn.GELU) else None
        for name, part in module.named_children():
            if isinstance(part, nn.Linear):
                replacements[module, name] = PackedLinear(part.weight, part.bias, gelu if name == "fc1" else None)
            elif gelu and name == "act":
                replacements[module, name] = nn.Identity()
    for (module, name), part in replacements.items():
        setattr(module, name, part)


def compile_for_batches(vit: ViT, batch_sizes: Sequence[int], fallback: ViT) -> ViT:
    """Compiles `vit` for these batch sizes now; returns `fallback` with a forward that uses the compiled code for them.

    On a CPU the weights are frozen into the code, so that the compiler packs them and fuses the neighboring operations.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    on_cpu = vit.prefix.device.type == "cpu"
    backend = {"cpp_wrapper": True, "max_autotune_gemm_backends": "CPP,ATEN"} if on_cpu else {"triton.cudagraphs": True}
    options: dict[str, Any] = {"max_autotune": True, **backend}
    compiled = torch.compile(vit, dynamic=False, options=options)
    size = (vit.config.channels, *to_pair(vit.config.image_size))
    # at its recompile limit the compiler gives up silently; freezing must be on while the forward is traced
    with torch.inference_mode(), dynamo.patch(recompile_limit=1000), inductor.patch(freezing=on_cpu):
        for batch_size in sorted(set(batch_sizes)):
            compiled(torch.zeros(batch_size, *size, device=vit.prefix.device, dtype=vit.prefix.dtype))
    plain_forward = fallback.forward
    shapes = {(batch_size, *size) for batch_size in batch_sizes}

    def forward(image_BCHW: Tensor) -> Tensor:
        if tuple(image_BCHW.shape) not in shapes:
            return plain_forward(image_BCHW)
        with torch.inference_mode():  # the mode it was compiled in; another one would recompile without freezing
            logits_BY: Tensor = compiled(image_BCHW if image_BCHW.is_inference() else image_BCHW.clone())
        return logits_BY

    fallback.forward = forward  # type: ignore[method-assign]
    return fallback
