"""Multi-head self-attention, and the one place that chooses its kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.model.config import ViTConfig
from vitrail.model.position import Rotate


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762): (B, T, D) -> (B, T, D).

    `attend` computes the attention; `vitrail.recording` replaces it temporarily, to record queries and keys.
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
        # (B, T, 3D) -> (B, T, 3, N, K) -> (3, B, N, T, K)
        q_BNTK, k_BNTK, v_BNTK = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q_BNTK, k_BNTK = self.q_norm(q_BNTK), self.k_norm(k_BNTK)
        if rotate is not None:
            q_BNTK, k_BNTK = rotate(q_BNTK), rotate(k_BNTK)
        dropout = self.attention_dropout if self.training else 0.0
        out_BNTK = self.attend(q_BNTK, k_BNTK, v_BNTK, dropout)
        return self.proj_drop(self.proj(out_BNTK.transpose(1, 2).flatten(2)))


def attention_weights(q_BNTK: Tensor, k_BNSK: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(K)), (B, N, T, S); each row sums to one."""
    return (q_BNTK * q_BNTK.shape[-1] ** -0.5 @ k_BNSK.mT).softmax(dim=-1).to(q_BNTK.dtype)


# torch's fused bf16 kernel is fast on CPUs with AMX (Intel's matrix unit), but only in the forward pass.
HAS_AMX = torch.cpu._is_amx_tile_supported()


def attend(q_BNTK: Tensor, k_BNSK: Tensor, v_BNSK: Tensor, dropout: float = 0.0) -> Tensor:
    """Returns softmax(q k^T / sqrt(K)) v, (B, N, T, K), from the fastest kernel for this device and dtype.

    On a CPU in bf16, three plain operations beat torch's fused kernel when a gradient is needed, or without AMX
    (figures in docs/log.md). Everywhere else the fused kernel is faster.
    """
    needs_grad = torch.is_grad_enabled() and q_BNTK.requires_grad
    if q_BNTK.device.type == "cpu" and q_BNTK.dtype == torch.bfloat16 and (needs_grad or not HAS_AMX):
        return F.dropout(attention_weights(q_BNTK, k_BNSK), dropout, training=dropout > 0) @ v_BNSK
    return F.scaled_dot_product_attention(q_BNTK, k_BNSK, v_BNSK, dropout_p=dropout)
