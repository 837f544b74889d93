"""Images with any number of channels and more than 8 bits: files, values, weights, and every verb on them."""

import json
import re
import struct
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from serving import RunningServer
from vitrail.cli import main
from vitrail.data.augment import Augment, build_augmentation
from vitrail.data.bands import Bands
from vitrail.data.decode import ImageError, decode, read_size, read_upright_size
from vitrail.data.encoded import ImageFiles
from vitrail.data.image_input import find_array_channels, to_pixels
from vitrail.data.labels import categorize
from vitrail.data.open import open_source
from vitrail.data.preprocess import Preprocess
from vitrail.data.source import Listing, Source
from vitrail.errors import UsageError, VitrailError
from vitrail.training.data_defaults import with_normalization
from vitrail.training.transfer import resolve_transfer
from vitrail.weights.resize import change_channels

BANDS = Bands(5, "uint16")
TINY = ["--epochs", "6", "--lr", "3e-3", "--width", "16", "--depth", "1", "--heads", "2", "--mlp-width", "32"]
TINY += ["--patch", "4", "--batch-size", "16"]
VALUES = np.random.default_rng(0).integers(0, 65536, (5, 8, 9)).astype(np.uint16)


def write_png(array: np.ndarray, orientation: int | None = None) -> bytes:
    """A PNG of 16 bits from (h, w, C), whose rows are not filtered; an orientation is written behind the pixels."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    exif = Image.Exif()
    exif[274] = orientation or 1
    behind = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) if orientation else b""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), behind, chunk(b"IEND", b""))
    )


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def tiff(array: np.ndarray, *, pages: bool = False, **options: Any) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    file = BytesIO()
    with tifffile.TiffWriter(file, bigtiff=options.pop("bigtiff", False)) as writer:
        for image in array if pages else [array]:
            writer.write(image, photometric="minisblack", contiguous=False, **options)
    return file.getvalue()


LAST = np.moveaxis(VALUES, 0, 2)
FORMS: dict[str, Callable[[], bytes]] = {
    "channels first": lambda: npy(VALUES),
    "channels last": lambda: npy(LAST),
    "Fortran": lambda: npy(np.asfortranarray(VALUES)),
    "big-endian": lambda: npy(VALUES.astype(">u2")),
    "planar": lambda: tiff(VALUES, planarconfig="separate"),
    "interleaved": lambda: tiff(LAST, planarconfig="contig"),
    "pages": lambda: tiff(VALUES, pages=True),
    "deflate": lambda: tiff(LAST, planarconfig="contig", compression="zlib", predictor=True),
    "BigTIFF": lambda: tiff(LAST, planarconfig="contig", bigtiff=True),
}


# Files


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_has_the_same_values(form: str, tmp_path: Path):
    content = FORMS[form]()
    path = tmp_path / ("image.npy" if content.startswith(b"\x93NUMPY") else "image.tif")
    path.write_bytes(content)
    for file in (path, BytesIO(content)):
        pixels = decode(file, BANDS)
        assert pixels.dtype == torch.float32 and np.array_equal(pixels.numpy(), VALUES)
        assert read_size(file) == read_upright_size(file) == (8, 9)
    assert ImageFiles([path]).find_channels() == BANDS


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_of_16_bits_keeps_its_values(channels: int, tmp_path: Path):
    array = LAST[..., :channels]
    path = tmp_path / "image.png"
    path.write_bytes(write_png(array))
    assert np.array_equal(decode(path, Bands(channels, "uint16")).numpy(), np.moveaxis(array, 2, 0))
    assert ImageFiles([path]).find_channels() == Bands(channels, "uint16")
    assert decode(path, 3).dtype == torch.uint8  # a model for 8 bits reads it by its bit depth, as before
    path.write_bytes(write_png(array)[:60])
    assert read_size(path) == (8, 9) and ImageFiles([path]).find_channels() == Bands(channels, "uint16")  # no pixels
    path.write_bytes(write_png(array, orientation=3))
    assert np.array_equal(decode(path, Bands(channels, "uint16")).numpy(), np.moveaxis(array[::-1, ::-1], 2, 0))


@pytest.mark.parametrize("dtype", ["int16", "uint32", "int32", "float16", "float32", "float64"])
def test_every_type_of_values_is_kept(dtype: str):
    array = (VALUES // 512).astype(dtype)  # small enough for every type
    found = Bands(5, "float32" if dtype.startswith("float") else dtype)  # type: ignore[arg-type]
    pixels = decode(BytesIO(npy(array)), found)
    assert pixels.dtype == torch.float32
    assert np.array_equal(pixels.numpy().astype(np.float64), array.astype(np.float64))


def test_five_bands_of_8_bits_stay_8_bits():
    array = (VALUES // 256).astype(np.uint8)
    assert np.array_equal(decode(BytesIO(npy(array)), Bands(5, "uint8")).numpy(), array)
    preprocess = Preprocess(image_size=(8, 9), mean=(0.5,) * 5, std=(0.25,) * 5)
    assert preprocess.dtype == torch.uint8 and preprocess.source_channels == Bands(5, "uint8")
    expected = (array / 255 - 0.5) / 0.25
    assert np.allclose(preprocess.normalize(torch.from_numpy(array)[None])[0], expected, atol=1e-6)


def test_an_8_bit_array_of_one_or_three_channels_is_an_image(tmp_path: Path):
    array = (LAST[..., :3] // 256).astype(np.uint8)
    np.save(tmp_path / "color.npy", array)
    Image.fromarray(array).save(tmp_path / "color.png")
    for channels in (1, 3):
        assert torch.equal(decode(tmp_path / "color.npy", channels), decode(tmp_path / "color.png", channels))
    assert ImageFiles([tmp_path / "color.npy"]).find_channels() == 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff_is_applied(orientation: int, tmp_path: Path):
    tifffile = pytest.importorskip("tifffile")
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray((VALUES[0] // 256).astype(np.uint8)).save(tmp_path / "8.png", exif=exif)
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(tmp_path / "16.tif", VALUES[0], photometric="minisblack", extratags=[tag])
    turned = decode(tmp_path / "16.tif", Bands(1, "uint16"))
    assert torch.equal(turned.div(256, rounding_mode="floor").to(torch.uint8), decode(tmp_path / "8.png", 1))


def test_pages_of_one_channel_need_no_other_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pages.tif").write_bytes(FORMS["pages"]())
    (tmp_path / "planar.tif").write_bytes(FORMS["planar"]())
    large = tiff(np.full((8, 8), 2**32 - 1, np.uint32))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert np.array_equal(decode(tmp_path / "pages.tif", BANDS).numpy(), VALUES)
    with pytest.raises(ImageError, match=r"a TIFF of 5 channels of uint16 is read with tifffile: pip install .*tiff"):
        decode(tmp_path / "planar.tif", BANDS)
    (tmp_path / "large.tif").write_bytes(large)
    with pytest.raises(ImageError, match="its values go from 4294967295 to 4294967295"):
        decode(tmp_path / "large.tif", Bands(1, "uint32"))


def huge_npy() -> bytes:
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": (5, 200_000, 200_000), "fortran_order": False, "descr": "<u2"})
    return file.getvalue()


def huge_tiff() -> bytes:
    """The header of a TIFF of 200,000 x 200,000 pixels, without its pixels."""
    tags = [(256, 4, 200_000), (257, 4, 200_000), (258, 3, 16), (262, 3, 1), (273, 4, 8), (277, 3, 5), (279, 4, 1)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def with_nan() -> np.ndarray:
    values = VALUES.astype(np.float32)
    values[2, 3, 4] = np.nan
    return values


class Payload:
    """What a hostile file would run."""

    def __reduce__(self) -> Any:
        return open, ("opened-by-pickle", "w")


BAD: dict[str, tuple[Callable[[], bytes], Bands | int, str]] = {
    "other channels": (lambda: npy(VALUES[:4]), BANDS, "it has 4 channels of uint16, and not 5 channels of uint16"),
    "other values": (lambda: npy(VALUES.astype(np.float32)), BANDS, "it has 5 channels of float32, and not 5 chan"),
    "an 8-bit model": (lambda: npy(VALUES), 3, "it has 5 channels of uint16, and not those of a gray or color image"),
    "an 8-bit model, TIFF": (FORMS["interleaved"], 3, "a damaged TIFF, or has other channels or values"),
    "an 8-bit image": (lambda: jpeg(), BANDS, "it has 3 channels of uint8, and not 5 channels of uint16"),
    "NaN": (lambda: npy(with_nan()), Bands(5, "float32"), r"1 of its 360 values are not finite numbers \(NaN\)"),
    "too large for float32": (lambda: npy(np.full((5, 8, 8), 1e300)), Bands(5, "float32"), "320 of its 320 values"),
    "large integers": (lambda: npy(VALUES.astype(np.int32) << 15), Bands(5, "int32"), "float32 does not hold exactly"),
    "64-bit integers": (lambda: npy(VALUES.astype(np.int64)), BANDS, "its values are int64; save uint8"),
    "pickle": (lambda: npy(np.array([[Payload()]]), allow_pickle=True), BANDS, "it holds Python objects"),
    "pickle, 8-bit": (lambda: npy(np.array([[Payload()]]), allow_pickle=True), 3, "it holds Python objects"),
    "truncated array": (lambda: npy(VALUES)[:-7], BANDS, "truncated: its shape needs 720 bytes, and it has 713"),
    "truncated TIFF": (lambda: FORMS["interleaved"]()[:-200], BANDS, "damaged or truncated"),
    "enormous array": (huge_npy, BANDS, "200000x200000 pixels are above the limit"),
    "enormous TIFF": (huge_tiff, BANDS, "200000x200000 pixels are above the limit"),
    "shape": (lambda: npy(np.zeros(7)), BANDS, r"its shape is \(7,\); an image is \(h, w\), \(h, w, C\)"),
    "empty": (lambda: npy(np.zeros((5, 0, 3))), BANDS, "an image has 1 to 4096 channels"),
    "damaged header": (lambda: b"\x93NUMPY\x01\x00\x10\x00{'descr': evil()}" + bytes(9), BANDS, "damaged or truncated"),
}  # fmt: skip


def jpeg() -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_read_is_one_sentence(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make, channels, reason = BAD[case]
    with pytest.raises(ImageError, match=reason) as error:
        decode(BytesIO(make()), channels, "photo")
    assert error.value.name == "photo" and "\n" not in error.value.reason
    assert list(tmp_path.iterdir()) == []  # nothing was run


def test_tensors_and_pillow_images_of_other_values_are_refused():
    eight_bits = torch.full((5, 8, 8), 7, dtype=torch.uint8)
    assert torch.equal(to_pixels(eight_bits, Bands(5, "uint8")), eight_bits)
    with pytest.raises(ImageError, match="it has 5 channels of float32, and not 5 channels of uint8"):
        to_pixels(eight_bits / 255, Bands(5, "uint8"))  # else 0 to 1 would be read as 0 to 255
    with pytest.raises(ImageError, match="it is a Pillow image of the mode CMYK, and not 5 channels of uint8"):
        to_pixels(Image.new("CMYK", (8, 8)), Bands(5, "uint8"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_of_a_tensor_are_bands(dtype: torch.dtype):
    tensor = torch.full((5, 8, 8), 0.5, dtype=dtype)
    assert find_array_channels(tensor) == Bands(5, "float32")
    assert torch.equal(to_pixels(tensor, Bands(5, "float32")), tensor.float())


# Which channels a set of images has


def files_of(tmp_path: Path, contents: list[bytes]) -> ImageFiles:
    paths = []
    for i, content in enumerate(contents):
        suffix = ".npy" if content.startswith(b"\x93NUMPY") else ".png"
        paths.append(tmp_path / f"{i}{suffix}")
        paths[-1].write_bytes(content)
    return ImageFiles(paths)


def test_most_images_decide_the_channels(tmp_path: Path):
    deep, gray = write_png(LAST[..., :1]), BytesIO()
    Image.new("L", (8, 8)).save(gray, "PNG")
    cases = [
        ([npy(VALUES)] * 3 + [npy(VALUES[:4])], BANDS),
        ([jpeg()] * 3 + [npy(VALUES)], 3),  # the array is an error when it is read
        ([deep] * 3, Bands(1, "uint16")),
        ([deep] * 3 + [gray.getvalue()], 3),  # read as 8 bits by their bit depth, with a warning
        ([write_png(LAST[..., :4])] * 3, 3),  # transparency
        ([b"\x93NUMPY damaged", npy(VALUES)], BANDS),
    ]
    for i, (contents, channels) in enumerate(cases):
        folder = tmp_path / str(i)
        folder.mkdir()
        assert files_of(folder, contents).find_channels() == channels, i


def test_a_source_that_is_opened_twice_has_one_note(tmp_path: Path):
    files = files_of(tmp_path, [npy(VALUES)] * 2)
    source = Source("bands", {"all": Listing(files, ["0", "1"], categorize("ab"))}, address="bands")
    for _ in range(2):
        assert open_source(source).notes == [
            "the images have 5 channels of uint16, and their values are kept as they are"
        ]
    assert source.notes == []


# Preprocessing, augmentation, weights


def test_values_are_normalized_by_channel_and_keep_their_unit(tmp_path: Path):
    images = [np.random.default_rng(i).normal(3e4, 900, (5, 8, 8)).astype(np.uint16) for i in range(6)]
    for image in images:
        image[4] = 7  # a channel without information
    for i, image in enumerate(images):
        np.save(tmp_path / f"{i}.npy", image)
    source = open_source((sorted(tmp_path.iterdir()), ["a", "b"] * 3))
    assert source.channels == BANDS and any("5 channels of uint16" in note for note in source.notes)
    splits = vitrail.data.split.build_splits(source, validation=0, test=0)
    start = Preprocess(image_size=(8, 8), mean=(0.5,) * 5, std=(0.5,) * 5, values="uint16")
    preprocess = with_normalization(start, "data", splits.train)
    stacked = np.stack(images).astype(np.float64).transpose(1, 0, 2, 3).reshape(5, -1)
    assert np.allclose(preprocess.mean, stacked.mean(1), rtol=1e-5)
    assert np.allclose(preprocess.std[:4], stacked.std(1, ddof=1)[:4], rtol=1e-5) and preprocess.std[4] == 1
    normalized = preprocess.normalize(splits.train.load_batch(preprocess, range(6)))
    assert abs(normalized.mean((0, 2, 3))).max() < 1e-3 and abs(normalized[:, :4].std((0, 2, 3)) - 1).max() < 1e-2


def test_a_preprocessing_is_read_back_and_that_of_color_images_is_as_before():
    bands = Preprocess(image_size=(8, 8), mean=(9e3,) * 5, std=(2e3,) * 5, values="int16", shown=(5, 1, 2))
    assert Preprocess.from_json(json.loads(json.dumps(bands.to_json()))) == bands
    assert not {"values", "shown"} & Preprocess(image_size=(8, 8)).to_json().keys()
    for changes in ({"std": (0.0,) * 5}, {"mean": (float("nan"),) * 5}, {"shown": (1, 2)}, {"shown": (6,)}):
        with pytest.raises(UsageError):
            Preprocess.from_json({**bands.to_json(), **changes})


def test_a_picture_shows_chosen_bands_on_one_scale():
    preprocess = Preprocess(
        image_size=(1, 1), mean=(10.0, 20.0, 30.0, 40.0), std=(1.0, 2.0, 3.0, 4.0), values="float32", shown=(4, 1, 2)
    )
    pixels = torch.tensor([12.0, 20.0, 0.0, 32.0]).view(4, 1, 1)  # 2 std above, mean, far below, 2 std below
    assert preprocess.to_picture(pixels).flatten().tolist() == [0, 255, 128]
    assert preprocess.to_picture(pixels[None].expand(7, -1, -1, -1)).shape == (7, 3, 1, 1)


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_an_automatic_augmentation_changes_no_value(policy: str):
    preprocess = Preprocess(image_size=(16, 16), mean=(-1.0,) * 5, std=(1.0,) * 5, values="int16")
    augment = Augment(policy=policy, flip=0, policy_ops=4, policy_magnitude=20)
    image = torch.arange(1.0, 6.0).mul(1000).view(5, 1, 1).expand(-1, 16, 16).contiguous()
    torch.manual_seed(0)
    augmented = [build_augmentation(augment, preprocess).augment_image(image) for _ in range(30)]
    assert any(not torch.equal(each, image) for each in augmented)
    for each in augmented:
        for channel, value in zip(each, range(1000, 6000, 1000), strict=True):
            assert channel.shape == (16, 16) and channel.min() >= -1.001  # the fill, which borders mix in
            assert channel.max() == pytest.approx(value) or (channel == -1).all()  # shifted out of sight


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6, 13])
def test_weights_get_other_channels_by_the_rule_of_timm(channels: int):
    manipulate = pytest.importorskip("timm.models._manipulate")
    weight = torch.randn(8, 3, 4, 4)
    changed = change_channels(weight, channels)
    assert torch.allclose(changed, manipulate.adapt_input_conv(channels, weight.clone()), atol=1e-7)
    if channels in (1, 3, 6):  # the same values in all channels give the same vector
        image = torch.randn(1, 1, 4, 4)
        before, after = (torch.nn.functional.conv2d(image.expand(-1, w.shape[1], -1, -1), w) for w in (weight, changed))
        assert torch.allclose(before, after, atol=1e-5)


# Every verb


def draw(n: int, seed: int) -> list[tuple[int, np.ndarray]]:
    """Classes and images (5, 12, 12), uint16: bands 4 and 5 are equal, opposite or unrelated; the others are noise."""
    random = np.random.default_rng(seed)
    images = []
    for i in range(n):
        label = i % 3
        noise = random.normal(0, 600, (5, 3, 3)).repeat(4, 1).repeat(4, 2)
        noise[4] = (noise[3], -noise[3], noise[4])[label]
        images.append((label, (9000 + noise + random.normal(0, 30, noise.shape)).astype(np.uint16)))
    return images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "bands"
    for split, n, seed in (("train", 240, 0), ("test", 60, 1)):
        for i, (label, image) in enumerate(draw(n, seed)):
            path = root / split / ("same", "opposite", "unrelated")[label] / f"{i:03}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, image)
    return root


@pytest.fixture(scope="module")
def bands_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "bands"
    assert main(["train", str(folder), "--out", str(out), *TINY, "--epochs", "14", "--shown-channels", "5,4,1"]) == 0
    return out


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def refuses(capsys: pytest.CaptureFixture[str], sentence: str, *arguments: object) -> None:
    assert main([*map(str, arguments)]) == 2
    assert sentence in capsys.readouterr().err


def image_of(folder: Path) -> Path:
    return sorted((folder / "test" / "same").iterdir())[0]


def test_train_learns_what_only_the_later_bands_show(bands_run: Path):
    classifier = vitrail.load(bands_run)
    preprocess = classifier.preprocess
    assert (preprocess.values, preprocess.channels, preprocess.shown) == ("uint16", 5, (5, 4, 1))
    assert classifier.vit.config.channels == 5
    assert all(8500 < mean < 9500 for mean in preprocess.mean)
    assert json.loads((bands_run / "result.json").read_text())["test"]["accuracy"] > 0.8  # the other bands: 1/3


def test_check(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = answer(capsys, "check", folder)
    assert report["errors"] == [] and report["color_types"] == {"5 channels of uint16": 300}
    assert main(["check", str(folder), "--out", str(tmp_path / "check")]) == 0
    assert "5 channels of uint16, whose values are kept" in capsys.readouterr().out


def test_check_names_images_of_other_channels(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for i, (_, image) in enumerate(draw(6, 5)):
        path = tmp_path / "mixed" / str(i % 2) / f"{i}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, image[: 4 if i == 4 else 5])
    report = answer(capsys, "check", tmp_path / "mixed", code=1)
    assert [each for each in report["errors"] if "4 channels of uint16, and not 5" in each and "4.npy" in each]
    before = sorted(path.read_bytes() for path in (tmp_path / "mixed").rglob("*.npy"))
    assert main(["train", str(tmp_path / "mixed"), "--out", str(tmp_path / "run"), *TINY]) != 0
    assert "4.npy: it has 4 channels of uint16, and not 5 channels of uint16" in capsys.readouterr().err
    assert before == sorted(path.read_bytes() for path in (tmp_path / "mixed").rglob("*.npy"))


def test_evaluate(bands_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    document = answer(capsys, "evaluate", bands_run, folder, "--report", "--out", tmp_path / "report")
    assert document["accuracy"] > 0.8
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    refuses(capsys, "corruptions are for 8-bit gray", "evaluate", bands_run, folder, "--report", "--corruptions")


def test_the_report_of_labels_shows_unlike_images(folder: Path, tmp_path: Path):
    rows = [f"{path},{path.parent.name};any,train\n" for path in sorted((folder / "train").rglob("*.npy"))]
    np.save(tmp_path / "flat.npy", np.zeros_like(np.load(image_of(folder))))
    rows += [f"{image_of(folder)},same;any,test\n", "flat.npy,any,test\n"]
    (tmp_path / "labels.csv").write_text("path,labels,split\n" + "".join(rows))
    options = ["--epochs", "1", "--validation-fraction", "0.4"]
    assert main(["train", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "run"), *TINY, *options]) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["unlike"]["examples"]


def test_predict(bands_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    classifier = vitrail.load(bands_run)
    values = np.load(image_of(folder))
    tensor = torch.from_numpy(values.astype(np.float32))
    forms = (image_of(folder), image_of(folder).read_bytes(), np.moveaxis(values, 0, 2), tensor)
    from_file, *others = map(classifier.predict, forms)
    for other in others:
        assert torch.equal(other.logits, from_file.logits)
    assert from_file.label in json.dumps(answer(capsys, "predict", bands_run, image_of(folder)))
    assert main(["predict", str(bands_run), str(folder / "test"), "--out", str(tmp_path / "rows")]) == 0
    with pytest.raises(ImageError, match="it has 3 channels of uint8, and not 5 channels of uint16"):
        classifier.predict(np.zeros((12, 12, 3), np.uint8))
    with pytest.raises(ImageError, match="it has 4 channels of uint16"):
        classifier.predict(np.zeros((12, 12, 4), np.uint16))


def test_a_model_for_8_bits_refuses_bands(folder: Path, clf: vitrail.Classifier):
    with pytest.raises(ImageError, match="5 channels of uint16, and not those of a gray or color image of 8 bits"):
        clf.predict(image_of(folder))


def test_explain_shows_the_chosen_bands(bands_run: Path, folder: Path, tmp_path: Path):
    classifier = vitrail.load(bands_run)
    explanation = vitrail.explain(classifier, image_of(folder))
    fitted = classifier.read_image(image_of(folder))
    assert explanation.image.dtype == np.uint8
    assert np.array_equal(explanation.image, classifier.preprocess.to_picture(fitted).permute(1, 2, 0).numpy())
    assert main(["explain", str(bands_run), str(image_of(folder)), "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_other_channels_are_shown(
    bands_run: Path, folder: Path, clf: vitrail.Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [f"{path},{path.parent.name}\n" for path in sorted((folder / "test").rglob("*.npy"))[::5]]
    (tmp_path / "few.csv").write_text("path,label\n" + "".join(rows))
    pictures, pages = {}, {}
    for shown in ("", "5,4,1", "2"):
        option = ["--shown-channels", shown] if shown else []
        out = tmp_path / (shown or "model")
        [row] = answer(capsys, "explain", bands_run, image_of(folder), *option, "--out", out)["explanations"]
        pictures[shown] = Path(row["files"][0]).read_bytes()
        if shown:
            answer(capsys, "evaluate", bands_run, tmp_path / "few.csv", "--report", *option, "--out", out)
            assert f"--shown-channels {shown}" in json.loads((out / "report.json").read_text())["provenance"]["command"]
            pages[shown] = re.findall("data:image/[^\"']+", (out / "report.html").read_text())
    assert pictures[""] == pictures["5,4,1"] != pictures["2"]
    assert pages["2"] and pages["2"] != pages["5,4,1"]
    refuses(capsys, "pictures cannot show the channels 9", "explain", bands_run, folder, "--shown-channels", "9")
    refuses(capsys, "add --report", "evaluate", bands_run, folder, "--shown-channels", "1")
    refuses(capsys, "cannot show the channels 9", "evaluate", bands_run, folder, "--report", "--shown-channels", "9")
    with pytest.raises(UsageError, match="for images of bands"):
        clf.preprocess.with_shown("1")


def test_probe_faithfulness_and_folds(
    bands_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert answer(capsys, "probe", bands_run, folder)
    assert answer(capsys, "faithfulness", bands_run, folder, "--max-images", 8)
    out = tmp_path / "folds"
    document = answer(capsys, "train", folder / "train", "--folds", 2, "--out", out, *TINY, "--epochs", 1, "--no-check")
    assert document


def test_evaluate_on_shards(bands_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shards = tmp_path / "shards"
    assert answer(capsys, "shard", folder, "--out", shards)["formats"] == {"npy": 300}
    of_folder, of_shards = (answer(capsys, "evaluate", bands_run, data) for data in (folder, shards))
    assert of_folder["loss"] == of_shards["loss"] and of_folder["accuracy"] == of_shards["accuracy"]


def test_sweep(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = [*TINY, "--epochs", 1, "--trials", 2, "--vary", "weight_decay=0.01..0.1"]
    assert answer(capsys, "sweep", folder, "--out", tmp_path / "sweep", *options)["trials"]


@pytest.mark.parametrize("format", ["onnx", "torch", "timm"])
def test_exports_take_the_values_of_the_files(format: str, bands_run: Path, folder: Path, tmp_path: Path):
    pytest.importorskip("timm" if format == "timm" else "onnxruntime")
    path = tmp_path / {"onnx": "model.onnx", "torch": "model.pt2"}.get(format, "model")
    classifier = vitrail.load(bands_run)
    exported_as = vitrail.export(classifier, path, format=format).to_json()
    assert "images of noise" in exported_as["compared_on"] and "photo" not in exported_as["compared_on"]
    if format == "onnx":
        exported = vitrail.load_any(path)
        pixels = classifier.read_image(image_of(folder))[None]
        assert torch.allclose(exported.logits(pixels), classifier.logits(pixels), atol=1e-4)
    if format == "timm":
        document = json.loads((path / "config.json").read_text())
        assert document["model_args"]["in_chans"] == 5 and len(document["pretrained_cfg"]["mean"]) == 5


@pytest.mark.parametrize("format", ["hf", "web", "torchvision"])
def test_exports_for_8_bit_images_refuse(
    format: str, bands_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / ("page.html" if format == "web" else "model")
    refuses(capsys, "this model takes 5 channels of uint16", "export", bands_run, "--format", format, "--out", out)
    assert not out.exists()


def test_the_server_reads_the_same_files(bands_run: Path, folder: Path, clf: vitrail.Classifier, tmp_path: Path):
    classifier = vitrail.load(bands_run)
    clf.save(tmp_path / "colors.safetensors")
    expected = classifier.predict(image_of(folder))
    values = np.moveaxis(np.load(image_of(folder)), 0, 2).astype(np.float32)
    with RunningServer([bands_run, tmp_path / "colors.safetensors", "--name", "bands", "--name", "colors"]) as server:
        reply = server.post("/predict?model=bands", image_of(folder).read_bytes()).json["predictions"][0]
        assert reply["top"][0]["label"] == expected.label
        assert abs(reply["top"][0]["probability"] - expected.probability) < 1e-5
        wrong = server.post("/predict?model=bands", jpeg())
        assert wrong.status == 400 and "3 channels of uint8, and not 5" in wrong.json["error"]
        wrong = server.post("/predict?model=colors", image_of(folder).read_bytes())
        assert wrong.status == 400 and "5 channels of uint16" in wrong.json["error"]
        hostile = server.post("/predict?model=bands", npy(np.array([[Payload()]]), allow_pickle=True))
        assert hostile.status == 400 and "Python objects" in hostile.json["error"]
        large = server.post("/predict?model=bands", huge_npy())
        assert large.status == 400 and "above the limit" in large.json["error"]
        tensor = {"name": "pixels", "shape": [1, *values.shape], "datatype": "FP32", "data": values.ravel().tolist()}
        outputs = server.post("/v2/models/bands/infer", json.dumps({"inputs": [tensor]})).json["outputs"]
        logits = next(each for each in outputs if each["name"] == "logits")["data"]
        assert np.allclose(logits, classifier.logits(classifier.read_image(image_of(folder))[None])[0], atol=1e-4)
        for changes, sentence in (
            ({"datatype": "UINT8", "data": [1] * values.size}, "the model takes pixels of FP32"),
            ({"shape": [1, 12, 12, 4], "data": [0.5] * 576}, "the pixels have 4 channels; the model takes 5"),
            ({"data": [1e39] * values.size}, "is not a finite number"),
        ):
            refused = server.post("/v2/models/bands/infer", json.dumps({"inputs": [{**tensor, **changes}]}))
            assert refused.status == 400 and sentence in refused.json["error"], sentence
        assert server.post("/explain?model=bands", image_of(folder).read_bytes()).json["explanation"]["label"]
        page = server.get("/?model=bands").body.decode()
        assert "<form" in page and "<script" not in page  # the plain form


# Python, and weights of color images


def test_arrays_of_python_are_bands(tmp_path: Path):
    images = np.stack([np.moveaxis(image, 0, 2) for _, image in draw(60, 0)])
    labels = [str(label) for label, _ in draw(60, 0)]
    tiny: dict[str, Any] = dict(epochs=1, width=16, depth=1, heads=2, patch=4, report=False)
    run = vitrail.train((images, labels), out=tmp_path / "arrays", **tiny)
    assert run.classifier.preprocess.source_channels == BANDS
    assert vitrail.evaluate(run.classifier, (images, labels))
    with pytest.raises(VitrailError, match="5 channels of float32, and not 5 channels of uint16"):
        vitrail.evaluate(run.classifier, (images.astype(np.float32), labels))
    with pytest.raises(VitrailError, match="3 channels of uint8, and not 5 channels of uint16"):
        vitrail.evaluate(run.classifier, ((images[..., :3] // 256).astype(np.uint8), labels))
    with pytest.raises(VitrailError, match="5 channels of uint16 in train, 4 channels of uint16 in test"):
        vitrail.train({"train": (images, labels), "test": (images[..., :4], labels)}, out=tmp_path / "x", **tiny)


def test_weights_of_color_images_start_a_training_on_bands(
    clf: vitrail.Classifier, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = vitrail.train(folder, model=clf, out=tmp_path / "run", recipe="finetune", epochs=1, report=False)
    said = capsys.readouterr().err
    assert "the weights of 3 input channels are repeated for 5 channels and scaled by 3/5" in said
    assert run.classifier.vit.config.channels == 5 and run.classifier.preprocess.source_channels == BANDS
    assert 8500 < run.classifier.preprocess.mean[0] < 9500
    config, _ = resolve_transfer(vitrail.Recipe(), 3, clf.vit.config, clf.preprocess, 5)
    assert config.channels == 5


def test_color_policies_are_restricted_and_it_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = [*TINY, "--epochs", "1", "--policy", "trivialaugment", "--no-check"]
    assert main(["train", str(folder), "--out", str(tmp_path / "run"), *options]) == 0
    assert "the policy trivialaugment only shifts, shears and turns these images" in capsys.readouterr().err
    refuses(
        capsys,
        "normalize 'imagenet' is for 8-bit images",
        "train",
        folder,
        "--out",
        tmp_path / "x",
        "--normalize",
        "imagenet",
    )
