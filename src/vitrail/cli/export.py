"""Give a classifier to another runtime or library.

onnx, torch (torch.export) and triton are programs: from decoded pixels to logits, with normalisation and temperature
inside, and with classes, preprocessing and card in the file. `vitrail predict` and `evaluate` take the ONNX file too.
timm, hf (transformers) and torchvision are folders that those libraries load. web is one HTML file with the model in
it, which answers and explains images in any browser, from disk, with the network off.

Nothing is written that does not agree with the classifier: a program is asked about real images first (--check), a
folder is read back by the library itself and asked about photographs and noise; where the library is not installed,
that is said. --push also uploads a folder to the Hugging Face hub.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields

from vitrail.cli import web_page
from vitrail.cli.loading import add_model, loaded
from vitrail.cli.main import Answer
from vitrail.console import log, progress_bar
from vitrail.errors import UsageError, did_you_mean
from vitrail.exporting.libraries import LIBRARIES, export_library
from vitrail.exporting.onnx_format import export_onnx
from vitrail.exporting.program import ProgramOptions
from vitrail.exporting.push import push_to_hub
from vitrail.exporting.torch_format import export_torch
from vitrail.exporting.triton_format import export_triton
from vitrail.exporting.verify import load_probes

PROGRAMS = {"onnx": export_onnx, "torch": export_torch, "triton": export_triton}
CHECK = ("check", "skip_unreadable")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_model(parser)
    parser.add_argument(
        "--format", required=True, metavar="F", help=f"one of {', '.join([*PROGRAMS, *LIBRARIES, 'web'])}"
    )
    parser.add_argument(
        "--out", required=True, metavar="PATH",
        help="what to write, which must not exist: a .onnx, .pt2 or .html file, else a folder",
    )  # fmt: skip
    parser.add_argument("--int8", action="store_true", help="onnx, triton: weights of 8 bits, accuracy measured")
    parser.add_argument("--attention", action="store_true", help="programs: every layer's attention as an output")
    parser.add_argument(
        "--map", action="store_true", help="programs: `target` as an input, the class's signed map as an output"
    )
    parser.add_argument(
        "--check", metavar="DATA", help="labelled images to compare on (a program; else some built-in digits)"
    )
    parser.add_argument("--skip-unreadable", action="store_true", help="compare without images that cannot be read")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository of the hub, made if need be")
    parser.add_argument("--private", action="store_true", help="a repository made by --push is private")
    parser.add_argument("--device", metavar="D", default="cpu", help="cpu, cuda, mps (cpu)")
    web_page.arguments(parser)


def run(arguments: argparse.Namespace) -> Answer:
    """Writes, compares, uploads."""
    if arguments.private and not arguments.push:
        raise UsageError("--private is for a repository made by --push", "add --push OWNER/NAME")
    if arguments.push and arguments.format in (*PROGRAMS, "web"):
        raise UsageError("--push is for the folders of libraries", f"use --format {', '.join(LIBRARIES)}")
    if arguments.format == "web":
        refuse(arguments, (*program_options(), *CHECK), f"use --format {', '.join(PROGRAMS)}")
        return web_page.run(arguments)
    refuse(arguments, web_page.OPTIONS, "use --format web")
    if arguments.format in PROGRAMS:
        return program(arguments)
    if arguments.format not in LIBRARIES:
        hint = did_you_mean(arguments.format, [*PROGRAMS, *LIBRARIES, "web"])
        raise UsageError(f"there is no format {arguments.format!r}", hint)
    return library(arguments)


def program_options() -> list[str]:
    """What a program takes beside its name."""
    return [field.name for field in fields(ProgramOptions)]


def refuse(arguments: argparse.Namespace, names: Sequence[str], hint: str) -> None:
    """Raises `UsageError` where the format is given an option that belongs to others."""
    for name in names:
        if getattr(arguments, name):
            raise UsageError(f"--{name.replace('_', '-')} is not for --format {arguments.format}", hint)


def program(arguments: argparse.Namespace) -> Answer:
    """A graph for another runtime."""
    if arguments.skip_unreadable and not arguments.check:
        raise UsageError("--skip-unreadable is for the images of --check", "add --check DATA")
    extras = ProgramOptions(**{each.name: getattr(arguments, each.name) for each in fields(ProgramOptions)})
    classifier = loaded(arguments)
    check = load_probes(classifier, arguments.check, arguments.skip_unreadable)
    log(f"tracing the model, which is then compared on {check.description}")
    with progress_bar("comparing", len(check.images)) as progress:
        shipped = PROGRAMS[arguments.format](classifier, arguments.out, extras, check, progress.advance)
    return Answer(shipped.to_json(), [*shipped.summary()])


def library(arguments: argparse.Namespace) -> Answer:
    """A folder for another library."""
    refuse(arguments, (*program_options(), *CHECK), f"use --format {', '.join(PROGRAMS)}")
    exported = export_library(loaded(arguments), arguments.format, arguments.out)
    document = exported.to_json()
    shown = [f"written: {exported.folder}, which is read by: {exported.load_code}"]
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
        document["pushed"] = push_to_hub(exported.folder, arguments.push, private=arguments.private)
        shown.append(f"pushed: {document['pushed']}")
    return Answer(document, shown)
