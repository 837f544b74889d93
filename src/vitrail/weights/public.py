"""MODEL -> someone else's weights: a card, CARD@FILE, a file, a folder, a hub id."""

from dataclasses import replace
from pathlib import Path

from vitrail.errors import UsageError, did_you_mean
from vitrail.weights.bundled import bundled_classifiers
from vitrail.weights.cards import find_card, load_cards
from vitrail.weights.hub import fetch_file, fetch_folder
from vitrail.weights.weight_files import PublicModel, load_weight_file, load_weight_folder


def load_public_model(model: str, *, torch_files: bool = False) -> PublicModel:
    """Loads the model that MODEL names, its weights in float32.

    Raises `UsageError` with the nearest names for an unknown name, `VitrailError` for files that cannot be read.
    """
    loaded = _load(model, torch_files)
    return replace(loaded, weights={name: tensor.float() for name, tensor in loaded.weights.items()})


def _load(model: str, torch_files: bool) -> PublicModel:
    """The weights that MODEL names.

    Raises `UsageError` with the nearest names where nothing is called so, `VitrailError` for what cannot be read.
    """
    path = Path(model)
    if path.is_dir():
        return load_weight_folder(path, torch_files=torch_files)
    if path.is_file():
        return load_weight_file(path, torch_files=torch_files)
    name, at, file = model.partition("@")
    if at:
        card = find_card(name)
        if Path(file).is_dir():
            inside = [each for each in ("model.safetensors", "pytorch_model.bin") if Path(file, each).is_file()]
            file = str(Path(file, inside[0])) if inside else file
        return load_weight_file(Path(file), card, torch_files=torch_files)
    if model in load_cards() or any(each.rpartition(".")[0] == model for each in load_cards()):
        card = find_card(model)
        if "://" in card.source:
            return load_weight_file(fetch_file(card), card, torch_files=True)
        folder = fetch_folder(card.source)
        return (
            load_weight_file(folder / "model.safetensors", card)
            if card.layout.startswith("timm")
            else load_weight_folder(folder)
        )
    if path.suffix or path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        near = did_you_mean(model, [*load_cards(), *bundled_classifiers()])
        raise UsageError(
            f"there is no run folder or artefact {model!r}, nor a card of that name",
            near or "vitrail train makes a run, vitrail models lists the cards",
        )
    return load_weight_folder(fetch_folder(model))
