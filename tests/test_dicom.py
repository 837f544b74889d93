"""DICOM files: values, what is refused, and that nothing of a patient gets into any output."""

import json
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrail.cli import main
from vitrail.data import formats, walk
from vitrail.data.bands import Bands
from vitrail.data.decode import ImageError, decode, read_size
from vitrail.data.open import open_source
from vitrail.data.shards.writer import write_shards

pydicom = pytest.importorskip("pydicom")
TINY = ["--epochs", "1", "--width", "16", "--depth", "1", "--heads", "2", "--patch", "4", "--batch-size", "8"]


def dicom(array: np.ndarray, kind: str = "MONOCHROME2", bits: int = 12, **elements: Any) -> bytes:
    """A DICOM file of an array (h, w) or (h, w, 3), with a patient's name."""
    file = pydicom.dataset.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = elements.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    file.SOPClassUID, file.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, pydicom.uid.generate_uid()
    file.PatientName, file.PatientID = "Secretname^Jane", "Secretnumber-17"
    file.Rows, file.Columns = array.shape[:2]
    file.SamplesPerPixel = 3 if array.ndim == 3 else 1
    if array.ndim == 3:
        file.PlanarConfiguration = 0
    file.PhotometricInterpretation = kind
    file.BitsAllocated, file.PixelRepresentation = 8 * array.dtype.itemsize, int(array.dtype.kind == "i")
    file.BitsStored = min(bits, file.BitsAllocated)
    file.HighBit = file.BitsStored - 1
    pixels = array.tobytes()
    is_compressed = file.file_meta.TransferSyntaxUID.is_compressed
    file.PixelData = pydicom.encaps.encapsulate([pixels]) if is_compressed else pixels
    file["PixelData"].VR = "OB" if file.BitsAllocated == 8 or is_compressed else "OW"
    for name, value in elements.items():
        setattr(file, name, value)
    content = BytesIO()
    pydicom.dcmwrite(content, file, enforce_file_format=True)
    return content.getvalue()


VALUES = np.random.default_rng(0).integers(0, 4096, (8, 10)).astype(np.uint16)
SIGNED = VALUES.astype(np.int16) - 2048
FILES: dict[str, tuple[bytes, np.ndarray]] = {
    "plain": (dicom(VALUES), VALUES),
    "rescaled": (dicom(VALUES, RescaleSlope=2, RescaleIntercept=-1024), VALUES * 2.0 - 1024),
    "signed": (dicom(SIGNED, RescaleSlope="0.5"), SIGNED * 0.5),
    "inverted": (dicom(VALUES, "MONOCHROME1"), 4095 - VALUES.astype(float)),
    "inverted, signed": (dicom(SIGNED, "MONOCHROME1", RescaleIntercept=7), -1.0 - SIGNED + 7),
    "window": (dicom(VALUES, WindowCenter=40, WindowWidth=80), VALUES),
    "8 bits": (dicom((VALUES // 16).astype(np.uint8), bits=8), VALUES // 16),
}


@pytest.mark.parametrize("case", FILES)
def test_values_are_those_after_rescaling(case: str, tmp_path: Path):
    content, expected = FILES[case]
    for name in ("a.dcm", "1.2.840.10008", "IM0001"):
        (tmp_path / name).write_bytes(content)
        assert np.array_equal(decode(tmp_path / name, Bands(1, "float32"))[0].numpy(), expected.astype(np.float32))
    assert np.array_equal(decode(BytesIO(content), Bands(1, "float32"))[0].numpy(), expected.astype(np.float32))
    assert read_size(tmp_path / "IM0001") == (8, 10)


def test_color_of_8_bits_is_a_color_image(tmp_path: Path):
    color = np.random.default_rng(0).integers(0, 256, (8, 10, 3)).astype(np.uint8)
    (tmp_path / "a.dcm").write_bytes(dicom(color, "RGB", 8))
    assert np.array_equal(decode(tmp_path / "a.dcm").permute(1, 2, 0).numpy(), color)


BAD: dict[str, tuple[bytes, str]] = {
    "frames": (dicom(VALUES, NumberOfFrames=3), "it has 3 frames; save each as a file of its own"),
    "palette": (dicom(VALUES, "PALETTE COLOR"), "its colors are PALETTE COLOR of 1 samples"),
    "compression": (dicom(VALUES, syntax=pydicom.uid.JPEGLSLossless), "JPEG-LS .* a library: pip install python-gdcm"),
    "truncated": (dicom(VALUES)[:-40], "damaged or truncated"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_sentence(case: str, tmp_path: Path):
    content, sentence = BAD[case]
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(ImageError, match=sentence) as caught:
        decode(tmp_path / "a.dcm", Bands(1, "float32"))
    assert "Secret" not in str(caught.value)


def test_a_warning_on_a_damaged_file_is_not_shown(caplog: pytest.LogCaptureFixture):
    """The length of an element that is read reaches over the patient's name, and pydicom warns with its value."""
    content = bytearray(dicom(VALUES))
    content[content.index(b"1.2.840.10008.1.2.1\0") - 1] = 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        with pytest.raises(ImageError) as error:
            decode(BytesIO(content), Bands(1, "float32"))
    assert "Secret" not in str(error.value) and not caught and not caplog.records


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 files, half of them without an extension, of two classes."""
    root = tmp_path_factory.mktemp("scans") / "scans"
    random = np.random.default_rng(0)
    for i in range(40):
        path = root / ("dense", "thin")[i % 2] / (f"1.2.{i}" if i % 4 < 2 else f"{i}.dcm")
        path.parent.mkdir(parents=True, exist_ok=True)
        values = random.integers(0, 1000, (8, 8)).astype(np.uint16) + np.uint16(2000 * (i % 2))
        path.write_bytes(dicom(values, RescaleSlope=1, RescaleIntercept=-1024))
    return root


def test_nothing_of_a_patient_is_in_any_output(scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    run, image = tmp_path / "run", min(scans.rglob("*.dcm"))
    for arguments in (
        ["check", scans, "--out", tmp_path / "check"],
        ["train", scans, "--out", run, *TINY],
        ["evaluate", run, scans, "--out", tmp_path / "scores"],
        ["predict", run, scans, "--out", tmp_path / "rows", "--format", "csv"],
        ["explain", run, image, "--out", tmp_path / "maps"],
    ):
        assert main([*map(str, arguments)]) == 0
    source = open_source(scans)
    assert source.channels == Bands(1, "float32") and len(source.splits["all"]) == 40 and not source.left_out
    printed = capfd.readouterr()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and json.loads((tmp_path / "rows" / "_summary.json").read_text())["images"] == 40
    for content in (printed.out.encode(), printed.err.encode(), *(path.read_bytes() for path in files)):
        assert b"Secret" not in content


def test_shards_have_the_same_values(scans: Path, tmp_path: Path):
    source = open_source(scans)
    write_shards(source, tmp_path / "shards")
    packed = open_source(tmp_path / "shards")
    assert packed.channels == source.channels
    for i in range(40):
        assert np.array_equal(packed.splits["all"].pixels[i], source.splits["all"].pixels[i])
    (tmp_path / "shards" / "index.safetensors").unlink()
    assert open_source(tmp_path / "shards").channels == source.channels


def test_without_pydicom_files_are_left_out_by_name(scans: Path, monkeypatch: pytest.MonkeyPatch):
    code = "import sys; sys.modules['pydicom'] = None\nfrom vitrail.data import formats\n"
    code += "print(formats.HAS_DICOM, '.dcm' in formats.EXTENSIONS, '.dcm' in formats.UNREAD_EXTENSIONS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]
    monkeypatch.setattr(formats, "HAS_DICOM", False)
    monkeypatch.setattr(formats, "EXTENSIONS", formats.EXTENSIONS - {".dcm"})
    monkeypatch.setattr(walk, "UNREAD_EXTENSIONS", walk.UNREAD_EXTENSIONS | {".dcm"})
    omissions = walk.Omissions()
    assert walk.walk_images(scans, omissions) == []
    sentences = " ".join(each.sentence for each in omissions.describe(scans))
    assert "20 images in a format that is not read (20 .dcm; pip install" in sentences
    assert "20 files not named like an image" in sentences
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"reading it needs pydicom: pip install .*dicom"):
        decode(min(scans.rglob("*.dcm")), Bands(1, "float32"))
