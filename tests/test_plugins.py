"""Parts of plugins: registered, trained, saved, loaded in other processes, refused where they cannot work."""

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
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

import vitrail
from document_blocks import plugin_code
from vitrail import parts, plugins
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError
from vitrail.model.config import Rotary
from vitrail.model.pool import POOLS
from vitrail.parts import PARTS, plugins_for_processes
from vitrail.processes import start_worker
from vitrail.registry import RULES
from vitrail.runs.folder import RunFolder
from vitrail.training.losses import CrossEntropy, LossContext
from vitrail.training.recipe import Recipe
from vitrail.training.recipes import RECIPES
from vitrail.weights.artifact import Artifact

ROOT = Path(__file__).parent.parent
TINY = ["--width", "16", "--depth", "1", "--heads", "2", "--mlp-width", "16", "--epochs", "1"]
TINY_CHANGES: dict[str, Any] = dict(width=16, depth=1, heads=2, mlp_width=16, epochs=1)


@pytest.fixture(autouse=True)
def forget_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Restores the tables and the imported modules after each test, and when it is called."""
    tables = [rule.table for kind, rule in RULES.items() if kind != "recipe"] + [RECIPES._recipes, PARTS]
    before, modules, path = [dict(table) for table in tables], set(sys.modules), list(sys.path)

    def forget() -> None:
        for table, rows in zip(tables, before, strict=True):
            table.clear()
            table.update(rows)
        for name in set(sys.modules) - modules:
            if "parts" in name:
                del sys.modules[name]
        monkeypatch.setattr(plugins, "_loaded", {})
        monkeypatch.setattr(plugins, "_searched_entry_points", False)
        monkeypatch.setattr(sys, "path", list(path))

    forget()
    yield forget
    forget()


@pytest.fixture
def my_parts(tmp_path: Path) -> Path:
    """The Python blocks of docs/plugins.md as one file, without the ones that use this file."""
    (tmp_path / "plugins").mkdir()
    path = tmp_path / "plugins" / "my_parts.py"
    path.write_text(plugin_code(), encoding="utf-8")
    return path


def run_fresh(*arguments: str, cwd: Path, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs vitrail, or a script, in a new process."""
    command = [sys.executable, "-m", "vitrail"] if code is None else [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=cwd, env=environment)


IN_A_FRESH_PROCESS = """
import sys, json, vitrail
from vitrail.cli import main
image = sys.argv[1]
try:
    vitrail.load("run")
except vitrail.VitrailError as error:
    print(json.dumps([error.sentence, error.hint, "my_parts" in sys.modules]))
assert main(["explain", "run", image, "--plugin", "my_parts", "--out", "maps", "--quiet"]) == 0
assert main(["export", "run", "--plugin", "my_parts", "--format", "onnx", "--out", "model.onnx", "--quiet"]) == 0
classifier = vitrail.load("run")
print(json.dumps([classifier.vit.pool.p.item(), [each.probability for each in classifier.predict(image, top=2)]]))
"""


def test_a_part_is_trained_saved_loaded_in_a_fresh_process_explained_and_exported(
    my_parts: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, forget_plugins: Callable[[], None]
):
    pytest.importorskip("onnxruntime")
    folder = my_parts.parent
    monkeypatch.chdir(folder)
    options = ["--pool", "gem:p=4", "--position", "conditional:kernel=5", "--out", "run", "--no-report"]
    assert main(["train", str(photos), "--plugin", "my_parts", *options, *TINY]) == 0
    forget_plugins()
    image = str(next(photos.rglob("*.png")))
    used = run_fresh(image, cwd=folder, code=IN_A_FRESH_PROCESS)
    assert used.returncode == 0, used.stderr
    lines = used.stdout.splitlines()
    sentence, hint, is_imported = json.loads(lines[0])
    assert sentence == "run/classifier.safetensors needs the pool 'gem', which the module my_parts registers"
    assert hint == "add --plugin my_parts, or import my_parts in Python first"
    assert not is_imported
    p, probabilities = json.loads(lines[-1])
    assert p != 4 and abs(p - 4) < 0.5  # learned, from its argument on
    assert list((folder / "maps").glob("*.png"))
    onnx = vitrail.load_any("model.onnx")  # without the plugin
    assert "my_parts" not in sys.modules
    assert [each.probability for each in onnx.predict(image, top=2)] == pytest.approx(probabilities, abs=1e-4)
    assert main(["inspect", "run"]) == main(["inspect", "model.onnx"]) == 0


def test_every_other_kind_from_the_command_line(
    my_parts: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    options = [
        "--recipe",
        "mine",
        "--loss",
        "softmax_focal:gamma=1:balanced=true",
        "--optimizer",
        "nadam:momentum_decay=0.01",
    ]
    options += ["--head", "cosine:scale=8", "--policy", "solarize:threshold=128", "--schedule", "wsd:decay=0.5"]
    plugin = ["--plugin", str(my_parts)]
    assert main(["train", str(photos), "--out", str(out), "--no-report", *plugin, *options, *TINY]) == 0
    recipe = json.loads((out / "recipe.json").read_text())
    assert {(each["kind"], each["name"], each["module"]) for each in recipe["parts"]} == {
        (kind, name, "my_parts")
        for kind, name in {
            "loss": "softmax_focal", "optimizer": "nadam", "head": "cosine", "mlp": "relu2", "augmentation": "solarize",
            "schedule": "wsd",
        }.items()
    }  # fmt: skip
    assert recipe["options"] == plugin  # of the command that resumes the run
    capsys.readouterr()
    assert (
        main(["evaluate", str(out), str(photos), *plugin, "--metric", "kappa", "--metric", "macro_f1", "--json"]) == 0
    )
    scores = json.loads(capsys.readouterr().out)
    assert scores["metrics"].keys() == {"kappa", "macro_f1"}
    image, maps = str(next(photos.rglob("*.png"))), str(tmp_path / "maps")
    assert main(["explain", str(out), image, *plugin, "--method", "gradient_norm:power=2", "--out", maps]) == 0
    clf = vitrail.load(out)
    squared, plain = (
        vitrail.explain(clf, image, method=name).map for name in ("gradient_norm:power=2", "gradient_norm")
    )
    assert np.allclose(squared, plain**2)
    assert vitrail.evaluate(clf, photos, metrics=["kappa"]).metrics == {"kappa": scores["metrics"]["kappa"]}
    assert main(["recipe", "mine"]) == 0 and "softmax_focal:gamma=1" in capsys.readouterr().out


def test_a_run_needs_its_parts_to_be_resumed(my_parts: Path, photos: Path, tmp_path: Path, monkeypatch):
    plugins.load_plugins([str(my_parts)])
    vitrail.train(photos, out=tmp_path / "run", loss="softmax_focal", report=False, **TINY_CHANGES)
    monkeypatch.delitem(PARTS, ("loss", "softmax_focal"))
    with pytest.raises(
        VitrailError, match=r"needs the loss 'softmax_focal', which the module my_parts registers.*--plugin"
    ):
        vitrail.train(photos, out=tmp_path / "run", resume=True)
    assert vitrail.load(tmp_path / "run").origin["parts"][0]["name"] == "softmax_focal"  # prediction does not need it


def test_built_in_parts_leave_no_trace_in_files(clf: vitrail.Classifier, run: vitrail.Run):
    document = Artifact(clf.vit.config, clf.classes, clf.preprocess, clf.temperature, clf.origin).to_json()
    assert "parts" not in document
    assert "parts" not in clf.origin and "parts" not in json.loads((run.folder / "recipe.json").read_text())


def make_pool(config: vitrail.ViTConfig) -> nn.Module:
    return nn.Identity()


@pytest.mark.parametrize(
    ("kind", "name", "part", "message"),
    [
        ("pol", "x", make_pool, "there is no kind of part 'pol' (did you mean pool?)"),
        ("pool", "mean", make_pool, "the pool 'mean' exists already: vitrail itself registered it"),
        ("augmentation", "randaugment", make_pool, "the augmentation 'randaugment' exists already"),
        ("explanation", "gradient", lambda inputs: inputs, "the explanation 'gradient' exists already"),
        ("pool", "a:b", make_pool, "'a:b' cannot be the name of a part"),
        ("pool", "x", 3, "the pool 'x' is a int, which cannot be called (it is called as part(config))"),
        ("pool", "x", lambda: 0, "the pool 'x' cannot be called as part(config): too many positional arguments"),
        ("position", "x", nn.Conv2d, "the position 'x' cannot be called as part(config)"),
        ("position", "x", type("P", (), {"__init__": lambda self, config: None}), "has no method add"),
        ("loss", "x", lambda logits, targets: 0, "cannot be called as part(context): missing a required argument"),
        ("optimizer", "x", lambda parameters: 0, "part(parameters, lr=...): got an unexpected keyword argument 'lr'"),
        ("schedule", "x", lambda progress: -progress, "the schedule 'x' returns -0.5 at progress 0.5"),
        ("recipe", "x", {"epochs": 3}, "the recipe 'x' is a dict (give a vitrail.training.recipe.Recipe)"),
    ],
)
def test_a_wrong_part_is_refused_at_once(kind: str, name: str, part: Any, message: str):
    with pytest.raises(UsageError) as caught:
        vitrail.register(kind, name, part)  # type: ignore[call-overload]
    assert message in str(caught.value)


def test_a_name_belongs_to_one_part(tmp_path: Path):
    assert vitrail.register("pool", "first", make_pool) is make_pool
    vitrail.register("pool", "first", make_pool)
    with pytest.raises(UsageError, match="the pool 'first' exists already: the module test_plugins registered it"):
        vitrail.register("pool", "first", lambda config: nn.Identity())


def test_unknown_names_and_arguments_are_errors(my_parts: Path):
    plugins.load_plugins([str(my_parts)])
    assert vitrail.ViTConfig(pool="gem:p=2").pool == "gem:p=2"
    for wrong, message in [
        ({"pool": "gen"}, "pool 'gen' is not known (did you mean gem? Or register your own"),
        ({"position": "condtional"}, "position 'condtional' is not known (did you mean conditional? Or register"),
        ({"pool": "gem:p"}, "'gem:p' is not the name of a part"),
        ({"pool": "gem:q=2"}, "gem has no argument 'q' (known: p)"),
        ({"pool": "mean:p=2"}, "mean has no argument 'p'"),
    ]:
        with pytest.raises(UsageError) as caught:
            vitrail.ViT(vitrail.ViTConfig(width=16, depth=1, heads=2, classes=2, **wrong))
        assert message in str(caught.value)
    with pytest.raises(
        UsageError, match=r"loss 'softmax_fokal' is not known \(did you mean softmax_focal\? Or register"
    ):
        Recipe(loss="softmax_fokal")
    assert vitrail.ViTConfig(position="rotary").position == Rotary()


class Shared(nn.Module):
    """Two names for one parameter."""

    def __init__(self, config: vitrail.ViTConfig):
        super().__init__()
        self.a = self.b = nn.Parameter(torch.ones(config.width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.mean(1) * self.a * self.b


class Hidden(nn.Module):
    """Random state in a plain attribute."""

    def __init__(self, config: vitrail.ViTConfig):
        super().__init__()
        self.factor = torch.rand(config.width) + 0.5

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.mean(1) * self.factor


class Extra(nn.Module):
    """State in a dict."""

    def __init__(self, config: vitrail.ViTConfig):
        super().__init__()

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.mean(1)


class Wide(nn.Module):
    """Another width than it states."""

    def __init__(self, config: vitrail.ViTConfig):
        super().__init__()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.flatten(1)


class Counting(torch.optim.SGD):
    """An optimizer with state of another shape than its parameters."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["history"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("kind", "part", "message"),
    [
        ("pool", Shared, "the model cannot be saved: "),
        ("pool", Hidden, "the model cannot be saved: its outputs differ after loading"),
        ("pool", Extra, "the model cannot be saved: pool._extra_state is a dict, not a tensor"),
        ("pool", Wide, "the model with pool 'broken' fails: RuntimeError: "),
        ("optimizer", Counting, "the state of the optimizer Counting cannot be saved: history"),
        ("loss", lambda context: F.mse_loss, "the loss 'broken' fails: "),
        ("loss", lambda context: lambda logits, targets: logits, "the loss 'broken' returns a tensor (3, 2)"),
        ("loss", lambda context: lambda logits, targets: 3.0, "the loss 'broken' returns a float"),
        ("augmentation", lambda: lambda pixels: pixels.float(), "'broken' returns (3, 16, 16) float32"),
    ],
)  # fmt: skip
def test_a_part_that_cannot_work_fails_before_training(
    kind: str, part: Any, message: str, photos: Path, tmp_path: Path
):
    vitrail.register(kind, "broken", part)  # type: ignore[call-overload]
    field = {"augmentation": "policy"}.get(kind, kind)
    with pytest.raises(VitrailError) as caught:
        vitrail.train(photos, out=tmp_path / "run", check=False, **{**TINY_CHANGES, field: "broken"})
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_replaced_built_in_part_fails_before_training(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(POOLS, "mean", Hidden)
    with pytest.raises(VitrailError, match="the pool 'mean' was replaced in its table"):
        vitrail.train(photos, out=tmp_path / "run", check=False, **TINY_CHANGES)


def test_a_part_that_only_the_object_has_fails_before_training(run: vitrail.Run, photos: Path):
    clf = vitrail.load(run.folder)
    clf.vit.pool = Shared(clf.vit.config)
    with pytest.raises(VitrailError, match=r"its config does not describe the tensor pool\.a \(register your part"):
        vitrail.train(photos, model=clf, check=False, epochs=1)


class Buffered(nn.Module):
    """A buffer that is not saved, computed by the constructor with a value that torch's meta device does not have."""

    def __init__(self, config: vitrail.ViTConfig):
        super().__init__()
        self.register_buffer("factor", torch.linspace(1, 2, config.width), persistent=False)
        self.scale = self.factor.sum().item()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.mean(1) * self.factor / self.scale


def test_computed_buffers_of_a_part_survive_loading(photos: Path, tmp_path: Path):
    vitrail.register("pool", "buffered", Buffered)
    run = vitrail.train(photos, out=tmp_path / "run", report=False, check=False, pool="buffered", **TINY_CHANGES)
    before = torch.get_rng_state()
    loaded = vitrail.load(tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())
    image = next(photos.rglob("*.png"))
    assert [each.probability for each in loaded.predict(image)] == pytest.approx(
        [each.probability for each in run.classifier.predict(image)], abs=1e-6
    )


seen: list[LossContext] = []


def doubled(logits_BY: Tensor, targets: Tensor) -> Tensor:
    return 2 * F.cross_entropy(logits_BY, targets)


class Weighted:
    """A loss that gets the class counts."""

    def __init__(self, context: LossContext):
        seen.append(context)
        self.weights_Y = context.balanced_weights()

    def __call__(self, logits_BY: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits_BY, targets, self.weights_Y)


def test_a_callable_is_a_loss_that_a_resume_needs_again(photos: Path, tmp_path: Path):
    options: dict[str, Any] = {**TINY_CHANGES, "report": False, "check": False}
    run = vitrail.train(photos, out=tmp_path / "run", loss=doubled, **options)
    assert RunFolder(tmp_path / "run").load_recipe().loss == "test_plugins.doubled"
    assert run.classifier.origin["recipe"]["loss"] == "test_plugins.doubled"
    del PARTS["loss", "test_plugins.doubled"]
    hint = (
        r"needs the loss 'test_plugins.doubled', a callable of Python \(pass it again: vitrail.train\(..., loss=...\)\)"
    )
    with pytest.raises(VitrailError, match=hint):
        vitrail.train(photos, out=tmp_path / "run", resume=True, **options)
    vitrail.train(photos, out=tmp_path / "run", resume=True, loss=doubled, **options)
    with pytest.raises(UsageError, match="loss is test_plugins.Weighted, before test_plugins.doubled"):
        vitrail.train(photos, out=tmp_path / "run", resume=True, loss=Weighted, **options)


sizes: set[tuple[int, ...]] = set()


def posterize(pixels: Tensor) -> Tensor:
    sizes.add((pixels.dtype, *pixels.shape))
    return pixels & (0xFF << int(torch.randint(1, 4, ())))


def test_a_callable_augments_images_and_a_resume_needs_it_again(photos: Path, tmp_path: Path):
    options: dict[str, Any] = {**TINY_CHANGES, "report": False, "check": False, "precision": "fp32", "image_size": 20}
    run = vitrail.train(photos, out=tmp_path / "run", augment=posterize, workers=0, **options)
    assert sizes == {(torch.uint8, 3, 20, 20)}
    same = vitrail.train(photos, out=tmp_path / "two", augment=posterize, workers=2, **options)
    plain = vitrail.train(photos, out=tmp_path / "plain", **options)
    weights = [each.classifier.vit.state_dict()["head.weight"] for each in (run, same, plain)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert run.classifier.origin["recipe"]["augment"]["policy"] == "test_plugins.posterize"
    del PARTS["augmentation", "test_plugins.posterize"]
    assert vitrail.load(run.folder).classes == ("blue", "red")  # an artifact does not need it
    with pytest.raises(VitrailError, match=r"pass it again: vitrail.train\(..., augment=...\)"):
        vitrail.train(photos, out=tmp_path / "run", resume=True, **options)
    vitrail.train(photos, out=tmp_path / "run", resume=True, augment=posterize, **options)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (v2.ToDtype(torch.float32, scale=True), r"returns .*float32 .it must return \(3, 16, 16\) uint8"),
        (v2.RandomCrop(8), r"returns \(3, 8, 8\) uint8"),
        (v2.RandomSolarize, "augment is the class RandomSolarize"),
        (3, "augment is a int"),
        ("autoaugment", "policy 'autoaugment' is not known .did you mean"),
    ],
)
def test_an_augmentation_that_cannot_be_used_is_refused(augment: Any, message: str, photos: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=message):
        vitrail.train(photos, out=tmp_path / "run", augment=augment, check=False, **TINY_CHANGES)
    with pytest.raises(UsageError, match="augment and policy are the same setting"):
        vitrail.train(photos, out=tmp_path / "run", augment=posterize, policy="none", **TINY_CHANGES)
    assert not (tmp_path / "run").exists()


def test_a_loss_gets_the_counts_of_the_training_images(make_folder, tmp_path: Path):
    photos = make_folder("uneven", {"train": 4, "test": 2})
    for path in sorted((photos / "train" / "red").iterdir())[1:]:
        path.unlink()
    vitrail.train(
        photos, out=tmp_path / "run", loss=Weighted, report=False, check=False, validation_fraction=0, **TINY_CHANGES
    )
    context = seen.pop()
    assert dict(zip(context.classes, context.class_counts.tolist(), strict=True)) == {"blue": 4, "red": 1}
    assert context.balanced_weights().tolist() == pytest.approx([5 / 8, 5 / 2])


def test_balanced_cross_entropy_adds_up_over_micro_batches():
    recipe = Recipe(label_smoothing=0.1, loss="cross_entropy:class_weights=balanced")
    context = LossContext(recipe, ("a", "b", "c"), np.array([6, 3, 0]))
    balanced, plain = CrossEntropy(context, "balanced"), CrossEntropy(context)
    torch.manual_seed(0)
    logits, targets = torch.randn(9, 3), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    weights = torch.tensor([9 / 12, 9 / 6, 0.0])
    assert torch.equal(balanced.weights_Y, weights)
    by_hand = (weights[targets] * F.cross_entropy(logits, targets, label_smoothing=0.1, reduction="none")).mean()
    assert torch.allclose(balanced(logits, targets), by_hand)
    halves = (3 * balanced(logits[:3], targets[:3]) + 6 * balanced(logits[3:], targets[3:])) / 9
    assert halves == pytest.approx(float(by_hand), rel=1e-6)
    assert torch.equal(plain(logits, targets), F.cross_entropy(logits, targets, label_smoothing=0.1))
    assert torch.allclose(balanced(logits, F.one_hot(targets, 3).float()), by_hand)
    with pytest.raises(UsageError, match="class_weights is 'some'"):
        CrossEntropy(context, "some")


def test_a_broken_plugin_is_named_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "broken_parts.py").write_text("import vitrail\nvitrail.register('pool', 'mean', print)\n")
    (tmp_path / "crashing_parts.py").write_text("1 / 0\n")
    (tmp_path / "random.py").write_text("")
    for plugin, error in [
        (
            tmp_path / "broken_parts.py",
            "the pool 'mean' exists already: vitrail itself registered it (choose another name)",
        ),
        (tmp_path / "crashing_parts.py", "ZeroDivisionError: division by zero"),
        (tmp_path / "no_parts.py", f"there is no file {tmp_path / 'no_parts.py'}"),
        ("no_such.parts", "ModuleNotFoundError: No module named 'no_such'"),
    ]:
        assert main(["recipe", "--plugin", str(plugin)]) == 2
        assert capsys.readouterr().err.startswith(f"error: the plugin {plugin} cannot be imported: {error}\nhint: ")
    assert main(["recipe", "--plugin", str(tmp_path / "random.py")]) == 2
    assert "there is another module random" in capsys.readouterr().err


def test_a_typo_imports_no_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "marker_parts.py").write_text("1 / 0\n")
    plugin = ["--plugin", str(tmp_path / "marker_parts.py")]
    for arguments in (["trian", *plugin], ["train", "x", "--epohcs", "3", *plugin], ["train", "--help", *plugin]):
        main(arguments)
        assert "ZeroDivisionError" not in capsys.readouterr().err


def test_an_unknown_name_imports_nothing_heavy():
    code = (
        "import sys; from vitrail.cli import main\n"
        "assert main(['train', 'digits', '--pool', 'gem', '--optimizer', 'adamw']) == 2\n"
        "assert main(['train', 'digits', '--loss', 'x']) == 2 and 'torch' not in sys.modules"
    )
    done = run_fresh(cwd=ROOT, code=code)
    assert done.returncode == 0 and "pool 'gem' is not known" in done.stderr, done.stderr


def test_installed_plugins_are_found_by_their_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "site" / "parts_of_a_package-1.0.dist-info").mkdir(parents=True)
    info = tmp_path / "site" / "parts_of_a_package-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parts-of-a-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vitrail.plugins]\nmine = installed_parts\n")
    (tmp_path / "site" / "installed_parts.py").write_text(
        "import vitrail\nvitrail.register('schedule', 'late', lambda progress: 1.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    Recipe(schedule="cosine")
    assert "installed_parts" not in sys.modules  # not needed for a built-in name
    assert Recipe(schedule="late").parts() == [{"kind": "schedule", "name": "late", "module": "installed_parts"}]


WORKER_PLUGIN = """
import vitrail
from vitrail.parts import PARTS
from vitrail.training.recipe import Recipe

vitrail.register("recipe", "theirs", Recipe())

def send_recipes(parent):
    parent.send([name for kind, name in PARTS if kind == "recipe"])
"""


def test_worker_processes_get_the_plugins(tmp_path: Path):
    (tmp_path / "recipe_parts.py").write_text(WORKER_PLUGIN)
    plugins.load_plugins([str(tmp_path / "recipe_parts.py")])
    assert plugins_for_processes() == [str(tmp_path / "recipe_parts.py")]
    worker = start_worker(sys.modules["recipe_parts"].send_recipes, method="spawn")
    assert worker.receive() == ["theirs"]
    worker.close()


def test_a_sweep_varies_parts_and_its_config_names_them(my_parts: Path, photos: Path, tmp_path: Path):
    pytest.importorskip("optuna")
    plugins.load_plugins([str(my_parts)])
    sweep = vitrail.sweep(
        photos, vary={"pool": "mean,gem:p=2"}, out=tmp_path / "sweep", schedule="wsd", check=False, **TINY_CHANGES
    )
    assert {row["values"]["pool"] for row in sweep.result["rows"]} == {"mean", "gem:p=2"}
    assert {row["state"] for row in sweep.result["rows"]} == {"complete"}
    config = json.loads((tmp_path / "sweep" / "config.json").read_text())
    assert config["parts"] == [{"kind": "schedule", "name": "wsd", "module": "my_parts"}]


def test_parts_of_a_plugin_are_exported_to_no_other_library(my_parts: Path, tmp_path: Path):
    plugins.load_plugins([str(my_parts)])
    config = vitrail.ViTConfig(
        width=16, depth=1, heads=2, mlp_width=16, patch=4, image_size=8, classes=2, position="conditional"
    )
    clf = vitrail.Classifier(vitrail.ViT(config), ("a", "b"), Preprocess(image_size=(8, 8)))
    clf.save(tmp_path / "c.safetensors")
    assert main(["export", str(tmp_path / "c.safetensors"), "--format", "timm", "--out", str(tmp_path / "timm")]) == 2
    assert clf.fast().predict(torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert parts.hash_code(parts.needed_parts({"position": "conditional"}))[0]
