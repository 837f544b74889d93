"""Maps made of attention alone: one layer's weights, and rollout through all layers.

Neither knows a class: they say where the model looks, not what speaks for a class.
"""

import torch
from torch import Tensor

from vitrail.explanation.recording import Record, recording, wide
from vitrail.explanation.scene import Scene
from vitrail.model import ViTConfig
from vitrail.model.config import CLASS_TOKENS


def readout(record: Record, config: ViTConfig, tokens: int) -> Tensor:
    """How much the pooled vector takes from each token, (B, T), summing to one.

    The class tokens alone, the patches alike, half and half, or as attention pooling weighs them (its heads' mean).
    """
    if record.pool is not None:
        return record.pool[:, :, 0].mean(dim=1)
    query = record.queries[0]
    row_T = torch.zeros(tokens, device=query.device, dtype=wide(query).dtype)
    read = CLASS_TOKENS.get(config.pool, 0)
    row_T[:read] = 1 / max(read, 1)
    if "mean" in config.pool:
        row_T[config.prefix_tokens :] = 1 / (tokens - config.prefix_tokens)
    return (row_T / row_T.sum()).expand(len(query), tokens)


def attention_map(record: Record, config: ViTConfig, layer: int = -1, head: int | None = None) -> Tensor:
    """What the pooled vector's tokens attend to in one layer, (B, T): of one head, or the mean of them.

    With a class token this is its row of the attention matrix; else the mean of all rows, as pooling weighs them.
    """
    if config.pool == "cls":
        weights_BNT = record.attention(layer, rows=0)[:, :, 0]
    else:
        weights_BNTT = record.attention(layer)
        weights_BNT = torch.einsum("bt,bnts->bns", readout(record, config, weights_BNTT.shape[-1]), weights_BNTT)
    return weights_BNT.mean(dim=1) if head is None else weights_BNT[:, head]


def rollout(record: Record, config: ViTConfig, layer: int = -1) -> Tensor:
    """Attention followed through all layers up to `layer`, residual connections included, (B, T).

    Abnar & Zuidema 2020 (arXiv 2005.00928): the product of (A + I) / 2, A being the mean over heads.
    """
    depth = layer % record.depth + 1
    mixed_BTT: Tensor | None = None
    for number in range(depth):
        step_BTT = record.attention(number).mean(dim=1)
        step_BTT = (step_BTT + torch.eye(step_BTT.shape[-1], device=step_BTT.device, dtype=step_BTT.dtype)) / 2
        mixed_BTT = step_BTT if mixed_BTT is None else step_BTT @ mixed_BTT
    assert mixed_BTT is not None
    row_BT = readout(record, config, mixed_BTT.shape[-1])
    return torch.einsum("bt,bts->bs", row_BT, mixed_BTT)


@torch.no_grad()
def attention(
    scene: Scene, layer: int = -1, head: int | None = None, query: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of one layer: of what is pooled, or of the patch in row and column `query`."""
    config = scene.vit.config
    with recording(scene.vit) as record:
        logits_BY = scene.logits(scene.x_BTD)
    if query is None:
        return scene.of_patches(attention_map(record, config, layer, head)), logits_BY
    row = config.prefix_tokens + query[0] * scene.grid[1] + query[1]
    weights_BNT = record.attention(layer, rows=row)[:, :, 0]
    return scene.of_patches(weights_BNT.mean(dim=1) if head is None else weights_BNT[:, head]), logits_BY


@torch.no_grad()
def attention_rollout(scene: Scene, layer: int = -1) -> tuple[Tensor, Tensor]:
    """Rollout up to a layer, and the logits."""
    with recording(scene.vit) as record:
        logits_BY = scene.logits(scene.x_BTD)
    return scene.of_patches(rollout(record, scene.vit.config, layer)), logits_BY
