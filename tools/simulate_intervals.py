"""Simulates the intervals and the verdicts of vitrail, and writes the tables of docs/statistics.md.

    python -m tools.simulate_intervals [--draws 10000] [--only NAME] [--out docs/statistics.md]

A row of `INTERVALS` draws data whose truth is known, and returns whether the interval covers it. A row of `VERDICTS`
draws data in which there is nothing to find, and returns whether a verdict finds something. The tests run the same
functions with fewer draws.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.optimize import brentq

from vitrail.evaluation import multi_label
from vitrail.evaluation.calibration import apply_temperature, find_thresholds, fit_temperature
from vitrail.evaluation.calibration_error import confidence_bias_interval, measure_calibration_error
from vitrail.evaluation.label_errors import find_label_errors, suspect_labels
from vitrail.evaluation.metrics import average_scores, expected_calibration_error
from vitrail.evaluation.multi_label import MultiLabelOutcome
from vitrail.evaluation.outcome import Outcome
from vitrail.explanation.measures import MEASURES
from vitrail.explanation.scores import MethodScores, make_score, mark_best
from vitrail.intervals import (
    Interval,
    cluster_interval,
    f1_interval,
    mean_of_proportions_interval,
    paired_difference_interval,
    t_interval,
    two_way_interval,
    wilson_interval,
)
from vitrail.report.calibration import loss_decrease_interval
from vitrail.report.verdicts import compare_classes, exceeds, find_dependencies

MARK = "<!-- the tables below are written by tools/simulate_intervals.py -->"

Draw = Callable[[np.random.Generator], bool]


@dataclass(frozen=True)
class Simulation:
    """A draw whose mean is a coverage or a rate of false findings, and what it simulates.

    `slow` divides the number of draws. `exact` is false where a discrete distribution or a bound of several kinds makes
    the interval wider than nominal: then the coverage may be above nominal, but not below.
    """

    figure: str
    method: str
    data: str
    draw: Draw
    slow: int = 1
    exact: bool = True


def covers(interval: Interval | None, truth: float) -> bool:
    """Whether an interval contains the truth, up to rounding."""
    return interval is not None and interval[0] - 1e-9 <= truth <= interval[1] + 1e-9


# Outcomes with a known truth.


def draw_outcome(
    generator: np.random.Generator, n: int, temperature: float = 1.0, classes: int = 10, scale: float = 3.0
) -> Outcome:
    """Returns logits whose calibrated probabilities are softmax(logits / temperature), and labels drawn from them."""
    logits = generator.normal(0, scale, (n, classes))
    powers = np.exp(logits / temperature)
    labels = (generator.random((n, 1)) > (powers / powers.sum(axis=1, keepdims=True)).cumsum(axis=1)).sum(axis=1)
    return Outcome([""] * n, np.minimum(labels, classes - 1), logits, tuple(map(str, range(classes))))


@cache
def population(temperature: float) -> Outcome:
    """Returns 200,000 images, whose figures count as the truth."""
    return draw_outcome(np.random.default_rng(1), 200_000, temperature)


@cache
def true_calibration_error(temperature: float) -> float:
    return expected_calibration_error(population(temperature)) if temperature != 1 else 0.0


def draw_uninformative(generator: np.random.Generator, n: int, accuracy: float) -> Outcome:
    """Returns predictions of two classes that are right with this probability, whatever their confidence is."""
    right = generator.random(n) < accuracy
    return make_binary_outcome(generator.uniform(0.6, 0.999, n), right)


def draw_accurate(generator: np.random.Generator, n: int) -> Outcome:
    """Returns calibrated predictions of two classes, of which 99% are right."""
    confidence = np.clip(generator.beta(30, 0.3, n), 0.5, 1 - 1e-6)
    return make_binary_outcome(confidence, generator.random(n) < confidence)


def make_binary_outcome(confidence: np.ndarray, right: np.ndarray) -> Outcome:
    """Returns predictions of two classes with this confidence, which are right or not."""
    n = len(confidence)
    logits = np.zeros((n, 2))
    logits[np.arange(n), np.where(right, 0, 1)] = np.log(confidence / (1 - confidence))
    return Outcome([""] * n, np.zeros(n, dtype=int), logits, ("a", "b"))


def draw_noisy_labels(
    generator: np.random.Generator, n: int, signal: float, noise: float, classes: int = 10, overconfidence: float = 1.0
) -> tuple[Outcome, np.ndarray]:
    """Returns an outcome with a fraction `noise` of wrong labels, and which labels are wrong, (n,).

    The evidence for the true class is `signal` standard deviations above that for the others. The logits are the
    calibrated ones times `overconfidence`.
    """
    truth = generator.integers(0, classes, n)
    evidence = generator.normal(0, 1, (n, classes))
    evidence[np.arange(n), truth] += signal
    wrong = generator.random(n) < noise
    labels = np.where(wrong, (truth + generator.integers(1, classes, n)) % classes, truth)
    logits = evidence * signal * overconfidence
    return Outcome([""] * n, labels, logits, tuple(map(str, range(classes)))), wrong


# Intervals.


PREVALENCE = np.array([0.1, 0.15, 0.25, 0.35, 0.5])  # of five labels


def draw_labels(generator: np.random.Generator, n: int, signal: float) -> MultiLabelOutcome:
    """Returns images whose labels raise their logits by `signal` standard deviations; the labels share some noise."""
    labels = (generator.random((n, len(PREVALENCE))) < PREVALENCE).astype(np.int64)
    noise = generator.normal(0, 1, labels.shape) + 0.35 * generator.normal(0, 1, (n, 1))
    return MultiLabelOutcome([""] * n, labels, labels * signal + noise, tuple("abcde"), thresholds=(0.5,) * 5)


@cache
def true_precision(signal: float) -> float:
    """Returns the mAP of many images."""
    return draw_labels(np.random.default_rng(0), 400_000, signal).map


def mean_average_precision(n: int, signal: float) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        outcome = draw_labels(generator, n, signal)
        scores = multi_label.average_scores(outcome, seed=int(generator.integers(1 << 30)))
        return covers(scores["map_interval"], true_precision(signal))

    return draw


def proportion(n: int, low: float) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        p = generator.uniform(low, 1)
        return covers(wilson_interval(int(generator.binomial(n, p)), n), p)

    return draw


def f1(n: int) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        p = generator.dirichlet((8, 1, 1, 10))
        hits, misses, false_alarms, _ = generator.multinomial(n, p)
        truth = 2 * p[0] / (2 * p[0] + p[1] + p[2])
        return covers(f1_interval(int(hits), int(misses + false_alarms)), truth)

    return draw


def balanced_accuracy(classes: int, n: int) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        p, counts = generator.beta(8, 2, classes), generator.integers(n // 2, 2 * n, classes)
        return covers(mean_of_proportions_interval(generator.binomial(counts, p), counts), float(p.mean()))

    return draw


def macro_f1(n: int) -> Draw:
    """Ten classes; the truth is the macro F1 of the expected confusion matrix."""
    matrix = np.full((10, 10), 0.02) + np.diag(np.linspace(0.5, 0.95, 10))
    matrix /= matrix.sum(axis=1, keepdims=True) * 10
    truth = float((2 * np.diag(matrix) / (matrix.sum(axis=0) + matrix.sum(axis=1))).mean())

    def draw(generator: np.random.Generator) -> bool:
        cells = generator.choice(100, size=n, p=matrix.ravel())
        outcome = Outcome([""] * n, cells // 10, np.eye(10)[cells % 10], tuple("abcdefghij"))
        low, high = average_scores(outcome, resamples=300)["macro_f1_interval"]
        return covers((low, high), truth)

    return draw


def paired_loss(n: int, lost: float, gained: float) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        only_first, only_second, _ = generator.multinomial(n, (lost, gained, 1 - lost - gained))
        return covers(paired_difference_interval(int(only_first), int(only_second), n), lost - gained)

    return draw


def clusters(count: int, members: int) -> Draw:
    """Shares of relevance in composites that have an effect of their own on all their members."""

    def draw(generator: np.random.Generator) -> bool:
        own = generator.beta(4, 2, (count, 1)) + generator.normal(0, 0.1, (count, members))
        return covers(cluster_interval(own), 4 / 6)

    return draw


def images(n: int) -> Draw:
    """Skewed values, as areas under deletion curves are."""

    def draw(generator: np.random.Generator) -> bool:
        return covers(t_interval(generator.beta(1.2, 4, n)), 1.2 / 5.2)

    return draw


def models_and_images(n: int, of_models: float, of_images: float, rest: float) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        values = (
            np.array([0.2, 0.3, 0.5])[:, None, None]
            + generator.normal(0, of_models, (3, 3, 1))
            + generator.normal(0, of_images, (1, 1, n))
            + generator.normal(0, rest, (3, 3, n))
        )
        return covers(two_way_interval(values), 1 / 3)

    return draw


def calibration_error(n: int, temperature: float) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        truth = true_calibration_error(temperature)
        return covers(measure_calibration_error(draw_outcome(generator, n, temperature)).interval, truth)

    return draw


def confidence_bias(n: int) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        truth = float((population(1.5).confidence - population(1.5).correct).mean())
        return covers(confidence_bias_interval(draw_outcome(generator, n, 1.5)), truth)

    return draw


def calibration_error_of_few(n: int, accuracy: float, confidence: float) -> Draw:
    """A confident model that makes few mistakes: often none of them is observed."""

    def draw(generator: np.random.Generator) -> bool:
        outcome = make_binary_outcome(np.full(n, confidence), generator.random(n) < accuracy)
        return covers(measure_calibration_error(outcome).interval, confidence - accuracy)

    return draw


def confidence_bias_of_few(n: int) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        return covers(confidence_bias_interval(draw_accurate(generator, n)), 0.0)

    return draw


# Verdicts where there is nothing to find.


def weakest_class(classes: int, n: int, recall: float) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        correct = generator.binomial(n, recall, classes)
        rows = [{"class": str(i), "images": n, "recall": k / n} for i, k in enumerate(correct)]
        return bool(compare_classes(rows)["weak_classes"])

    return draw


def border(classes: int, n: int) -> Draw:
    """Every class has exactly the share of evidence on the border above which there is a warning."""

    def draw(generator: np.random.Generator) -> bool:
        shares = generator.beta(4, 6, (classes, n))
        return any(exceeds([*shares, shares.ravel()], 0.4))

    return draw


def property_effect(n: int, accuracy: float) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        counts = np.full(5, n // 5)
        bins = {
            name: [
                {"images": int(m), "accuracy": k / m}
                for k, m in zip(generator.binomial(counts, accuracy), counts, strict=True)
            ]
            for name in ("brightness", "sharpness", "size")
        }
        return bool(find_dependencies(bins))

    return draw


def miscalibration(n: int) -> Draw:
    """A perfectly calibrated model is called miscalibrated."""

    def draw(generator: np.random.Generator) -> bool:
        return measure_calibration_error(draw_outcome(generator, n)).interval[0] > 0

    return draw


def called_biased(n: int) -> Draw:
    """A perfectly calibrated model that makes few mistakes is called over- or underconfident."""

    def draw(generator: np.random.Generator) -> bool:
        interval = confidence_bias_interval(draw_accurate(generator, n))
        return interval is not None and not interval[0] <= 0 <= interval[1]

    return draw


@cache
def harmless_temperature(overconfidence: float) -> float:
    """Returns the temperature above 1 that does not change the loss of the accurate model's logits, times a factor."""
    outcome = apply_temperature(draw_accurate(np.random.default_rng(1), 500_000), 1 / overconfidence)
    change = lambda temperature: apply_temperature(outcome, temperature).loss - outcome.loss  # noqa: E731
    return float(brentq(change, 1.2, 20))


def temperature_effect(n: int) -> Draw:
    """A temperature that changes nothing on average is said to help or to harm."""

    def draw(generator: np.random.Generator) -> bool:
        before = apply_temperature(draw_accurate(generator, n), 1 / 1.5)
        interval = loss_decrease_interval(before, apply_temperature(before, harmless_temperature(1.5)))
        return interval is not None and not interval[0] <= 0 <= interval[1]

    return draw


def broken_guarantee(n: int, accuracy: float) -> Draw:
    """A threshold is offered although the accuracy above it is below the guaranteed one."""

    def draw(generator: np.random.Generator) -> bool:
        rows = find_thresholds(draw_uninformative(generator, n, accuracy))
        return any(row["guaranteed_accuracy"] > accuracy for row in rows)

    return draw


def broken_guarantee_after_fit(n: int, temperature: float) -> Draw:
    """The same for a temperature that was fitted on the same images; the truth is the accuracy on many others."""

    def draw(generator: np.random.Generator) -> bool:
        large = population(temperature)
        outcome = draw_outcome(generator, n, temperature)
        fitted = fit_temperature(outcome)
        others = apply_temperature(large, fitted)
        for row in find_thresholds(apply_temperature(outcome, fitted)):
            answered = others.confidence >= row["threshold"]
            if others.correct[answered].mean() < row["target_accuracy"]:
                return True
        return False

    return draw


def tied_method(methods: int, n: int) -> Draw:
    """Of equally good methods, the first is not marked as best or tied."""

    def draw(generator: np.random.Generator) -> bool:
        values = generator.beta(2, 3, n)[:, None] + generator.normal(0, 0.1, (n, methods))
        rows = {
            str(i): MethodScores(
                dict.fromkeys(MEASURES) | {"deletion": make_score(values[:, i], MEASURES["deletion"])}, {}, 1.0, 1.0
            )
            for i in range(methods)
        }
        score = mark_best(rows)["0"].scores["deletion"]
        return score is not None and not score.is_best

    return draw


def accused_label(signal: float, overconfidence: float, n: int = 1000) -> Draw:
    """All labels are right, and some are listed as suspect."""

    def draw(generator: np.random.Generator) -> bool:
        outcome, _ = draw_noisy_labels(generator, n, signal, 0.0, overconfidence=overconfidence)
        return bool(suspect_labels(outcome).rows)

    return draw


INTERVALS: dict[str, Simulation] = {
    "accuracy": Simulation("accuracy, recall, precision", "Wilson", "n = 60, p from 0.5 to 1", proportion(60, 0.5)),
    "accuracy-high": Simulation(
        "accuracy, recall, precision", "Wilson", "n = 360, p from 0.9 to 1", proportion(360, 0.9)
    ),
    "f1": Simulation("F1 of a class", "Wilson, transformed", "n = 100 images", f1(100)),
    "balanced": Simulation(
        "balanced accuracy", "Wilson, effective n", "10 classes of about 20", balanced_accuracy(10, 20), 2
    ),
    "balanced-many": Simulation(
        "balanced accuracy", "Wilson, effective n", "100 classes of about 10", balanced_accuracy(100, 10), 10
    ),
    "macro-f1": Simulation("macro F1", "percentile bootstrap", "10 classes, n = 500", macro_f1(500), 10),
    **{
        f"map-{n}-{name}": Simulation(
            "mAP of several labels",
            "bootstrap, logit, t",
            f"{n} images, 5 labels, mAP {truth}",
            mean_average_precision(n, signal),
            n // 10,
            False,
        )
        for n, name, signal, truth in (
            (100, "weak", 1.0, 0.5),
            (100, "excellent", 3.0, 0.94),
            (300, "weak", 1.0, 0.5),
            (1000, "weak", 1.0, 0.5),
        )
    },
    "int8-few": Simulation(
        "int8 loss", "Tango", "n = 64, 0.5% lost and gained", paired_loss(64, 0.005, 0.005), 1, False
    ),
    "int8": Simulation("int8 loss", "Tango", "n = 1000, 2% lost, 0.5% gained", paired_loss(1000, 0.02, 0.005)),
    "int8-none": Simulation("int8 loss", "Tango", "n = 1000, nothing changes", paired_loss(1000, 0, 0), 1, False),
    "mosaic": Simulation("grid pointing game", "t over mosaics", "16 mosaics x 4 questions", clusters(16, 4)),
    "mosaic-few": Simulation("pair", "t over pairs", "8 pairs x 4 questions", clusters(8, 4)),
    "deletion": Simulation("deletion, insertion, SaCo", "t over images", "64 skewed values", images(64)),
    "deletion-few": Simulation("deletion, insertion, SaCo", "t over images", "12 skewed values", images(12)),
    "randomization": Simulation(
        "randomization", "two-way t", "9 models x 11 images, models differ", models_and_images(11, 0.1, 0.05, 0.05)
    ),
    "randomization-images": Simulation(
        "randomization", "two-way t", "9 models x 11 images, images differ", models_and_images(11, 0.02, 0.1, 0.05)
    ),
    "randomization-both": Simulation(
        "randomization", "two-way t", "9 models x 34 images", models_and_images(34, 0.05, 0.1, 0.1)
    ),
    "ece-calibrated": Simulation(
        "calibration error", "test inversion", "n = 360, calibrated", calibration_error(360, 1.0), 20, False
    ),
    "ece-slightly": Simulation(
        "calibration error", "test inversion", "n = 1000, error 4%", calibration_error(1000, 1.15), 20
    ),
    "ece-clearly": Simulation(
        "calibration error", "test inversion", "n = 360, error 12%", calibration_error(360, 1.5), 20
    ),
    "ece-few": Simulation(
        "calibration error",
        "test inversion",
        "n = 50, accuracy 98%, confidence 99.99%",
        calibration_error_of_few(50, 0.98, 0.9999),
        20,
        False,
    ),
    "bias": Simulation("confidence minus accuracy", "MOVER", "n = 360, error 12%", confidence_bias(360), 4),
    "bias-few": Simulation(
        "confidence minus accuracy", "MOVER", "n = 50, calibrated, accuracy 99%", confidence_bias_of_few(50), 4, False
    ),
}
VERDICTS: dict[str, Simulation] = {
    "weakest-10": Simulation(
        "weakest class", "Fisher, Holm", "10 classes of 100, recall 0.8", weakest_class(10, 100, 0.8), 2
    ),
    "weakest-100": Simulation(
        "weakest class", "Fisher, Holm", "100 classes of 50, recall 0.8", weakest_class(100, 50, 0.8), 4
    ),
    "weakest-1000": Simulation(
        "weakest class", "Fisher, Holm", "1000 classes of 50, recall 0.8", weakest_class(1000, 50, 0.8), 20
    ),
    "border-10": Simulation("border evidence", "one-sided t, Bonferroni", "10 classes of 30", border(10, 30), 2),
    "border-small": Simulation("border evidence", "one-sided t, Bonferroni", "75 classes of 4", border(75, 4), 2),
    "property": Simulation(
        "accuracy by property", "permutation, Holm", "n = 360, accuracy 0.95", property_effect(360, 0.95), 10
    ),
    "calibration": Simulation("miscalibrated", "test inversion", "n = 360, calibrated", miscalibration(360), 20),
    "calibration-1000": Simulation("miscalibrated", "test inversion", "n = 1000, calibrated", miscalibration(1000), 20),
    "direction": Simulation(
        "over- or underconfident", "MOVER", "n = 50, calibrated, accuracy 99%", called_biased(50), 4
    ),
    "temperature": Simulation(
        "temperature helps or harms", "t over images", "n = 360, accuracy 99%", temperature_effect(360), 4
    ),
    "temperature-2000": Simulation(
        "temperature helps or harms", "t over images", "n = 2000, accuracy 99%", temperature_effect(2000), 10
    ),
    "thresholds": Simulation(
        "guarantee of a threshold",
        "exact bound, 20 candidates",
        "n = 200, accuracy 0.90, any confidence",
        broken_guarantee(200, 0.9),
        2,
    ),
    "thresholds-2000": Simulation(
        "guarantee of a threshold",
        "exact bound, 20 candidates",
        "n = 2000, accuracy 0.949, any confidence",
        broken_guarantee(2000, 0.949),
        4,
    ),
    "thresholds-fit": Simulation(
        "guarantee of a threshold",
        "exact bound, 20 candidates",
        "n = 500, temperature fitted on them",
        broken_guarantee_after_fit(500, 1.5),
        50,
    ),
    "tied": Simulation(
        "not the best method", "paired t, Bonferroni", "11 equal methods, 64 images", tied_method(11, 64), 4
    ),
    "labels": Simulation(
        "suspected labels", "disagreement fit", "n = 1000, accuracy 0.95, labels right", accused_label(3.3, 1.0), 20
    ),
    "labels-over": Simulation(
        "suspected labels", "disagreement fit", "the same, logits twice too large", accused_label(3.3, 2.0), 20
    ),
}


def simulate(simulation: Simulation, draws: int, seed: int = 0) -> float:
    """Returns the fraction of the draws that return true."""
    generator = np.random.default_rng(seed)
    return float(np.mean([simulation.draw(generator) for _ in range(draws)]))


def simulate_suspects(signal: float, noise: float, draws: int, overconfidence: float = 1.0) -> dict[str, float]:
    """Returns means over draws of 1000 images: how many labels are suspected, and how many of these are wrong."""
    generator = np.random.default_rng(0)
    rows: dict[str, list[float]] = {"accuracy": [], "listed": [], "right": [], "unruled": [], "unruled right": []}
    for _ in range(draws):
        outcome, wrong = draw_noisy_labels(generator, 1000, signal, noise, overconfidence=overconfidence)
        all_suspects = [row["image"] for row in find_label_errors(outcome)]
        listed = [row["image"] for row in suspect_labels(outcome).rows]
        rows["accuracy"].append(outcome.accuracy)
        rows["listed"].append(len(listed))
        rows["right"].append(int(wrong[listed].sum()))
        rows["unruled"].append(len(all_suspects))
        rows["unruled right"].append(int(wrong[all_suspects].sum()))
    return {name: float(np.mean(values)) for name, values in rows.items()}


SIGNALS = {
    0.5: 1.5,
    0.7: 2.05,
    0.8: 2.4,
    0.9: 2.9,
    0.95: 3.3,
    0.98: 3.75,
    0.99: 4.1,
}  # accuracy with ten classes -> signal


def format_tables(draws: int) -> str:
    """Runs all simulations and returns their tables."""
    lines = []
    tables = (
        ("Simulated coverage of the intervals", "coverage", "nominal: 95%", INTERVALS),
        ("Simulated false findings where there is nothing to find", "false findings", "nominal: at most 5%", VERDICTS),
    )
    for title, column, nominal, table in tables:
        lines += [f"## {title}", "", f"| figure | method | data | draws | {column} ({nominal}) |"]
        lines += ["| --- | --- | --- | ---: | ---: |"]
        for name, row in table.items():
            started, n = time.perf_counter(), max(draws // row.slow, 20)
            rate = simulate(row, n)
            lines.append(f"| {row.figure} | {row.method} | {row.data} | {n:,} | {rate:.1%} |")
            print(f"{name:22} {rate:.4f}  {time.perf_counter() - started:6.1f} s", flush=True)
        lines.append("")
    lines += [
        "## Suspected labels by the accuracy of the model", "",
        "1000 images of ten classes, of which a fraction has a wrong label. Confident learning alone suspects the "
        "labels of the third column; the rule lists those of the fifth.", "",
        "| accuracy of the model | wrong labels | suspects | of these wrong | with the rule | of these wrong |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for accuracy, signal in SIGNALS.items():
        for noise in (0.0, 0.01, 0.03, 0.08):
            row = simulate_suspects(signal, noise, max(draws // 200, 5))
            before = f"{row['unruled']:.0f} | {row['unruled right'] / max(row['unruled'], 1e-9):.0%}"
            after = f"{row['right'] / row['listed']:.0%}" if row["listed"] >= 0.5 else "-"
            lines.append(f"| {accuracy:.0%} | {noise:.0%} | {before} | {row['listed']:.1f} | {after} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints a line for each simulation and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--only", choices=[*INTERVALS, *VERDICTS], help="print this simulation only")
    parser.add_argument("--out", type=Path, default=Path("docs/statistics.md"))
    arguments = parser.parse_args()
    if arguments.only:
        simulation = (INTERVALS | VERDICTS)[arguments.only]
        print(simulate(simulation, max(arguments.draws // simulation.slow, 20)))
        return
    text = arguments.out.read_text(encoding="utf-8").partition(MARK)[0]
    arguments.out.write_text(f"{text}{MARK}\n\n{format_tables(arguments.draws)}", encoding="utf-8")


if __name__ == "__main__":
    main()
