"""The command line: a verb, its arguments, its answer.

Results go to stdout: tables for people, one JSON object with --json. Everything else goes to stderr. The exit code is
0, 1 if the work found a problem, 2 for wrong use, 130 after an interrupt. Nothing heavy is imported before a verb needs
it.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from vitrail import console
from vitrail.cli.answer import ANSWER_FILE, Answer, ignore_closed_stdout, print_answer, print_json
from vitrail.cli.parser import Parser
from vitrail.errors import UsageError, VitrailError, did_you_mean, is_out_of_memory
from vitrail.plugins import load_plugins
from vitrail.version import __version__

ABOUT = "Train, understand and ship Vision Transformers for image classification, on one ViT you can read."
VERBS = {  # verb -> description; the module vitrail.cli.VERB has `add_arguments` and `run`
    "check": "check a data set before training: damage, leaks, duplicates",
    "shard": "write images as tar shards, which every verb reads like a folder",
    "train": "train a classifier, from scratch or from other weights",
    "pretrain": "pre-train a model on images without labels: a masked autoencoder",
    "sweep": "search for good settings of a recipe",
    "evaluate": "score a classifier on labeled images",
    "probe": "score a model's features without training it: k-NN and a linear head",
    "predict": "predict the classes of images",
    "similar": "find the images of a data set that are most similar to an image",
    "explain": "show which parts of an image a prediction is based on",
    "faithfulness": "score how faithful a classifier's explanations are",
    "export": "export a classifier to another runtime, library or a web page",
    "push": "upload an exported folder to the Hugging Face hub",
    "serve": "serve predictions and explanations over HTTP",
    "recipe": "list the recipes, or print the values of one",
    "models": "list public checkpoints and model sizes",
    "inspect": "show what a weight file contains",
    "cache": "show what is cached on this machine, and remove it",
    "bench": "measure the speed of a model on this machine, beside other libraries",
}

# verbs that build a model, read a recipe or explain
PLUGIN_VERBS = {
    "train", "pretrain", "sweep", "evaluate", "probe", "predict", "similar", "explain", "faithfulness", "export",
    "serve", "recipe", "bench",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in argv and ANSWER_FILE not in os.environ
    try:
        answer = answer_command(argv)
        with ignore_closed_stdout():
            if answer is not None:
                print_answer(answer, as_json=as_json)
        return 0 if answer is None else answer.code
    except VitrailError as error:
        return report_error(error, as_json)
    except KeyboardInterrupt:
        report_error(VitrailError("stopped"), as_json)
        return 130
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        return report_error(VitrailError(f"{path}{error.strerror or error}"), as_json)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        hint = "try a smaller --batch-size or --image-cache-gib"
        return report_error(VitrailError("there is not enough memory", hint), as_json)


def answer_command(argv: list[str]) -> Answer | None:
    """Runs the verb and returns its answer; None if help or the version was printed, or another process answers."""
    match argv:
        case [] | ["-h" | "--help" | "help"]:
            print(overview())
            return None
        case ["--version", *_]:
            print(f"vitrail {__version__}")
            return None
        case ["help", verb, *rest]:
            return answer_command([verb, "--help", *rest])
    verb = argv[0]
    if verb not in VERBS:
        raise UsageError(f"there is no verb {verb!r}", did_you_mean(verb, VERBS))
    module = importlib.import_module(f"vitrail.cli.{verb}")
    parser = make_parser(verb, module)
    try:
        arguments = parser.parse(argv[1:])
    except SystemExit:  # --help has printed
        return None
    arguments.command_line = argv  # for verbs that start the same command in other processes
    console.quiet = arguments.quiet
    if verb in PLUGIN_VERBS:
        load_plugins(arguments.plugin)
    for check in parser.checks:
        check(arguments)
    answer: Answer | None = module.run(arguments)
    return answer


def make_parser(verb: str, module: ModuleType) -> Parser:
    parser = Parser(
        prog=f"vitrail {verb}",
        description=module.__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    if verb in PLUGIN_VERBS:
        parser.add_argument(
            "--plugin", action="append", default=[], metavar="MODULE",
            help="import a module that registers parts, by its name or .py file; repeatable (default: installed ones)",
        )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables (default: off)")
    parser.add_argument("--quiet", action="store_true", help="print no progress (default: off)")
    parser.add_help_all()
    return parser


def report_error(error: VitrailError, as_json: bool) -> int:
    """Prints an error and its hint; returns the exit code."""
    if as_json:
        with ignore_closed_stdout():
            print_json({"error": error.sentence, "hint": error.hint})
    console.stderr.print(f"error: {console.escape_control_characters(error.sentence)}", style="bold red", markup=False)
    if error.hint:
        console.stderr.print(f"hint: {console.escape_control_characters(error.hint)}", markup=False)
    return error.exit_code


def overview() -> str:
    verbs = "\n".join(f"  {verb:13}{description}" for verb, description in VERBS.items())
    return f"""{ABOUT}

usage: vitrail VERB ...        vitrail help VERB prints the options of a verb

{verbs}

A first run, with data that every installation has:
  vitrail train digits --out runs/digits
  vitrail evaluate runs/digits digits
"""
