"""How unlike an image is: the fit, its quantiles, and how well scores tell outside images, as scikit-learn does."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score, roc_curve

import vitrail
from conftest import COLORS, fill
from document_types import check_document
from serving import RunningServer
from vitrail import image_documents
from vitrail.cli.main import main
from vitrail.evaluation.detection import BASELINES, Detection
from vitrail.evaluation.unlike import MIN_IMAGES, assign_folds, fit_unlike, shrink_covariance
from vitrail.serving.predictor import Predictor
from vitrail.tasks import REGRESSION, TASKS
from vitrail.weights.unlike import UNLIKE_THRESHOLD, UnlikeFacts

WIDTH = 6
RNG = np.random.default_rng(0)


def draw_features(n: int, classes: int = 3, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns features around a center for each class, with directions of unequal spread, and their classes."""
    labels = np.arange(n) % classes
    centers = 5 * np.random.default_rng(1).normal(size=(classes, WIDTH))
    spread = np.linspace(0.2, 3, WIDTH)
    return (centers[labels] + RNG.normal(size=(n, WIDTH)) * spread + shift).astype(np.float32), labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colors, with enough validation images for a fit."""
    return fill(tmp_path_factory.mktemp("unlike") / "data", {"train": 1, "val": 14, "test": 8}, tuple(COLORS), (16, 16))


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chessboards and stripes: nothing like fields of a color."""
    folder = tmp_path_factory.mktemp("outside")
    for i in range(12):
        y, x = np.mgrid[:16, :16]
        stripes = ((x // (1 + i % 3) + (i > 5) * y // 2) % 2 * 255).astype(np.uint8)
        Image.fromarray(np.stack([stripes, stripes, 255 - stripes], axis=-1)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def fitted(clf: vitrail.Classifier, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the classifier of the colors, fitted from the command line."""
    path = tmp_path_factory.mktemp("fitted") / "colors.safetensors"
    replace(clf, unlike=None).save(path)
    assert main(["evaluate", str(path), str(data), "--fit-unlike"]) == 0
    return path


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


# The fit


@pytest.mark.parametrize("n", [8, 40, 500])
def test_the_covariance_is_that_of_scikit_learn(n: int):
    residuals = draw_features(n)[0].astype(np.float64)
    residuals -= residuals.mean(0)
    assert shrink_covariance(residuals) == pytest.approx(LedoitWolf(assume_centered=True).fit(residuals).covariance_)


def test_the_distance_is_that_of_mahalanobis():
    features, labels = draw_features(300)
    fit = fit_unlike(features, labels).fit
    assert fit is not None and fit.facts.centers == 3
    centers = np.stack([features[labels == k].mean(0) for k in range(3)]).astype(np.float64)
    precision = np.linalg.inv(shrink_covariance(features - centers[labels]))
    differences = features[:20, None].astype(np.float64) - centers
    expected = np.sqrt(np.einsum("nkd,de,nke->nk", differences, precision, differences).min(1))
    assert fit(torch.from_numpy(features[:20])).numpy() == pytest.approx(expected, rel=1e-4)


def test_quantiles_are_those_of_images_that_were_left_out():
    features, labels = draw_features(60)
    wide = np.concatenate(
        [features, RNG.normal(size=(60, 40)).astype(np.float32)], axis=1
    )  # many directions, few images
    fitted = fit_unlike(wide, labels)
    assert fitted.fit is not None and fitted.distances is not None
    assert np.interp(fitted.distances, fitted.fit.facts.distances, np.linspace(0, 1, 60)).mean() == pytest.approx(
        0.5, abs=0.01
    )
    own = fitted.fit(torch.from_numpy(wide)).numpy()
    assert own.mean() < 0.9 * fitted.distances.mean(), "the images of a fit are closer to it than new ones"
    new, _ = draw_features(400)
    new = np.concatenate([new, RNG.normal(size=(400, 40)).astype(np.float32)], axis=1)
    flagged = fitted.fit.facts.find_quantiles(fitted.fit(torch.from_numpy(new)).numpy()) >= UNLIKE_THRESHOLD
    assert 0.0 < flagged.mean() < 0.15


def test_a_group_is_left_out_as_a_whole():
    groups = [f"burst {i // 7}" for i in range(70)]
    folds = assign_folds(70, groups)
    assert all(len(set(folds[7 * k : 7 * k + 7])) == 1 for k in range(10)) and len(set(folds)) == 5
    assert fit_unlike(draw_features(70)[0], np.zeros(70), ["all"] * 70).reason == "all images are of one group"


@pytest.mark.parametrize(
    "labels", [np.r_[np.zeros(58), 1, 2].astype(int), RNG.integers(0, 2, (60, 4)).astype(np.uint8)]
)
def test_rare_classes_and_several_labels_have_one_center(labels: np.ndarray):
    fit = fit_unlike(draw_features(60)[0], labels).fit
    assert fit is not None and fit.facts.centers == 1


@pytest.mark.parametrize(
    "features", [np.zeros((60, 4), np.float32), np.ones((60, 1), np.float32), np.eye(60, dtype=np.float32)]
)
def test_features_without_spread_give_finite_quantiles(features: np.ndarray):
    fit = fit_unlike(features, np.zeros(60, dtype=int)).fit
    assert fit is not None and (np.diff(fit.facts.distances) > 0).all()
    assert np.isfinite(fit.facts.find_quantiles(fit(torch.from_numpy(features)).numpy())).all()


def test_few_images_are_not_fitted():
    features, labels = draw_features(MIN_IMAGES - 1)
    assert "too few" in str(fit_unlike(features, labels).reason)


# The scores


@pytest.mark.parametrize("task", BASELINES)
def test_areas_and_rates_are_those_of_scikit_learn(task: str):
    assert set(BASELINES) | {REGRESSION} == set(TASKS)
    logits = RNG.normal(size=(700, 5)).round(1)  # rounded, so that scores are equal
    logits[:500] += 2 * np.eye(5)[RNG.integers(0, 5, 500)]
    for score in BASELINES[task].values():
        detection = Detection(score(logits[:500]), score(logits[500:]))
        values, is_outside = np.r_[detection.known, detection.outside], np.r_[np.zeros(500), np.ones(200)]
        assert detection.auroc == pytest.approx(roc_auc_score(is_outside, values), abs=1e-9)
        fpr, tpr, _ = roc_curve(1 - is_outside, -values, drop_intermediate=False)
        assert detection.fpr95 == pytest.approx(fpr[np.argmax(tpr >= 0.95 - 1e-12)], abs=1e-9)
        for name in ("auroc", "fpr95"):
            low, high = getattr(detection, f"{name}_interval")
            assert 0 <= low < getattr(detection, name) < high <= 1


def test_intervals_cover_the_true_values():
    hits = np.zeros(2)
    for _ in range(200):
        detection = Detection(RNG.normal(size=80), RNG.normal(1.5, 1, size=60))
        for k, (interval, truth) in enumerate(
            [(detection.auroc_interval, 0.85558), (detection.fpr95_interval, 0.55775)]
        ):
            hits[k] += interval[0] <= truth <= interval[1]
    assert (hits / 200 > 0.88).all(), hits


def test_perfect_and_equal_scores_have_intervals():
    perfect = Detection(np.arange(50.0), np.arange(100.0, 140.0))
    assert perfect.auroc == 1 and perfect.fpr95 == 0
    assert perfect.auroc_interval[0] < 1 and perfect.fpr95_interval[1] > 0
    equal = Detection(np.ones(50), np.ones(40))
    assert equal.auroc == 0.5 and equal.fpr95 == 1 and equal.auroc_interval[0] < 0.5 < equal.auroc_interval[1]


# The classifier


def test_a_fit_is_kept_in_the_artifact(fitted: Path, clf: vitrail.Classifier, data: Path, tmp_path: Path):
    classifier = vitrail.load(fitted)
    assert classifier.unlike_facts is not None and classifier.unlike_facts.images == 42
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    logits, distances = classifier.logits_and_distances(pixels)
    assert torch.equal(logits, clf.logits(pixels)) and distances is not None
    classifier.save(tmp_path / "half.safetensors", half=True)
    again = vitrail.load(tmp_path / "half.safetensors")
    assert again.unlike_facts == classifier.unlike_facts
    assert again.logits_and_distances(pixels)[1].numpy() == pytest.approx(distances.numpy(), rel=0.05)
    assert classifier.with_image_size(16).unlike is not None and classifier.with_image_size(32).unlike is None
    assert classifier.fast().logits_and_distances(pixels)[1].numpy() == pytest.approx(distances.numpy(), rel=0.1)


def test_quantiles_tell_outside_images(fitted: Path, data: Path, outside: Path, capsys):
    document = answer(capsys, "evaluate", fitted, data, "--unlike", outside)
    check_document(document["unlike"], image_documents.UnlikeEvaluation)
    unlike = document["unlike"]
    assert unlike["default"] == "mahalanobis" and list(unlike["scores"]) == ["mahalanobis", "max_probability", "energy"]
    assert (unlike["outside_images"], unlike["known_images"]) == (12, 24)
    assert unlike["scores"]["mahalanobis"]["auroc"] > 0.9 and unlike["flagged"]["outside"] > 0.5
    main(["evaluate", str(fitted), str(data), "--unlike", str(outside)])
    assert "feature distance" in capsys.readouterr().out


def test_missing_outside_images_are_an_error_before_any_work(data: Path, capsys):
    document = answer(capsys, "evaluate", "missing-model", data, "--unlike", "missing-folder", code=2)
    assert document["error"] == "there is no file or folder missing-folder"


def test_predictions_have_quantiles(fitted: Path, data: Path, outside: Path, tmp_path: Path, capsys):
    classifier = vitrail.load(fitted)
    files = [*sorted((data / "test" / "red").iterdir()), *sorted(outside.iterdir())]
    predictions = classifier.predict(files)
    facts = classifier.unlike_facts
    assert isinstance(facts, UnlikeFacts)
    assert [each.unlike for each in predictions] == predictions.unlike
    assert predictions[3:5].unlike == predictions.unlike[3:5]
    assert np.mean(predictions.unlike[8:]) > np.mean(predictions.unlike[:8])
    assert predictions.to_pandas()["unlike"].tolist() == predictions.unlike
    (tmp_path / "damaged.png").write_bytes(b"no image")
    document = answer(capsys, "predict", fitted, *files, tmp_path / "damaged.png", code=1)
    assert [row["unlike"] for row in document["predictions"][:-1]] == pytest.approx(predictions.unlike, abs=1e-4)
    assert document["predictions"][-1]["unlike"] is None
    assert document["unlike"] == {
        "fitted": True,
        "images": 42,
        "fitted_on": "validation",
        "threshold": UNLIKE_THRESHOLD,
    }
    main(["predict", str(fitted), *map(str, files)])
    lines = capsys.readouterr().out.splitlines()
    assert ["unlike the validation images" in line for line in lines] == [q >= 0.95 for q in predictions.unlike]


@pytest.mark.parametrize("embedding", [False, True])
def test_files_of_predictions_have_quantiles(fitted: Path, data: Path, outside: Path, tmp_path: Path, embedding: bool):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in (*(data / "test" / "red").iterdir(), *outside.iterdir()):
        (folder / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    (folder / "damaged.png").write_bytes(b"no image")
    classifier = vitrail.load(fitted)
    files = sorted(folder.iterdir())
    expected = classifier.predict(files, on_error="skip").unlike
    for kind in ("csv", "parquet"):
        options = {"format": kind, "processes": 1, "embedding": embedding}
        vitrail.predict_all(fitted, folder, tmp_path / kind, **options)  # type: ignore[arg-type]
    with next((tmp_path / "csv").glob("*.csv")).open() as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    found = [float(rows[path.name]["unlike"]) if rows[path.name]["unlike"] else None for path in files]
    assert found == pytest.approx(expected, abs=1e-4) and rows["damaged.png"]["unlike"] == ""
    table = (
        pytest.importorskip("pyarrow.parquet").read_table(next((tmp_path / "parquet").glob("*.parquet"))).to_pydict()
    )
    assert dict(zip(table["path"], table["unlike"], strict=True))[str(files[0])] == pytest.approx(found[0], abs=1e-4)
    names = list(table)
    assert names[names.index("unlike") + 1] == "error"


def test_an_older_artifact_says_how_to_fit(data: Path, outside: Path, tmp_path: Path, capsys):
    old = Path(__file__).parent / "format1" / "run" / "classifier.safetensors"
    digit = next((Path(__file__).parent.parent / "examples" / "digits").glob("*.png"))
    document = answer(capsys, "predict", old, digit)
    assert document["unlike"]["fitted"] is False and "--fit-unlike" in document["unlike"]["hint"]
    assert "unlike" not in document["predictions"][0]
    unlike = answer(capsys, "evaluate", old, "digits", "--unlike", outside)["unlike"]
    assert unlike["default"] == "max_probability" and list(unlike["scores"]) == ["max_probability", "energy"]
    check_document(unlike, image_documents.UnlikeEvaluation)


def test_nothing_is_fitted_on_scored_images_or_on_few(
    clf: vitrail.Classifier, make_folder: Callable[..., Path], tmp_path, capsys
):
    path = tmp_path / "a.safetensors"
    clf.save(path)
    content = path.read_bytes()
    for splits, sentence in (({"test": 4}, "no validation images"), ({"val": 4, "test": 4}, "12 images are too few")):
        folder = make_folder(f"{len(splits)} splits", splits, classes=tuple(COLORS))
        assert sentence in answer(capsys, "evaluate", path, folder, "--fit-unlike", code=2)["error"]
        assert path.read_bytes() == content
    (tmp_path / "empty").mkdir()
    document = answer(capsys, "evaluate", path, tmp_path / "2 splits", "--unlike", tmp_path / "empty", code=2)
    assert "no image" in document["error"]


def test_training_fits_on_validation(data: Path, tmp_path: Path):
    run = vitrail.train(data, out=tmp_path / "run", epochs=1, width=16, depth=1, heads=1, mlp_width=16, report=False)
    facts = vitrail.load(run.folder).unlike_facts
    assert facts is not None and facts.images == 42 and len(facts.distances) == 42


def test_the_report_shows_the_most_unlike_images(fitted: Path, data: Path, outside: Path, tmp_path: Path, capsys):
    folder = tmp_path / "data"
    for label in COLORS:
        (folder / "test" / label).mkdir(parents=True)
        for path in sorted((data / "test" / label).iterdir())[:4]:
            (folder / "test" / label / path.name).write_bytes(path.read_bytes())
    (folder / "test" / "red" / "stripes.png").write_bytes((outside / "0.png").read_bytes())
    answer(capsys, "evaluate", fitted, folder, "--report", "--out", tmp_path / "report")
    section = json.loads((tmp_path / "report" / "report.json").read_text())["unlike"]
    assert section["fitted"] and section["threshold"] == UNLIKE_THRESHOLD and section["reached"] >= 1
    assert (
        Path(section["examples"][0]["path"]).name == "stripes.png" and section["examples"][0]["thumbnail"] is not None
    )
    assert len(section["examples"]) == section["reached"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert 'id="unlike"' in page and "stripes.png" in page


# Exports and the server


@pytest.fixture(scope="module")
def exported(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("exported") / "colors.onnx"
    assert main(["export", str(fitted), "--format", "onnx", "--out", str(path), "--unlike", "--attention"]) == 0
    return path


def test_onnx_has_the_same_quantiles(fitted: Path, exported: Path, data: Path, outside: Path, capsys):
    import onnxruntime

    classifier, onnx = vitrail.load(fitted), vitrail.load_any(exported)
    assert onnx.unlike_facts == classifier.unlike_facts
    files = [*sorted((data / "test" / "blue").iterdir()), *sorted(outside.iterdir())]
    expected = classifier.predict(files).unlike
    assert onnx.predict(files).unlike == pytest.approx(expected, abs=1e-3)
    session = onnxruntime.InferenceSession(exported)
    pixels = torch.stack([classifier.read_image(path) for path in files]).numpy()
    logits, quantiles = session.run(["logits", "unlike"], {"pixels": pixels})
    assert quantiles[:, 0] == pytest.approx(expected, abs=1e-3) and len(logits) == len(files)
    unlike = answer(capsys, "evaluate", exported, data, "--unlike", outside)["unlike"]
    own = answer(capsys, "evaluate", fitted, data, "--unlike", outside)["unlike"]
    assert unlike["scores"]["mahalanobis"]["auroc"] == pytest.approx(own["scores"]["mahalanobis"]["auroc"], abs=0.01)


def test_torch_programs_have_quantiles(fitted: Path, tmp_path: Path):
    result = vitrail.export(fitted, tmp_path / "colors.pt2", format="torch", unlike=True)
    assert result.outputs == ("logits", "unlike", "unlike_distance")
    document = result.to_json()
    assert document["unlike_difference"] < 1e-2 and document["unlike_distance_difference"] < 1e-2


@pytest.mark.parametrize("option", ["map", "int8"])
def test_programs_that_cannot_have_quantiles_are_refused(fitted: Path, tmp_path: Path, option: str, capsys):
    arguments = ["export", fitted, "--format", "onnx", "--out", tmp_path / "a.onnx", "--unlike", f"--{option}"]
    assert f"--unlike and --{option} do not work together" in answer(capsys, *arguments, code=2)["error"]


def test_a_model_without_a_fit_is_not_exported_with_it(clf: vitrail.Classifier, tmp_path: Path):
    with pytest.raises(vitrail.UsageError, match="not fitted"):
        vitrail.export(replace(clf, unlike=None), tmp_path / "a.pt2", format="torch", unlike=True)


def test_a_row_that_is_not_finite_is_as_wide_as_the_others(fitted: Path):
    classifier = vitrail.load(fitted)
    with torch.no_grad():
        classifier.vit.head.bias[0] = torch.nan
    predictor = Predictor(classifier)
    predictor.warm_up()
    assert predictor.output_width == len(classifier.classes) + 1


def test_the_server_answers_with_quantiles(fitted: Path, exported: Path, run: vitrail.Run, data: Path, outside: Path):
    files = [*sorted((data / "test" / "green").iterdir())[:3], *sorted(outside.iterdir())[:3]]
    expected = vitrail.load(fitted).predict(files).unlike
    models = [fitted, exported, run.folder, "--name", "torch", "--name", "onnx", "--name", "unfitted"]
    with RunningServer([*models, "--backend", "torch", "--processes", 1]) as server:
        for model in ("torch", "onnx"):
            replies = [server.post(f"/predict?model={model}", file.read_bytes()).json for file in files]
            found = [reply["predictions"][0]["unlike"] for reply in replies]
            assert found == pytest.approx(expected, abs=1e-3)
            assert replies[0]["unlike"]["threshold"] == UNLIKE_THRESHOLD
        reply = server.post("/predict?model=unfitted", files[0].read_bytes()).json
        assert reply["unlike"]["fitted"] is False and "unlike" not in reply["predictions"][0]
        pixels = [np.array(Image.open(file)).tolist() for file in files]
        body = {"inputs": [{"name": "pixels", "shape": [6, 16, 16, 3], "datatype": "UINT8", "data": pixels}]}
        outputs = server.post("/v2/models/torch/infer", json.dumps(body)).json["outputs"]
        by_name = {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in outputs}
        assert by_name["unlike"][:, 0] == pytest.approx(expected, abs=1e-3)
        assert by_name["logits"].shape == by_name["probabilities"].shape == (6, 3)
        described = server.get("/v2/models/torch").json["outputs"]
        assert [each["shape"] for each in described] == [[-1, 3], [-1, 3], [-1, 1]]


@pytest.mark.parametrize("change", ["distances", "shape", "missing"])
def test_a_damaged_fit_is_refused(fitted: Path, tmp_path: Path, change: str):
    from vitrail.weights.artifact import Artifact, write_artifact

    classifier = vitrail.load(fitted)
    assert classifier.unlike is not None and classifier.unlike_facts is not None
    facts, tensors = classifier.unlike_facts, classifier.unlike.to_tensors()
    if change == "distances":
        facts = replace(facts, distances=facts.distances[::-1])
    elif change == "shape":
        tensors["unlike.whitening"] = torch.zeros(3, 3)
    else:
        del tensors["unlike.mean"]
    artifact = Artifact(classifier.vit.config, classifier.classes, classifier.preprocess, unlike=facts)
    write_artifact(tmp_path / "a.safetensors", artifact, {**classifier.vit.state_dict(), **tensors})
    with pytest.raises(vitrail.VitrailError, match="not a complete artifact"):
        vitrail.load(tmp_path / "a.safetensors")
