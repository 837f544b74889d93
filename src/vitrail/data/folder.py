"""A folder of images: a folder per class, in or around folders named train, val and test."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vitrail.data.encoded import ImageFiles
from vitrail.data.formats import is_image_name
from vitrail.data.labels import categorize
from vitrail.data.source import SPLIT_NAMES, LeftOut, Listing, Source
from vitrail.data.walk import Omissions, count, list_entries, walk_images
from vitrail.errors import VitrailError

CLASS_HINT = "make a folder for each class and put its images inside, or list images and classes in a CSV"
SPLIT_HINT = "rename it if it is a class; otherwise move the other folders away, or into it"
INNER_HINT = "put all images of a class below train, val and test, or rename the folder"

ClassImages = dict[str, list[Path]]  # by class, in the order of the names of the folders


def read_image_folder(root: Path) -> Source:
    """Lists the images of a folder in one of these layouts: CLASS/..., SPLIT/CLASS/... and CLASS/SPLIT/...

    A folder named after a split is one if it holds folders; otherwise it is a class. Raises `VitrailError` for a class
    folder without images, for a folder without class folders, for two folders of one split, and where it is not clear
    what is a split. Folders that cannot be listed are in `damaged`.
    """
    omissions = Omissions()
    left_out: list[LeftOut] = []
    folders, files = list_entries(root, omissions)
    if omissions.unreachable and not folders and not files:
        raise VitrailError(omissions.unreachable[0], "change its permissions")
    split_folders = find_split_folders(root, folders)
    notes = []
    if split_folders:
        left_out += describe_beside(root, files, "split folders", omissions)
        splits = {
            split: list_class_folders(folder, root, left_out, omissions, split)
            for folder, split in split_folders.items()
        }
        left_out += describe_other_folders(root, [each for each in folders if each not in split_folders])
    else:
        classes = walk_class_folders(root, (folders, files), left_out, omissions)
        splits = divide_by_inner_split(root, classes)
        if set(splits) != {"all"}:
            notes.append(f"{root}: the folders {' and '.join(splits)} in each class are read as splits")
        notes += [f"{root}: {each.name} is read as a class" for each in folders if split_name(each)]
    return Source(
        root.resolve().name,
        splits,
        notes=notes,
        left_out=[*left_out, *omissions.describe(root)],
        damaged=omissions.unreachable,
        hint="change their permissions, or skip them with --skip-unreadable",
    )


def split_name(folder: Path) -> str | None:
    """Returns the split that a folder is named after."""
    return SPLIT_NAMES.get(folder.name.strip().lower())


def find_split_folders(root: Path, folders: Sequence[Path]) -> dict[Path, str]:
    """Returns the folders that are splits, each with its split; none if `folders` are classes."""
    named = {folder: split for folder in folders if (split := split_name(folder))}
    others = [folder for folder in folders if folder not in named]
    deep = [folder for folder in named if list_entries(folder, Omissions())[0]]
    if not named or (not deep and others and len(named) == 1):
        return {}
    splits = set(named.values())
    doubtful = bool(others) and (not deep or len(splits) == 1)
    if doubtful and any(walk_images(folder, Omissions()) for folder in others):
        raise VitrailError(
            f"{root} has folders named after splits ({', '.join(each.name for each in named)}) beside others "
            f"({', '.join(each.name for each in others[:3])}{' ...' if len(others) > 3 else ''})",
            SPLIT_HINT,
        )
    if len(splits) < len(named):
        first, second = next([a, b] for a in named for b in named if a < b and named[a] == named[b])
        raise VitrailError(f"{root} has two folders for {named[first]}, {first.name} and {second.name}", "keep one")
    return named


def list_class_folders(folder: Path, root: Path, left_out: list[LeftOut], omissions: Omissions, split: str) -> Listing:
    """Lists the images of each class folder in the folder of a split; raises `VitrailError` as `read_image_folder`."""
    classes = walk_class_folders(folder, list_entries(folder, omissions), left_out, omissions)
    for class_folder, path in ((Path(name), path) for name, images in classes.items() for path in images):
        inner = path.relative_to(class_folder).parts[0] if path.parent != class_folder else ""
        if SPLIT_NAMES.get(inner.lower(), split) != split:
            raise VitrailError(f"{path} is in two splits, {split} and {inner}", "rename or move the inner folder")
    return make_listing(root, classes)


def walk_class_folders(
    folder: Path, entries: tuple[list[Path], list[Path]], left_out: list[LeftOut], omissions: Omissions
) -> ClassImages:
    """Returns the images of each class folder among the `entries` of `folder`, by the path of the class folder."""
    class_folders, files = entries
    if not class_folders:
        has_images = any(is_image_name(path.name) for path in files)
        raise VitrailError(f"{folder} has {'images but no class folders' if has_images else 'no images'}", CLASS_HINT)
    left_out += describe_beside(folder, files, "class folders", omissions)
    classes: ClassImages = {}
    for class_folder in class_folders:
        n_unreachable, n_others = len(omissions.unreachable), omissions.counts.total()
        images = walk_images(class_folder, omissions)
        if not images and len(omissions.unreachable) == n_unreachable:
            n_others = omissions.counts.total() - n_others
            others = f", but {count(n_others, 'other file')}" if n_others else ""
            raise VitrailError(
                f"the class folder {class_folder} has no images{others}", "put images inside, or remove the folder"
            )
        classes[str(class_folder)] = images
    return classes


def divide_by_inner_split(root: Path, classes: ClassImages) -> dict[str, Listing]:
    """Returns a listing per split if the images of all classes are in folders named after splits, else one of all.

    Raises `VitrailError` if only some of them are.
    """
    parts: dict[str | None, ClassImages] = {}
    for class_folder, images in classes.items():
        for path in images:
            first = path.relative_to(class_folder).parts[0]
            split = SPLIT_NAMES.get(first.strip().lower()) if path.parent != Path(class_folder) else None
            parts.setdefault(split, {}).setdefault(class_folder, []).append(path)
    if set(parts) <= {None}:
        return {"all": make_listing(root, classes)}
    if None in parts:
        outside = next(iter(parts.pop(None).values()))[0]
        inside = next(iter(next(iter(parts.values())).values()))[0]
        raise VitrailError(f"{inside} is in a folder named after a split, and {outside} is not", INNER_HINT)
    order = [split for split in dict.fromkeys(SPLIT_NAMES.values()) if split in parts]
    return {split: make_listing(root, parts[split]) for split in order}


def make_listing(root: Path, classes: ClassImages) -> Listing:
    """Returns the images of class folders as a listing; a class has the name of its folder."""
    paths = [path for images in classes.values() for path in images]
    labels = [unicodedata.normalize("NFC", Path(folder).name) for folder, images in classes.items() for _ in images]
    return Listing(ImageFiles(paths), [path.relative_to(root).as_posix() for path in paths], categorize(labels))


def describe_beside(folder: Path, files: Sequence[Path], beside: str, omissions: Omissions) -> list[LeftOut]:
    """Returns a sentence on images that are beside the folders that are read; adds other files to `omissions`."""
    images = [path for path in files if is_image_name(path.name)]
    for path in files:
        if not is_image_name(path.name):
            omissions.add_file(path)
    sentence = f"{folder}: {count(len(images), 'image')} beside the {beside}"
    return [LeftOut(f"{sentence}, first {images[0].name}", len(images))] if images else []


def describe_other_folders(root: Path, folders: Sequence[Path]) -> list[LeftOut]:
    """Returns a sentence on folders beside the splits, with the number of their images."""
    if not folders:
        return []
    omissions = Omissions()
    images = sum(len(walk_images(folder, omissions)) for folder in folders)
    names = ", ".join(folder.name for folder in folders)
    sentence = f"{root}: {names} ({count(images, 'image')}), which is in no split"
    return [LeftOut(sentence, images + omissions.counts.total())]
