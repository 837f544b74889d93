"""Plugins in the processes that vitrail starts: several that train one model, the server's workers, and Ray."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vitrail
from serving import RunningServer
from vitrail import plugins
from vitrail.parts import PARTS
from vitrail.plugins import load_plugins
from vitrail.registry import RULES
from vitrail.runs.folder import RunFolder

ROOT = Path(__file__).parent.parent
PLUGIN = '''
import torch
from torch import nn

import vitrail


@vitrail.register("pool", "softmax")
class SoftmaxPool(nn.Module):
    """A weighted mean of the tokens; the weights are learned."""

    def __init__(self, config, temperature=1.0):
        super().__init__()
        self.scores = nn.Linear(config.width, 1)
        self.temperature = temperature

    def forward(self, x_BTD):
        return ((self.scores(x_BTD) / self.temperature).softmax(1) * x_BTD).sum(1)


@vitrail.register("model", "tiny_cnn")
def build(config, width=8):
    return nn.Sequential(
        nn.Conv2d(config.channels, width, 3, 2), nn.GroupNorm(2, width), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(width, config.classes),
    )
'''
TINY: dict[str, Any] = dict(width=16, depth=1, heads=2, mlp_width=16, epochs=2, precision="fp32")
QUICK: dict[str, Any] = dict(check=False, report=False, workers=0)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of a plugin, which this process has imported until the tests of the module end."""
    path = tmp_path_factory.mktemp("plugin") / "pools_for_processes.py"
    path.write_text(PLUGIN)
    before, folders = set(PARTS), list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_loaded", {})
        load_plugins([str(path)])
        yield path
    for kind, name in set(PARTS) - before:
        del RULES[kind].table[name], PARTS[kind, name]
    del sys.modules[path.stem]
    sys.path[:] = folders


@pytest.fixture(scope="module")
def pool_run(plugin: Path, colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a pool of the plugin."""
    out = tmp_path_factory.mktemp("runs") / "colors"
    return vitrail.train(colors, pool="softmax:temperature=2", out=out, **TINY, **QUICK).folder


@pytest.mark.scale
def test_several_processes_train_a_pool_of_a_plugin_as_one_does(pool_run: Path, plugin, colors: Path, tmp_path: Path):
    out = tmp_path / "two"
    model = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    options = ["--no-check", "--no-report", "--workers", "0", "--processes", "2", "--out", str(out)]
    arguments = ["train", str(colors), "--plugin", str(plugin), "--pool", "softmax:temperature=2", *model, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vitrail", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    theirs = RunFolder(pool_run).load_metrics()
    for ours, other in zip(RunFolder(out).load_metrics(), theirs, strict=True):
        assert ours["train_loss"] == pytest.approx(other["train_loss"], abs=5e-4)
    assert vitrail.load(out).vit.pool.temperature == 2


def test_the_server_has_the_plugin_also_after_a_worker_died(pool_run: Path, plugin: Path, colors: Path):
    image = next(colors.glob("test/red/*.png"))
    expected = vitrail.load(pool_run).predict(image)
    with RunningServer([pool_run, "--plugin", plugin, "--backend", "torch"]) as server:
        for _ in range(2):
            answer = server.post("/predict", image.read_bytes())
            assert answer.status == 200, answer.body
            best = answer.json["predictions"][0]["top"][0]
            assert best["label"] == expected.label
            assert best["probability"] == pytest.approx(expected.probability, abs=2e-2)
            workers = len(server.select_events("worker_ready", task="predict"))
            os.kill(server.find_worker(), signal.SIGKILL)
            server.wait_for(lambda n=workers: len(server.select_events("worker_ready", task="predict")) > n)
        assert server.post("/explain", image.read_bytes()).status == 200


@pytest.mark.scale
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_ray_trains_parts_and_models_of_a_plugin(ray_cluster: Any, plugin: Path, colors: Path, tmp_path: Path):
    from vitrail.runs.ray import train_on_ray

    run = train_on_ray(colors, out=tmp_path / "pool", processes=2, pool="softmax", **TINY, **QUICK)
    assert run.classifier.vit.config.pool == "softmax"
    module_run = train_on_ray(colors, out=tmp_path / "cnn", processes=1, architecture="tiny_cnn", epochs=1, **QUICK)
    assert isinstance(module_run, vitrail.ModuleRun) and module_run.result["test"]["images"] == 24


def test_a_sweep_trains_models_of_a_plugin(plugin: Path, colors: Path, tmp_path: Path):
    pytest.importorskip("optuna")
    vary = {"architecture": ["tiny_cnn", "tiny_cnn:width=4"]}
    result = vitrail.sweep(colors, vary=vary, out=tmp_path / "sweep", epochs=1, check=False, workers=0)
    assert {row["values"]["architecture"] for row in result.result["rows"]} == set(vary["architecture"])
    assert (
        json.loads((tmp_path / "sweep" / "trials" / "000" / "recipe.json").read_text())["parts"][0]["kind"] == "model"
    )
