"""A folder of images: a folder per class, under train/ val/ test/ or not."""

import os
import unicodedata
from pathlib import Path

from vitrail.data.decode import EXTENSIONS
from vitrail.data.encoded import ImageFiles
from vitrail.data.source import SPLIT_NAMES, Listing, Source
from vitrail.errors import VitrailError


def read_image_folder(root: Path) -> Source:
    """The class folders below `root`, per split where they lie in folders with a split's name.

    Raises `VitrailError` for a class folder without images, a folder without class folders, two folders for a split.
    """
    notes: list[str] = []
    folders = list_subfolders(root)
    splits = [folder for folder in folders if folder.name.strip().lower() in SPLIT_NAMES]
    found: dict[str, Listing] = {}
    if any(SPLIT_NAMES[f.name.strip().lower()] == "train" for f in splits) or (splits and splits == folders):
        for folder in splits:
            split = SPLIT_NAMES[folder.name.strip().lower()]
            if split in found:
                raise VitrailError(f"{root} has two folders for {split}, one of them {folder.name}", "keep one of them")
            found[split] = list_class_folders(folder, root, notes)
        others = [folder.name for folder in folders if folder not in splits]
        if others:
            notes.append(f"{root} has train and also {', '.join(others)}, which no split takes in")
    else:
        found["all"] = list_class_folders(root, root, notes)
    return Source(root.resolve().name, found, notes)


def list_class_folders(folder: Path, root: Path, notes: list[str]) -> Listing:
    """The images of each class folder in `folder`, in the order of their paths."""
    classes = list_subfolders(folder)
    if not classes:
        loose = any(has_image_extension(path) for path in folder.iterdir())
        raise VitrailError(
            f"{folder} has {'images but no class folders' if loose else 'no images'}",
            "make a folder for each class and put its images inside",
        )
    if beside := sum(has_image_extension(path) for path in folder.iterdir()):
        notes.append(f"{folder}: {beside} image{'s' if beside > 1 else ''} beside the class folders are left out")
    paths: list[Path] = []
    labels: list[str] = []
    for class_folder in classes:
        check_utf8_name(folder, class_folder.name)
        images, others = walk_images(class_folder)
        if not images:
            raise VitrailError(
                f"the class folder {class_folder} has no images", "put images inside, or remove the folder"
            )
        if others:
            notes.append(f"{class_folder}: {others} file{'s are' if others > 1 else ' is'} not an image and left out")
        paths += images
        labels += [unicodedata.normalize("NFC", class_folder.name)] * len(images)
    return Listing(ImageFiles(paths), [path.relative_to(root).as_posix() for path in paths], labels)


def list_subfolders(folder: Path) -> list[Path]:
    """The folders in a folder in order of name, hidden ones left out."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    except PermissionError:
        raise VitrailError(f"{folder} may not be read", "change its permissions") from None


def check_utf8_name(parent: str | Path, name: str) -> None:
    """Raises `VitrailError` for a name on disk that is not UTF-8: it could be neither printed nor stored."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode(errors="surrogateescape").decode(errors="replace")
        raise VitrailError(f"{parent}: the name {shown!r} is not UTF-8", "rename it") from None


def has_image_extension(path: Path) -> bool:
    """Whether the name is that of an image file."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def walk_images(folder: Path) -> tuple[list[Path], int]:
    """All image files below a folder in order, links followed once, and the number of other files; none hidden."""
    images: list[Path] = []
    others = 0
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in files:
            check_utf8_name(parent, name)
            path = Path(parent, name)
            if has_image_extension(path):
                images.append(path)
            elif not name.startswith(".") and name != "Thumbs.db":
                others += 1
    return sorted(images), others
