"""The name of a public model -> its weights: a card, CARD@FILE, a file, a folder, a hub id or a hub id@revision."""

from dataclasses import replace
from pathlib import Path

from vitrail.errors import UsageError, did_you_mean
from vitrail.weights.bundled import bundled_classifiers
from vitrail.weights.cards import find_card, is_card_name, load_cards
from vitrail.weights.hub import WEIGHTS_FILE, fetch_file, fetch_folder
from vitrail.weights.weight_files import PublicModel, load_weight_file, load_weight_folder

RUNS = "runs"  # the parent of default run folders
RUN_FILES = ("recipe.json", "classifier.safetensors")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".ckpt", ".tar", ".pkl")


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
    name, at, suffix = model.partition("@")
    revision = suffix if at and is_revision(name, suffix) else None
    if at and revision is None:
        return load_weight_file(find_weight_file(Path(suffix)), find_card(name), torch_files=torch_files)
    if is_card_name(name):
        return fetch_card(name, revision)
    if Path(name).suffix or path.is_absolute() or model.startswith((".", "~")) or name.count("/") != 1:
        near = name_cards_without_library(model) or did_you_mean(model, [*load_cards(), *bundled_classifiers()])
        raise UsageError(
            f"there is no run folder or artifact {model!r}, and no card with this name",
            near or "vitrail train makes a run, vitrail models lists the cards",
        )
    refuse_missing_run(path)
    return load_repository(model)


def name_cards_without_library(name: str) -> str | None:
    """Returns a hint with the cards that have this name behind the name of their library, with or without a tag."""
    cards = [card for card in load_cards() if (short := card.partition("/")[2]) == name or short.startswith(f"{name}.")]
    untagged = sorted({card.partition(".")[0] if "." not in name else card for card in cards})
    return f"did you mean {' or '.join(untagged)}?" if name and untagged else None


def refuse_missing_run(path: Path) -> None:
    """Raises `UsageError` for a path that does not exist in a folder of runs: it is mistyped, and no hub id."""
    siblings = sorted(str(each) for each in path.parent.iterdir() if is_run(each)) if path.parent.is_dir() else []
    if siblings or path.parent.name == RUNS:
        raise UsageError(f"there is no folder {path}", did_you_mean(str(path), siblings) or "vitrail train makes a run")


def is_run(path: Path) -> bool:
    """Returns whether a path is the folder of a run."""
    return any((path / name).is_file() for name in RUN_FILES)


def is_revision(name: str, text: str) -> bool:
    """Returns whether the text behind `name@` is a revision of a hub repository, and not a file."""
    if is_card_name(name) and (find_card(name).file_name or Path(text).exists()):
        return False
    looks_like_file = Path(text).suffix in WEIGHT_SUFFIXES or text.startswith((".", "~")) or Path(text).is_absolute()
    return "/" in name and bool(text) and not looks_like_file


def find_weight_file(path: Path) -> Path:
    """Returns the path itself, or the weight file in it if it is a folder."""
    files = [path / name for name in (WEIGHTS_FILE, "pytorch_model.bin")] if path.is_dir() else []
    return next((file for file in files if file.is_file()), path)


def fetch_card(name: str, revision: str | None = None) -> PublicModel:
    """Loads the model of a card from the cache or the network."""
    card = find_card(name)
    if card.file_name:
        return load_weight_file(fetch_file(card), card, torch_files=True)
    address = card.source + (f"@{revision}" if revision else "")
    if card.get_layout().library != "timm":
        return load_repository(address)
    folder = fetch_folder(address)
    model = load_weight_file(folder / WEIGHTS_FILE, card)
    return replace(model, origin={**model.origin, "commit": folder.name})


def load_repository(address: str) -> PublicModel:
    """Loads the model of a hub repository, from the cache or the network; its origin names repository and commit."""
    folder = fetch_folder(address)
    model = load_weight_folder(folder)
    return replace(model, origin={**model.origin, "source": address.partition("@")[0], "commit": folder.name})
