"""The options and the work of `vitrail export --format web`."""

import argparse
from pathlib import Path

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import load_classifier, positive_number
from vitrail.cli.parser import Parser

OPTIONS = ("examples", "precision", "title", "max_size_mb")


def add_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("with --format web")
    group.add_argument(
        "--examples", metavar="IMAGE", nargs="+",
        help="example images, at most 12 (default: images that training held out, else photographs)",
    )  # fmt: skip
    group.add_argument(
        "--precision", choices=["fp32", "fp16"], default="fp32",
        help="number format of the stored weights; fp16 halves the size (default: fp32)",
    )  # fmt: skip
    group.add_argument("--title", metavar="TEXT", help="title of the page (default: the model's name)")
    group.add_argument(
        "--max-size-mb", type=positive_number, metavar="MB", help="refuse a larger page, in MB (default: 40)"
    )


def run(arguments: argparse.Namespace) -> Answer:
    from vitrail.cli.images import list_input_files
    from vitrail.console import log
    from vitrail.exporting.onnx_file import import_onnx
    from vitrail.exporting.web.page import MAX_PAGE_MB, export_web

    import_onnx()
    classifier = load_classifier(arguments)
    examples = list_input_files(arguments.examples) if arguments.examples else None
    log("tracing the model and comparing the page's outputs with PyTorch's")
    document = export_web(
        classifier, arguments.out, examples, model=arguments.model, half=arguments.precision == "fp16",
        title=arguments.title, limit=arguments.max_size_mb or MAX_PAGE_MB,
        data=find_training_data(arguments.model),
    )  # fmt: skip
    difference, same = f"{document['max_difference']:.1e}", f"{document['agreement']:.0%}"
    shown = [
        f"written: {document['file']}, {document['bytes'] / 1e6:.1f} MB, opens in a browser, also offline",
        f"compared with PyTorch on {document['images']} images: largest difference {difference} in a logit, "
        f"the same answer for {same}",
    ]
    return Answer(document, shown)


def find_training_data(model: str) -> str | None:
    """Returns the training data of the run that MODEL belongs to; None if MODEL is a name, not a path."""
    from vitrail.runs.folder import RunFolder

    path = Path(model)
    return RunFolder(path if path.is_dir() else path.parent).data_source if path.exists() else None
