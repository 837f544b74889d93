"""Maps from attention alone: the weights of one layer, and rollout through all layers.

Both are class-blind: they show where the model looks, not the evidence for a class.
"""

import torch
from torch import Tensor

from vitrail.explanation.inputs import TokenInputs
from vitrail.explanation.recording import Record, promote_to_float32
from vitrail.model.config import CLASS_TOKENS, ViTConfig
from vitrail.parts import part_name


def readout_weights(record: Record, config: ViTConfig, tokens: int) -> Tensor:
    """Returns the weight of each token in the pooled vector, (B, T); each row sums to 1.

    The class tokens, the mean of the patches, half of each, or for attention pooling the mean over its heads. A pool of
    a plugin counts as reading its class tokens, or if it has none, the mean of the patches.
    """
    if record.pool_attention is not None:
        return record.pool_attention[:, :, 0].mean(dim=1)
    query = record.queries[0]
    row_T = fixed_readout(config, tokens).to(query.device, promote_to_float32(query).dtype)
    return row_T.expand(len(query), tokens)


def fixed_readout(config: ViTConfig, tokens: int) -> Tensor:
    """Returns the weight of each token in the pooled vector, (T,), for a pool whose weights depend on no image."""
    row_T = torch.zeros(tokens)
    class_tokens = CLASS_TOKENS.get(part_name(config.pool), 0)
    row_T[:class_tokens] = 1 / max(class_tokens, 1)
    if not class_tokens or config.pool == "cls+mean":
        row_T[config.prefix_tokens :] = 1 / (tokens - config.prefix_tokens)
    return row_T / row_T.sum()


def readout_attention(record: Record, config: ViTConfig, layer: int = -1, head: int | None = None) -> Tensor:
    """Returns what the pooled tokens attend to in one layer, (B, T): of one head, or the mean over heads.

    For a class token this is its row of the attention matrix, else the mean of all rows, weighted as pooling does.
    """
    if config.pool == "cls":
        weights_BNT = record.attention(layer, rows=0)[:, :, 0]
    else:
        weights_BNTT = record.attention(layer)
        row_BT = readout_weights(record, config, weights_BNTT.shape[-1])
        weights_BNT = torch.einsum("bt,bnts->bns", row_BT, weights_BNTT)
    return weights_BNT.mean(dim=1) if head is None else weights_BNT[:, head]


def roll_out_attention(record: Record, config: ViTConfig, layer: int = -1) -> Tensor:
    """Attention rollout through all layers up to `layer`, residual connections included, (B, T).

    Abnar & Zuidema 2020 (arXiv 2005.00928): the product of (A + I) / 2, where A is the mean over heads.
    """
    rollout_BTT: Tensor | None = None
    for index in range(layer % record.depth + 1):
        layer_BTT = record.attention(index).mean(dim=1)
        eye_TT = torch.eye(layer_BTT.shape[-1], device=layer_BTT.device, dtype=layer_BTT.dtype)
        layer_BTT = (layer_BTT + eye_TT) / 2
        rollout_BTT = layer_BTT if rollout_BTT is None else layer_BTT @ rollout_BTT
    assert rollout_BTT is not None
    row_BT = readout_weights(record, config, rollout_BTT.shape[-1])
    return torch.einsum("bt,bts->bs", row_BT, rollout_BTT)


@torch.no_grad()
def attention(
    inputs: TokenInputs, layer: int = -1, head: int | None = None, query: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of one layer: of the pooled tokens, or of the patch at row and column `query`."""
    config = inputs.vit.config
    record, logits_BY = inputs.recorded
    if query is None:
        return inputs.drop_prefix(readout_attention(record, config, layer, head)), logits_BY
    row = config.prefix_tokens + query[0] * inputs.grid[1] + query[1]
    weights_BNT = record.attention(layer, rows=row)[:, :, 0]
    return inputs.drop_prefix(weights_BNT.mean(dim=1) if head is None else weights_BNT[:, head]), logits_BY


@torch.no_grad()
def attention_rollout(inputs: TokenInputs, layer: int = -1) -> tuple[Tensor, Tensor]:
    """Attention rollout of the pooled tokens up to a layer."""
    record, logits_BY = inputs.recorded
    return inputs.drop_prefix(roll_out_attention(record, inputs.vit.config, layer)), logits_BY
