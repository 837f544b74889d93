"""k-NN and linear probes against scikit-learn and their definitions, and the cache of features."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail.classifier import Classifier
from vitrail.cli import main
from vitrail.data.encoded import ImageFiles
from vitrail.data.images import Images
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation import compute_outcome
from vitrail.evaluation.features import content_key, extract_features, model_key
from vitrail.evaluation.knn import knn_means, knn_probabilities
from vitrail.evaluation.linear_head import DEFAULT_PENALTY, fit_linear_head
from vitrail.evaluation.probe import knn_logits, open_probe_data, probe
from vitrail.intervals import wilson_interval
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.target_scale import TargetScale
from vitrail.tasks import GRADES, MULTI_LABEL, REGRESSION, SINGLE_LABEL


def clouds(n: int, classes: int, width: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns overlapping clouds of points (n, width) and their labels; dimensions have very different scales."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(classes, width))
    labels = np.arange(n) % classes
    points = (centers[labels] + rng.normal(0, 1.5, (n, width))) * np.geomspace(0.01, 100, width) + 3
    return points.astype(np.float32), labels


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tiny(classes: int = 0, **changes: object) -> Classifier:
    torch.manual_seed(0)
    config = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 32, "patch": 4, "image_size": 16, "classes": classes}
    vit = ViT(ViTConfig(**{**config, **changes}))
    return Classifier(vit, tuple("abcdefgh"[:classes]), Preprocess(image_size=(16, 16)))


@pytest.mark.parametrize("k", [1, 5, 40])
def test_knn_probabilities_equal_those_of_scikit_learn(k: int):
    from sklearn.neighbors import KNeighborsClassifier

    (bank, labels), (queries, _) = clouds(60, 4), clouds(33, 4, seed=1)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = theirs.fit(bank, labels).predict_proba(queries)
    np.testing.assert_allclose(knn_probabilities(bank, labels, queries, 4, k, 0.07), expected, atol=1e-4)


def test_knn_does_not_overflow_at_low_temperatures():
    (bank, labels), (queries, _) = clouds(60, 4), clouds(33, 4, seed=1)
    cold = knn_probabilities(bank, labels, queries, 4, 20, 1e-8)
    assert np.isfinite(cold).all()
    assert (
        cold.argmax(1) == knn_probabilities(bank, labels, queries, 4, 1).argmax(1)
    ).mean() > 0.9  # only the nearest counts


@pytest.mark.parametrize("classes", [2, 5])
def test_the_linear_head_equals_scikit_learns_pipeline(classes: int):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (points, labels), (queries, _) = clouds(120, classes), clouds(50, classes, seed=1)
    head = fit_linear_head(points, labels, None, classes, penalty=0.02)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (0.02 * 120), max_iter=1000, tol=1e-8))
    expected = theirs.fit(points.astype(np.float64), labels).predict_proba(queries.astype(np.float64))
    ours = torch.from_numpy(head.logits(queries)).softmax(1).numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_the_penalty_has_the_meaning_of_its_docstring():
    """At the optimum the gradient of mean cross-entropy + penalty / 2 |W|^2 is zero; W is for standardized features."""
    points, labels = clouds(150, 4)
    head = fit_linear_head(points, labels, None, 4, penalty=0.1)
    mean, std = points.mean(0, dtype=np.float64), points.std(0, dtype=np.float64)
    standardized = torch.from_numpy((points - mean) / std)
    weight = torch.from_numpy(head.weight * std).requires_grad_()
    bias = torch.from_numpy(head.bias + head.weight @ mean).requires_grad_()
    loss = torch.nn.functional.cross_entropy(standardized @ weight.T + bias, torch.from_numpy(labels))
    (loss + 0.05 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-3
    assert bias.grad.abs().max() < 1e-3


def many_labels(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns vectors of which each has any number of 3 labels, and these, 0 or 1."""
    points, _ = clouds(n, 4, seed=seed)
    width = points.shape[1]
    directions = np.random.default_rng(5).normal(size=(width, 3)) / np.geomspace(0.01, 100, width)[:, None]
    return points, ((points - points.mean(0)) @ directions > [-3, 0, 2]).astype(np.int64)


def test_the_head_for_labels_equals_scikit_learns_one_vs_rest():
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (points, labels), (queries, _) = many_labels(120), many_labels(50, seed=1)
    head = fit_linear_head(points, labels, None, 3, penalty=0.02, task=MULTI_LABEL)
    theirs = OneVsRestClassifier(LogisticRegression(C=1 / (0.02 * 120), max_iter=1000, tol=1e-8))
    pipeline = make_pipeline(StandardScaler(), theirs).fit(points.astype(np.float64), labels)
    expected = pipeline.predict_proba(queries.astype(np.float64))
    np.testing.assert_allclose(torch.from_numpy(head.logits(queries)).sigmoid().numpy(), expected, atol=2e-3)
    everywhere = np.concatenate([labels, np.ones((120, 1), dtype=int)], axis=1)
    logits = fit_linear_head(points, everywhere, None, 4, penalty=0.02, task=MULTI_LABEL).logits(queries)
    np.testing.assert_allclose(logits[:, 3], np.log(120.5 / 0.5))  # all images have the label
    np.testing.assert_allclose(logits[:, :3], head.logits(queries), atol=1e-6)
    with pytest.raises(VitrailError, match="every class needs a training image"):
        fit_linear_head(points, 1 - everywhere, None, 4, task=MULTI_LABEL)


def test_the_head_for_numbers_equals_scikit_learns_ridge_regression():
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (points, _), (queries, _) = clouds(120, 4), clouds(50, 4, seed=1)
    random = np.random.default_rng(3)
    numbers = points @ random.normal(size=(points.shape[1], 2)) * [1, 1000] + random.normal(size=(120, 2)) + [0, 1e5]
    head = fit_linear_head(points, numbers, None, 2, penalty=0.02, task=REGRESSION)
    theirs = make_pipeline(StandardScaler(), Ridge(alpha=0.02 * 120))
    expected = theirs.fit(points.astype(np.float64), numbers).predict(queries.astype(np.float64))
    np.testing.assert_allclose(head.logits(queries), expected, rtol=1e-8)
    other = fit_linear_head(points, numbers, None, 2, penalty=0.02, task=REGRESSION, scale=TargetScale((7, 1), (3, 2)))
    np.testing.assert_allclose(other.logits(queries), expected, rtol=1e-8)  # the scale of a model changes no answer
    assert not np.allclose(other.weight, head.weight)


@pytest.mark.parametrize(("task", "score"), [(MULTI_LABEL, "map"), (REGRESSION, "r2"), (GRADES, "quadratic_kappa")])
def test_the_penalty_has_the_best_score_of_the_task(task: str, score: str):
    if task == GRADES:
        (points, labels), validation = clouds(40, 4), clouds(200, 4, seed=1)
    else:
        (points, labels), validation = many_labels(40), many_labels(200, seed=1)
    classes = 4 if task == GRADES else 3
    head = fit_linear_head(points, labels, validation, classes, task=task)
    rows = head.scores_by_penalty
    assert head.penalty == max(rows, key=lambda row: (row[f"validation_{score}"], -row["validation_loss"]))["penalty"]
    assert len({row[f"validation_{score}"] for row in rows}) > 3


def test_means_of_neighbors_equal_those_of_scikit_learn():
    from sklearn.neighbors import KNeighborsRegressor

    (bank, labels), (queries, _) = many_labels(60), many_labels(33, seed=1)
    theirs = KNeighborsRegressor(7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = theirs.fit(bank, labels).predict(queries)
    np.testing.assert_allclose(knn_means(bank, labels, queries, 7, 0.07), expected, atol=1e-4)
    images = Images(torch.zeros(60, 3, 2, 2), [""] * 60, labels, ("a", "b", "c"), task=MULTI_LABEL)
    log_odds = knn_logits(bank, images, queries, 7, 0.07)
    np.testing.assert_allclose(torch.from_numpy(log_odds).sigmoid().numpy(), expected, atol=1e-4)
    assert np.isfinite(log_odds).all() and (expected == 0).any()


def test_the_penalty_is_the_best_on_validation():
    (points, labels), validation = clouds(40, 4), clouds(200, 4, seed=1)
    head = fit_linear_head(points, labels, validation, 4)
    best = max(head.scores_by_penalty, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert head.penalty == best["penalty"]
    assert (head.logits(validation[0]).argmax(1) == validation[1]).mean() == best["validation_accuracy"]
    assert len(head.scores_by_penalty) > 5
    assert fit_linear_head(points, labels, None, 4).penalty == DEFAULT_PENALTY


def test_a_constant_feature_has_weight_zero():
    points, labels = clouds(40, 3)
    points[:, 4] = 7.0
    head = fit_linear_head(points, labels, None, 3)
    assert np.isfinite(head.weight).all()
    assert (head.weight[:, 4] == 0).all()


def test_features_are_the_input_of_the_head(tmp_path: Path):
    classifier = tiny(classes=3)
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    features = classifier.features(pixels)
    assert features.shape == (5, 16)
    torch.testing.assert_close(classifier.vit.head(features), classifier.logits(pixels))
    backbone = tiny()
    torch.testing.assert_close(backbone.features(pixels), backbone.logits(pixels))
    Image.fromarray(pixels[2].permute(1, 2, 0).numpy()).save(tmp_path / "x.png")
    torch.testing.assert_close(classifier.features(tmp_path / "x.png"), features[2:3])
    torch.testing.assert_close(classifier.features([tmp_path / "x.png", pixels[0]]), features[[2, 0]])


def random_images(n: int = 300, seed: int = 0) -> Images:
    pixels = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Images(pixels, [str(i) for i in range(n)], np.arange(n) % 2, ("a", "b"))


def test_features_are_computed_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    classifier, images = tiny(), random_images()
    ticks: list[int] = []
    first = extract_features(classifier, images, on_batch=ticks.append)
    assert sum(ticks) == 300
    assert len(list(cache.rglob("*.safetensors"))) == 2
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "features", None)  # computing features would fail
        again = extract_features(classifier, images)
    assert (first == again).all()
    assert (extract_features(classifier, images, cache=False) == first).all()
    assert first[7] == pytest.approx(classifier.features(images[7].unsqueeze(0))[0].numpy(), abs=1e-5)


def test_only_missing_features_are_computed_also_from_files_with_workers(cache: Path, tmp_path: Path, capsys):
    images = random_images(600)
    files = [tmp_path / f"{i:03d}.png" for i in range(600)]
    for file, pixels in zip(files, images.pixels, strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, compress_level=0)
    listed = Images(ImageFiles(files), images.names, images.labels, images.classes)
    classifier = tiny()
    first = extract_features(classifier, listed, workers=2, batch_size=100)
    middle = sorted(cache.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)[1]
    middle.unlink()
    assert (extract_features(classifier, listed, workers=2, batch_size=64) == first).all()
    assert "the features of 344 of 600 images are in the cache" in capsys.readouterr().err
    np.testing.assert_allclose(extract_features(classifier, images, cache=False), first, atol=1e-5)


def test_computed_features_are_cached_at_a_stop(cache: Path, monkeypatch: pytest.MonkeyPatch):
    classifier, images = tiny(), random_images()
    expected = extract_features(classifier, images, cache=False)
    done = 0

    def stop(n: int) -> None:
        nonlocal done
        done += n
        if done >= 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(classifier, images, on_batch=stop)
    assert len(list(cache.rglob("*.safetensors"))) == 1
    assert (extract_features(classifier, images) == expected).all()  # bit for bit


def test_damaged_cache_files_are_replaced(cache: Path):
    classifier, images = tiny(), random_images(20)
    first = extract_features(classifier, images)
    (file,) = cache.rglob("*.safetensors")
    for damage in (lambda b: b[:40], lambda b: b[:-1] + bytes([b[-1] ^ 64]), lambda b: b""):
        file.write_bytes(damage(file.read_bytes()))
        assert (extract_features(classifier, images) == first).all()


def test_a_read_only_cache_is_logged_once(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "file"))
    assert extract_features(tiny(), random_images(600)).shape == (600, 16)
    assert capsys.readouterr().err.count("features are not cached") == 1


def test_cache_keys_cover_everything_that_features_depend_on(tmp_path: Path):
    base = tiny(classes=3)
    key = model_key(base)
    for changes in ({"classes": 5}, {"classes": 0}, {"head": "mlp", "classes": 2}, {"classes": 3, "drop_path": 0.3}):
        same = tiny(**changes)
        weights = {name: tensor for name, tensor in base.vit.state_dict().items() if not name.startswith("head.")}
        same.vit.load_state_dict(weights, strict=False)
        assert model_key(same) == key  # none of these changes a feature
    assert model_key(tiny(classes=3, norm_eps=1e-5)) != key
    other = tiny(classes=3)
    other.preprocess = Preprocess(image_size=(16, 16), fit="stretch")
    assert model_key(other) != key
    with torch.no_grad():
        base.vit.blocks[1].mlp.fc2.bias[3] += 1e-7
    assert model_key(base) != key
    images = random_images(4)
    whole = range(4)
    renamed = Images(images.pixels, list("wxyz"), images.labels, ("c", "d"))
    assert content_key(images, whole) == content_key(renamed, whole)
    assert content_key(images, whole) != content_key(images.subset([1, 0, 2, 3]), whole)
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for i, file in enumerate(files):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(file)
    as_files = Images(ImageFiles(files), ["a", "b"], np.zeros(2, dtype=int), ("a",))
    before = content_key(as_files, range(2))
    Image.new("RGB", (16, 16), (9, 0, 0)).save(files[1])  # the same name and size
    assert content_key(as_files, range(2)) != before


def test_both_probes_have_scores_and_intervals(run: vitrail.Run, colors: Path):
    result = vitrail.probe(run.classifier, colors)
    document = result.to_json()
    json.dumps(document, allow_nan=False)
    assert (document["split"], document["train_images"]) == ("test", 54)
    assert document["knn"]["k"] == 20
    assert document["knn"]["temperature"] == 0.07
    for name in ("knn", "linear"):
        scores = document[name]
        assert scores["images"] == 24
        hits = round(scores["accuracy"] * 24)
        assert scores["accuracy"] == hits / 24 > 0.8
        assert scores["accuracy_interval"] == pytest.approx(wilson_interval(hits, 24))
    splits = open_probe_data(run.classifier, colors)
    head = torch.nn.Linear(32, 3, dtype=torch.float64)
    head.load_state_dict({"weight": torch.from_numpy(result.head.weight), "bias": torch.from_numpy(result.head.bias)})
    run.classifier.vit.head, original = head.float(), run.classifier.vit.head
    try:
        assert compute_outcome(run.classifier, splits.test).accuracy == document["linear"]["accuracy"]
    finally:
        run.classifier.vit.head = original


def test_training_data_are_split_as_in_training(make_folder):
    folder = make_folder("one", 20)
    run = vitrail.train(
        folder,
        out=folder.parent / "run",
        epochs=1,
        width=16,
        depth=1,
        heads=2,
        mlp_width=32,
        test_fraction=0.4,
        split_seed=3,
    )
    splits = open_probe_data(run.classifier, folder)
    assert (len(splits.test), len(splits.train)) == (16, run.classifier.origin["data"]["images"]["train"])


def test_training_data_of_another_task_are_split_as_in_training(tmp_path: Path):
    """Else test images of the probe would be images that the model was trained on."""
    random = np.random.default_rng(0)
    lines = ["path,label"]
    for i in range(40):
        Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / f"{i:02}.png")
        lines.append(f"{i:02}.png,{i % 4}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines))
    options = {"epochs": 1, "width": 16, "depth": 1, "heads": 2, "mlp_width": 32, "report": False, "pictures": False}
    trained = vitrail.train(table, task=REGRESSION, out=tmp_path / "run", **options).classifier
    expected = {
        name: set(images.names) for name, images in open_probe_data(trained, table, task=REGRESSION).as_dict().items()
    }
    assert len(expected) == 3
    for task in (None, MULTI_LABEL):
        splits = open_probe_data(trained, table, task=task)
        assert splits.train.task == (task or SINGLE_LABEL)
        assert {name: set(images.names) for name, images in splits.as_dict().items()} == expected
    moved = tmp_path / "others.csv"
    moved.write_text("\n".join(lines[:-4]))
    assert len(open_probe_data(trained, moved).test) == 8, "other data are divided as ever"


def test_another_image_size_resizes_positions_like_the_forward_pass(run: vitrail.Run, colors: Path):
    images = torch.randint(0, 256, (2, 3, 24, 20), dtype=torch.uint8)
    other = run.classifier.with_image_size((24, 20))
    torch.testing.assert_close(other.logits(images), run.classifier.logits(images))
    assert other.vit.config.grid == (12, 10)
    assert other.preprocess.image_size == (24, 20)
    assert run.classifier.vit.config.grid == (8, 8)
    with pytest.raises(UsageError, match="does not divide into patches"):
        run.classifier.with_image_size(15)


def test_the_command(run: vitrail.Run, colors: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    out = tmp_path / "probe.json"
    assert (
        main(["probe", str(run.folder), str(colors), "--k", "5", "--image-size", "20", "--json", "--out", str(out)])
        == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert {"knn", "linear"} <= document.keys()
    assert document["knn"]["k"] == 5
    assert json.loads(out.read_text()) == document
    assert main(["probe", str(run.folder), str(colors), "--probe-l2", "0.1", "--no-cache"]) == 0
    output = capsys.readouterr().out
    assert "k-NN (k 20, cosine, temperature 0.07)" in output
    assert "L2 penalty 0.1, set by --probe-l2" in output
    assert "95% interval" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "0"], "0 is too small"),
        (["--temperature", "nan"], "nan is out of range"),
        (["--probe-l2", "-1"], "-1 is out of range"),
        (["--batch-size", "0"], "0 is too small"),
        (["--image-size", "17"], "does not divide into patches"),
        (["--image-size", "wide"], "--image-size"),
    ],
)
def test_invalid_options_give_one_sentence(arguments, message, run: vitrail.Run, colors: Path, capsys):
    assert main(["probe", str(run.folder), str(colors), *arguments]) == 2
    first, *rest = capsys.readouterr().err.strip().splitlines()
    assert message in first
    assert len(rest) <= 1


def test_a_model_without_classes_can_only_be_probed(colors: Path, tmp_path: Path, capsys):
    tiny().save(tmp_path / "backbone.safetensors")
    for verb, what in (("predict", colors / "test" / "red" / "0.png"), ("evaluate", colors)):
        assert main([verb, str(tmp_path / "backbone.safetensors"), str(what)]) == 2
        error = capsys.readouterr().err
        assert "returns features and has no classes" in error
        assert "--from MODEL" in error
    assert vitrail.probe(vitrail.load(tmp_path / "backbone.safetensors"), colors).linear.accuracy > 0.3


def test_an_unreadable_image_is_named_in_the_error(run: vitrail.Run, make_folder):
    folder = make_folder("bad", {"train": 4, "test": 2}, ("red", "blue"))
    (folder / "train" / "red" / "1.png").write_bytes(b"no image")
    with pytest.raises(VitrailError, match=r"red/1\.png"):
        probe(run.classifier, open_probe_data(run.classifier, folder))


def test_cached_features_of_other_models_make_room(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    from vitrail.evaluation.features import read_cached, write_cached

    files = [own_cache / "features" / model / "images.safetensors" for model in ("a", "b", "c")]
    features = torch.ones(1000, 100)
    monkeypatch.setenv("VITRAIL_CACHE_GIB", str(2.5 * features.nbytes / (1 << 30)))
    for file in files[:2]:
        assert write_cached(file, features)
    os.utime(files[0], (1, 1))
    os.utime(files[1], (2, 2))
    assert read_cached(files[0], 1000) is not None  # now used later than the other
    assert write_cached(files[2], features)
    assert [file.exists() for file in files] == [True, False, True]
