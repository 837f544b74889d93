"""Checks data before training: every image is read, and what would harm training or its score is reported."""

from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.console import log, progress_bar
from vitrail.data.contact_sheets import draw_class_sheet
from vitrail.data.decode import ImageError, ImageUnreachable
from vitrail.data.encoded import EncodedImages
from vitrail.data.facts import FactsCache
from vitrail.data.finders import FINDERS
from vitrail.data.findings import Code, Finding
from vitrail.data.images import Images
from vitrail.data.open import open_source
from vitrail.data.preprocess import ImageSizeError, Preprocess
from vitrail.data.source import Source
from vitrail.data.split import Splits
from vitrail.data.survey import Survey
from vitrail.errors import UsageError, VitrailError
from vitrail.files import write_json
from vitrail.tasks import SINGLE_LABEL

MAX_WARNINGS = 8  # findings that are printed before training


@dataclass
class CheckReport:
    """What a check found; errors stop training, warnings do not."""

    data: str
    task: str = SINGLE_LABEL
    images: int = 0
    classes: dict[str, int] = field(default_factory=dict)  # images per class, or with each label, over all splits
    splits: dict[str, int] = field(default_factory=dict)  # images per split
    sizes: dict[str, list[int]] = field(default_factory=dict)  # minimum, median, maximum of height and of width
    color_types: dict[str, int] = field(default_factory=dict)  # images per color type
    findings: list[Finding] = field(default_factory=list)
    left_out: int = 0  # files of the source that are not among the images
    unreadable: list[str] = field(default_factory=list)
    duplicates: list[list[dict[str, Any]]] = field(default_factory=list)  # groups of identical images
    near_duplicates: list[dict[str, Any]] = field(default_factory=list)  # pairs
    survey: Survey | None = None  # what the report was made from; not part of the JSON

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "warning"]

    @property
    def skippable(self) -> dict[str, list[str]]:
        """The names of the images that --skip-unreadable leaves out, by the source's split.

        Those of a failing disk or network are not among them: `check_before_training` raises their errors.
        """
        names: dict[str, list[str]] = defaultdict(list)
        for image, error in self.survey.unreadable if self.survey else ():
            if not isinstance(error, ImageUnreachable):
                names[image.split].append(image.name)
        return dict(names)

    def to_json(self) -> dict[str, Any]:
        document = {name: value for name, value in vars(self).items() if name not in ("survey", "findings")}
        return {
            **document,
            "errors": list(map(str, self.errors)),
            "warnings": list(map(str, self.warnings)),
            "findings": [finding.to_json() for finding in self.findings],
        }


def check_data(
    address: str | Path,
    tick: Callable[[int, int], object] = lambda done, total: None,
    *,
    batch_size: int | None = None,
    fit: str = "pad",
    fresh: bool = False,
    group_pattern: str | None = None,
    task: str | None = None,
) -> CheckReport:
    """Reads every image at an address and reports what would harm training or its score.

    `batch_size`, `fit`, `group_pattern` and `task` are the recipe's. Images that have not changed since an earlier
    check are not read again, unless `fresh`. `tick` is called with (done, total). Raises `UsageError` if there is no
    data at the address; all other problems are findings.
    """
    try:
        source = open_source(address, missing_ok=True, task=task, group_pattern=group_pattern)
    except UsageError:
        raise
    except VitrailError as error:
        values = {"reason": error.sentence, "hint": error.hint or "training stops"}
        return CheckReport(str(address), findings=[Finding(Code.INVALID_LAYOUT, values=values)])
    return check_source(source, tick, batch_size=batch_size, fit=fit, fresh=fresh)


def check_source(
    source: Source,
    tick: Callable[[int, int], object] = lambda done, total: None,
    *,
    batch_size: int | None = None,
    fit: str = "pad",
    fresh: bool = False,
) -> CheckReport:
    """Does what `check_data` does for a source that is open."""
    splits = {split: len(listing) for split, listing in source.splits.items()}
    n_images = sum(splits.values())
    classes = count_classes(source)
    with closing(FactsCache(fresh)) as cache:
        done = iter(range(1, n_images + 1))
        facts = {
            split: cache.read_listing(listing, f"{source.name}:{split}", lambda: tick(next(done), n_images))
            for split, listing in source.splits.items()
        }
        survey = Survey(source, facts, cache.near_duplicate_pairs, batch_size, fit)
        return CheckReport(
            data=source.address,
            task=source.task,
            images=n_images,
            classes=classes,
            splits=splits,
            sizes=summarize_sizes(survey),
            color_types=dict(Counter(facts.color_type for _, facts in survey.readable).most_common()),
            findings=[finding for finder in FINDERS for finding in finder(survey)],
            left_out=sum(each.files for each in source.left_out),
            unreadable=[record.name for record, _ in survey.unreadable],
            duplicates=[[asdict(record) for record in group] for group in survey.duplicates],
            near_duplicates=[
                {"a": asdict(a), "b": asdict(b), "similarity": round(similarity, 4)}
                for a, b, similarity in survey.near_duplicates
            ],
            survey=survey,
        )


def count_classes(source: Source) -> dict[str, int]:
    """Returns the number of images of each class, or with each label, over all splits."""
    counts: Counter[str] = Counter()
    for listing in source.splits.values():
        counts.update(listing.labels.counts())
    return dict(sorted(counts.items()))


def summarize_sizes(survey: Survey) -> dict[str, list[int]]:
    """Returns minimum, median and maximum of height and width, without images that cannot be read."""
    if not survey.readable:
        return {}
    shapes = np.array([(facts.height, facts.width) for _, facts in survey.readable])
    return {
        name: [int(values.min()), int(np.median(values)), int(values.max())]
        for name, values in zip(("height", "width"), shapes.T, strict=True)
    }


def check_before_training(source: Source, *, batch_size: int | None, fit: str, skip_unreadable: bool) -> CheckReport:
    """Checks a source and prints warnings; raises `VitrailError` for the first error.

    With `skip_unreadable`, errors of single images do not count.
    """
    with progress_bar("checking the data", 0) as progress:
        report = check_source(source, lambda done, total: progress.update(done, total), batch_size=batch_size, fit=fit)
    for finding in report.warnings[:MAX_WARNINGS]:
        log(f"warning: {finding}")
    if (more := len(report.warnings) - MAX_WARNINGS) > 0:
        log(f"warning: {more} more; vitrail check {source.address} lists them all")
    errors = [finding for finding in report.errors if not (skip_unreadable and finding.is_skippable)]
    if errors:
        others = f" (and {len(errors) - 1} more errors; vitrail check lists them)" if len(errors) > 1 else ""
        raise VitrailError(f"{source.address}: {errors[0].message}{others}", errors[0].consequence)
    return report


def check_image_sizes(
    report: CheckReport | None, splits: Splits, preprocess: Preprocess, skip_unreadable: bool = False
) -> None:
    """Raises `ImageError` for an image that is too small or too thin for the model.

    Uses the sizes that a check has read. Without a report it reads the sizes from the files, unless no image can be too
    small; one that is too thin then raises when it is loaded.
    """
    if report and report.survey:
        for image, facts in report.survey.readable:
            if reason := size_error(preprocess, facts.height, facts.width):
                pixels = report.survey.source.splits[image.split].pixels
                raise ImageError(
                    pixels.location(image.index) if isinstance(pixels, EncodedImages) else image.name, reason
                )
        return
    if preprocess.min_size == 1:
        return
    parts = splits.as_dict().values()
    with progress_bar("reading sizes", sum(map(len, parts))) as progress:
        for images in parts:
            check_sizes_of(images, preprocess, skip_unreadable, progress.advance)


def check_sizes_of(images: Images, preprocess: Preprocess, skip_unreadable: bool, tick: Callable[[], object]) -> None:
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


def write_report(report: CheckReport, file: Path, picture: Path | None) -> None:
    """Writes the findings as JSON, and a picture of the classes if it has a path."""
    if report.survey and picture:
        draw_class_sheet(report.survey, picture)
    write_json(file, report.to_json())
