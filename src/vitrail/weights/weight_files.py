"""A file or folder that someone else wrote -> what a classifier is made of.

What the weights do not say (heads, activation, pooling, preprocessing, names of classes) comes from a card or from the
`config.json` beside them; it is never guessed.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError
from vitrail.model import ViTConfig
from vitrail.weights import layouts
from vitrail.weights.cards import Card, load_cards
from vitrail.weights.configs import parse_config
from vitrail.weights.layouts import LAYOUTS, find_layouts
from vitrail.weights.tensor_files import SHARD_INDEX, read_tensors

WEIGHT_FILES = ("model.safetensors", SHARD_INDEX, "pytorch_model.bin", "weights.npz")


@dataclass(frozen=True)
class PublicModel:
    """Someone else's ViT in our terms."""

    config: ViTConfig
    classes: tuple[str, ...]
    preprocess: Preprocess
    weights: dict[str, Tensor]  # under our names, in the file's precision
    origin: dict[str, Any] = field(default_factory=dict)


def load_weight_file(path: Path, card: Card | None = None, *, torch_files: bool = False) -> PublicModel:
    """A weight file by the card it belongs to, which is looked for if none is named.

    Raises `VitrailError` naming a tensor that is missing, misshapen or unknown, `UsageError` where several cards fit.
    """
    pinned = card or find_card_by_file(path)
    allowed = torch_files or (pinned is not None and matches_hash(path, pinned))
    tensors = read_tensors(path, torch_files=allowed)
    if pinned is None:
        return _by_shapes(path, tensors)
    config = pinned.build_config()
    problems = []
    for key in (pinned.layout, *(other for other, _ in find_layouts(tensors) if is_same_family(other, pinned.layout))):
        for root in LAYOUTS[key].roots:
            if not all(layouts.full_name(mark, root) in tensors for mark in LAYOUTS[key].marks):
                continue
            try:
                return _by_card(path, pinned, config, layouts.import_weights(LAYOUTS[key], root, config, tensors))
            except VitrailError as error:
                problems.append(error)
    if problems:
        raise VitrailError(f"{path} is not {pinned.name}: {problems[0].sentence}", problems[0].hint)
    raise VitrailError(
        f"{path} is not {pinned.name}: it is not written as {LAYOUTS[pinned.layout].about} is",
        describe_tensors(tensors),
    )


def is_same_family(one: str, other: str) -> bool:
    """Whether two layouts are two ways of writing one family: torchvision's two."""
    return one.partition("-")[0] == other.partition("-")[0] == "torchvision"


def load_weight_folder(folder: Path, *, torch_files: bool = False) -> PublicModel:
    """A folder in the hub's layout: `config.json`, weights, perhaps `preprocessor_config.json`."""
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} has neither a classifier nor a config.json", "name a file in it") from None
    except (ValueError, OSError, RecursionError) as error:
        raise VitrailError(f"{folder / 'config.json'} cannot be read ({error})", "download it again") from None
    if not isinstance(document, dict):
        raise VitrailError(f"{folder / 'config.json'} is not a JSON object")
    found = parse_config(document, folder)
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise VitrailError(
            f"{folder} has a config.json and no weights ({', '.join(WEIGHT_FILES)})", "download it again"
        )
    tensors = read_tensors(path, torch_files=torch_files)
    roots = LAYOUTS[found.layout].roots
    root = next(
        (r for r in roots if all(layouts.full_name(m, r) in tensors for m in LAYOUTS[found.layout].marks)), roots[0]
    )
    try:
        weights = layouts.import_weights(LAYOUTS[found.layout], root, found.config, tensors)
    except VitrailError as error:
        raise VitrailError(f"{path}: {error.sentence}", error.hint) from None
    origin = {"source": folder.name, "layout": found.layout}
    return PublicModel(found.config, found.classes, found.preprocess, weights, origin)


def find_card_by_file(path: Path) -> Card | None:
    """The card whose file has this name, if there is just one."""
    found = [card for card in load_cards().values() if card.file_name and card.file_name == path.name]
    return found[0] if len(found) == 1 else None


def matches_hash(path: Path, card: Card) -> bool:
    """Whether the file is, byte for byte, the one that the card's publisher names."""
    if not card.sha256 or not path.is_file():
        return False
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(card.sha256)


def match_cards(tensors: dict[str, Tensor]) -> list[tuple[Card, str]]:
    """The cards whose tensors have just these names and shapes, each with the root."""
    found = []
    roots = dict(find_layouts(tensors))
    norms = ("norm.weight", "ln.weight", "norm/scale")
    size = {tensor.shape[0] for name, tensor in tensors.items() if tensor.ndim and name.endswith(norms)}
    for card in load_cards().values():
        for key in (each for each in roots if each == card.layout or is_same_family(each, card.layout)):
            config = card.build_config()
            if size and config.width not in size:
                continue
            try:
                theirs = layouts.export_weights(LAYOUTS[key], roots[key], config, layouts.meta_state_dict(config))
            except VitrailError:
                continue
            if all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in theirs.items()):
                found.append((card, roots[key]))
    return found


def _by_shapes(path: Path, tensors: dict[str, Tensor]) -> PublicModel:
    """The one card that a file fits; several that say the same are one."""
    found = match_cards(tensors)
    if not found:
        raise VitrailError(
            f"{path} fits no known checkpoint",
            describe_tensors(tensors) + "; put its config.json beside it and name the folder, or say CARD@FILE",
        )
    card, root = found[0]
    same = {(other.layout, str(other.build_config()), str(other.preprocess), other.labels) for other, _ in found}
    if len(same) > 1:
        names = sorted(other.name for other, _ in found)
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        raise UsageError(
            f"{path} could be {', '.join(names[:6])}{more}", f"say which, for instance {names[0]}@{path.name}"
        )
    config = card.build_config()
    key = next(each for each, _ in find_layouts(tensors) if each == card.layout or is_same_family(each, card.layout))
    return _by_card(path, card, config, layouts.import_weights(LAYOUTS[key], root, config, tensors))


def _by_card(path: Path, card: Card, config: ViTConfig, weights: dict[str, Tensor]) -> PublicModel:
    origin = {"card": card.name, "file": path.name, "license": card.license, "source": card.source}
    return PublicModel(config, card.list_classes(), card.build_preprocess(), weights, origin)


def describe_tensors(tensors: dict[str, Tensor]) -> str:
    """A hint: the layouts a file may have, or its first tensors."""
    found = [LAYOUTS[key].about for key, _ in find_layouts(tensors)]
    if found:
        return f"it is written like {' or '.join(found)}"
    return f"its tensors are {', '.join(sorted(tensors)[:4])}, ...; vitrail reads Vision Transformers only"
