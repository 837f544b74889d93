"""Scores a model's features without training the model: a k-nearest-neighbor probe and a linear probe.

A fine-tuned model should score higher than both.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vitrail.classifier import Classifier
from vitrail.console import progress_bar
from vitrail.data.decode import ImageError
from vitrail.data.images import Images
from vitrail.data.open import open_source
from vitrail.data.python_data import Data
from vitrail.data.scoring import group_as_trained, open_as_trained
from vitrail.data.source import Listing, Source
from vitrail.data.split import Splits, build_splits
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation.features import extract_features
from vitrail.evaluation.knn import DEFAULT_K, DEFAULT_TEMPERATURE, knn_means, knn_probabilities
from vitrail.evaluation.linear_head import LinearHead, fit_linear_head
from vitrail.evaluation.multi_label import MultiLabelOutcome
from vitrail.evaluation.outcome import ImageLogits
from vitrail.evaluation.outcomes import EVALUATIONS, OUTCOMES, AnyEvaluation
from vitrail.evaluation.probe_scores import summarize_scores
from vitrail.evaluation.thresholds import choose_thresholds
from vitrail.probe_documents import KnnScores, LinearScores, ProbeDocument
from vitrail.target_scale import TargetScale
from vitrail.tasks import GRADES, MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS
from vitrail.weights.origin import read_origin

MIN_PROBABILITY = 1e-12  # of a k-NN vote, before its logarithm


@dataclass(frozen=True)
class Probe:
    """The scores of both probes on the same images; None if no images are held out."""

    knn: AnyEvaluation | None
    linear: AnyEvaluation | None
    head: LinearHead
    split: str | None  # the scored split: test, or validation without a test split
    k: int
    temperature: float
    train_images: int
    seconds: float  # for the linear head: to extract the features that are not in the cache, and to fit
    unreadable: dict[str, int] = field(default_factory=dict)  # skipped images per split
    task: str = SINGLE_LABEL

    def to_json(self) -> ProbeDocument:
        """Returns both scores and the settings that they depend on."""
        penalty_was_chosen = len(self.head.scores_by_penalty) > 1
        linear: LinearScores = {**summarize_scores(self.linear), "penalty": self.head.penalty}
        knn: KnnScores = {**summarize_scores(self.knn), "k": self.k, "temperature": self.temperature}
        if self.split == "validation":  # what was chosen there was chosen on the scored images
            has_thresholds = self.task == MULTI_LABEL
            linear |= {"optimistic": True} if penalty_was_chosen or has_thresholds else {}
            knn |= {"optimistic": True} if has_thresholds else {}
        return {
            "task": self.task,
            "split": self.split,
            "train_images": self.train_images,
            "unreadable": self.unreadable,
            "seconds": round(self.seconds, 3),
            "knn": knn,
            "linear": linear,
        }


def open_probe_data(
    classifier: Classifier, data: Data, skip_unreadable: bool = False, task: str | None = None
) -> Splits:
    """Opens the splits at a DATA address in the classifier's channels.

    `task` says what the labels are; by default the data decide, and grades are those of the classifier. If the
    classifier was trained on the same data, they are divided into the same splits, also for another task.
    """
    trained_on = read_origin(classifier.origin).get("data", {})
    channels = classifier.preprocess.source_channels
    source = open_source(data, channels, skip_unreadable, task)
    if task is None and source.task == SINGLE_LABEL and has_grades_of(classifier, source):
        source = source.with_task(GRADES)
    source = group_as_trained(source, trained_on)
    if source.task != classifier.task and "split" in trained_on:
        divided = divide_as_trained(source, classifier, data, skip_unreadable)
        if divided is not None:
            return build_splits(divided, validation=0.0, test=0.0)
    fingerprint = source.fingerprint
    split = trained_on.get("split") if trained_on.get("fingerprint") == fingerprint else None
    options = {"validation": split["validation"], "test": split["test"], "split_seed": split["seed"]} if split else {}
    return build_splits(source, **options)


def divide_as_trained(source: Source, classifier: Classifier, data: Data, skip_unreadable: bool) -> Source | None:
    """Returns the source with the splits in which the classifier was trained; None if it was trained on other data.

    Images are divided by the labels of the task, so those of another task would mix training and test images.
    """
    channels, trained_on = classifier.preprocess.source_channels, read_origin(classifier.origin)["data"]
    try:
        _, splits, is_training_data = open_as_trained(data, channels, trained_on, skip_unreadable, classifier.task)
    except VitrailError:  # the labels are not of this task, so nothing was trained on them
        return None
    if not is_training_data:
        return None
    divided: dict[str, Listing] = {}
    for name, part in splits.items():
        whole = source.splits[source.find_split(name)]
        index_of = {image: i for i, image in enumerate(whole.names)}
        divided[name] = whole.subset([index_of[image] for image in part.names])
    return replace(source, splits=divided)


def has_grades_of(classifier: Classifier, source: Source) -> bool:
    """Returns whether the classes of the data are the grades of the classifier."""
    names = {name for listing in source.splits.values() for name in listing.labels.counts()}
    return classifier.task == GRADES and names <= set(classifier.classes)


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
    scale: TargetScale | None = None,
) -> Probe:
    """Returns both probes of the classifier's features: fitted on train, scored on test (else validation).

    Without `penalty` that of the linear probe is chosen on validation, and so are the thresholds of several labels.
    The linear head returns numbers on `scale`, by default that of the training images. `on_batch` is called after each
    batch of features; it may raise to stop. Raises `ImageError` for an unreadable image; with `skip_unreadable` such
    images are skipped and counted. Raises `UsageError` for an invalid `k` or `temperature`.
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
    labels, task = images["train"].labels, splits.train.task
    validation = (features["validation"], images["validation"].labels) if "validation" in images else None
    if task == REGRESSION and scale is None:
        scale = TargetScale.of(labels, splits.classes)
    head = fit_linear_head(features["train"], labels, validation, len(splits.classes), penalty, task=task, scale=scale)
    seconds = time.perf_counter() - start
    split = next((name for name in ("test", "validation") if name in images), None)
    k = min(k, len(labels))
    knn_evaluation = linear_evaluation = None
    if split:
        if split == "test":
            extract(["test"])

        def score(answer: Callable[[np.ndarray], np.ndarray]) -> AnyEvaluation:
            held_out = images.get("validation") if task == MULTI_LABEL else None
            thresholds = find_thresholds(held_out, answer(features["validation"])) if held_out is not None else ()
            return make_evaluation(images[split], answer(features[split]), splits.classes, errors[split], thresholds)

        def ask_neighbors(queries_MD: np.ndarray) -> np.ndarray:
            return knn_logits(features["train"], images["train"], queries_MD, k, temperature)

        knn_evaluation, linear_evaluation = score(ask_neighbors), score(head.logits)
    unreadable = {name: len(skipped) for name, skipped in errors.items() if skipped}
    return Probe(knn_evaluation, linear_evaluation, head, split, k, temperature, len(labels), seconds, unreadable, task)


def knn_logits(bank_ND: np.ndarray, images: Images, queries_MD: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Returns what the nearest of these images say, as a classifier would, (M, Y).

    It is the logarithm of the vote of each class, the log-odds of the mean of each label, or the mean of the numbers.
    """
    answer = TASKS[images.task].answer
    if answer == "numbers":
        return knn_means(bank_ND, images.labels, queries_MD, k, temperature)
    if answer == "labels":
        means = knn_means(bank_ND, images.labels, queries_MD, k, temperature)
        return np.asarray(np.log(means.clip(MIN_PROBABILITY)) - np.log((1 - means).clip(MIN_PROBABILITY)))
    votes = knn_probabilities(bank_ND, images.labels, queries_MD, len(images.classes), k, temperature)
    return np.asarray(np.log(votes.clip(MIN_PROBABILITY)))


def find_thresholds(images: Images, logits_NY: np.ndarray) -> tuple[float, ...]:
    """Returns the thresholds of labels with the highest F1 on these images."""
    return choose_thresholds(MultiLabelOutcome(list(images.paths), images.labels, logits_NY, images.classes))


def make_evaluation(
    images: Images,
    logits_NY: np.ndarray,
    classes: tuple[str, ...],
    unreadable: Sequence[ImageError],
    thresholds: tuple[float, ...] = (),
) -> AnyEvaluation:
    """Returns the evaluation of these logits of the readable images, for the task of the images."""
    groups = None if images.groups is None else tuple(images.groups)
    logits = ImageLogits(
        list(images.paths), images.labels, logits_NY.astype(np.float64), classes, tuple(unreadable), groups
    )
    evaluation: AnyEvaluation = EVALUATIONS[images.task](OUTCOMES[images.task](logits, thresholds))
    return evaluation
