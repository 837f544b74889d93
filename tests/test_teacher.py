"""Teachers: the losses of distillation, students with and without a distillation token, and runs with a teacher."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kills
import vitrail
from conftest import fill
from kills import kill_runs
from test_tasks import StopAt
from vitrail.data.preprocess import Preprocess
from vitrail.data.unlabeled import NO_CLASS
from vitrail.errors import UsageError, VitrailError
from vitrail.exporting.model_card import write_model_card
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.runs.folder import RunFolder
from vitrail.runs.result import describe_teaching
from vitrail.runs.teacher import translate_images
from vitrail.target_scale import TargetScale
from vitrail.tasks import MULTI_LABEL, REGRESSION
from vitrail.training.losses import StepBatch
from vitrail.training.recipe import Recipe
from vitrail.training.teacher import (
    Teacher,
    feature_loss,
    hard_label_loss,
    hard_loss,
    has_label,
    look_up,
    number_loss,
    prepare_labels,
    soft_label_loss,
    soft_loss,
    split_logits,
    without_projection,
)
from vitrail.training.train_state import init_train_state
from vitrail.weights.origin import describe_teacher

COLORS = ("red", "green")
TINY = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 32, "patch": 4, "precision": "fp32", "check": False}
SHORT = {**TINY, "epochs": 2, "batch_size": 16, "report": False}
CONFIG = ViTConfig(width=8, depth=1, heads=2, mlp_width=16, patch=4, image_size=8, classes=3)


@pytest.fixture
def batch() -> StepBatch:
    torch.manual_seed(0)
    labels = torch.tensor([0, 2, -1, 1, -1])
    return StepBatch(torch.randn(5, 3, 8, 8), labels, torch.tensor([4, 0, 2, 6, 1]))


def make_teacher(distillation: str, width: int, answers: torch.Tensor | None = None) -> Teacher:
    torch.manual_seed(1)
    answers = torch.randn(7, width) if answers is None else answers
    return Teacher(look_up(answers), torch.zeros(7, dtype=torch.int64), distillation, width)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def kl_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """Hinton's loss, written out: T^2 x mean of sum p log(p / q)."""
    log_q, log_p = (log_softmax(each.detach().double().numpy() / temperature) for each in (student, teacher))
    return float(temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    return -log_softmax(logits.detach().double().numpy())[np.arange(len(labels)), labels.numpy()]


# losses


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.5])
def test_the_soft_loss_is_hintons(temperature: float):
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 4), 3 * torch.randn(6, 4)
    assert soft_loss(student, teacher, temperature).item() == pytest.approx(
        kl_divergence(student, teacher, temperature), abs=1e-6
    )


def test_the_hard_loss_is_that_of_the_teachers_class():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    expected = cross_entropy(student, teacher.argmax(1)).mean()
    assert hard_loss(student, teacher, 9.0).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_losses_of_labels_and_numbers(temperature: float):
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    q, p = ((each / temperature).sigmoid() for each in (student, teacher))
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert float(soft_label_loss(student, teacher, temperature)) == pytest.approx(temperature**2 * float(kl.mean()))
    assert abs(float(soft_label_loss(teacher, teacher, temperature))) < 1e-12
    right = torch.where(teacher >= 0, student.sigmoid(), 1 - student.sigmoid())
    assert float(hard_label_loss(student, teacher, temperature)) == pytest.approx(-float(right.log().mean()))
    assert float(number_loss(student, teacher, temperature)) == pytest.approx(
        float((student - teacher).square().mean())
    )


def test_labels_of_a_teachers_images_tell_those_without():
    several = prepare_labels(np.array([[1, 0], [NO_CLASS, NO_CLASS], [0, 0]]), None)
    assert has_label(several).tolist() == [True, False, True] and several[0].tolist() == [1, 0]
    numbers = prepare_labels(np.array([[-1.0], [np.nan], [3.0]]), TargetScale((1.0,), (2.0,)))
    assert has_label(numbers).tolist() == [True, False, True] and numbers[[0, 2], 0].tolist() == [-1, 1]
    assert has_label(prepare_labels(np.array([0, NO_CLASS]), None)).tolist() == [True, False]


def test_the_feature_loss_is_that_of_the_paper():
    torch.manual_seed(0)
    student, teacher = 4 * torch.randn(6, 5), 2 * torch.randn(6, 5) + 1
    features = teacher.double().numpy()
    target = (features - features.mean(1, keepdims=True)) / np.sqrt(features.var(1, keepdims=True) + 1e-5)
    distance = np.abs(student.double().numpy() - target)
    expected = np.where(distance < 2, distance**2 / 4, distance - 1).mean()
    assert feature_loss(student, teacher, 1.0).item() == pytest.approx(expected, abs=1e-6)


def test_images_without_labels_learn_from_the_teacher_alone(batch: StepBatch):
    vit, recipe = ViT(CONFIG), Recipe(teacher_weight=0.7, teacher_temperature=3.0)
    teacher = make_teacher("soft", 3)
    state = init_train_state(vit, recipe, teacher=teacher)
    logits = vit(batch.images_BCHW)
    answers = teacher.answer(batch)
    labeled = batch.labels_B >= 0
    expected = 0.7 * kl_divergence(logits, answers, 3.0)
    expected += 0.3 * cross_entropy(logits[labeled], batch.labels_B[labeled]).sum() / 5
    assert state.loss(logits, batch.labels_B, batch).item() == pytest.approx(expected, abs=1e-6)


def test_a_batch_without_labels_has_a_loss(batch: StepBatch):
    unlabeled = StepBatch(batch.images_BCHW, torch.full((5,), -1), batch.numbers_B)
    vit, teacher = ViT(CONFIG), make_teacher("soft", 3)
    loss = init_train_state(vit, Recipe(), teacher=teacher).loss
    logits = vit(batch.images_BCHW)
    expected = 0.9 * kl_divergence(logits, teacher.answer(batch), 2.0)
    assert loss(logits, unlabeled.labels_B, unlabeled).item() == pytest.approx(expected, abs=1e-6)


# distillation token


def test_the_distillation_token_learns_from_the_teacher_and_the_class_token_from_labels(batch: StepBatch):
    """DeiT (arXiv 2012.12877), equation 3: half the cross-entropy of each token."""
    config = ViTConfig(**{**vars(CONFIG), "pool": "cls+dist", "prefix_tokens": 2})
    vit, teacher = ViT(config), make_teacher("hard", 3)
    nn.init.normal_(vit.head.weight)
    nn.init.normal_(vit.prefix)
    labels = torch.tensor([0, 2, 1, 1, 0])
    labeled = StepBatch(batch.images_BCHW, labels, batch.numbers_B)
    state = init_train_state(vit, Recipe(teacher_weight=0.5), teacher=teacher)
    state.set_train_mode()
    logits = vit(batch.images_BCHW)
    loss = state.loss(logits, labels, labeled)
    tokens = vit.tokens(batch.images_BCHW)
    weight, bias = vit.head.weight, vit.head.bias
    by_class, by_teacher = (2 * tokens[:, i] @ weight[:, 8 * i : 8 * i + 8].T + bias for i in (0, 1))
    torch.testing.assert_close((by_class + by_teacher) / 2, logits, atol=1e-6, rtol=1e-6)
    hard = teacher.answer(labeled).argmax(1)
    expected = (cross_entropy(by_class, labels).mean() + cross_entropy(by_teacher, hard).mean()) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_split_logits_have_the_heads_logits_as_their_mean():
    head, pooled = nn.Linear(10, 4), torch.randn(3, 10)
    torch.testing.assert_close(sum(split_logits(head, pooled)) / 2, head(pooled))


# features


def test_features_are_learned_by_a_layer_that_the_artifact_lacks(batch: StepBatch):
    vit, teacher, recipe = ViT(CONFIG), make_teacher("features", 5), Recipe(ema_decay=0.9, teacher_weight=0.8)
    names = set(vit.state_dict())
    state = init_train_state(vit, recipe, teacher=teacher)
    state.set_train_mode()
    logits = vit(batch.images_BCHW)
    loss = state.loss(logits, batch.labels_B, batch)
    projected = vit.teacher_projection(vit.pool(vit.tokens(batch.images_BCHW)))
    labeled = batch.labels_B >= 0
    expected = 0.8 * feature_loss(projected, teacher.answer(batch), 1.0).item()
    expected += 0.2 * cross_entropy(logits[labeled], batch.labels_B[labeled]).sum() / 5
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert vit.teacher_projection.weight.grad.abs().sum() > 0
    trained = {id(each) for group in state.optimizers for part in group.param_groups for each in part["params"]}
    assert id(vit.teacher_projection.weight) in trained
    assert set(state.eval_model.state_dict()) == names
    assert set(without_projection(vit).state_dict()) == names != set(vit.state_dict())


def test_an_empty_shard_takes_part_in_the_backward_pass(batch: StepBatch):
    vit, teacher = ViT(CONFIG), make_teacher("features", 5)
    state = init_train_state(vit, Recipe(), teacher=teacher)
    state.set_train_mode()
    empty = StepBatch(batch.images_BCHW[:0], batch.labels_B[:0], batch.numbers_B[:0])
    state.loss(vit(empty.images_BCHW), empty.labels_B, empty).backward()
    assert all(each.grad is not None for each in vit.parameters())


# runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("teacher") / "photos", {"train": 12, "val": 4, "test": 6}, COLORS, (16, 16))


@pytest.fixture(scope="module")
def unlabeled(data: Path) -> Path:
    """Images without labels: the bytes of none is that of a labeled one."""
    return fill(data.parent / "more", 6, COLORS, (20, 20))


@pytest.fixture(scope="module")
def teacher(data: Path) -> Path:
    """A run of another size and patch than the students'."""
    out = data.parent / "teacher"
    options = {**SHORT, "width": 24, "patch": 8, "image_size": 32, "depth": 2}
    return vitrail.train(data, out=out, **options).folder


def test_a_student_learns_from_a_teacher_of_another_size(data: Path, teacher: Path, unlabeled: Path, capsys):
    baseline = vitrail.train(data, out=data.parent / "plain", **SHORT)
    run = vitrail.train(
        data, out=data.parent / "student", teacher=teacher, unlabeled=unlabeled, baseline=baseline.folder, **SHORT
    )
    assert "24 training images and 12 without labels" in capsys.readouterr().err
    rows = {row["model"]: row for row in run.result["teaching"]}
    assert set(rows) == {"teacher", "student", "student without a teacher", "linear probe of the teacher"}
    assert rows["student"]["accuracy"] == run.result["test"]["accuracy"]
    assert rows["student without a teacher"]["accuracy"] == baseline.result["test"]["accuracy"]
    assert rows["teacher"]["accuracy"] == pytest.approx(vitrail.evaluate(teacher, data).accuracy)
    assert rows["student"]["parameters"] < rows["teacher"]["parameters"]
    assert rows["teacher"]["accuracy_interval"][0] <= rows["teacher"]["accuracy"]
    assert len(describe_teaching(run.result["teaching"])) == 5
    assert run.classifier.origin["teacher"]["distillation"] == "soft"
    assert run.classifier.origin["teacher"]["unlabeled_images"] == 12
    card = write_model_card(vitrail.load(run.folder), "timm", "code", None)
    assert "Learned from a teacher (its probabilities, also on 12 images without labels): teacher." in card
    assert describe_teacher({}) is None
    steps = [row["step"] for row in RunFolder(run.folder).load_metrics()]
    assert steps == [3, 6]  # 36 images in batches of 16
    again = vitrail.train(data, out=run.folder, resume=True, report=False)
    assert again.result["teaching"] == run.result["teaching"]


def test_a_teacher_without_classes_teaches_features(data: Path, teacher: Path, tmp_path: Path):
    classifier = vitrail.load(teacher)
    config = ViTConfig(**{**vars(classifier.vit.config), "classes": 0})
    vit = ViT(config)
    vit.load_state_dict({name: each for name, each in classifier.vit.state_dict().items() if "head" not in name})
    backbone = vitrail.Classifier(vit.eval(), (), classifier.preprocess)
    run = vitrail.train(data, out=tmp_path / "run", teacher=backbone, **SHORT)
    assert run.classifier.origin["teacher"]["distillation"] == "features"
    assert not any("projection" in name for name in run.classifier.vit.state_dict())
    teacher_row = next(row for row in run.result["teaching"] if row["model"] == "teacher")
    assert "accuracy" not in teacher_row
    with pytest.raises(UsageError, match="teacher in Python"):
        vitrail.train(data, out=run.folder, resume=True)


def test_answers_for_batches_are_those_for_the_same_pixels(data: Path, teacher: Path):
    classifier = vitrail.load(teacher)
    student = Preprocess(image_size=(32, 32), mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.25))
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    images = translate_images(student.normalize(pixels), student, classifier)
    torch.testing.assert_close(classifier.vit(images) / classifier.temperature, classifier.logits(pixels))


def test_mixed_images_are_shown_to_the_teacher(data: Path, teacher: Path, tmp_path: Path):
    run = vitrail.train(data, out=tmp_path / "run", teacher=teacher, mixup=0.5, **SHORT)
    assert not (run.folder / "teacher.safetensors").exists() and run.result["teaching"]


def test_a_teacher_with_more_classes_answers_for_those_of_the_data(data: Path, teacher: Path, tmp_path: Path):
    one_more = vitrail.load(teacher)
    vit = ViT(ViTConfig(**{**vars(one_more.vit.config), "classes": 3}))
    vit.eval()
    other = vitrail.Classifier(vit, ("red", "blue", "green"), one_more.preprocess)
    vitrail.train(data, out=tmp_path / "run", teacher=other, **SHORT)
    answers = torch.cat(
        [other.logits(one_more.read_image(path)[None]) for path in sorted((data / "train").rglob("*.png"))]
    )
    stored = vitrail.runs.teacher.read_cached(tmp_path / "run" / "teacher.safetensors", 24)
    torch.testing.assert_close(stored, answers[:, [2, 0]], atol=1e-5, rtol=1e-5)  # green, red


# errors


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"teacher_weight": 0.5}, "there is no teacher, so teacher_weight has no effect"),
        ({"unlabeled": "x"}, "there is no teacher, so unlabeled has no effect"),
        ({"teacher": "missing-file"}, "missing-file"),
        ({"teacher": "cifar10-small"}, "cifar10-small lacks the classes green, red"),
        ({"teacher": "TEACHER", "mixup": 0.5, "teacher_sees": "image"}, "the teacher has not seen"),
        ({"teacher": "TEACHER", "unlabeled": "nowhere"}, "there is no folder 'nowhere'"),
        ({"teacher": "TEACHER", "unlabeled": "DATA", "cutmix": 1.0}, "cannot be mixed"),
        ({"teacher": "TEACHER", "baseline": "TEACHER", "validation_fraction": 0.0, "unlabeled": "EMPTY"}, "no images"),
    ],
)
def test_wrong_teachers_give_one_sentence(data: Path, teacher: Path, tmp_path: Path, changes: dict, sentence: str):
    (tmp_path / "empty").mkdir()
    places = {"TEACHER": teacher, "DATA": data / "test", "EMPTY": tmp_path / "empty"}
    changes = {name: places.get(value, value) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(VitrailError, match=sentence) as caught:
        vitrail.train(data, out=tmp_path / "run", **{**SHORT, **changes})
    assert "\n" not in caught.value.sentence
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_gray_images_is_refused(data: Path, tmp_path: Path):
    gray = vitrail.Classifier(
        ViT(ViTConfig(**{**vars(CONFIG), "channels": 1, "classes": 2})),
        ("red", "green"),
        Preprocess(image_size=(8, 8), mean=(0.5,), std=(0.5,)),
    )
    with pytest.raises(UsageError, match="sees gray images, and the student color ones"):
        vitrail.train(data, out=tmp_path / "run", teacher=gray, **SHORT)


def write_table(data: Path, task: str, path: Path) -> Path:
    """Writes the images with labels (a color, and odd or not), or with two numbers."""
    files = sorted(data.rglob("*.png"))
    if task == MULTI_LABEL:
        rows = [f"{each},{each.parent.name}{';odd' if i % 2 else ''}" for i, each in enumerate(files)]
    else:
        rows = [f"{each},{i + 0.5},{1000 - 3 * i}" for i, each in enumerate(files)]
    path.write_text("\n".join(["path,label" if task == MULTI_LABEL else "path,first,second", *rows]))
    return path


@pytest.mark.parametrize("sees", ["image", "batch"])
@pytest.mark.parametrize(("task", "score"), [(MULTI_LABEL, "map"), (REGRESSION, "r2")])
def test_a_student_learns_several_labels_and_numbers(
    data: Path, unlabeled: Path, tmp_path: Path, task: str, score: str, sees: str
):
    table = write_table(data, task, tmp_path / "table.csv")
    options = {**SHORT, "flip": 0.0}
    teacher = vitrail.train(table, out=tmp_path / "teacher", **options)
    options |= {"teacher": teacher.folder, "unlabeled": unlabeled, "teacher_sees": sees, "seed": 3}
    whole = vitrail.train(table, out=tmp_path / "whole", **options)
    rows = {row["model"]: row for row in whole.result["teaching"]}
    assert rows["teacher"][score] == pytest.approx(teacher.result["test"][score], abs=1e-6)
    assert rows["student"][score] == whole.result["test"][score]
    assert {"map": "mAP", "r2": "R2"}[score] in describe_teaching(whole.result["teaching"])[0]
    assert f"{rows['teacher'][score]:.4f}" in describe_teaching(whole.result["teaching"])[1]
    if sees == "image":
        answers = load_file(whole.folder / "teacher.safetensors")["features"][-12:]
        theirs = teacher.classifier.predict(sorted(unlabeled.rglob("*.png"))).logits.double()
        if task == REGRESSION:
            theirs = whole.classifier.target_scale.standardize(theirs)
        torch.testing.assert_close(answers, theirs.float(), atol=1e-4, rtol=1e-4)
    with pytest.raises(VitrailError, match="stopped at step"):
        vitrail.train(table, out=tmp_path / "run", callbacks=[StopAt(3)], **options)
    resumed = vitrail.train(table, out=tmp_path / "run", resume=True, report=False)
    for name, tensor in whole.classifier.vit.state_dict().items():
        assert torch.equal(tensor, resumed.classifier.vit.state_dict()[name]), name


def test_a_teacher_of_another_task_teaches_features_only(data: Path, teacher: Path, tmp_path: Path):
    table = write_table(data, MULTI_LABEL, tmp_path / "labels.csv")
    with pytest.raises(
        UsageError, match="gives each image one class, and each of these images has any number"
    ) as caught:
        vitrail.train(table, out=tmp_path / "run", teacher=teacher, **SHORT)
    assert "distillation features" in caught.value.hint
    run = vitrail.train(table, out=tmp_path / "run", teacher=teacher, distillation="features", **{**SHORT, "epochs": 1})
    rows = {row["model"]: row for row in run.result["teaching"]}
    assert "map" not in rows["teacher"] and rows["linear probe of the teacher"]["map"] > 0
    numbers = write_table(data, REGRESSION, tmp_path / "numbers.csv")
    teaching = vitrail.train(numbers, out=tmp_path / "numbers", **{**SHORT, "epochs": 1}).folder
    for changes, sentence in (
        ({"distillation": "hard"}, "numbers have no most probable class"),
        ({"teacher_temperature": 3.0}, "a temperature changes probabilities"),
    ):
        with pytest.raises(UsageError, match=sentence):
            vitrail.train(numbers, out=tmp_path / "student", teacher=teaching, **SHORT, **changes)
    assert not (tmp_path / "student").exists()


def test_a_resumed_run_needs_the_same_teacher_and_images(data: Path, teacher: Path, unlabeled: Path, tmp_path: Path):
    more = shutil.copytree(unlabeled, tmp_path / "more")
    out = tmp_path / "run"

    class Stop(vitrail.Callback):
        def on_epoch_end(self, state):
            state.stop("enough")

    options = {**SHORT, "callbacks": [Stop()]}
    vitrail.train(data, out=out, teacher=teacher, unlabeled=more, **options)
    next(more.rglob("*.png")).unlink()
    with pytest.raises(VitrailError, match="are not those that"):
        vitrail.train(data, out=out, resume=True)
    with pytest.raises(VitrailError, match="does not hold the weights of the teacher"):
        vitrail.train(data, out=out, resume=True, teacher=out, unlabeled=unlabeled)


@pytest.mark.timeout(300)
def test_a_killed_run_resumes_to_the_same_bits(
    teacher: Path, unlabeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {
        "teacher": str(teacher), "unlabeled": str(unlabeled), "distillation": "features", "mixup": 0.0, "epochs": 3,
    }.items():  # fmt: skip
        monkeypatch.setitem(kills.OPTIONS, name, value)
    assert kill_runs(2, tmp_path, seed=1, new_process_every=0)["kills"] >= 2
