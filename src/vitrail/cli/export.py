"""Give a classifier to a library, as a folder that timm, transformers (hf) or torchvision load, or to people (web).

The answers are the same logits: the library itself reads the folder back before it is put in place, if it is installed,
and what does not agree is not written. --push also uploads the folder to the Hugging Face hub. `web` writes one HTML file
with the model in it, which answers and explains images in any browser, from disk, with the network off.
"""

import argparse

from vitrail.cli import web_page
from vitrail.cli.loading import add_model, loaded
from vitrail.cli.main import Answer
from vitrail.console import say
from vitrail.export.folder import export_library
from vitrail.export.libraries import FORMATS
from vitrail.export.push import push


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_model(parser)
    parser.add_argument("--format", required=True, metavar="F", help=f"one of {', '.join((*FORMATS, 'web'))}")
    parser.add_argument("--out", required=True, metavar="DIR", help="what to write, which must not exist")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository of the hub, made if need be")
    parser.add_argument("--private", action="store_true", help="a repository made by --push is private")
    parser.add_argument("--device", metavar="D", default="cpu", help="cpu, cuda, mps (cpu)")
    web_page.arguments(parser)


def run(arguments: argparse.Namespace) -> Answer:
    """Writes, compares, uploads."""
    if arguments.format == "web":
        return web_page.run(arguments)
    web_page.refuse(arguments)
    exported = export_library(loaded(arguments), arguments.format, arguments.out)
    document = exported.to_json()
    shown = [f"written: {exported.folder}, which is read by: {exported.loads}"]
    if exported.agreed:
        shown.append(
            f"{arguments.format} read it back: largest difference {document['max_difference']:.1e} on "
            f"{document['images']} images, the same class for {document['agreement']:.0%}"
        )
    else:
        shown.append(f"{arguments.format} is not installed here, so only vitrail's tables vouch for it")
    if arguments.push:
        say(f"uploading to {arguments.push}")
        document["pushed"] = push(exported.folder, arguments.push, private=arguments.private)
        shown.append(f"pushed: {document['pushed']}")
    return Answer(document, shown)
