"""MODEL on the command line, the same for every verb."""

import argparse

import vitrail
from vitrail.machine import pick_device

WHAT = "a run folder, an artefact, cifar10-small, a card, CARD@FILE, a weight file, a folder or a hub id"


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, and what it may be read from."""
    parser.add_argument("model", metavar="MODEL", help=WHAT)
    parser.add_argument(
        "--torch-files", action="store_true", help="read plain tensors from torch's own files (.pt .pth .bin)"
    )


def loaded(arguments: argparse.Namespace) -> vitrail.Classifier:
    """The classifier that MODEL names, on the device asked for."""
    return vitrail.load(arguments.model, device=pick_device(arguments.device), torch_files=arguments.torch_files)
