"""Muon: steps of equal length in every direction of a matrix. Jordan et al. 2024, kellerjordan.github.io/posts/muon."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# x <- a x + b (x x^T) x + c (x x^T)^2 x brings singular values near one; coefficients of Jordan et al. 2024.
A, B, C = 3.4445, -4.7750, 2.0315
NEWTON_SCHULZ_STEPS = 5
EPSILON = 1e-7


class Muon(Optimizer):
    """Momentum, with its singular values brought near one, for matrices.

    `torch.optim.Muon` takes the same steps matrix by matrix; here all of one shape are orthogonalised together, which
    small matrices need. With `parts` in a group, its matrices are that many matrices one below the other (queries, keys
    and values of an attention), each with singular values of its own.
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
        """Moves every matrix that has a gradient."""
        waiting: dict[tuple[int, ...], list[tuple[Tensor, Tensor, float]]] = {}  # (part, its direction, rate) by shape
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not matrices:
                continue
            gradients = [matrix.grad for matrix in matrices]
            momenta = [self._momentum(matrix) for matrix in matrices]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            directions = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
            for matrix, direction in zip(matrices, directions, strict=True):
                for part, towards in zip(matrix.chunk(group["parts"]), direction.chunk(group["parts"]), strict=True):
                    waiting.setdefault(tuple(part.shape), []).append((part, towards, group["lr"]))
        for (rows, columns), moves in waiting.items():
            ways = orthogonalize(torch.stack([towards for _, towards, _ in moves]))
            length = max(1.0, rows / columns) ** 0.5  # of a step, so that tall matrices change their outputs as much
            for (part, _, lr), way in zip(moves, ways, strict=True):
                part.add_(way.to(part.dtype), alpha=-lr * length)

    def _momentum(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def orthogonalize(x_Mrc: Tensor) -> Tensor:
    """Each of M matrices with its singular values brought near one, by Newton and Schulz's iteration in bf16."""
    tall = x_Mrc.shape[-2] > x_Mrc.shape[-1]
    x = (x_Mrc.mT if tall else x_Mrc).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    for _ in range(NEWTON_SCHULZ_STEPS):
        squares = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(squares, squares, squares, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x
