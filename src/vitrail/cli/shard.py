"""Write images as tar shards: few large files instead of many small ones, in the layout of WebDataset.

DATA is what `train` takes: a folder, a table, a built-in name, hf:NAME, other shards. Every verb takes the folder OUT,
or some of its shards ("OUT/train-{000000..000009}.tar"), in place of DATA, with the same result to the last bit.

Splits go into shards of their own: train-000000.tar, validation-000000.tar, test-000000.tar; an undivided set into
shards-000000.tar. Image files are kept byte for byte. A shard's images are in an order drawn by --seed, since who reads
one as a stream wants mixed classes; the index keeps the order of DATA. The image of a sample is KEY.jpg, KEY.png, ...;
KEY.cls is the number of its class, KEY.json has its name.
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

from vitrail.cli.main import Answer
from vitrail.console import progress_bar
from vitrail.data.open import open_source
from vitrail.data.shards.storage import is_remote
from vitrail.data.shards.writer import DEFAULT_SHARD_MIB, count_images, mixed_formats_note, write_shards
from vitrail.errors import UsageError

MOST = 20  # unreadable images that are printed; --json has them all


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("out", metavar="OUT", help="a folder that is not there yet")
    parser.add_argument(
        "--size", type=float, default=DEFAULT_SHARD_MIB, metavar="MIB", help=f"MiB of a shard ({DEFAULT_SHARD_MIB})"
    )
    parser.add_argument("--images", type=int, metavar="N", help="images of a shard at most (as many as --size takes)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws the order of images in the shards (0)")
    parser.add_argument("--keep-order", action="store_true", help="leave the images in the order of DATA")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out files that are not there, and count")


def run(arguments: argparse.Namespace) -> Answer:
    """Writes the shards and says what is in them."""
    if is_remote(arguments.out):
        raise UsageError("shards are written to a disk of this machine", "copy the folder to where it should lie")
    began = time.perf_counter()
    found = open_source(arguments.data, missing_ok=arguments.skip_unreadable)
    with progress_bar("writing shards", count_images(found)) as progress:
        written = write_shards(
            found,
            Path(arguments.out),
            shard_mib=arguments.size,
            images_per_shard=arguments.images,
            seed=None if arguments.keep_order else arguments.seed,
            skip_unreadable=arguments.skip_unreadable,
            on_images=progress.advance,
        )
    shown: list[object] = [
        f"{written.out}: {written.images} images of {written.classes} classes, {written.bytes / 1e6:,.1f} MB"
    ]
    for split, images in written.splits.items():
        n, stem = written.shards[split], "shards" if split == "all" else split
        last = f" to {stem}-{n - 1:06d}.tar" if n > 1 else ""
        shown.append(f"  {stem}-000000.tar{last}  {images} images" if n else f"  {split}: nothing that can be read")
    shown += [f"  left out, since it cannot be read: {name}" for name in written.unreadable[:MOST]]
    if (more := len(written.unreadable) - MOST) > 0:
        shown.append(f"  {more} more; --json lists them all")
    if note := mixed_formats_note(list(written.formats)):
        shown.append(note)
    return Answer({**asdict(written), "seconds": round(time.perf_counter() - began, 3)}, shown)
