"""Collects, then writes report.json and report.html side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitrail.files import write_json, write_text
from vitrail.report.collect import collect
from vitrail.report.page import render_page
from vitrail.report.subject import SampleSizes, Subject


def write_report(
    subject: Subject,
    folder: Path,
    *,
    depth: SampleSizes | None = None,
    tick: Callable[[str], object] = lambda doing: None,
) -> dict[str, Any]:
    """Writes report.json and report.html into `folder` and returns the document of the former.

    `depth` says how many images each part looks at; what fits the model's size unless said. `tick` is called with what
    is being done as it begins. Raises `ImageError` naming a file that cannot be read.
    """
    document, pictures = collect(subject, depth or SampleSizes.for_model(subject.classifier), tick)
    page = render_page(document, pictures)
    write_json(folder / "report.json", document)
    write_text(folder / "report.html", page)
    return document
