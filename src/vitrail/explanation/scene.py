"""A batch of images cut open behind the embedding: where every method starts.

Shapes: B batch, T tokens, P patches, D width, Y classes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vitrail.explanation.recording import wide
from vitrail.model import ViT
from vitrail.model.position import Rotate

Aim = Callable[[Tensor], Tensor]  # logits (B, Y) of the intact images -> how each logit counts in the score (B, Y)


@dataclass
class Scene:
    """Embedded tokens (B, R + P, D), the ViT that goes on from there, and what is asked of it.

    The score of an image is `aim`'s weighted sum of logits: 1 for the asked class; -1 too for the one it is held
    against. The aim is taken at the first, intact answer and stays.
    """

    vit: ViT
    x_BTD: Tensor
    grid: tuple[int, int]
    aim: Aim
    grey_1TD: Tensor  # the tokens of an image that is the mean colour everywhere
    weights_BY: Tensor | None = field(default=None, repr=False)  # how each logit counts, once that is settled

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The rest of the forward, in float32: (B, T, D) -> (B, Y)."""
        logits_BY = self.vit.head(self.vit.pool(self.vit.encode(x_BTD, self.rotate)))
        return wide(logits_BY)

    def logits_of(self, keep_BP: Tensor, x_BTD: Tensor | None = None) -> Tensor:
        """The logits where only these patches are there at all, at their places; prefix tokens always are.

        `keep_BP` numbers patches row by row, as many for each image: a ViT takes any set of tokens, so what is hidden
        is left out, and no grey or blurred stand-in has to be made up (Jain et al. 2022, arXiv 2204.08945).
        """
        x_BTD = self.x_BTD if x_BTD is None else x_BTD
        prefix = self.vit.config.prefix_tokens
        first = torch.arange(prefix, device=keep_BP.device).expand(len(keep_BP), -1)
        index_BT1 = torch.cat([first, keep_BP + prefix], dim=1).unsqueeze(-1)
        kept_BTD = x_BTD.gather(1, index_BT1.expand(-1, -1, x_BTD.shape[-1]))
        return wide(
            self.vit.head(self.vit.pool(self.vit.encode(kept_BTD, self.vit.position.rotation(*self.grid, keep_BP))))
        )

    @cached_property
    def rotate(self) -> Rotate | None:
        """The rotation of all tokens."""
        return self.vit.position.rotation(*self.grid)

    def settle(self, logits_BY: Tensor) -> Tensor:
        """How each logit counts, (B, Y): what the aim makes of the first logits given."""
        if self.weights_BY is None:
            self.weights_BY = self.aim(logits_BY.detach())
        return self.weights_BY

    def score(self, logits_BY: Tensor) -> Tensor:
        """What is explained, (B,): the asked class's logit, less the other's where there is one."""
        return (logits_BY * self.settle(logits_BY)).sum(dim=1)

    def log_odds(self, logits_BY: Tensor) -> Tensor:
        """The asked class against all others, (B,): log p / (1 - p); against the other one where there is one."""
        if logits_BY.shape[1] == 1:
            return self.score(logits_BY)
        weights_BY = self.settle(logits_BY)
        one_rival_B1 = (weights_BY < 0).any(dim=1, keepdim=True)
        rivals_BY = (weights_BY < 0) | ((weights_BY == 0) & ~one_rival_B1)
        asked_B = (logits_BY * (weights_BY > 0)).sum(dim=1)
        return asked_B - logits_BY.masked_fill(~rivals_BY, -torch.inf).logsumexp(dim=1)

    def of_patches(self, x_BT: Tensor) -> Tensor:
        """(B, R + P) -> (B, P)."""
        return x_BT[:, self.vit.config.prefix_tokens :]


@contextmanager
def block_inputs(vit: ViT) -> Iterator[list[Tensor]]:
    """Inside, a forward adds what goes into each block, (B, T, D), to the list."""
    inputs: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for block in vit.blocks]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def undisturbed(vit: ViT) -> Iterator[None]:
    """Inside, the model is in eval mode; afterwards each part is in the mode it was in, also after an exception."""
    before = [(module, module.training) for module in vit.modules()]
    vit.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
