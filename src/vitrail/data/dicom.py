"""DICOM files: their values after rescaling, read with pydicom (`vitrail[dicom]`).

Only the elements in `TAGS` are read: names and other facts about patients are never in memory. A window is not applied,
because it is a choice of a viewer for a screen, and would cut off values.
"""

import logging
from typing import Any, BinaryIO

import numpy as np

from vitrail.console import hide_warnings
from vitrail.data.bands import BandHeader, Bands, BandsError
from vitrail.installation import install_hint

GRAY = ("MONOCHROME1", "MONOCHROME2")  # the smallest value is white, or black
TAGS = [
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "PixelData", "FloatPixelData", "DoubleFloatPixelData",
]  # fmt: skip


def read_elements(stream: BinaryIO, *, with_pixels: bool) -> Any:
    """Returns the elements of `TAGS`; raises `BandsError` if pydicom is not installed."""
    try:
        import pydicom
    except ImportError:
        raise BandsError(f"it is a DICOM file, and reading it needs pydicom: {install_hint('dicom')}") from None
    hide_warnings("pydicom")  # those on a damaged file have parts of it, and are logged too
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    return pydicom.dcmread(stream, stop_before_pixels=not with_pixels, specific_tags=list(TAGS))


def find_dicom(stream: BinaryIO) -> BandHeader:
    """Returns the header: gray images have floats, color images 8 or 16 bits. Raises `BandsError` for other files."""
    elements = read_elements(stream, with_pixels=False)
    if "Rows" not in elements or "Columns" not in elements:
        raise BandsError("it is a DICOM file without an image")
    if (frames := int(elements.get("NumberOfFrames") or 1)) > 1:
        raise BandsError(f"it has {frames} frames; save each as a file of its own")
    if "ModalityLUTSequence" in elements:
        raise BandsError("its values are rescaled by a table (Modality LUT), which is not read; save them rescaled")
    kind, samples = str(elements.get("PhotometricInterpretation", "")), int(elements.get("SamplesPerPixel") or 1)
    if samples == 1 and kind in GRAY:
        bands = Bands(1, "float32")
    elif samples == 3 and kind.startswith(("RGB", "YBR")):
        bands = Bands(3, "uint8" if int(elements.get("BitsAllocated") or 8) == 8 else "uint16")
    else:
        raise BandsError(f"its colors are {kind or 'not known'} of {samples} samples; save it as gray or RGB")
    return BandHeader("DICOM", bands, int(elements.Rows), int(elements.Columns), is_plain=bands.is_plain)


def read_dicom(stream: BinaryIO, header: BandHeader) -> tuple[np.ndarray, int]:
    """Returns the values, (C, h, w): of gray images rescaled, with MONOCHROME1 inverted first; and orientation 1."""
    from pydicom.pixels.utils import pixel_array

    elements = read_elements(stream, with_pixels=True)
    check_compression(elements)
    array: np.ndarray = pixel_array(elements)
    if header.bands.count == 3:
        return np.moveaxis(array, 2, 0), header.orientation
    values = array.astype(np.float64)
    if elements.PhotometricInterpretation == GRAY[0]:
        values = sum(stored_range(elements)) - values
    slope, intercept = (elements.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    values = values * float(1 if slope is None else slope) + float(0 if intercept is None else intercept)
    return values[None], header.orientation


def stored_range(elements: Any) -> tuple[int, int]:
    """Returns the smallest and the largest value that the stored bits hold."""
    bits = int(elements.BitsStored)
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if elements.PixelRepresentation else (0, (1 << bits) - 1)


def check_compression(elements: Any) -> None:
    """Raises `BandsError` for a compression that no installed library reads, with one that does."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = elements.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax.is_deflated:
        return
    try:
        is_available = get_decoder(syntax).is_available
    except NotImplementedError:
        is_available = False
    if not is_available:
        raise BandsError(f"its compression is {syntax.name}, which needs a library: pip install python-gdcm")
