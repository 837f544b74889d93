"""Weight files and folders of other libraries -> config, classes, preprocessing and weights.

Weights do not determine the number of heads, the activation, the pooling, the preprocessing or the class names. These
come from a card or from the `config.json` beside the weights; they are never guessed.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError
from vitrail.model.config import ViTConfig
from vitrail.tasks import SINGLE_LABEL, TaskName
from vitrail.weights.cards import Card, load_cards
from vitrail.weights.classes import get_class_names
from vitrail.weights.config_files import parse_config
from vitrail.weights.conversion import Layout, export_weights, import_weights, meta_state_dict
from vitrail.weights.layouts import LAYOUTS, find_layouts, is_same_model
from vitrail.weights.tensor_files import SHARD_INDEX, read_tensors
from vitrail.weights.wrappers import strip_wrappers

WEIGHT_FILES = ("model.safetensors", SHARD_INDEX, "pytorch_model.bin", "weights.npz")

MARKED_CLASSES = 7_919  # a prime number that no other dimension has: marks the tensors of the head


@dataclass(frozen=True)
class PublicModel:
    """A model of another library in our terms."""

    config: ViTConfig
    classes: tuple[str, ...]
    preprocess: Preprocess
    weights: dict[str, Tensor]  # under our names
    origin: dict[str, Any] = field(default_factory=dict)
    task: TaskName = SINGLE_LABEL


def load_weight_file(path: Path, card: Card | None = None, *, torch_files: bool = False) -> PublicModel:
    """Loads a weight file with its card; without `card`, finds it by the file's name, or by names and shapes.

    Raises `VitrailError` naming a tensor that is missing, unknown or of another shape, `UsageError` if several cards
    match.
    """
    card = card or find_card_by_file(path)
    is_allowed = torch_files or (card is not None and matches_hash(path, card))
    tensors = strip_wrappers(read_tensors(path, torch_files=is_allowed), path)
    return load_by_card(path, card, tensors) if card else load_by_shapes(path, tensors)


def load_by_card(path: Path, card: Card, tensors: dict[str, Tensor]) -> PublicModel:
    """Converts tensors with a card; raises `VitrailError` if they are not the card's model.

    A head with another number of outputs, as after fine-tuning, has numbered classes.
    """
    published = card.build_config()
    keys = [card.layout, *(key for key, _ in find_layouts(tensors) if is_same_model(key, card.layout))]
    errors = []
    for key in dict.fromkeys(keys):
        if (root := LAYOUTS[key].find_root(tensors)) is None:
            continue
        config = replace(published, classes=count_outputs(LAYOUTS[key], root, published, tensors))
        try:
            weights = import_weights(LAYOUTS[key], root, config, tensors)
        except VitrailError as error:
            errors.append(error)
        else:
            return build_card_model(path, card, config, weights)
    if errors:
        raise VitrailError(f"{path} is not {card.name}: {errors[0].sentence}", errors[0].hint)
    layout = card.get_layout().description
    raise VitrailError(
        f"{path} is not {card.name}: its tensors are not named as in {layout}", describe_tensors(tensors)
    )


def count_outputs(layout: Layout, root: str, config: ViTConfig, tensors: dict[str, Tensor]) -> int:
    """Returns the number of outputs of the head in a file, if it has one, else that of the config."""
    with_head = replace(config, classes=MARKED_CLASSES)
    try:
        expected = export_weights(layout, root, with_head, meta_state_dict(with_head))
    except VitrailError:  # the layout has no head
        return config.classes
    heads = [name for name, tensor in expected.items() if tensor.shape[:1] == (MARKED_CLASSES,) and name in tensors]
    return tensors[heads[0]].shape[0] if heads else config.classes


def load_by_shapes(path: Path, tensors: dict[str, Tensor]) -> PublicModel:
    """Converts tensors with the only card that they match; cards that describe the same model count as one.

    Raises `VitrailError` if no card matches, `UsageError` if several do.
    """
    matches = match_cards(tensors)
    if not matches:
        raise VitrailError(
            f"{path} matches no known checkpoint",
            describe_tensors(tensors) + "; put its config.json beside it and name the folder, or use CARD@FILE",
        )
    card, root = matches[0]
    models = {(each.layout, str(each.build_config()), str(each.preprocess), each.labels) for each, _ in matches}
    if len(models) > 1:
        names = sorted(each.name for each, _ in matches)
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        raise UsageError(
            f"{path} could be {', '.join(names[:6])}{more}", f"name one of them, for example {names[0]}@{path.name}"
        )
    config = card.build_config()
    key = next(key for key, _ in find_layouts(tensors) if is_same_model(key, card.layout))
    return build_card_model(path, card, config, import_weights(LAYOUTS[key], root, config, tensors))


def build_card_model(path: Path, card: Card, config: ViTConfig, weights: dict[str, Tensor]) -> PublicModel:
    """Returns the model of a card with these weights."""
    origin = {"card": card.name, "file": path.name, "license": card.license, "source": card.source}
    published = card.build_config().classes
    classes = card.list_classes() if config.classes == published else get_class_names("class", config.classes)
    return PublicModel(config, classes, card.build_preprocess(), weights, origin)


def load_weight_folder(folder: Path, *, torch_files: bool = False) -> PublicModel:
    """Loads a folder of a hub repository: `config.json`, weights, and `preprocessor_config.json` if it exists.

    Raises `UsageError` if the folder has no `config.json`, `VitrailError` for files that cannot be read.
    """
    parsed = parse_config(read_config_file(folder), folder)
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        files = ", ".join(WEIGHT_FILES)
        raise VitrailError(f"{folder} has a config.json and no weights ({files})", "download it again")
    tensors = strip_wrappers(read_tensors(path, torch_files=torch_files), path)
    tensors = {parsed.renamed.get(name, name): tensor for name, tensor in tensors.items()}
    layout = LAYOUTS[parsed.layout]
    root = layout.find_root(tensors)
    try:
        weights = import_weights(layout, layout.roots[0] if root is None else root, parsed.config, tensors)
    except VitrailError as error:
        raise VitrailError(f"{path}: {error.sentence}", error.hint) from None
    origin = {"source": folder.name, "layout": parsed.layout}
    return PublicModel(parsed.config, parsed.classes, parsed.preprocess, weights, origin, parsed.task)


def read_config_file(folder: Path) -> dict[str, Any]:
    """Returns the `config.json` of a folder; raises as `load_weight_folder`."""
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} has neither a classifier nor a config.json", "name a file in it") from None
    except (ValueError, OSError, RecursionError) as error:
        raise VitrailError(f"{path} cannot be read ({error})", "download it again") from None
    if not isinstance(document, dict):
        raise VitrailError(f"{path} is not a JSON object")
    return document


# Which card a file belongs to


def find_card_by_file(path: Path) -> Card | None:
    """Returns the card whose published file has this name, if there is exactly one."""
    matches = [card for card in load_cards().values() if card.file_name and card.file_name == path.name]
    return matches[0] if len(matches) == 1 else None


def matches_hash(path: Path, card: Card) -> bool:
    """Returns whether the file has the SHA-256 that the card's publisher states."""
    if not card.sha256 or not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(card.sha256)


def match_cards(tensors: dict[str, Tensor]) -> list[tuple[Card, str]]:
    """Returns the cards whose tensors have the names and shapes of these, each with the root in the file."""
    roots = dict(find_layouts(tensors))
    norms = ("norm.weight", "ln.weight", "norm/scale")
    widths = {tensor.shape[0] for name, tensor in tensors.items() if tensor.ndim and name.endswith(norms)}
    matches = []
    for card in load_cards().values():
        for key, root in roots.items():
            if is_same_model(key, card.layout) and has_card_shapes(tensors, card, key, root, widths):
                matches.append((card, root))
    return matches


def has_card_shapes(tensors: dict[str, Tensor], card: Card, key: str, root: str, widths: set[int]) -> bool:
    """Returns whether the file has all tensors of a card in a layout; `widths` are the lengths of the file's norms."""
    config = card.build_config()
    if widths and config.width not in widths:
        return False
    try:
        expected = export_weights(LAYOUTS[key], root, config, meta_state_dict(config))
    except VitrailError:
        return False
    return all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in expected.items())


def describe_tensors(tensors: dict[str, Tensor]) -> str:
    """Returns a hint with the layouts that a file may have, or with its first tensors."""
    descriptions = [LAYOUTS[key].description for key, _ in find_layouts(tensors)]
    if descriptions:
        return f"its tensors are named as in {' or '.join(descriptions)}"
    return f"its tensors are {', '.join(sorted(tensors)[:4])}, ...; vitrail reads Vision Transformers only"
