"""Intervals and verdicts: against other libraries and definitions, and their coverage and false findings by simulation.

`python -m tools.simulate_intervals` runs the same simulations with more draws, for docs/statistics.md.
"""

import math

import numpy as np
import pytest
from scipy import optimize, stats
from tools.simulate_intervals import INTERVALS, SIGNALS, VERDICTS, Simulation, draw_noisy_labels, simulate

from vitrail.evaluation.label_errors import suspect_labels
from vitrail.intervals import (
    bootstrap_counts,
    exact_interval,
    f1_interval,
    holm,
    homogeneity_p_value,
    lower_tail_p_values,
    mean_of_proportions_interval,
    paired_difference_interval,
    percentile_interval,
    t_interval,
    two_way_interval,
    upper_bound,
    wilson_interval,
)

DRAWS = 1500
MAX_SLOW = 30  # slower simulations are only in the table of docs/statistics.md


def draws_of(simulation: Simulation) -> int:
    return max(DRAWS // simulation.slow, 60)


def standard_error(rate: float, draws: int) -> float:
    return math.sqrt(rate * (1 - rate) / draws)


@pytest.mark.parametrize("name", [name for name, each in INTERVALS.items() if each.slow <= MAX_SLOW])
def test_an_interval_has_its_nominal_coverage(name: str):
    """Within two points of 95%, plus three standard errors of the simulation; a discrete one may cover more."""
    simulation, draws = INTERVALS[name], draws_of(INTERVALS[name])
    coverage, tolerance = simulate(simulation, draws), 0.02 + 3 * standard_error(0.95, draws)
    assert coverage >= 0.95 - tolerance
    assert coverage <= (0.95 + tolerance if simulation.exact else 1)


@pytest.mark.parametrize("name", VERDICTS)
def test_a_verdict_finds_nothing_where_there_is_nothing(name: str):
    """At most in 5% of the draws, plus three standard errors of the simulation."""
    draws = draws_of(VERDICTS[name])
    assert simulate(VERDICTS[name], draws) <= 0.05 + 3 * standard_error(0.05, draws)


def test_verdicts_find_what_is_there():
    from vitrail.report.verdicts import compare_classes, exceeds, find_dependencies

    rows = [{"class": str(i), "images": 50, "recall": 0.9} for i in range(20)]
    rows[7]["recall"] = 0.4
    rows += [{"class": "rare", "images": 19, "recall": 0.0}]
    assert compare_classes(rows) == {"min_images": 20, "judged_classes": 20, "weak_classes": ["7"]}
    shares = np.random.default_rng(0).beta(4, 6, (3, 40))
    assert exceeds([shares[0], shares[1] + 0.3, shares[2, :19] + 0.3], 0.4) == [False, True, False]
    dark = [{"images": 40, "accuracy": accuracy} for accuracy in (0.5, 0.8, 0.9, 0.9, 0.9)]
    even = [{"images": 40, "accuracy": accuracy} for accuracy in (0.8, 0.85, 0.8, 0.75, 0.8)]
    assert find_dependencies({"brightness": dark, "sharpness": even}) == ["brightness"]


@pytest.mark.parametrize(("lost", "gained", "n"), [(0, 0, 8), (1, 0, 44), (9, 2, 60), (3, 3, 1000), (20, 0, 20)])
def test_the_interval_of_a_paired_difference_inverts_the_score_test(lost: int, gained: int, n: int):
    """At an end, the score with the rates that maximize the likelihood there, found numerically, is 1.96."""

    def score(difference: float) -> float:
        def loss(rate: float) -> float:
            counts, rates = np.array([lost, gained, n - lost - gained]), np.array([rate + difference, rate, 0.0])
            rates[2] = 1 - rates[0] - rates[1]
            return -float((counts * np.log(np.maximum(rates, 1e-300))).sum())

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        rate = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        return (lost - gained - n * difference) / math.sqrt(n * (2 * rate + difference - difference**2))

    low, high = paired_difference_interval(lost, gained, n)
    assert low < (lost - gained) / n <= high
    assert score(low) == pytest.approx(1.96, abs=2e-3)
    if high < 1:
        assert score(high) == pytest.approx(-1.96, abs=2e-3)


def test_no_flip_on_eight_images_excludes_little():
    low, high = paired_difference_interval(0, 0, 8)
    assert (-low, high) == pytest.approx((1.96**2 / (8 + 1.96**2),) * 2, abs=1e-4)
    assert high > 0.3


def test_bounds_and_p_values_equal_those_of_scipy():
    for errors, n in ((0, 20), (3, 50), (20, 20)):
        expected = stats.binomtest(errors, n, alternative="less").proportion_ci(0.99, method="exact").high
        assert upper_bound(np.array(errors), np.array(n), 0.99) == pytest.approx(expected)
    assert wilson_interval(7, 20) == pytest.approx(
        tuple(stats.binomtest(7, 20).proportion_ci(method="wilson")), abs=1e-9
    )
    for successes in (0, 7, 20):
        expected = stats.binomtest(successes, 20).proportion_ci(method="exact")
        assert exact_interval(successes, 20) == pytest.approx((expected.low, expected.high))
    values = np.random.default_rng(0).normal(3, 2, 12)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((expected.low, expected.high))
    assert t_interval(values[:1]) is None
    correct, n = np.array([30, 40, 45]), np.array([50, 50, 50])
    for i, p_value in enumerate(lower_tail_p_values(correct, n)):
        others = correct.sum() - correct[i], n.sum() - n[i]
        table = [[correct[i], n[i] - correct[i]], [others[0], others[1] - others[0]]]
        assert p_value == pytest.approx(stats.fisher_exact(table, alternative="less").pvalue)


def test_the_p_value_of_homogeneity_is_near_that_of_chi_squared():
    correct, n = np.array([200, 220, 180, 210]), np.array([300, 300, 300, 300])
    expected = stats.chi2_contingency([correct, n - correct]).pvalue
    actual = homogeneity_p_value(correct, n, np.random.default_rng(0), permutations=20_000)
    assert actual == pytest.approx(expected, rel=0.3)
    assert homogeneity_p_value(n, n, np.random.default_rng(0)) == 1  # no mistake depends on nothing


def test_holm_rejects_step_by_step():
    p_values = np.array([0.011, 0.9, 0.02, 0.012])
    assert holm(p_values).tolist() == [True, False, True, True]
    assert holm(np.array([0.013, 0.9, 0.001, 0.03])).tolist() == [True, False, True, False]
    assert holm(np.array([0.02, 0.02, 0.02])).tolist() == [False] * 3


def test_the_interval_of_f1_holds_it_and_has_a_width():
    low, high = f1_interval(30, 10)
    assert low < 2 * 30 / (2 * 30 + 10) < high
    assert f1_interval(5, 0)[0] < 0.75
    assert f1_interval(5, 0)[1] == pytest.approx(1)


def test_the_mean_of_equal_proportions_has_the_interval_of_their_sum():
    n = np.full(10, 40)
    low, high = mean_of_proportions_interval(np.full(10, 30), n)
    assert (low, high) == pytest.approx(wilson_interval(300, 400), abs=0.01)
    assert mean_of_proportions_interval(n, n)[0] == pytest.approx(wilson_interval(400, 400)[0])


def test_the_bootstrap_of_counts_has_the_spread_of_a_proportion():
    resampled = bootstrap_counts(np.array([300, 100]), np.random.default_rng(0))
    assert (resampled.sum(axis=1) == 400).all()
    low, high = percentile_interval(resampled[:, 0] / 400)
    assert (low, high) == pytest.approx(wilson_interval(300, 400), abs=0.01)


def test_more_images_do_not_narrow_what_the_models_decide():
    generator = np.random.default_rng(0)
    of_models = generator.normal(0, 1, (3, 3, 1))
    few, many = (np.diff(two_way_interval(of_models + generator.normal(0, 0.1, (3, 3, n))))[0] for n in (10, 1000))
    assert many > 0.8 * few
    assert two_way_interval(np.zeros((3, 1, 5))) is None


@pytest.mark.parametrize(("accuracy", "is_listed"), [(0.5, False), (0.7, False), (0.95, True), (0.98, True)])
def test_labels_are_suspected_only_by_a_model_that_is_good_enough(accuracy: float, is_listed: bool):
    right = listed = 0
    for seed in range(4):
        outcome, wrong = draw_noisy_labels(np.random.default_rng(seed), 1000, SIGNALS[accuracy], 0.04)
        result = suspect_labels(outcome)
        suspects = [row["image"] for row in result.rows]
        right, listed = right + int(wrong[suspects].sum()), listed + len(suspects)
        assert bool(result.rows) == is_listed
        assert (result.reason is None) == is_listed
        if is_listed:
            assert result.wrong_fraction == pytest.approx(0.04, abs=0.025)
        else:
            assert f"the model's accuracy is {outcome.accuracy:.1%}; below 80%" in result.reason
    assert right >= 0.75 * listed
    assert not is_listed or right > 0.5 * 0.04 * 4000  # most wrong labels are found


def test_few_images_and_perfect_models_accuse_nobody():
    outcome, _ = draw_noisy_labels(np.random.default_rng(0), 99, 4.0, 0.1)
    assert "99 images are too few" in suspect_labels(outcome).reason
    outcome, _ = draw_noisy_labels(np.random.default_rng(0), 500, 12.0, 0.0)
    assert suspect_labels(outcome).reason == "model and labels agree on all images"
