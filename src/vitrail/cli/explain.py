"""Show what speaks for a class in images: for each image a picture of the map, and the map over the image.

Without --class the model's own answer is explained. --against asks for one class rather than another. Attention and
rollout know no class: they say where the model looks. `vitrail faithfulness` says how far each method can be believed.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitrail.cli.images import named_images
from vitrail.cli.loading import add_model, loaded
from vitrail.cli.main import Answer
from vitrail.console import progress_bar
from vitrail.data.decode import ImageError
from vitrail.errors import UsageError
from vitrail.explanation import DEFAULT_METHOD, METHODS, Explanation, explain
from vitrail.explanation.figures import save_explanation, save_heads, save_layers, save_overlay
from vitrail.explanation.targets import Target, parse_target

MOST_BYTES = 200  # of a picture's name: disks take 255, and a number and an ending come behind it
FIGURES = (  # what a row says of an image; nothing of each where it cannot be read
    "label", "probability", "predicted", "against", "method", "layer", "head", "query", "class_blind", "signed", "cost",
    "map", "summary",
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    rows = "\n".join(
        f"  {name:21}{row.description}{' (knows no class)' if row.class_blind else ''}: {row.cost}"
        for name, row in METHODS.items()
    )
    parser.epilog = f"methods, and what a map takes:\n{rows}"
    add_model(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, folders, tar shards")
    parser.add_argument(
        "--method", metavar="M", help=f"one of those below ({DEFAULT_METHOD}; with a layer or head, attention)"
    )
    parser.add_argument("--class", dest="label", metavar="LABEL", help="the class to explain (the predicted one)")
    parser.add_argument("--against", metavar="LABEL", help="explain the class rather than this one")
    parser.add_argument("--layer", metavar="L", help="counted from 0, -1 from the last, or all for a strip")
    parser.add_argument("--head", default="mean", metavar="H", help="a number, mean, or all for a picture of each")
    parser.add_argument("--query", metavar="ROW,COLUMN", help="what this patch attends to; counted from 0")
    parser.add_argument("--picture", choices=["panels", "overlay"], default="panels", help="what is drawn (panels)")
    parser.add_argument("--smooth", action="store_true", help="blur the patches' edges, for the eye only")
    parser.add_argument("--format", choices=["png", "svg"], default="png", help="of the pictures (png)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (the best there is)")
    parser.add_argument("--out", default="explanations", metavar="DIR", help="where the pictures go (explanations)")


def run(arguments: argparse.Namespace) -> Answer:
    """Explains image by image and writes the pictures."""
    classifier = loaded(arguments)
    config = classifier.vit.config
    target = read_class(arguments.label, arguments.against)
    parse_target(classifier.classes, target)  # a wrong name is said before any work
    layers, heads = read_layers(arguments.layer, config.depth), read_heads(arguments.head, config.heads)
    if len(layers) > 1 and len(heads) > 1:
        raise UsageError("all layers of all heads do not fit into a picture", "choose one layer or one head")
    if len(layers) > 1 or len(heads) > 1:
        for option, given in (("picture overlay", arguments.picture == "overlay"), ("smooth", arguments.smooth)):
            if given:
                raise UsageError(f"--{option} is for one map, not for a picture of many", "name one layer or one head")
    query = read_query(arguments.query)
    inside = arguments.layer or arguments.head != "mean" or query
    method = arguments.method or ("attention" if inside else DEFAULT_METHOD)
    rows: list[dict[str, Any]] = []
    several = ["heads"] if len(heads) > 1 else ["layers"] if len(layers) > 1 else []
    images = named_images(arguments.images)
    with progress_bar("explaining", len(images)) as progress:
        for image in images:
            try:
                pixels = image.read(classifier.preprocess.channels)
                found = [
                    explain(classifier, pixels, method=method, target=target, layer=layer, head=head, query=query)
                    for layer in layers
                    for head in heads
                ]
            except ImageError as error:
                rows.append(
                    {"path": image.path, **dict.fromkeys([*FIGURES, *several]), "error": error.reason, "files": []}
                )
            else:
                name = ".".join(filter(None, [Path(image.path).stem, method, arguments.label]))
                picture = unused(Path(arguments.out), safe(name), arguments.format)
                draw(found, picture, arguments)
                each = [explanation.to_json() for explanation in found]
                rest = dict.fromkeys(several, each)
                said = {"summary": found[0].summary, "files": [str(picture)], "error": None}
                rows.append({"path": image.path, **each[0], **rest, **said})
            progress.advance()
    shown = [f"{row['path']}: {row['error'] or row['summary'] + '; ' + row['files'][0]}" for row in rows]
    return Answer({"explanations": rows}, shown, code=1 if any(row["error"] for row in rows) else 0)


def draw(found: Sequence[Explanation], path: Path, arguments: argparse.Namespace) -> None:
    """The picture that was asked for."""
    if len(found) > 1:
        save_layers(found, path) if found[0].layer != found[-1].layer else save_heads(found, path)
    elif arguments.picture == "overlay":
        save_overlay(found[0], path, arguments.smooth)
    else:
        save_explanation(found[0], path, arguments.smooth)


def read_class(label: str | None, against: str | None) -> Target:
    """What --class and --against ask for; None for the model's own answer."""
    if against is None:
        return label
    if label is None:
        raise UsageError("--against needs a class to hold it against", "name one with --class")
    return label, against


def read_layers(word: str | None, depth: int) -> list[int | None]:
    """[None] for the method's own choice, all numbers for `all`, else the one number."""
    if word is None:
        return [None]
    if word == "all":
        return list(range(depth))
    if not word.removeprefix("-").isdecimal():
        raise UsageError(f"--layer is {word!r}", "give a number or all")
    return [int(word)]


def read_heads(word: str, heads: int) -> list[int | None]:
    """[None] for the mean, all numbers for `all`, else the one number; raises `UsageError` for another word."""
    if word == "mean":
        return [None]
    if word == "all":
        return list(range(heads))
    if not word.isdecimal():
        raise UsageError(f"--head is {word!r}", "give a number, mean or all")
    return [int(word)]


def read_query(word: str | None) -> tuple[int, int] | None:
    """ROW,COLUMN -> two numbers."""
    if word is None:
        return None
    row, _, column = word.partition(",")
    if not (row.strip().isdecimal() and column.strip().isdecimal()):
        raise UsageError(f"--query is {word!r}", "give a patch's row and column, such as 3,5")
    return int(row), int(column)


def safe(name: str) -> str:
    """A name that is one part of a path: a class may be called what it wants."""
    return re.sub(r"[^\w.+=@ -]", "_", name).encode()[:MOST_BYTES].decode(errors="ignore")


def unused(folder: Path, stem: str, kind: str) -> Path:
    """A name for a picture that nothing has yet: pictures made before stay."""
    path = folder / f"{stem}.{kind}"
    number = 2
    while path.exists():
        path = folder / f"{stem}-{number}.{kind}"
        number += 1
    return path
