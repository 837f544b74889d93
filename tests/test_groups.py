"""Groups of images: where they come from, divisions that keep them whole, intervals that count them, and the check."""

import csv
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold
from torch.utils.data import Dataset

import vitrail
from vitrail.cli import main
from vitrail.data.check import check_data
from vitrail.data.findings import Code
from vitrail.data.groups import suggest_groups
from vitrail.data.images import Images
from vitrail.data.labels import categorize
from vitrail.data.open import open_source
from vitrail.data.shards.index import concatenate_indices
from vitrail.data.shards.listing import divide_by_split, load_index
from vitrail.data.source import Listing, Source
from vitrail.data.split import build_splits, choose_held_out
from vitrail.data.stratification import assign_groups, merge_groups
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation.evaluation import Evaluation
from vitrail.evaluation.group_scores import score_groups
from vitrail.evaluation.metrics import average_scores
from vitrail.evaluation.outcome import Outcome
from vitrail.intervals import bootstrap_groups, grouped_proportion_interval, wilson_interval
from vitrail.report.charts import frequency_chart
from vitrail.report.frequency import collect_frequency

PATTERN = "(patient[0-9]+)_"
TINY: dict[str, Any] = dict(epochs=1, width=16, depth=1, heads=2, mlp_width=32, patch=4)


def write_patients(root: Path, patients: int = 12, images: int = 4) -> Path:
    """Writes a folder of two classes with some patients each, whose images are almost the same."""
    rng = np.random.default_rng(0)
    for label, color in (("blue", (50, 60, 200)), ("red", (200, 50, 40))):
        (root / label).mkdir(parents=True)
        for patient in range(patients):
            base = np.array(color) + rng.normal(0, 40, (16, 16, 3))
            for i in range(images):
                pixels = (base + rng.normal(0, 4, base.shape)).clip(0, 255).astype(np.uint8)
                number = patient + patients * (label == "blue")
                Image.fromarray(pixels).save(root / label / f"patient{number}_{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patients(tmp_path_factory.mktemp("groups") / "data")


@pytest.fixture
def write_table(patients: Path, tmp_path: Path) -> Callable[..., Path]:
    """write_table(split=lambda name, group: ...) writes a table of the images with a column of groups."""

    def write(**columns: Callable[[str, str], str]) -> Path:
        file = tmp_path / "table.csv"
        with file.open("w", newline="") as lines:
            writer = csv.writer(lines)
            writer.writerow(["path", "label", "group", *columns])
            for path in sorted(patients.rglob("*.png")):
                group = path.stem.split("_")[0]
                values = [make(path.name, group) for make in columns.values()]
                writer.writerow([path, path.parent.name, group, *values])
        return file

    return write


class Patients(Dataset[Any]):
    """A data set of Python with groups."""

    classes = ("a", "b")
    groups = tuple(np.repeat(np.arange(10), 3))
    targets = tuple(np.repeat([0, 1], 15))

    def __len__(self) -> int:
        return 30

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 8, 8), i, dtype=torch.uint8), int(self.targets[i])


# sources


def test_groups_come_from_a_column_a_pattern_or_python(patients: Path, write_table: Callable[..., Path]):
    by_pattern = open_source(patients, group_pattern=PATTERN).splits["all"]
    by_column = open_source(write_table()).splits["all"]
    assert by_pattern.groups is not None and by_column.groups is not None
    assert sorted(set(by_pattern.groups)) == sorted(set(by_column.groups)) == sorted(f"patient{i}" for i in range(24))
    in_dataset = open_source(Patients()).splits["all"].groups
    images = np.zeros((30, 8, 8, 3), dtype=np.uint8)
    in_tuple = open_source((images, Patients.targets, np.array(Patients.groups))).splits["all"].groups
    assert in_dataset is not None and in_tuple is not None
    assert list(in_dataset) == list(in_tuple) == [str(group) for group in Patients.groups]


def test_shards_keep_groups(patients: Path, write_table: Callable[..., Path], tmp_path: Path):
    table = write_table(split=lambda name, group: "test" if group.endswith("3") else "train")
    for name, arguments in (("column", [str(table)]), ("pattern", [str(patients), "--group-pattern", PATTERN])):
        assert main(["shard", *arguments, "--out", str(tmp_path / name)]) == 0
        pattern = None if name == "column" else PATTERN
        plain, sharded = open_source(arguments[0], group_pattern=pattern), open_source(tmp_path / name)
        assert sharded.fingerprint == plain.fingerprint
        for split, listing in plain.splits.items():
            groups = sharded.splits[split].groups
            assert groups is not None and listing.groups is not None and list(groups) == list(listing.groups)
    with tarfile.open(tmp_path / "column" / "test-000000.tar") as tar:
        documents = [json.load(tar.extractfile(each)) for each in tar if each.name.endswith(".json")]  # type: ignore[arg-type]
    assert {each["group"] for each in documents} == {"patient3", "patient13", "patient23"}
    index = load_index(str(tmp_path / "column"))
    joined = concatenate_indices("both", [index, load_index(str(tmp_path / "pattern"))])
    images = divide_by_split(joined)["test"]
    assert images.groups is not None and set(images.groups) == {"patient3", "patient13", "patient23"}
    without = replace(index, groups=())
    with pytest.raises(VitrailError, match="have groups, and those of"):
        concatenate_indices("both", [index, without])


def test_groups_of_a_hugging_face_data_set(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    images = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(6)]
    table = datasets.Dataset.from_dict({"image": images, "label": ["a", "b"] * 3, "group": [1, 1, 2, 2, 3, 3]})
    groups = open_source(table).splits["all"].groups
    assert groups is not None and list(groups) == ["1", "1", "2", "2", "3", "3"]


@pytest.mark.parametrize(
    ("pattern", "error", "expected"),
    [
        ("(a", "is not a regular expression", UsageError),
        ("(a)(b)", "has 2 capture groups, not one", UsageError),
        ("x([0-9]+)", r"finds no group in blue/patient12_000.png", VitrailError),
    ],
)
def test_a_wrong_pattern_is_refused_in_a_sentence(patients: Path, pattern: str, error: str, expected: type):
    with pytest.raises(expected, match=error):
        open_source(patients, group_pattern=pattern)


def test_an_empty_group_and_a_wrong_number_of_groups_are_refused(patients: Path, tmp_path: Path):
    file = tmp_path / "empty.csv"
    rows = [f"{path},{path.parent.name}," for path in sorted(patients.rglob("*.png"))[:2]]
    file.write_text("path,label,group\n" + "\n".join(rows) + "\n")
    with pytest.raises(VitrailError, match=r"line 2: the column 'group' is empty"):
        open_source(file)
    images = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(VitrailError, match="there are 4 images and 3 groups in all"):
        open_source((images, "abab", [1, 2, 3]))
    with pytest.raises(VitrailError, match="a group of all is empty"):
        open_source((images, "abab", [1, 2, None, 3]))
    with pytest.raises(UsageError, match="has groups of its own"):
        open_source((images, "abab", [1, 2, 3, 4]), group_pattern=PATTERN)


# divisions


def crossings(parts: dict[str, Any]) -> set[str]:
    """Returns the groups that are in several parts."""
    seen = [set(images.groups) for images in parts.values()]
    return {group for group in set().union(*seen) if sum(group in each for each in seen) > 1}


def test_a_division_keeps_groups_whole_and_classes_in_proportion(patients: Path):
    source = open_source(patients, group_pattern=PATTERN)
    parts = build_splits(source, validation=0.2, test=0.25).as_dict()
    assert not crossings(parts)
    assert {name: images.count_by_class() for name, images in parts.items()} == {
        "train": {"blue": 28, "red": 28}, "validation": {"blue": 8, "red": 8}, "test": {"blue": 12, "red": 12},
    }  # fmt: skip
    again = build_splits(source, validation=0.2, test=0.25)
    assert list(again.train.names) == list(parts["train"].names)
    other = build_splits(source, validation=0.2, test=0.25, split_seed=1)
    assert set(other.test.groups) != set(parts["test"].groups)


def test_groups_that_share_an_image_are_one_group():
    pixels = torch.arange(8, dtype=torch.uint8).repeat_interleave(192).reshape(8, 3, 8, 8)
    pixels[5] = pixels[0]  # an image of group c is one of group a
    listing = Listing(pixels, list("12345678"), categorize(["x"] * 8), categorize("aabbccdd"))
    for seed in range(8):
        held = {listing.groups[i] for i in choose_held_out(listing, 0.5, seed)}
        assert len(held & {"a", "c"}) in (0, 2)
    assert merge_groups(np.array([0, 0, 1, 2]), np.array([0, 1, 0, 3])).tolist() == [0, 0, 0, 2]


def test_a_class_never_loses_its_last_training_group():
    pixels = torch.randint(256, (9, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    listing = Listing(pixels, list("abcdefghi"), categorize(["x"] * 6 + ["y"] * 3), categorize("112233444"))
    for seed in range(5):
        splits = build_splits(Source("s", {"all": listing}, address="s"), test=0.5, validation=0, split_seed=seed)
        assert set(splits.train.labels) == {0, 1}


def test_folds_are_as_even_as_those_of_scikit_learn():
    ours, theirs = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(60), rng.integers(1, 12, 60))
        labels = rng.choice(4, len(groups), p=[0.5, 0.3, 0.15, 0.05])
        counts_GY = np.zeros((60, 4), dtype=np.int64)
        np.add.at(counts_GY, (groups, labels), 1)
        fold_of = assign_groups(counts_GY, [str(g) for g in range(60)], (0.2,) * 5, seed)[groups]
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        reference = [test for _, test in splitter.split(labels, labels, groups)]
        for folds, measured in (([np.flatnonzero(fold_of == f) for f in range(5)], ours), (reference, theirs)):
            fractions = [np.bincount(labels[fold], minlength=4) / np.bincount(labels) for fold in folds]
            measured.append(abs(np.array(fractions) - 0.2).mean())
    assert np.mean(ours) < 1.05 * np.mean(theirs), (np.mean(ours), np.mean(theirs))


# figures


def outcome(accuracy_by_group: list[float], images: int, classes: int = 2) -> Outcome:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, len(accuracy_by_group) * images)
    correct = rng.random(len(labels)) < np.repeat(accuracy_by_group, images)
    logits = np.eye(classes)[np.where(correct, labels, (labels + 1) % classes)]
    groups = tuple(f"g{g}" for g in np.repeat(np.arange(len(accuracy_by_group)), images))
    return Outcome([""] * len(labels), labels, logits, tuple(map(str, range(classes))), groups=groups)


def test_the_interval_of_grouped_images_covers_and_that_of_single_images_does_not():
    rng = np.random.default_rng(0)
    covered = {"groups": 0, "images": 0}
    draws = 4000
    for _ in range(draws):
        rates = rng.beta(4, 1, 25)  # mean 0.8
        n = rng.integers(5, 30, 25)
        successes = rng.binomial(n, rates)
        low, high = grouped_proportion_interval(successes, n)
        covered["groups"] += low <= 0.8 <= high
        low, high = wilson_interval(successes.sum(), n.sum())
        covered["images"] += low <= 0.8 <= high
    assert covered["groups"] > 0.925 * draws
    assert covered["images"] < 0.75 * draws


def test_groups_of_one_image_have_about_the_interval_of_independent_images():
    successes = np.array([1] * 80 + [0] * 20)
    ours, wilson = grouped_proportion_interval(successes, np.ones(100)), wilson_interval(80, 100)
    assert ours == pytest.approx(wilson, abs=0.005)
    assert grouped_proportion_interval(np.array([3]), np.array([4])) == (0.0, 1.0)
    low, high = grouped_proportion_interval(np.array([5, 5, 5]), np.array([5, 5, 5]))
    assert low < 0.6 and high == pytest.approx(1)


def test_the_bootstrap_draws_whole_groups():
    cells, groups = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2])
    drawn = bootstrap_groups(cells, groups, np.random.default_rng(0), 500)
    assert drawn.shape == (500, 3)
    assert set(np.unique(drawn[:, :2])) <= {0, 2, 4, 6}
    assert (drawn[:, 0] // 2 + drawn[:, 1] // 2 + drawn[:, 2] == 3).all()


def test_averages_of_few_groups_have_wide_intervals():
    """A bootstrap of one group always draws the same images."""
    for groups, width in ((1, 1.0), (2, 0.5), (20, 0.05)):
        scores = average_scores(outcome([0.7, 0.8] * (groups // 2) or [0.75], 40))
        for name in ("balanced_accuracy", "macro_f1"):
            low, high = scores[f"{name}_interval"]
            assert high - low >= width
            assert low <= scores[name] <= high


def test_scores_of_groups_name_the_bad_one_and_widen_all_intervals():
    grouped = outcome([0.9] * 19 + [0.2], 20)
    evaluation = Evaluation(grouped)
    plain = Evaluation(Outcome(grouped.paths, grouped.labels, grouped.logits, grouped.classes))
    document, summary = evaluation.to_json(), evaluation.summary()
    assert summary["groups"]["worse"] == ["g19"] and summary["groups"]["differ_p_value"] < 0.01
    assert document["per_group"][0]["group"] == "g19" and len(document["per_group"]) == 20
    assert sum(row["images"] for row in document["per_group"]) == 400
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert summary[name] == plain.summary()[name]
        assert np.ptp(summary[f"{name}_interval"]) > 1.2 * np.ptp(plain.summary()[f"{name}_interval"])
    equal = score_groups(*(lambda o: (o.groups, o.correct))(outcome([0.8] * 20, 20))).summary()
    assert equal["worse"] == [] and equal["differ_p_value"] > 0.05


# the check


def test_the_check_suggests_groups_and_names_copies_that_a_random_division_would_separate(patients: Path, capsys):
    report = {finding.code: finding for finding in check_data(patients).findings}
    suggestion = report[Code.SUGGESTED_GROUPS]
    assert suggestion.values["groups"] == 24
    assert "names suggest 24 groups" in suggestion.message and "--group-pattern '" in suggestion.consequence
    assert "a random division can put one in training" in str(report[Code.NEAR_DUPLICATES])
    grouped = {f.code: f for f in check_data(patients, group_pattern=suggestion.values["pattern"]).findings}
    assert Code.SUGGESTED_GROUPS not in grouped
    assert "random division" not in str(grouped[Code.NEAR_DUPLICATES])
    assert main(["check", str(patients), "--group-pattern", PATTERN, "--json"]) == 0
    assert "suggested-groups" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        ([f"c/patient{p}_{i:03d}.png" for p in range(6) for i in range(3)], 6),
        ([f"c/video_{v:04d}_frame_{i:03d}.jpg" for v in range(6) for i in range(3)], 6),
        ([f"c/IMG_202105{d:02d}_1230{i:02d}.jpg" for d in range(1, 7) for i in range(3)], 6),  # days
        ([f"c/scan{p}/slice.{i}.png" for p in range(6) for i in range(3)], 6),
        ([f"c/{i:05d}.png" for i in range(18)], None),
        ([f"c/IMG_{i:04d}.jpg" for i in range(18)], None),
        ([f"n0144{i % 2}/n0144{i % 2}_{i}.JPEG" for i in range(18)], None),  # the name of the class
        ([f"train-{i:07d}" for i in range(18)], None),
    ],
)
def test_groups_that_names_suggest(names: list[str], groups: int | None):
    listing = Listing(torch.zeros(18, 3, 8, 8), names, categorize(["x", "y"] * 9))
    suggestion = suggest_groups(Source("s", {"all": listing}))
    assert (suggestion.groups if suggestion else None) == groups


def test_groups_that_cross_given_splits_are_named(write_table: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    table = write_table(split=lambda name, group: "test" if name.endswith("3.png") and group == "patient5" else "train")
    (finding,) = [f for f in check_data(table).findings if f.code is Code.GROUPS_ACROSS_SPLITS]
    assert "1 of 24 groups are in several splits, for example 'patient5' in" in str(finding)
    assert "the score will be too high" in finding.consequence and len(finding.paths) == 4


# the command line


def test_train_and_evaluate_divide_alike_and_score_groups(
    patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    command = ["train", str(patients), "--group-pattern", PATTERN, "--out", str(tmp_path / "run"), *options]
    assert main([*command, "--device", "cpu", "--no-check"]) == 0
    printed = capsys.readouterr().err
    assert "(about 20% of each class, 4 whole groups) are held out as test images" in printed
    result = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    assert result["groups"]["groups"] == 4
    assert main(["evaluate", str(tmp_path / "run"), str(patients), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {name: document[name] for name in ("accuracy", "accuracy_interval", "macro_f1", "groups")} == {
        name: result[name] for name in ("accuracy", "accuracy_interval", "macro_f1", "groups")
    }
    assert {row["group"] for row in document["per_group"]} <= {f"patient{i}" for i in range(24)}
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["groups"]["groups"] == 4 and len(report["groups"]["rows"]) == 4
    assert 'id="groups"' in (tmp_path / "run" / "report.html").read_text()
    assert any("with and without --group-pattern" in sentence for sentence in report["caveats"])
    splits = vitrail.load(tmp_path / "run").origin["data"]["split"]
    assert splits["group_pattern"] == PATTERN
    scored = [prediction["path"] for prediction in document["predictions"]]
    for pattern, groups in ((PATTERN, 4), ("(.)[.]png$", None)):  # other groups than those of training
        assert main(["evaluate", str(tmp_path / "run"), str(patients), "--group-pattern", pattern, "--json"]) == 0
        other = json.loads(capsys.readouterr().out)
        assert [prediction["path"] for prediction in other["predictions"]] == scored, "the same images are scored"
        assert other["groups"]["groups"] == (groups or len({Path(path).stem[-1] for path in scored}))
        in_python = vitrail.evaluate(tmp_path / "run", patients, group_pattern=pattern).summary()
        assert in_python["groups"] == other["groups"]
    assert main(["evaluate", str(tmp_path / "run"), str(patients), "--group-pattern", "([xyz])", "--json"]) == 1
    assert "finds no group in" in json.loads(capsys.readouterr().out)["error"]


def test_the_report_shows_recall_by_class_frequency_if_the_classes_are_unequal():
    def train(counts: list[int]) -> dict[str, Images]:
        labels = np.repeat(np.arange(3), counts)
        return {"train": Images(torch.zeros(len(labels), 3, 2, 2), [""] * len(labels), labels, ("a", "b", "c"))}

    by_class = zip("abc", (0.9, 0.5, None), strict=True)
    recalls = [{"class": name, "recall": recall, "recall_interval": [0.1, 0.9]} for name, recall in by_class]
    rows = collect_frequency(recalls, train([100, 10, 5]))
    assert rows is not None and [(row["class"], row["training_images"]) for row in rows] == [("b", 10), ("a", 100)]
    chart = str(frequency_chart(rows, 0.7))
    assert chart.count("<circle") == 2 and "a: 100 training images, recall 90.0%" in chart
    assert collect_frequency(recalls, train([10, 10, 9])) is None and collect_frequency(recalls, {}) is None
