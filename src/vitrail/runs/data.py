"""The data of a run before it: checked, rid of what cannot be read, in memory where they fit."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.console import log, progress_bar
from vitrail.data import Images, Preprocess, Splits
from vitrail.data.check import CheckReport, check_data
from vitrail.data.contact_sheets import draw_class_sheet
from vitrail.data.decode import ImageError
from vitrail.data.encoded import EncodedImages
from vitrail.data.images import load_into_memory
from vitrail.data.preprocess import Fit
from vitrail.errors import VitrailError
from vitrail.files import write_json
from vitrail.runs.folder import RunFolder, Unreadable
from vitrail.training import Recipe

WARNINGS = 8  # that are said before training


def check_before_training(data: str | Path, recipe: Recipe, fit: Fit = "pad") -> CheckReport:
    """What a check finds before training: warnings are said, errors raise `VitrailError`.

    `fit` is what is done with other proportions where the recipe does not say.
    """
    with progress_bar("checking the data", 0) as progress:
        report = check_data(
            data, lambda done, total: progress.update(done, total), batch_size=recipe.batch_size, fit=recipe.fit or fit
        )
    for finding in report.warnings[:WARNINGS]:
        log(f"warning: {finding}")
    if (more := len(report.warnings) - WARNINGS) > 0:
        log(f"warning: {more} more; vitrail check {data} says them all")
    errors = [finding for finding in report.errors if not (recipe.skip_unreadable and finding.is_skippable)]
    if errors:
        others = f" (and {len(errors) - 1} more errors; vitrail check lists them)" if len(errors) > 1 else ""
        raise VitrailError(f"{data}: {errors[0].message}{others}", errors[0].consequence)
    return report


def list_unreadable(report: CheckReport | None) -> Unreadable:
    """The images that a check could not read."""
    found: Unreadable = defaultdict(list)
    for place, _ in report.survey.unreadable if report and report.survey else ():
        found[place.split].append(place.name)
    return dict(found)


def drop_unreadable(splits: Splits, unreadable: Unreadable) -> Splits:
    """The splits less these images; raises `VitrailError` where fewer than two classes are left to train on."""
    parts = {
        name: less(images, {*unreadable.get(splits.source_splits.get(name, name), ())})
        for name, images in splits.as_dict().items()
    }
    counts = {name: len(images) - len(parts[name]) for name, images in splits.as_dict().items()}
    if not (gone := sum(counts.values())):
        return splits
    log(f"{gone} image{'s' if gone > 1 else ''} cannot be read and are left out, as --skip-unreadable says")
    left = [splits.classes[number] for number in np.unique(parts["train"].labels)]
    if len(left) < 2:
        what = f"only the class {left[0]!r} has a training image" if left else "there is not one training image"
        raise VitrailError(f"{what} that can be read; two classes are needed", "vitrail check says why")
    kept: dict[str, Any] = {name: images if len(images) else None for name, images in parts.items()}
    return replace(splits, **kept, unreadable={name: n for name, n in counts.items() if n})


def less(images: Images, gone: set[str]) -> Images:
    """The images but those of these names."""
    return images.subset([i for i, name in enumerate(images.names) if name not in gone]) if gone else images


def show_data(report: CheckReport, folder: RunFolder) -> None:
    """What the check found, beside the run: in full, and as a picture of the classes."""
    write_json(folder.path / "check.json", report.to_json())
    if report.survey:
        draw_class_sheet(report.survey, folder.picture("classes"))


def in_memory(splits: Splits, budget: int, skip_unreadable: bool = False) -> Splits:
    """The splits decoded into memory where they fit in `budget` bytes, which proves that every file can be read."""
    parts = splits.as_dict()
    total = sum(map(len, parts.values()))
    with progress_bar("reading images", total) as progress:
        try:
            loaded: dict[str, Any] = {
                name: load_into_memory(images, budget * len(images) // total, progress.advance)
                for name, images in parts.items()
            }
        except ImageError:
            if skip_unreadable:  # the loader will count it
                return splits
            raise
    return replace(splits, **loaded)


def refuse_small(
    splits: Splits, preprocess: Preprocess, report: CheckReport | None = None, skip_unreadable: bool = False
) -> None:
    """Raises `ImageError` for an image that is too small or too thin, before anything is written.

    Where a check has seen the images it knows their sizes; else as little is read of each as says its own, and nothing
    where no image is too small (one that is too thin is then found when it is read).
    """
    if report and report.survey:
        for place, look in report.survey.readable:
            if why := refusal(preprocess, look.height, look.width):
                pixels = report.survey.source.splits[place.split].pixels
                raise ImageError(pixels.location(place.index) if isinstance(pixels, EncodedImages) else place.name, why)
        return
    if preprocess.min_size == 1:
        return
    parts = splits.as_dict().values()
    with progress_bar("reading sizes", sum(map(len, parts))) as progress:
        for images in parts:
            for i in range(len(images)):
                progress.advance()
                try:
                    size = images.read_size(i)
                except ImageError:
                    if skip_unreadable:  # the loader will count it
                        continue
                    raise
                if why := refusal(preprocess, *size):
                    raise ImageError(images.paths[i], why)


def refusal(preprocess: Preprocess, height: int, width: int) -> str | None:
    """Why an image of this size is refused, if it is."""
    try:
        preprocess.check_size(height, width)
    except ValueError as error:
        return str(error)
    return None
