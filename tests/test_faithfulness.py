"""Measures of faithfulness against plain computations, and maps on images whose evidence is known."""

import json

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from sklearn.metrics import average_precision_score

from planted import CLASSES, PATCH, SIDE, PlantedImages, make_planted_images, train_planted_classifier
from test_explain import attend_functions
from vitrail.classifier import Classifier
from vitrail.data.images import Images
from vitrail.errors import UsageError
from vitrail.explanation.api import explain_batch
from vitrail.explanation.composites import draw_groups, make_mosaics, make_pairs
from vitrail.explanation.controls import CONTROLS
from vitrail.explanation.faithfulness import count_steps, evaluate_faithfulness
from vitrail.explanation.figures import save_faithfulness
from vitrail.explanation.inputs import embed_images
from vitrail.explanation.measures import (
    CURVES,
    MEASURES,
    area_under_curve,
    perturbation_curve,
    positive_share,
    rank_correlation,
    rank_patches,
    remaining_counts,
    saco,
    saco_from_groups,
)
from vitrail.explanation.methods import DEFAULT_METHOD, METHODS
from vitrail.explanation.randomization import SHUFFLED_MODELS, shuffled_models
from vitrail.explanation.scores import Faithfulness, MethodScores, is_above_chance, make_score, mark_best


@pytest.fixture(scope="session")
def trained_classifier() -> Classifier:
    return train_planted_classifier()


def compute_maps(clf: Classifier, pixels: torch.Tensor, labels: list[str], method: str) -> np.ndarray:
    return np.stack([each.map.ravel() for each in explain_batch(clf, pixels, method=method, target=labels)])


def class_names(numbers: np.ndarray) -> list[str]:
    return [CLASSES[i] for i in numbers]


# Images with planted objects.


@pytest.fixture(scope="session")
def one_object() -> PlantedImages:
    return make_planted_images(64, seed=1)


@pytest.fixture(scope="session")
def two_objects() -> PlantedImages:
    return make_planted_images(64, seed=2, objects=2)


def average_precision(clf: Classifier, data: PlantedImages, method: str) -> float:
    actual = compute_maps(clf, data.pixels, class_names(data.labels[:, 0]), method)
    return float(np.mean([average_precision_score(t, m) for t, m in zip(data.truth[:, 0], actual, strict=True)]))


def object_share(clf: Classifier, data: PlantedImages, method: str) -> float:
    """The mean share over both objects, each explained once."""
    actual = []
    for index in (0, 1):
        map_of = compute_maps(clf, data.pixels, class_names(data.labels[:, index]), method)
        actual.append(positive_share(map_of, data.truth[:, index], data.truth[:, 1 - index], chance=0.5))
    return float(np.mean(actual))


def test_the_classifier_has_learned_the_planted_objects(trained_classifier, one_object):
    predicted = trained_classifier.logits(one_object.pixels).argmax(1).numpy()
    assert (predicted == one_object.labels[:, 0]).mean() == 1


def test_the_default_finds_the_object_among_distractors(trained_classifier, one_object):
    assert average_precision(trained_classifier, one_object, DEFAULT_METHOD) >= 0.85
    assert average_precision(trained_classifier, one_object, DEFAULT_METHOD) > average_precision(
        trained_classifier, one_object, "input_x_gradient"
    )


def test_the_default_puts_the_evidence_on_the_explained_object(trained_classifier, two_objects):
    assert object_share(trained_classifier, two_objects, DEFAULT_METHOD) >= 0.95


@pytest.mark.parametrize("method", ["attention", "rollout"])
def test_class_blind_maps_give_the_explained_object_half(trained_classifier, two_objects, method):
    assert object_share(trained_classifier, two_objects, method) == pytest.approx(0.5, abs=1e-6)


def test_shuffled_weights_give_other_maps(trained_classifier, one_object):
    labels = class_names(one_object.labels[:, 0])
    before = compute_maps(trained_classifier, one_object.pixels, labels, DEFAULT_METHOD)
    assert rank_correlation(before, before).min() == pytest.approx(1)
    for model in shuffled_models(trained_classifier, seed=0, draws=1):  # its head, its upper half, all layers
        after = compute_maps(model, one_object.pixels, labels, DEFAULT_METHOD)
        assert rank_correlation(before, after).mean() < 0.4


@pytest.fixture(scope="session")
def scores(trained_classifier, one_object) -> Faithfulness:
    return evaluate_faithfulness(
        trained_classifier,
        one_object.images(),
        methods=["libragrad", "rollout", "input_x_gradient"],
        max_images=48,
        description="planted",
    )


def test_the_default_is_more_faithful_than_rollout_and_any_control(scores):
    def mean(name: str, measure: str) -> float:
        return scores.methods[name].scores[measure].mean

    for other in ("rollout", *CONTROLS):
        assert mean(DEFAULT_METHOD, "deletion") < mean(other, "deletion")
        assert mean(DEFAULT_METHOD, "insertion") > mean(other, "insertion")
        assert mean(DEFAULT_METHOD, "saco") > mean(other, "saco")
        assert mean(DEFAULT_METHOD, "pair") > mean(other, "pair")
    assert mean("rollout", "pair") == pytest.approx(0.5, abs=1e-6)
    assert mean("rollout", "mosaic") == pytest.approx(0.25, abs=1e-6)
    assert abs(mean("random", "saco")) < 0.3
    assert mean("center", "randomization") == 1


# The scores.


def test_the_document_has_every_number(scores):
    document = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert (document["images"], document["data"]) == (48, "planted")
    assert list(document["methods"]) == ["libragrad", "rollout", "input_x_gradient", *CONTROLS]
    assert document["measures"].keys() == MEASURES.keys()
    for name, row in document["methods"].items():
        assert row["control"] == (name in CONTROLS)
        assert len(row["curves"]["deletion"]) == len(row["curves"]["insertion"]) == len(document["remaining"]) == 13
        for measure in MEASURES:
            low, high = row[measure]["interval"]
            assert low <= row[measure]["mean"] <= high
        assert row["deletion"]["images"] == 48
        assert row["mosaic"]["images"] <= 12  # composites, not the four questions about each
        assert row["pair"]["images"] <= 12
        assert row["randomization"]["images"] == 8
    assert document["methods"]["rollout"]["class_blind"]
    assert document["methods"]["libragrad"]["signed"]
    assert document["methods"]["libragrad"]["milliseconds"] > 0


def test_in_every_measure_a_method_is_best_and_no_control_is(scores):
    for measure, about in MEASURES.items():
        actual = {
            name: row.scores[measure]
            for name, row in scores.methods.items()
            if not row.is_control and is_above_chance(row.scores[measure], about)
        }
        assert DEFAULT_METHOD in actual
        pick = min if about.better == "lower" else max
        top = pick(actual, key=lambda name: actual[name].mean)
        assert actual[top].is_best
        assert not any(row.scores[measure].is_best for row in scores.methods.values() if row.is_control)
    assert not scores.methods["input_x_gradient"].scores["deletion"].is_best


def test_the_same_seed_gives_the_same_scores(trained_classifier, one_object):
    one, other = (
        evaluate_faithfulness(trained_classifier, one_object.images(), methods=["libragrad"], max_images=12)
        for _ in range(2)
    )
    for measure in MEASURES:
        assert (
            one.methods["libragrad"].scores[measure].values == other.methods["libragrad"].scores[measure].values
        ).all()


def test_scoring_does_not_change_the_model(trained_classifier, one_object):
    before = {name: tensor.clone() for name, tensor in trained_classifier.vit.state_dict().items()}
    kernels, seen = attend_functions(trained_classifier.vit), []
    evaluate_faithfulness(
        trained_classifier, one_object.images(), methods=["chefer"], max_images=4, steps=3, on_step=seen.append
    )
    assert seen[: 1 + len(CONTROLS)] == ["chefer", *CONTROLS]
    assert seen[-1] == f"shuffled weights {SHUFFLED_MODELS} of {SHUFFLED_MODELS}"
    assert len(seen) == count_steps(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in trained_classifier.vit.state_dict().items())
    assert attend_functions(trained_classifier.vit) == kernels


def test_an_extra_method_gets_the_same_scores(trained_classifier, one_object):
    def theirs(classifier: Classifier, pixels: torch.Tensor, labels: list[str]) -> np.ndarray:
        return compute_maps(classifier, pixels, labels, "libragrad")

    actual = evaluate_faithfulness(
        trained_classifier, one_object.images(), methods=["libragrad"], max_images=24, extra_methods={"theirs": theirs}
    )
    for measure in MEASURES:
        ours, other = (actual.methods[name].scores[measure] for name in ("libragrad", "theirs"))
        assert ours.mean == other.mean
        assert ours.is_best and other.is_best


def test_a_measure_without_images_is_none(trained_classifier, one_object):
    """Mosaics need four classes, pairs two; one image has neither."""
    only = one_object.images().subset([0])
    actual = evaluate_faithfulness(trained_classifier, only, methods=["libragrad"])
    assert actual.methods["libragrad"].scores["mosaic"] is None
    assert actual.methods["libragrad"].scores["pair"] is None
    assert actual.methods["libragrad"].scores["deletion"].interval is None  # one image has no spread
    json.dumps(actual.to_json(), allow_nan=False)


def test_the_scores_can_be_drawn(scores, trained_classifier, one_object, tmp_path):
    save_faithfulness(scores, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 10_000
    save_faithfulness(
        evaluate_faithfulness(trained_classifier, one_object.images().subset([0]), methods=["logit_lens"]),
        tmp_path / "one.svg",
    )
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")


def test_wrong_arguments_are_refused(trained_classifier, one_object):
    with pytest.raises(UsageError, match="no method 'libragrd'.*libragrad"):
        evaluate_faithfulness(trained_classifier, one_object.images(), methods=["libragrd"])
    with pytest.raises(UsageError, match="no images"):
        evaluate_faithfulness(trained_classifier, one_object.images(), max_images=0)
    empty = Images(one_object.pixels[:0], [], np.array([], int), CLASSES)
    with pytest.raises(UsageError, match="no images"):
        evaluate_faithfulness(trained_classifier, empty)


# The measures.


def test_a_curve_is_the_probability_without_the_first_patches(trained_classifier, one_object):
    inputs = embed_images(trained_classifier, one_object.pixels[:3], [(2, None)] * 3)
    order = np.stack([np.random.default_rng(i).permutation(36) for i in range(3)])
    actual = perturbation_curve(inputs, order, steps=5)
    painted = perturbation_curve(inputs, order, steps=5, use_baseline=True)
    assert remaining_counts(36, 5) == [36, 29, 22, 15, 8, 1]
    for image in range(3):
        for point, n in enumerate(remaining_counts(36, 5)):
            keep = torch.from_numpy(np.sort(order[image, 36 - n :]))[None]
            alone = embed_images(trained_classifier, one_object.pixels[image : image + 1], [(2, None)])
            with torch.no_grad():
                expected = alone.logits_of_patches(keep).softmax(1)[0, 2]
                pixels = trained_classifier.normalize(one_object.pixels[image : image + 1])
                for patch in order[image, : 36 - n]:
                    y, x = PATCH * (patch // 6), PATCH * (patch % 6)
                    pixels[:, :, y : y + PATCH, x : x + PATCH] = 0
                gray = trained_classifier.vit(pixels).softmax(1)[0, 2]
            assert actual[image, point] == pytest.approx(float(expected), abs=1e-5)
            assert painted[image, point] == pytest.approx(float(gray), abs=1e-5)


def test_the_intact_images_pass_through_the_model_once_for_all_measures(trained_classifier, one_object):
    """Three curves of five steps, of which each begins with the intact images, and the eight groups of SaCo."""
    inputs = embed_images(trained_classifier, one_object.pixels[:3], [(2, None)] * 3)
    order = np.stack([np.random.default_rng(i).permutation(36) for i in range(3)])
    passes = []
    hook = trained_classifier.vit.head.register_forward_hook(lambda *_: passes.append(1))
    try:
        curves = [compute(inputs, order, 5) for compute in CURVES.values()]
        saco(inputs, np.random.default_rng(0).random((3, 36)), order)
    finally:
        hook.remove()
    assert len(passes) == 1 + 3 * 5 + 8
    every_patch = torch.arange(36).expand(3, -1)
    with torch.no_grad():
        intact = inputs.probability(inputs.logits_of_patches(every_patch)).double().numpy()
    assert all((curve[:, 0] == intact).all() for curve in curves)


def test_a_curve_has_at_most_one_point_per_patch():
    assert remaining_counts(4, 12) == [4, 3, 2, 1]
    assert remaining_counts(1, 12) == [1]
    assert remaining_counts(196, 12)[:2] == [196, 180]
    assert area_under_curve(np.array([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]]), [5, 3, 1]).tolist() == [0.5, 1.0]
    assert area_under_curve(np.array([[0.3]]), [1]).tolist() == [0.3]


def test_the_area_has_the_true_widths_of_the_steps():
    remaining = remaining_counts(16, 10)  # steps of one and of two patches
    assert set(-np.diff(remaining)) == {1, 2}
    removed = (16 - np.array(remaining)) / 15
    curve = np.stack([removed, removed**2])
    expected = trapezoid(curve, removed, axis=1)  # of SciPy: NumPy before 2 has another name for it
    np.testing.assert_allclose(area_under_curve(curve, remaining), expected, atol=1e-12)
    assert expected[0] == pytest.approx(0.5)


def test_insertion_is_deletion_of_the_negated_map(trained_classifier, one_object):
    clf, pixels = trained_classifier, one_object.pixels[:4]
    map_of = np.random.default_rng(0).random((4, 36))
    inputs = embed_images(clf, pixels, [(1, None)] * 4)
    least_first = perturbation_curve(inputs, rank_patches(map_of)[:, ::-1].copy(), 6)
    np.testing.assert_allclose(least_first, perturbation_curve(inputs, rank_patches(-map_of), 6), atol=1e-6)


def test_saco_equals_its_definition(trained_classifier, one_object):
    inputs = embed_images(trained_classifier, one_object.pixels[:3], [(i, None) for i in one_object.labels[:3, 0]])
    map_of = compute_maps(
        trained_classifier, one_object.pixels[:3], class_names(one_object.labels[:3, 0]), "libragrad"
    ).astype(float)
    actual = saco(inputs, map_of, rank_patches(map_of), groups=6)
    for image in range(3):
        order, target = np.argsort(-map_of[image]), int(one_object.labels[image, 0])
        groups = order.reshape(6, 6)
        alone = embed_images(trained_classifier, one_object.pixels[image : image + 1], [(target, None)])
        with torch.no_grad():
            whole = alone.logits(alone.x_BTD).softmax(1)[0, target]
            keeps = [torch.tensor([sorted(set(range(36)) - set(group.tolist()))]) for group in groups]
            costs = [float(whole - alone.logits_of_patches(keep).softmax(1)[0, target]) for keep in keeps]
        faith = total = 0.0
        for i in range(6):
            for j in range(i + 1, 6):
                gap = map_of[image, groups[i]].sum() - map_of[image, groups[j]].sum()
                faith += gap if costs[i] >= costs[j] else -gap
                total += abs(gap)
        assert actual[image] == pytest.approx(faith / total, abs=1e-5)


def test_saco_of_a_correct_a_reversed_and_a_constant_map():
    cost = np.array([[3.0, 2.0, 1.0]])
    assert saco_from_groups(np.array([[9.0, 5.0, 1.0]]), cost) == pytest.approx(1)
    assert saco_from_groups(np.array([[9.0, 5.0, 1.0]]), cost[:, ::-1]) == pytest.approx(-1)
    assert saco_from_groups(np.array([[2.0, 2.0, 2.0]]), cost) == pytest.approx(0)


def test_ties_are_in_random_order():
    order = rank_patches(np.zeros((200, 9)))
    assert all(sorted(row) == list(range(9)) for row in order)
    assert 2.5 < order[:, 0].mean() < 5.5
    assert (rank_patches(np.arange(9.0)[None]) == np.arange(9)[::-1]).all()


def test_the_share_counts_positive_relevance_only():
    own, other = np.array([[1, 1, 0, 0]], bool), np.array([[0, 0, 1, 0]], bool)
    assert positive_share(np.array([[3.0, -9.0, 1.0, 50.0]]), own, other, 0.5) == pytest.approx(0.75)
    assert positive_share(np.array([[-1.0, 0.0, -1.0, 0.0]]), own, other, 0.25) == pytest.approx(0.25)


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(0).integers(0, 5, (2, 4, 20)).astype(float)
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b), expected, atol=1e-12)
    even = np.ones((1, 20))
    assert rank_correlation(even, even) == 1
    assert rank_correlation(even, a[:1]) == 0


def test_a_class_blind_map_is_exactly_at_chance_and_never_best(scores):
    for measure, chance in (("mosaic", 0.25), ("pair", 0.5)):
        for name in ("rollout", *CONTROLS):
            score = scores.methods[name].scores[measure]
            assert score.interval == pytest.approx((chance, chance), abs=1e-6)
            assert not score.is_best
    blind = make_score(np.tile([0.7, 0.3, 0.4, 0.6], (5, 1)), MEASURES["pair"])
    lone = {"rollout": MethodScores(dict.fromkeys(MEASURES) | {"pair": blind}, {}, 1.0, 1.0)}
    assert not mark_best(lone)["rollout"].scores["pair"].is_best  # the only method, and no better than chance


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_map_does_not_depend_on_the_other_images_of_the_batch(control, one_object):
    batch = CONTROLS[control](one_object.pixels[:5], 6, 6, 0)
    single = CONTROLS[control](one_object.pixels[3:4], 6, 6, 0)
    np.testing.assert_array_equal(batch[3], single[0])


def test_composites_share_no_photograph(one_object):
    labels = class_names(one_object.labels[:, 0])
    for size, count in ((4, 16), (2, 32), (2, 7)):
        groups = draw_groups(labels, size, count, seed=0)
        used = [index for group in groups[:: 1 if size == 4 else 2] for index in group]
        assert len(used) == len(set(used))
        assert all(len({labels[i] for i in group}) == size for group in groups)


# Composite images.


def test_a_mosaic_has_four_classes_each_explained_in_its_corner(one_object):
    labels = class_names(one_object.labels[:, 0])
    actual = make_mosaics(one_object.pixels, labels, PATCH, count=5, seed=0)
    assert actual.pixels.shape == (20, 3, SIDE, SIDE)
    for first in range(0, 20, 4):
        assert len(set(actual.labels[first : first + 4])) == 4
        assert (actual.pixels[first] == actual.pixels[first + 3]).all()
        assert (actual.object_MP[first : first + 4].sum(0) == 1).all()
    assert (actual.object_MP ^ actual.other_MP).all()
    assert actual.object_MP[0].reshape(6, 6)[:3, :3].all()


def test_a_pair_comes_in_both_orders(one_object):
    labels = class_names(one_object.labels[:, 0])
    actual = make_pairs(one_object.pixels, labels, PATCH, count=4, seed=0)
    assert actual.labels[0] == actual.labels[3]
    assert actual.labels[1] == actual.labels[2] != actual.labels[0]
    assert (actual.pixels[0][:, :, : SIDE // 2] == actual.pixels[2][:, :, SIDE // 2 :]).all()
    assert actual.object_MP[0].reshape(6, 6)[:, :3].all()
    assert not (actual.object_MP & actual.other_MP).any()


def test_a_patch_across_the_border_belongs_to_no_object(one_object):
    pixels = one_object.pixels[..., :20]  # five patches wide
    actual = make_pairs(pixels, class_names(one_object.labels[:, 0]), PATCH, count=2, seed=0)
    assert not (actual.object_MP | actual.other_MP).reshape(-1, 6, 5)[:, :, 2].any()


def test_too_few_classes_give_no_composites(one_object):
    assert make_mosaics(one_object.pixels[:3], ["a", "a", "b"], PATCH, 4, 0) is None
    assert make_pairs(one_object.pixels[:2], ["a", "a"], PATCH, 4, 0) is None
    assert make_pairs(one_object.pixels[:0], [], PATCH, 4, 0) is None


def test_shuffling_keeps_the_values_of_each_tensor_and_the_original(trained_classifier):
    before = {name: tensor.clone() for name, tensor in trained_classifier.vit.state_dict().items()}
    models = shuffled_models(trained_classifier, seed=0, draws=1)
    head, upper, all_layers = ({name: each.clone() for name, each in m.vit.state_dict().items()} for m in models)
    for name, tensor in before.items():
        assert torch.equal(trained_classifier.vit.state_dict()[name], tensor)
        assert torch.equal(all_layers[name].flatten().sort().values, tensor.flatten().sort().values)
        assert torch.equal(head[name], tensor) == (not name.startswith("head."))
        assert torch.equal(upper[name], tensor) == (name.startswith(("blocks.0", "blocks.1", "patch", "pos", "prefix")))
    assert len({id(model.vit) for model in shuffled_models(trained_classifier, seed=0)}) == 1  # one copy in memory
    assert METHODS.keys() >= {DEFAULT_METHOD}
