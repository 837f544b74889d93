"""One file is a classifier: it comes back as it was, or not at all."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import vitrail
from vitrail.cli import main
from vitrail.errors import UsageError, VitrailError
from vitrail.files import write_atomically
from vitrail.model.config import Rotary
from vitrail.weights.bundled import bundled_classifiers, read_bundled_card


@pytest.fixture
def file(run: vitrail.Run, tmp_path: Path) -> Path:
    path = tmp_path / "c.safetensors"
    run.classifier.save(path)
    return path


def rewritten(file: Path, change) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    document = json.loads(metadata["vitrail"])
    change(document, tensors)
    save_file(tensors, file, {**metadata, "vitrail": json.dumps(document)})


def test_it_comes_back_as_it_was(run: vitrail.Run, file: Path):
    again = vitrail.load(file)
    assert again.classes == run.classifier.classes
    assert again.preprocess == run.classifier.preprocess
    assert again.vit.config == run.classifier.vit.config
    assert again.origin == run.classifier.origin
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(again.logits(pixels), run.classifier.logits(pixels))


def test_it_says_where_it_came_from(run: vitrail.Run):
    origin = vitrail.load(run.folder).origin
    assert origin["metrics"]["test"]["accuracy"] == run.result["test"]["accuracy"]
    assert origin["recipe"]["name"] == "small"
    assert origin["data"]["images"] == {"train": 54, "validation": 6, "test": 24}
    assert len(origin["data"]["fingerprint"]) == 64


def test_every_kind_of_model_comes_back(tmp_path: Path, run: vitrail.Run):
    config = vitrail.ViTConfig(
        width=16, depth=1, heads=2, mlp_width=8, patch=4, image_size=(8, 12), prefix_tokens=3,
        position=Rotary(base=7.0), pool="map", mlp="swiglu", layer_scale=0.1, qk_norm=True, head="mlp", classes=3,
    )  # fmt: skip
    clf = vitrail.Classifier(vitrail.ViT(config), ("a", "b", "ü"), run.classifier.preprocess, temperature=1.5)
    clf.save(tmp_path / "x.safetensors")
    again = vitrail.load(tmp_path / "x.safetensors")
    assert (again.vit.config, again.classes, again.temperature) == (config, ("a", "b", "ü"), 1.5)


def test_temperature_divides_the_logits(run: vitrail.Run):
    from dataclasses import replace

    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(
        replace(run.classifier, temperature=2.0).logits(pixels) * 2, run.classifier.logits(pixels)
    )


def test_cut_anywhere_it_is_refused(file: Path):
    content = file.read_bytes()
    for cut in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(VitrailError, match=r"c\.safetensors is truncated"):
            vitrail.load(file)


def test_a_flipped_bit_is_noticed(file: Path):
    content = bytearray(file.read_bytes())
    content[-100] ^= 4
    file.write_bytes(content)
    with pytest.raises(VitrailError, match="checksum"):
        vitrail.load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(format=99), "format 99"),
        (lambda d, t: d.pop("classes"), "not a complete artifact"),
        (lambda d, t: d["classes"].append("x"), "names 4 classes for 3"),
        (lambda d, t: d["config"].update(wdith=3), "wdith.*did you mean width"),
        (lambda d, t: d["config"].update(heads=5), "does not divide"),
        (lambda d, t: d["config"].update(width="wide"), "width"),
        (lambda d, t: d["preprocess"].update(fit="bend"), "bend"),
        (lambda d, t: t.pop("norm.weight"), "checksum"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(file: Path, change, message: str):
    rewritten(file, change)
    with pytest.raises(VitrailError, match=message):
        vitrail.load(file)


def test_tensors_must_be_all_and_nothing_else(file: Path):
    from vitrail.weights.artifact import weights_sha256

    def swap(document, tensors):
        tensors["strange"] = tensors.pop("norm.weight")
        document["sha256"] = weights_sha256(tensors)

    rewritten(file, swap)
    with pytest.raises(VitrailError, match=r"lacks the tensor norm\.weight"):
        vitrail.load(file)


def test_what_is_not_an_artefact_is_said_to_be_so(tmp_path: Path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(VitrailError, match="matches no known checkpoint"):
        vitrail.load(tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="no run folder or artifact"):
        vitrail.load(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"has no classifier\.safetensors"):
        vitrail.load(tmp_path)


def test_no_pickle_is_ever_opened(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    import pickle

    for name in ("model.pt", "model.safetensors", "classifier.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(VitrailError):
            vitrail.load(tmp_path / name)
    with pytest.raises(VitrailError):
        vitrail.load(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_write_that_fails_leaves_the_old_file(file: Path):
    before = file.read_bytes()

    def half(aside: Path) -> None:
        aside.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(VitrailError, match="No space left"):
        write_atomically(file, half)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d, t: d["config"].update(image_size=10**9 // 2 * 2),
        lambda d, t: d["config"].update(width=10**30, heads=1),
        lambda d, t: d["config"].update(depth=10**7),
        lambda d, t: d["config"].update(norm_eps="x"),
        lambda d, t: d["config"].update(dropout=float("nan")),
        lambda d, t: d["preprocess"].update(image_size=[0, 0]),
        lambda d, t: d["preprocess"].update(image_size=[17, 17]),
        lambda d, t: d["preprocess"].update(image_size=[10**6, 10**6]),
        lambda d, t: d["preprocess"].update(mean=[0.5], std=[0.5]),
        lambda d, t: d["preprocess"].update(mean=["a", "b", "c"]),
        lambda d, t: d["preprocess"].update(min_size="x"),
        lambda d, t: d.update(origin=[]),
        lambda d, t: d.update(classes="abc"),
        lambda d, t: d.update(classes=["a", "a", "b"]),
        lambda d, t: d.update(temperature=-1),
        lambda d, t: d.update(temperature=0),
        lambda d, t: d.update(temperature=float("nan")),
        lambda d, t: d["origin"].update(loss=float("nan")),
        lambda d, t: d["origin"].update(loss=-float("inf")),
    ],
)
def test_a_hostile_description_is_a_sentence_with_the_files_name(file: Path, change):
    rewritten(file, change)
    with pytest.raises(VitrailError, match=r"c\.safetensors") as caught:
        vitrail.load(file)
    assert caught.value.exit_code == 1


ORIGINS = [
    {"metrics": []},
    {"metrics": {"test": {}}},
    {"metrics": {"test": {"accuracy": "high", "images": 3}}},
    {"metrics": {"test": {"accuracy": 0.5, "images": 3, "accuracy_interval": [0.1]}}},
    {"calibration": {"x": 1}},
    {"calibration": None},
    {"data": "x"},
    {"data": {"split": {"test": 0.1}}},
    {"data": {"images": {"train": "many"}}},
    {"recipe": ["small"]},
]


@pytest.mark.parametrize("origin", ORIGINS, ids=str)
def test_an_origin_of_a_strangers_making_is_a_sentence_for_every_verb(
    run: vitrail.Run, file: Path, colors: Path, capsys, origin
):
    rewritten(file, lambda document, tensors: document.update(origin=origin))
    out = file.parent / "out"
    verbs = (["inspect", file], ["evaluate", file, colors], ["export", file, "--format", "web", "--out", out])
    for arguments in verbs:
        assert main([*map(str, arguments), "--json"]) == 1
        assert "its origin cannot be read" in json.loads(capsys.readouterr().out)["error"]
    assert not out.exists()
    with pytest.raises(VitrailError, match="its origin cannot be read"):
        replace(run.classifier, origin=origin).save(out)


def test_what_json_has_no_number_for_is_not_written(run: vitrail.Run, tmp_path: Path):
    with pytest.raises(VitrailError, match="NaN or infinity"):
        replace(run.classifier, origin={"loss": float("nan")}).save(tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())


def test_nesting_without_end_is_refused(file: Path):
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, {"vitrail": "[" * 200_000})
    with pytest.raises(VitrailError, match=r"c\.safetensors"):
        vitrail.load(file)


def test_weights_that_are_not_finite_are_said_to_be_so(run: vitrail.Run, file: Path):
    clf = vitrail.load(file)
    clf.vit.head.weight.data[0, 0] = float("nan")
    with pytest.raises(VitrailError, match="not finite"):
        clf.predict(torch.zeros(3, 16, 16, dtype=torch.uint8))
    clf.save(file)
    with pytest.raises(VitrailError, match=r"head\.weight has 1 values that are NaN"):
        vitrail.load(file)


def test_a_description_without_end_is_not_parsed(file: Path):
    rewritten(file, lambda document, tensors: document["origin"].update(filler="x" * (17 << 20)))
    with pytest.raises(VitrailError, match="longer than 16,777,216 bytes"):
        vitrail.load(file)


@pytest.mark.parametrize("mean", [[3.0] * 3, [-2.0] * 3])
def test_a_mean_beyond_the_colors_still_pads(file: Path, mean: list[float]):
    rewritten(file, lambda document, tensors: document["preprocess"].update(mean=mean))
    vitrail.load(file).predict(torch.zeros(3, 7, 30, dtype=torch.uint8))


@pytest.mark.parametrize("changes", [{"mean": [1e308] * 3}, {"std": [1e-300] * 3}, {"std": [0.0] * 3}, {"mean": []}])
def test_a_normalisation_that_is_a_mistake_is_refused(file: Path, changes: dict):
    rewritten(file, lambda document, tensors: document["preprocess"].update(changes))
    with pytest.raises(VitrailError, match="not valid for normalization"):
        vitrail.load(file)


def test_in_half_precision_it_is_half_the_file_and_nearly_the_same(run: vitrail.Run, file: Path, tmp_path: Path):
    half = tmp_path / "half.safetensors"
    run.classifier.save(half, half=True)
    assert half.stat().st_size < 0.7 * file.stat().st_size
    again = vitrail.load(half)
    assert all(tensor.dtype == torch.float32 for tensor in again.vit.state_dict().values())
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(again.logits(pixels), run.classifier.logits(pixels), atol=2e-2, rtol=0)
    again.save(tmp_path / "twice.safetensors", half=True)  # nothing is lost the second time
    for name, tensor in vitrail.load(tmp_path / "twice.safetensors").vit.state_dict().items():
        assert torch.equal(tensor, again.vit.state_dict()[name])


def test_weights_beyond_half_precision_are_not_written(run: vitrail.Run, tmp_path: Path):
    huge = vitrail.load(run.folder)
    huge.vit.state_dict()["head.weight"][0, 0] = 1e6
    with pytest.raises(VitrailError, match="too large for float16"):
        huge.save(tmp_path / "half.safetensors", half=True)
    assert not (tmp_path / "half.safetensors").exists()


def test_a_classifier_comes_with_the_package():
    assert "cifar10-small" in bundled_classifiers()
    for name, path in bundled_classifiers().items():
        assert path.stat().st_size < 6 << 20
        classifier = vitrail.load(name)
        assert classifier.predict(torch.zeros(3, 32, 32, dtype=torch.uint8), top=1)[0].label in classifier.classes
        assert f"{classifier.origin['recipe']['epochs']} epochs" in read_bundled_card(name)
    animals, machines = ["bird", "cat", "deer", "dog", "frog", "horse"], ["airplane", "automobile", "ship", "truck"]
    assert sorted(vitrail.load("cifar10-small").classes) == sorted(animals + machines)


def test_a_file_of_that_name_comes_before_the_packages(run: vitrail.Run, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.folder, "cifar10-small")
    assert vitrail.load("cifar10-small").classes == run.classifier.classes


def test_a_slip_of_the_pen_is_told_the_packages_name():
    with pytest.raises(UsageError) as caught:
        vitrail.load("cifar10-smal")
    assert "cifar10-small" in (caught.value.hint or "")


def test_what_is_too_large_is_not_put_into_the_package(run: vitrail.Run, colors: Path, tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "tools")
    import make_bundled

    box = tmp_path / "boxed"
    box.mkdir()
    monkeypatch.setattr(make_bundled, "BUNDLED", box)
    with monkeypatch.context() as small:
        small.setattr(make_bundled, "MAX_BYTES", 1000)
        with pytest.raises(SystemExit, match="more than 1,000"):
            make_bundled.main(str(run.folder), str(colors), "odd")
    assert [path.name for path in tmp_path.rglob("*")] == ["boxed"]
    make_bundled.main(str(run.folder), str(colors), "odd")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["boxed", "odd.md", "odd.safetensors"]
    assert "of the 24 test images" in (box / "odd.md").read_text(encoding="utf-8")


def test_logits_restore_the_mode_of_each_module_and_set_no_other(run: vitrail.Run, monkeypatch: pytest.MonkeyPatch):
    """Switching every module to eval mode at each call took a twentieth of the time of one small image."""
    clf = vitrail.load(run.folder)
    size = clf.preprocess.image_size
    x = torch.zeros(1, clf.preprocess.channels, *size, dtype=torch.uint8)
    names: list[str] = []
    set_attribute = nn.Module.__setattr__

    def count_and_set(module: nn.Module, name: str, value: object) -> None:
        names.append(name)
        set_attribute(module, name, value)

    monkeypatch.setattr(nn.Module, "__setattr__", count_and_set)
    clf.logits(x)
    assert "training" not in names
    clf.vit.blocks[0].train()
    names.clear()
    clf.logits(x)
    assert names.count("training") == 2 * len(list(clf.vit.blocks[0].modules()))  # to eval mode, and back
    assert all(module.training for module in clf.vit.blocks[0].modules()) and not clf.vit.blocks[1].training


def test_loading_and_predicting_does_not_import_the_compiler_of_torch(prepared_vitrail: list[str]):
    """A draw on the meta device would: 900 modules, more than a second of CPU time, and 140 MB in every process."""
    code = (
        "import sys, numpy, vitrail; clf = vitrail.load('cifar10-small'); "
        "clf.predict(numpy.zeros((32, 32, 3), numpy.uint8)); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([*prepared_vitrail, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
