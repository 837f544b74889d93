"""Every kind of image file gives the right pixels, or an error that names the file."""

import contextlib
import io
import os
import pickle
import random
import resource
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from vitrail.console import warning_filter
from vitrail.data import decode as decode_module
from vitrail.data.decode import ImageError, ImageUnreachable, decode, decode_with_header, read_size
from vitrail.data.formats import EXTENSIONS, readable_formats
from vitrail.errors import VitrailError

RED, GREEN, BLUE, WHITE, BLACK, GRAY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3, (0,) * 3, (128,) * 3


def noise(height: int = 12, width: int = 16, channels: int = 3) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def photo(height: int = 48, width: int = 64) -> Image.Image:
    """Returns a smooth image, which JPEG reproduces well."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / width, 255 * y / height, 255 * (x + y) / (width + height)]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(image_CHW: torch.Tensor, x: int, y: int) -> tuple[int, ...]:
    return tuple(image_CHW[:, y, x].tolist())


def one_row(mode: str, values: list) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


# Pillow's modes


def palette_row(transparency: int | None) -> bytes:
    image = one_row("P", [0, 1, 2])
    image.putpalette([*RED, *GREEN, *BLUE])
    return encoded(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


EIGHT_BIT = {
    "1": (encoded(one_row("1", [0, 255, 0]), "PNG"), [BLACK, WHITE, BLACK]),
    "L": (encoded(one_row("L", [0, 128, 255]), "PNG"), [BLACK, GRAY, WHITE]),
    "LA": (encoded(one_row("LA", [(0, 255), (0, 0), (128, 255)]), "PNG"), [BLACK, WHITE, GRAY]),
    "P": (palette_row(None), [RED, GREEN, BLUE]),
    "P with a transparent color": (palette_row(1), [RED, WHITE, BLUE]),
    "RGB": (encoded(one_row("RGB", [RED, GREEN, BLUE]), "PNG"), [RED, GREEN, BLUE]),
    "RGB with a transparent color": (
        encoded(one_row("RGB", [RED, GREEN, BLUE]), "PNG", transparency=GREEN),
        [RED, WHITE, BLUE],
    ),
    "RGBA": (
        encoded(one_row("RGBA", [(*RED, 255), (*RED, 0), (*BLACK, 127)]), "PNG"),
        [RED, WHITE, GRAY],
    ),
}


@pytest.mark.parametrize("mode", EIGHT_BIT)
def test_8_bit_modes_keep_their_colors_and_transparency_becomes_white(mode: str):
    data, colors = EIGHT_BIT[mode]
    image = decode(io.BytesIO(data))
    assert image.dtype == torch.uint8 and image.shape == (3, 1, 3)
    assert [pixel(image, x, 0) for x in range(3)] == colors


@pytest.mark.parametrize("mode", EIGHT_BIT)
def test_one_channel_gives_the_luma_of_the_colors(mode: str):
    data, colors = EIGHT_BIT[mode]
    gray = decode(io.BytesIO(data), channels=1)
    assert gray.dtype == torch.uint8 and gray.shape == (1, 1, 3)
    luma = [(299 * r + 587 * g + 114 * b) / 1000 for r, g, b in colors]
    assert np.abs(gray.flatten().numpy() - np.array(luma)).max() <= 1


def test_a_cmyk_jpeg_gives_the_intended_colors():
    rgb = photo()
    data = encoded(rgb.convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    image = decode(io.BytesIO(data)).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(image - np.asarray(rgb).astype(int)).mean() < 3


TWO_COLORS = Path(__file__).with_name("two-colors.heic")  # (200, 40, 40), at the right (40, 60, 200); coded with x265


def two_colors() -> Image.Image:
    image = Image.new("RGB", (48, 32), (200, 40, 40))
    image.paste((40, 60, 200), (24, 0, 48, 32))
    return image


@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_formats_of_phones_have_the_right_pixels(kind: str, channels: int):
    if kind == "HEIF":
        pytest.importorskip("pi_heif")
    data = TWO_COLORS.read_bytes() if kind == "HEIF" else encoded(two_colors(), kind)
    image, header = decode_with_header(io.BytesIO(data), channels)
    expected = decode(io.BytesIO(encoded(two_colors(), "PNG")), channels)
    assert header.format == kind and image.shape == expected.shape
    differences = (image.int() - expected.int()).abs()
    differences[..., 16:32] = 0  # at the edge the codecs blur colors
    assert differences.max() <= 8 and read_size(io.BytesIO(data)) == (32, 48)
    with pytest.raises(ImageError, match="damaged"):
        decode(io.BytesIO(data[: len(data) * 2 // 3]))


def test_an_avif_without_its_decoder_is_named(monkeypatch: pytest.MonkeyPatch):
    data = encoded(two_colors(), "AVIF")[:200]
    monkeypatch.setattr("vitrail.data.decode.features.check", lambda name: False)
    with pytest.raises(ImageError, match="it is an AVIF that this Pillow cannot read; update Pillow"):
        decode(io.BytesIO(data))


def test_a_heic_without_its_library_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vitrail.data.formats.HEIF_LIBRARIES", ())
    readable_formats.cache_clear()
    try:
        with pytest.raises(ImageError, match=r"it is a HEIC, and reading it needs pi-heif: .*install.*heif"):
            decode(TWO_COLORS)
    finally:
        readable_formats.cache_clear()


SIXTEEN_BIT_RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16)[None]  # 257 apart: 0, 257 ... 65535


@pytest.mark.parametrize(
    ("kind", "values", "mode"),
    [
        ("PNG", SIXTEEN_BIT_RAMP, "I;16"),
        ("TIFF", SIXTEEN_BIT_RAMP, "I;16"),
        ("JPEG2000", SIXTEEN_BIT_RAMP, "I;16"),
        ("TIFF", (SIXTEEN_BIT_RAMP / 65535).astype(np.float32), "F"),
    ],
    ids=["I;16 PNG", "I;16 TIFF", "I;16 JPEG 2000", "F TIFF up to 1"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_gray_is_scaled_to_8_bits_and_not_clipped(kind: str, values: np.ndarray, mode: str, channels: int):
    data = encoded(Image.fromarray(values), kind)
    assert Image.open(io.BytesIO(data)).mode == mode
    image = decode(io.BytesIO(data), channels)
    assert image.shape == (channels, 1, 256) and image.dtype == torch.uint8
    for plane in image:
        assert plane.flatten().tolist() == list(range(256))


def test_16_bit_gray_of_a_portable_graymap_is_scaled():
    data = b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32896, 65535)
    assert decode(io.BytesIO(data), channels=1).flatten().tolist() == [0, 128, 255]


def test_a_tiff_whose_zero_is_white_is_inverted_in_16_bits_too():
    data = encoded(Image.fromarray(SIXTEEN_BIT_RAMP), "TIFF", tiffinfo={262: 0})
    assert decode(io.BytesIO(data), channels=1).flatten().tolist() == list(range(256))[::-1]


UNCLEAR = {
    "floats of 12 bits": ("TIFF", np.float32([[851.1, 3180]]), r"851\.1 to 3180, not 0 to 1"),
    "a float above 1": ("TIFF", np.float32([[0.3233, 1.001]]), r"0\.3233 to 1\.001, not 0 to 1"),
    "z-scores": ("TIFF", np.float32([[-3.1, 10.6]]), "not 0 to 1"),
    "not a number": ("TIFF", np.float32([[np.nan, 0.5]]), "not finite"),
    "infinity": ("TIFF", np.float32([[0.1, np.inf]]), "not finite"),
    "dark floats": ("TIFF", np.float32([[0, 0.001]]), r"0\.001 of 1"),
    "Hounsfield units": ("TIFF", np.int32([[-1024, 3071]]), "signed, -1024 to 3071"),
    "signed 32 bits": ("TIFF", np.int32([[0, 65535]]), "signed"),
    "12 bits in 16": ("PNG", np.uint16([[0, 4095]]), "4095 of 65535"),
    "12 bits in 16, times 1.001": ("TIFF", np.uint16([[0, 4099]]), "4099 of 65535"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_values_whose_black_and_white_the_file_does_not_say_are_refused_with_what_to_do(case: str):
    kind, values, reason = UNCLEAR[case]
    with pytest.raises(ImageError, match=reason) as caught:
        decode(io.BytesIO(encoded(Image.fromarray(values), kind)))
    assert "8 bits" in caught.value.reason


def color_png_16_bits(white: int) -> bytes:
    pixels = np.zeros((2, 2, 3), ">u2")
    pixels[0] = white
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colors_of_16_bits_are_scaled_or_refused_if_they_hold_12():
    assert pixel(decode(io.BytesIO(color_png_16_bits(65535))), 0, 0) == WHITE
    with pytest.raises(ImageError, match="8 of its 16 bits"):
        decode(io.BytesIO(color_png_16_bits(4095)))


@pytest.mark.parametrize("values", [np.uint16([[100, 100]]), np.float32([[0, 0]])])
def test_an_image_of_one_value_is_what_the_file_says_however_dark(values: np.ndarray):
    assert decode(io.BytesIO(encoded(Image.fromarray(values), "TIFF"))).max() == 0


def test_a_file_and_its_copy_times_1001_give_nearly_the_same_pixels_or_one_is_refused():
    draw = np.random.default_rng(1)
    for high in (200, 4095, 8190, 8200, 30000, 65400):
        values = draw.integers(0, high, (8, 8)).astype(np.float64)
        results = []
        for factor in (1, 1.001):
            with contextlib.suppress(ImageError):
                image = Image.fromarray((values * factor).round().astype(np.uint16))
                results.append(decode(io.BytesIO(encoded(image, "PNG")), 1).numpy().astype(int))
        assert all(pixels.max() >= 32 for pixels in results)  # never almost black
        assert len(results) < 2 or np.abs(results[0] - results[1]).max() <= 1


def test_decoding_in_threads_leaves_the_warnings_of_the_process_as_they_were(tmp_path: Path):
    path = tmp_path / "image.jpg"
    photo().save(path)
    decode(path)  # adds the filter of Pillow's own warnings, once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = [each for each in warnings.filters if each != warning_filter("PIL")]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(decode, [path] * 400))
        assert [each for each in warnings.filters if each != warning_filter("PIL")] == before
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn("ours", stacklevel=1)


def test_pillows_warnings_do_not_make_an_image_unreadable():
    rows = Image.new("P", (2, 1))
    rows.putpalette([*RED, *GREEN])
    data = encoded(rows, "PNG", transparency=b"\x80\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(io.BytesIO(data)).shape == (3, 1, 2)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_keep_the_pixels(kind: str, tmp_path: Path):
    pixels = noise() // 128 * 255  # eight colors, few enough for GIF
    path = tmp_path / f"image.{kind.lower()}"
    Image.fromarray(pixels).save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert torch.equal(decode(path), torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(decode(str(path)), decode(io.BytesIO(path.read_bytes())))


def test_the_result_owns_contiguous_memory():
    image = decode(io.BytesIO(encoded(photo(), "PNG")))
    assert image.is_contiguous()
    image.add_(1)  # would fail on read-only memory


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_shapes_can_be_read(size: tuple[int, int]):
    width, height = size
    assert decode(io.BytesIO(encoded(Image.new("RGB", size, RED), "PNG"))).shape == (3, height, width)


def test_a_color_profile_and_a_large_exif_block_are_ignored():
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    data = encoded(Image.new("RGB", (4, 4), RED), "PNG", exif=exif, icc_profile=b"\0" * 3000)
    assert pixel(decode(io.BytesIO(data)), 0, 0) == RED


# orientation and animation

# EXIF 274: the corner to which the top left of the stored image belongs, and whether height and width are swapped
ORIENTATIONS = {
    1: ("top left", False),
    2: ("top right", False),
    3: ("bottom right", False),
    4: ("bottom left", False),
    5: ("top left", True),
    6: ("top right", True),
    7: ("bottom right", True),
    8: ("bottom left", True),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied(orientation: int, kind: str):
    corner, swapped = ORIENTATIONS[orientation]
    stored = Image.new("RGB", (32, 16), BLUE)
    stored.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode(io.BytesIO(encoded(stored, kind, exif=exif)))
    height, width = (32, 16) if swapped else (16, 32)
    assert upright.shape == (3, height, width)
    corners = {"top left": (2, 2), "top right": (width - 3, 2)}
    corners |= {"bottom left": (2, height - 3), "bottom right": (width - 3, height - 3)}
    red = [name for name, (x, y) in corners.items() if upright[0, y, x] > 128]
    assert red == [corner]


def test_all_orientations_differ():
    stored = Image.fromarray(noise())
    results = set()
    for orientation in ORIENTATIONS:
        exif = Image.Exif()
        exif[0x0112] = orientation
        results.add(decode(io.BytesIO(encoded(stored, "PNG", exif=exif))).numpy().tobytes())
    assert len(results) == 8


def test_16_bit_gray_is_rotated_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    upright = decode(io.BytesIO(encoded(stored, "PNG", exif=exif)), channels=1)
    assert upright.shape == (1, 3, 1) and upright.flatten().tolist() == [0, 128, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str):
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert pixel(decode(io.BytesIO(data)), 4, 4) == RED


# files that cannot be read


def check_refused(path: Path, reason: str | None = None) -> ImageError:
    """Asserts that a file is refused in one sentence that names it, and returns the error."""
    with pytest.raises(ImageError, match=reason) as caught:
        decode(path)
    assert isinstance(caught.value, VitrailError)
    assert str(path) in caught.value.sentence
    assert "\n" not in caught.value.sentence
    return caught.value


def test_an_empty_file_is_refused_and_named(tmp_path: Path):
    (tmp_path / "empty.jpg").touch()
    check_refused(tmp_path / "empty.jpg", "not an image")


def test_a_text_file_with_an_image_name_is_refused_and_named(tmp_path: Path):
    (tmp_path / "notes.jpg").write_text("this is not a picture\n" * 50)
    check_refused(tmp_path / "notes.jpg", "not an image")


def test_an_unsupported_format_is_refused_and_named(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png", "ICO")
    check_refused(tmp_path / "image.png", "ICO files are not read; convert it")
    (tmp_path / "image.png").write_bytes(b"GIMP" * 9)
    check_refused(tmp_path / "image.png", "not one of JPEG")


def test_a_missing_file_is_refused_and_named(tmp_path: Path):
    check_refused(tmp_path / "nowhere.png", "there is no such file")


def test_a_folder_is_refused_and_named(tmp_path: Path):
    (tmp_path / "folder.png").mkdir()
    check_refused(tmp_path / "folder.png", "a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused_and_named(tmp_path: Path):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(photo(), "PNG"))
    path.chmod(0)
    check_refused(path, "no permission to read it")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6, 0.9, 0.97])
def test_a_truncated_file_is_refused_and_named(kind: str, fraction: float, tmp_path: Path):
    noisy = Image.fromarray(noise(64, 64))  # most of the file is pixels
    data = encoded(noisy, kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data[: int(fraction * len(data))])
    check_refused(path)


def test_pillows_option_to_load_truncated_files_stays_off():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int) -> bytes:
    """Returns a PNG whose header has this size, with too few pixels."""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return start + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_001, 10_000), (13_000, 13_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_more_than_100_megapixels_are_refused_before_decoding(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*args: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    check_refused(path, "100,000,000")


def test_the_limit_itself_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 64)
    (tmp_path / "image.png").write_bytes(encoded(Image.new("RGB", (8, 8)), "PNG"))
    assert decode(tmp_path / "image.png").shape == (3, 8, 8)
    (tmp_path / "image.png").write_bytes(encoded(Image.new("RGB", (8, 9)), "PNG"))
    check_refused(tmp_path / "image.png", "8x9")


def test_a_stream_has_the_name_that_the_caller_gives():
    with pytest.raises(ImageError, match="^upload 3: "):
        decode(io.BytesIO(b"nothing"), name="upload 3")


def test_an_image_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ImageError("cat.jpg", "truncated")))
    assert isinstance(error, ImageError)
    assert (error.name, error.reason, error.sentence) == ("cat.jpg", "truncated", "cat.jpg: truncated")
    assert error.hint


def test_every_extension_belongs_to_a_supported_format():
    format_of = Image.registered_extensions()
    assert {format_of[extension] for extension in EXTENSIONS if extension in format_of} <= {*readable_formats(), "MPO"}


# random damage

SMALL = Image.fromarray(noise())
EXIF = Image.Exif()
EXIF[0x0112] = 6
VICTIMS = {
    "jpeg": encoded(SMALL, "JPEG", exif=EXIF),
    "png": encoded(SMALL, "PNG", exif=EXIF),
    "palette png": encoded(SMALL.convert("P"), "PNG", transparency=3),
    "gif": encoded(SMALL, "GIF"),
    "webp": encoded(SMALL, "WEBP", exif=EXIF),
    "bmp": encoded(SMALL, "BMP"),
    "tiff": encoded(SMALL, "TIFF"),
    "16-bit tiff": encoded(Image.fromarray(noise(channels=1).astype(np.uint16) * 257), "TIFF"),
    "ppm": encoded(SMALL, "PPM"),
}


def damage(data: bytes, seed: int) -> bytes:
    """Returns a copy with a few bytes changed, often near the start, and sometimes truncated."""
    draw = random.Random(seed)
    copy = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        limit = draw.choice((len(copy), min(len(copy), 120)))
        copy[draw.randrange(limit)] = draw.randrange(256)
    return bytes(copy[: draw.randrange(len(copy))] if draw.random() < 0.3 else copy)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", VICTIMS)
def test_200_damaged_copies_are_decoded_or_refused(kind: str):
    n_refused = 0
    for seed in range(200):
        try:
            image = decode(io.BytesIO(damage(VICTIMS[kind], seed)), name="victim")
        except ImageError as error:
            assert error.sentence.startswith("victim: ")
            n_refused += 1
        else:
            assert image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3
    assert n_refused


def test_every_error_of_pillow_becomes_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "image.png"
    path.write_bytes(VICTIMS["png"])
    for kind in (TypeError, struct.error, ZeroDivisionError, KeyError, OverflowError, IndexError, SyntaxError):

        def fail(self: object, kind: type[Exception] = kind) -> None:
            raise kind("inside")

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        check_refused(path, "damaged")


# errors that are not the file's fault


def test_a_temporary_error_is_not_blamed_on_the_image(tmp_path: Path):
    photo().save(tmp_path / "good.png")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(ImageUnreachable, match="good.png: Too many open files") as caught:
            decode(tmp_path / "good.png")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (ImageUnreachable, str(caught.value))
    with pytest.raises(ImageError) as missing:
        decode(tmp_path / "missing.png")
    assert not isinstance(missing.value, ImageUnreachable)


def test_too_little_memory_is_not_blamed_on_the_image(tmp_path: Path):
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")  # 243 MB of pixels: more than the heap has free
    pid = os.fork()
    if not pid:
        code = 1
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), -1))
            decode(tmp_path / "large.png")
        except MemoryError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
