"""A folder of images: a folder per class, optionally below train/, val/ and test/."""

import os
import unicodedata
from pathlib import Path

from vitrail.data.decode import EXTENSIONS
from vitrail.data.encoded import ImageFiles
from vitrail.data.source import SPLIT_NAMES, Listing, Source
from vitrail.errors import VitrailError


def read_image_folder(root: Path) -> Source:
    """Lists the class folders below `root`, by split if there are folders named after splits.

    Raises `VitrailError` for a class folder without images, a folder without class folders, and two folders of one
    split.
    """
    ignored: list[str] = []
    folders = list_subfolders(root)
    split_of = {folder: SPLIT_NAMES.get(folder.name.strip().lower()) for folder in folders}
    split_folders = [folder for folder in folders if split_of[folder]]
    if "train" not in split_of.values() and (not split_folders or split_folders != folders):
        return Source(root.resolve().name, {"all": list_class_folders(root, root, ignored)}, ignored=ignored)
    splits: dict[str, Listing] = {}
    for folder in split_folders:
        split = str(split_of[folder])
        if split in splits:
            raise VitrailError(f"{root} has two folders for {split}, one of them {folder.name}", "keep one of them")
        splits[split] = list_class_folders(folder, root, ignored)
    others = [folder.name for folder in folders if not split_of[folder]]
    if others:
        ignored.append(f"{root} has train and also {', '.join(others)}, which is in no split and ignored")
    return Source(root.resolve().name, splits, ignored=ignored)


def list_class_folders(folder: Path, root: Path, ignored: list[str]) -> Listing:
    """Lists the images of each class folder in `folder`, sorted by path, and appends to `ignored`."""
    classes = list_subfolders(folder)
    images_beside = sum(has_image_extension(path) for path in folder.iterdir())
    if not classes:
        raise VitrailError(
            f"{folder} has {'images but no class folders' if images_beside else 'no images'}",
            "make a folder for each class and put its images inside",
        )
    if images_beside:
        ignored.append(f"{folder}: {count(images_beside, 'image')} beside the class folders ignored")
    paths: list[Path] = []
    labels: list[str] = []
    for class_folder in classes:
        check_utf8_name(folder, class_folder.name)
        images, n_others = walk_images(class_folder)
        if not images:
            raise VitrailError(
                f"the class folder {class_folder} has no images", "put images inside, or remove the folder"
            )
        if n_others:
            ignored.append(f"{class_folder}: {count(n_others, 'file')} that are not images ignored")
        paths += images
        labels += [unicodedata.normalize("NFC", class_folder.name)] * len(images)
    return Listing(ImageFiles(paths), [path.relative_to(root).as_posix() for path in paths], labels)


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def list_subfolders(folder: Path) -> list[Path]:
    """Returns the folders in a folder, sorted by name, without hidden ones."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    except PermissionError:
        raise VitrailError(f"{folder} may not be read", "change its permissions") from None


def check_utf8_name(parent: str | Path, name: str) -> None:
    """Raises `VitrailError` for a file name that is not UTF-8: it could be neither printed nor stored."""
    try:
        name.encode()
    except UnicodeEncodeError:
        printable = name.encode(errors="surrogateescape").decode(errors="replace")
        raise VitrailError(f"{parent}: the name {printable!r} is not UTF-8", "rename it") from None


def has_image_extension(path: Path) -> bool:
    """Returns whether a path ends like an image file and is not hidden."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def walk_images(folder: Path) -> tuple[list[Path], int]:
    """Returns all image files below a folder, sorted, and the number of other files. Hidden ones are not counted.

    Links to folders are followed; a folder that is reached twice is listed once.
    """
    images: list[Path] = []
    n_others = 0
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in files:
            check_utf8_name(parent, name)
            path = Path(parent, name)
            if has_image_extension(path):
                images.append(path)
            elif not name.startswith(".") and name != "Thumbs.db":
                n_others += 1
    return sorted(images), n_others
