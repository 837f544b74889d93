"""Exported programs give the classifier's outputs or are not written; a foreign or damaged file is an error message."""

import importlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import vitrail
from vitrail import Classifier, UsageError, ViT, ViTConfig, VitrailError
from vitrail.cli import main
from vitrail.cli.main import make_parser
from vitrail.data.preprocess import Preprocess
from vitrail.explanation.api import explain_batch
from vitrail.exporting import int8, onnx_format
from vitrail.exporting.formats import PROGRAM_FORMATS, export_program
from vitrail.exporting.onnx_classifier import OnnxClassifier
from vitrail.exporting.onnx_format import add_metadata, build_onnx_model, classifier_in_memory
from vitrail.exporting.probes import load_probes
from vitrail.exporting.program import ATTENTION, MAP, Program, ProgramOptions
from vitrail.exporting.result import ExportResult
from vitrail.exporting.trace import trace_map_program
from vitrail.exporting.verify import FLOAT32_LIMITS, INT8_LIMITS, Verification, check_tolerance, compare_maps
from vitrail.files import mark_used
from vitrail.installation import install_hint
from vitrail.model.config import Rotary, SinCos
from vitrail.prediction.model_spec import ModelSpec
from vitrail.serving.onnx_cache import onnx_cache_folder, onnx_cache_name, write_onnx

TINY = dict(width=32, depth=1, heads=4, mlp_width=64, patch=8, image_size=32, classes=3)
CONFIGS: dict[str, dict] = {  # together they have every kind of module
    "plain": dict(depth=2),
    "rotary, registers, gated, attention pooling, q and k normed, wide": dict(
        position=Rotary(), prefix_tokens=5, mlp="swiglu", pool="map", qk_norm=True, image_size=(24, 40), pre_norm=True,
        qkv_bias=False, layer_scale=0.5,
    ),
    "grayscale, sin-cos, mean normed, MLP head": dict(
        channels=1, position=SinCos(), pool="mean_norm", final_norm=False, head="mlp", mlp="gelu_tanh", prefix_tokens=0
    ),
    "features of two class tokens, another image size than in training": dict(
        pool="cls+dist", prefix_tokens=2, image_size=48, mlp="quick_gelu", classes=0
    ),
}  # fmt: skip


def classifier(**options: object) -> Classifier:
    config = ViTConfig(**{**TINY, **options})
    vit = ViT(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in vit.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    size = config.image_size if isinstance(config.image_size, tuple) else (32, 32)
    names = ("ant", "bee", "cat", "dog")[: config.classes]
    mean, std = (0.4, 0.5, 0.6)[: config.channels], (0.2, 0.3, 0.25)[: config.channels]
    return Classifier(vit, names, Preprocess(image_size=size, mean=mean, std=std), 1.7, {"recipe": {"name": "none"}})


def pixels_for(clf: Classifier, images: int = 5) -> torch.Tensor:
    shape = (images, clf.preprocess.channels, *clf.preprocess.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def attention_of(clf: Classifier, pixels: torch.Tensor) -> torch.Tensor:
    with vitrail.recording(clf.vit) as record:
        clf.logits(pixels)
    return torch.stack([record.attention(layer) for layer in range(record.depth)], dim=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Path]:
    """A classifier, and the ONNX file that the command line exported from it."""
    folder = tmp_path_factory.mktemp("saved")
    clf = classifier()
    clf.save(folder / "model.safetensors")
    arguments = [str(folder / "model.safetensors"), "--format", "onnx", "--out", str(folder / "model.onnx"), "--quiet"]
    assert main(["export", *arguments]) == 0
    return clf, folder / "model.onnx"


@pytest.mark.newest
@pytest.mark.parametrize("name", CONFIGS)
def test_onnx_gives_the_same_logits_and_attention_and_int8_almost_the_same(name: str):
    clf = classifier(**CONFIGS[name])
    model = build_onnx_model(clf, ProgramOptions(attention=True))
    runner = classifier_in_memory(model, clf)
    x = pixels_for(clf)
    expected, attention = clf.logits(x), attention_of(clf, x)
    assert (runner.logits(x) - expected).abs().max() < 1e-4
    assert (runner.run(x, ATTENTION) - attention).abs().max() < 1e-5
    assert (runner.logits(x[:1]) - runner.logits(x)[:1]).abs().max() < 1e-5
    assert {node.domain for node in model.graph.node} == {""}  # standard operators, which every runtime has

    int8_model = int8.quantize(model)
    onnx.checker.check_model(int8_model)
    assert {node.domain for node in int8_model.graph.node} == {""}
    int8_runner = classifier_in_memory(int8_model, clf)
    assert (int8_runner.logits(x) - expected).square().mean().sqrt() < 0.1 * expected.std()
    assert (int8_runner.logits(x[:1]) - int8_runner.logits(x)[:1]).abs().max() < 1e-3  # each token has its own scale
    integer_products = [node for node in int8_model.graph.node if node.op_type == "MatMulInteger"]
    assert len(integer_products) >= 4 * clf.vit.config.depth
    floats = {tensor.name for tensor in int8_model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    products = [node for node in int8_model.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert not [node for node in products if node.input[1] in floats and node.input[0] not in floats]


def map_differences(clf: Classifier, run) -> list[float]:
    """The relative differences between the program's maps and those of `explain_batch`, for several targets."""
    comparisons = [compare_maps(clf, run, pixels_for(clf), *target) for target in [(0,), (1,), (1, 0)]]
    assert min(comparison.largest for comparison in comparisons) > 1e-3
    return [comparison.relative_difference for comparison in comparisons]


@pytest.mark.newest
def test_the_map_in_the_graph_equals_explain():
    clf = classifier(depth=2, classes=2)  # a frequent batch size, which the tracer must not confuse with the classes
    runner = classifier_in_memory(build_onnx_model(clf, ProgramOptions(map=True)), clf)
    assert max(map_differences(clf, runner.run)) < 1e-5
    x = pixels_for(clf)
    target_BY = torch.eye(2)[torch.arange(len(x)) % 2]  # a different class for each image
    explanations = explain_batch(clf, x, target=["ant", "bee", "ant", "bee", "ant"])
    maps = np.stack([explanation.map for explanation in explanations])
    assert np.abs(runner.run(x, MAP, target_BY).numpy() - maps).max() < 1e-5
    assert (runner.logits(x) - clf.logits(x)).abs().max() < 1e-4


def test_every_gradient_rule_of_the_map_is_in_the_graph():
    """Gates, attention pooling and normed queries have gradient rules of their own."""
    clf = classifier(**CONFIGS[[*CONFIGS][1]])
    graph = trace_map_program(Program(clf))
    assert max(map_differences(clf, lambda pixels, _, target: graph(pixels, target)[-1])) < 1e-5


@pytest.mark.newest
def test_the_file_contains_everything_needed_to_use_it(
    saved: tuple[Classifier, Path], capsys: pytest.CaptureFixture[str]
):
    clf, path = saved
    loaded = OnnxClassifier.load(path, threads=1)
    assert (loaded.classes, loaded.preprocess, loaded.temperature) == (clf.classes, clf.preprocess, clf.temperature)
    assert loaded.origin == clf.origin
    assert loaded.exported["max_difference"] < 1e-4
    assert loaded.exported["compared_on"] == "64 parts of 4 photographs"
    model = onnx.load(path)
    assert model.producer_name == "vitrail"
    assert "ant, bee, cat" in model.doc_string
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["classes"], facts["outputs"]) == (["ant", "bee", "cat"], ["logits"])
    assert abs(facts["parameters"] - sum(p.numel() for p in clf.vit.parameters())) < 200  # beside constants for shapes
    assert main(["inspect", str(path)]) == 0
    assert "inputs pixels; outputs logits" in capsys.readouterr().out
    assert str(path.parent) not in str(model)  # no path of the machine that wrote it
    variables: dict = {"pixels": pixels_for(clf).numpy()}
    code = model.doc_string.split("```python\n")[1].split("```")[0]
    exec(code.replace('"model.onnx"', repr(str(path))), variables)  # the code in the model card
    assert np.abs(variables["logits"] - clf.logits(pixels_for(clf)).numpy()).max() < 1e-4


def test_predict_and_evaluate_take_the_file(
    saved: tuple[Classifier, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clf, path = saved
    for label in clf.classes:
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(2):
            noise = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "photos" / label / f"{i}.png")
    (tmp_path / "photos" / "truncated.jpg").write_bytes(b"\xff\xd8 torn")

    def run(*arguments: str) -> dict:
        assert main([*arguments, "--json", "--quiet"]) in (0, 1)
        return json.loads(capsys.readouterr().out)

    photos, artifact = str(tmp_path / "photos"), str(path.with_suffix(".safetensors"))
    expected, actual = run("predict", artifact, photos), run("predict", str(path), photos, "--threads", "1")
    assert len(expected["predictions"]) == 7
    for a, b in zip(expected["predictions"], actual["predictions"], strict=True):
        assert (a["path"], a["error"]) == (b["path"], b["error"])
        assert [p["label"] for p in a["top"]] == [p["label"] for p in b["top"]]
        assert [p["probability"] for p in a["top"]] == pytest.approx([p["probability"] for p in b["top"]], abs=1e-5)
    (tmp_path / "photos" / "truncated.jpg").unlink()
    expected, actual = run("evaluate", artifact, photos), run("evaluate", str(path), photos)
    assert expected["accuracy"] == actual["accuracy"]
    assert expected["loss"] == pytest.approx(actual["loss"], abs=1e-5)
    assert main(["evaluate", str(path), photos, "--report", "--json"]) == 2
    assert "an ONNX file" in json.loads(capsys.readouterr().out)["error"]
    assert main(["explain", str(path), photos, "--json"]) == 2
    assert "give explain the classifier" in json.loads(capsys.readouterr().out)["hint"]
    assert main(["predict", str(path), photos, "--threads", "0", "--json"]) == 2


def test_triton_gets_a_folder_with_an_int8_model_and_measured_accuracy(
    saved: tuple[Classifier, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The labels are the classifier's predictions, so that its accuracy is 1."""
    clf, path = saved
    generator = np.random.default_rng(0)
    for i in range(40):
        noise = (generator.random((32, 32, 3)) * generator.integers(1, 256, 3)).astype(np.uint8)
        label = clf.predict(torch.from_numpy(noise).permute(2, 0, 1))[0].label
        (tmp_path / "data" / "test" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "data" / "test" / label / f"{i}.png")
    arguments = ["--format", "triton", "--int8", "--attention", "--verify-data", str(tmp_path / "data")]
    model = str(path.with_suffix(".safetensors"))
    out = tmp_path / "repository" / "insects"
    assert main(["export", model, *arguments, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 40
    assert document["accuracy"] == 1
    assert document["accuracy_drop"] == pytest.approx(1 - document["exported_accuracy"])
    low, high = document["accuracy_drop_interval"]
    assert low < document["accuracy_drop"] < high
    assert high - low > 2 * 1.96**2 / (40 + 1.96**2) - 1e-3  # never narrower than without a single flip
    assert document["int8"]["float_bytes"] > 1.3 * document["int8"]["bytes"]  # the graph takes most of a small file
    assert document["int8"]["milliseconds"] > 0
    assert 0 < document["attention_difference"] < 0.1
    assert {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()} == {
        "1/model.onnx", "config.pbtxt", "labels.txt",
    }  # fmt: skip
    assert (out / "labels.txt").read_text().split() == list(clf.classes)
    assert OnnxClassifier.load(out / "1" / "model.onnx").outputs == ("logits", "attention")
    text = (out / "config.pbtxt").read_text()
    pytest.importorskip("tritonclient.grpc", reason="it defines the format of Triton's configuration")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.name == "insects"
    assert [list(output.dims) for output in config.output] == [[3], [1, 4, 17, 17]]
    assert config.output[0].label_filename == "labels.txt"


def test_the_summary_of_a_program_says_how_to_use_it_and_what_was_not_measured(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verification = Verification("noise", 8, 1e-6, 1.0, 0.0, 0.0, 3.0)
    int8 = {"float_bytes": 4e6, "bytes": 1e6, "float_milliseconds": 3.0, "milliseconds": 2.0}
    result = ExportResult(Path("repository/insects"), "triton", ("logits",), verification, 1_000_000, int8)
    text = "\n".join(result.summary())
    assert f"serve it: tritonserver --model-repository {tmp_path / 'repository'}\n" in text  # the folder above
    assert "4.0 times smaller, 1.50 times as fast" in text
    (option,) = re.findall(r"not measured: give labeled images with (--\S+) DATA", text)
    actions = make_parser("export", importlib.import_module("vitrail.cli.export"))._actions
    assert option in {name for action in actions for name in action.option_strings}
    assert not any("tritonserver" in line for line in replace(result, format="onnx").summary())


def test_the_cache_of_onnx_files_keeps_those_used_last(
    saved: tuple[Classifier, Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    clf, _ = saved
    monkeypatch.setenv("VITRAIL_CACHE_GIB", str(3 / 1024))
    onnx_cache_folder().mkdir(parents=True)
    for age, name in enumerate(("new", "old", "oldest")):
        (onnx_cache_folder() / f"{name}.onnx").write_bytes(bytes(1 << 20))
        os.utime(onnx_cache_folder() / f"{name}.onnx", (1e9 - age, 1e9 - age))
    mark_used(onnx_cache_folder() / "oldest.onnx")  # as the server does when it takes a file
    name = onnx_cache_name(clf)
    write_onnx(clf, onnx_cache_folder() / name)
    assert {file.name for file in onnx_cache_folder().iterdir()} == {"new.onnx", "oldest.onnx", name}
    x = pixels_for(clf)
    assert torch.allclose(OnnxClassifier.load(onnx_cache_folder() / name).logits(x), clf.logits(x), atol=1e-5)
    other = replace(clf, temperature=2.0)
    assert onnx_cache_name(replace(clf)) == name != onnx_cache_name(other)


@pytest.mark.newest
def test_torch_export_reads_the_file(saved: tuple[Classifier, Path], tmp_path: Path):
    clf, _ = saved
    arguments = [str(saved[1].with_suffix(".safetensors")), "--format", "torch", "--attention", "--quiet"]
    assert main(["export", *arguments, "--out", str(tmp_path / "model.pt2")]) == 0
    extra = {"vitrail.json": ""}
    module = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    x = pixels_for(clf)
    logits, attention = module(x)
    assert (logits - clf.logits(x)).abs().max() < 1e-5
    assert (attention - attention_of(clf, x)).abs().max() < 1e-5
    assert json.loads(extra["vitrail.json"])["classes"] == list(clf.classes)
    assert module(x[:1])[0].shape == (1, 3)


def test_a_program_that_does_not_agree_is_not_written(
    saved: tuple[Classifier, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clf, path = saved
    probes = load_probes(clf, None)
    intact = onnx.load(path)

    def build_changed_model(*_: object) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(intact)
        head = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("head.bias"))
        head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) + np.float32(0.1), head.name))
        return model

    monkeypatch.setattr(onnx_format, "build_onnx_model", build_changed_model)
    with pytest.raises(
        VitrailError, match=r"differ by 5\.88e-02 .* 64 parts of 4 photographs"
    ):  # 0.1 over the temperature
        export_program(clf, "onnx", tmp_path / "a.onnx", ProgramOptions(), probes)
    monkeypatch.setattr(onnx_format, "build_onnx_model", lambda *_: intact)
    monkeypatch.setattr(int8, "MAX_WEIGHT", 1)
    with pytest.raises(VitrailError, match=r"is \d+\.\d% of the logits' standard deviation"):
        export_program(clf, "onnx", tmp_path / "b.onnx", ProgramOptions(int8=True), probes)
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_read_back_is_not_written(
    saved: tuple[Classifier, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(PROGRAM_FORMATS["onnx"], "read_back", lambda *_: lambda pixels, _: torch.zeros(len(pixels), 3))
    with pytest.raises(VitrailError, match="does not give the same logits"):
        export_program(saved[0], "onnx", tmp_path / "a.onnx", ProgramOptions(), load_probes(saved[0], None))
    assert not list(tmp_path.iterdir())


def test_the_limits():
    good = Verification("x", 100, 1e-6, 1.0, 1e-6, 1e-6, 5.0)
    check_tolerance(good, FLOAT32_LIMITS)
    for change, message in (
        ({"max_difference": 1e-3}, "does not agree"),
        ({"max_difference": float("nan")}, "does not agree"),
        ({"batch_difference": 1e-3}, "other images of its batch"),
    ):
        with pytest.raises(VitrailError, match=message):
            check_tolerance(Verification(**{**vars(good), **change}), FLOAT32_LIMITS)
    quantized = {**vars(good), "max_difference": 0.2, "rms_ratio": 0.02, "accuracy": 0.8}
    check_tolerance(Verification(**{**quantized, "exported_accuracy": 0.797, "accuracy_drop": 0.003}), INT8_LIMITS)
    worse = {**quantized, "exported_accuracy": 0.794, "accuracy_drop": 0.006}
    too_few_images = (-0.01, 0.022)  # the interval includes zero
    check_tolerance(Verification(**{**worse, "accuracy_drop_interval": too_few_images}), INT8_LIMITS)
    with pytest.raises(VitrailError, match=r"loses 0\.60 points of accuracy \(0\.8000 to 0\.7940\)"):
        check_tolerance(Verification(**{**worse, "accuracy_drop_interval": (0.003, 0.009)}), INT8_LIMITS)


def test_quantized_weights_are_rounded_to_the_nearest_level_and_cannot_overflow():
    weight = np.random.default_rng(0).normal(size=(96, 40)).astype(np.float32) * np.logspace(
        -6, 2, 40, dtype=np.float32
    )
    weight[:, 7] = 0
    quantized, scale = int8.quantize_weight(weight)
    assert np.abs(quantized).max() == int8.MAX_WEIGHT
    assert 2 * 255 * int8.MAX_WEIGHT < 2**15
    assert (np.abs(quantized * scale - weight) <= scale / 2 * 1.001).all()


def changed_bytes(path: Path, change) -> bytes:
    model = onnx.load(path)
    change(model)
    return model.SerializeToString()


def move_weight_to_file(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def move_nested_constant_to_file(model: onnx.ModelProto) -> None:
    """The same for a constant of a graph inside a node."""
    inner = helper.make_tensor("secret", TensorProto.FLOAT, [1], [0.0])
    inner.ClearField("float_data")
    inner.data_location = TensorProto.EXTERNAL
    inner.external_data.add(key="location", value="/etc/passwd")
    graph = helper.make_graph([helper.make_node("Constant", [], ["c"], value=inner)], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["pixels"], ["never"], then_branch=graph, else_branch=graph))


def change_metadata(**fields: object):
    def change(model: onnx.ModelProto) -> None:
        document = {**json.loads(model.metadata_props[0].value), **fields}
        model.metadata_props[0].value = json.dumps(document)

    return change


def flip_weight_bit(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    data = bytearray(tensor.raw_data)
    data[5] ^= 1
    tensor.raw_data = bytes(data)


def set_metadata(value: str):
    return lambda model: setattr(model.metadata_props[0], "value", value)


def remove_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[3:]


def remove_weight_bytes(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")


DAMAGED = {
    "no bytes": (remove_weight_bytes, "damaged or was changed"),
    "unknown type": (lambda model: setattr(model.graph.initializer[0], "data_type", 999), "has an unknown type"),
    "NaN": (change_metadata(origin={"loss": float("nan")}), "not a JSON object"),
    "weight in another file": (move_weight_to_file, "another file"),
    "nested constant in another file": (move_nested_constant_to_file, "another file"),
    "foreign model": (lambda model: model.ClearField("metadata_props"), "vitrail did not write"),
    "no JSON": (set_metadata("{"), "not a JSON object"),
    "deep JSON": (set_metadata("[" * 200_000), "not a JSON object"),
    "a list": (set_metadata("[]"), "not a JSON object"),
    "future format": (change_metadata(format=99), "format 99"),
    "no config": (change_metadata(config={}), "not a complete artifact"),
    "too few classes": (change_metadata(classes=["ant"]), "1 classes"),
    "other weights": (flip_weight_bit, "damaged or was changed"),
    "other size": (change_metadata(preprocess={"image_size": [16, 16]}), "another model than its metadata"),
    "half a graph": (remove_nodes, "ONNX Runtime cannot load"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_foreign_file_is_an_error_message(name: str, saved: tuple[Classifier, Path], tmp_path: Path):
    change, message = DAMAGED[name]
    path = tmp_path / "damaged.onnx"
    path.write_bytes(changed_bytes(saved[1], change))
    with pytest.raises(VitrailError, match=message) as caught:
        OnnxClassifier.load(path)
    assert "\n" not in caught.value.sentence


def test_metadata_of_format_1_have_todays_keys(saved: tuple[Classifier, Path], tmp_path: Path):
    exported = {"max_difference": 1e-6, "alone_difference": 1e-7, "lost": 0.01, "lost_interval": [0.0, 0.02]}
    path = tmp_path / "old.onnx"
    path.write_bytes(changed_bytes(saved[1], change_metadata(format=1, exported=exported)))
    assert OnnxClassifier.load(path).exported == {
        "max_difference": 1e-6, "batch_difference": 1e-7, "accuracy_drop": 0.01, "accuracy_drop_interval": [0.0, 0.02],
    }  # fmt: skip


def test_an_unknown_device_is_wrong_use(saved: tuple[Classifier, Path]):
    for load in (
        lambda: OnnxClassifier.load(saved[1], device="gpu"),
        lambda: ModelSpec(str(saved[1]), device="gpu").device_type,
    ):
        with pytest.raises(UsageError, match="there is no device 'gpu' here"):
            load()


def test_truncated_missing_and_huge_files(saved: tuple[Classifier, Path], tmp_path: Path):
    data = saved[1].read_bytes()
    path = tmp_path / "truncated.onnx"
    prefixes = [data[: len(data) * i // 7] for i in range(1, 7)]
    for content in (b"", b"\0", b"PK\x03\x04", b"not ONNX at all", *prefixes):
        path.write_bytes(content)
        with pytest.raises(VitrailError, match=r"truncated or not an ONNX file|did not write|damaged"):
            OnnxClassifier.load(path)
    with pytest.raises(UsageError, match="there is no file"):
        OnnxClassifier.load(tmp_path / "none.onnx")
    with open(path, "wb") as huge:
        huge.truncate(3 << 30)  # a sparse file needs no disk space, and is not read
    with pytest.raises(VitrailError, match="larger than 2 GiB"):
        OnnxClassifier.load(path)


def test_pixels_of_another_size_and_outputs_that_are_not_finite(saved: tuple[Classifier, Path]):
    clf, path = saved
    loaded = OnnxClassifier.load(path)
    with pytest.raises(VitrailError, match="cannot run the model"):
        loaded.logits(torch.zeros(1, 3, 40, 40, dtype=torch.uint8))
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("head.bias"))
    bias.CopyFrom(numpy_helper.from_array(np.full(3, np.nan, dtype=np.float32), bias.name))
    add_metadata(model, clf, {"images": 0, "max_difference": 0.0, "compared_on": "nothing"})
    with pytest.raises(VitrailError, match="not finite"):
        classifier_in_memory(model, clf).logits(pixels_for(clf))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_an_error_message(
    package: str, saved: tuple[Classifier, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UsageError, match=re.escape(f"{package} is not installed ({install_hint('export')})")):
        export_program(saved[0], "onnx", tmp_path / "a.onnx", ProgramOptions(), load_probes(saved[0], None))
    assert not list(tmp_path.iterdir())


def test_wrong_use_is_an_error_before_any_work(
    saved: tuple[Classifier, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, path = saved
    model = str(path.with_suffix(".safetensors"))
    features = classifier(classes=0)
    features.save(tmp_path / "features.safetensors")
    features_model = str(tmp_path / "features.safetensors")
    before = path.read_bytes()
    for arguments, message in (
        ([model, "--format", "onnx", "--out", str(path)], "already exists"),
        ([model, "--format", "onnx", "--out", str(tmp_path / "a")], "has the wrong suffix"),
        ([model, "--format", "onyx", "--out", str(tmp_path / "a")], "there is no format"),
        ([model, "--format", "onnx", "--int8", "--map", "--out", str(tmp_path / "a.onnx")], "cannot be quantized"),
        ([model, "--format", "torch", "--int8", "--out", str(tmp_path / "a.pt2")], "for ONNX and OpenVINO"),
        ([model, "--format", "timm", "--int8", "--out", str(tmp_path / "a")], "not for --format timm"),
        ([model, "--format", "timm", "--verify-data", "digits", "--out", str(tmp_path / "a")], "not for --format timm"),
        (
            [model, "--format", "onnx", "--skip-unreadable", "--out", str(tmp_path / "a.onnx")],
            "images of --verify-data",
        ),
        ([model, "--format", "onnx", "--push", "a/b", "--out", str(tmp_path / "a.onnx")], "folders of libraries"),
        ([model, "--format", "web", "--push", "a/b", "--out", str(tmp_path / "a.html")], "folders of libraries"),
        ([model, "--format", "timm", "--private", "--out", str(tmp_path / "a")], "made by --push"),
        ([model, "--format", "triton", "--out", str(tmp_path / "a b")], "not a valid name"),
        ([features_model, "--format", "onnx", "--map", "--out", str(tmp_path / "a.onnx")], "no map of a class"),
        (
            [model, "--format", "onnx", "--verify-data", "nowhere", "--out", str(tmp_path / "a.onnx")],
            "there is no folder",
        ),
        ([str(path), "--format", "onnx", "--out", str(tmp_path / "a.onnx")], "is an ONNX file"),
    ):
        assert main(["export", *arguments, "--json"]) == 2, arguments
        output = json.loads(capsys.readouterr().out)
        assert message in output["error"], arguments
        if "libraries" in message:
            assert output["hint"] == "use --format timm, hf, torchvision"
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["features.safetensors"]
    assert (
        main(["export", model, "--format", "onnx", "--verify-data", "digits", "--out", str(tmp_path / "a.onnx")]) == 1
    )
