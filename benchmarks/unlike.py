"""Compares scores of how unlike its training data an image is: AUROC, and the rate at which 95% of known images pass.

    python -m benchmarks.unlike cifar10 --outside hymenoptera --write docs/unlike.md

DATA are the images of the classifier, with a validation split that fits the scores and a test split of known images.
Outside images are those of the folders, and some that are made here: handwritten digits (of scikit-learn), noise of
independent pixels, smooth noise, drawn shapes, and test images whose 16 blocks are shuffled.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from torch import Tensor

import vitrail
from benchmarks.document import replace_table
from vitrail.data.images import Images
from vitrail.data.loader import EvaluationLoader
from vitrail.evaluation.detection import BASELINES, Detection
from vitrail.evaluation.evaluation import open_splits
from vitrail.evaluation.unlike import fit_unlike
from vitrail.weights.unlike import Unlike

MADE_IMAGES = 2000
BATCH = 256
Outputs = tuple[np.ndarray, np.ndarray]  # logits (N, Y) and features (N, D)
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of logits and features, higher for unlike images


def compute_outputs(classifier: vitrail.Classifier, pixels_NCHW: Tensor) -> Outputs:
    """Returns the logits and features of uint8 pixels of the model's size."""
    outputs = [classifier.logits_and_features(batch) for batch in torch.split(pixels_NCHW, BATCH)]
    logits, features = (torch.cat(each).double().numpy() for each in zip(*outputs, strict=True))
    return logits, features


def read_pixels(classifier: vitrail.Classifier, images: Images) -> Tensor:
    """Returns the pixels of all images at the model's size."""
    return torch.cat([pixels for pixels, _ in EvaluationLoader(images, classifier.preprocess, batch_size=BATCH)])


def draw_digits(size: int) -> Tensor:
    """Returns the digits of scikit-learn, enlarged."""
    digits = torch.from_numpy(load_digits().images)[:, None].float() * (255 / 16)
    return F.interpolate(digits, (size, size), mode="bilinear").round().byte().expand(-1, 3, -1, -1)


def draw_smooth_noise(size: int, random: np.random.Generator) -> Tensor:
    """Returns colored clouds, stretched to the whole range of values."""
    noise = gaussian_filter(random.normal(size=(MADE_IMAGES, 3, size, size)), (0, 0, size / 10, size / 10), mode="wrap")
    noise -= noise.min((1, 2, 3), keepdims=True)
    return torch.from_numpy((255 * noise / noise.max((1, 2, 3), keepdims=True)).astype(np.uint8))


def draw_shapes(size: int, random: np.random.Generator) -> Tensor:
    """Returns an ellipse, a rectangle or a triangle of one color on another."""
    pictures = []
    for i in range(MADE_IMAGES):
        picture = Image.new("RGB", (size, size), tuple(random.integers(0, 256, 3).tolist()))
        left, top = (random.uniform(0.05, 0.4, 2) * size).tolist()
        right, bottom = (random.uniform(0.55, 0.95, 2) * size).tolist()
        color, draw = tuple(random.integers(0, 256, 3).tolist()), ImageDraw.Draw(picture)
        if i % 3 == 2:
            draw.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=color)
        else:
            (draw.ellipse, draw.rectangle)[i % 3]((left, top, right, bottom), fill=color)
        pictures.append(np.asarray(picture).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(pictures))


def shuffle_blocks(pixels_NCHW: Tensor, random: np.random.Generator) -> Tensor:
    """Returns images whose 4 x 4 blocks are in another order."""
    n, channels, size, _ = pixels_NCHW.shape
    blocks = pixels_NCHW.view(n, channels, 4, size // 4, 4, size // 4).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.from_numpy(np.stack([random.permutation(16) for _ in range(n)]))
    shuffled = blocks[torch.arange(n)[:, None], order].unflatten(1, (4, 4))
    return shuffled.permute(0, 3, 1, 4, 2, 5).reshape(pixels_NCHW.shape)


def collect_outside(classifier: vitrail.Classifier, known: Tensor, folders: list[Path]) -> dict[str, Tensor]:
    """Returns the pixels of each set of outside images."""
    size, random = classifier.preprocess.image_size[0], np.random.default_rng(0)
    sets = {}
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".jpeg", ".png"))
        sets[folder.name] = torch.stack([classifier.read_image(path) for path in files])
    noise = random.integers(0, 256, (MADE_IMAGES, 3, size, size), dtype=np.uint8)
    return sets | {
        "digits": draw_digits(size),
        "noise": torch.from_numpy(noise),
        "smooth noise": draw_smooth_noise(size, random),
        "shapes": draw_shapes(size, random),
        "shuffled blocks": shuffle_blocks(known[:: max(1, len(known) // MADE_IMAGES)], random),
    }


def fit_scores(features: np.ndarray, labels: np.ndarray, task: str) -> dict[str, Score]:
    """Returns the scores by name, fitted on validation images."""
    centers, one_center = (fit_unlike(features, each).fit for each in (labels, np.zeros(len(labels), dtype=int)))
    assert centers is not None and one_center is not None
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)

    def distance(fit: Unlike, features: np.ndarray) -> np.ndarray:
        return fit(torch.from_numpy(features)).double().numpy()

    def neighbor(k: int, features: np.ndarray) -> np.ndarray:
        cosines = (features / np.linalg.norm(features, axis=1, keepdims=True)) @ unit.T
        return -np.partition(cosines, -k, axis=1)[:, -k]

    return {
        "Mahalanobis, class means": lambda logits, features: distance(centers, features),
        "Mahalanobis, one mean": lambda logits, features: distance(one_center, features),
        "relative Mahalanobis": lambda logits, features: (
            distance(centers, features) ** 2 - distance(one_center, features) ** 2
        ),
        "nearest neighbor": lambda logits, features: neighbor(1, features),
        "10th nearest neighbor": lambda logits, features: neighbor(10, features),
        "maximum probability": lambda logits, features: BASELINES[task]["max_probability"](logits),
        "energy": lambda logits, features: BASELINES[task]["energy"](logits),
    }


def make_tables(scores: dict[str, Score], known: Outputs, outside: dict[str, Outputs]) -> str:
    """Returns a table of areas and one of rates, in Markdown."""
    names = [f"{name} ({len(outputs[0]):,})" for name, outputs in outside.items()]
    lines = []
    for title, value in (("AUROC", "auroc"), ("FPR at 95% TPR", "fpr95")):
        lines += [f"| {title} | {' | '.join(names)} | mean |", f"| --- {'| --- ' * (len(names) + 1)}|"]
        for name, score in scores.items():
            detections = [Detection(score(*known), score(*each)) for each in outside.values()]
            cells = [
                "{:.3f} ({:.3f} to {:.3f})".format(getattr(each, value), *getattr(each, f"{value}_interval"))
                for each in detections
            ]
            mean = float(np.mean([getattr(each, value) for each in detections]))
            lines.append(f"| {name} | {' | '.join(cells)} | {mean:.3f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the images of the classifier, with validation and test images")
    parser.add_argument("--model", default="cifar10-small")
    parser.add_argument("--outside", action="append", default=[], type=Path, metavar="FOLDER")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="update the tables in this document")
    arguments = parser.parse_args()
    classifier = vitrail.load(arguments.model)
    _, splits = open_splits(classifier, arguments.data)
    pixels = {name: read_pixels(classifier, splits[name]) for name in ("validation", "test")}
    outside = collect_outside(classifier, pixels["test"], arguments.outside)
    _, features = compute_outputs(classifier, pixels["validation"])
    scores = fit_scores(features, splits["validation"].labels, classifier.task)
    known = compute_outputs(classifier, pixels["test"])
    tables = make_tables(scores, known, {name: compute_outputs(classifier, each) for name, each in outside.items()})
    sizes = f"{len(features):,} validation images fit the scores, {len(known[0]):,} test images are known"
    text = f"`{arguments.model}`: {sizes}; the number of outside images is in brackets.\n\n{tables}"
    if arguments.write:
        replace_table(text, "unlike", arguments.write)
    print(text)


if __name__ == "__main__":
    main()
