"""A clean list: a CSV of the images worth training on. The data themselves are never moved, changed or removed."""

import csv
import io
import os
from collections import Counter
from pathlib import Path

from vitrail.data.check import CheckReport
from vitrail.data.decode import ImageUnreachable
from vitrail.data.groups import has_groups
from vitrail.data.survey import ImageRecord, Survey, are_across_splits, have_conflicting_labels
from vitrail.errors import UsageError, VitrailError
from vitrail.files import write_text

SPLIT_PRIORITY = ("test", "validation", "train", "all")  # of duplicates, the one in the first of these is kept


def write_clean_list(report: CheckReport, file: Path) -> Counter[str]:
    """Writes a table for `vitrail train` and returns how many images it leaves out, by reason.

    Left out are unreadable images, all copies of an image with different labels, all but one copy of other duplicates,
    and training (or validation) images that are near-duplicates of a test (or validation) image. Raises `UsageError`
    if the file exists or the images have no files.
    """
    survey = report.survey
    if survey is None:
        raise VitrailError(f"{report.data} cannot be listed: {report.errors[0]}")
    if unreachable := [error for _, error in survey.unreadable if isinstance(error, ImageUnreachable)]:
        raise VitrailError(f"{unreachable[0].sentence}, so the list would be without a good image", "try again later")
    if not all(survey.files(record) for record, _ in survey.images):
        raise UsageError(f"the images of {report.data} are not files of their own", "--fix is for folders and tables")
    if file.exists():
        raise UsageError(f"{file} exists already", "choose another name with --fix FILE")
    excluded = choose_excluded(survey)
    base = Path(os.path.realpath(file.parent))
    has_splits = set(survey.source.splits) != {"all"}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    groups_of = {split: listing.groups for split, listing in survey.source.splits.items()}
    keeps_groups = has_groups(survey.source)
    count = max(len(survey.files(record)) for record, _ in survey.images)
    columns = [f"path_{k + 1}" for k in range(count)] if count > 1 else ["path"]
    writer.writerow([*columns, "label", *(["split"] if has_splits else []), *(["group"] if keeps_groups else [])])
    for record, _ in survey.images:
        if record not in excluded:
            paths = [Path(os.path.abspath(str(file))) for file in survey.files(record)]
            cells = [(path.relative_to(base) if path.is_relative_to(base) else path).as_posix() for path in paths]
            groups = groups_of[record.split]
            group = [groups[record.index]] if keeps_groups and groups is not None else []
            writer.writerow([*cells, record.label, *([record.split] if has_splits else []), *group])
    write_text(file, text.getvalue())
    return Counter(excluded.values())


def choose_excluded(survey: Survey) -> dict[ImageRecord, str]:
    """Returns the images that a clean list leaves out, each with the reason."""
    excluded = {record: "unreadable" for record, _ in survey.unreadable}
    for group in survey.duplicates:
        _, *others = sorted(group, key=lambda record: (SPLIT_PRIORITY.index(record.split), record.index))
        if have_conflicting_labels(group):
            excluded |= dict.fromkeys(group, "duplicates with different labels")
        else:
            excluded |= dict.fromkeys(others, "duplicates")
    for a, b, _ in survey.near_duplicates:
        if are_across_splits([a, b]) and not {a, b} & excluded.keys():
            last = max(a, b, key=lambda record: SPLIT_PRIORITY.index(record.split))
            excluded[last] = "near-duplicates of held-out images"
    return excluded
