"""OpenVINO models give the classifier's outputs or are not written; a foreign or damaged one is an error message."""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail import Classifier, UsageError, ViT, ViTConfig, VitrailError, files
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.explanation.api import explain_batch
from vitrail.exporting.calibration import read_calibration_pixels
from vitrail.exporting.formats import export_program
from vitrail.exporting.openvino_classifier import OpenvinoClassifier
from vitrail.exporting.openvino_file import read_openvino
from vitrail.exporting.openvino_format import OpenvinoFormat
from vitrail.exporting.probes import load_probes
from vitrail.exporting.program import ATTENTION, MAP, ProgramOptions
from vitrail.prediction.model_spec import ModelSpec
from vitrail.serving.fork_server import ModelSource
from vitrail.serving.model_info import describe_model
from vitrail.serving.web_page import reason_for_plain_page
from vitrail.serving.worker import WorkerConfig, open_classifier, program_device
from vitrail.target_scale import TargetScale

CONFIG = dict(width=32, heads=4, mlp_width=64, patch=8, image_size=32, classes=3)


def make_classifier(depth: int = 2, **changes: object) -> Classifier:
    vit = ViT(ViTConfig(**CONFIG, depth=depth)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in vit.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    preprocess = Preprocess(image_size=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    return replace(Classifier(vit, ("ant", "bee", "cat"), preprocess, 1.7), **changes)


class SignalStack(ctypes.Structure):
    """C's stack_t on Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def has_usable_signal_stack() -> bool:
    """Returns whether this thread can run a signal handler: it has no other stack for it, or one that is mapped."""
    stack = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    if stack.address is None:
        return True
    ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    return any(int(low, 16) <= stack.address < int(high, 16) for low, high in ranges)


def draw_pixels(images: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Path]:
    """A classifier, and the model with all outputs that the command line exported from it."""
    folder, clf = tmp_path_factory.mktemp("saved"), make_classifier()
    clf.save(folder / "model.safetensors")
    arguments = ["--format", "openvino", "--attention", "--map", "--out", str(folder / "model.xml"), "--quiet"]
    assert main(["export", str(folder / "model.safetensors"), *arguments]) == 0
    return clf, folder / "model.xml"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, saved: tuple[Classifier, Path]) -> Path:
    """Training and test images of noise, each labeled with the answer of the classifier."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(60):
        noise = (generator.random((32, 32, 3)) * generator.integers(1, 256, 3)).astype(np.uint8)
        label = saved[0].predict(torch.from_numpy(noise).permute(2, 0, 1))[0].label
        path = folder / ("train" if i % 2 else "test") / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
    return folder


def test_the_two_files_give_every_output_and_have_everything_needed_to_use_them(
    saved: tuple[Classifier, Path], capsys: pytest.CaptureFixture[str]
):
    clf, path = saved
    x = draw_pixels()
    loaded = OpenvinoClassifier.load(path, threads=1)
    assert (loaded.logits(x) - clf.logits(x)).abs().max() < 1e-4
    with vitrail.recording(clf.vit) as record:
        clf.logits(x)
    attention = torch.stack([record.attention(layer) for layer in range(record.depth)], dim=1)
    assert (loaded.run(x, ATTENTION) - attention).abs().max() < 1e-5
    maps = np.stack([each.map for each in explain_batch(clf, x, target="bee")])
    target_BY = torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), -1)
    assert np.abs(loaded.run(x, MAP, target_BY).numpy() - maps).max() < 1e-4
    assert (loaded.classes, loaded.preprocess, loaded.temperature) == (clf.classes, clf.preprocess, clf.temperature)
    assert loaded.exported["max_difference"] < 1e-4
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.bin", "model.safetensors", "model.xml"]
    import openvino

    graph = openvino.Core().read_model(path)
    assert json.loads(graph.get_rt_info(["vitrail", "class_names"]).astype(str)) == ["ant", "bee", "cat"]
    assert str(path.parent) not in path.read_text()  # no path of the machine that wrote it
    card = graph.get_rt_info(["vitrail", "model_card"]).astype(str)
    variables: dict = {"pixels": x.numpy()}
    exec(card.split("```python\n")[1].split("```")[0].replace('"model.xml"', repr(str(path))), variables)
    assert np.abs(variables["logits"] - clf.logits(x).numpy()).max() < 1e-4
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["classes"], facts["outputs"]) == (["ant", "bee", "cat"], ["logits", "attention", "map"])


def test_predict_evaluate_and_serve_take_the_xml_file(
    saved: tuple[Classifier, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, path = saved

    def run(*arguments: str) -> dict:
        assert main([*arguments, "--json", "--quiet"]) == 0
        return json.loads(capsys.readouterr().out)

    test, artifact = str(photos / "test"), str(path.with_suffix(".safetensors"))
    expected, actual = run("predict", artifact, test), run("predict", str(path), test)
    assert len(expected["predictions"]) == 30
    for a, b in zip(expected["predictions"], actual["predictions"], strict=True):
        assert [p["label"] for p in a["top"]] == [p["label"] for p in b["top"]]
        assert [p["probability"] for p in a["top"]] == pytest.approx([p["probability"] for p in b["top"]], abs=1e-5)
    assert run("evaluate", str(path), test)["accuracy"] == 1  # the labels are the answers of the classifier
    command = [sys.executable, "-m", "vitrail", "predict", str(path), test, "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run([*command, "--processes", "2"], capture_output=True, text=True)  # its processes are forks
    assert json.loads(done.stdout)["images"] == 30
    served = open_classifier(None, WorkerConfig(0, threads=1, program_path=str(path)))
    assert (served.logits(draw_pixels()) - saved[0].logits(draw_pixels())).abs().max() < 1e-4
    assert describe_model("a", 0, ModelSource(str(path)), None).classes == saved[0].classes
    assert "an exported file cannot be explained" in str(reason_for_plain_page(served))
    assert ModelSpec(str(path)).digest != ModelSpec(artifact).digest
    assert main(["explain", str(path), test, "--json"]) == 2
    assert "is an OpenVINO model" in json.loads(capsys.readouterr().out)["error"]
    assert main(["predict", str(path), test, "--device", "cuda", "--json"]) == 2


def test_int8_is_calibrated_on_training_images_and_its_loss_is_measured_on_test_images(
    saved: tuple[Classifier, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clf, path = saved
    arguments = ["export", str(path.with_suffix(".safetensors")), "--format", "openvino", "--int8", "--json"]
    out = tmp_path / "int8.xml"
    assert main([*arguments, "--verify-data", str(photos), "--out", str(out)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["int8"]["calibrated_on"] == "30 train images"
    assert document["images"] == 30
    low, high = document["accuracy_drop_interval"]
    assert low < document["accuracy_drop"] < high
    assert document["int8"]["bytes"] < 0.6 * document["int8"]["float_bytes"]
    loaded = OpenvinoClassifier.load(out)
    x = load_probes(clf, str(photos)).first_pixels(clf)
    together, alone = loaded.logits(x), torch.cat([loaded.logits(each) for each in x.split(1)])
    difference = together - clf.logits(x)
    assert 0 < difference.square().mean().sqrt() < 0.1 * clf.logits(x).std()
    assert (together - alone).abs().max() < 1e-2 * together.abs().max()  # wherever an image is in its batch
    again = OpenvinoClassifier.load(out)
    again.logits(x[:1])
    del loaded, again  # in the order in which they were compiled
    assert sys.platform != "linux" or has_usable_signal_stack()
    features = replace(clf, classes=())
    pixels, description = read_calibration_pixels(features, load_probes(features, str(photos)))
    assert (len(pixels), description) == (30, "30 train images")
    assert main([*arguments, "--out", str(tmp_path / "none.xml")]) == 2
    assert "images to calibrate on" in json.loads(capsys.readouterr().out)["error"]
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["int8.bin", "int8.xml"]


def test_numbers_keep_their_units_and_labels_their_thresholds(tmp_path: Path):
    scale = TargetScale((30.0, 70.0, 2.0), (10.0, 15.0, 0.5))
    clf = make_classifier(depth=1, task="regression", target_scale=scale)
    result = export_program(clf, "openvino", tmp_path / "a.xml", ProgramOptions(), load_probes(clf, None))
    assert "agreement" not in result.to_json()
    loaded, x = OpenvinoClassifier.load(result.path), draw_pixels()
    assert (loaded.task, loaded.classes) == ("regression", clf.classes)
    assert loaded.logits(x).mean(0) == pytest.approx(clf.logits(x).mean(0), rel=1e-5)
    assert abs(loaded.logits(x).mean(0)[1].item() - 70) < 30
    clf = make_classifier(depth=1, task="multi_label", thresholds=(0.2, 0.5, 0.7))
    result = export_program(clf, "openvino", tmp_path / "b.xml", ProgramOptions(), load_probes(clf, None))
    loaded = OpenvinoClassifier.load(result.path)
    assert (loaded.task, loaded.thresholds) == ("multi_label", (0.2, 0.5, 0.7))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("torn graph", "is truncated"), ("changed weights", "does not match its checksum"),
        ("missing weights", "an OpenVINO model is two files"), ("foreign", "that vitrail did not write"),
        ("other size", "another model than its metadata"), ("metadata", "not a JSON object"),
        ("unknown encoding", "is truncated or not the graph"), ("other encoding", "is truncated or not the graph"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_model_is_an_error_message(
    name: str, sentence: str, saved: tuple[Classifier, Path], tmp_path: Path
):
    graph, weights = saved[1].read_text(), bytearray(saved[1].with_suffix(".bin").read_bytes())
    weights[100] ^= name == "changed weights"
    graph = {
        "torn graph": graph[: len(graph) // 2],
        "foreign": graph.replace("<vitrail>", "<other>").replace("</vitrail>", "</other>"),
        "other size": graph.replace('shape="?,3,32,32" element_type="u8"', 'shape="?,3,40,40" element_type="u8"'),
        "metadata": graph.replace('<document value="{', '<document value="['),
        "unknown encoding": '<?xml version="1.0" encoding="none"?><net/>',
        "other encoding": '<?xml version="1.0" encoding="big5"?><net/>',
    }.get(name, graph)
    path = tmp_path / "a.xml"
    path.write_text(graph)
    if name != "missing weights":
        path.with_suffix(".bin").write_bytes(weights)
    with pytest.raises(VitrailError) as caught:
        read_openvino(path)
    assert sentence in str(caught.value)


def test_wrong_use_and_a_missing_package_are_sentences_and_existing_files_stay(
    saved: tuple[Classifier, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clf, _ = saved
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"a\.bin already exists"):
        export_program(clf, "openvino", tmp_path / "a.xml", ProgramOptions(), load_probes(clf, None))
    assert (tmp_path / "a.bin").read_bytes() == b"mine"
    with pytest.raises(UsageError, match="has the wrong suffix"):
        export_program(clf, "openvino", tmp_path / "b.onnx", ProgramOptions(), load_probes(clf, None))
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UsageError, match="nncf is not installed"):
        export_program(clf, "openvino", tmp_path / "c.xml", ProgramOptions(int8=True), load_probes(clf, None))
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_a_full_disk_is_a_sentence_and_capital_letters_are_a_suffix(
    saved: tuple[Classifier, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The weights are written into a device whose disk is always full, then to a disk."""
    clf, x, real = saved[0], draw_pixels(), files.create_beside
    program, exported = OpenvinoFormat(clf, ProgramOptions(), load_probes(clf, None)), read_openvino(saved[1]).exported

    def write(name: str) -> Path:
        files.write_pair_atomically(tmp_path / name, ".bin", lambda path: program.write(path, name, exported))
        return tmp_path / name

    def create_full(path: Path, create: Callable[[Path], object]) -> Path:
        folder = real(path, create)
        (folder / "a.bin").symlink_to("/dev/full")
        return folder

    if Path("/dev/full").exists():
        monkeypatch.setattr(files, "create_beside", create_full)
        with pytest.raises(VitrailError, match=r"a\.xml cannot be written") as caught:
            write("a.xml")
        assert "free some space" in str(caught.value.hint)
        assert list(tmp_path.iterdir()) == []
        monkeypatch.setattr(files, "create_beside", real)
    config = WorkerConfig(0, threads=1, program_path=str(write("A.XML")))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["A.XML", "A.bin"]
    assert program_device(config) == "cpu"
    assert (open_classifier(None, config).logits(x) - clf.logits(x)).abs().max() < 1e-4


def test_a_model_without_a_last_layer_is_quantized(photos: Path, tmp_path: Path):
    """Its outputs are the vectors that a classifier would read: no product with weights comes after the last block."""
    vit = ViT(ViTConfig(**CONFIG | {"classes": 0}, depth=1)).eval().requires_grad_(False)
    features = replace(make_classifier(depth=1), vit=vit, classes=())
    probes = load_probes(features, str(photos))
    result = export_program(features, "openvino", tmp_path / "a.xml", ProgramOptions(int8=True), probes)
    x = probes.first_pixels(features)
    difference = OpenvinoClassifier.load(result.path).logits(x) - features.logits(x)
    assert 0 < difference.square().mean().sqrt() < 0.1 * features.logits(x).std()
