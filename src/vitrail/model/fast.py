"""A trained ViT made ready to answer quickly: the same figure, its weights folded, in another format and packed.

Nothing here is another model. Parts of the ViT are replaced by parts that compute the same from weights laid out
beforehand; what stays differs from the plain path by rounding alone (docs/benchmarks.md has the figures).
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.model.block import Block, LayerScale
from vitrail.model.config import to_pair
from vitrail.model.mlp import Mlp
from vitrail.model.patches import PatchEmbed, check_divides
from vitrail.model.vit import ViT


class PackedLinear(nn.Module):
    """A Linear whose weights lie as oneDNN wants them, and the GELU after it in the same pass: (..., I) -> (..., O).

    Left to itself oneDNN lays them out again for every batch. The packed weights cannot be read, saved, moved or
    differentiated.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, gelu: str | None = None):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), None)
        self.bias = None if bias_O is None else bias_O.detach()
        self.after, self.algorithm = ("gelu", gelu) if gelu else ("none", "")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.after, [], self.algorithm)
        return y


class PackedPatches(nn.Module):
    """The patch projection as one product of matrices: image (B, C, H, W) -> patches (B, h, w, D)."""

    def __init__(self, embed: PatchEmbed):
        super().__init__()
        self.patch = embed.patch
        self.proj = PackedLinear(embed.proj.weight.flatten(1), embed.proj.bias)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        check_divides(image_BCHW, self.patch)
        cut_BChpwp = image_BCHW.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # type: ignore[no-untyped-call]
        patches_BhwD: Tensor = self.proj(cut_BChpwp.permute(0, 2, 4, 1, 3, 5).flatten(3))
        return patches_BhwD


def make_fast_vit(vit: ViT, dtype: torch.dtype, *, compile: Sequence[int] = ()) -> ViT:
    """A copy of this ViT for inference alone, its weights in this dtype; on CPU packed for oneDNN, where torch has it.

    LayerScale's factors are multiplied into the projection before them, in the ViT's own precision. Batches of the
    sizes in `compile`, of images of the config's size, go through code that torch's compiler makes for them.
    """
    folded = copy.deepcopy(vit).eval().requires_grad_(False)
    for block in folded.blocks:
        assert isinstance(block, Block)
        fold_scales(block)
    folded.to(dtype)
    made = copy.deepcopy(folded)
    if vit.prefix.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        pack(made)
    return compiled(folded, compile, otherwise=made) if compile else made


def compiled(vit: ViT, batches: Sequence[int], otherwise: ViT) -> ViT:
    """`otherwise`, whose forward uses compiled code of `vit` for batches of these sizes; the code is made now.

    The weights are frozen into it, so that the compiler packs them itself and joins what stands before and after each
    product of matrices to it.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    on_cpu = vit.prefix.device.type == "cpu"
    kind = {"cpp_wrapper": True, "max_autotune_gemm_backends": "CPP,ATEN"} if on_cpu else {"triton.cudagraphs": True}
    options: dict[str, Any] = {"max_autotune": True, **kind}
    code = torch.compile(vit, dynamic=False, options=options)
    size = (vit.config.channels, *to_pair(vit.config.image_size))
    # beyond its limit the compiler would give up in silence; freezing has to be in force while the forward is traced
    with torch.inference_mode(), dynamo.patch(recompile_limit=1000), inductor.patch(freezing=on_cpu):
        for batch in sorted(set(batches)):
            code(torch.zeros(batch, *size, device=vit.prefix.device, dtype=vit.prefix.dtype))
    plain = otherwise.forward
    shapes = {(batch, *size) for batch in batches}

    def forward(image_BCHW: Tensor) -> Tensor:
        if tuple(image_BCHW.shape) not in shapes:
            return plain(image_BCHW)
        with torch.inference_mode():  # as when it was compiled; else it would be compiled again, unfrozen
            logits_BY: Tensor = code(image_BCHW if image_BCHW.is_inference() else image_BCHW.clone())
        return logits_BY

    otherwise.forward = forward  # type: ignore[method-assign]
    return otherwise


def fold_scales(block: Block) -> None:
    """Multiplies LayerScale into the last Linear of its branch."""
    for name, linear in (("ls1", block.attn.proj), ("ls2", block.mlp.get_submodule("fc2"))):
        scale = getattr(block, name)
        if isinstance(scale, LayerScale):
            assert isinstance(linear, nn.Linear)
            linear.weight.mul_(scale.gamma[:, None])
            linear.bias.mul_(scale.gamma)
            setattr(block, name, nn.Identity())


def pack(vit: ViT) -> None:
    """Puts packed parts in the place of every Linear, of the patch projection and of GELU."""
    packed: dict[tuple[nn.Module, str], nn.Module] = {(vit, "patch_embed"): PackedPatches(vit.patch_embed)}
    for module in vit.modules():
        gelu = module.act.approximate if isinstance(module, Mlp) and isinstance(module.act, nn.GELU) else None
        for name, part in module.named_children():
            if isinstance(part, nn.Linear):
                packed[module, name] = PackedLinear(part.weight, part.bias, gelu if name == "fc1" else None)
            elif gelu and name == "act":
                packed[module, name] = nn.Identity()
    for (module, name), part in packed.items():
        setattr(module, name, part)
