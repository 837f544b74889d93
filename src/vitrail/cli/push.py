"""Upload a folder of `vitrail export --format timm, hf or torchvision` to a repository of the Hugging Face hub.

The repository is created if it does not exist. The login is that of `hf auth login`, or HF_TOKEN. The uploaded model
card loads the model from the repository.
"""

import argparse
from pathlib import Path

from vitrail.cli.answer import Answer
from vitrail.cli.parser import Parser
from vitrail.console import log
from vitrail.exporting.push import check_push, list_files, push_folder


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="the exported folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository")
    parser.add_argument(
        "--private", action="store_true", help="make a repository that is created private (default: off)"
    )


def run(arguments: argparse.Namespace) -> Answer:
    folder, name = Path(arguments.folder), arguments.repository
    list_files(folder)
    check_push(name, private=arguments.private)
    log(f"uploading to {name}")
    url = push_folder(folder, name, private=arguments.private)
    return Answer({"file": str(folder), "pushed": url}, [f"pushed: {url}"])
