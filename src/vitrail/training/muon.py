"""The Muon optimizer: updates with orthogonalized matrices. Jordan et al. 2024, kellerjordan.github.io/posts/muon."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from vitrail.machine import has_native_bf16

# x <- a x + b (x x^T) x + c (x x^T)^2 x moves singular values toward one; coefficients of Jordan et al. 2024.
A, B, C = 3.4445, -4.7750, 2.0315
NEWTON_SCHULZ_STEPS = 5
EPSILON = 1e-7


class Muon(Optimizer):
    """Nesterov momentum, orthogonalized, for matrices.

    `torch.optim.Muon` takes the same steps matrix by matrix; here all matrices of one shape are orthogonalized
    together, which is faster for small matrices. `parts` in a group tells that each of its parameters is that many
    matrices, one below the other (queries, keys and values of an attention), to be orthogonalized separately.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        parts: int = 1,
    ):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum, parts=parts))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient."""
        updates: dict[tuple[int, ...], list[tuple[Tensor, Tensor, float]]] = defaultdict(list)
        for group in self.param_groups:
            for matrix, direction in self._momentum_directions(group):
                chunks = zip(matrix.chunk(group["parts"]), direction.chunk(group["parts"]), strict=True)
                for part, part_direction in chunks:
                    updates[tuple(part.shape)].append((part, part_direction, group["lr"]))
        for (rows, columns), same_shape in updates.items():
            orthogonal = orthogonalize(torch.stack([direction for _, direction, _ in same_shape]))
            scale = max(1.0, rows / columns) ** 0.5  # so that tall matrices change their outputs as much
            for (part, _, lr), direction in zip(same_shape, orthogonal, strict=True):
                part.add_(direction.to(part.dtype), alpha=-lr * scale)

    def _momentum_directions(self, group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """Updates the momentum buffers of a group and decays its weights; returns matrices and Nesterov directions."""
        matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
        if not matrices:
            return []
        gradients = [matrix.grad for matrix in matrices]
        buffers = [self._momentum_buffer(matrix) for matrix in matrices]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        directions = torch._foreach_lerp(gradients, buffers, group["momentum"])
        return list(zip(matrices, directions, strict=True))

    def _momentum_buffer(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def orthogonalize(x_Mrc: Tensor) -> Tensor:
    """Moves the singular values of each of M matrices toward one, by the Newton-Schulz iteration.

    It is computed in bf16 where the device does that natively, else in float32, which is then faster.
    """
    dtype = torch.bfloat16 if has_native_bf16(x_Mrc.device) else torch.float32
    is_tall = x_Mrc.shape[-2] > x_Mrc.shape[-1]
    x = (x_Mrc.mT if is_tall else x_Mrc).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if is_tall else x
