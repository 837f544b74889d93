"""The command line: a verb, its arguments, its answer.

A result goes to stdout (as a table for people, as one JSON object with --json), everything else to stderr. The exit
code is 0, 1 where the work found a problem, 2 for wrong use, 130 where it was stopped.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rich.console import Console

from vitrail import console
from vitrail.errors import UsageError, VitrailError, did_you_mean, is_out_of_memory
from vitrail.version import __version__

ABOUT = "Train, understand and ship Vision Transformers for image classification, on one ViT you can read."
VERBS = {  # verb -> what it does; the module of the same name has `arguments` and `run`
    "check": "look at the data before training on it",
    "shard": "write images as tar shards, which every verb reads in place of a folder",
    "train": "train a classifier on labelled images, from nothing or from weights",
    "sweep": "try variations of a recipe and say which is best on validation",
    "evaluate": "score a classifier on labelled images",
    "probe": "say how far a model's features go without training it",
    "predict": "say what is in images",
    "explain": "show what speaks for a class in images",
    "faithfulness": "score a classifier's explanations",
    "export": "give a classifier to another runtime or library",
    "serve": "answer over HTTP: predictions, explanations, a page",
    "models": "list the public checkpoints, sizes and recipes",
    "inspect": "say what a weight file is",
    "bench": "time a model on this machine, beside other libraries' of its size",
}
ANSWER = "VITRAIL_ANSWER"  # where a process that `launch` has started leaves its answer, which is then printed once


@dataclass
class Answer:
    """What a verb found: as JSON, as something rich can print, and as an exit code."""

    document: dict[str, Any]
    shown: list[Any] = field(default_factory=list)
    code: int = 0


class Parser(argparse.ArgumentParser):
    """argparse that raises one sentence and a hint instead of printing usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help lists what it takes")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments; an unknown option is an error with the nearest known ones."""
        parsed, unknown = self.parse_known_args(words)
        if unknown:
            option = unknown[0].split("=")[0]
            hint = did_you_mean(option, self._option_string_actions) if option.startswith("-") else None
            raise UsageError(f"{self.prog} does not take {unknown[0]!r}", hint)
        return parsed


def main(words: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    words = list(sys.argv[1:] if words is None else words)
    as_json = "--json" in words and ANSWER not in os.environ
    try:
        answer = _answer(words)
        with _for_who_reads():
            if answer is not None:
                _print(answer, as_json)
        return 0 if answer is None else answer.code
    except VitrailError as error:
        return _complain(error, as_json)
    except KeyboardInterrupt:
        _complain(VitrailError("stopped"), as_json)
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(VitrailError(f"{where}{error.strerror or error}"), as_json)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _complain(
            VitrailError("the memory does not suffice", "try a smaller --batch-size or --image-cache-gib"), as_json
        )


class _Out(Console):
    """stdout for tables; rich by itself would end the process where nobody reads on, with a code of its own."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


@contextmanager
def _for_who_reads() -> Iterator[None]:
    """Inside, it is no error that the reader of our output goes away, as `head` does."""
    try:
        yield
        print(end="", flush=True)  # else it would fail at the interpreter's end, as exit code 120
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(answer: Answer, as_json: bool) -> None:
    if as_json:
        print(console.escape_undecodable_bytes(json.dumps(answer.document, ensure_ascii=False, allow_nan=False)))
    else:
        out = _Out(highlight=False, markup=False, emoji=False)
        for part in answer.shown:
            if isinstance(part, str):
                out.print(console.escape_control_characters(part), markup=False, soft_wrap=True)
            else:
                out.print(part)


def _answer(words: list[str]) -> Answer | None:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return None
    if words[0] == "--version":
        print(f"vitrail {__version__}")
        return None
    verb = words[0]
    if verb not in VERBS:
        raise UsageError(f"there is no verb {verb!r}", did_you_mean(verb, VERBS))
    module = importlib.import_module(f"vitrail.cli.{verb}")
    parser = Parser(prog=f"vitrail {verb}", description=module.__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    module.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    try:
        arguments = parser.parse(words[1:])
    except SystemExit:  # --help has printed
        return None
    arguments.line = words  # as it was typed, for who says it again
    console.quiet = arguments.quiet
    run: Callable[[argparse.Namespace], Answer | None] = module.run
    return run(arguments)


def _complain(error: VitrailError, as_json: bool) -> int:
    if as_json:
        with _for_who_reads():
            print(
                console.escape_undecodable_bytes(
                    json.dumps({"error": error.sentence, "hint": error.hint}, ensure_ascii=False)
                )
            )
    console.stderr.print(f"error: {console.escape_control_characters(error.sentence)}", style="bold red", markup=False)
    if error.hint:
        console.stderr.print(f"hint: {console.escape_control_characters(error.hint)}", markup=False)
    return error.exit_code


def _overview() -> str:
    verbs = "\n".join(f"  {verb:13}{about}" for verb, about in VERBS.items())
    return f"""{ABOUT}

usage: vitrail VERB ... (vitrail VERB --help says more)

{verbs}

A first run, with data that is always there:
  vitrail train digits --out runs/digits
  vitrail evaluate runs/digits digits
"""
