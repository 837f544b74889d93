"""How far a model's features go without training it: k nearest neighbours and a linear head.

A fine-tuned model that loses to these has cost its training for nothing.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.console import ProgressBar, progress_bar
from vitrail.data import Images, Splits, open_data
from vitrail.data.decode import ImageError
from vitrail.data.fingerprint import compute_fingerprint
from vitrail.data.open import open_source
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation.evaluation import Evaluation
from vitrail.evaluation.features import extract_features
from vitrail.evaluation.outcome import Outcome

DEFAULT_K, DEFAULT_TEMPERATURE = 20, 0.07  # those of DINO (Caron et al. 2021, arXiv 2104.14294)
PENALTIES = tuple(float(f"{10**e:.3g}") for e in np.arange(1, -5.5, -0.5))  # 10 to 0.00001, two in each decade
PATIENCE = 4  # weaker penalties are tried until so many in a row are no better: from there on they only fit noise
MAX_COSINES = 1 << 26  # that k-NN has in memory at once
DEFAULT_PENALTY = 0.01  # where there is no validation to choose by


@dataclass(frozen=True)
class LinearHead:
    """A multinomial logistic regression on features: weight (Y, D), bias (Y,)."""

    weight: np.ndarray
    bias: np.ndarray
    penalty: float
    scores_by_penalty: list[dict[str, float]]  # a row for each penalty: losses and accuracies

    def logits(self, features_ND: np.ndarray) -> np.ndarray:
        """(n, D) -> (n, Y)."""
        logits_NY: np.ndarray = features_ND @ self.weight.T + self.bias
        return logits_NY


@dataclass(frozen=True)
class Probe:
    """The scores of both probes on the same images; None where no image is kept back."""

    knn: Evaluation | None
    linear: Evaluation | None
    head: LinearHead
    split: str | None  # the split that was scored: test, or validation where there is no test
    k: int
    temperature: float
    train_images: int
    seconds: float  # for the linear head: features to fit and choose it by, and the fit; kept features cost nothing
    unreadable: dict[str, int] = field(default_factory=dict)  # images per split that were listed and are left out

    def to_json(self) -> dict[str, Any]:
        """The figures, with what they depend on."""
        optimistic = (
            self.split == "validation" and len(self.head.scores_by_penalty) > 1
        )  # the penalty was chosen by what is scored
        return {
            "on": self.split,
            "train_images": self.train_images,
            "unreadable": self.unreadable,
            "seconds": round(self.seconds, 3),
            "knn": {**summarize_scores(self.knn), "k": self.k, "temperature": self.temperature},
            "linear": {
                **summarize_scores(self.linear),
                "penalty": self.head.penalty,
                **({"optimistic": True} if optimistic else {}),
            },
        }


def summarize_scores(evaluation: Evaluation | None) -> dict[str, Any]:
    """What is said of either probe."""
    if evaluation is None:
        return {}
    return {
        "accuracy": evaluation.accuracy,
        "accuracy_interval": list(evaluation.accuracy_interval),
        "images": evaluation.images,
    }


def open_probe_data(classifier: Classifier, data: str | Path, skip_unreadable: bool = False) -> Splits:
    """The splits at a DATA address in the classifier's channels; divided as it was if it was trained on these data."""
    trained_on = classifier.origin.get("data", {})
    channels = classifier.preprocess.channels
    found = compute_fingerprint(open_source(data, channels, skip_unreadable))
    split = trained_on.get("split") if trained_on.get("fingerprint") == found else None
    options = {"validation": split["validation"], "test": split["test"], "split_seed": split["seed"]} if split else {}
    return open_data(data, channels=channels, missing_ok=skip_unreadable, **options)


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
    tick: Callable[[], object] = lambda: None,
) -> Probe:
    """Both probes of the classifier's features: fitted on training images, scored on test (else validation).

    The penalty of the linear one is chosen on validation. `tick` is called after each batch; it may raise to stop.
    Raises `ImageError` naming a file that cannot be read, or with `skip_unreadable` counts it. Raises `UsageError` for
    a `k` or `temperature` that makes no sense.
    """
    if k < 1 or not temperature > 0:
        raise UsageError(f"k is {k} and temperature {temperature}; they must be at least 1 and above 0")
    began = time.perf_counter()
    features: dict[str, np.ndarray] = {}
    refused: dict[str, list[ImageError]] = {}

    def compute(listed: dict[str, Images]) -> None:
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "cache": cache}
        with progress_bar(f"computing features ({', '.join(listed)})", sum(map(len, listed.values()))) as progress:
            for name, images in listed.items():
                gone: list[ImageError] = []
                refuse = gone.append if skip_unreadable else None
                features[name] = extract_features(
                    classifier, images, tick=ticker(progress, tick), refuse=refuse, **options
                )
                refused[name], parts[name] = gone, images.exclude(gone)

    parts = splits.as_dict()
    compute({name: images for name, images in parts.items() if name != "test"})
    validation = (features["validation"], parts["validation"].labels) if "validation" in parts else None
    labels = parts["train"].labels
    head = fit_linear_head(features["train"], labels, validation, len(splits.classes), penalty)
    seconds = time.perf_counter() - began
    on = next((name for name in ("test", "validation") if name in parts), None)
    k = min(k, len(labels))
    by_neighbours = by_head = None
    if on:
        if on == "test":
            compute({"test": parts["test"]})
        votes_NY = knn_votes(features["train"], labels, features[on], len(splits.classes), k, temperature)
        by_neighbours = make_evaluation(parts[on], np.log(votes_NY.clip(1e-12)), splits.classes, refused[on])
        by_head = make_evaluation(parts[on], head.logits(features[on]), splits.classes, refused[on])
    unreadable = {name: len(gone) for name, gone in refused.items() if gone}
    return Probe(by_neighbours, by_head, head, on, k, temperature, len(labels), seconds, unreadable)


def ticker(progress: ProgressBar, tick: Callable[[], object]) -> Callable[[int], None]:
    """A function that moves the bar, then asks whether to go on."""

    def move(n: int) -> None:
        progress.advance(n)
        tick()

    return move


def make_evaluation(
    images: Images, logits_NY: np.ndarray, classes: tuple[str, ...], unreadable: Sequence[ImageError]
) -> Evaluation:
    """The evaluation of these answers to the images that could be read."""
    logits = logits_NY.astype(np.float64)
    return Evaluation(Outcome(list(images.paths), images.labels, logits, classes, tuple(unreadable)))


def knn_votes(
    bank_ND: np.ndarray,
    labels_N: np.ndarray,
    asked_MD: np.ndarray,
    classes: int,
    k: int = DEFAULT_K,
    temperature: float = DEFAULT_TEMPERATURE,
) -> np.ndarray:
    """The share of each class among the `k` nearest images, (M, Y), each voting with exp(cosine / temperature).

    The formula is that of DINO (arXiv 2104.14294, after Wu et al. 2018, arXiv 1805.01978).
    """
    bank = F.normalize(torch.from_numpy(bank_ND), dim=1)
    labels = torch.from_numpy(labels_N)
    shares: list[Tensor] = []
    at_once = max(1, min(1024, MAX_COSINES // max(1, len(bank))))
    for some in torch.split(F.normalize(torch.from_numpy(asked_MD), dim=1), at_once):
        cosine, nearest = (some @ bank.T).topk(k)
        weights = ((cosine - cosine[:, :1]) / temperature).double().exp()  # the nearest weighs one: nothing overflows
        votes = torch.zeros(len(some), classes, dtype=torch.float64).scatter_add_(1, labels[nearest], weights)
        shares.append(votes / votes.sum(1, keepdim=True))
    return torch.cat(shares).numpy()


def fit_linear_head(
    features_ND: np.ndarray,
    labels_N: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray] | None,
    classes: int,
    penalty: float | None = None,
) -> LinearHead:
    """Logistic regression (scikit-learn's, by L-BFGS) on standardised features, which the weights then take in.

    Its loss is the mean cross-entropy + penalty / 2 times the squared length of the weights. Without a penalty the best
    of `PENALTIES` on `validation` (features, labels) is taken, by accuracy, then loss; `PENALTY` where there is none.
    """
    if penalty is not None:
        penalties: tuple[float, ...] = (penalty,)
    else:
        penalties = PENALTIES if validation else (DEFAULT_PENALTY,)
    mean_D, std_D = features_ND.mean(0, dtype=np.float64), features_ND.std(0, dtype=np.float64)
    std_D[std_D < 1e-6 * std_D.max(initial=1e-12)] = np.inf  # a feature that never changes says nothing
    standard_ND = ((features_ND - mean_D) / std_D).astype(np.float64 if features_ND.size < 1e8 else np.float32)
    measured = {"train": (features_ND, labels_N)} | ({"validation": validation} if validation else {})
    heads: list[LinearHead] = []
    rows: list[dict[str, float]] = []
    with progress_bar("fitting the linear head", len(penalties)) as progress:
        for weight_YD, bias_Y, each in fit_regressions(standard_ND, labels_N, classes, penalties):
            folded_YD = weight_YD / std_D
            head = LinearHead(folded_YD, bias_Y - folded_YD @ mean_D, each, rows)
            row = {"penalty": each}
            for name, (features, labels) in measured.items():
                outcome = Outcome([], labels, head.logits(features), ())
                row |= {f"{name}_loss": outcome.loss, f"{name}_accuracy": outcome.accuracy}
            rows.append(row)
            heads.append(head)
            progress.advance()
            if validation:
                best = max(
                    range(len(rows)), key=lambda i: (rows[i]["validation_accuracy"], -rows[i]["validation_loss"])
                )
                if len(rows) - 1 - best >= PATIENCE:
                    break
    return heads[best] if validation else heads[0]


def fit_regressions(features_ND: np.ndarray, labels_N: np.ndarray, classes: int, penalties: tuple[float, ...]) -> Any:
    """For each penalty (weight (Y, D), bias (Y,), penalty), each starting where the one before ended."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    n = len(labels_N)
    model = LogisticRegression(max_iter=1000, warm_start=True)
    for penalty in penalties:
        model.set_params(C=1 / (penalty * n))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties need not be solved to the end
            model.fit(features_ND, labels_N)
        if len(model.classes_) != classes:
            raise VitrailError("every class needs a training image to fit a head", "vitrail check says which has none")
        weight_YD, bias_Y = model.coef_, model.intercept_
        if classes == 2:  # one row says how much more the second class is worth
            weight_YD, bias_Y = np.concatenate([-weight_YD, weight_YD]) / 2, np.concatenate([-bias_Y, bias_Y]) / 2
        yield weight_YD.astype(np.float64), bias_Y.astype(np.float64), penalty
