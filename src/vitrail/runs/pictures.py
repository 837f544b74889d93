"""The pictures of a finished run: confusion.png, or predictions.png of numbers, and attention.png."""

from pathlib import Path

import numpy as np

from vitrail.classifier import Classifier
from vitrail.data.images import Images
from vitrail.evaluation.evaluation import Evaluation
from vitrail.evaluation.figures import draw_confusion_matrix, draw_predictions
from vitrail.evaluation.metrics import confusion_matrix
from vitrail.evaluation.numbers import NumberEvaluation
from vitrail.evaluation.outcomes import AnyEvaluation
from vitrail.explanation.api import explain_batch
from vitrail.explanation.figures import save_gallery
from vitrail.module_classifier import TorchClassifier
from vitrail.runs.folder import RunFolder
from vitrail.tasks import REGRESSION, has_one_class

GALLERY_IMAGES = 30  # in attention.png
FIFTHS = 5  # of the numbers, of which the gallery has equally many images


def draw_pictures(classifier: TorchClassifier, images: Images, evaluation: AnyEvaluation, folder: RunFolder) -> None:
    """Draws the confusion matrix of classes, or predicted against true numbers, and a ViT's attention gallery."""
    if isinstance(evaluation, Evaluation):
        draw_confusion_matrix(confusion_matrix(evaluation.outcome), classifier.classes, folder.picture("confusion"))
    if isinstance(evaluation, NumberEvaluation):
        draw_predictions(evaluation.outcome, folder.picture("predictions"))
    if isinstance(classifier, Classifier):
        draw_attention(classifier, evaluation.outcome.readable_images(images), folder.picture("attention"))


def draw_attention(classifier: Classifier, images: Images, path: Path, max_images: int = GALLERY_IMAGES) -> None:
    """Draws the attention maps of some images, about equally many per class, with true and predicted class."""
    kinds = kinds_of_images(images)
    rank_in_class = np.zeros(len(images), dtype=int)  # index of an image among those of its class
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        rank_in_class[members] = np.arange(len(members))
    first = np.lexsort((kinds, rank_in_class))[:max_images]
    chosen = sorted(first, key=lambda i: int(kinds[i]))
    shown = images.subset(chosen)
    pixels, sizes = shown.load_sized_batch(classifier.preprocess, range(len(shown)))
    true_classes = [label_text(images, i) for i in chosen]
    title = (
        f"Where the model looks: attention in the last layer, for {len(shown)} of {len(images)} images, "
        "about equally many of each class"
    )
    explanations = explain_batch(classifier, pixels, method="attention", sizes=sizes)
    save_gallery(explanations, true_classes, path, title)


def kinds_of_images(images: Images) -> np.ndarray:
    """Returns the class of each image, (n,); of several labels a number of their set, of numbers that of a fifth."""
    if has_one_class(images.task):
        return images.labels
    if images.task == REGRESSION:
        ranks = np.argsort(np.argsort(images.labels[:, 0], kind="stable"), kind="stable")
        fifths: np.ndarray = ranks * FIFTHS // max(len(ranks), 1)
        return fifths
    kinds: np.ndarray = np.unique(images.labels, axis=0, return_inverse=True)[1].ravel()
    return kinds


def label_text(images: Images, i: int) -> str:
    """Returns the class of an image, its labels or its numbers."""
    if has_one_class(images.task):
        return images.classes[images.labels[i]]
    if images.task == REGRESSION:
        return ", ".join(f"{number:.4g}" for number in images.labels[i])
    return ", ".join(images.classes[k] for k in np.flatnonzero(images.labels[i])) or "no label"
