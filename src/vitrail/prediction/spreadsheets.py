"""Keeps a spreadsheet that opens the results from running a cell as a formula."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from vitrail.errors import UsageError

FORMULA_PREFIXES = tuple("=+-@\t\r")  # a cell that starts with one of these is a formula


def portable_path(path: str) -> str:
    """Returns a path for the results that is valid UTF-8 and not a formula.

    A path that is not UTF-8 becomes a file: URL, which keeps every byte; one that looks like a formula gets the prefix
    `./`, and still names the same file.
    """
    path = f"./{path}" if path.startswith(FORMULA_PREFIXES) else path
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return Path(os.path.abspath(path)).as_uri()


def check_csv_classes(classes: Sequence[str]) -> None:
    """Raises `UsageError` for a class name that looks like a formula: CSV cannot mark a cell as text."""
    for name in classes:
        if name.startswith(FORMULA_PREFIXES):
            raise UsageError(
                f"a spreadsheet would run the class {json.dumps(name)} in a CSV file as a formula",
                "use --format parquet",
            )
