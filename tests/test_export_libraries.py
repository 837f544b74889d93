"""Exports to timm, transformers and torchvision: same outputs there, and the same model when loaded again."""

import json
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2.functional import to_pil_image

import vitrail
from vitrail import Classifier, UsageError, ViT, ViTConfig, VitrailError
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.exporting.libraries import LIBRARIES, export_library, make_probe_images
from vitrail.model.config import Learned, NoPosition, Rotary, SinCos

TINY = dict(width=32, depth=2, heads=4, mlp_width=64, patch=8, image_size=32, classes=3)
PLAIN: dict = {}
DISTILLED = dict(pool="cls+dist", prefix_tokens=2)
REGISTERS = dict(prefix_tokens=5, layer_scale=0.1)
ROTARY = dict(position=Rotary(base=50.0), prefix_tokens=5, norm_eps=1e-5)
EXPORTS = {  # the fields that differ from the tiny ViT, and the formats that have it
    "plain": (PLAIN, ("timm", "hf", "torchvision")),
    "features": ({"classes": 0}, ("timm", "hf")),
    "sin-cos": ({"position": SinCos()}, ("timm", "hf", "torchvision")),
    "no position": ({"position": NoPosition()}, ("timm", "hf", "torchvision")),
    "other resizing": ({"position": Learned(antialias=False, offset=0.1)}, ("timm", "hf", "torchvision")),
    "tanh": ({"mlp": "gelu_tanh"}, ("timm", "hf")),
    "other epsilon": ({"norm_eps": 1e-5}, ("timm", "hf", "torchvision")),
    "tiny epsilon": ({"norm_eps": 1e-12}, ("timm", "hf", "torchvision")),
    "no qkv bias": ({"qkv_bias": False}, ("timm", "hf")),
    "q and k normalized": ({"qk_norm": True}, ("timm",)),
    "layer scale": ({"layer_scale": 0.1}, ("timm", "hf")),
    "registers": (REGISTERS, ("timm", "hf")),
    "registers, mean": ({**REGISTERS, "pool": "mean"}, ("timm", "hf")),
    "both": ({"pool": "cls+mean"}, ("hf",)),
    "mean": ({"pool": "mean"}, ("timm", "hf")),
    "mean, no token": ({"pool": "mean", "prefix_tokens": 0}, ("timm", "hf")),
    "mean, normalized": ({"pool": "mean_norm", "final_norm": False}, ("timm",)),
    "attention pooling": ({"pool": "map", "prefix_tokens": 0, "classes": 0}, ("timm", "hf")),
    "distilled": (DISTILLED, ("timm", "hf")),
    "swiglu": ({"mlp": "swiglu", "mlp_width": 88}, ("timm", "hf")),
    "rotary": ({**ROTARY, "qkv_bias": False}, ("timm",)),
    "rotary features": ({**ROTARY, "qkv_bias": False, "layer_scale": 0.1, "classes": 0}, ("timm", "hf")),
    "rotary, swiglu": ({**ROTARY, "qkv_bias": False, "classes": 0, "mlp": "swiglu"}, ("timm", "hf")),
    "no last norm": ({"final_norm": False}, ("timm",)),
    "MLP head": ({"head": "mlp"}, ("torchvision",)),
    "not square": ({"image_size": (24, 40)}, ("timm",)),
    "gray": ({"channels": 1}, ("timm", "hf")),
}
ACCEPTED = [(name, format) for name, (_, formats) in EXPORTS.items() for format in formats]
REFUSED = [(name, format) for name in EXPORTS for format in LIBRARIES if (name, format) not in ACCEPTED]


def make_classifier(**options: object) -> Classifier:
    config = ViTConfig(**{**TINY, **options})
    vit = ViT(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    size = config.image_size if isinstance(config.image_size, tuple) else (config.image_size,) * 2
    names = ("ant", "bee", "cat")[: config.classes]
    half = (0.5,) * config.channels
    return Classifier(vit, names, Preprocess(image_size=size, fit="crop", crop_fraction=0.8, mean=half, std=half), 1.7)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("name", "format"), ACCEPTED)
def test_the_library_and_the_reloaded_classifier_have_the_same_logits(name: str, format: str, tmp_path: Path):
    if format == "hf":
        pytest.importorskip("transformers", minversion="5")
    clf = make_classifier(**EXPORTS[name][0])
    exported = export_library(clf, format, tmp_path / "exported")
    assert exported.comparison is not None
    assert exported.comparison["max_difference"] < (1e-4 if name == "tiny epsilon" else 2e-5)  # timm's own is 1e-6
    if format == "torchvision":
        return  # its folder has no config.json of a kind that others read
    again = vitrail.load(tmp_path / "exported")
    assert again.classes == clf.classes
    x = make_probe_images(clf)
    with torch.inference_mode():
        expected = clf.vit(x) / clf.temperature if clf.vit.config.classes else clf.vit(x)
        assert (again.vit(x) - expected).abs().max() < 1e-4
    for field in ("image_size", "fit", "interpolation", "mean", "std"):
        assert getattr(again.preprocess, field) == getattr(clf.preprocess, field), field
    assert again.preprocess.crop_fraction == pytest.approx(clf.preprocess.crop_fraction)


@pytest.mark.parametrize(("name", "format"), REFUSED)
def test_a_model_that_a_library_does_not_have_is_refused_and_nothing_is_written(name: str, format: str, tmp_path: Path):
    with pytest.raises(VitrailError) as caught:
        export_library(make_classifier(**EXPORTS[name][0]), format, tmp_path / "exported")
    assert caught.value.sentence
    assert not list(tmp_path.iterdir())


def export_and_reload(fit: str, format: str, folder: Path, **options: object) -> tuple[Classifier, Classifier, str]:
    """Returns a classifier with this preprocessing, the one loaded from its folder, and the model card."""
    clf = make_classifier(**options)
    clf = replace(clf, preprocess=replace(clf.preprocess, fit=fit, crop_fraction=1.0, engine="pillow"))
    return clf, vitrail.load(export_library(clf, format, folder).folder), (folder / "README.md").read_text()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("shape", [(60, 20), (20, 61), (33, 32)])
def test_timm_and_the_reloaded_classifier_pad_in_the_same_way(shape: tuple[int, int], tmp_path: Path):
    import timm

    clf, again, _ = export_and_reload("pad", "timm", tmp_path / "exported")
    picture = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    ours = clf.preprocess.normalize(clf.preprocess.fit_image(picture)[None])[0]
    assert again.preprocess == clf.preprocess
    model = timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    assert (transform(to_pil_image(picture)) - ours).abs().max() < 1e-6
    document = json.loads((tmp_path / "exported/config.json").read_text())
    document["pretrained_cfg"]["crop_pct"] = 0.9
    (tmp_path / "exported/config.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="'border' with crop_pct 0.9 is not known"):
        vitrail.load(tmp_path / "exported")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("channels", [1, 3])
def test_transformers_preprocesses_square_images_alike_and_a_note_says_that_it_cannot_pad(
    channels: int, tmp_path: Path
):
    transformers = pytest.importorskip("transformers", minversion="5")
    clf, _, card = export_and_reload("pad", "hf", tmp_path / "exported", channels=channels)
    assert "Note: this classifier pads" in card
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "exported")
    picture = torch.randint(0, 256, (channels, 32, 32), dtype=torch.uint8)
    theirs = processor(to_pil_image(picture), return_tensors="pt")["pixel_values"]
    assert (theirs - clf.preprocess.normalize(clf.preprocess.fit_image(picture)[None])).abs().max() < 1e-5
    assert "Note:" not in export_and_reload("stretch", "hf", tmp_path / "stretched")[2]


def test_a_key_bias_is_refused_for_dinov3(tmp_path: Path):
    with pytest.raises(VitrailError, match=r"qkv\.bias has no counterpart there"):
        export_library(make_classifier(**ROTARY, classes=0), "hf", tmp_path / "exported")


def test_an_export_with_other_outputs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def convert_wrongly(clf, config, state):
        return timm.convert(clf, config, {**state, "head.bias": state["head.bias"] + 0.01})

    timm = LIBRARIES["timm"]
    monkeypatch.setitem(LIBRARIES, "timm", replace(timm, convert=convert_wrongly))
    with pytest.raises(VitrailError, match="does not agree"):
        export_library(make_classifier(), "timm", tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_the_command_line_prints_the_comparison_and_does_not_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make_classifier().save(tmp_path / "model.safetensors")
    arguments = [
        "export",
        str(tmp_path / "model.safetensors"),
        "--format",
        "timm",
        "--out",
        str(tmp_path / "exported"),
        "--json",
    ]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] == str(tmp_path / "exported")
    assert document["max_difference"] < 2e-5
    assert document["agreement"] == 1
    assert document["images"] == 12
    assert "not_compared" not in document
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "ant, bee, cat" in card
    assert "timm.create_model" in card
    assert "Needs timm 1.0.16 or newer" in card
    assert "on 8 images of noise and 4 photographs: largest difference" in card
    assert main(arguments) == 2
    assert "already exists" in json.loads(capsys.readouterr().out)["error"]
    arguments[3] = "tim"
    assert main(arguments) == 2
    assert "did you mean timm" in json.loads(capsys.readouterr().out)["hint"]


def test_the_comparison_includes_photographs(tmp_path: Path):
    clf = make_classifier()
    photo = resources.files("vitrail.exporting.sample_photos").joinpath("rocket.jpg")
    expected = clf.preprocess.normalize(clf.read_image(str(photo))[None])[0]
    assert any(torch.equal(image, expected) for image in make_probe_images(clf))


def test_without_the_library_the_folder_is_written_and_marked_as_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    make_classifier().save(tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it raises ImportError
    arguments = ["export", str(tmp_path / "model.safetensors"), "--format", "hf"]
    assert main([*arguments, "--out", str(tmp_path / "a"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["not_compared"] == "transformers is not installed here"
    assert document["max_difference"] is document["agreement"] is document["compared_on"] is None
    card = (tmp_path / "a" / "README.md").read_text()
    assert "were not compared with vitrail's: transformers was not installed" in card
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 0
    assert "not compared: transformers is not installed here" in capsys.readouterr().out


def test_the_load_code_runs(tmp_path: Path):
    clf = make_classifier()
    for format in ("timm", "hf", "torchvision"):
        exported = export_library(clf, format, tmp_path / format)
        x = make_probe_images(clf)
        names = {}
        if format == "torchvision":
            document = json.loads((tmp_path / format / "torchvision.json").read_text())
            names = {"arguments": document["arguments"], "norm_eps": document["norm_eps"]}
            exec("import torchvision, safetensors.torch\nfrom functools import partial\nfrom torch import nn", names)
            exec(exported.load_code, names)
            model = names["vit"]
        else:
            exec("import timm, transformers", names)
            model = eval(exported.load_code, names)
        with torch.inference_mode():
            theirs = model(x)
        theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.logits
        assert (theirs - clf.vit(x) / clf.temperature).abs().max() < 2e-5


def test_an_exported_file_with_a_transposed_tensor_is_refused(tmp_path: Path):
    export_library(make_classifier(), "hf", tmp_path / "exported")
    path = tmp_path / "exported" / "model.safetensors"
    tensors = load_file(path)
    name = "vit.encoder.layer.1.output.dense.weight"
    save_file({**tensors, name: tensors[name].T.contiguous()}, path)
    with pytest.raises(VitrailError, match=r"expected \(32, 64\)"):
        vitrail.load(tmp_path / "exported")
