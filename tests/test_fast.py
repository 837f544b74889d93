"""The fast path beside the plain one, and the bench that times both."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import vitrail
from test_cli import ask
from vitrail.benchmarking.candidates import (
    VITRAIL,
    Candidate,
    Workload,
    inference_candidates,
    prepare_onnx_runtime,
    training_candidates,
)
from vitrail.benchmarking.memory import measure_peak_memory
from vitrail.benchmarking.peers import PEERS, find_installed_peers
from vitrail.benchmarking.results import describe_steal, run_benchmark
from vitrail.benchmarking.timing import Timing, time_alternately
from vitrail.data.preprocess import Preprocess
from vitrail.fast import PackedLinear, make_fast_vit
from vitrail.machine import measure_steal_time
from vitrail.model.attention import attend
from vitrail.model.config import NoPosition, Rotary, SinCos, ViTConfig
from vitrail.model.vit import ViT

TINY = dict(width=48, depth=3, heads=3, mlp_width=96, patch=4, image_size=16, classes=7)
CPU = torch.device("cpu")
KINDS = [
    dict(),
    dict(layer_scale=0.1, position=Rotary(), prefix_tokens=3),
    dict(mlp="swiglu", pool="cls+mean"),
    dict(mlp="gelu_tanh", pool="map", prefix_tokens=0),
    dict(mlp="quick_gelu", pre_norm=True, qkv_bias=False, head="mlp"),
    dict(qk_norm=True, pool="mean", position=SinCos()),
    dict(classes=0, position=NoPosition(), layer_scale=0.1, mlp="swiglu"),
]
ROOT = Path(__file__).parent.parent


def trained(**options) -> ViT:
    """A ViT whose every parameter is something, and whose logits matter."""
    torch.manual_seed(0)
    vit = ViT(ViTConfig(**{**TINY, **options})).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vit


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().max() / b.abs().max())


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_fast_path_is_the_plain_one_but_for_rounding(options):
    vit = trained(**options)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    images = torch.randn(5, 3, 16, 24)  # not the size that it was made for
    with torch.inference_mode():
        plain = vit(images)
        assert apart(make_fast_vit(vit, torch.float32)(images), plain) < 1e-5
        assert apart(make_fast_vit(vit, torch.bfloat16)(images.bfloat16()), plain) < 0.04
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())


@pytest.mark.parametrize("options", KINDS[:2], ids=str)
def test_every_matrix_is_packed(options):
    quick = make_fast_vit(trained(**options), torch.bfloat16)
    kinds = [type(module) for module in quick.modules()]
    assert kinds.count(PackedLinear) == 3 * 4 + 2  # blocks; the patches and the head
    assert not {torch.nn.Linear, torch.nn.Conv2d, vitrail.model.block.LayerScale} & set(kinds)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="compiling needs a C++ compiler")
def test_compiled_for_a_batch_the_others_still_go_through():
    vit = trained(depth=1)
    quick = make_fast_vit(vit, torch.float32, compile=[2])
    with torch._dynamo.config.patch(error_on_recompile=True):  # compiled once and frozen
        for shape in ((2, 3, 16, 16), (3, 3, 16, 16), (2, 3, 16, 24)):
            images = torch.randn(shape)
            with torch.no_grad():
                plain = vit(images)
                assert apart(quick(images), plain) < 1e-5
            with torch.inference_mode():
                assert apart(quick(images + 0), plain) < 1e-5


def test_the_kernel_without_a_gradient_agrees_with_the_one_with():
    q, k, v = (torch.randn(2, 3, 50, 32).bfloat16().requires_grad_() for _ in range(3))
    with torch.no_grad():
        still = attend(q, k, v)
    assert apart(still, attend(q, k, v).detach()) < 0.02


def test_a_fast_classifier_gives_the_same_labels(run: vitrail.Run, colors: Path):
    plain = run.classifier
    quick = plain.fast()
    images = sorted((colors / "test").rglob("*.png"))
    pixels = torch.stack([plain.read_image(path) for path in images])
    assert torch.equal(quick.logits(pixels).argmax(1), plain.logits(pixels).argmax(1))
    assert apart(quick.logits(pixels), plain.logits(pixels)) < 0.04
    assert apart(quick.features(pixels), plain.features(pixels)) < 0.04
    assert quick.predict(images[0])[0].label == plain.predict(images[0])[0].label
    assert vitrail.evaluate(quick, colors).accuracy == vitrail.evaluate(plain, colors).accuracy


def test_what_a_fast_classifier_cannot_do_is_said(run: vitrail.Run, tmp_path: Path):
    quick = run.classifier.fast()
    pixels = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    for refused in (
        lambda: quick.save(tmp_path / "x.safetensors"),
        lambda: vitrail.explain(quick, pixels[0]),
        lambda: quick.fast(),
        lambda: quick.to("cpu"),
        lambda: quick.with_image_size(32),
    ):
        with pytest.raises(vitrail.UsageError, match="a fast classifier cannot"):
            refused()
    assert not list(tmp_path.iterdir())


def test_predict_fast(run: vitrail.Run, colors: Path, capsys):
    arguments = ["predict", run.folder, colors / "test" / "red"]
    answers = [ask(capsys, *arguments, *more)[1]["predictions"] for more in ([], ["--fast"])]
    plain, quick = ([(row["path"], row["top"][0]["label"]) for row in rows] for rows in answers)
    assert plain == quick
    assert answers[0] != answers[1]


# The bench.


def test_ratios_are_taken_round_by_round():
    ours, theirs = Timing((1.0, 2.0, 4.0)), Timing((2.0, 4.0, 12.0))
    assert ours.ratio(theirs) == (2.0, 2.0, 2.5)
    assert ours.median == 2.0


def test_everyone_takes_turns_and_none_always_follows_the_same():
    calls: list[int] = []
    results = time_alternately([lambda i=i: calls.append(i) for i in range(3)], rounds=3, min_seconds=0)
    assert [len(timing.seconds) for timing in results] == [3, 3, 3]
    assert calls[6:] == [0, 1, 2, 1, 2, 0, 2, 0, 1]


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_the_same_size_and_gives_logits(name: str):
    config = ViTConfig(**TINY)
    theirs, ours = PEERS[name](config).eval(), ViT(config)
    with torch.inference_mode():
        assert theirs(torch.randn(2, 3, 16, 16)).shape == (2, 7)
    matrices = [sum(p.numel() for p in model.parameters() if p.ndim >= 2) for model in (theirs, ours)]
    assert matrices[0] == pytest.approx(matrices[1], rel=0.02)  # some lack a bias, or have a norm more


def test_onnx_runtime_is_given_the_peer_itself():
    task = Workload(ViTConfig(**TINY), 3, CPU)
    with torch.inference_mode():
        theirs = task.model("timm").eval()(task.images())
    (fp32,), (int8,) = (prepare_onnx_runtime(task, "timm", int8=int8)() for int8 in (False, True))
    assert apart(torch.from_numpy(fp32), theirs) < 1e-4
    assert 1e-4 < apart(torch.from_numpy(int8), theirs) < 0.2


def test_training_steps_train():
    task = Workload(ViTConfig(**TINY), 4, CPU)
    for each in training_candidates(task, ["timm"]):
        step = each.build()
        model = next(cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, torch.nn.Module))
        before = [p.detach().clone() for p in model.parameters()]
        step()
        assert any(not torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True)), each


def test_who_cannot_be_built_is_named_and_the_race_goes_on():
    def broken() -> None:
        raise RuntimeError("no compiler\nat line 7")

    good = Candidate(VITRAIL, "fp32", lambda: lambda: None)
    results = run_benchmark([good, Candidate("timm", "x", broken)], 1, rounds=2, min_seconds=0, clock="cpu", device=CPU)
    assert [row.library for row in results.rows] == [VITRAIL]
    assert results.failed == {"timm x": "no compiler"}
    assert results.best_peer is None
    with pytest.raises(vitrail.VitrailError, match="no candidate could be run"):
        run_benchmark([Candidate("timm", "x", broken)], 1, rounds=2, min_seconds=0, clock="cpu", device=CPU)


def test_what_the_host_takes_is_told(tmp_path: Path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 1000 7 2 3 45 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n")
    taken = measure_steal_time(stat)
    assert taken() == 0.0
    stat.write_text("cpu  140 10 70 9000 7 4 11 65 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n")
    assert taken() == 20 / (20 + 40 + 10 + 20 + 2 + 8)  # idle time and waiting for a disk count for nothing
    assert "took 20% of the CPU time" in (describe_steal(taken()) or "")
    stat.write_text("an other system\n")
    assert taken() is measure_steal_time(tmp_path / "nothing")() is None
    assert describe_steal(None) is describe_steal(0.01) is None
    here = measure_steal_time()()
    assert here is None or 0 <= here <= 1


def test_a_peer_that_is_missing_or_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PEERS, "missing-vit", lambda config: None)
    here, missing = find_installed_peers(ViTConfig(**{**TINY, "image_size": (16, 24)}))
    assert "torchvision" not in here
    assert missing["torchvision"] == "torchvision takes only square color images"
    assert missing["missing-vit"] == "not installed (pip install missing-vit)"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")
def test_memory_grows_with_the_model():
    small, large = (
        inference_candidates(Workload(ViTConfig(**{**TINY, "width": w, "mlp_width": 4 * w, "depth": 6}), 1, CPU), [])[0]
        for w in (48, 768)
    )
    low, high = measure_peak_memory([small, large], CPU, 1)
    assert low is not None
    assert high is not None
    assert high - low > 100 * 2**20  # 42 million parameters of four bytes


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")
def test_the_memory_of_a_models_own_bench_has_its_weights_once(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vitrail.cli.run_benchmarks.find_installed_peers", lambda config: ([], {}))
    vit = ViT(ViTConfig(**{**TINY, "width": 768, "mlp_width": 3072, "depth": 6}))
    names = tuple("abcdefg")
    vitrail.Classifier(vit, names, Preprocess(image_size=(16, 16))).save(tmp_path / "m.safetensors")
    arguments = [
        "bench",
        tmp_path / "m.safetensors",
        "--batch-sizes",
        1,
        "--rounds",
        1,
        "--min-round-s",
        0.001,
        "--threads",
        1,
    ]
    _, document, _ = ask(capsys, *arguments, "--measure-memory")
    (plain,) = (row for row in document["benchmarks"]["inference, batch 1"] if row["mode"] == "fp32")
    weights = sum(4 * parameter.numel() for parameter in vit.parameters())
    assert weights < plain["peak_memory"] < 1.6 * weights


def test_bench_shows_and_writes(run: vitrail.Run, colors: Path, tmp_path: Path, capsys):
    arguments = [
        "bench",
        run.folder,
        "--batch-sizes",
        2,
        "--rounds",
        2,
        "--min-round-s",
        0.001,
        "--train",
        2,
        "--threads",
        1,
    ]
    code, document, _ = ask(capsys, *arguments, "--data", colors, "--max-images", 12, "--out", tmp_path / "out")
    assert code == 0
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == document
    assert (tmp_path / "out" / "bench.png").stat().st_size > 5000
    assert set(document["benchmarks"]) == {"inference, batch 2", "training step, batch 2"}
    rows = document["benchmarks"]["inference, batch 2"]
    assert {("vitrail", "fast"), ("timm", "fp32"), ("timm", "ONNX Runtime int8")} <= {
        (r["library"], r["mode"]) for r in rows
    }
    assert all(row["images_per_second"] > 0 and len(row["seconds"]) == 2 for row in rows)
    best = max((r for r in rows if r["library"] != "vitrail"), key=lambda r: r["images_per_second"])
    assert best["ratio"] == [1, 1, 1]
    ours = next(row for row in rows if row["mode"] == "fast")
    assert ours["ratio"][0] == pytest.approx(np.median(np.divide(best["seconds"], ours["seconds"])))
    assert document["agreement"]["images"] == 12
    assert document["agreement"]["agreement"] == 1
    assert document["threads"] == 1
    assert not document["failed"]


def test_bench_compares_before_it_times_and_needs_no_model(
    run: vitrail.Run, make_folder, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vitrail.cli.run_benchmarks.find_installed_peers", lambda config: ([], {}))
    quick = ["--batch-sizes", 1, "--rounds", 1, "--min-round-s", 0.001, "--threads", 1]
    code, document, _ = ask(
        capsys, "bench", *quick, "--data", "digits", "--max-images", 2
    )  # grey, for a model of colors
    assert (code, document["model"], document["agreement"]["images"]) == (0, "cifar10-small", 2)
    data = make_folder("bad", {"train": 2, "test": 2})
    (data / "test/red/0.png").write_bytes(b"no image")
    monkeypatch.setattr(
        "vitrail.cli.run_benchmarks.run_benchmark", lambda *args, **options: pytest.fail("timed too early")
    )
    code, document, _ = ask(capsys, "bench", run.folder, *quick, "--data", data)
    assert (code, "0.png" in document["error"]) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-images", "5"], "--max-images is for the images of --data"),
        (["--batch-sizes", "0"], "0 is too small"),
        (["--rounds", "-1"], "-1 is too small"),
        (["--min-round-s", "nan"], "nan is out of range"),
        (["--threads", "0"], "0 is too small"),
        (["--clock", "sand"], "invalid choice"),
    ],
)
def test_bench_refuses_wrong_use(run: vitrail.Run, arguments, message, capsys):
    code, document, _ = ask(capsys, "bench", run.folder, *arguments)
    assert code == 2
    assert message in document["error"]


def test_the_benchmark_runs(tmp_path: Path, prepared_vitrail: list[str]):
    code = "import runpy; runpy.run_module('benchmarks.throughput', run_name='__main__')"
    done = subprocess.run(
        [*prepared_vitrail, "-c", code, "--quick", "--no-onnx", "--out", tmp_path / "o"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "o" / "throughput.json").read_text())
    assert len(document["sizes"]["quick"]["benchmarks"]) == 3
    table = (tmp_path / "o" / "throughput.md").read_text()
    assert re.search(r"\| vitrail \| fast \| [\d,.]+ \| [\d.]+ \([\d.]+ to [\d.]+\) \|", table)
    assert (tmp_path / "o" / "throughput.png").exists()
