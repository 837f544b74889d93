"""The model parameter randomization test: copies of a classifier with shuffled weights.

Adebayo et al. 2018 (arXiv 1810.03292), with the values of each tensor in another order: this destroys what the model
learned and keeps the distribution of its weights.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from vitrail.classifier import Classifier

DRAWS = 3  # one draw is not enough: another shuffled head changes the score more than other images do
SHUFFLED_PARTS = ("head", "upper half", "all layers")
SHUFFLED_MODELS = len(SHUFFLED_PARTS) * DRAWS


def shuffled_models(classifier: Classifier, seed: int, draws: int = DRAWS) -> Iterator[Classifier]:
    """Yields models with shuffled weights of the head, of the upper half and of all layers, `draws` of each.

    They are one copy of the classifier, whose weights change with the next one: use each before the next.
    """
    blocks = range(len(classifier.vit.blocks))
    upper_half = [f"blocks.{i}." for i in blocks[len(blocks) // 2 :]] + ["norm.", "pool.", "head."]
    prefixes_of = dict(zip(SHUFFLED_PARTS, [("head.",), tuple(upper_half), ("",)], strict=True))
    shuffled = replace(classifier, vit=copy.deepcopy(classifier.vit))
    for number, part in enumerate(SHUFFLED_PARTS * draws):
        shuffle_parameters(shuffled.vit, classifier.vit, prefixes_of[part], 1000 * seed + number)
        yield shuffled


@torch.no_grad()
def shuffle_parameters(vit: nn.Module, original: nn.Module, prefixes: tuple[str, ...], seed: int) -> None:
    """Gives each parameter the values of the original, in random order if its name starts with one of the prefixes."""
    generator = torch.Generator().manual_seed(seed)
    for (name, parameter), values in zip(vit.named_parameters(), original.parameters(), strict=True):
        if name.startswith(prefixes):
            order = torch.randperm(values.numel(), generator=generator).to(values.device)
            parameter.copy_(values.flatten()[order].view_as(values))
        else:
            parameter.copy_(values)
