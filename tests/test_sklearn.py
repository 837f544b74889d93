"""`VitrailClassifier` beside scikit-learn's own checks, cross-validation, grid search and pipelines."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import vitrail
from conftest import COLORS, picture
from vitrail.sklearn import VitrailClassifier

MODEL: dict[str, Any] = dict(width=16, depth=1, heads=1, mlp_width=16)
CHANGES: dict[str, Any] = {"crop": "none", "ema_decay": None}
SMALL: dict[str, Any] = {**MODEL, "epochs": 4, "batch_size": 16, "lr": 1e-2, "changes": CHANGES}
DIGITS = load_digits()
X, Y = DIGITS.data[:120], DIGITS.target[:120]


@parametrize_with_checks(
    # the checks give rows of a few numbers of any size: each row is an image of one row of pixels
    [VitrailClassifier(image_shape="row", pixel_range="fit", patch=1, validation_fraction=0.0, **SMALL)],
)
def test_the_checks_of_scikit_learn(estimator: VitrailClassifier, check: Any):
    check(estimator)


@pytest.fixture(scope="module")
def digits() -> VitrailClassifier:
    return VitrailClassifier(pixel_range=(0, 16), **{**SMALL, "epochs": 16}).fit(X, Y)


def test_digits_are_learnt(digits: VitrailClassifier):
    assert digits.score(X, Y) > 0.5
    assert digits.classes_.tolist() == list(range(10)) and digits.predict(X[:5]).dtype == Y.dtype
    probabilities = digits.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert np.array_equal(digits.predict(X), digits.classes_[probabilities.argmax(1)])
    assert isinstance(digits.classifier_, vitrail.Classifier) and digits.result_["validation"]["accuracy"] > 0.3


def test_every_form_of_the_images_is_the_same(digits: VitrailClassifier, tmp_path: Path):
    expected = digits.predict_proba(X[:6])
    pixels = (X[:6] * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path, each in zip(paths, pixels, strict=True):
        Image.fromarray(each).save(path)
    stack = X[:6].reshape(-1, 8, 8)
    for images in (stack, stack[..., None], paths, [Image.open(path) for path in paths], list(pixels)):
        np.testing.assert_array_equal(digits.predict_proba(images), expected)
    np.testing.assert_array_equal(digits.predict_proba(torch.from_numpy(X[:6])), expected)
    frame = pandas.DataFrame(X[:6])
    np.testing.assert_array_equal(digits.predict_proba(frame.to_numpy()), expected)


def test_it_trains_as_vitrail_train_does(tmp_path: Path):
    """The same images in folders, with the same seed and fields, give the same weights."""
    color_images, labels = [], []
    for c, (label, color) in enumerate(sorted(COLORS.items())):
        for i in range(6):
            color_images.append(np.asarray(picture(color, 100 * c + i)))
            labels.append(label)
    estimator = VitrailClassifier(validation_fraction=0.0, out=tmp_path / "run", **SMALL).fit(color_images, labels)
    assert (tmp_path / "run" / "classifier.safetensors").is_file()
    for i, (image, label) in enumerate(zip(color_images, labels, strict=True)):
        folder = tmp_path / "data" / "train" / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    run = vitrail.train(
        tmp_path / "data", out=tmp_path / "other", validation_fraction=0.0, flip=0.0, report=False, check=False,
        epochs=4, batch_size=16, lr=1e-2, **MODEL, **CHANGES,
    )  # fmt: skip
    theirs = run.classifier.vit.state_dict()
    for name, weights in estimator.classifier_.vit.state_dict().items():
        assert torch.equal(weights, theirs[name]), name
    assert estimator.classifier_.preprocess == run.classifier.preprocess


@pytest.mark.parametrize("labels", [["b", "a"], [True, False], [-3, 20], [2.0, 10.0], np.array(["x", "y"], object)])
def test_labels_come_back_as_they_were_given(labels: Any):
    images = [np.full((8, 8), value, np.uint8) for value in (0, 255)] * 4
    y = np.array(list(labels) * 4, dtype=np.asarray(labels).dtype)
    estimator = VitrailClassifier(validation_fraction=0.0, **{**SMALL, "epochs": 4}).fit(images, y)
    assert estimator.predict(images).dtype == y.dtype
    assert estimator.predict(images).tolist() == y.tolist()
    assert estimator.classes_.tolist() == sorted(labels)


def test_cross_validation_grid_search_and_a_pipeline():
    estimator = VitrailClassifier(pixel_range=(0, 16), validation_fraction=0.0, **SMALL)
    scores = cross_val_score(estimator, X, Y, cv=2)
    assert scores.shape == (2,) and np.isfinite(scores).all()
    search = GridSearchCV(estimator, {"epochs": [1, 8], "changes": [CHANGES]}, cv=2, error_score="raise")
    assert search.fit(X, Y).best_params_["epochs"] == 8
    assert search.best_estimator_.score(X, Y) == search.score(X, Y)
    pipeline = make_pipeline(MinMaxScaler((0, 1), clip=True), clone(estimator).set_params(pixel_range=None))
    assert pipeline.fit(X, Y).predict(X[:3]).shape == (3,)


def test_parameters_are_those_of_scikit_learn():
    estimator = VitrailClassifier(epochs=3, changes={"mixup": 0.2}, recipe="small")
    copy = clone(estimator)
    assert copy.get_params() == estimator.get_params() and copy.set_params(lr=0.1).lr == 0.1
    assert not hasattr(copy, "classifier_")


def test_color_rows_and_named_shapes():
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    y = [0, 1, 0, 1]
    fields = {**SMALL, "epochs": 1, "validation_fraction": 0.0}
    whole = VitrailClassifier(**fields).fit(color, y)
    for shape in (None, (8, 8, 3)):
        flat = VitrailClassifier(image_shape=shape, **fields).fit(color.reshape(4, -1), y)
        np.testing.assert_array_equal(flat.predict_proba(color.reshape(4, -1)), whole.predict_proba(color))
    wide = VitrailClassifier(image_shape=(4, 16), **fields).fit(color[..., 0].reshape(4, -1), y)
    assert wide.classifier_.preprocess.image_size == (4, 16) and wide.classifier_.preprocess.channels == 1


REFUSED = {
    "not square": ({}, np.zeros((4, 10)), r"n_features=10 is no square image; set image_shape"),
    "another shape": ({"image_shape": (3, 3)}, np.zeros((4, 10)), r"image_shape is \(3, 3\), and X has 10 features"),
    "0 to 16": ({}, X[:4], r"X has values from 0 to 16, .* set pixel_range"),
    "below black": ({"pixel_range": (0, 1)}, X[:4] - 1, r"X has values from -1 to"),
    "no range": ({"pixel_range": (1, 1)}, X[:4], "the first number must be below the second"),
    "no word": ({"pixel_range": "auto"}, X[:4], "give a pair of numbers, or 'fit'"),
    "no recipe": ({"recipe": "nothing", "pixel_range": (0, 16)}, X[:4], "nothing"),
    "no field": ({"changes": {"epoch": 3}, "pixel_range": (0, 16)}, X[:4], "did you mean epochs"),
    "no file": ({}, ["a.png", "b.png", "c.png", "d.png"], r"X\[0\]: there is no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_a_value_error_with_what_to_do(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    parameters, images, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        VitrailClassifier(**parameters).fit(images, [0, 1, 0, 1])


def test_ctrl_c_is_no_bad_input(monkeypatch: pytest.MonkeyPatch):
    def interrupt(*arguments: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitrail.runs.epochs.train_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        VitrailClassifier(pixel_range=(0, 16), **SMALL).fit(X, Y)


def test_a_random_state_is_the_seed():
    fields: dict[str, Any] = {"pixel_range": (0, 16), "validation_fraction": 0.0, **SMALL, "epochs": 1}
    first, same, other, drawn = (
        VitrailClassifier(random_state=state, **fields).fit(X[:20], Y[:20]).predict_proba(X[:20])
        for state in (3, 3, 4, np.random.RandomState(0))
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other) and not np.array_equal(first, drawn)
