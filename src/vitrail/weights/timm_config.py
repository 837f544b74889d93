"""timm's `config.json` -> layout, config, classes and preprocessing.

The document names an architecture and the arguments in which the model differs from it. The architecture itself is
known from a card, or from `architectures.jsonl` if no checkpoint of it was published.
"""

import json
import math
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from vitrail.data.options import Fit
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.model.config import ViTConfig, to_pair
from vitrail.weights.cards import Card, load_cards
from vitrail.weights.classes import get_class_names
from vitrail.weights.parsed_config import (
    RESAMPLING,
    Document,
    ParsedConfig,
    make_unique,
    split_image_size,
    to_image_size,
)
from vitrail.weights.timm_arguments import parse_arguments

CROP_MODES: dict[Any, Fit] = {"squash": "stretch", "border": "pad"}  # all others crop, which is timm's default
NORM_AFTER = {"fc_norm.weight": "norm.weight", "fc_norm.bias": "norm.bias"}


def parse_timm_config(document: Document) -> ParsedConfig:
    """Parses the document; raises `VitrailError` for an architecture or an argument that is not known."""
    architecture = document["architecture"]
    card = find_architecture(architecture)
    arguments = document.get("model_args") or {}
    if "global_pool" in document:  # all that versions of timm before 1.0.31 say about a pool without `model_args`
        arguments = {"global_pool": document["global_pool"], **arguments}
    pretrained = document.get("pretrained_cfg") or {}
    tokens, config = parse_arguments(arguments, card, architecture)
    base = card.build_config()
    size, rest = split_image_size(parse_image_size(arguments, pretrained, base), config.patch)
    if arguments.get("dynamic_img_pad") and any(rest):
        raise UsageError("timm's dynamic_img_pad pads images of this size; vitrail does not", "use another img_size")
    classes = document.get("num_classes", arguments.get("num_classes", base.classes))
    config = replace(config, image_size=to_image_size(size), classes=classes)
    return ParsedConfig(
        tokens.layout,
        config,
        parse_classes(document, pretrained, card, config),
        parse_pretrained_cfg(pretrained, card, config, parse_input_size(arguments, pretrained, base)),
        renamed=NORM_AFTER if tokens.is_normed_after else {},
    )


def find_architecture(name: str) -> Card:
    """Returns a card of this architecture of timm's; raises `VitrailError` if there is none."""
    known = load_architectures()
    if name not in known:
        raise VitrailError(f"timm's architecture {name!r} is not a ViT that vitrail knows", did_you_mean(name, known))
    return known[name]


@cache
def load_architectures() -> dict[str, Card]:
    """Returns a card for each architecture of timm's, by its name; one without a source for those without weights."""
    lines = files("vitrail.weights").joinpath("architectures.jsonl").read_text(encoding="utf-8").splitlines()
    unpublished = [Card(**json.loads(line)) for line in lines]
    published = [card for card in load_cards().values() if card.get_layout().library == "timm"]
    names = [card.name.partition("/")[2].rpartition(".")[0] for card in published]
    return {**{card.name.partition("/")[2]: card for card in unpublished}, **dict(zip(names, published, strict=True))}


# Fields of the config


def parse_image_size(arguments: Document, pretrained: Document, base: ViTConfig) -> tuple[int, int]:
    """Returns the image size, (height, width)."""
    size = arguments.get("img_size") or (pretrained["input_size"][1:] if "input_size" in pretrained else None)
    height, width = to_pair(size or base.image_size)
    return height, width


# Classes


def parse_classes(document: Document, pretrained: Document, card: Card, config: ViTConfig) -> tuple[str, ...]:
    """Returns the class names of the document; else the card's if the number is the same, else numbered names.

    timm writes names at the top or in `pretrained_cfg`: a list, or a document of names by index, which may have gaps.
    A name may be a code, such as a WordNet id, whose meaning `label_descriptions` has; timm shows the meaning too.
    """
    if config.classes == 0:
        return ()
    names = read_label(document, pretrained, "label_names") or document.get("labels") or []
    if isinstance(names, list) and len(names) != config.classes:  # the names of other outputs, or none
        labels = card.labels if config.classes == card.build_config().classes else "class"
        return get_class_names(labels, config.classes)
    by_index = {
        int(index): name for index, name in (names if isinstance(names, dict) else dict(enumerate(names))).items()
    }
    descriptions = read_label(document, pretrained, "label_descriptions") or {}
    shown = {index: str(descriptions.get(name) or name) for index, name in by_index.items()}
    return make_unique(tuple(shown.get(index, f"class {index}") for index in range(config.classes)))


def read_label(document: Document, pretrained: Document, key: str) -> Any:
    """Returns a field that timm writes at the top of the document, or in `pretrained_cfg`."""
    return document.get(key) or pretrained.get(key)


# Preprocessing


def parse_input_size(arguments: Document, pretrained: Document, base: ViTConfig) -> tuple[int, int]:
    """Returns the size to which timm prepares images; it may differ from the model's if that takes any size."""
    takes_any = not pretrained.get("fixed_input_size", True) or arguments.get("dynamic_img_size", False)
    ignored = ("img_size",) if takes_any and "input_size" in pretrained else ()
    return parse_image_size({k: v for k, v in arguments.items() if k not in ignored}, pretrained, base)


def parse_pretrained_cfg(document: Document, card: Card, config: ViTConfig, size: tuple[int, int]) -> Preprocess:
    """Returns the preprocessing of `pretrained_cfg`, the card's where it says nothing."""
    base = card.build_preprocess()
    height, width = size
    image_size, trim = split_image_size(size, config.patch)
    if document.get("interpolation", "bicubic") not in RESAMPLING.values():
        raise UsageError(f"the interpolation {document['interpolation']!r} is not known", "bilinear and bicubic are")
    fit = CROP_MODES.get(document.get("crop_mode"), "crop")
    fraction = document.get("crop_pct", base.crop_fraction)
    if fit == "pad" and fraction != 1:
        raise UsageError(f"timm's crop_mode 'border' with crop_pct {fraction!r} is not known", "with 1.0 it is")
    resized = math.floor(min(height, width) / fraction)
    mean, std = document.get("mean", base.mean), document.get("std", base.std)
    if len(mean) != config.channels:  # timm averages over the channels of a gray model
        mean, std = (sum(mean) / len(mean),) * config.channels, (sum(std) / len(std),) * config.channels
    return replace(
        base,
        image_size=image_size,
        trim=trim,
        crop_fraction=min(1.0, min(height, width) / resized),
        interpolation=document.get("interpolation", base.interpolation),
        fit=fit,
        mean=tuple(mean),
        std=tuple(std),
    )
