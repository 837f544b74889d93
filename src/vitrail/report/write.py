"""Writes a report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitrail.files import write_json, write_text
from vitrail.report.budget import NO_LIMIT, Budget
from vitrail.report.collect import collect
from vitrail.report.page import render_page
from vitrail.report.subject import SampleSizes, Subject


def write_report(
    subject: Subject,
    folder: Path,
    *,
    sizes: SampleSizes | None = None,
    budget: Budget = NO_LIMIT,
    on_step: Callable[[str], object] = lambda name: None,
) -> dict[str, Any]:
    """Writes report.json and report.html into `folder` and returns the document of report.json.

    `sizes` defaults to `SampleSizes.for_model`; with a `budget` they are lowered to what fits into it. `on_step`
    receives the name of each step as it begins. Raises `ImageError` for an unreadable image.
    """
    sizes = sizes or SampleSizes.for_model(subject.classifier)
    document, pictures = collect(subject, sizes, on_step, budget)
    page = render_page(document, pictures)
    write_json(folder / "report.json", document)
    write_text(folder / "report.html", page)
    return document
