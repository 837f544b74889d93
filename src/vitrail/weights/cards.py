"""Known public checkpoints, as data: what each is, how its images are prepared, what its outputs are called.

The rows are in `cards.jsonl`, made by `tools/make_cards.py` from what timm, torchvision and open_clip say of their
weights, and checked against those libraries by the tests. A card holds facts about a checkpoint, never its weights.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, did_you_mean
from vitrail.model import ViTConfig
from vitrail.weights.classes import get_class_names
from vitrail.weights.config_json import config_from_json, position_to_json
from vitrail.weights.layouts import LAYOUTS, Layout


@dataclass(frozen=True, kw_only=True)
class Card:
    """A public checkpoint."""

    name: str
    layout: str
    config: dict[str, Any]  # what differs from ViT-B/16 without classes
    preprocess: dict[str, Any]
    labels: str = ""  # the set whose names the outputs bear; "" for a backbone or an embedding
    license: str = "unknown"
    source: str = ""  # a hub id, or the address of one file
    sha256: str = ""  # of the file, or the beginning of it
    accuracy: dict[str, float] = field(default_factory=dict)  # as its publisher reports it: top1, top5 on ImageNet-1k

    @property
    def file_name(self) -> str:
        """The name of the file where the source is one."""
        return self.source.rsplit("/", 1)[-1] if "://" in self.source else ""

    def build_config(self) -> ViTConfig:
        """The ViT's config, positions resized by the family's rule."""
        learned = position_to_json(LAYOUTS[self.layout].learned)
        return config_from_json({"position": learned, **self.config})

    def build_preprocess(self) -> Preprocess:
        """How images are prepared."""
        return Preprocess.from_json(self.preprocess)

    def list_classes(self) -> tuple[str, ...]:
        """The outputs' names; none for a backbone or an embedding."""
        return get_class_names(self.labels, self.build_config().classes)

    def get_layout(self) -> Layout:
        """The layout of its file."""
        return LAYOUTS[self.layout]


@cache
def load_cards() -> dict[str, Card]:
    """All cards by name."""
    lines = files("vitrail.weights").joinpath("cards.jsonl").read_text(encoding="utf-8").splitlines()
    return {card.name: card for card in (Card(**json.loads(line)) for line in lines)}


def find_card(name: str) -> Card:
    """The card of this name; a timm or torchvision name may stand without its default tag.

    Raises `UsageError` with the nearest names.
    """
    known = load_cards()
    if name in known:
        return known[name]
    tagged = [each for each in known if each.rpartition(".")[0] == name]
    if len(tagged) == 1:
        return known[tagged[0]]
    if tagged:
        raise UsageError(f"{name!r} is several checkpoints", f"name one of them: {', '.join(sorted(tagged))}")
    raise UsageError(f"there is no card named {name!r}", did_you_mean(name, known) or "vitrail models lists the cards")
