"""Numbers and grades: every verb works on them, or refuses in a sentence before any work.

The images have a disk: its place is two numbers, its size a grade.
"""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread
from PIL import Image

import vitrail
from document_types import check_document
from serving import RunningServer
from test_tasks import ELSEWHERE, answer, is_sweep_by
from test_user_code import results
from vitrail import documents, number_documents
from vitrail.cli.main import VERBS, main
from vitrail.data.check import check_data
from vitrail.data.contact_sheets import group_by_fifth
from vitrail.data.open import open_data, open_source
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation.grades import quadratic_kappa, score_grades
from vitrail.evaluation.numbers import NumberEvaluation, NumberOutcome
from vitrail.evaluation.outcome import Outcome
from vitrail.evaluation.outcomes import compute_any_outcome
from vitrail.evaluation.probe import open_probe_data, probe
from vitrail.exporting.preparation import prepare_document
from vitrail.loading import load_any
from vitrail.target_scale import TargetScale
from vitrail.tasks import GRADES, REGRESSION
from vitrail.training.curves import draw_curves
from vitrail.training.losses import LOSSES, LossContext, make_loss
from vitrail.training.recipes import RECIPES

N = 96
TINY = ["--width", "32", "--depth", "2", "--heads", "2", "--patch", "4"]
FAST = [*TINY, "--epochs", "24", "--batch-size", "8", "--lr", "3e-3", "--flip", "0", "--validation-fraction", "0.2"]
KINDS = (REGRESSION, GRADES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with disks.csv (x and height of each disk) and grades.csv (its size)."""
    folder = tmp_path_factory.mktemp("disks")
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16]
    numbers, grades = ["path,x,height,id\n"], ["path,label\n"]
    for i in range(N):
        x, y, grade = random.uniform(3, 13), random.uniform(3, 13), int(random.integers(0, 4))
        pixels = random.integers(0, 40, (16, 16, 3)).astype(np.uint8)
        pixels[np.hypot(columns - x, rows - y) < 1.5 + grade] = 220
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
        numbers.append(f"{i:03}.png,{x:.3f},{1000 + 10 * y:.2f},{i}\n")
        grades.append(f"{i:03}.png,{grade} {'small' if grade < 2 else 'large'}\n")
    (folder / "disks.csv").write_text("".join(numbers))
    (folder / "grades.csv").write_text("".join(grades))
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that have learned the place and the size of the disks."""
    out = tmp_path_factory.mktemp("runs")
    assert main(["train", str(folder / "disks.csv"), "--out", str(out / REGRESSION), *FAST]) == 0
    options = ["--task", "grades", "--out", str(out / GRADES)]
    assert main(["train", str(folder / "grades.csv"), *options, *FAST]) == 0
    return {kind: out / kind for kind in KINDS}


def table_of(folder: Path, kind: str) -> Path:
    return folder / ("disks.csv" if kind == REGRESSION else "grades.csv")


# Losses: like a plain reference


def test_the_cumulative_loss_is_a_mean_over_borders():
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 3, 4, 4, 0])
    context = LossContext(RECIPES["small"].with_changes(label_smoothing=0.0), tuple("01234"), np.ones(5), GRADES, 5)
    loss = LOSSES["cumulative"](context)
    p = logits.softmax(1)
    expected = 0.0
    for image, label in enumerate(labels.tolist()):
        for border in range(4):  # the question: is the grade above this border?
            above = p[image, border + 1 :].sum()
            expected = expected - torch.log(above if label > border else 1 - above) / (7 * 4)
    assert torch.allclose(loss(logits, labels), expected, atol=1e-12)
    mixed = 0.3 * F.one_hot(labels, 5).double() + 0.7 * F.one_hot(labels.roll(1), 5).double()
    apart = 0.3 * loss(logits, labels) + 0.7 * loss(logits, labels.roll(1))
    assert torch.allclose(loss(logits, mixed), apart, atol=1e-12)
    huge = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    loss(huge, torch.tensor([2])).backward()
    assert huge.grad is not None and huge.grad.isfinite().all()
    frequencies = np.array([3, 1, 0, 0, 1])
    level = LOSSES["cumulative"](replace(context, class_counts=frequencies)).chance_level
    constant = torch.tensor(np.log(frequencies / 5 + 1e-12)).expand(5, 5)
    assert float(loss(constant, torch.tensor([0, 0, 0, 1, 4]))) == pytest.approx(level)


def test_losses_of_numbers_are_those_of_torch():
    context = LossContext(RECIPES["small"], ("a", "b"), np.array([4, 4]), REGRESSION, 4)
    outputs, targets = torch.randn(4, 2), torch.randn(4, 2)
    for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
        assert torch.equal(LOSSES[name](context)(outputs, targets), getattr(F, name)(outputs, targets))
    assert torch.equal(
        LOSSES["huber_loss"](context, delta=0.3)(outputs, targets), F.huber_loss(outputs, targets, delta=0.3)
    )


@pytest.mark.parametrize("loss", ["huber_loss:delta=0", "smooth_l1_loss:beta=-1"])
def test_impossible_arguments_of_losses_are_refused(loss: str):
    recipe = RECIPES["small"].with_changes(loss=loss)
    with pytest.raises(UsageError, match="delta is 0|beta is -1"):
        make_loss(LossContext(recipe, ("a",), np.array([4]), REGRESSION, 4))


# Scores: scikit-learn's


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_numbers_are_those_of_scikit_learn(seed: int):
    from sklearn import metrics

    random = np.random.default_rng(seed)
    true = random.normal(1e6, 3, (50, 2)) if seed % 2 else random.normal(0, 100, (50, 2))
    predicted = true + random.normal(0, 2, (50, 2))
    evaluation = NumberEvaluation(NumberOutcome([""] * 50, true, predicted, ("a", "b")))
    scores = evaluation.summary()
    assert scores["mae"] == pytest.approx(metrics.mean_absolute_error(true, predicted), abs=1e-9)
    assert scores["r2"] == pytest.approx(metrics.r2_score(true, predicted), abs=1e-9)
    rmse = metrics.mean_squared_error(true, predicted, multioutput="raw_values") ** 0.5
    assert scores["rmse"] == pytest.approx(rmse.mean(), abs=1e-9)
    for k, name in enumerate("ab"):
        assert evaluation.per_number[name]["r2"] == pytest.approx(
            metrics.r2_score(true[:, k], predicted[:, k]), abs=1e-9
        )
        low, high = evaluation.per_number[name]["mae_interval"] or (0, 0)
        assert low < evaluation.per_number[name]["mae"] < high
    constant = NumberOutcome([""] * 3, np.ones((3, 1)), np.array([[1.0], [1], [2]]), ("a",))
    assert constant.r2 == metrics.r2_score(constant.labels, constant.predicted) == 0
    check_document(scores, number_documents.NumberScores)


def test_intervals_of_numbers_count_groups():
    random = np.random.default_rng(0)
    shifts = np.repeat(random.normal(0, 3, 10), 20)  # the images of a group have similar errors
    true = random.normal(0, 5, (200, 1))
    outcome = NumberOutcome([""] * 200, true, true + shifts[:, None], ("a",))
    groups = tuple(str(i // 20) for i in range(200))
    (low, high), (group_low, group_high) = (
        NumberEvaluation(each).summary()["mae_interval"] or (0, 0)
        for each in (outcome, replace(outcome, groups=groups))
    )
    assert group_high - group_low > 2 * (high - low)
    assert NumberEvaluation(replace(outcome, groups=("one",) * 200)).summary()["mae_interval"] is None


def test_one_image_has_no_intervals():
    outcome = NumberOutcome([""], np.ones((1, 1)), np.array([[3.0]]), ("a",))
    assert [NumberEvaluation(outcome).summary()[f"{name}_interval"] for name in ("mae", "rmse", "r2")] == [None] * 3  # type: ignore[literal-required]


@pytest.mark.parametrize("groups", [None, 12])
def test_scores_of_grades_are_those_of_scikit_learn(groups: int | None):
    from sklearn.metrics import cohen_kappa_score, mean_absolute_error

    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 120)  # grade 4 does not occur
    logits = random.normal(0, 1, (120, 5)) + 3 * np.eye(5)[labels]
    names = None if groups is None else tuple(str(i % groups) for i in range(120))
    outcome = Outcome([""] * 120, labels, logits, tuple("01234"), groups=names)
    expected = cohen_kappa_score(labels, outcome.predicted, labels=range(5), weights="quadratic")
    assert quadratic_kappa(outcome) == pytest.approx(expected, abs=1e-9)
    scores = score_grades(outcome)
    assert scores["grade_mae"] == pytest.approx(mean_absolute_error(labels, outcome.predicted), abs=1e-9)
    assert scores["within_one"] == pytest.approx((np.abs(labels - outcome.predicted) <= 1).mean())
    low, high = scores["quadratic_kappa_interval"]
    assert low < expected < high
    right = replace(outcome, logits=10 * np.eye(5)[labels])
    perfect = score_grades(right)
    assert perfect["quadratic_kappa"] == 1 and perfect["quadratic_kappa_interval"][0] < 1
    assert quadratic_kappa(replace(right, labels=np.zeros(120, int), logits=np.eye(5)[[0] * 120])) == 0


# Data


def test_every_form_of_data_has_the_same_numbers(folder: Path, tmp_path: Path):
    names = [f"{i:03}.png" for i in range(N)]
    with (folder / "disks.csv").open() as file:
        rows = list(csv.DictReader(file))
    numbers = np.array([[float(row["height"]), float(row["x"])] for row in rows])
    images = [np.array(Image.open(folder / name)) for name in names]
    lines = [{"path": n, "x": x, "height": h} for n, (h, x) in zip(names, numbers.tolist(), strict=True)]
    (folder / "disks.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (folder / "one.csv").write_text("path,label\n" + "".join(f"{r['path']},{r['x']}\n" for r in rows))
    forms: dict[str, tuple[Any, np.ndarray]] = {
        "table": (folder / "disks.csv", numbers),
        "lines": (folder / "disks.jsonl", numbers),
        "label column": (folder / "one.csv", numbers[:, 1:]),
        "array": ((images, numbers), numbers),
        "tensor": ((images, torch.from_numpy(numbers[:, 0])), numbers[:, :1]),
        "floats": ((images, numbers[:, 0].tolist()), numbers[:, :1]),
    }
    try:
        import datasets
    except ImportError:
        pass
    else:
        features = datasets.Features({"image": datasets.Image(), "target": datasets.Value("float64")})
        values = {"image": [Image.fromarray(each) for each in images], "target": numbers[:, 1].tolist()}
        forms["hf"] = (datasets.Dataset.from_dict(values, features), numbers[:, 1:])
    assert main(["shard", str(folder / "one.csv"), "--out", str(tmp_path / "shards"), "--keep-order"]) == 0
    forms["shards"] = (tmp_path / "shards", numbers[:, 1:])
    for name, (data, expected) in forms.items():
        source = open_source(data, task=REGRESSION if name == "shards" else None)
        assert source.task == REGRESSION, name
        labels = source.splits["all"].labels
        assert np.array_equal(np.sort(labels.encode(labels.classes), axis=0), np.sort(expected, axis=0)), name
    assert open_source(folder / "disks.csv").splits["all"].labels.classes == ("height", "x")


def test_class_folders_are_grades_or_numbers(tmp_path: Path):
    for grade in ("2", "10", "9"):
        (tmp_path / "all" / grade).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (8, 8), 20 * int(grade) + i).save(tmp_path / "all" / grade / f"{i}.png")
    assert open_data(tmp_path / "all").classes == ("10", "2", "9")
    splits = {task: open_source(tmp_path / "all", task=task).splits["all"] for task in KINDS}
    assert splits[GRADES].labels.classes == ("2", "9", "10")
    assert set(splits[REGRESSION].labels.encode(("value",)).ravel()) == {2.0, 9.0, 10.0}
    (tmp_path / "all" / "9").rename(tmp_path / "all" / "nine")
    with pytest.raises(VitrailError, match="the grade 'nine' does not begin with a number"):
        open_source(tmp_path / "all", task=GRADES)
    with pytest.raises(VitrailError, match="is 'nine', which is not a finite number"):
        open_source(tmp_path / "all", task=REGRESSION)
    (tmp_path / "all" / "nine").rename(tmp_path / "all" / "2.0 b")
    with pytest.raises(VitrailError, match=r"the grades '2' and '2\.0 b' have the same number"):
        open_source(tmp_path / "all", task=GRADES)


ROWS = "path,x\n" + "".join(f"{i:03}.png,{i / 7:.3f}\n" for i in range(30))
BAD_TABLES = [
    (ROWS.replace("004.png,0.571", "004.png,"), None, "line 6: the column 'x' is empty"),
    (
        ROWS.replace("004.png,0.571", "004.png,big"),
        None,
        "line 6: the column 'x' is 'big', which is not a finite number",
    ),
    (
        ROWS.replace("004.png,0.571", "004.png,nan"),
        None,
        "line 6: the column 'x' is 'nan', which is not a finite number",
    ),
    (
        ROWS.replace("004.png,0.571", "004.png,inf"),
        None,
        "line 6: the column 'x' is 'inf', which is not a finite number",
    ),
    ("path,x\n" + "".join(f"{i:03}.png,3.5\n" for i in range(30)), None, "'x' is 3.5 in all training images"),
    (
        "path,n\n" + "".join(f"{i:03}.png,{i}\n" for i in range(30)),
        None,
        "the numbers n are whole, so they may be classes",
    ),
    (ROWS, "single_label", "has numbers and no classes"),
    (ROWS.replace("path,x", "path,label").replace("0.571", ""), None, "line 6: the column 'label' is empty"),
]


@pytest.mark.parametrize(("text", "task", "sentence"), BAD_TABLES, ids=lambda value: str(value)[:20])
def test_bad_tables_get_a_sentence(text: str, task: str | None, sentence: str, folder: Path, capsys: Any):
    (folder / "bad.csv").write_text(text)
    options = [] if task is None else ["--task", task]
    out = folder / "bad-run"
    document = answer(capsys, "train", folder / "bad.csv", "--out", out, *options, *FAST, code=1)
    assert sentence in document["error"], document
    assert not out.exists()


def test_whole_numbers_are_predicted_if_asked(folder: Path):
    (folder / "whole.csv").write_text("path,n\n" + "".join(f"{i:03}.png,{i}\n" for i in range(30)))
    labels = open_source(folder / "whole.csv", task=REGRESSION).splits["all"].labels
    assert labels.encode(("n",)).ravel().tolist() == list(range(30))


def test_a_test_table_that_lacks_a_number(runs: dict[str, Path], folder: Path, capsys: Any):
    (folder / "lacks.csv").write_text(ROWS)
    document = answer(capsys, "evaluate", runs[REGRESSION], folder / "lacks.csv", code=1)
    assert "there is no number 'height'" in document["error"]


def test_check_finds_numbers_that_stand_for_nothing(folder: Path, capsys: Any):
    (folder / "far.csv").write_text(ROWS.replace("004.png,0.571", "004.png,-999"))
    document = answer(capsys, "check", folder / "far.csv")
    assert document["task"] == REGRESSION
    (finding,) = [each for each in document["findings"] if each["code"] == "far-numbers"]
    assert finding["paths"] == ["004.png"] and "-999" in finding["message"]


def test_the_sheet_of_a_check_has_all_images_where_fifths_are_one_number(folder: Path):
    numbers = [0.0] * 7 + [0.5, 1.5, 2.5]
    (folder / "mostly.csv").write_text("path,n\n" + "".join(f"{i:03}.png,{n}\n" for i, n in enumerate(numbers)))
    survey = check_data(folder / "mostly.csv").survey
    assert survey is not None
    sizes = {name: len(records) for name, records in group_by_fifth(survey).items()}
    assert sizes == {"0 to 0": 6, "0 to 0.5": 2, "1.5 to 2.5": 2}


# Training


def test_a_run_learns_the_numbers(runs: dict[str, Path], folder: Path):
    test = json.loads((runs[REGRESSION] / "result.json").read_text())["test"]
    assert test["task"] == REGRESSION and test["numbers"] == 2
    check_document(test, documents.HookScores)
    rows = [json.loads(line) for line in (runs[REGRESSION] / "metrics.jsonl").read_text().splitlines()]
    assert "train_accuracy" not in rows[-1]
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"] and rows[-1]["validation_r2"] > 0.3
    evaluation = vitrail.evaluate(runs[REGRESSION], folder / "disks.csv")
    assert isinstance(evaluation, NumberEvaluation)
    assert evaluation.summary()["mae"] == pytest.approx(test["mae"], rel=1e-3)
    assert results.read_number_evaluation(evaluation) == evaluation.outcome.paths
    check_document(evaluation.to_json(), number_documents.NumberDocument)
    with pytest.raises(UsageError, match="predicted numbers have no accuracy"):
        _ = evaluation.accuracy


def test_curves_without_validation_have_the_loss_alone(tmp_path: Path):
    rows = [{"epoch": epoch, "train_loss": 1 / epoch} for epoch in (1, 2)]  # numbers have no training accuracy
    draw_curves(rows, tmp_path / "curves.png")
    draw_curves([{**row, "train_accuracy": 0.5} for row in rows], tmp_path / "both.png")
    loss, both = (imread(tmp_path / f"{name}.png") for name in ("curves", "both"))
    assert loss.shape[1] == both.shape[1] / 2


def test_the_scale_of_the_numbers_is_in_the_artifact(runs: dict[str, Path], folder: Path, tmp_path: Path):
    classifier = vitrail.load(runs[REGRESSION])
    train = open_data(folder / "disks.csv", validation=0.2).train
    assert classifier.target_scale is not None and classifier.temperature == 1
    assert classifier.target_scale.mean == pytest.approx(train.labels.mean(0))
    assert classifier.target_scale.std == pytest.approx(train.labels.std(0))
    pixels = torch.stack([train[i] for i in range(3)])
    with torch.no_grad():
        outputs = classifier.vit.eval()(classifier.normalize(pixels))
    expected = outputs * torch.tensor(classifier.target_scale.std) + torch.tensor(classifier.target_scale.mean)
    assert torch.allclose(classifier.logits(pixels), expected.float())
    options: dict[str, Any] = dict(model=runs[REGRESSION], epochs=1, report=False, check=False, flip=0.0)
    again = vitrail.train(folder / "disks.csv", out=tmp_path / "again", **options)
    assert again.classifier.origin["from"]["head"] == "kept"
    assert again.classifier.target_scale == classifier.target_scale


def test_settings_of_classes_are_turned_off_or_refused(folder: Path, tmp_path: Path, capsys: Any):
    recipe = [*TINY, "--epochs", "1", "--flip", "0", "--no-check", "--no-report"]
    out = ["--out", str(tmp_path / "run")]
    assert main(["train", str(folder / "disks.csv"), *out, *recipe, "--cutmix", "1", "--mixup", "0.4"]) == 0
    assert "cutmix is off: CutMix pastes a part of another image" in capsys.readouterr().err
    assert vitrail.load(tmp_path / "run").origin["recipe"]["augment"]["mixup"] == 0.4


def test_a_linear_probe_predicts_numbers_in_their_units(runs: dict[str, Path], folder: Path, tmp_path: Path):
    base, table = vitrail.load(runs[REGRESSION]), folder / "disks.csv"
    other = replace(base, target_scale=TargetScale((5.0, 5.0), (2.0, 3.0)))  # which a kept head would return
    options: dict[str, Any] = dict(recipe="linear", validation_fraction=0.2, report=False, check=False)
    fitted = vitrail.train(table, model=other, out=tmp_path / "run", **options)
    assert fitted.classifier.target_scale == other.target_scale
    splits = open_probe_data(base, table)
    scored = probe(base, splits).linear
    numbers = compute_any_outcome(fitted.classifier, splits.test).logits
    np.testing.assert_allclose(numbers, scored.outcome.logits, rtol=1e-4)
    assert fitted.result["test"]["r2"] == pytest.approx(scored.summary()["r2"], abs=1e-4) and scored.outcome.r2 > 0.2


# Every verb: it works, or it refuses before any work

Check = Callable[[Any], object]


def verbs(kind: str, run: Path, table: Path, tmp: Path) -> dict[str, list[tuple[list[object], Check | str]]]:
    image, out = table.with_name("001.png"), tmp / "out"
    train = ["train", table, "--out", out, "--epochs", 1, *TINY, "--task", kind]
    export = ["export", run, "--out"]
    common: dict[str, list[tuple[list[object], Check | str]]] = {
        "check": [(["check", table, "--task", kind], lambda d: d["task"] == kind)],
        "inspect": [(["inspect", run], lambda d: d["task"] == kind)],
        "explain": [(["explain", run, image, "--out", out], lambda d: d["explanations"])],
        "similar": [(["similar", run, image, table], lambda d: len(d["images"][0]["similar"]) == 8)],
    }
    if kind == GRADES:
        return common | {
            "shard": [(["shard", table, "--out", out], lambda d: d["classes"] == 4)],
            "train": [
                ([*train, "--loss", "cumulative"], lambda d: d["test"]["task"] == GRADES),
                ([*train, "--balance", "weights"], lambda d: "quadratic_kappa" in d["test"]),
                (
                    [*train, "--loss", "mse_loss"],
                    "the loss 'mse_loss' is not for images of which each has one of several",
                ),
                (
                    [*train, "--loss", "cumulative", "--balance", "weights"],
                    "the loss 'cumulative' takes no class weights",
                ),
                ([*train, "--folds", 2], lambda d: -1 <= d["fold_mean"]["quadratic_kappa"] <= 1),
            ],
            "sweep": [
                (
                    ["sweep", table, "--task", kind, "--vary", "lr=1e-3,3e-3", "--out", out, "--epochs", 1, *TINY],
                    is_sweep_by("quadratic_kappa"),
                )
            ],
            "evaluate": [
                (["evaluate", run, table, "--metric", "macro_f1"], lambda d: d["quadratic_kappa"] > 0.3),
                (["evaluate", run, table, "--report", "--out", out], lambda d: d["task"] == GRADES),
            ],
            "probe": [(["probe", run, table], lambda d: d["task"] == GRADES and d["linear"]["quadratic_kappa"] > 0.5)],
            "predict": [
                (["predict", run, image, "--top", 2], lambda d: len(d["predictions"][0]["top"]) == 2),
                (["predict", run, image, "--out", out, "--format", "coco"], lambda d: d["images"] == 1),
            ],
            "faithfulness": [(["faithfulness", run, table, "--max-images", 4], bool)],
            "export": [
                ([*export, out, "--format", "triton"], lambda d: d["max_difference"] < 1e-4),
                ([*export, f"{out}.html", "--format", "web"], lambda d: d["agreement"] == 1),
            ],
        }
    return common | {
        "shard": [(["shard", table, "--out", out / "shards"], lambda d: d["classes"] == 2)],
        "train": [
            ([*train, "--loss", "huber_loss:delta=0.5", "--mixup", 0.2], lambda d: d["test"]["task"] == REGRESSION),
            ([*train, "--loss", "cross_entropy"], "is not for images of which each has numbers"),
            ([*train, "--folds", 2], lambda d: d["numbers"] == 2 and d["fold_mean"]["mae"] > 0),
            ([*train, "--balance", "sampler"], "balance is for classes"),
            (["train", table, "--from", run, "--recipe", "linear", "--out", out], lambda d: d["test"]["r2"] > 0.2),
            ([*train, "--task", "multi_label"], "has numbers and no classes"),
            ([*train, "--teacher", run], lambda d: d["teaching"][0]["r2"] > 0.2),
            ([*train, "--teacher", run, "--distillation", "hard"], "numbers have no most probable class"),
        ],
        "sweep": [
            (["sweep", table, "--vary", "lr=1e-4,1e-2", "--out", out, "--epochs", 1, *TINY], is_sweep_by("r2")),
            (
                ["sweep", table, "--vary", "lr=1e-4,1e-2", "--metric", "mae", "--out", out, "--epochs", 1, *TINY],
                is_sweep_by("mae"),
            ),
            (["sweep", table, "--vary", "lr=1e-4,1e-2", "--metric", "map", "--out", out], "the metric map is not"),
        ],
        "evaluate": [
            (["evaluate", run, table, "--out", out], lambda d: d["r2"] > 0.2 and len(d["per_number"]) == 2),
            (["evaluate", run, table, "--report", "--out", out], lambda d: "report" in d),
            (["evaluate", run, table, "--report", "--corruptions", "--out", out], "corruptions are scored for classes"),
            (["evaluate", run, table, "--metric", "macro_f1"], "named metrics are for classes"),
            (["evaluate", run, table, "--fit-temperature"], "a temperature changes probabilities"),
            (["evaluate", run, table, "--unlike", image], "unlike images are compared by probabilities"),
            (["evaluate", run, table, "--tta", "flip"], "test-time augmentation averages probabilities"),
        ],
        "probe": [(["probe", run, table], lambda d: d["linear"]["r2"] > 0.2 and d["knn"]["mae"] > 0)],
        "predict": [
            (["predict", run, image], lambda d: set(d["predictions"][0]["numbers"]) == {"height", "x"}),
            (["predict", run, image, "--out", out], lambda d: d["images"] == 1),
            (["predict", run, image, "--top", 2], "--top counts the most probable classes"),
            (["predict", run, image, "--tta", "flip"], "test-time augmentation averages probabilities"),
            (["predict", run, image, "--rank-for-labeling", 1], "images are ranked by the margin between classes"),
            (["predict", run, image, "--out", out, "--format", "coco"], "files for COCO, FiftyOne and Label Studio"),
        ],
        "faithfulness": [(["faithfulness", run, table], "faithfulness is scored for classes")],
        "export": [
            ([*export, f"{out}.pt2", "--format", "torch"], lambda d: d["max_difference"] < 1e-2),
            ([*export, out, "--format", "web"], "the web page shows probabilities"),
        ],
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb(verb: str, kind: str, runs: dict[str, Path], folder: Path, tmp_path: Path, capsys: Any):
    if verb in ELSEWHERE:
        return  # tests/test_tasks.py says why
    for number, (arguments, check) in enumerate(verbs(kind, runs[kind], table_of(folder, kind), tmp_path / "0")[verb]):
        out = tmp_path / str(number)
        out.mkdir()
        texts = [str(each).replace(str(tmp_path / "0"), str(out)) for each in arguments]
        code = main([*texts, "--json"])
        document = json.loads(capsys.readouterr().out)
        if isinstance(check, str):
            assert code in (1, 2) and check in document["error"], document
            assert not any(out.iterdir()), "it refuses before any work"
        else:
            assert code == 0 and check(document), document


# Answers: the same in memory, in files, over HTTP, and by other libraries


def test_predictions_are_numbers(runs: dict[str, Path], folder: Path, tmp_path: Path, capsys: Any):
    classifier = vitrail.load(runs[REGRESSION])
    files = [str(folder / f"{i:03}.png") for i in range(12)]
    predictions = classifier.predict(files)
    assert torch.equal(predictions.numbers, classifier.logits(torch.stack([classifier.read_image(f) for f in files])))
    assert predictions[0].numbers == dict(zip(("height", "x"), predictions.numbers[0].tolist(), strict=True))
    for use in (lambda: predictions.labels, lambda: predictions.probabilities, lambda: list(predictions[0]),
                lambda: predictions[0].label, lambda: predictions[0].probabilities):  # fmt: skip
        with pytest.raises(UsageError, match="this model predicts numbers, not classes"):
            use()
    with pytest.raises(UsageError, match="this model predicts classes, not numbers"):
        _ = vitrail.load(runs[GRADES]).predict(files).numbers
    columns = predictions.to_columns()
    assert list(columns) == ["path", "height", "x", "error"]
    assert predictions.to_pandas()["x"].dtype == "float64" and predictions == classifier.predict(files)
    for kind in ("csv", "parquet"):
        answer(capsys, "predict", runs[REGRESSION], *files, "--out", tmp_path / kind, "--format", kind)
    with next((tmp_path / "csv").glob("*.csv")).open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["x"]) for row in written] == pytest.approx(columns["x"], rel=1e-5)
    parquet = pytest.importorskip("pyarrow.parquet")
    frame = parquet.read_table(next((tmp_path / "parquet").glob("*.parquet"))).to_pydict()
    assert frame["height"] == pytest.approx(columns["height"], rel=1e-5)


def test_an_explanation_is_of_a_higher_number(runs: dict[str, Path], folder: Path, tmp_path: Path, capsys: Any):
    rows = answer(capsys, "explain", runs[REGRESSION], folder / "000.png", "--out", tmp_path)["explanations"]
    predicted = vitrail.load(runs[REGRESSION]).predict(folder / "000.png").numbers  # type: ignore[union-attr]
    assert {row["label"]: row["number"] for row in rows} == pytest.approx(predicted, rel=1e-4)
    assert all(row["probability"] is None and "evidence for a higher" in row["summary"] for row in rows)
    for method in ("integrated_gradients", "occlusion"):
        explanation = vitrail.explain(vitrail.load(runs[REGRESSION]), folder / "000.png", method=method, target="x")
        assert np.isfinite(explanation.map).all()
    with pytest.raises(UsageError, match="two numbers are not compared"):
        vitrail.explain(vitrail.load(runs[REGRESSION]), folder / "000.png", target=("x", "height"))


def test_onnx_answers_in_the_units_of_the_numbers(runs: dict[str, Path], folder: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    result = vitrail.export(runs[REGRESSION], tmp_path / "disks.onnx", format="onnx")
    onnx, classifier = load_any(tmp_path / "disks.onnx"), vitrail.load(runs[REGRESSION])
    files = [folder / f"{i:03}.png" for i in range(12)]
    assert prepare_document(classifier)["inside_the_graph"][-1] == "scale"
    assert onnx.task == REGRESSION and result.verification.max_difference < 1e-2
    assert torch.allclose(onnx.predict(files).numbers, classifier.predict(files).numbers, rtol=1e-5)
    scores = [vitrail.evaluate(model, folder / "disks.csv").summary()["mae"] for model in (onnx, classifier)]  # type: ignore[typeddict-item]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    with RunningServer([runs[REGRESSION], tmp_path / "disks.onnx", "--name", "a", "--name", "b"]) as server:
        for model in "ab":
            reply = server.post(f"/predict?model={model}", files[0].read_bytes()).json
            (row,) = reply["predictions"]
            assert row["numbers"] == pytest.approx(classifier.predict(files[0]).numbers, rel=1e-4)  # type: ignore[union-attr]
            assert "top" not in row
        pixels = [np.array(Image.open(files[0])).tolist()]
        body = {"inputs": [{"name": "pixels", "shape": [1, 16, 16, 3], "datatype": "UINT8", "data": pixels}]}
        (output,) = server.post("/v2/models/a/infer", json.dumps(body)).json["outputs"]
        assert output["name"] == "numbers"
        assert output["data"] == pytest.approx(classifier.predict([files[0]]).numbers[0].tolist(), rel=1e-4)
        explained = server.post("/explain?model=a&class=x", files[0].read_bytes()).json["explanation"]
        assert explained["label"] == "x" and math.isfinite(explained["number"])
        assert "<form" in server.get("/?model=a").body.decode()


@pytest.mark.parametrize("format", ["timm", "hf", "torchvision"])
def test_other_libraries_get_the_numbers(format: str, tmp_path: Path):
    pytest.importorskip({"hf": "transformers"}.get(format, format))
    config = vitrail.ViTConfig(
        image_size=32, patch=8, width=32, depth=2, heads=2, mlp_width=64, classes=2, channels=3, pool="cls"
    )
    torch.manual_seed(0)
    preprocess = vitrail.Preprocess(image_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, fit="stretch")
    scale = TargetScale((-20.0, 5.0), (3.0, 0.25))
    classifier = vitrail.Classifier(
        vitrail.ViT(config).eval(), ("angle", "size"), preprocess, task=REGRESSION, target_scale=scale
    )
    result = vitrail.export(classifier, tmp_path / format, format=format)  # type: ignore[call-overload]
    assert result.comparison["max_difference"] < 1e-4
    card = (tmp_path / format / "README.md").read_text()
    assert "The outputs are the numbers, in their units" in card and "softmax" not in card and "angle, size" in card
    if format == "hf":
        assert json.loads((tmp_path / format / "config.json").read_text())["problem_type"] == "regression"
        loaded = vitrail.load(tmp_path / format)
        pixels = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
        assert loaded.task == REGRESSION and torch.allclose(loaded.logits(pixels), classifier.logits(pixels), atol=1e-4)


def test_the_report_of_numbers(runs: dict[str, Path]):
    document = json.loads((runs[REGRESSION] / "report.json").read_text())
    errors = [row["relative_error"] for row in document["largest_errors"]]
    assert errors == sorted(errors, reverse=True) and len(document["numbers"]) == 2
    page = (runs[REGRESSION] / "report.html").read_text()
    assert page.count("<svg") == 4 and "Largest errors" in page and "http:" not in page and "https:" not in page
    page = (runs[GRADES] / "report.html").read_text()
    assert "Quadratic weighted kappa" in page
