"""Multi-head self-attention, and the one place where its kernel is chosen."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.model.config import ViTConfig
from vitrail.model.position import Rotate

# With AMX, the matrix unit of newer Intel processors, torch's fused bf16 kernel is fast on CPU, though only forwards.
AMX = torch.cpu._is_amx_tile_supported()


def attend(q_BNTK: Tensor, k_BNSK: Tensor, v_BNSK: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(K)) v with the fastest kernel for this device and dtype -> (B, N, T, K).

    On CPU in bf16 three plain operations are faster than torch's fused kernel, several times so where a gradient is
    wanted; without one the fused kernel wins on processors with AMX (docs/log.md has the figures). It wins everywhere
    else.
    """
    graded = torch.is_grad_enabled() and q_BNTK.requires_grad
    if q_BNTK.device.type == "cpu" and q_BNTK.dtype == torch.bfloat16 and (graded or not AMX):
        return F.dropout(attention_weights(q_BNTK, k_BNSK), dropout, training=dropout > 0) @ v_BNSK
    return F.scaled_dot_product_attention(q_BNTK, k_BNSK, v_BNSK, dropout_p=dropout)


def attention_weights(q_BNTK: Tensor, k_BNSK: Tensor) -> Tensor:
    """The explicit matrix: softmax(q k^T / sqrt(K)) -> (B, N, T, S), each row summing to one."""
    return (q_BNTK * q_BNTK.shape[-1] ** -0.5 @ k_BNSK.mT).softmax(dim=-1).to(q_BNTK.dtype)


class Attention(nn.Module):
    """Every token looks at every token: (B, T, D) -> (B, T, D).

    `attend` is an ordinary function held by the module: whoever wants to see q and k puts a function of the
    same signature there and takes it away again (`vitrail.recording`); the forward knows nothing of it.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads = config.heads
        head_width = config.width // config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.q_norm = nn.LayerNorm(head_width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.attend = attend
        self.attention_dropout = config.attention_dropout
        self.proj = nn.Linear(config.width, config.width)
        self.proj_drop = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, rotate: Rotate | None = None) -> Tensor:
        q_BNTK, k_BNTK, v_BNTK = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q_BNTK, k_BNTK = self.q_norm(q_BNTK), self.k_norm(k_BNTK)
        if rotate:
            q_BNTK, k_BNTK = rotate(q_BNTK), rotate(k_BNTK)
        dropout = self.attention_dropout if self.training else 0.0
        mixed_BNTK = self.attend(q_BNTK, k_BNTK, v_BNTK, dropout)
        mixed: Tensor = self.proj_drop(self.proj(mixed_BNTK.transpose(1, 2).flatten(2)))
        return mixed
