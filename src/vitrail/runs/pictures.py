"""The pictures of a finished run: confusion.png and attention.png."""

from pathlib import Path

import numpy as np

from vitrail.classifier import Classifier
from vitrail.data.images import Images
from vitrail.evaluation import Evaluation
from vitrail.evaluation.figures import draw_confusion_matrix
from vitrail.evaluation.metrics import confusion_matrix
from vitrail.explanation.api import explain_batch
from vitrail.explanation.figures import save_gallery
from vitrail.module_classifier import TorchClassifier
from vitrail.runs.folder import RunFolder

GALLERY_IMAGES = 30  # in attention.png


def draw_pictures(classifier: TorchClassifier, images: Images, evaluation: Evaluation, folder: RunFolder) -> None:
    """Draws the confusion matrix and, of a ViT, the attention gallery of the scored images."""
    draw_confusion_matrix(confusion_matrix(evaluation.outcome), classifier.classes, folder.picture("confusion"))
    if isinstance(classifier, Classifier):
        draw_attention(classifier, evaluation.outcome.readable_images(images), folder.picture("attention"))


def draw_attention(classifier: Classifier, images: Images, path: Path, max_images: int = GALLERY_IMAGES) -> None:
    """Draws the attention maps of some images, about equally many per class, with true and predicted class."""
    rank_in_class = np.zeros(len(images), dtype=int)  # index of an image among those of its class
    for label in range(len(images.classes)):
        members = np.flatnonzero(images.labels == label)
        rank_in_class[members] = np.arange(len(members))
    first = np.lexsort((images.labels, rank_in_class))[:max_images]
    shown = images.subset(sorted(first, key=lambda i: int(images.labels[i])))
    pixels = shown.load_batch(classifier.preprocess, range(len(shown)))
    true_classes = [images.classes[label] for label in shown.labels]
    title = f"attention of {len(shown)} images, about equally many of each class"
    save_gallery(explain_batch(classifier, pixels, method="attention"), true_classes, path, title)
