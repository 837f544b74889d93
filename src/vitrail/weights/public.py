"""The name of a public model -> its weights: a card, CARD@FILE, a file, a folder or a hub id."""

from dataclasses import replace
from pathlib import Path

from vitrail.errors import UsageError, did_you_mean
from vitrail.weights.bundled import bundled_classifiers
from vitrail.weights.cards import find_card, is_card_name, load_cards
from vitrail.weights.hub import WEIGHTS_FILE, fetch_file, fetch_folder
from vitrail.weights.weight_files import PublicModel, load_weight_file, load_weight_folder


def load_public_model(model: str, *, torch_files: bool = False) -> PublicModel:
    """Loads the model that MODEL names, with weights in float32.

    Raises `UsageError` with the nearest names for an unknown name, `VitrailError` for files that cannot be read.
    """
    loaded = resolve_model(model, torch_files)
    return replace(loaded, weights={name: tensor.float() for name, tensor in loaded.weights.items()})


def resolve_model(model: str, torch_files: bool) -> PublicModel:
    """Loads the model with weights in the file's precision; raises as `load_public_model`."""
    path = Path(model)
    if path.is_dir():
        return load_weight_folder(path, torch_files=torch_files)
    if path.is_file():
        return load_weight_file(path, torch_files=torch_files)
    name, at, file = model.partition("@")
    if at:
        return load_weight_file(find_weight_file(Path(file)), find_card(name), torch_files=torch_files)
    if is_card_name(model):
        return fetch_card(model)
    if path.suffix or path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        near = did_you_mean(model, [*load_cards(), *bundled_classifiers()])
        raise UsageError(
            f"there is no run folder or artifact {model!r}, and no card with this name",
            near or "vitrail train makes a run, vitrail models lists the cards",
        )
    return load_weight_folder(fetch_folder(model))


def find_weight_file(path: Path) -> Path:
    """Returns the path itself, or the weight file in it if it is a folder."""
    files = [path / name for name in (WEIGHTS_FILE, "pytorch_model.bin")] if path.is_dir() else []
    return next((file for file in files if file.is_file()), path)


def fetch_card(name: str) -> PublicModel:
    """Loads the model of a card from the cache or the network."""
    card = find_card(name)
    if card.file_name:
        return load_weight_file(fetch_file(card), card, torch_files=True)
    folder = fetch_folder(card.source)
    if card.get_layout().library == "timm":
        return load_weight_file(folder / WEIGHTS_FILE, card)
    return load_weight_folder(folder)
