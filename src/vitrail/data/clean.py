"""A clean list: a CSV of the images worth training on. Nothing of the user's is moved, changed or removed."""

import csv
import io
import os
from collections import Counter
from pathlib import Path

from vitrail.data.check import CheckReport, ImageRecord, Survey, apart, torn
from vitrail.data.facts import ImageFacts
from vitrail.errors import UsageError, VitrailError
from vitrail.files import write_text

KEEP_FIRST = ("test", "validation", "train", "all")  # of copies, the one in the split that judges stays


def write_clean(report: CheckReport, file: Path) -> Counter[str]:
    """Writes what `vitrail train` takes in place of the data; returns how many images are left out, by reason.

    Left out are unreadable images, all copies of an image under different classes, all copies but one of an image,
    and training (or validation) images that are nearly the same as one in test (or validation). Raises `UsageError`
    where a file of that name exists or the images are in no files.
    """
    survey = report.survey
    if survey is None:
        raise VitrailError(f"{report.data} cannot be listed: {report.errors[0]}")
    if any(survey.path(place) is None for place, _ in survey.images):
        raise UsageError(f"the images of {report.data} are not files of their own", "--fix is for folders and tables")
    if file.exists():
        raise UsageError(f"{file} is there already", "choose another name with --fix FILE")
    out = left_out(survey)
    base = Path(os.path.realpath(file.parent))
    divided = set(survey.source.splits) != {"all"}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "label", *(["split"] if divided else [])])
    for place, _ in survey.images:
        if place not in out:
            path = Path(os.path.abspath(str(survey.path(place))))
            shown = path.relative_to(base) if path.is_relative_to(base) else path
            rows.writerow([shown.as_posix(), place.label, *([place.split] if divided else [])])
    write_text(file, text.getvalue())
    return Counter(out.values())


def left_out(survey: Survey) -> dict[ImageRecord, str]:
    """The images that a clean list lacks, each with the reason."""
    out = {place: "unreadable" for place, look in survey.images if not isinstance(look, ImageFacts)}
    for group in survey.duplicates:
        _, *others = sorted(group, key=lambda place: (KEEP_FIRST.index(place.split), place.index))
        if torn(group):
            out |= dict.fromkeys(group, "copies under different classes")
        else:
            out |= dict.fromkeys(others, "copies")
    for a, b, _ in survey.near_duplicates:
        if apart([a, b]) and not {a, b} & out.keys():
            out[max(a, b, key=lambda place: KEEP_FIRST.index(place.split))] = "nearly the same as an image kept back"
    return out
