"""transformers' `config.json` and `preprocessor_config.json` -> config, classes and preprocessing."""

import json
import math
from pathlib import Path
from typing import Any

from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.model.config import ViTConfig, to_pair
from vitrail.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TaskName
from vitrail.weights.families.hf import READERS
from vitrail.weights.parsed_config import RESAMPLING, Document, make_unique, split_image_size

PREPROCESSOR_FILE = "preprocessor_config.json"
PROBLEM_TASKS: dict[str | None, TaskName] = {
    None: SINGLE_LABEL,
    "single_label_classification": SINGLE_LABEL,
    "multi_label_classification": MULTI_LABEL,
    "regression": REGRESSION,
}
SHORTEST_EDGE_PROCESSORS = ("CLIP", "Bit")  # in their files of older versions, one number is the shorter edge


def parse_hf_config(document: Document) -> tuple[str, ViTConfig, tuple[str, ...]]:
    """Returns layout, config and class names; raises `VitrailError` for a model that is not a known ViT."""
    model_type = document.get("model_type")
    if model_type not in READERS:
        raise VitrailError(
            f"transformers' model {model_type!r} is not a ViT that vitrail knows",
            did_you_mean(str(model_type), READERS),
        )
    architecture = (document.get("architectures") or [""])[0]
    if "ForImageClassification" in architecture:
        check_problem(document)
    classes = parse_classes(document) if "ForImageClassification" in architecture else ()
    layout, config = READERS[model_type](document, architecture, len(classes))
    return layout, config, classes


def check_problem(document: Document) -> None:
    """Raises `UsageError` for outputs of another kind: their probabilities would be wrong."""
    problem = document.get("problem_type")
    if problem not in PROBLEM_TASKS:
        raise UsageError(
            f"config.json has the problem_type {problem!r}, which is not known",
            f"known: {', '.join(filter(None, PROBLEM_TASKS))}",
        )
    if parse_task(document) == SINGLE_LABEL and len(document.get("id2label") or "two") == 1:
        raise UsageError("a classifier with a single output has no softmax", "it needs at least two classes")


def parse_classes(document: Document) -> tuple[str, ...]:
    """Returns the class names in the order of the outputs; transformers omits its own default, two names."""
    names = document.get("id2label") or {str(index): f"LABEL_{index}" for index in range(2)}
    return make_unique(tuple(str(names[key]) for key in sorted(names, key=int)))


def parse_task(document: Document) -> TaskName:
    """Returns the task that `problem_type` names."""
    return PROBLEM_TASKS.get(document.get("problem_type"), SINGLE_LABEL)


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


def parse_preprocessor(preprocessor: Document | None, document: Document, config: ViTConfig) -> Preprocess:
    """Returns the preprocessing of an image processor; without one, the model's size and 0.5 for mean and std.

    Raises `UsageError` for a processor that does what vitrail does not have.
    """
    native = to_pair((document.get("vision_config") or document).get("image_size") or config.image_size)
    if preprocessor is None:
        half = (0.5,) * config.channels
        return make_preprocess(native, config, fit="stretch", mean=half, std=half)
    check_processor(preprocessor)
    mean, std = parse_normalization(preprocessor, config.channels)
    shared: Document = {"interpolation": RESAMPLING[preprocessor.get("resample", 2)], "mean": mean, "std": std}
    size = parse_size(preprocessor)
    crop = preprocessor.get("crop_size") if preprocessor.get("do_center_crop") else None
    crop_size = (crop["height"], crop["width"]) if isinstance(crop, dict) else to_pair(crop) if crop else None
    if "shortest_edge" in size:
        edge = size["shortest_edge"]
        final = crop_size or (edge, edge)
        return make_preprocess(final, config, fit="crop", crop_fraction=min(1.0, min(final) / edge), **shared)
    resized = (size.get("height", native[0]), size.get("width", native[1]))
    final = crop_size or resized
    return make_preprocess(final, config, fit="stretch", crop_fraction=final[0] / resized[0], **shared)


def make_preprocess(final: tuple[int, int], config: ViTConfig, **fields: Any) -> Preprocess:
    """Returns the preprocessing for an image size; the model does not use what is beyond its last whole patch."""
    image_size, trim = split_image_size(final, config.patch)
    return Preprocess(image_size=image_size, trim=trim, engine="transformers", **fields)


def check_processor(document: Document) -> None:
    """Raises `UsageError` if a processor does not resize, or resamples or rescales as vitrail does not."""
    if (resample := document.get("resample", 2)) not in RESAMPLING:
        raise UsageError(f"the resampling {resample!r} is not known", "bilinear (2) and bicubic (3) are")
    if not document.get("do_resize", True):
        raise UsageError(
            f"{PREPROCESSOR_FILE} has do_resize=false: it takes images of the model's size only",
            "set it to true and add the size, if images may be resized",
        )
    if document.get("rescale_offset"):
        raise UsageError(f"{PREPROCESSOR_FILE} has a rescale_offset, which is not known")


def parse_normalization(document: Document, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std for pixels in [0, 1], whatever the processor multiplies pixels of 0 to 255 with."""
    mean, std = (0.0,) * channels, (1.0,) * channels
    if document.get("do_normalize", True):
        mean, std = tuple(document["image_mean"]), tuple(document["image_std"])
    factor = document.get("rescale_factor", 1 / 255) if document.get("do_rescale", True) else 1.0
    scale = 255 * factor
    if math.isclose(scale, 1.0):
        return mean, std
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def parse_size(document: Document) -> Document:
    """Returns the size to which a processor resizes: height and width, or the shorter edge; {} if it states none."""
    size = document.get("size") or {}
    if isinstance(size, int):
        kind = document.get("image_processor_type") or document.get("feature_extractor_type") or ""
        return {"shortest_edge": size} if kind.startswith(SHORTEST_EDGE_PROCESSORS) else {"height": size, "width": size}
    if size and set(size) not in ({"shortest_edge"}, {"height", "width"}):
        raise UsageError(f"{PREPROCESSOR_FILE} has the size {size}, which is not known")
    return dict(size)
