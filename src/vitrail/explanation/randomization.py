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
    """Copies with shuffled weights of the head, of the upper half and of all layers: `draws` of each, one at a time."""
    blocks = range(len(classifier.vit.blocks))
    upper_half = [f"blocks.{i}." for i in blocks[len(blocks) // 2 :]] + ["norm.", "pool.", "head."]
    prefixes_of = dict(zip(SHUFFLED_PARTS, [("head.",), tuple(upper_half), ("",)], strict=True))
    for number, part in enumerate(SHUFFLED_PARTS * draws):
        vit = copy.deepcopy(classifier.vit)
        shuffle_parameters(vit, prefixes_of[part], 1000 * seed + number)
        yield replace(classifier, vit=vit)


@torch.no_grad()
def shuffle_parameters(vit: nn.Module, prefixes: tuple[str, ...], seed: int) -> None:
    """Puts the values of each parameter whose name starts with one of the prefixes into random order, in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in vit.named_parameters():
        if name.startswith(prefixes):
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
