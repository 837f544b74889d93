"""Export a classifier to another runtime, to another library, or as a web page.

  onnx, openvino, torch,    a program: decoded pixels -> logits; the file contains normalization, temperature, classes
  triton                    and preprocessing; `vitrail predict`, `evaluate` and `serve` also take the ONNX file and
                            the .xml file of OpenVINO, whose weights are beside it in a .bin file. triton: OUT is
                            REPOSITORY/MODEL, for tritonserver --model-repository REPOSITORY
  timm, hf, torchvision     a folder that the library loads (hf: transformers)
  web                       one HTML file with the model in it, which predicts and explains in any browser, offline

An export is verified before it is written: a program must agree with the classifier on real images (--verify-data), a
folder is loaded by the library itself and compared on photographs and noise, if the library is installed.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from vitrail.cli import web_page
from vitrail.cli.answer import Answer
from vitrail.cli.arguments import add_device, add_model, add_skip_unreadable, load_classifier
from vitrail.cli.parser import Parser
from vitrail.console import log, progress_bar
from vitrail.errors import UsageError, did_you_mean

VERIFY = ("verify_data", "skip_unreadable")


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    format_option = parser.add_argument("--format", required=True, metavar="NAME", help="one of the formats above")
    parser.complete_help = lambda: list_formats(format_option)
    parser.add_argument(
        "--out", required=True, metavar="PATH",
        help="the output, which must not exist: a .onnx, .xml, .pt2 or .html file, else a folder (required)",
    )  # fmt: skip
    parser.add_argument(
        "--int8", action="store_true",
        help="onnx, openvino, triton: 8-bit weights, with their accuracy (default: off)",
    )  # fmt: skip
    parser.add_argument(
        "--attention",
        action="store_true",
        help="onnx, openvino, torch, triton: output the attention of every layer (default: off)",
    )
    parser.add_argument(
        "--map", action="store_true",
        help="onnx, openvino, torch, triton: add the input `target` and output the relevance map for it (default: off)",
    )  # fmt: skip
    parser.add_argument(
        "--unlike", action="store_true",
        help="onnx, openvino, torch, triton: output how unlike the validation images an image is (default: off)",
    )  # fmt: skip
    parser.add_argument(
        "--verify-data", metavar="DATA",
        help="onnx, openvino, torch, triton: labeled images to compare on; openvino calibrates int8 on its "
        "training images (default: parts of photographs)",
    )  # fmt: skip
    add_skip_unreadable(parser)
    parser.add_argument(
        "--push", metavar="OWNER/NAME",
        help="timm, hf, torchvision: upload the folder to this repository of the Hugging Face hub, like vitrail push; "
        "an existing folder is uploaded if it holds the same (default: off)",
    )  # fmt: skip
    parser.add_argument(
        "--private", action="store_true", help="make a repository that --push creates private (default: off)"
    )
    add_device(parser, "cpu")
    parser.set_defaults(device="cpu")
    web_page.add_arguments(parser)


def list_formats(option: argparse.Action) -> None:
    """Names the formats in the help of --format."""
    from vitrail.exporting.formats import PROGRAM_FORMATS
    from vitrail.exporting.libraries import LIBRARIES

    option.help = f"one of {', '.join([*PROGRAM_FORMATS, *LIBRARIES, 'web'])} (required)"


def run(arguments: argparse.Namespace) -> Answer:
    from vitrail.exporting.formats import PROGRAM_FORMATS
    from vitrail.exporting.libraries import LIBRARIES

    if arguments.private and not arguments.push:
        raise UsageError("--private is for a repository made by --push", "add --push OWNER/NAME")
    if arguments.push and arguments.format in (*PROGRAM_FORMATS, "web"):
        raise UsageError("--push is for the folders of libraries", f"use --format {', '.join(LIBRARIES)}")
    if arguments.format == "web":
        check_not_used(arguments, (*program_options(), *VERIFY), f"use --format {', '.join(PROGRAM_FORMATS)}")
        return web_page.run(arguments)
    check_not_used(arguments, web_page.OPTIONS, "use --format web")
    if arguments.format in PROGRAM_FORMATS:
        return write_program(arguments)
    if arguments.format not in LIBRARIES:
        hint = did_you_mean(arguments.format, [*PROGRAM_FORMATS, *LIBRARIES, "web"])
        raise UsageError(f"there is no format {arguments.format!r}", hint)
    return export_folder(arguments)


def program_options() -> list[str]:
    from vitrail.exporting.program import ProgramOptions

    return [field.name for field in fields(ProgramOptions)]


def check_not_used(arguments: argparse.Namespace, names: Sequence[str], hint: str) -> None:
    """Raises `UsageError` if the user gave an option that belongs to other formats."""
    for name in names:
        if getattr(arguments, name) not in (None, False, "fp32"):
            raise UsageError(f"--{name.replace('_', '-')} is not for --format {arguments.format}", hint)


def write_program(arguments: argparse.Namespace) -> Answer:
    from vitrail.exporting.formats import check_request, export_program
    from vitrail.exporting.probes import load_probes
    from vitrail.exporting.program import ProgramOptions

    if arguments.skip_unreadable and not arguments.verify_data:
        raise UsageError("--skip-unreadable is for the images of --verify-data", "add --verify-data DATA")
    extras = ProgramOptions(**{each.name: getattr(arguments, each.name) for each in fields(ProgramOptions)})
    check_request(arguments.format, arguments.out, int8=arguments.int8)
    classifier = load_classifier(arguments)
    check = load_probes(classifier, arguments.verify_data, arguments.skip_unreadable)
    log(f"tracing the model, then comparing it on {check.description}")
    with progress_bar("comparing", len(check.images)) as progress:
        result = export_program(classifier, arguments.format, arguments.out, extras, check, progress.advance)
    return Answer({**result.to_json()}, [*result.summary()])


def export_folder(arguments: argparse.Namespace) -> Answer:
    from vitrail.exporting.formats import PROGRAM_FORMATS
    from vitrail.exporting.libraries import export_again, export_library
    from vitrail.exporting.push import check_push, push_folder

    check_not_used(arguments, (*program_options(), *VERIFY), f"use --format {', '.join(PROGRAM_FORMATS)}")
    if arguments.push:
        check_push(arguments.push, private=arguments.private)
    is_repeated = bool(arguments.push) and os.path.exists(arguments.out)
    export = export_again if is_repeated else export_library
    exported = export(load_classifier(arguments), arguments.format, arguments.out)
    document: dict[str, Any] = {**exported.to_json()}
    written = "is there already" if is_repeated else "written"
    shown = [f"{written}: {exported.folder}, which is read by: {exported.load_code}"]
    if exported.comparison:
        shown.append(
            f"{arguments.format} read it back: largest difference {document['max_difference']:.1e} on "
            f"{document['compared_on']}, the same class for {document['agreement']:.0%}"
        )
    else:
        shown.append(
            f"not compared: {exported.reason_not_compared}; only vitrail's own tables were used to write the folder"
        )
    if exported.note:
        shown.append(f"note: {exported.note}")
    if arguments.push:
        log(f"uploading to {arguments.push}")
        document["pushed"] = push_folder(exported.folder, arguments.push, private=arguments.private)
        shown.append(f"pushed: {document['pushed']}")
    return Answer(document, shown)
