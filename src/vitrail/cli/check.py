"""Look at the data before anyone trains on it: unreadable files, classes out of place, copies across splits.

Errors would stop training (exit code 1), warnings would not.
"""

import argparse

from vitrail.cli.main import Answer
from vitrail.console import bar
from vitrail.data.check import check


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("data", metavar="DATA")


def run(arguments: argparse.Namespace) -> Answer:
    """Reads everything and lists what was found."""
    with bar("reading images", 0) as progress:
        report = check(arguments.data, lambda done, total: progress.set(done, total))
    shown = []
    if report.images:
        splits = ", ".join(f"{n} {split}" for split, n in report.splits.items() if split != "all")
        counts = sorted(report.classes.values())
        shown.append(
            f"{report.images} images of {len(report.classes)} classes ({counts[0]} to {counts[-1]} each)"
            + (f": {splits}" if splits else "")
        )
    if report.sizes:
        h, w = report.sizes["height"], report.sizes["width"]
        shown.append(f"height {h[0]} to {h[2]} (median {h[1]}), width {w[0]} to {w[2]} (median {w[1]}) pixels")
    shown += [f"error: {error}" for error in report.errors]
    shown += [f"warning: {warning}" for warning in report.warnings]
    shown.append("ready to train" if not report.errors else f"{len(report.errors)} to mend before training")
    return Answer(report.to_json(), shown, code=1 if report.errors else 0)
