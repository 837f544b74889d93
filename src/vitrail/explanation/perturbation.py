"""Perturbation-based methods: they remove patches (`PatchInputs.logits_of_patches`) and measure the probability.

M counts sets of patches. Probabilities are calibrated: they are those that the classifier returns.
"""

import torch
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.explanation.inputs import PatchInputs


@torch.no_grad()
def occlusion(inputs: PatchInputs) -> tuple[Tensor, Tensor]:
    """Returns the drop in probability when a patch is removed, patch by patch: signed.

    Zeiler & Fergus 2014 (arXiv 1311.2901), with a removed token in place of the gray square. With a compared class, the
    drop of the difference of both probabilities. Raises `UsageError` where an image is a single patch.
    """
    require_several_patches(inputs)
    logits_BY = inputs.logits(inputs.x_BTD)
    intact_B = inputs.probability(logits_BY)
    all_P = torch.arange(inputs.patch_count, device=logits_BY.device)
    keep_MP = torch.stack([torch.cat([all_P[:j], all_P[j + 1 :]]) for j in range(inputs.patch_count)])
    return intact_B[:, None] - probabilities_of_sets(inputs, keep_MP), logits_BY


@torch.no_grad()
def rise(inputs: PatchInputs, masks: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns the mean probability over random halves that contain a patch, minus the mean over all halves: signed.

    Petsiuk et al. 2018 (RISE, arXiv 1806.07421) with removed tokens. Masks come in complementary pairs, so each patch
    is in half of them (with an odd number of patches, each pair leaves one out). Raises `UsageError` where an image is
    a single patch.
    """
    require_several_patches(inputs)
    logits_BY = inputs.logits(inputs.x_BTD)
    inputs.fix_target(logits_BY)
    half = inputs.patch_count // 2
    generator = torch.Generator().manual_seed(seed)
    keep: list[Tensor] = []
    for _ in range(-(-masks // 2)):
        order = torch.randperm(inputs.patch_count, generator=generator)
        keep += [order[:half].sort().values, order[half : 2 * half].sort().values]
    keep_MP = torch.stack(keep).to(logits_BY.device)
    mask_MP = logits_BY.new_zeros(len(keep_MP), inputs.patch_count).scatter_(1, keep_MP, 1.0)
    probability_BM = probabilities_of_sets(inputs, keep_MP)
    mean_BP = probability_BM @ mask_MP / mask_MP.sum(dim=0).clamp(min=1)
    return mean_BP - probability_BM.mean(dim=1, keepdim=True), logits_BY


def require_several_patches(inputs: PatchInputs) -> None:
    """Raises `UsageError` where an image is a single patch, so that none can be removed."""
    if inputs.patch_count == 1:
        raise UsageError(
            "this model sees an image as one patch, which cannot be removed", "use method input_x_gradient"
        )


def probabilities_of_sets(inputs: PatchInputs, keep_MP: Tensor) -> Tensor:
    """Returns the probability (`PatchInputs.probability`) of every image with each of M sets of patches, (B, M)."""
    target_BY = inputs.target_BY
    assert target_BY is not None
    rows = []
    for i in range(len(inputs.x_BTD)):
        parts = []
        for keep in torch.split(keep_MP, inputs.max_batch_size):
            logits_MY = inputs.logits_of_patches(keep, inputs.x_BTD[i : i + 1].expand(len(keep), -1, -1))
            parts.append((inputs.calibrated_probabilities(logits_MY) * target_BY[i : i + 1]).sum(dim=1))
        rows.append(torch.cat(parts))
    return torch.stack(rows)
