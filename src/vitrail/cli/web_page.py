"""What `vitrail export --format web` takes and does: its own page of the verb."""

import argparse
from pathlib import Path

from vitrail.cli.images import named_files
from vitrail.cli.loading import loaded
from vitrail.cli.main import Answer
from vitrail.console import log
from vitrail.runs.folder import RunFolder

OPTIONS = ("examples", "half", "title", "limit")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("a web page (--format web --out page.html)")
    group.add_argument(
        "--examples", metavar="IMAGE", nargs="+",
        help="images that the page begins with, 12 at most (some that training kept back, else photographs)",
    )  # fmt: skip
    group.add_argument("--half", action="store_true", help="store the weights in 16-bit numbers: half the size")
    group.add_argument("--title", metavar="TEXT", help="what stands at the top (the model's name)")
    group.add_argument("--limit", type=float, metavar="MB", help="refuse a page larger than this (40)")


def run(arguments: argparse.Namespace) -> Answer:
    """Traces, compares and writes the page."""
    from vitrail.exporting.web.page import MAX_PAGE_MB, export_web

    classifier = loaded(arguments)
    examples = named_files(arguments.examples) if arguments.examples else None
    log("tracing the model and comparing the page's answers with PyTorch's")
    document = export_web(
        classifier, arguments.out, examples, model=arguments.model, half=arguments.half,
        title=arguments.title, limit=MAX_PAGE_MB if arguments.limit is None else arguments.limit,
        data=data_of(arguments.model),
    )  # fmt: skip
    difference, same = f"{document['max_difference']:.1e}", f"{document['agreement']:.0%}"
    shown = [
        f"written: {document['file']}, {document['bytes'] / 1e6:.1f} MB, which a browser opens, network or not",
        f"compared with PyTorch on {document['images']} images: largest difference {difference} in a logit, "
        f"the same class for {same}",
    ]
    return Answer(document, shown)


def data_of(model: str) -> str | None:
    """What the run that MODEL lies in was trained on; None where it is a name and no path, whatever lies here."""
    path = Path(model)
    return RunFolder(path if path.is_dir() else path.parent).data_source if path.exists() else None
