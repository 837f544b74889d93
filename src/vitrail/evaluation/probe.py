"""Scores a model's features without training the model: a k-nearest-neighbor probe and a linear probe.

A fine-tuned model should score higher than both.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vitrail.classifier import Classifier
from vitrail.console import progress_bar
from vitrail.data.decode import ImageError
from vitrail.data.images import Images
from vitrail.data.open import open_source
from vitrail.data.python_data import Data
from vitrail.data.scoring import group_as_trained
from vitrail.data.split import Splits, build_splits
from vitrail.documents import LinearScores, ProbeDocument, ProbeScores
from vitrail.errors import UsageError
from vitrail.evaluation.evaluation import Evaluation
from vitrail.evaluation.features import extract_features
from vitrail.evaluation.knn import DEFAULT_K, DEFAULT_TEMPERATURE, knn_probabilities
from vitrail.evaluation.linear_head import LinearHead, fit_linear_head
from vitrail.evaluation.outcome import Outcome
from vitrail.tasks import refuse_task
from vitrail.weights.origin import read_origin

MIN_PROBABILITY = 1e-12  # of a k-NN vote, before its logarithm


@dataclass(frozen=True)
class Probe:
    """The scores of both probes on the same images; None if no images are held out."""

    knn: Evaluation | None
    linear: Evaluation | None
    head: LinearHead
    split: str | None  # the scored split: test, or validation without a test split
    k: int
    temperature: float
    train_images: int
    seconds: float  # for the linear head: to extract the features that are not in the cache, and to fit
    unreadable: dict[str, int] = field(default_factory=dict)  # skipped images per split

    def to_json(self) -> ProbeDocument:
        """Returns both scores and the settings that they depend on."""
        penalty_was_chosen = len(self.head.scores_by_penalty) > 1
        linear: LinearScores = {**summarize_scores(self.linear), "penalty": self.head.penalty}  # type: ignore[typeddict-item]
        if self.split == "validation" and penalty_was_chosen:  # chosen on the scored images
            linear["optimistic"] = True
        return {
            "split": self.split,
            "train_images": self.train_images,
            "unreadable": self.unreadable,
            "seconds": round(self.seconds, 3),
            "knn": {**summarize_scores(self.knn), "k": self.k, "temperature": self.temperature},
            "linear": linear,
        }


def summarize_scores(evaluation: Evaluation | None) -> ProbeScores:
    """Returns accuracy, its interval and the number of images; empty without an evaluation."""
    if evaluation is None:
        return {}
    return {
        "accuracy": evaluation.accuracy,
        "accuracy_interval": list(evaluation.accuracy_interval),
        "images": evaluation.images,
    }


def open_probe_data(classifier: Classifier, data: Data, skip_unreadable: bool = False) -> Splits:
    """Opens the splits at a DATA address in the classifier's channels.

    If the classifier was trained on the same data, they are divided into the same splits.
    """
    trained_on = read_origin(classifier.origin).get("data", {})
    channels = classifier.preprocess.source_channels
    source = group_as_trained(open_source(data, channels, skip_unreadable), trained_on)
    refuse_task(source.task, "probe")
    fingerprint = source.fingerprint
    split = trained_on.get("split") if trained_on.get("fingerprint") == fingerprint else None
    options = {"validation": split["validation"], "test": split["test"], "split_seed": split["seed"]} if split else {}
    return build_splits(source, **options)


def probe(
    classifier: Classifier,
    splits: Splits,
    *,
    k: int = DEFAULT_K,
    temperature: float = DEFAULT_TEMPERATURE,
    penalty: float | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    cache: bool = True,
    skip_unreadable: bool = False,
    on_batch: Callable[[], object] = lambda: None,
) -> Probe:
    """Returns both probes of the classifier's features: fitted on train, scored on test (else validation).

    Without `penalty` that of the linear probe is chosen on validation. `on_batch` is called after each batch of
    features; it may raise to stop. Raises `ImageError` for an unreadable image; with `skip_unreadable` such images are
    skipped and counted. Raises `UsageError` for an invalid `k` or `temperature`.
    """
    if k < 1 or not temperature > 0:
        raise UsageError(f"k is {k} and temperature {temperature}; they must be at least 1 and above 0")
    start = time.perf_counter()
    images = splits.as_dict()
    features: dict[str, np.ndarray] = {}
    errors: dict[str, list[ImageError]] = {name: [] for name in images}

    def extract(names: list[str]) -> None:
        with progress_bar(f"computing features ({', '.join(names)})", sum(len(images[n]) for n in names)) as progress:

            def advance(n: int) -> None:
                progress.advance(n)
                on_batch()

            for name in names:
                features[name] = extract_features(
                    classifier,
                    images[name],
                    batch_size=batch_size,
                    workers=workers,
                    cache=cache,
                    on_batch=advance,
                    on_error=errors[name].append if skip_unreadable else None,
                )
                images[name] = images[name].exclude(errors[name])

    extract([name for name in images if name != "test"])
    labels = images["train"].labels
    validation = (features["validation"], images["validation"].labels) if "validation" in images else None
    head = fit_linear_head(features["train"], labels, validation, len(splits.classes), penalty)
    seconds = time.perf_counter() - start
    split = next((name for name in ("test", "validation") if name in images), None)
    k = min(k, len(labels))
    knn_evaluation = linear_evaluation = None
    if split:
        if split == "test":
            extract(["test"])
        probabilities_NY = knn_probabilities(
            features["train"], labels, features[split], len(splits.classes), k, temperature
        )
        knn_logits_NY = np.log(probabilities_NY.clip(MIN_PROBABILITY))
        linear_logits_NY = head.logits(features[split])
        knn_evaluation = make_evaluation(images[split], knn_logits_NY, splits.classes, errors[split])
        linear_evaluation = make_evaluation(images[split], linear_logits_NY, splits.classes, errors[split])
    unreadable = {name: len(skipped) for name, skipped in errors.items() if skipped}
    return Probe(knn_evaluation, linear_evaluation, head, split, k, temperature, len(labels), seconds, unreadable)


def make_evaluation(
    images: Images, logits_NY: np.ndarray, classes: tuple[str, ...], unreadable: Sequence[ImageError]
) -> Evaluation:
    """Returns the evaluation of these logits of the readable images."""
    logits = logits_NY.astype(np.float64)
    groups = None if images.groups is None else tuple(images.groups)
    return Evaluation(Outcome(list(images.paths), images.labels, logits, classes, tuple(unreadable), groups))
