"""A batch of embedded images and the question about them: the input of every explanation method.

Shapes: B batch, T tokens, R prefix tokens, P patches, D width, Y classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.explanation.recording import Record, promote_to_float32, recording
from vitrail.explanation.targets import ClassTarget, TargetRule, make_target_rule
from vitrail.model.position import Rotate
from vitrail.model.vit import ViT
from vitrail.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS

MAX_BATCH_TOKENS = 1 << 14  # tokens that pass through the model at once, so that memory does not grow with the batch


@dataclass
class PatchInputs:
    """A batch of images as vectors of patches, (B, T, D), the rest of the model, and the explained score.

    The score of an image is the sum of its logits weighted by `target_BY`: 1 for the explained class, -1 for the class
    that it is compared with, if any. `target_rule` computes these weights from the logits of the intact images, so that
    the predicted class stays the same while patches are removed.
    """

    x_BTD: Tensor
    grid: tuple[int, int]
    target_rule: TargetRule
    baseline_1TD: Tensor  # the vectors of an image of the mean color
    temperature: float = field(default=1.0, kw_only=True)  # of probabilities; scores and log-odds are of logits without
    task: str = field(default=SINGLE_LABEL, kw_only=True)
    target_BY: Tensor | None = field(default=None, repr=False, kw_only=True)  # set by the first call of `fix_target`

    @property
    def patch_count(self) -> int:
        """The number of patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def max_batch_size(self) -> int:
        """The number of images that pass through the model at once."""
        raise NotImplementedError

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Applies the rest of the forward pass, in float32 at least: (B, T, D) -> (B, Y)."""
        raise NotImplementedError

    def logits_of_patches(self, keep_BP: Tensor, x_BTD: Tensor | None = None) -> Tensor:
        """Returns the logits without some patches, (B, Y); `keep_BP` has the indices of the others, row by row."""
        raise NotImplementedError

    def drop_prefix(self, x_BT: Tensor) -> Tensor:
        """Returns the values of the patches alone, (B, P)."""
        raise NotImplementedError

    def fix_target(self, logits_BY: Tensor) -> Tensor:
        """Returns the weight of each logit in the score, (B, Y); the first call computes it from the given logits."""
        if self.target_BY is None:
            self.target_BY = self.target_rule(logits_BY.detach())
        return self.target_BY

    def score(self, logits_BY: Tensor) -> Tensor:
        """Returns the logit of the explained class, minus that of the class it is compared with, if any: (B,)."""
        return (logits_BY * self.fix_target(logits_BY)).sum(dim=1)

    def log_odds(self, logits_BY: Tensor) -> Tensor:
        """log p / (1 - p) of the explained class, or its log-odds against the compared class, if any: (B,)."""
        # the logit of a label is its log-odds, and a number has none
        if logits_BY.shape[1] == 1 or self.task in (MULTI_LABEL, REGRESSION):
            return self.score(logits_BY)
        target_BY = self.fix_target(logits_BY)
        has_rival_B1 = (target_BY < 0).any(dim=1, keepdim=True)
        rivals_BY = (target_BY < 0) | ((target_BY == 0) & ~has_rival_B1)
        explained_B = (logits_BY * (target_BY > 0)).sum(dim=1)
        return explained_B - logits_BY.masked_fill(~rivals_BY, -torch.inf).logsumexp(dim=1)

    def probability(self, logits_BY: Tensor) -> Tensor:
        """Returns the calibrated p of the explained class, minus p of the compared class, if any: (B,)."""
        return (self.calibrated_probabilities(logits_BY) * self.fix_target(logits_BY)).sum(dim=1)

    def calibrated_probabilities(self, logits_BY: Tensor) -> Tensor:
        """Returns the probabilities that the classifier gives: those of the logits divided by the temperature."""
        return TASKS[self.task].to_probabilities(logits_BY / self.temperature)


@dataclass
class TokenInputs(PatchInputs):
    """Embedded tokens of a ViT, (B, R + P, D), and the ViT, which continues from them."""

    vit: ViT = field(kw_only=True)

    @property
    def max_batch_size(self) -> int:
        return max_batch_size(self.x_BTD.shape[1])

    @cached_property
    def rotation(self) -> Rotate | None:
        """The rotary position of all tokens; None for other positions."""
        return self.vit.position.rotation(*self.grid)

    @cached_property
    def intact_logits(self) -> Tensor:
        """The logits of the images with all patches, (B, Y), computed once, without a gradient."""
        with torch.inference_mode():
            return self.logits(self.x_BTD)

    @cached_property
    def recorded(self) -> tuple[Record, Tensor]:
        """The attention of every layer and the logits of one forward pass, computed once, without a gradient."""
        with torch.no_grad(), recording(self.vit) as record:
            logits_BY = self.logits(self.x_BTD)
        return record, logits_BY

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Applies the rest of the forward pass, in float32 at least: (B, T, D) -> (B, Y)."""
        return self.classify(self.vit.encode(x_BTD, self.rotation))

    def classify(self, x_BTD: Tensor) -> Tensor:
        """Applies the pool and the head, in float32 at least: (B, T, D) -> (B, Y)."""
        return promote_to_float32(self.vit.head(self.vit.pool(x_BTD)))

    def logits_of_patches(self, keep_BP: Tensor, x_BTD: Tensor | None = None) -> Tensor:
        """Returns the logits with only some patches, each at its own position, and all prefix tokens: (B, Y).

        `keep_BP` holds patch indices, row by row, the same number for each image. A ViT takes any set of tokens, so
        the other patches are removed and need no gray or blurred replacement (Jain et al. 2022, arXiv 2204.08945).
        """
        x_BTD = self.x_BTD if x_BTD is None else x_BTD
        prefix = self.vit.config.prefix_tokens
        prefix_BR = torch.arange(prefix, device=keep_BP.device).expand(len(keep_BP), -1)
        index_BT1 = torch.cat([prefix_BR, keep_BP + prefix], dim=1).unsqueeze(-1)
        kept_BTD = x_BTD.gather(1, index_BT1.expand(-1, -1, x_BTD.shape[-1]))
        rotation = self.vit.position.rotation(*self.grid, keep_BP)
        return self.classify(self.vit.encode(kept_BTD, rotation))

    def drop_prefix(self, x_BT: Tensor) -> Tensor:
        """Returns the values of the patches alone: (B, R + P) -> (B, P)."""
        return x_BT[:, self.vit.config.prefix_tokens :]


def embed_images(classifier: Classifier, pixels_BCHW: Tensor, targets: Sequence[ClassTarget | None]) -> TokenInputs:
    """Embeds uint8 pixels of the model's size; a target of None is the predicted class.

    Raises `UsageError` where the weights are inference tensors, which have no gradients.
    """
    vit = classifier.vit
    if next(vit.parameters()).is_inference():
        raise UsageError("the weights were made under torch.inference_mode", "load the model outside of it")
    mean_color = torch.zeros(1, *pixels_BCHW.shape[1:], device=classifier.device, dtype=vit.prefix.dtype)
    with torch.inference_mode(False), torch.no_grad():
        x_BTD = vit.embed(classifier.normalize(pixels_BCHW))
        grid = patch_grid(classifier, pixels_BCHW)
        mean_BTD = vit.embed(mean_color)
        rule = make_target_rule(targets)
        return TokenInputs(
            x_BTD, grid, rule, mean_BTD, vit=vit, temperature=classifier.temperature, task=classifier.task
        )


def patch_grid(classifier: Classifier, pixels_BCHW: Tensor) -> tuple[int, int]:
    """Returns the number of rows and columns of patches."""
    patch = classifier.vit.config.patch
    return pixels_BCHW.shape[-2] // patch, pixels_BCHW.shape[-1] // patch


def max_batch_size(tokens: int) -> int:
    """Returns the number of images of this many tokens that pass through the model at once."""
    return max(1, MAX_BATCH_TOKENS // tokens)
