"""Which image files are read, which are known but not read, and which files are hidden."""

import functools
import importlib
from pathlib import Path, PurePath
from typing import BinaryIO

from PIL import features

from vitrail.installation import install_hint

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
EXTENSIONS = frozenset(
    (ARRAY_EXTENSION, *(extension for extensions in EXTENSIONS_OF_FORMAT.values() for extension in extensions))
)
HEIF_LIBRARIES = ("pi_heif", "pillow_heif")  # the same reader; the first is without the encoder and its license
RAW_EXTENSIONS = ("3fr", "arw", "cr2", "cr3", "dng", "nef", "orf", "pef", "raf", "raw", "rw2", "srw", "x3f")
DESIGN_EXTENSIONS = ("ai", "djvu", "emf", "eps", "pdf", "psb", "psd", "svg", "wmf", "xcf")
OTHER_EXTENSIONS = (
    "cur",
    "dcm",
    "dds",
    "dicom",
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
)  # of images in formats that are not read
SYSTEM_NAMES = frozenset(("__MACOSX", "__pycache__", "@eaDir", "Thumbs.db", "desktop.ini"))
CONVERT_HINT = "convert it to JPEG or PNG"
MAGIC_BYTES = 16  # that `explain_unread` looks at
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAGIC = (  # offset, bytes, name of a format that is not read
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"SIMPLE", "FITS"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"qoif", "QOI"),
)


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


def explain_unread(start: bytes) -> str:
    """Returns why a file that starts with these bytes cannot be read as an image."""
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        return explain_heif()
    if start[4:12] == b"ftypavif":
        return explain_avif()
    if start.startswith(TIFF_MAGICS):
        return "it is a damaged TIFF, or has other channels or values than a gray or color image of 8 bits"
    for offset, magic, name in MAGIC:
        if start[offset : offset + len(magic)] == magic:
            return f"{name} files are not read; {CONVERT_HINT}"
    return f"not an image, or not one of {', '.join(readable_formats())}"


def explain_avif() -> str:
    if features.check("avif"):
        return "it is a damaged AVIF"
    return f"it is an AVIF that this Pillow cannot read; update Pillow, or {CONVERT_HINT}"


def explain_heif() -> str:
    if "HEIF" in readable_formats():
        return "it is a damaged HEIC"
    return f"it is a HEIC, and reading it needs pi-heif: {install_hint('heif')}, or {CONVERT_HINT}"


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


def read_start(file: str | Path | BinaryIO) -> bytes:
    """Returns the first bytes of a file; none if it cannot be read again."""
    try:
        if isinstance(file, str | Path):
            with open(file, "rb") as stream:
                return stream.read(MAGIC_BYTES)
        file.seek(0)
        return file.read(MAGIC_BYTES)
    except OSError:
        return b""
