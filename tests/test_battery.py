"""Malformed and unusual image files, each with the expected result, in check, train, evaluate and predict."""

import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

import vitrail
from vitrail.cli.main import main
from vitrail.data.check import check_data
from vitrail.data.decode import ImageError, decode
from vitrail.errors import VitrailError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 20, 3), dtype=np.uint8)
PHOTO = Image.fromarray(NOISE)
GRAY = PHOTO.convert("L")
CLEAR = PHOTO.copy()
CLEAR.putalpha(GRAY)
DEEP = Image.fromarray(RNG.integers(0, 65536, (24, 20), dtype=np.uint16))
TALL, SHAPE = (24, 20), "24x20"
READ = "read"
PILLOW_READS_YCBCR = int(PIL.__version__.split(".")[0]) >= 13  # uncompressed, in a TIFF
FORMAT = "not an image, or not one of"
DAMAGED = "damaged or truncated"


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, depth: int = 8, color: int = 2, rows: bytes | None = None, start: bytes = b""
) -> bytes:
    """Returns a PNG with any header and any pixels."""
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    if rows is None:
        rows = b"".join(b"\0" + bytes(RNG.bytes(width * samples * depth // 8)) for _ in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../evil.png", encoded(PHOTO, "PNG"))
    return buffer.getvalue()


def first_frame(form: str, **options: object) -> bytes:
    return encoded(PHOTO, form, save_all=True, append_images=[PHOTO.rotate(180)], **options)


JPEG, PNG, TIFF = encoded(PHOTO, "JPEG"), encoded(PHOTO, "PNG"), encoded(PHOTO, "TIFF")
GIF, WEBP, BMP, PPM = encoded(PHOTO, "GIF"), encoded(PHOTO, "WEBP"), encoded(PHOTO, "BMP"), encoded(PHOTO, "PPM")
BITS = PHOTO.convert("1")
ADAPTIVE = PHOTO.quantize(200)

# name -> (content, outcome): READ, or a pattern of the reason
FILES: dict[str, tuple[bytes, str]] = {
    # unusual but readable
    "1 bit.png": (encoded(BITS, "PNG"), READ),
    "gray.png": (encoded(GRAY, "PNG"), READ),
    "gray with alpha.png": (encoded(CLEAR.convert("LA"), "PNG"), READ),
    "palette.png": (encoded(ADAPTIVE, "PNG"), READ),
    "palette with a clear color.png": (encoded(ADAPTIVE, "PNG", transparency=3), READ),
    "palette with clear colors.png": (encoded(ADAPTIVE, "PNG", transparency=bytes(range(200))), READ),
    "color with a clear color.png": (encoded(PHOTO, "PNG", transparency=(1, 2, 3)), READ),
    "alpha.png": (encoded(CLEAR, "PNG"), READ),
    "16-bit gray.png": (encoded(DEEP, "PNG"), READ),
    "16-bit color.png": (png(20, 24, depth=16), READ),
    "16-bit alpha.png": (png(20, 24, depth=16, color=6), READ),
    "16-bit gray with alpha.png": (png(20, 24, depth=16, color=4), READ),
    "2-bit gray.png": (png(20, 24, depth=2, color=0), READ),
    "profile.png": (encoded(PHOTO, "PNG", icc_profile=b"\0" * 4000), READ),
    "exif.png": (encoded(PHOTO, "PNG", exif=exif_with(8)), READ),
    "text.png": (png(20, 24, start=chunk(b"tEXt", b"Comment\0" + b"x" * 60_000)), READ),
    "gamma.png": (png(20, 24, start=chunk(b"gAMA", struct.pack(">I", 45455))), READ),
    "no gamma.png": (png(20, 24, start=chunk(b"gAMA", struct.pack(">I", 0))), READ),
    "trailing.png": (PNG + b"garbage" * 1000, READ),
    "animated.png": (first_frame("PNG"), READ),
    "progressive.jpg": (encoded(PHOTO, "JPEG", progressive=True), READ),
    "gray.jpg": (encoded(GRAY, "JPEG"), READ),
    "cmyk.jpg": (encoded(PHOTO.convert("CMYK"), "JPEG"), READ),
    "444.jpg": (encoded(PHOTO, "JPEG", subsampling=0, quality=100), READ),
    "worst.jpg": (encoded(PHOTO, "JPEG", quality=1), READ),
    "rotated.jpg": (encoded(PHOTO, "JPEG", exif=exif_with(6)), READ),
    "flipped.jpg": (encoded(PHOTO, "JPEG", exif=exif_with(5)), READ),
    "orientation 99.jpg": (encoded(PHOTO, "JPEG", exif=exif_with(99)), READ),
    "trailing.jpg": (JPEG + b"\xff\xd8 more" * 100, READ),
    "comment.jpg": (encoded(PHOTO, "JPEG", comment=b"x" * 60_000), READ),
    "profile.jpg": (encoded(PHOTO, "JPEG", icc_profile=b"\0" * 100_000), READ),
    "old.jfif": (JPEG, READ),
    "LOUD.JPEG": (JPEG, READ),
    "a png.jpg": (PNG, READ),
    "a jpeg.png": (JPEG, READ),
    "a webp.gif": (WEBP, READ),
    "plain.gif": (GIF, READ),
    "clear.gif": (encoded(ADAPTIVE, "GIF", transparency=0), READ),
    "animated.gif": (first_frame("GIF"), READ),
    "lossless.webp": (encoded(PHOTO, "WEBP", lossless=True), READ),
    "alpha.webp": (encoded(CLEAR, "WEBP"), READ),
    "animated.webp": (first_frame("WEBP"), READ),
    "plain.bmp": (BMP, READ),
    "palette.bmp": (encoded(ADAPTIVE, "BMP"), READ),
    "1 bit.bmp": (encoded(BITS, "BMP"), READ),
    "alpha.bmp": (encoded(CLEAR, "BMP"), READ),
    "lzw.tiff": (encoded(PHOTO, "TIFF", compression="tiff_lzw"), READ),
    "jpeg.tiff": (encoded(PHOTO, "TIFF", compression="jpeg"), READ),
    "cmyk.tif": (encoded(PHOTO.convert("CMYK"), "TIFF"), READ),
    "16-bit.tif": (encoded(DEEP, "TIFF"), READ),
    "floats.tif": (encoded(Image.fromarray(np.asarray(GRAY, dtype=np.float32) / 255), "TIFF"), READ),
    "no numbers.tif": (encoded(Image.fromarray(np.full((24, 20), np.nan, dtype=np.float32)), "TIFF"), "not finite"),
    "pages.tif": (first_frame("TIFF"), READ),
    "ycbcr.tif": (encoded(PHOTO.convert("YCbCr"), "TIFF"), READ if PILLOW_READS_YCBCR else "truncated"),
    # checksums and stream are valid, but rows are missing; the decoder fills them with black
    "too few rows.png": (png(20, 24, rows=b"\0" * 61), READ),
    "plain.ppm": (PPM, READ),
    "ascii.pgm": (b"P2\n# a comment\n20 24\n255\n" + b" ".join(b"%d" % (i % 256) for i in range(480)), READ),
    "bits.pbm": (encoded(BITS, "PPM"), READ),
    "16-bit.pgm": (b"P5 20 24 65535\n" + bytes(RNG.bytes(960)), READ),
    "one color.png": (encoded(Image.new("RGB", (20, 24), "red"), "PNG"), READ),
    "long.png": (encoded(Image.new("L", (2000, 3), 9), "PNG"), READ),
    "<b>né & 'quoted' $x$\nline.png": (PNG, READ),
    # malformed
    "empty.jpg": (b"", FORMAT),
    "one byte.png": (b"\x89", FORMAT),
    "text.jpg": (b"this is not a picture\n" * 50, FORMAT),
    "page.gif": (b"<html><img src=x onerror=alert(1)></html>", FORMAT),
    "zeros.bmp": (b"\0" * 1000, FORMAT),
    "noise.webp": (bytes(RNG.bytes(1000)), FORMAT),
    "vector.png": (
        b"<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>",
        "SVG files are not read",
    ),
    "document.jpg": (b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n", "PDF files are not read"),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript files are not read"),
    "icon.png": (encoded(PHOTO, "ICO"), "ICO files are not read"),
    "targa.png": (encoded(PHOTO, "TGA"), FORMAT),
    "archive.jpg": (zipped(), FORMAT),
    "pickle.png": (pickle.dumps({"a": 1}), FORMAT),
    "compressed.ppm": (b"\x1f\x8b\x08" + b"\0" * 100, FORMAT),
    "signature only.png": (PNG[:8], f"{FORMAT}|{DAMAGED}"),
    "header only.png": (PNG[:33], f"{DAMAGED}|{FORMAT}"),
    "no pixels.png": (PNG[:33] + chunk(b"IEND", b""), DAMAGED),
    "half.png": (PNG[: len(PNG) // 2], DAMAGED),
    "wrong checksum.png": (PNG[:29] + b"\0\0\0\0" + PNG[33:], f"{FORMAT}|{DAMAGED}"),
    "not deflated.png": (PNG[:33] + chunk(b"IDAT", b"no zlib at all" * 9) + chunk(b"IEND", b""), DAMAGED),
    "lab.tif": (encoded(PHOTO.convert("LAB"), "TIFF"), "its colors are in LAB"),
    "no width.png": (png(20, 24).replace(struct.pack(">II", 20, 24), struct.pack(">II", 0, 24)), "."),
    "unknown colors.png": (PNG[:25] + b"\x07" + PNG[26:], "."),
    "bomb.png": (png(60_000, 60_000, rows=b"\0" * 100), "limit of 100,000,000"),
    "little bomb.png": (png(10_001, 10_000, rows=b"\0" * 100), "10001x10000 pixels are above the limit"),
    "text bomb.png": (
        png(20, 24, start=chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * (80 << 20)))),
        f"{DAMAGED}|{FORMAT}",
    ),
    "half.jpg": (JPEG[: len(JPEG) // 2], DAMAGED),
    "header only.jpg": (JPEG[:200], f"{DAMAGED}|{FORMAT}"),
    "start only.jpg": (JPEG[:4], f"{DAMAGED}|{FORMAT}"),
    "enormous.jpg": (
        re.sub(rb"(\xff\xc0..\x08)\0\x18\0\x14", lambda match: match[1] + b"\xff" * 4, JPEG, flags=re.S),
        "65535x65535 pixels are above|limit of 100,000,000",
    ),
    "header only.gif": (GIF[:10], f"{DAMAGED}|{FORMAT}"),
    "half.gif": (GIF[: len(GIF) // 2], f"{DAMAGED}|{FORMAT}"),
    "half.webp": (WEBP[: len(WEBP) // 2], f"{DAMAGED}|{FORMAT}"),
    "header only.webp": (WEBP[:16], f"{DAMAGED}|{FORMAT}"),
    "half.bmp": (BMP[: len(BMP) // 2], DAMAGED),
    "enormous.bmp": (BMP[:18] + struct.pack("<ii", 2**30, 2**30) + BMP[26:], "100,000,000"),
    "header only.tif": (TIFF[:8], f"{DAMAGED}|{FORMAT}|damaged TIFF"),
    "half.tif": (TIFF[: len(TIFF) // 2], f"{DAMAGED}|{FORMAT}|damaged TIFF"),
    "dangling offset.tif": (b"II*\0" + struct.pack("<I", 2**31) + b"\0" * 100, f"{DAMAGED}|{FORMAT}|damaged TIFF"),
    "circular.tif": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", f"{DAMAGED}|{FORMAT}|damaged TIFF"),
    "nonsense.ppm": (b"P6 many few 255\n", f"{DAMAGED}|{FORMAT}"),
    "half.ppm": (PPM[: len(PPM) // 2], DAMAGED),
    "enormous.ppm": (b"P6 100000 100000 255\n\0\0\0", "100,000,000"),
    "less than nothing.ppm": (b"P6 -5 -5 255\n" + b"\0" * 100, f"{DAMAGED}|{FORMAT}"),
}
REFUSED = {name for name, (_, outcome) in FILES.items() if outcome != READ}


def test_the_battery_is_large():
    assert len(FILES) >= 60 and len(REFUSED) >= 30 and len(FILES) - len(REFUSED) >= 30


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_each_file_is_decoded_or_refused_with_a_reason(name: str, tmp_path: Path):
    content, outcome = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    if outcome == READ:
        image = decode(path)
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        if "long" not in name and "rotated." not in name and "flipped" not in name and name != "exif.png":
            assert tuple(image.shape[1:]) == TALL
        assert decode(path, 1).shape == (1, *image.shape[1:])
    else:
        with pytest.raises(ImageError, match=outcome) as caught:
            decode(path)
        assert caught.value.name == str(path)
        assert len(caught.value.reason) < 300


@pytest.fixture(scope="module")
def battery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files as test images of two classes, beside valid ones, a dangling link, a link to a device, and a pipe."""
    from conftest import COLORS, fill

    root = fill(tmp_path_factory.mktemp("battery") / "photos", {"train": 6, "test": 2}, tuple(COLORS), (16, 16))
    for i, (name, (content, _)) in enumerate(FILES.items()):
        (root / "test" / ("red", "blue")[i % 2] / name).write_bytes(content)
    os.symlink("nowhere.png", root / "test" / "red" / "dangling.png")
    os.symlink("/dev/zero", root / "test" / "red" / "endless.png")
    os.mkfifo(root / "test" / "blue" / "pipe.png")
    return root


LINKS = {"dangling.png", "endless.png", "pipe.png"}
VALID = 6
N_LISTED = len(FILES) + len(LINKS) + VALID
N_REFUSED = len(REFUSED) + len(LINKS)


@pytest.mark.filterwarnings("ignore")
def test_check_names_exactly_the_files_that_cannot_be_read(battery: Path):
    report = check_data(battery)
    assert {Path(name).name for name in report.unreadable} == REFUSED | LINKS
    assert report.splits["test"] == N_LISTED
    assert sum(finding.code == "unreadable-image" for finding in report.findings) == N_REFUSED
    paths = {finding.code: finding.paths for finding in report.findings}
    assert {Path(name).name for name in paths["wrong-extension"]} >= {"a png.jpg", "a jpeg.png", "a webp.gif"}
    assert {"animated.gif", "animated.webp", "pages.tif"} <= {Path(name).name for name in paths["animated"]}
    assert {Path(name).name for name in paths["rotated"]} == {"rotated.jpg", "flipped.jpg", "exif.png"}
    assert "test/blue/one color.png" in paths["constant-images"] or "test/red/one color.png" in paths["constant-images"]
    assert any("long.png" in name for name in paths["elongated-images"])


@pytest.mark.filterwarnings("ignore")
def test_training_stops_before_the_run_or_skips_and_counts(battery: Path, tmp_path: Path):
    options = {"epochs": 1, "width": 16, "depth": 1, "heads": 2, "mlp_width": 16, "image_size": 16, "patch": 2}
    with pytest.raises(VitrailError, match=f"and {N_REFUSED - 1} more errors"):
        vitrail.train(battery, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    run = vitrail.train(battery, out=tmp_path / "run", skip_unreadable=True, **options)
    assert (run.result["test"]["images"], run.result["test"]["unreadable"]) == (N_LISTED - N_REFUSED, N_REFUSED)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", ["0", "2"])
def test_evaluate_counts_each_file_once_and_keeps_predictions_with_their_images(
    battery, run, capsys, workers, monkeypatch
):
    monkeypatch.setattr("vitrail.data.loader.default_workers", lambda images, processes: int(workers))
    assert main(["evaluate", str(run.folder), str(battery), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]
    assert main(["evaluate", str(run.folder), str(battery), "--skip-unreadable", "--batch-size", "7", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["unreadable"]) == (N_LISTED - N_REFUSED, N_REFUSED)
    assert {Path(each["path"]).name for each in document["unreadable_files"]} == REFUSED | LINKS
    for row in document["predictions"]:
        assert Path(row["path"]).parent.name == row["true"]
        best = run.classifier.predict(row["path"], top=1)[0]
        assert (best.label, best.probability) == (row["label"], pytest.approx(row["probability"], abs=1e-4))


@pytest.mark.filterwarnings("ignore")
def test_predict_has_a_row_for_each_file_and_its_reason(battery: Path, run: vitrail.Run, capsys):
    assert main(["predict", str(run.folder), str(battery / "test"), "--batch-size", "5", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert len(rows) == N_LISTED
    assert {Path(row["path"]).name for row in rows if row["error"]} == REFUSED | LINKS
    for row in rows:
        if row["error"]:
            assert row["top"] == []
            if (name := Path(row["path"]).name) in FILES:
                assert re.search(FILES[name][1], row["error"])
        else:
            best = run.classifier.predict(row["path"], top=1)[0]
            assert row["top"][0]["label"] == best.label
