"""Functions of the public API that combine several packages."""

from pathlib import Path

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.evaluation import Evaluation, images_to_score
from vitrail.evaluation import evaluate as evaluate_images
from vitrail.evaluation.probe import TEMPERATURE, K, Probe, data_to_probe
from vitrail.evaluation.probe import probe as probe_splits


def evaluate(classifier: BaseClassifier, data: str | Path, *, skip_unreadable: bool = False) -> Evaluation:
    """Returns the scores of a classifier on labeled images: the test split, else validation, else all images.

    Raises `ImageError` for an unreadable image; with `skip_unreadable` such images are counted and skipped.
    """
    images, said = images_to_score(classifier, data, skip_unreadable)
    return evaluate_images(classifier, images, said=said, skip_unreadable=skip_unreadable)


def probe(
    classifier: Classifier,
    data: str | Path,
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
    skip_unreadable: bool = False,
) -> Probe:
    """Returns the scores of k-NN and of a linear head on a classifier's features, without training the model.

    Raises as `evaluate` does.
    """
    splits = data_to_probe(classifier, data, skip_unreadable)
    return probe_splits(classifier, splits, k=k, temperature=temperature, skip_unreadable=skip_unreadable)
