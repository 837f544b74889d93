"""A stranger prepares images with what an ONNX file says, without vitrail, and gets vitrail's probabilities."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps

import vitrail
from vitrail import Classifier, ViT, ViTConfig
from vitrail.data.preprocess import Preprocess
from vitrail.exporting.formats import export_program
from vitrail.exporting.onnx_classifier import OnnxClassifier
from vitrail.exporting.probes import load_probes
from vitrail.exporting.program import ProgramOptions

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
ROUNDINGS = {"floor": lambda value: int(value // 1), "round": round}
CASES: dict[str, dict[str, Any]] = {
    "pad": dict(fit="pad"),
    "crop": dict(fit="crop", crop_fraction=0.8, engine="transformers", interpolation="bicubic"),
    "stretch": dict(fit="stretch", crop_fraction=0.9, engine="pillow", trim=(3, 5)),
}


def read_words(path: Path) -> dict[str, Any]:
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return {**json.loads(entries["preparation"]), "class_names": json.loads(entries["class_names"])}


def prepare(says: dict[str, Any], file: Path) -> np.ndarray:
    """The input for a file, from the metadata alone."""
    assert says["exif_orientation"] == "applied" and says["resize"]["antialias"]  # as Pillow's resize does
    image = ImageOps.exif_transpose(Image.open(file))
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, (*says["transparent_over"], 255))
        image = Image.alpha_composite(background, image.convert("RGBA"))
    image = image.convert(says["color"])
    w, h = image.size
    height, width = says["resize"]["size"]
    scales = height / h, width / w
    if says["resize"]["rule"] == "fit_inside":
        height, width = (max(1, round(side * min(scales))) for side in (h, w))
    elif says["resize"]["rule"] == "cover":
        height, width = (height, height * w // h) if scales[0] >= scales[1] else (width * h // w, width)
    image = image.resize((width, height), FILTERS[says["resize"]["interpolation"]])
    target = says["canvas"] if "canvas" in says else says["crop"]
    to_height, to_width = target["size"]
    rounded = ROUNDINGS[target["offset"]]
    if "canvas" in says:
        canvas = Image.new(says["color"], (to_width, to_height), tuple(target["color"]))
        canvas.paste(image, (rounded((to_width - width) / 2), rounded((to_height - height) / 2)))
        image = canvas
    else:
        left, top = rounded((width - to_width) / 2), rounded((height - to_height) / 2)
        image = image.crop((left, top, left + to_width, top + to_height))
    cut = says["cut_off"]
    array = np.asarray(image.crop((0, 0, to_width - cut["right"], to_height - cut["bottom"])))
    assert says["input"] == {"name": "pixels", "layout": "NCHW", "type": "uint8", "range": [0, 255]}
    return array.transpose(2, 0, 1)[None]


def predict(path: Path, says: dict[str, Any], pixels: np.ndarray) -> dict[str, float]:
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run([says["output"]["name"]], {says["input"]["name"]: pixels})
    assert says["output"]["temperature_applied"] and not says["output"]["softmax_applied"]
    exponentials = np.exp(logits[0] - logits[0].max())
    return dict(zip(says["class_names"], (exponentials / exponentials.sum()).tolist(), strict=True))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photographs that are wide, high, transparent and rotated by EXIF."""
    from importlib.resources import as_file, files

    folder = tmp_path_factory.mktemp("images")
    with as_file(files("vitrail.exporting.sample_photos").joinpath("rocket.jpg")) as path:
        photo = Image.open(path).convert("RGB")
    photo.crop((0, 40, 160, 110)).save(folder / "wide.png")
    photo.crop((30, 0, 91, 150)).save(folder / "high.png")
    transparent = photo.crop((0, 0, 121, 90)).convert("RGBA")
    transparent.putalpha(128)
    transparent.save(folder / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.crop((0, 0, 150, 91)).save(folder / "rotated.png", exif=exif)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("case", CASES)
def test_the_words_in_the_file_are_enough(case: str, images: list[Path], tmp_path: Path):
    torch.manual_seed(1)
    vit = ViT(ViTConfig(width=32, depth=1, heads=2, mlp_width=32, patch=8, image_size=32, classes=4)).eval()
    torch.nn.init.normal_(vit.head.weight, std=0.5)
    mean, std = (0.2, 0.45, 0.7), (0.2, 0.25, 0.3)
    clf = Classifier(vit, ("a", "b", "c", "d"), Preprocess(image_size=(32, 32), mean=mean, std=std, **CASES[case]), 0.7)
    path = tmp_path / "model.onnx"
    export_program(clf, "onnx", path, ProgramOptions(), load_probes(clf, None))
    says, loaded = read_words(path), OnnxClassifier.load(path)
    differences, swapped_differences, black_differences = [], [], []
    for file in images:
        ours = {each.label: each.probability for each in clf.predict(file, top=4)}
        pixels = prepare(says, file)
        theirs = predict(path, says, pixels)
        differences.append(max(abs(ours[name] - theirs[name]) for name in ours))
        swapped = predict(path, says, pixels[:, ::-1].copy())  # what a reader gets who takes BGR for RGB
        swapped_differences.append(max(abs(ours[name] - swapped[name]) for name in ours))
        if case == "pad":
            says_black = {**says, "canvas": {**says["canvas"], "color": [0, 0, 0]}}
            black = predict(path, says, prepare(says_black, file))
            black_differences.append(max(abs(ours[name] - black[name]) for name in ours))
    assert max(differences) < 1e-3 and max(swapped_differences) > 0.02
    assert case != "pad" or max(black_differences) > 0.02, black_differences
    model = onnx.load(path)
    assert (model.producer_name, model.producer_version) == ("vitrail", vitrail.__version__)
    card = model.doc_string
    assert all(sentence in card for sentence in says["words"])
    document = json.loads({entry.key: entry.value for entry in model.metadata_props}["vitrail"])
    assert document["temperature_is_applied"] is True and loaded.temperature == 0.7
