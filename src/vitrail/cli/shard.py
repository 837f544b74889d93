"""Write images as tar shards in the WebDataset layout: few large files instead of many small ones.

Every verb takes the output folder, or some of its shards ("OUT/train-{000000..000009}.tar"), in place of DATA, with the
same result to the last bit. Each split has its own shards (train-000000.tar, ...); a source without splits gives
shards-000000.tar. Image files are copied byte for byte. Inside the shards they are in random order, so that a reader
that streams them sees mixed classes; the index keeps the order of DATA. A sample has the image (KEY.jpg, KEY.png, ...),
its class index (KEY.cls), and its names or numbers (KEY.json). An image of several files becomes one array (KEY.npy).
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import add_data, add_group_pattern, add_skip_unreadable, add_task, count, positive_number
from vitrail.cli.parser import Parser
from vitrail.errors import UsageError

MAX_SHOWN = 20  # unreadable images that are printed; --json has all
DEFAULT_SHARD_MIB = 256  # as in data/shards/writer.py, whose import would slow the help down


def add_arguments(parser: Parser) -> None:
    add_data(parser)
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="the output folder, which must not exist (required)"
    )
    parser.add_argument(
        "--shard-size-mib", type=positive_number, default=DEFAULT_SHARD_MIB, metavar="MIB",
        help=f"size of a shard in MiB (default: {DEFAULT_SHARD_MIB})",
    )  # fmt: skip
    parser.add_argument(
        "--images-per-shard", type=count(), metavar="COUNT",
        help="maximum number of images per shard (default: limited by --shard-size-mib only)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="SEED", help="seed of the order of images in the shards (default: 0)"
    )
    parser.add_argument(
        "--keep-order", action="store_true", help="keep the order of DATA instead of a random one (default: off)"
    )
    add_group_pattern(parser)
    add_task(parser)
    add_skip_unreadable(parser)


def run(arguments: argparse.Namespace) -> Answer:
    from vitrail.console import log, progress_bar
    from vitrail.data.groups import has_groups
    from vitrail.data.open import open_source
    from vitrail.data.shards.storage import is_remote
    from vitrail.data.shards.writer import count_images, mixed_formats_note, write_shards

    if is_remote(arguments.out):
        raise UsageError("shards are written to a disk of this machine", "copy the folder to its address afterwards")
    started = time.perf_counter()
    source = open_source(
        arguments.data,
        missing_ok=arguments.skip_unreadable,
        task=arguments.task,
        group_pattern=arguments.group_pattern,
    )
    if not has_groups(source) and any(listing.groups is not None for listing in source.splits.values()):
        log("warning: only some splits have groups, so the shards have none")
    with progress_bar("writing shards", count_images(source)) as progress:
        written = write_shards(
            source,
            Path(arguments.out),
            shard_mib=arguments.shard_size_mib,
            images_per_shard=arguments.images_per_shard,
            seed=None if arguments.keep_order else arguments.seed,
            skip_unreadable=arguments.skip_unreadable,
            on_images=progress.advance,
        )
    lines: list[object] = [
        f"{written.out}: {written.images} images of {written.classes} classes, {written.bytes / 1e6:,.1f} MB"
    ]
    for split, images in written.splits.items():
        n, stem = written.shards[split], "shards" if split == "all" else split
        last = f" to {stem}-{n - 1:06d}.tar" if n > 1 else ""
        lines.append(f"  {stem}-000000.tar{last}  {images} images" if n else f"  {split}: no readable image")
    lines += [f"  skipped, unreadable: {name}" for name in written.unreadable[:MAX_SHOWN]]
    if (more := len(written.unreadable) - MAX_SHOWN) > 0:
        lines.append(f"  {more} more; --json lists all")
    if note := mixed_formats_note(list(written.formats)):
        lines.append(note)
    return Answer({**asdict(written), "seconds": round(time.perf_counter() - started, 3)}, lines)
