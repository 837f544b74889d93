"""Compares ways to choose images to label, by the accuracy of a linear head.

    python -m benchmarks.labeling cifar10 --model MODEL --image-size 56

A linear head on frozen features is fitted to a few labels of each class, chooses images of a pool, gets their labels,
and is fitted again, for some rounds. It is scored on other images. Each seed draws other first labels, and chance is
drawn anew. Differences are paired by seed.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import vitrail
from vitrail.data.open import open_data
from vitrail.evaluation.features import extract_features
from vitrail.evaluation.labeling import rank_for_labeling
from vitrail.intervals import t_interval
from vitrail.tasks import SINGLE_LABEL, softmax

Choose = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], np.ndarray]  # logits, features, count -> indices


def choose_as_vitrail(logits: np.ndarray, features: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    return rank_for_labeling(logits, features, count, SINGLE_LABEL)


def choose_by_badge(logits: np.ndarray, features: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """k-means++ on the gradients of the head for the predicted classes (Ash et al. 2020, arXiv 1906.03671)."""
    factors = softmax(logits) - np.eye(logits.shape[1])[logits.argmax(axis=1)]
    squared = (factors**2).sum(axis=1) * (features**2).sum(axis=1)
    chosen = [int(squared.argmax())]
    nearest = np.full(len(logits), np.inf)
    while len(chosen) < count:
        i = chosen[-1]
        products = (factors @ factors[i]) * (features @ features[i])
        nearest = np.minimum(nearest, np.maximum(squared + squared[i] - 2 * products, 0))
        nearest[chosen] = 0
        chosen.append(int(random.choice(len(nearest), p=nearest / nearest.sum())))
    return np.array(chosen)


def choose_by_margin(logits: np.ndarray, features: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    best = np.sort(logits, axis=1)
    return np.argsort(best[:, -1] - best[:, -2], kind="stable")[:count]


def choose_by_chance(logits: np.ndarray, features: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    return random.choice(len(logits), count, replace=False)


CHOICES: dict[str, Choose] = {
    "margin and k-center": choose_as_vitrail,
    "margin": choose_by_margin,
    "BADGE": choose_by_badge,
    "chance": choose_by_chance,
}


def fit(features: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    return LogisticRegression(C=0.1, max_iter=500).fit(features, labels)


def run_rounds(
    choose: Choose, pool: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray,
    per_class: int, count: int, rounds: int, seed: int,
) -> list[float]:  # fmt: skip
    """Returns the accuracy after the first labels and after each round."""
    random = np.random.default_rng(seed)
    known = np.concatenate(
        [random.choice(np.flatnonzero(labels == k), per_class, replace=False) for k in np.unique(labels)]
    )
    accuracies = []
    for _ in range(rounds + 1):
        head = fit(pool[known], labels[known])
        accuracies.append(float(head.score(test, test_labels)))
        rest = np.setdiff1d(np.arange(len(pool)), known)
        chosen = choose(head.decision_function(pool[rest]), pool[rest], count, random)
        known = np.concatenate([known, rest[chosen]])
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="images with a training and a test split")
    parser.add_argument("--model", required=True, help="a model whose features are not trained on these labels")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--pool", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1500)
    parser.add_argument("--per-class", type=int, default=20, help="labels at the start")
    parser.add_argument("--count", type=int, default=200, help="labels of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    classifier = vitrail.load(arguments.model)
    if arguments.image_size:
        classifier = classifier.with_image_size(arguments.image_size)
    splits = open_data(arguments.data, channels=classifier.preprocess.channels).as_dict()
    random = np.random.default_rng(0)
    data = {}
    for split, n in (("train", arguments.pool), ("test", arguments.test)):
        images = splits[split].subset(np.sort(random.choice(len(splits[split]), n, replace=False)))
        features = extract_features(classifier, images)
        data[split] = (features / np.linalg.norm(features, axis=1, keepdims=True) * 10, images.labels)
    print(make_table(arguments, *data["train"], *data["test"]))


def make_table(
    arguments: argparse.Namespace, pool: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> str:
    """Returns the mean accuracy by number of labels, and the paired difference from chance with its interval."""
    torch.set_num_threads(1)
    sizes = (arguments.per_class, arguments.count, arguments.rounds)
    runs = {
        name: np.array(
            [run_rounds(choose, pool, labels, test, test_labels, *sizes, seed) for seed in range(arguments.seeds)]
        )
        for name, choose in CHOICES.items()
    }
    classes = len(np.unique(labels))
    counts = [arguments.per_class * classes + r * arguments.count for r in range(arguments.rounds + 1)]
    lines = [f"| labels | {' | '.join(map(str, counts))} |", f"| --- {'| ---: ' * len(counts)}|"]
    for name, values in runs.items():
        lines.append(f"| {name} | {' | '.join(f'{100 * each:.1f}%' for each in values.mean(0))} |")
    for name in list(runs)[:-1]:
        intervals = [t_interval(100 * each) for each in (runs[name] - runs["chance"]).T[1:]]
        cells = ["{:+.1f} to {:+.1f}".format(*each) if each else "-" for each in intervals]
        lines.append(f"| {name} minus chance, 95% interval | | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
