"""Typical code of a user, for type checkers: mypy and pyright, both strict, find no error and no Any in what users get.

`make check` runs them. tests/test_user_code.py runs the code itself.
"""

from pathlib import Path
from typing import assert_type

import numpy as np
import polars
from PIL import Image
from torch import Tensor

import vitrail
from vitrail.sklearn import VitrailClassifier


def train_and_evaluate(data: Path, out: Path) -> vitrail.Run:
    run = vitrail.train(data, out=out, epochs=1, width=16, depth=1, heads=1, mlp_width=16, report=False)
    assert_type(run, vitrail.Run)
    assert_type(run.folder, Path)
    assert_type(run.classifier, vitrail.Classifier)
    evaluation = vitrail.evaluate(run.classifier, data)
    assert_type(evaluation, vitrail.Evaluation)
    assert_type(evaluation.accuracy, float)
    assert_type(evaluation.accuracy_interval, tuple[float, float])
    assert_type(vitrail.load(run.folder), vitrail.Classifier)
    return run


def predict(clf: vitrail.Classifier, file: Path) -> None:
    one = clf.predict(file)
    assert_type(one, vitrail.ImagePrediction)
    assert_type(one.label, str)
    assert_type(one.probability, float)
    assert_type(one[0], vitrail.Prediction)
    many = clf.predict([file, file.read_bytes(), Image.open(file), np.zeros((16, 16, 3), np.uint8)], on_error="skip")
    assert_type(many, vitrail.Predictions)
    assert_type(many[0], vitrail.ImagePrediction)
    assert_type(many[1:], vitrail.Predictions)
    assert_type(many.labels, list[str | None])
    assert_type(many.logits, Tensor)
    assert_type([each.label for each in many], list[str])
    assert_type(vitrail.predict(clf, str(file)), vitrail.ImagePrediction)
    assert_type(vitrail.predict("cifar10-small", (path for path in [file])), vitrail.Predictions)
    assert_type(clf.embed([file]), Tensor)
    assert_type(many.to_polars(), polars.DataFrame)


def predict_files(clf: vitrail.Classifier, model: Path, images: Path, out: Path) -> None:
    summary = vitrail.predict_all(model, images, out, format="csv", top=2, processes=1)
    assert_type(summary, vitrail.PredictSummary)
    assert_type(summary.labels, dict[str, int])


def explain_and_export(clf: vitrail.Classifier, file: Path, out: Path) -> None:
    explanation = vitrail.explain(clf, file, method="attention")
    assert_type(explanation, vitrail.Explanation)
    assert_type(explanation.save(out / "map.png"), Path)
    program = vitrail.export(clf, out / "model.pt2", format="torch")
    assert_type(program.path, Path)
    assert_type(program.verification.max_difference, float)


def handle_errors(clf: vitrail.Classifier) -> str:
    try:
        clf.predict("nowhere.png")
    except vitrail.ImageError as error:
        assert_type(error.reason, str)
        return error.reason
    return ""


def make_values() -> vitrail.ViT:
    recipe = vitrail.Recipe(epochs=3, lr=1e-3)
    assert_type(recipe.epochs, int | None)
    preprocess = vitrail.Preprocess(image_size=(32, 32))
    assert_type(preprocess.channels, int)
    vit = vitrail.ViT(vitrail.ViTConfig(width=16, depth=1, heads=1, mlp_width=16, patch=4, image_size=32, classes=2))
    clf = vitrail.Classifier(vit, ("a", "b"), preprocess)
    assert_type(clf.classes, tuple[str, ...])
    return vit


def use_scikit_learn() -> VitrailClassifier:
    return VitrailClassifier(epochs=1, pixel_range=(0, 16))
