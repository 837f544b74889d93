"""The logit lens: every token of every layer, read as if it were the last one."""

import torch
from torch import Tensor

from vitrail.explanation.recording import wide
from vitrail.explanation.scene import Scene


@torch.no_grad()
def logit_lens(scene: Scene, layer: int = -1) -> tuple[Tensor, Tensor]:
    """What each patch's token would answer after a layer: the asked class's logit less the mean of all classes: signed.

    Vilas et al. 2023 (arXiv 2310.18969): norm, pool and head applied to one token alone.
    """
    vit = scene.vit
    seen: list[Tensor] = []
    hook = vit.blocks[layer].register_forward_hook(lambda module, given, out: seen.append(out))
    try:
        logits_BY = scene.logits(scene.x_BTD)
    finally:
        hook.remove()
    z_BPD = vit.norm(seen[0])[:, vit.config.prefix_tokens :]
    copies = vit.config.prefix_tokens + 1  # every pool reads copies of one token as that token
    z_MTD = z_BPD.flatten(0, 1).unsqueeze(1).expand(-1, copies, -1)
    lens_BPY = wide(vit.head(vit.pool(z_MTD))).view(*z_BPD.shape[:2], -1)
    weights_BY = scene.settle(logits_BY)
    centred_BPY = lens_BPY - lens_BPY.mean(dim=-1, keepdim=True)
    return torch.einsum("bpy,by->bp", centred_BPY, weights_BY), logits_BY
