"""Which image files are read, which are known but not read, and which files are hidden."""

import functools
import importlib.util
import os
from pathlib import PurePath

EXTENSIONS_OF_FORMAT = {  # Pillow's names of formats; the first extension is the usual one
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tiff", ".tif"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "HEIF": (".heic", ".heif", ".hif"),
}
ARRAY_EXTENSION = ".npy"
DICOM_EXTENSIONS = (".dcm", ".dicom")
DICOM_PREAMBLE_BYTES, DICOM_MAGIC = 128, b"DICM"
START_BYTES = DICOM_PREAMBLE_BYTES + len(DICOM_MAGIC)  # of a file, which tell its format
HAS_DICOM = importlib.util.find_spec("pydicom") is not None  # the library of the extra `dicom`
BAND_EXTENSIONS = (ARRAY_EXTENSION, ".tif", ".tiff", ".png", *DICOM_EXTENSIONS)  # of files whose values may be kept
EXTENSIONS = frozenset(
    (ARRAY_EXTENSION, *(extension for extensions in EXTENSIONS_OF_FORMAT.values() for extension in extensions))
) | frozenset(DICOM_EXTENSIONS if HAS_DICOM else ())
HEIF_LIBRARIES = ("pi_heif", "pillow_heif")  # the same reader; the first is without the encoder and its license
RAW_EXTENSIONS = ("3fr", "arw", "cr2", "cr3", "dng", "nef", "orf", "pef", "raf", "raw", "rw2", "srw", "x3f")
DESIGN_EXTENSIONS = ("ai", "djvu", "emf", "eps", "pdf", "psb", "psd", "svg", "wmf", "xcf")
OTHER_EXTENSIONS = (
    "cur",
    "dds",
    "exr",
    "fit",
    "fits",
    "hdr",
    "icns",
    "ico",
    "jxl",
    "jxr",
    "nii",
    "pcx",
)
RARE_EXTENSIONS = ("pfm", "qoi", "sgi", "svs", "tga", "wdp")
UNREAD_EXTENSIONS = frozenset(
    f".{name}" for name in (*RAW_EXTENSIONS, *DESIGN_EXTENSIONS, *OTHER_EXTENSIONS, *RARE_EXTENSIONS)
) | frozenset(() if HAS_DICOM else DICOM_EXTENSIONS)  # of images in formats that are not read
SYSTEM_NAMES = frozenset(("__MACOSX", "__pycache__", "@eaDir", "Thumbs.db", "desktop.ini"))
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Returns the formats that can be read here, by Pillow's names: HEIF only with the library of the extra `heif`."""
    formats = tuple(name for name in EXTENSIONS_OF_FORMAT if name != "HEIF")
    for library in HEIF_LIBRARIES:
        try:
            importlib.import_module(library).register_heif_opener()
        except ImportError:
            continue
        return (*formats, "HEIF")
    return formats


def extension_of_format(name: str | None) -> str | None:
    """Returns the usual extension of a format by Pillow's name, such as ".jpg"; None for a format that is not read."""
    extensions = EXTENSIONS_OF_FORMAT.get("JPEG" if name == "MPO" else str(name))
    return extensions[0] if extensions else None


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is hidden, or made by a system beside the user's files."""
    return name.startswith(".") or name in SYSTEM_NAMES


def is_image_name(name: str) -> bool:
    """Returns whether a file name ends like that of an image that is read, and is not hidden."""
    return PurePath(name).suffix.lower() in EXTENSIONS and not is_hidden(name)


def is_image_file(path: str | PurePath) -> bool:
    """Returns whether a file is named like an image, or is a DICOM file whose name ends with nothing or a number."""
    name = os.path.basename(path)
    if is_image_name(name):
        return True
    ending = os.path.splitext(name)[1][1:]
    return HAS_DICOM and not is_hidden(name) and (not ending or ending.isdecimal()) and starts_as_dicom(path)


def starts_as_dicom(path: str | PurePath) -> bool:
    """Returns whether a file begins as DICOM files do; False for one that cannot be read."""
    try:
        if not os.path.isfile(path):  # a pipe could be read forever
            return False
        with open(path, "rb") as file:
            return is_dicom(file.read(START_BYTES))
    except (OSError, ValueError):
        return False


def is_dicom(start: bytes) -> bool:
    """Returns whether a file of these first 132 bytes, or more, is a DICOM file."""
    return start[DICOM_PREAMBLE_BYTES:].startswith(DICOM_MAGIC)
