"""Methods that leave patches out and look what becomes of the answer; they are really gone (`Scene.logits_of`)."""

import torch
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.explanation.scene import Scene

BATCH_TOKENS = 1 << 14  # tokens that go through the model at once


@torch.no_grad()
def occlusion(scene: Scene) -> tuple[Tensor, Tensor]:
    """How much probability goes when a patch is left out, patch by patch: signed.

    The change of the asked class's probability, less that of the other class where there is one (Zeiler & Fergus 2014,
    arXiv 1311.2901, with a dropped token for the grey square). Raises `UsageError` where an image is one patch.
    """
    refuse_one_patch(scene)
    logits_BY = scene.logits(scene.x_BTD)
    whole_B = value(logits_BY, scene.settle(logits_BY))
    all_P = torch.arange(scene.patches, device=logits_BY.device)
    keep_MP = torch.stack([torch.cat([all_P[:j], all_P[j + 1 :]]) for j in range(scene.patches)])
    return whole_B[:, None] - values_of(scene, keep_MP), logits_BY


@torch.no_grad()
def rise(scene: Scene, masks: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The mean probability over random halves of the image that hold a patch, less that over all: signed.

    Petsiuk et al. 2018 (RISE, arXiv 1806.07421) with dropped tokens. Masks come in complementary pairs, so each patch
    is held by half of them (of an odd number of patches one is in neither of a pair). Raises `UsageError` where an
    image is one patch.
    """
    refuse_one_patch(scene)
    logits_BY = scene.logits(scene.x_BTD)
    scene.settle(logits_BY)
    half = scene.patches // 2
    generator = torch.Generator().manual_seed(seed)
    keep: list[Tensor] = []
    for _ in range(-(-masks // 2)):
        order = torch.randperm(scene.patches, generator=generator)
        keep += [order[:half].sort().values, order[half : 2 * half].sort().values]
    keep_MP = torch.stack(keep).to(logits_BY.device)
    held_MP = logits_BY.new_zeros(len(keep_MP), scene.patches).scatter_(1, keep_MP, 1.0)
    values_BM = values_of(scene, keep_MP)
    mean_BP = values_BM @ held_MP / held_MP.sum(dim=0).clamp(min=1)
    return mean_BP - values_BM.mean(dim=1, keepdim=True), logits_BY


def refuse_one_patch(scene: Scene) -> None:
    """Raises `UsageError` where nothing would be left of an image without a patch."""
    if scene.patches == 1:
        raise UsageError("this model sees an image as one patch, and none can be left out", "use method gradient")


def value(logits_BY: Tensor, weights_BY: Tensor) -> Tensor:
    """The asked class's probability, less the other's where there is one, (B,)."""
    return (logits_BY.softmax(dim=1) * weights_BY).sum(dim=1)


def values_of(scene: Scene, keep_MP: Tensor) -> Tensor:
    """The value of every image with each of M sets of patches kept, (B, M)."""
    weights_BY = scene.weights_BY
    assert weights_BY is not None
    found = []
    for i in range(len(scene.x_BTD)):
        rows = []
        for keep in torch.split(keep_MP, max(1, BATCH_TOKENS // scene.x_BTD.shape[1])):
            logits_MY = scene.logits_of(keep, scene.x_BTD[i : i + 1].expand(len(keep), -1, -1))
            rows.append(value(logits_MY, weights_BY[i : i + 1]))
        found.append(torch.cat(rows))
    return torch.stack(found)
