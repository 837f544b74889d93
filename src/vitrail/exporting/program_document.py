"""What every exported program says about itself: an artifact's document, and the code that loads it."""

from collections.abc import Mapping
from typing import Any

from vitrail.classifier import Classifier
from vitrail.weights.artifact import Artifact
from vitrail.weights.origin import without_paths


def program_document(classifier: Classifier, unlike: bool) -> dict[str, Any]:
    """Returns the classifier without its weights and without paths; with `unlike` how to read that output.

    The temperature, and the scale of numbers, are in the graph: dividing the logits again is wrong.
    """
    artifact = Artifact(
        classifier.vit.config,
        classifier.classes,
        classifier.preprocess,
        classifier.temperature,
        without_paths(classifier.origin),
        classifier.task,
        classifier.thresholds,
        classifier.unlike_facts if unlike else None,
    )
    return {**artifact.to_json(), "temperature_is_applied": True}


def fill_load_code(code: str, file: str, classifier: Classifier, exported: Mapping[str, Any]) -> str:
    """Returns the code of a model card for a file, the pixels that it takes, and the target of a map if it has one."""
    preprocess = classifier.preprocess
    height, width = preprocess.image_size
    dtype = str(preprocess.dtype).removeprefix("torch.")
    inputs = '{"pixels": pixels}'
    if exported.get("map"):
        zeros = f'numpy.zeros((len(pixels), {classifier.vit.config.classes}), "float32")'
        code = f"import numpy; target = {zeros}  # 1 for the class that the map explains; {code}"
        inputs = '{"pixels": pixels, "target": target}'
    size = {"channels": preprocess.channels, "height": height, "width": width}
    return code.format(file=file, dtype=dtype, inputs=inputs, **size)
