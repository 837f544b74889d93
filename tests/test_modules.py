"""Models that are not ViTs: built by a plugin, trained, resumed, saved, loaded elsewhere, or refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vitrail
from vitrail.cli import main
from vitrail.errors import UsageError, VitrailError
from vitrail.explanation.methods import METHODS
from vitrail.explanation.pixel_inputs import CellGrid
from vitrail.interrupts import Interrupted
from vitrail.parts import PARTS
from vitrail.runs.train import check_world
from vitrail.training.distributed import World
from vitrail.training.recipe import Recipe
from vitrail.weights.builders import MODELS, ModuleConfig

ROOT = Path(__file__).parent.parent
OPTIONS: dict[str, Any] = {"epochs": 2, "check": False, "workers": 0, "lr": 0.01}
PLUGIN = '''
from torch import nn

import vitrail


@vitrail.register("model", "cnn")
def build(config, width=8):
    """A small convolutional network with batch norm."""
    return nn.Sequential(
        nn.Conv2d(config.channels, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, config.classes),
    )
'''


def build_cnn(config: ModuleConfig, width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(config.channels, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, config.classes),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cnn() -> Iterator[None]:
    before = dict(MODELS), dict(PARTS)
    vitrail.register("model", "cnn", build_cnn)
    yield
    for table, rows in zip((MODELS, PARTS), before, strict=True):
        table.clear()
        table.update(rows)


@pytest.fixture(scope="module")
def run(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> vitrail.ModuleRun:
    out = tmp_path_factory.mktemp("modules") / "run"
    return vitrail.train(colors, architecture="cnn:width=12", out=out, **OPTIONS)


def test_a_module_trains_is_saved_and_scored(run: vitrail.ModuleRun, colors: Path):
    clf = run.classifier
    assert isinstance(clf, vitrail.ModuleClassifier) and clf.classes == ("blue", "green", "red")
    assert run.result["test"]["accuracy"] > 0.9
    loaded = vitrail.load_any(run.folder)
    assert isinstance(loaded, vitrail.ModuleClassifier) and loaded.architecture == "cnn:width=12"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)
    assert torch.equal(loaded.predict(pixels).logits, clf.predict(pixels).logits)
    assert vitrail.evaluate(run.folder, colors).accuracy == vitrail.evaluate(clf, colors).accuracy
    assert vitrail.evaluate(clf, colors).accuracy == run.result["test"]["accuracy"]
    recipe = loaded.origin["recipe"]
    assert recipe["architecture"] == "cnn:width=12" and set(recipe["model"]) == {"image_size"}
    assert "cnn:width=12, 16x16 px" in repr(clf)


IN_A_FRESH_PROCESS = """
import sys, vitrail
from vitrail.cli import main
try:
    vitrail.load_any(sys.argv[1])
except vitrail.VitrailError as error:
    print(error, file=sys.stderr)
sys.exit(main(["predict", *sys.argv[1:], "--plugin", "my_cnn", "--json"]))
"""


def test_a_fresh_process_needs_the_plugin(run: vitrail.ModuleRun, colors: Path, tmp_path: Path):
    (tmp_path / "my_cnn.py").write_text(PLUGIN)
    image = next(colors.glob("test/red/*.png"))
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(run.folder), str(image)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "needs the model 'cnn', which the module test_modules registers" in answer.stderr
    assert answer.returncode == 0, answer.stderr
    (row,) = json.loads(answer.stdout)["predictions"]
    expected = run.classifier.predict(image, top=1)
    assert row["top"][0]["label"] == expected.label
    assert row["top"][0]["probability"] == pytest.approx(expected.probability, abs=1e-6)


def test_the_command_line_trains_evaluates_and_predicts_into_files(colors: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--epochs", "1", "--no-check", "--workers", "0", "--out", "run", "--quiet", "--no-report"]
    assert main(["train", str(colors), "--architecture", "cnn", *options]) == 0
    assert main(["evaluate", "run", str(colors), "--quiet"]) == 0
    assert main(["predict", "run", str(colors / "test"), "--out", "rows", "--format", "csv", "--quiet"]) == 0
    assert len(list(Path("rows").glob("*.csv"))) == 1
    assert main(["inspect", "run", "--quiet"]) == 0


class Stop:
    """Ends a run after its first epoch."""

    def on_epoch_end(self, state: Any) -> None:
        raise KeyboardInterrupt


def weights_of(run: vitrail.ModuleRun) -> dict[str, torch.Tensor]:
    return run.classifier.module.state_dict()


def test_a_resumed_run_has_the_same_bits(run: vitrail.ModuleRun, colors: Path, tmp_path: Path):
    options = dict(architecture="cnn:width=12", out=tmp_path / "cut", **OPTIONS)
    with pytest.raises(Interrupted):
        vitrail.train(colors, callbacks=[Stop()], **options)
    resumed = vitrail.train(colors, resume=True, **options)
    assert all(torch.equal(tensor, weights_of(resumed)[name]) for name, tensor in weights_of(run).items())
    assert vitrail.train(colors, resume=True, **options).result == resumed.result


def test_training_starts_from_a_module_in_memory(colors: Path, tmp_path: Path):
    torch.manual_seed(3)
    module = build_cnn(make_config())
    module[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    options = dict(architecture="cnn", validation_fraction=0, out=tmp_path / "run", recipe="small", **OPTIONS)
    run = vitrail.train(colors, model=module, **options)
    after = weights_of(run)
    assert torch.equal(after["0.weight"], before["0.weight"]) and torch.equal(after["0.bias"], before["0.bias"])
    assert not torch.equal(after["6.weight"], before["6.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    with pytest.raises(UsageError, match="pass it again as model="):
        vitrail.train(colors, resume=True, **options)
    assert vitrail.train(colors, model=module, resume=True, **options).result == run.result


def test_parameters_of_a_module_are_frozen_by_name(colors: Path, tmp_path: Path):
    options = dict(architecture="cnn", validation_fraction=0, **OPTIONS)
    run = vitrail.train(colors, freeze="0 1", out=tmp_path / "run", **options)
    fresh = build_seeded(lambda config: build_cnn(config))
    assert torch.equal(weights_of(run)["0.weight"], fresh["0.weight"])
    assert int(weights_of(run)["1.num_batches_tracked"]) == 0  # a frozen batch norm stays in eval mode
    with pytest.raises(UsageError, match="freeze 'layer1' matches no parameter"):
        vitrail.train(colors, freeze="layer1", out=tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()


def build_seeded(build: Callable[[ModuleConfig], nn.Module]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build(make_config()).state_dict()


class Sums(nn.Module):
    """Its factor is no parameter and no buffer."""

    def __init__(self, config: ModuleConfig):
        super().__init__()
        self.factor = torch.randn(())
        self.head = nn.Linear(config.channels, config.classes)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.head(x_BCHW.sum((2, 3))) * self.factor


class Tied(nn.Module):
    def __init__(self, config: ModuleConfig):
        super().__init__()
        self.first = nn.Linear(config.channels, config.classes)
        self.second = nn.Linear(config.channels, config.classes)
        self.second.weight = self.first.weight

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.first(x_BCHW.mean((2, 3))) + self.second(x_BCHW.mean((2, 3)))


def fail(config: ModuleConfig) -> nn.Module:
    raise RuntimeError("no such file")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Sums, "its outputs differ after loading"),
        (Tied, "shares a tensor under two names"),
        (fail, "the builder of the model 'wrong' fails: RuntimeError: no such file"),
        (lambda config: nn.Identity(), r"returns \(2, 3, 16, 16\) for two images"),
        (lambda config: nn.Linear(5, 2), "fails on images"),
        (lambda config: "vit", "returns a str"),
    ],
)
def test_a_model_that_could_not_be_loaded_again_is_refused_before_training(build, message: str, colors, tmp_path):
    vitrail.register("model", "wrong", build)
    try:
        with pytest.raises(VitrailError, match=message):
            vitrail.train(colors, architecture="wrong", out=tmp_path / "run", **OPTIONS)
    finally:
        del MODELS["wrong"], PARTS["model", "wrong"]
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused():
    with pytest.raises(UsageError, match="'cnn' is not a ViT, and its buffers could differ"):
        check_world(Recipe(architecture="cnn"), World(size=2), fsdp=False, resumes=False)


def make_config() -> ModuleConfig:
    return ModuleConfig(architecture="cnn", image_size=(16, 16), channels=3, classes=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "resnet"}, r"architecture 'resnet' is not known .*vitrail.register"),
        ({"architecture": "cnm"}, "did you mean cnn"),
        ({"architecture": "cnn:depth=3"}, "cnn has no argument 'depth'"),
        ({"architecture": "cnn", "width": 32}, "'cnn' is not a ViT, and width has no effect on it"),
        ({"architecture": "cnn", "lora_rank": 2}, "'cnn' is not a ViT"),
        ({"architecture": "cnn", "freeze": 1}, "freeze COUNT cannot be used"),
        ({"architecture": "cnn", "recipe": "linear"}, "train_on features"),
        ({"architecture": "cnn", "model": "cifar10-small"}, "its weights cannot be read from cifar10-small"),
        ({"architecture": "cnn", "model": nn.Linear(3, 3)}, "the given model is not what 'cnn' builds"),
        ({"model": nn.Linear(3, 3)}, r'vitrail.register\("model", "mine", build\)'),
    ],
)
def test_a_wrong_request_is_refused_before_training(options: dict[str, Any], message: str, colors, tmp_path: Path):
    with pytest.raises(VitrailError, match=message):
        vitrail.train(colors, out=tmp_path / "run", **{**OPTIONS, **options})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("use", [
    lambda run, file: vitrail.load(run.folder),
    lambda run, file: vitrail.probe(run.classifier, file),
    lambda run, file: vitrail.probe(run.folder, file),
    lambda run, file: vitrail.export(run.classifier, "out.onnx", format="onnx"),
    lambda run, file: vitrail.train(file.parents[2], model=str(run.folder)),
])  # fmt: skip
def test_what_needs_tokens_says_so(use, run: vitrail.ModuleRun, colors: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is not a ViT: it has no tokens") as refused:
        use(run, next(colors.glob("test/red/*.png")))
    assert "load_any" in refused.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "verb",
    [
        ["explain", "RUN", "IMAGE", "--layer", "1"],
        ["export", "RUN", "--format", "onnx", "--out", "x.onnx"],
        ["serve", "RUN"],
    ],
)
def test_verbs_that_need_a_vit_say_so(verb: list[str], run, colors, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = {"RUN": str(run.folder), "IMAGE": str(next(colors.glob("test/red/*.png")))}
    assert main([values.get(word, word) for word in verb]) == 2
    assert "is not a ViT: it has no tokens" in capsys.readouterr().err


def test_a_module_in_memory_is_evaluated_but_not_saved_without_a_name(colors: Path, tmp_path: Path):
    preprocess = vitrail.Preprocess(image_size=(16, 16))
    clf = vitrail.ModuleClassifier(build_cnn(make_config()), ("blue", "green", "red"), preprocess)
    assert 0 <= vitrail.evaluate(clf, colors).accuracy <= 1
    with pytest.raises(UsageError, match="a Sequential in memory cannot be saved"):
        clf.save(tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="knows no Vision Transformer of type torch.nn"):
        vitrail.evaluate(nn.Linear(3, 3), colors)
    clf.architecture, clf.task = "cnn", "multi_label"
    with pytest.raises(UsageError, match="is saved for one class per image"):
        clf.save(tmp_path / "x.safetensors")
    clf.task = "single_label"
    clf.save(tmp_path / "x.safetensors")
    assert torch.equal(
        vitrail.load_any(tmp_path / "x.safetensors").logits(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)),
        clf.logits(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)),
    )


# Explanations


class Corner(nn.Module):
    """The logits are sums over the upper left quarter of an image: nothing else can matter."""

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        corner_BCHW = x_BCHW[:, :, : x_BCHW.shape[2] // 2, : x_BCHW.shape[3] // 2]
        return torch.stack([corner_BCHW.mean((1, 2, 3)), -corner_BCHW.square().mean((1, 2, 3))], dim=1)


def make_corner(*size: int) -> vitrail.ModuleClassifier:
    return vitrail.ModuleClassifier(Corner(), ("a", "b"), vitrail.Preprocess(image_size=size), temperature=0.5)


ANY_MODEL = ("input_x_gradient", "integrated_gradients", "occlusion", "rise")


@pytest.mark.parametrize("method", ANY_MODEL)
def test_any_model_is_explained(method: str):
    clf = make_corner(32, 24)
    image = torch.randint(0, 256, (3, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    explanation = vitrail.explain(clf, image, method=method, target="a")
    assert explanation.map.shape == (8, 6)
    inside = np.zeros((8, 6), bool)
    inside[:4, :3] = True
    if method == "rise":  # an estimate, from random masks
        assert np.abs(explanation.map[inside]).mean() > 2 * np.abs(explanation.map[~inside]).mean()
    else:
        assert (explanation.map[inside] != 0).all()
        assert np.abs(explanation.map[~inside]).max() < 1e-6


def test_occlusion_and_integrated_gradients_are_what_they_say():
    clf = make_corner(19, 16)  # sides that the cells do not divide
    image = torch.randint(0, 256, (1, 3, 19, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    x_BCHW, mean = clf.normalize(image), torch.zeros(1, 3, 19, 16)

    def probability(x: torch.Tensor) -> float:
        return (clf.module(x) / clf.temperature).softmax(dim=1)[0, 0].item()

    occluded = vitrail.explain(clf, image[0], method="occlusion", target="a").map
    rows = [0, 4, 9, 14, 19]
    for i in range(4):
        for j in range(4):
            x = x_BCHW.clone()
            x[:, :, rows[i] : rows[i + 1], 4 * j : 4 * j + 4] = 0
            assert occluded[i, j] == pytest.approx(probability(x_BCHW) - probability(x), abs=1e-6)
    path = vitrail.explain(clf, image[0], method="integrated_gradients", target="b").map
    assert path.sum() == pytest.approx((clf.module(x_BCHW) - clf.module(mean))[0, 1].item(), abs=1e-5)


@pytest.mark.parametrize("size", [(3, 5), (16, 16), (17, 23), (64, 299), (224, 224), (331, 100)])
def test_cells_hold_every_pixel_once(size: tuple[int, int]):
    images = torch.randn(2, 3, *size)
    cells = CellGrid(*size, torch.device("cpu"))
    split = cells.split(images)
    assert split.shape[1] == cells.shape[0] * cells.shape[1] <= 196
    assert torch.equal(cells.join(split), images)
    assert split.sum().item() == pytest.approx(images.sum().item(), abs=1e-2)


def test_methods_that_need_tokens_name_those_that_do_not(run: vitrail.ModuleRun, colors: Path):
    file = next(colors.glob("test/red/*.png"))
    assert {name for name, method in METHODS.items() if not method.needs_tokens} == set(ANY_MODEL)
    for name in METHODS.keys() - set(ANY_MODEL):
        with pytest.raises(UsageError, match=f"method {name} needs the tokens of a ViT") as refused:
            vitrail.explain(run.classifier, file, method=name)
        assert "occlusion" in refused.value.hint
    with pytest.raises(UsageError, match="has no option layer"):
        vitrail.explain(run.classifier, file, method="occlusion", layer=1)


def test_the_command_explains_any_model(run: vitrail.ModuleRun, colors: Path, tmp_path: Path, capsys):
    file = next(colors.glob("test/red/*.png"))
    command = ["explain", str(run.folder), str(file), "--out", str(tmp_path), "--json", "--method"]
    assert main([*command, "occlusion"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["explanations"]
    assert np.array(row["map"]).shape == (4, 4)
    assert row["map"] == vitrail.explain(run.classifier, file, method="occlusion").to_json()["map"]
    assert Path(row["files"][0]).stat().st_size > 1000
    assert main([*command[:-1]]) == 2
    assert "methods for any model: input_x_gradient" in capsys.readouterr().err
