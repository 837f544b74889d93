"""Known public checkpoints as data: config, preprocessing, class names, license and source of each.

The rows are in `cards.jsonl`. `tools/make_cards.py` makes it from the metadata of timm, torchvision and open_clip, and
the tests compare it with these libraries. A card holds facts about a checkpoint, never its weights.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, did_you_mean
from vitrail.model.config import ViTConfig
from vitrail.weights.classes import get_class_names
from vitrail.weights.config_json import config_from_json, position_to_json
from vitrail.weights.conversion import Layout
from vitrail.weights.layouts import LAYOUTS


@dataclass(frozen=True, kw_only=True)
class Card:
    """A public checkpoint."""

    name: str
    layout: str  # a key of LAYOUTS
    config: dict[str, Any]  # the fields that differ from ViT-B/16 without classes
    preprocess: dict[str, Any]
    labels: str = ""  # the set of classes, such as imagenet-1k; "" for a backbone or an embedding
    license: str = "unknown"
    source: str = ""  # a hub id, or the URL of one file
    sha256: str = ""  # the hash of the file, or its first digits
    accuracy: dict[str, float] = field(default_factory=dict)  # on ImageNet-1k, as published: top1, top5

    @property
    def file_name(self) -> str:
        """The name of the file if the source is a URL, else ""."""
        return self.source.rsplit("/", 1)[-1] if "://" in self.source else ""

    def build_config(self) -> ViTConfig:
        """Returns the ViT's config; positions are resized as the layout's family does."""
        position = position_to_json(self.get_layout().position)
        return config_from_json({"position": position, **self.config})

    def build_preprocess(self) -> Preprocess:
        return Preprocess.from_json(self.preprocess)

    def list_classes(self) -> tuple[str, ...]:
        """Returns the names of the outputs; none for a backbone or an embedding."""
        return get_class_names(self.labels, self.build_config().classes)

    def get_layout(self) -> Layout:
        return LAYOUTS[self.layout]


@cache
def load_cards() -> dict[str, Card]:
    """Returns all cards by name."""
    lines = files("vitrail.weights").joinpath("cards.jsonl").read_text(encoding="utf-8").splitlines()
    return {card.name: card for card in (Card(**json.loads(line)) for line in lines)}


def list_untagged(name: str) -> list[str]:
    """Returns the cards whose name without its last part, the tag of timm and torchvision, is `name`."""
    return [card for card in load_cards() if card.rpartition(".")[0] == name]


def is_card_name(name: str) -> bool:
    """Returns whether `find_card` knows the name, be it ambiguous."""
    return name in load_cards() or bool(list_untagged(name))


def find_card(name: str) -> Card:
    """Returns the card with this name; the tag of a timm or torchvision name may be omitted if it is the only one.

    Raises `UsageError` with the nearest names for an unknown name, and with all tags for an ambiguous one.
    """
    cards = load_cards()
    if name in cards:
        return cards[name]
    tagged = list_untagged(name)
    if len(tagged) == 1:
        return cards[tagged[0]]
    if tagged:
        raise UsageError(f"{name!r} is several checkpoints", f"name one of them: {', '.join(sorted(tagged))}")
    raise UsageError(f"there is no card named {name!r}", did_you_mean(name, cards) or "vitrail models lists the cards")
