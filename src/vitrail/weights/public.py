"""MODEL -> someone else's weights: a card, CARD@FILE, a file, a folder, a hub id."""

from pathlib import Path

from vitrail.errors import UsageError, did_you_mean
from vitrail.weights.bundled import bundled_classifiers
from vitrail.weights.cards import cards, find_card
from vitrail.weights.weight_files import Foreign, read_file, read_folder
from vitrail.weights.hub import fetch_file, fetch_folder


def find_foreign(model: str, *, torch_files: bool = False) -> Foreign:
    """The weights that MODEL names.

    Raises `UsageError` with the nearest names where nothing is called so, `VitrailError` for what cannot be read.
    """
    path = Path(model)
    if path.is_dir():
        return read_folder(path, torch_files=torch_files)
    if path.is_file():
        return read_file(path, torch_files=torch_files)
    name, at, file = model.partition("@")
    if at:
        card = find_card(name)
        if Path(file).is_dir():
            inside = [each for each in ("model.safetensors", "pytorch_model.bin") if Path(file, each).is_file()]
            file = str(Path(file, inside[0])) if inside else file
        return read_file(Path(file), card, torch_files=torch_files)
    if model in cards() or any(each.rpartition(".")[0] == model for each in cards()):
        card = find_card(model)
        if "://" in card.source:
            return read_file(fetch_file(card), card, torch_files=True)
        folder = fetch_folder(card.source)
        return read_file(folder / "model.safetensors", card) if card.layout.startswith("timm") else read_folder(folder)
    if path.suffix or path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        near = did_you_mean(model, [*cards(), *bundled_classifiers()])
        raise UsageError(
            f"there is no run folder or artefact {model!r}, nor a card of that name",
            near or "vitrail train makes a run, vitrail models lists the cards",
        )
    return read_folder(fetch_folder(model))
