"""Typical code of a user, for type checkers: mypy and pyright, both strict, find no error and no Any in what users get.

`make check` runs them. tests/test_user_code.py runs the code itself.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import assert_type

import numpy as np
import polars
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

import vitrail
from vitrail.callbacks import CallbackState, SplitScores
from vitrail.sklearn import VitrailClassifier
from vitrail.training.losses import LossContext
from vitrail.weights.builders import ModuleConfig

Loss = Callable[[Tensor, Tensor], Tensor]
CHANGES: vitrail.RecipeChanges = {"epochs": 4, "batch_size": 8, "optimizer": "sgd", "position": "sincos", "flip": 0.0}
OWN_LOSS: vitrail.RecipeChanges = {**CHANGES, "loss": "user_focal:gamma=1"}


def train_and_evaluate(data: Path, out: Path) -> vitrail.Run:
    run = vitrail.train(data, out=out, epochs=1, width=16, depth=1, heads=1, mlp_width=16, report=False)
    assert_type(run, vitrail.Run)
    assert_type(run.folder, Path)
    assert_type(run.classifier, vitrail.Classifier)
    evaluation = vitrail.evaluate(run.classifier, data)
    assert_type(evaluation, vitrail.Evaluation | vitrail.MultiLabelEvaluation | vitrail.NumberEvaluation)
    assert_type(evaluation.accuracy, float)
    assert_type(evaluation.accuracy_interval, tuple[float, float])
    assert_type(vitrail.load(run.folder), vitrail.Classifier)
    return run


class ScaledMean(nn.Module):
    def __init__(self, config: vitrail.ViTConfig, scale: float = 1.0):
        super().__init__()
        self.prefix_tokens = config.prefix_tokens
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.scale * x_BTD[:, self.prefix_tokens :].mean(dim=1)


def register_parts() -> None:
    assert_type(vitrail.register("pool", "user_mean", ScaledMean), type[ScaledMean])

    @vitrail.register("loss", "user_focal")
    def make_focal_loss(context: LossContext, gamma: float = 2.0) -> Loss:
        assert_type(context.recipe, vitrail.Recipe)
        weights_Y = context.balanced_weights()

        def focal_loss(logits_BY: Tensor, targets: Tensor) -> Tensor:
            errors_B = F.cross_entropy(logits_BY, targets, reduction="none")
            weighted_B = F.cross_entropy(logits_BY, targets, weights_Y, reduction="none")
            return ((1 - torch.exp(-errors_B)) ** gamma * weighted_B).mean()

        return focal_loss

    @vitrail.register("model", "user_cnn")
    def build(config: ModuleConfig, width: int = 8) -> nn.Module:
        assert_type(config.image_size, tuple[int, int])
        conv = nn.Conv2d(config.channels, width, 3, 2)
        return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, config.classes))

    assert_type(build(ModuleConfig(architecture="user_cnn")), nn.Module)
    assert_type(make_focal_loss(LossContext(vitrail.Recipe(), ("a", "b"), np.array([1, 3]))), Loss)


class StopAtStep(vitrail.Callback):
    def __init__(self, step: int):
        self.step = step
        self.losses: list[float] = []

    def on_run_start(self, state: CallbackState) -> None:
        assert_type(state.folder, Path)
        assert_type(state.recipe, vitrail.Recipe)
        assert_type(state.images, Mapping[str, int])

    def on_step_end(self, state: CallbackState) -> None:
        assert_type(state.metrics, Mapping[str, float])
        self.losses.append(state.metrics["train_loss"])
        if state.step >= self.step:
            state.stop(f"step {self.step} is reached")

    def on_evaluation_end(self, state: CallbackState) -> None:
        assert_type(state.evaluation, SplitScores | None)
        assert_type(state.classifier, vitrail.Classifier | vitrail.ModuleClassifier | None)
        assert_type(state.model, nn.Module | None)


class Squares(Dataset[tuple[Tensor, int]]):
    """A bright square in the upper or the lower half of a picture."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image_CHW, label = torch.zeros(1, 16, 16), index % 2
        image_CHW[:, 8 * label : 8 * label + 8, index % 8 : index % 8 + 8] = 1.0
        return image_CHW, label


def train_with_own_parts(out: Path) -> list[float]:
    config = vitrail.ViTConfig(width=16, depth=1, heads=1, mlp_width=16, patch=4, image_size=16, pool="user_mean")
    assert_type(config.grid, tuple[int, int])
    stop = StopAtStep(4)
    run = vitrail.train(
        {"train": Squares(), "validation": Squares()},
        model=config,
        callbacks=[stop, vitrail.EarlyStopping(patience=3)],
        out=out,
        report=False,
        **OWN_LOSS,
    )
    assert_type(run.classifier.vit, vitrail.ViT)
    squares = [Squares()[index] for index in range(24)]
    images = np.stack([image_CHW.numpy()[0] for image_CHW, _ in squares])
    assert_type(
        vitrail.evaluate(run.classifier, (images, [label for _, label in squares])),
        vitrail.Evaluation | vitrail.MultiLabelEvaluation | vitrail.NumberEvaluation,
    )
    return stop.losses


def invert(image_CHW: Tensor) -> Tensor:
    return 255 - image_CHW


def train_another_model(out: Path) -> nn.Module:
    run = vitrail.train(
        Squares(), architecture="user_cnn:width=4", augment=invert, freeze=("0",), epochs=1, out=out, check=False
    )
    assert_type(run, vitrail.Run)
    assert isinstance(run, vitrail.ModuleRun)
    assert_type(run.classifier, vitrail.ModuleClassifier)
    return run.classifier.module


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
    assert_type(recipe.with_changes(**CHANGES), vitrail.Recipe)
    assert_type(recipe.with_changes(size="S", lora_rank=8).lora_rank, int | None)
    preprocess = vitrail.Preprocess(image_size=(32, 32))
    assert_type(preprocess.channels, int)
    vit = vitrail.ViT(vitrail.ViTConfig(width=16, depth=1, heads=1, mlp_width=16, patch=4, image_size=32, classes=2))
    clf = vitrail.Classifier(vit, ("a", "b"), preprocess)
    assert_type(clf.classes, tuple[str, ...])
    return vit


def mistype(recipe: vitrail.Recipe) -> None:
    """Type checkers refuse a field that no recipe has, and a value of another type."""
    recipe.with_changes(epoch=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    recipe.with_changes(epochs="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def use_scikit_learn() -> VitrailClassifier:
    return VitrailClassifier(epochs=1, pixel_range=(0, 16))
