"""Show where a classifier looks: for each image a picture of the map, and the map over the image.

Attention and rollout know no class: they say where the model looks, not what speaks for its answer.
"""

import argparse
from pathlib import Path
from typing import Any

from vitrail.cli.images import named_images
from vitrail.cli.loading import add_model, loaded
from vitrail.cli.main import Answer
from vitrail.console import bar
from vitrail.data.decode import ImageError
from vitrail.errors import UsageError
from vitrail.explain.explanation import DEFAULT, METHODS, explain
from vitrail.explain.render import save_heads


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_model(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files or folders")
    parser.add_argument("--method", default=DEFAULT, metavar="M", help=f"{', '.join(METHODS)} ({DEFAULT})")
    parser.add_argument("--layer", type=int, default=-1, metavar="L", help="counted from 0, or -1 from the last")
    parser.add_argument("--head", default="mean", metavar="H", help="a number, mean, or all for a picture of each")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (the best there is)")
    parser.add_argument("--out", default="explanations", metavar="DIR", help="where the pictures go (explanations)")


def run(arguments: argparse.Namespace) -> Answer:
    """Explains image by image and writes the pictures."""
    classifier = loaded(arguments)
    heads = read_heads(arguments.head, classifier.vit.config.heads)
    options = {"method": arguments.method, "layer": arguments.layer}
    rows: list[dict[str, Any]] = []
    paths = named_images(arguments.images)
    with bar("explaining", len(paths)) as progress:
        for path in paths:
            try:
                found = [explain(classifier, path, head=head, **options) for head in heads]
            except ImageError as error:
                rows.append({"path": str(path), "error": error.reason, "files": []})
            else:
                picture = unused(Path(arguments.out), f"{path.stem}.{arguments.method}")
                save_heads(found, picture) if len(found) > 1 else found[0].save(picture)
                each = [explanation.to_json() for explanation in found]
                heads_of = {"heads": each} if len(each) > 1 else {}
                rows.append({"path": str(path), **each[0], **heads_of, "files": [str(picture)], "error": None})
            progress.tick()
    shown = [f"{row['path']}: {row['error'] or row['label'] + ', ' + row['files'][0]}" for row in rows]
    return Answer({"explanations": rows}, shown, code=1 if any(row["error"] for row in rows) else 0)


def read_heads(word: str, heads: int) -> list[int | None]:
    """[None] for the mean, all numbers for `all`, else the one number; raises `UsageError` for another word."""
    if word == "mean":
        return [None]
    if word == "all":
        return list(range(heads))
    if not word.isdecimal():
        raise UsageError(f"--head is {word!r}", "give a number, mean or all")
    return [int(word)]


def unused(folder: Path, stem: str) -> Path:
    """A name for a picture that nothing has yet: pictures made before stay."""
    path = folder / f"{stem}.png"
    number = 2
    while path.exists():
        path = folder / f"{stem}-{number}.png"
        number += 1
    return path
