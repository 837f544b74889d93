"""Predicted classes -> files that other tools import: COCO's JSON, FiftyOne, Label Studio.

Each file has the most probable class of every image that could be read. docs/migrating.md shows how to load them.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from vitrail.console import log
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.files import (
    check_new_folder,
    check_writable,
    create_json,
    describe_write_error,
    write_folder_atomically,
    write_json,
)

AnnotationFormat = Literal["coco", "fiftyone", "label-studio"]
ANNOTATION_FORMATS: tuple[AnnotationFormat, ...] = get_args(AnnotationFormat)
OWN_FILE_FORMATS = ("fiftyone", "label-studio")  # they need images that are files, which images in shards are not


@dataclass(frozen=True)
class LabeledImage:
    """An image with its most probable class."""

    path: str
    label: int  # index of the class
    probability: float
    size: tuple[int, int] | None  # height and width, if known


@dataclass(frozen=True)
class LabeledImages:
    """Images with their classes, and the reasons why others could not be read."""

    classes: tuple[str, ...]
    images: list[LabeledImage]
    unreadable: dict[str, str]  # path -> reason
    model: str  # its name


def check_annotation_request(format: str, out: Path) -> None:
    """Raises `UsageError` for an unknown format, or if `out` exists; `VitrailError` if it cannot be written."""
    if format not in ANNOTATION_FORMATS:
        raise UsageError(f"there is no format {format!r}", did_you_mean(format, ANNOTATION_FORMATS))
    check_new_folder(out)
    if format != "label-studio" and out.is_dir():
        raise UsageError(f"{out} is a folder, and {format} is a file", f"write into a file: {out / 'predictions.json'}")
    check_writable(out.absolute().parent)


def write_annotations(labeled: LabeledImages, out: Path, format: AnnotationFormat) -> None:
    """Writes a new file or folder; raises as `check_annotation_request`, and if an image is not a file but must be."""
    check_annotation_request(format, out)
    if format in OWN_FILE_FORMATS:
        for image in labeled.images:
            require_own_file(image.path, format)
    WRITERS[format](labeled, out)


def require_own_file(path: str, format: str) -> None:
    """Raises `UsageError` if an image is not a file."""
    if not os.path.isfile(path):
        raise UsageError(f"{path} is not a file of its own, which {format} needs", "use the format coco")


def write_coco(labeled: LabeledImages, out: Path) -> None:
    """Writes COCO's images, categories and annotations; an annotation has a score and, as for any class, no box.

    Images that cannot be read are not among the images; `unreadable` has their paths and reasons.
    """
    document = {
        "info": {"description": f"classes predicted by {labeled.model}"},
        "images": [
            {"id": number, "file_name": image.path, **describe_size(image)}
            for number, image in enumerate(labeled.images, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(labeled.classes, 1)],
        "annotations": [
            {"id": number, "image_id": number, "category_id": image.label + 1, "score": image.probability}
            for number, image in enumerate(labeled.images, 1)
        ],
        "unreadable": list_unreadable(labeled),
    }
    write_new_json(out, document)


def write_new_json(out: Path, document: dict[str, Any]) -> None:
    """Writes a JSON file; raises `UsageError` if it exists, `VitrailError` if it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        create_json(out, document)
    except FileExistsError:
        raise UsageError(f"{out} already exists", "choose another path, or move it away") from None
    except OSError as error:
        raise VitrailError(
            f"{out} cannot be written: {describe_write_error(error)}", "free some space, or choose another path"
        ) from None


def describe_size(image: LabeledImage) -> dict[str, int]:
    return {} if image.size is None else {"width": image.size[1], "height": image.size[0]}


def list_unreadable(labeled: LabeledImages) -> list[dict[str, str]]:
    return [{"path": path, "error": reason} for path, reason in labeled.unreadable.items()]


def write_fiftyone(labeled: LabeledImages, out: Path) -> None:
    """Writes the labels of FiftyOneImageClassificationDataset; an image is named by its absolute path.

    `unreadable`, which FiftyOne does not read, has the images without a label.
    """
    labels = {
        os.path.abspath(image.path): {"label": image.label, "confidence": image.probability} for image in labeled.images
    }
    write_new_json(out, {"classes": list(labeled.classes), "labels": labels, "unreadable": list_unreadable(labeled)})


def write_label_studio(labeled: LabeledImages, out: Path) -> None:
    """Writes tasks.json, with a prediction for each image, and label_config.xml with the classes.

    The images are local files below the folder that is printed. `unreadable.json`, if there is one, has the images
    without a task.
    """
    folder, root = find_storage([image.path for image in labeled.images])
    tasks = [make_task(image, labeled, root) for image in labeled.images]
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in labeled.classes)
    config = (
        '<View>\n  <Image name="image" value="$image"/>\n  <Choices name="choice" toName="image" choice="single">\n'
        f"{choices}\n  </Choices>\n</View>\n"
    )
    with write_folder_atomically(out) as new:
        write_json(new / "tasks.json", tasks)
        (new / "label_config.xml").write_text(config, encoding="utf-8")
        if labeled.unreadable:
            write_json(new / "unreadable.json", list_unreadable(labeled))
    log(
        "Label Studio shows the images if it runs with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, and the project has the local storage {folder}"
    )


def find_storage(paths: list[str]) -> tuple[Path, Path]:
    """Returns the folder that has all images below it, and the folder above, which Label Studio takes as its root."""
    folder = Path(os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths] or [os.getcwd()]))
    return folder, folder.parent


def make_task(image: LabeledImage, labeled: LabeledImages, root: Path) -> dict[str, Any]:
    """Returns a task of Label Studio with one prediction."""
    place = quote(Path(os.path.abspath(image.path)).relative_to(root).as_posix())
    result = {
        "from_name": "choice",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": [labeled.classes[image.label]]},
        "score": image.probability,
    }
    return {
        "data": {"image": f"/data/local-files/?d={place}", "path": image.path},
        "predictions": [{"model_version": labeled.model, "score": image.probability, "result": [result]}],
    }


WRITERS: dict[str, Callable[[LabeledImages, Path], None]] = {
    "coco": write_coco,
    "fiftyone": write_fiftyone,
    "label-studio": write_label_studio,
}
