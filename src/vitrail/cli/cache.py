"""Show what is cached on this machine, and remove it.

Caches hold only what can be computed or fetched again, in $VITRAIL_CACHE, or ~/.cache/vitrail. Each kind of files is
kept below $VITRAIL_CACHE_GIB (10 GiB): the files used longest ago make room. Weights from the Hugging Face hub are in
the cache of huggingface_hub.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import positive_number
from vitrail.cli.parser import Parser
from vitrail.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

    from vitrail.caches import CachedFile


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--remove",
        metavar="CACHE",
        action="append",
        help="remove the files of this cache, or of all; repeatable (default: only show)",
    )
    parser.add_argument(
        "--unused-days",
        type=positive_number,
        metavar="DAYS",
        help="with --remove: only files that were not used for this number of days (default: all files)",
    )


def run(arguments: argparse.Namespace) -> Answer:
    from vitrail.caches import CACHES, list_cached_files, remove_cached_files
    from vitrail.files import cache_folder

    chosen = arguments.remove or []
    if arguments.unused_days and not chosen:
        raise UsageError("--unused-days chooses what --remove removes", "add --remove all")
    for name in chosen:
        if name not in ("all", *CACHES):
            raise UsageError(f"there is no cache {name!r}", did_you_mean(name, ["all", *CACHES]))
    names = list(CACHES) if "all" in chosen else list(dict.fromkeys(chosen))
    removed = remove_cached_files(names, arguments.unused_days or 0.0)
    rows = [describe_cache(name, CACHES[name].description, list_cached_files(name)) for name in CACHES]
    counts = {"files": len(removed), "bytes": sum(file.size for file in removed)}
    shown: list[Any] = [str(cache_folder()), make_table(rows), "", "vitrail cache --remove all removes the files"]
    if chosen:
        shown[-1] = f"removed {counts['files']:,} files, {format_mib(counts['bytes'])} MiB"
    return Answer({"folder": str(cache_folder()), "caches": rows, "removed": counts}, shown)


def describe_cache(name: str, description: str, files: list[CachedFile]) -> dict[str, Any]:
    """The row of a cache: number of files, their bytes, and the days since the file used longest ago was used."""
    oldest_s = max((file.unused_s for file in files), default=None)
    return {
        "cache": name,
        "description": description,
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "oldest_days": None if oldest_s is None else round(max(oldest_s, 0.0) / 86400, 2),
    }


def make_table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Column, Table

    table = Table("cache", "what", Column("files", justify="right"), Column("MiB", justify="right"), box=None)
    for row in rows:
        table.add_row(row["cache"], row["description"], f"{row['files']:,}", format_mib(row["bytes"]))
    return table


def format_mib(size: int) -> str:
    """Bytes as MiB with one decimal."""
    return f"{size / (1 << 20):,.1f}"
