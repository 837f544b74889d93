"""A classifier as a program of another runtime answers as it did, or is not written; a strange file is a sentence."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from vitrail.exporting.map_program import trace_map_program

import vitrail
from vitrail import Classifier, UsageError, ViT, ViTConfig, VitrailError
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.explanation import explain_batch
from vitrail.exporting import int8, onnx_format
from vitrail.exporting.onnx_classifier import OnnxClassifier
from vitrail.exporting.onnx_format import add_metadata, build_onnx_model, classifier_in_memory, export_onnx
from vitrail.exporting.program import ATTENTION, MAP, Program, ProgramOptions
from vitrail.exporting.verify import Verification, check_tolerance, load_probes, map_difference
from vitrail.model import Rotary, SinCos
from vitrail.prediction.model_spec import ModelSpec

TINY = dict(width=32, depth=1, heads=4, mlp_width=64, patch=8, image_size=32, classes=3)
SHAPES: dict[str, dict] = {  # between them every part of a model that there is
    "plain": dict(depth=2),
    "rotary, registers, gated, attention pooling, q and k normed, wide": dict(
        position=Rotary(), prefix_tokens=5, mlp="swiglu", pool="map", qk_norm=True, image_size=(24, 40), pre_norm=True,
        qkv_bias=False, layer_scale=0.5,
    ),
    "grey, sin-cos, mean normed, MLP head": dict(
        channels=1, position=SinCos(), pool="mean_norm", final_norm=False, head="mlp", mlp="gelu_tanh", prefix_tokens=0
    ),
    "features of two class tokens, another size than trained at": dict(
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
    """A classifier and the file that the command line exported from it."""
    folder = tmp_path_factory.mktemp("saved")
    clf = classifier()
    clf.save(folder / "model.safetensors")
    words = [str(folder / "model.safetensors"), "--format", "onnx", "--out", str(folder / "model.onnx"), "--quiet"]
    assert main(["export", *words]) == 0
    return clf, folder / "model.onnx"


@pytest.mark.parametrize("name", SHAPES)
def test_onnx_gives_the_same_logits_and_attention_and_int8_nearly(name: str):
    clf = classifier(**SHAPES[name])
    model = build_onnx_model(clf, ProgramOptions(attention=True))
    runner = classifier_in_memory(model, clf)
    x = pixels_for(clf)
    expected, attention = clf.logits(x), attention_of(clf, x)
    assert (runner.logits(x) - expected).abs().max() < 1e-4
    assert (runner.run(x, ATTENTION) - attention).abs().max() < 1e-5
    assert (runner.logits(x[:1]) - runner.logits(x)[:1]).abs().max() < 1e-5
    domains = {node.domain for node in model.graph.node}
    assert domains == {""}  # standard operators alone: any runtime knows them

    small_model = int8.quantize(model)
    onnx.checker.check_model(small_model)
    assert {node.domain for node in small_model.graph.node} == {""}
    small = classifier_in_memory(small_model, clf)
    assert (small.logits(x) - expected).square().mean().sqrt() < 0.1 * expected.std()
    assert (small.logits(x[:1]) - small.logits(x)[:1]).abs().max() < 1e-3  # a token's scale is its own
    integers = [node for node in small_model.graph.node if node.op_type == "MatMulInteger"]
    assert len(integers) >= 4 * clf.vit.config.depth
    left = {tensor.name: tensor for tensor in small_model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    products = [node for node in small_model.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert not [node for node in products if node.input[1] in left and node.input[0] not in left]


def differences(clf: Classifier, run) -> list[float]:
    """How far the maps of some classes are from `explain`'s, as a part of the largest value in those."""
    found = [map_difference(clf, run, pixels_for(clf), *target) for target in [(0, None), (1, None), (1, 0)]]
    assert min(largest for _, largest in found) > 1e-3
    return [apart / max(1, largest) for apart, largest in found]


def test_the_map_in_the_graph_is_explains():
    clf = classifier(depth=2, classes=2)  # two: as many as images often are
    runner = classifier_in_memory(build_onnx_model(clf, ProgramOptions(map=True)), clf)
    assert max(differences(clf, runner.run)) < 1e-5
    x = pixels_for(clf)
    each = torch.eye(2)[torch.arange(len(x)) % 2]  # another class for each image
    ours = np.stack([found.map for found in explain_batch(clf, x, target=["ant", "bee", "ant", "bee", "ant"])])
    assert np.abs(runner.run(x, MAP, each).numpy() - ours).max() < 1e-5
    assert (runner.logits(x) - clf.logits(x)).abs().max() < 1e-4


def test_every_rule_of_the_map_is_in_the_graph():
    """Gates, attention pooling and normed queries, whose gradients are balanced by rules of their own."""
    clf = classifier(**SHAPES[[*SHAPES][1]])
    graph = trace_map_program(Program(clf))
    assert max(differences(clf, lambda pixels, _, target: graph(pixels, target)[-1])) < 1e-5


def test_the_file_carries_all_that_using_it_takes(saved: tuple[Classifier, Path], capsys: pytest.CaptureFixture[str]):
    clf, path = saved
    loaded = OnnxClassifier.load(path, threads=1)
    assert (loaded.classes, loaded.preprocess, loaded.temperature) == (clf.classes, clf.preprocess, clf.temperature)
    assert loaded.origin == clf.origin
    assert loaded.exported["max_difference"] < 1e-4
    assert loaded.exported["compared_on"] == "64 images of digits"
    model = onnx.load(path)
    assert model.producer_name == "vitrail"
    assert "ant, bee, cat" in model.doc_string
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["classes"], facts["outputs"]) == (["ant", "bee", "cat"], ["logits"])
    assert abs(facts["parameters"] - sum(p.numel() for p in clf.vit.parameters())) < 200  # and some shapes
    assert main(["inspect", str(path)]) == 0
    assert "takes pixels, gives logits" in capsys.readouterr().out
    assert str(path.parent) not in str(model)  # nothing of where it was made
    names: dict = {"pixels": pixels_for(clf).numpy()}
    code = model.doc_string.split("```python\n")[1].split("```")[0]
    exec(code.replace('"model.onnx"', repr(str(path))), names)  # the card's own code
    assert np.abs(names["logits"] - clf.logits(pixels_for(clf)).numpy()).max() < 1e-4


def test_predict_and_evaluate_take_the_file(
    saved: tuple[Classifier, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clf, path = saved
    for label in clf.classes:
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(2):
            noise = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "photos" / label / f"{i}.png")
    (tmp_path / "photos" / "torn.jpg").write_bytes(b"\xff\xd8 torn")

    def said(*words: str) -> dict:
        assert main([*words, "--json", "--quiet"]) in (0, 1)
        return json.loads(capsys.readouterr().out)

    photos, ours = str(tmp_path / "photos"), str(path.with_suffix(".safetensors"))
    mine, theirs = said("predict", ours, photos), said("predict", str(path), photos, "--threads", "1")
    assert len(mine["predictions"]) == 7
    for a, b in zip(mine["predictions"], theirs["predictions"], strict=True):
        assert (a["path"], a["error"]) == (b["path"], b["error"])
        assert [p["label"] for p in a["top"]] == [p["label"] for p in b["top"]]
        assert [p["probability"] for p in a["top"]] == pytest.approx([p["probability"] for p in b["top"]], abs=1e-5)
    (tmp_path / "photos" / "torn.jpg").unlink()
    mine, theirs = said("evaluate", ours, photos), said("evaluate", str(path), photos)
    assert mine["accuracy"] == theirs["accuracy"]
    assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert main(["evaluate", str(path), photos, "--report", "--json"]) == 2
    assert "a program" in json.loads(capsys.readouterr().out)["error"]
    assert main(["explain", str(path), photos, "--json"]) == 2
    assert "predict, evaluate" in json.loads(capsys.readouterr().out)["hint"]
    assert main(["predict", str(path), photos, "--threads", "0", "--json"]) == 2


def test_triton_gets_a_folder_with_an_int8_model_and_measured_accuracy(
    saved: tuple[Classifier, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Labels are the classifier's own answers, so that its accuracy is one."""
    clf, path = saved
    generator = np.random.default_rng(0)
    for i in range(40):
        noise = (generator.random((32, 32, 3)) * generator.integers(1, 256, 3)).astype(np.uint8)
        label = clf.predict(torch.from_numpy(noise).permute(2, 0, 1))[0].label
        (tmp_path / "data" / "test" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "data" / "test" / label / f"{i}.png")
    words = ["--format", "triton", "--int8", "--attention", "--verify-data", str(tmp_path / "data")]
    model = str(path.with_suffix(".safetensors"))
    out = tmp_path / "repository" / "insects"
    assert main(["export", model, *words, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 40
    assert document["accuracy"] == 1
    assert document["lost"] == pytest.approx(1 - document["exported_accuracy"])
    assert document["lost_interval"][0] <= document["lost"] <= document["lost_interval"][1]
    assert document["int8"]["float_bytes"] > 1.3 * document["int8"]["bytes"]  # most of so small a file is its graph
    assert document["int8"]["milliseconds"] > 0
    assert 0 < document["attention_difference"] < 0.1
    assert {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()} == {
        "1/model.onnx", "config.pbtxt", "labels.txt",
    }  # fmt: skip
    assert (out / "labels.txt").read_text().split() == list(clf.classes)
    assert OnnxClassifier.load(out / "1" / "model.onnx").outputs == ("logits", "attention")
    text = (out / "config.pbtxt").read_text()
    pytest.importorskip("tritonclient.grpc", reason="it brings the form of Triton's configuration")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.name == "insects"
    assert [list(each.dims) for each in config.output] == [[3], [1, 4, 17, 17]]
    assert config.output[0].label_filename == "labels.txt"


def test_torch_export_is_loaded_again(saved: tuple[Classifier, Path], tmp_path: Path):
    clf, _ = saved
    words = [str(saved[1].with_suffix(".safetensors")), "--format", "torch", "--attention", "--quiet"]
    assert main(["export", *words, "--out", str(tmp_path / "model.pt2")]) == 0
    extra = {"vitrail.json": ""}
    module = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    x = pixels_for(clf)
    logits, attention = module(x)
    assert (logits - clf.logits(x)).abs().max() < 1e-5
    assert (attention - attention_of(clf, x)).abs().max() < 1e-5
    assert json.loads(extra["vitrail.json"])["classes"] == list(clf.classes)
    assert module(x[:1])[0].shape == (1, 3)


def test_what_does_not_agree_is_refused_with_the_figures_and_nothing_written(
    saved: tuple[Classifier, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clf, path = saved
    check = load_probes(clf, None)
    bare = onnx.load(path)

    def tampered(*_: object) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(bare)
        head = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("head.bias"))
        head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) + np.float32(0.1), head.name))
        return model

    monkeypatch.setattr(onnx_format, "build_onnx_model", tampered)
    with pytest.raises(VitrailError, match=r"differ by 5\.88e-02 .* 64 images of digits"):  # 0.1 over the temperature
        export_onnx(clf, tmp_path / "a.onnx", ProgramOptions(), check)
    monkeypatch.setattr(onnx_format, "build_onnx_model", lambda *_: bare)
    monkeypatch.setattr(int8, "MAX_WEIGHT", 1)
    with pytest.raises(VitrailError, match=r"off by \d+\.\d% of their spread"):
        export_onnx(clf, tmp_path / "b.onnx", ProgramOptions(int8=True), check)
    assert not list(tmp_path.iterdir())


def test_the_demands():
    good = Verification("x", 100, 1e-6, 1.0, 1e-6, 1e-6, 5.0)
    check_tolerance(good, exact=True)
    for worse, sentence in (
        ({"max_difference": 1e-3}, "does not agree"),
        ({"max_difference": float("nan")}, "does not agree"),
        ({"batch_difference": 1e-3}, "images beside it"),
    ):
        with pytest.raises(VitrailError, match=sentence):
            check_tolerance(Verification(**{**vars(good), **worse}), exact=True)
    rounded = {**vars(good), "max_difference": 0.2, "rms_ratio": 0.02, "accuracy": 0.8}
    check_tolerance(Verification(**{**rounded, "exported_accuracy": 0.797, "accuracy_drop": 0.003}), exact=False)
    lost = {**rounded, "exported_accuracy": 0.794, "accuracy_drop": 0.006}
    check_tolerance(
        Verification(**{**lost, "accuracy_drop_interval": (-0.01, 0.022)}), exact=False
    )  # too few images to say that any is lost
    with pytest.raises(VitrailError, match=r"costs 0\.60 points of accuracy \(0\.8000 to 0\.7940\)"):
        check_tolerance(Verification(**{**lost, "accuracy_drop_interval": (0.003, 0.009)}), exact=False)


def test_weights_as_whole_numbers_are_as_near_as_can_be_and_cannot_overflow():
    weight = np.random.default_rng(0).normal(size=(96, 40)).astype(np.float32) * np.logspace(
        -6, 2, 40, dtype=np.float32
    )
    weight[:, 7] = 0
    whole, scale = int8.quantize_weight(weight)
    assert np.abs(whole).max() == int8.MAX_WEIGHT
    assert 2 * 255 * int8.MAX_WEIGHT < 2**15
    assert (np.abs(whole * scale - weight) <= scale / 2 * 1.001).all()


def altered(path: Path, change) -> bytes:
    model = onnx.load(path)
    change(model)
    return model.SerializeToString()


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def hidden_external(model: onnx.ModelProto) -> None:
    """The same in a constant inside a graph inside a node."""
    inner = helper.make_tensor("secret", TensorProto.FLOAT, [1], [0.0])
    inner.ClearField("float_data")
    inner.data_location = TensorProto.EXTERNAL
    inner.external_data.add(key="location", value="/etc/passwd")
    graph = helper.make_graph([helper.make_node("Constant", [], ["c"], value=inner)], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["pixels"], ["never"], then_branch=graph, else_branch=graph))


def redescribed(**fields: object):
    def change(model: onnx.ModelProto) -> None:
        document = {**json.loads(model.metadata_props[0].value), **fields}
        model.metadata_props[0].value = json.dumps(document)

    return change


def other_weights(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    data = bytearray(tensor.raw_data)
    data[5] ^= 1
    tensor.raw_data = bytes(data)


def metadata(value: str):
    return lambda model: setattr(model.metadata_props[0], "value", value)


def without_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[3:]


def without_bytes(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")


HOSTILE = {
    "no bytes": (without_bytes, "damaged or was changed"),
    "no type": (lambda model: setattr(model.graph.initializer[0], "data_type", 999), "of no known type"),
    "no number": (redescribed(origin={"loss": float("nan")}), "not a JSON object"),
    "another file": (external, "another file"),
    "hidden in a branch": (hidden_external, "another file"),
    "a foreign model": (lambda model: model.ClearField("metadata_props"), "vitrail did not write"),
    "no JSON": (metadata("{"), "not a JSON object"),
    "deep JSON": (metadata("[" * 200_000), "not a JSON object"),
    "a list": (metadata("[]"), "not a JSON object"),
    "of the future": (redescribed(format=99), "format 99"),
    "no config": (redescribed(config={}), "not a whole artefact"),
    "too few classes": (redescribed(classes=["ant"]), "names 1 classes for 3 outputs"),
    "other weights": (other_weights, "damaged or was changed"),
    "another size": (redescribed(preprocess={"image_size": [16, 16]}), "another model than the one in it"),
    "half a graph": (without_nodes, "ONNX Runtime does not take"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_strange_file_is_a_sentence(name: str, saved: tuple[Classifier, Path], tmp_path: Path):
    change, sentence = HOSTILE[name]
    path = tmp_path / "strange.onnx"
    path.write_bytes(altered(saved[1], change))
    with pytest.raises(VitrailError, match=sentence) as caught:
        OnnxClassifier.load(path)
    assert "\n" not in caught.value.sentence


def test_a_device_of_no_name_is_wrong_use(saved: tuple[Classifier, Path]):
    for ask in (
        lambda: OnnxClassifier.load(saved[1], device="gpu"),
        lambda: ModelSpec(str(saved[1]), device="gpu").device_type,
    ):
        with pytest.raises(UsageError, match="there is no device 'gpu' here"):
            ask()


def test_half_a_file_and_what_is_none(saved: tuple[Classifier, Path], tmp_path: Path):
    whole = saved[1].read_bytes()
    path = tmp_path / "torn.onnx"
    for data in (b"", b"\0", b"PK\x03\x04", b"not ONNX at all", *(whole[: len(whole) * i // 7] for i in range(1, 7))):
        path.write_bytes(data)
        with pytest.raises(VitrailError, match=r"cut short or no ONNX file|did not write|damaged"):
            OnnxClassifier.load(path)
    with pytest.raises(UsageError, match="there is no file"):
        OnnxClassifier.load(tmp_path / "none.onnx")
    with open(path, "wb") as huge:
        huge.truncate(3 << 30)  # sparse: it takes no room, and is not read
    with pytest.raises(VitrailError, match="larger than 2 GiB"):
        OnnxClassifier.load(path)


def test_pixels_of_another_size_and_answers_that_are_no_numbers(saved: tuple[Classifier, Path]):
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
def test_a_missing_package_is_a_sentence(
    package: str, saved: tuple[Classifier, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UsageError, match=rf"{package} is not installed .*vitrail\[export\]"):
        export_onnx(saved[0], tmp_path / "a.onnx", ProgramOptions(), load_probes(saved[0], None))
    assert not list(tmp_path.iterdir())


def test_wrong_use_is_said_before_any_work(
    saved: tuple[Classifier, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, path = saved
    model = str(path.with_suffix(".safetensors"))
    features = classifier(classes=0)
    features.save(tmp_path / "features.safetensors")
    nameless = str(tmp_path / "features.safetensors")
    before = path.read_bytes()
    for words, sentence in (
        ([model, "--format", "onnx", "--out", str(path)], "exists already"),
        ([model, "--format", "onnx", "--out", str(tmp_path / "a")], "not named as what it will be"),
        ([model, "--format", "onyx", "--out", str(tmp_path / "a")], "there is no format"),
        ([model, "--format", "onnx", "--int8", "--map", "--out", str(tmp_path / "a.onnx")], "not quantised"),
        ([model, "--format", "torch", "--int8", "--out", str(tmp_path / "a.pt2")], "for ONNX files"),
        ([model, "--format", "timm", "--int8", "--out", str(tmp_path / "a")], "not for --format timm"),
        ([model, "--format", "timm", "--verify-data", "digits", "--out", str(tmp_path / "a")], "not for --format timm"),
        ([model, "--format", "onnx", "--skip-unreadable", "--out", str(tmp_path / "a.onnx")], "the images of --check"),
        ([model, "--format", "onnx", "--push", "a/b", "--out", str(tmp_path / "a.onnx")], "folders of libraries"),
        ([model, "--format", "web", "--push", "a/b", "--out", str(tmp_path / "a.html")], "folders of libraries"),
        ([model, "--format", "timm", "--private", "--out", str(tmp_path / "a")], "made by --push"),
        ([model, "--format", "triton", "--out", str(tmp_path / "a b")], "no name for a model"),
        ([nameless, "--format", "onnx", "--map", "--out", str(tmp_path / "a.onnx")], "no class's map"),
        (
            [model, "--format", "onnx", "--verify-data", "nowhere", "--out", str(tmp_path / "a.onnx")],
            "there is no folder",
        ),
        ([str(path), "--format", "onnx", "--out", str(tmp_path / "a.onnx")], "is a program"),
    ):
        assert main(["export", *words, "--json"]) == 2, words
        said = json.loads(capsys.readouterr().out)
        assert sentence in said["error"], words
        if "libraries" in sentence:
            assert said["hint"] == "use --format timm, hf, torchvision"
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["features.safetensors"]
    assert (
        main(["export", model, "--format", "onnx", "--verify-data", "digits", "--out", str(tmp_path / "a.onnx")]) == 1
    )
