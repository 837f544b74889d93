"""The data of a run: opened, checked, without unreadable images, and in memory if they fit."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.console import log, progress_bar
from vitrail.data.check import CheckReport, check_data
from vitrail.data.contact_sheets import draw_class_sheet
from vitrail.data.decode import ImageError, ImageUnreachable
from vitrail.data.encoded import EncodedImages
from vitrail.data.images import Images, load_into_memory
from vitrail.data.open import open_data
from vitrail.data.options import Fit
from vitrail.data.preprocess import ImageSizeError, Preprocess
from vitrail.data.split import Splits
from vitrail.errors import VitrailError
from vitrail.files import write_json
from vitrail.machine import GIB
from vitrail.runs.folder import RunFolder, Unreadable
from vitrail.runs.pretrained import Pretrained
from vitrail.training.distributed import World
from vitrail.training.recipe import Recipe

MAX_WARNINGS = 8  # findings of the check that are printed before training


@dataclass(frozen=True)
class RunData:
    """What a run trains on."""

    splits: Splits
    unreadable: Unreadable = field(default_factory=dict)  # images of the source that the splits are without
    report: CheckReport | None = None  # of the data check, on the main process


def load_data(
    data: str | Path,
    recipe: Recipe,
    world: World,
    *,
    pretrained: Pretrained | None = None,
    resumed: RunFolder | None = None,
    check: bool = True,
    score_test: bool = True,
) -> RunData:
    """Opens the data, checks them on the main process, drops unreadable images and decodes the rest into memory.

    Pretrained weights decide the channels. A resumed run drops what it was started without. Raises `VitrailError` for
    errors in the data, and if a resumed run was started on other data.
    """
    theirs = pretrained.classifier.preprocess if pretrained else None
    started = resumed.load_config() if resumed else None
    with world.raise_on_all(), world.local_main_first():
        splits = open_data(
            data,
            channels=theirs.channels if theirs else None,
            validation=recipe.validation_fraction,
            test=recipe.test_fraction,
            split_seed=recipe.split_seed,
            missing_ok=recipe.skip_unreadable,
        )
        if resumed and started and splits.fingerprint != started.fingerprint:
            raise VitrailError(
                f"the data are not those that {resumed.path} was started on",
                "resume on the same files, or start a new run on these",
            )
    with world.raise_on_all():
        fit = theirs.fit if theirs else "pad"
        report = check_before_training(data, recipe, fit) if check and world.is_main else None
    unreadable = started.unreadable if started else world.on_main(lambda: list_unreadable(report))
    with world.raise_on_all():
        splits = drop_unreadable(splits if score_test else replace(splits, test=None), unreadable)
        cache_bytes = int(recipe.image_cache_gib * GIB) // world.local_size
        splits = cache_in_memory(splits, cache_bytes, recipe.skip_unreadable)
    return RunData(splits, unreadable, report)


def check_before_training(data: str | Path, recipe: Recipe, fit: Fit = "pad") -> CheckReport:
    """Checks the data and prints warnings; raises `VitrailError` for the first error.

    `fit` applies if the recipe names none.
    """
    with progress_bar("checking the data", 0) as progress:
        report = check_data(
            data, lambda done, total: progress.update(done, total), batch_size=recipe.batch_size, fit=recipe.fit or fit
        )
    for finding in report.warnings[:MAX_WARNINGS]:
        log(f"warning: {finding}")
    if (more := len(report.warnings) - MAX_WARNINGS) > 0:
        log(f"warning: {more} more; vitrail check {data} lists them all")
    errors = [finding for finding in report.errors if not (recipe.skip_unreadable and finding.is_skippable)]
    if errors:
        others = f" (and {len(errors) - 1} more errors; vitrail check lists them)" if len(errors) > 1 else ""
        raise VitrailError(f"{data}: {errors[0].message}{others}", errors[0].consequence)
    return report


def list_unreadable(report: CheckReport | None) -> Unreadable:
    """Returns the images that a check could not read, by split.

    Those of a failing disk or network are not among them: `check_before_training` raises their errors.
    """
    unreadable: Unreadable = defaultdict(list)
    for image, error in report.survey.unreadable if report and report.survey else ():
        if not isinstance(error, ImageUnreachable):
            unreadable[image.split].append(image.name)
    return dict(unreadable)


def drop_unreadable(splits: Splits, unreadable: Unreadable) -> Splits:
    """Returns the splits without these images; raises `VitrailError` if fewer than two training classes remain."""
    before = splits.as_dict()
    after: dict[str, Images] = {}
    for name, images in before.items():
        dropped = {*unreadable.get(splits.source_splits.get(name, name), ())}
        readable = [i for i, image in enumerate(images.names) if image not in dropped]
        after[name] = images.subset(readable) if len(readable) < len(images) else images
    counts = {name: len(images) - len(after[name]) for name, images in before.items()}
    if not (total := sum(counts.values())):
        return splits
    log(f"{total} unreadable image{'s are' if total > 1 else ' is'} skipped (--skip-unreadable)")
    classes = [splits.classes[number] for number in np.unique(after["train"].labels)]
    if len(classes) < 2:
        reason = f"only the class {classes[0]!r} has a" if classes else "there is no"
        raise VitrailError(
            f"{reason} readable training image; two classes are needed", "vitrail check lists the reasons"
        )
    remaining: dict[str, Any] = {name: images if len(images) else None for name, images in after.items()}
    return replace(splits, **remaining, unreadable={name: count for name, count in counts.items() if count})


def cache_in_memory(splits: Splits, cache_bytes: int, skip_unreadable: bool = False) -> Splits:
    """Decodes the splits into memory if they fit in `cache_bytes`, which proves that each file can be read."""
    parts = splits.as_dict()
    total = sum(map(len, parts.values()))
    with progress_bar("reading images", total) as progress:
        try:
            cached: dict[str, Any] = {
                name: load_into_memory(images, cache_bytes * len(images) // total, progress.advance)
                for name, images in parts.items()
            }
        except ImageError:
            if skip_unreadable:  # the loader counts it
                return splits
            raise
    return replace(splits, **cached)


def check_image_sizes(run_data: RunData, preprocess: Preprocess, skip_unreadable: bool = False) -> None:
    """Raises `ImageError` for an image that is too small or too thin for the model.

    Uses the sizes that the data check has read. Without a check it reads the sizes from the files, unless no image can
    be too small; one that is too thin then raises when it is loaded.
    """
    report = run_data.report
    if report and report.survey:
        for image, look in report.survey.readable:
            if reason := size_error(preprocess, look.height, look.width):
                pixels = report.survey.source.splits[image.split].pixels
                raise ImageError(
                    pixels.location(image.index) if isinstance(pixels, EncodedImages) else image.name, reason
                )
        return
    if preprocess.min_size == 1:
        return
    parts = run_data.splits.as_dict().values()
    with progress_bar("reading sizes", sum(map(len, parts))) as progress:
        for images in parts:
            check_sizes_of(images, preprocess, skip_unreadable, progress.advance)


def check_sizes_of(
    images: Images, preprocess: Preprocess, skip_unreadable: bool, tick: Callable[[], object] = lambda: None
) -> None:
    """Raises `ImageError` for an image of a set that is too small; `tick` is called for each image."""
    for i in range(len(images)):
        tick()
        try:
            size = images.read_size(i)
        except ImageError:
            if skip_unreadable:  # the loader counts it
                continue
            raise
        if reason := size_error(preprocess, *size):
            raise ImageError(images.paths[i], reason)


def size_error(preprocess: Preprocess, height: int, width: int) -> str | None:
    """Why the preprocessing refuses images of this size, or None."""
    try:
        preprocess.check_size(height, width)
    except ImageSizeError as error:
        return str(error)
    return None


def write_check(report: CheckReport | None, folder: RunFolder) -> None:
    """Writes a picture of the classes and the findings of the check into the run folder, unless they are there."""
    path = folder.path / "check.json"
    if report is None or path.exists():
        return
    if report.survey:
        draw_class_sheet(report.survey, folder.picture("classes"))
    document = report.to_json()
    write_json(path, document)
