"""Arguments that several verbs take, each with one name and one help text."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from vitrail.errors import UsageError
from vitrail.tasks import TaskName

if TYPE_CHECKING:
    from vitrail.classifier import BaseClassifier, Classifier
    from vitrail.data.images import Images
    from vitrail.module_classifier import TorchClassifier

AnyTorchClassifier = TypeVar("AnyTorchClassifier", bound="TorchClassifier")
DATA = """DATA is one of:
  FOLDER                train/ val/ test/ with a folder per class, or one folder per class
  FILE.csv, .parquet    a table with a column of paths and a column of labels ("cat", or "cat;dog" for several)
  NAME                  a built-in data set: digits, cifar10, cifar100, mnist, ...
  FOLDER or *.tar       tar shards, also "out/train-{000000..000099}.tar", https://..., s3://...
  hf:NAME               a data set of Hugging Face datasets"""
DATA_HELP = "labeled images: a folder, a table, a built-in name, tar shards or hf:NAME (see above)"
MODEL_HELP = "a run folder, an artifact, cifar10-small, a card, CARD@FILE, a file, a folder or a hub id[@revision]"

PROGRAM_HELP = "an .onnx file, or the .xml file of an OpenVINO model"

Parse = Callable[[str], Any]


def count(minimum: int = 1) -> Parse:
    """Returns a parser of whole numbers of at least `minimum`."""

    def parse(text: str) -> int:
        number = int(text)
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{number} is too small, it must be at least {minimum}")
        return number

    parse.__name__ = "whole number"  # argparse prints it for text that is not a number
    return parse


def positive_number(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is out of range, it must be above 0")
    return number


positive_number.__name__ = "number"


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{(parser.description or '').rstrip()}\n\n{DATA}"
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)


def add_group_pattern(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--group-pattern",
        metavar="REGEX",
        help="regular expression with one capture group, which finds the group of an image in its path below DATA "
        "(default: the groups that the data has)",
    )


def add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        choices=get_args(TaskName),
        metavar="|".join(get_args(TaskName)),
        help="one class per image, any number of labels, ordered grades, or numbers (default: chosen from the data)",
    )


def add_model(parser: argparse.ArgumentParser, *, programs: bool = False, default: str | None = None) -> None:
    """Adds MODEL; with `programs` the verb also runs exported files, with a `default` MODEL may be left out."""
    text = f"{MODEL_HELP}{f', or {PROGRAM_HELP}' if programs else ''}{f' (default: {default})' if default else ''}"
    parser.add_argument("model", metavar="MODEL", nargs="?" if default else None, default=default, help=text)
    add_torch_files(parser)


def add_torch_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--torch-files",
        action="store_true",
        help="also read tensors from torch's own files .pt .pth .bin (default: off)",
    )


def add_threads(parser: argparse.ArgumentParser, default: str = "the number of cores") -> None:
    parser.add_argument(
        "--threads", type=count(), metavar="COUNT", help=f"compute threads per process (default: {default})"
    )


def add_device(parser: argparse.ArgumentParser, default: str = "the fastest one available") -> None:
    parser.add_argument("--device", metavar="NAME", help=f"cpu, cuda, cuda:1 or mps (default: {default})")


def add_batch_size(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--batch-size", type=count(), default=default, metavar="COUNT", help=f"images per batch (default: {default})"
    )


def add_skip_unreadable(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="skip and count images that cannot be read (default: stop at the first one)",
    )


def add_shown_channels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shown-channels",
        metavar="NUMBERS",
        help="which channels pictures of bands show, one or three, counted from 1: 4,3,2 (default: the model's)",
    )


def show_channels(classifier: AnyTorchClassifier, shown: str | None) -> AnyTorchClassifier:
    """Returns a copy whose pictures show these channels, or the classifier itself; raises `UsageError`."""
    if shown is None:
        return classifier
    return replace(classifier, preprocess=classifier.preprocess.with_shown(shown))


def add_engine(parser: Any) -> None:
    parser.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="this machine or a Ray cluster (default: local)"
    )
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="address of the Ray cluster (default: start one on this machine)"
    )


def load_classifier(arguments: argparse.Namespace) -> Classifier:
    """Loads MODEL onto the device that the arguments name."""
    from vitrail.loading import load
    from vitrail.machine import pick_device

    return load(arguments.model, device=pick_device(arguments.device), torch_files=arguments.torch_files)


def load_any_classifier(arguments: argparse.Namespace) -> BaseClassifier:
    """Loads MODEL, which may also be an exported file, for verbs that only need logits."""
    from vitrail.loading import is_program, load_any

    threads = getattr(arguments, "threads", None)  # not an option of every verb
    if is_program(arguments.model):
        return load_any(arguments.model, arguments.device or "cpu", threads=threads)
    if threads:
        import torch

        torch.set_num_threads(threads)
    from vitrail.machine import pick_device

    return load_any(arguments.model, pick_device(arguments.device), torch_files=arguments.torch_files)


def open_validation(classifier: BaseClassifier, arguments: argparse.Namespace, reason: str) -> Images:
    """Returns the validation images of DATA; raises `UsageError`, with the reason, if they are scored or missing."""
    from vitrail.evaluation.evaluation import open_splits

    scored_split, splits = open_splits(classifier, arguments.data, arguments.skip_unreadable)
    if scored_split == "validation" or "validation" not in splits:
        raise UsageError(f"{arguments.data} has no validation images besides those that are scored", reason)
    return splits["validation"]


def load_in_precision(arguments: argparse.Namespace) -> BaseClassifier:
    """Loads MODEL for predictions in --precision; raises `UsageError` for bf16 of a model that is not a ViT."""
    classifier = load_any_classifier(arguments)
    if arguments.precision == "bf16":
        return require_classifier(classifier, arguments.model, "--precision bf16").fast()
    return classifier


def require_classifier(classifier: BaseClassifier, model: str, options: str) -> Classifier:
    """Returns the classifier if it is a ViT; raises `UsageError` for an exported file and a model that is not a ViT."""
    from vitrail.classifier import Classifier
    from vitrail.loading import PROGRAM_KINDS
    from vitrail.module_classifier import ModuleClassifier, refuse_module

    if isinstance(classifier, ModuleClassifier):
        raise refuse_module(f"{model}, which {options} needs to be one,")
    if not isinstance(classifier, Classifier):
        raise UsageError(
            f"{model} is {PROGRAM_KINDS[Path(model).suffix.lower()]}, whose weights cannot be read or changed",
            f"give {options} the classifier that the file was exported from",
        )
    return classifier
