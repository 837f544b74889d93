"""transformers' `config.json` and `preprocessor_config.json` -> config, classes and preprocessing."""

import json
from pathlib import Path

from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.model.config import ViTConfig, to_pair
from vitrail.weights.families.hf import READERS
from vitrail.weights.parsed_config import RESAMPLING, Document, ParsedConfig, make_unique

PREPROCESSOR_FILE = "preprocessor_config.json"


def parse_hf_config(document: Document, preprocessor: Document | None) -> ParsedConfig:
    """Parses the two documents; raises `VitrailError` for a model that is not a known ViT."""
    model_type = document.get("model_type")
    if model_type not in READERS:
        raise VitrailError(
            f"transformers' model {model_type!r} is not a ViT that vitrail knows",
            did_you_mean(str(model_type), READERS),
        )
    architecture = (document.get("architectures") or [""])[0]
    classes = parse_classes(document) if "ForImageClassification" in architecture else ()
    layout, config = READERS[model_type](document, architecture, len(classes))
    return ParsedConfig(layout, config, classes, parse_preprocessor(preprocessor, config))


def parse_classes(document: Document) -> tuple[str, ...]:
    """Returns the class names in the order of the outputs; transformers omits its own default, two names."""
    names = document.get("id2label") or {str(index): f"LABEL_{index}" for index in range(2)}
    return make_unique(tuple(str(names[key]) for key in sorted(names, key=int)))


def read_preprocessor_file(folder: Path) -> Document | None:
    """Returns the `preprocessor_config.json` of a folder, or None; raises `VitrailError` if it cannot be read."""
    path = folder / PREPROCESSOR_FILE
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VitrailError(f"{path} cannot be read ({error})", "download it again") from None
    return document if isinstance(document, dict) else None


def parse_preprocessor(document: Document | None, config: ViTConfig) -> Preprocess:
    """Returns the preprocessing of an image processor; without one, the model's size and 0.5 for mean and std."""
    height, width = to_pair(config.image_size)
    half = (0.5,) * config.channels
    if document is None:
        return Preprocess(image_size=(height, width), fit="stretch", engine="transformers", mean=half, std=half)
    resample = document.get("resample", 2)
    if resample not in RESAMPLING:
        raise UsageError(f"the resampling {resample!r} is not known", "bilinear (2) and bicubic (3) are")
    is_normalized = document.get("do_normalize", True)
    shared: Document = {
        "engine": "transformers",
        "interpolation": RESAMPLING[resample],
        "mean": tuple(document["image_mean"]) if is_normalized else (0.0,) * config.channels,
        "std": tuple(document["image_std"]) if is_normalized else (1.0,) * config.channels,
    }
    size = parse_size(document.get("size", {}))
    crop = parse_size(document.get("crop_size") or {}) if document.get("do_center_crop") else {}
    crop_size = (crop["height"], crop["width"]) if crop else None
    if "shortest_edge" in size:
        edge = size["shortest_edge"]
        final = crop_size or (edge, edge)
        fraction = min(1.0, min(final) / edge)
        return Preprocess(image_size=round_to_patches(final, config), fit="crop", crop_fraction=fraction, **shared)
    resized = (size.get("height", height), size.get("width", width))
    final = crop_size or resized
    fraction = final[0] / resized[0]
    return Preprocess(image_size=round_to_patches(final, config), fit="stretch", crop_fraction=fraction, **shared)


def parse_size(size: int | Document) -> Document:
    """Returns a size as a document; one number means a square."""
    return {"height": size, "width": size} if isinstance(size, int) else size


def round_to_patches(size: tuple[int, int], config: ViTConfig) -> tuple[int, int]:
    """Rounds a size down to whole patches: a convolution without padding uses no more."""
    return size[0] // config.patch * config.patch, size[1] // config.patch * config.patch
