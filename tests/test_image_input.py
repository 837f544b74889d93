"""Images in memory: PIL images, arrays, tensors, bytes and lists of them have the same answer as their file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail import UsageError
from vitrail.classifier import BaseClassifier
from vitrail.data.decode import ImageError
from vitrail.data.image_input import to_pixels

OLD = Path(__file__).parent / "format1"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "x.png"
    Image.fromarray(PIXELS).save(path)
    return path


@pytest.fixture(scope="module", params=["torch", "onnx"])
def classifier(request: pytest.FixtureRequest) -> BaseClassifier:
    return vitrail.load_any("cifar10-small" if request.param == "torch" else OLD / "tiny.onnx")


def test_every_kind_of_image_has_the_answer_of_its_file(classifier: BaseClassifier, file: Path):
    expected = classifier.predict(file)
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    kinds = [
        str(file), file.read_bytes(), Image.open(file), PIXELS, PIXELS / 255, (PIXELS / 255).astype(np.float32),
        tensor, tensor / 255, tensor.to(torch.float64) / 255, PIXELS[::1, ::-1][:, ::-1],
    ]  # fmt: skip
    for image in kinds:
        assert classifier.predict(image) == expected, type(image)
    answers = classifier.predict(kinds, top=2)
    assert len(answers) == len(kinds)
    for answer in [*answers, *classifier.predict(np.stack([PIXELS] * 3), top=2), *classifier.predict(tensor[None], 2)]:
        assert [each.label for each in answer] == [each.label for each in expected[:2]]
        assert answer[0].probability == pytest.approx(expected[0].probability, abs=1e-5)
    assert classifier.predict([]) == []


def test_many_images_are_computed_in_several_batches(classifier: BaseClassifier, file: Path):
    answers = classifier.predict([file] * 70, top=1)
    assert len(answers) == 70
    assert {answer[0].label for answer in answers} == {classifier.predict(file)[0].label}


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pil_image_has_the_pixels_of_its_file(mode: str, channels: int, tmp_path: Path):
    deep = {"I;16": PIXELS[..., 0].astype(np.uint16) * 257, "F": PIXELS[..., 0].astype(np.float32) / 255}
    image = Image.fromarray(deep[mode]) if mode in deep else Image.fromarray(PIXELS).convert(mode)
    path = tmp_path / f"x.{'tif' if mode in ('CMYK', 'F', 'I;16') else 'png'}"
    (image.convert("RGB") if mode == "YCbCr" else image).save(path)
    assert torch.equal(to_pixels(image, channels), to_pixels(path, channels))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_pil_image_whose_white_is_not_known_is_refused_as_its_file_is(mode: str, tmp_path: Path):
    image = Image.fromarray(PIXELS[..., 0]).convert(mode)  # 0 to 255, in 16 or 32 bits or as floats
    image.save(tmp_path / "x.tif")
    for each in (image, tmp_path / "x.tif"):
        with pytest.raises(ImageError, match="8 bits"):
            to_pixels(each, 3)


def test_rotation_and_transparency_are_those_of_the_file(tmp_path: Path):
    image = Image.fromarray(PIXELS).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    expected = to_pixels(tmp_path / "x.png", 3)
    assert expected.shape == (3, 50, 40)
    assert torch.equal(to_pixels(Image.open(tmp_path / "x.png"), 3), expected)


def test_gray_color_and_transparent_arrays_have_the_channels_of_the_model():
    gray, alpha = PIXELS[..., 0], np.concatenate([PIXELS, PIXELS[..., :1]], axis=2)
    assert to_pixels(gray, 3).shape == to_pixels(alpha, 3).shape == (3, 40, 50)
    assert to_pixels(PIXELS, 1).shape == to_pixels(alpha, 1).shape == (1, 40, 50)
    assert torch.equal(to_pixels(gray, 3)[1], torch.from_numpy(gray))


REFUSED = {
    "normalized": (torch.full((3, 20, 20), -0.5), "floats must be from 0 to 1, .* these are from -0.5"),
    "0 to 255 in floats": (np.full((20, 20, 3), 200.0), "floats must be from 0 to 1"),
    "NaN": (torch.full((3, 20, 20), float("nan")), "floats must be from 0 to 1"),
    "16 bits": (np.zeros((20, 20, 3), np.int16), "pixels must be uint8 or floats from 0 to 1, not int16"),
    "objects": (np.zeros((20, 20, 3), object), "an array of object has no pixels"),
    "channels first": (np.zeros((3, 20, 20), np.uint8), r"an array must be \(h, w\)"),
    "channels last": (torch.zeros(20, 20, 3, dtype=torch.uint8), r"a tensor must be \(3, h, w\), not \(20, 20, 3\)"),
    "no image": (b"not an image", "not an image"),
    "nothing": (np.zeros((0, 20, 3), np.float32), "it has no pixels"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_image_is_named(case: str):
    image, sentence = REFUSED[case]
    with pytest.raises(ImageError, match=sentence):
        vitrail.load("cifar10-small").predict(image)


@pytest.mark.parametrize("image", [None, 5, {"path": "x.png"}, object()])
def test_another_type_is_refused_with_what_is_possible(image: object):
    with pytest.raises(UsageError, match=f"cannot be a {type(image).__name__}") as caught:
        vitrail.load("cifar10-small").predict(image)
    assert "a PIL image" in str(caught.value)


def test_a_classifier_is_shown_in_a_line():
    shown = repr(vitrail.load("cifar10-small"))
    assert shown.startswith("Classifier(10 classes, ViT of width 96 and depth")
    assert len(shown) < 200


def test_moving_leaves_the_original_and_its_mode():
    clf = vitrail.load("cifar10-small")
    moved = clf.to("meta")
    assert (moved.device.type, clf.device.type) == ("meta", "cpu")
    assert clf.to("cpu") is clf
    clf.vit.train()
    clf.vit.blocks[0].eval()
    clf.logits(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    clf.features(PIXELS)
    assert clf.vit.training and clf.vit.blocks[1].training and not clf.vit.blocks[0].training
