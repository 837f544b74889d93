"""The logit lens: the final norm, pool and head applied to the tokens of any layer."""

import torch
from torch import Tensor

from vitrail.explanation.hooks import record_outputs
from vitrail.explanation.inputs import TokenInputs


@torch.no_grad()
def logit_lens(inputs: TokenInputs, layer: int = -1) -> tuple[Tensor, Tensor]:
    """Returns the logit of the explained class for each patch token after a layer, minus the mean logit: signed.

    Vilas et al. 2023 (arXiv 2310.18969): norm, pool and head applied to one token alone.
    """
    vit = inputs.vit
    with record_outputs(vit.blocks[layer]) as outputs:
        logits_BY = inputs.logits(inputs.x_BTD)
    z_BPD = vit.norm(outputs[0])[:, vit.config.prefix_tokens :]
    copies = vit.config.prefix_tokens + 1  # every pool returns the token when all tokens are copies of it
    z_MTD = z_BPD.flatten(0, 1).unsqueeze(1).expand(-1, copies, -1)
    lens_BPY = inputs.classify(z_MTD).view(*z_BPD.shape[:2], -1)
    centered_BPY = lens_BPY - lens_BPY.mean(dim=-1, keepdim=True)
    return torch.einsum("bpy,by->bp", centered_BPY, inputs.fix_target(logits_BY)), logits_BY
