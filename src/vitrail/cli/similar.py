"""Find the images of DATA that are most similar to an image, by the features of a model.

Similar means: the cosine of the features is near 1. All splits of DATA are searched; labels are shown and not used.
Features are computed once and cached in ~/.cache/vitrail/features ($VITRAIL_CACHE). With --out the images are also
drawn.
"""

import argparse
from pathlib import Path
from typing import Any

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import (
    add_batch_size,
    add_data,
    add_device,
    add_model,
    add_skip_unreadable,
    count,
    load_classifier,
)
from vitrail.cli.parser import Parser
from vitrail.errors import UsageError

PICTURE_TYPES = (".png", ".jpg", ".pdf", ".svg")


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image files, folders, tar shards or tables of paths"
    )
    add_data(parser)
    parser.add_argument(
        "--top", type=count(), default=8, metavar="COUNT", help="similar images for each image (default: 8)"
    )
    add_batch_size(parser, 64)
    parser.add_argument("--no-cache", action="store_true", help="neither read nor write cached features (default: off)")
    add_device(parser)
    add_skip_unreadable(parser)
    parser.add_argument("--out", metavar="FILE", help="also draw the images into this picture (default: off)")


def run(arguments: argparse.Namespace) -> Answer:
    from vitrail.cli.images import list_input_images
    from vitrail.console import progress_bar
    from vitrail.data.open import open_source
    from vitrail.evaluation.similar import draw_similar, open_search

    out = Path(arguments.out) if arguments.out else None
    if out and out.suffix.lower() not in PICTURE_TYPES:
        raise UsageError(f"{out} is not a picture", f"its name must end in {', '.join(PICTURE_TYPES)}")
    if out and out.exists():
        raise UsageError(f"{out} exists", "choose another --out")
    inputs = list_input_images(arguments.images)
    classifier = load_classifier(arguments)
    skip, channels = arguments.skip_unreadable, classifier.preprocess.source_channels
    queries = [each.read(channels) for each in inputs]
    source = open_source(arguments.data, channels, skip)
    with progress_bar("computing features", sum(map(len, source.splits.values()))) as progress:
        search = open_search(
            classifier,
            source,
            batch_size=arguments.batch_size,
            cache=not arguments.no_cache,
            skip_unreadable=skip,
            on_batch=progress.advance,
        )
    features = classifier.embed(queries, batch_size=arguments.batch_size, progress=False).numpy()
    documents = search.find(features, [each.path for each in inputs], arguments.top)
    lines: list[Any] = []
    for each in documents:
        lines.append(f"{each['path']}:")
        lines += [
            f"  {row['similarity']:.4f}  {row['label']}  {row['path']} ({row['split']})" for row in each["similar"]
        ]
    unreadable = [{"path": error.name, "error": error.reason} for error in search.unreadable]
    if unreadable:
        lines.append(f"{len(unreadable)} images of {arguments.data} could not be read and were skipped")
    answer: dict[str, Any] = {"images": documents, "searched": len(search.labels), "unreadable_files": unreadable}
    if out:
        draw_similar(search, queries, documents, out)
        answer["picture"] = str(out)
        lines.append(f"written: {out}")
    return Answer(answer, lines)
