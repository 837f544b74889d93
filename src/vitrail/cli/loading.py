"""MODEL on the command line, the same for every verb."""

import argparse

import torch

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.errors import UsageError
from vitrail.loading import is_onnx, load
from vitrail.machine import pick_device

WHAT = "a run folder, an artefact, cifar10-small, a card, CARD@FILE, a weight file, a folder or a hub id"


def add_model(
    parser: argparse.ArgumentParser, onnx: bool = False, threads: str = "as many as cores", default: str | None = None
) -> None:
    """MODEL, and what it may be read from; `onnx` where a verb also runs an exported file, by so many `threads`.

    With a `default` it may be left out.
    """
    what = WHAT + (", or an .onnx file of vitrail's" if onnx else "") + (f" ({default})" if default else "")
    parser.add_argument("model", metavar="MODEL", nargs="?" if default else None, default=default, help=what)
    parser.add_argument(
        "--torch-files", action="store_true", help="read plain tensors from torch's own files (.pt .pth .bin)"
    )
    if onnx:
        parser.add_argument("--threads", type=int, metavar="N", help=f"threads to compute with ({threads})")


def loaded(arguments: argparse.Namespace) -> Classifier:
    """The classifier that MODEL names, on the device asked for."""
    return load(arguments.model, device=pick_device(arguments.device), torch_files=arguments.torch_files)


def loaded_any(arguments: argparse.Namespace) -> BaseClassifier:
    """The same, or the classifier in an ONNX file, for verbs that need logits alone."""
    if arguments.threads is not None and arguments.threads < 1:
        raise UsageError(f"--threads is {arguments.threads}; it must be at least 1")
    if is_onnx(arguments.model):
        from vitrail.exporting.onnx_classifier import OnnxClassifier

        return OnnxClassifier.load(arguments.model, threads=arguments.threads, device=arguments.device or "cpu")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return loaded(arguments)
