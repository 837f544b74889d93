"""Functions of the public API that combine several packages."""

from collections.abc import Sequence

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.data.python_data import Data
from vitrail.evaluation import Evaluation, open_scored_images
from vitrail.evaluation import evaluate as evaluate_images
from vitrail.evaluation.knn import DEFAULT_K, DEFAULT_TEMPERATURE
from vitrail.evaluation.probe import Probe, open_probe_data
from vitrail.evaluation.probe import probe as probe_splits


def evaluate(
    classifier: BaseClassifier, data: Data, *, skip_unreadable: bool = False, metrics: Sequence[str] = ()
) -> Evaluation:
    """Returns the scores of a classifier on labeled images: the test split, else validation, else all images.

    Raises `ImageError` for an unreadable image; with `skip_unreadable` such images are counted and skipped.
    `metrics` names metrics to compute besides: `balanced_accuracy`, `macro_f1`, and those that plugins register.
    """
    scored = open_scored_images(classifier, data, skip_unreadable)
    return evaluate_images(
        classifier,
        scored.images,
        description=scored.description,
        optimistic=scored.optimistic,
        skip_unreadable=skip_unreadable,
        metrics=metrics,
    )


def probe(
    classifier: Classifier,
    data: Data,
    *,
    k: int = DEFAULT_K,
    temperature: float = DEFAULT_TEMPERATURE,
    skip_unreadable: bool = False,
) -> Probe:
    """Returns the scores of k-NN and of a linear head on a classifier's features, without training the model.

    Raises as `evaluate` does.
    """
    splits = open_probe_data(classifier, data, skip_unreadable)
    return probe_splits(classifier, splits, k=k, temperature=temperature, skip_unreadable=skip_unreadable)
