"""Look at the data before anyone trains on it: unreadable files, classes out of place, copies across splits.

Errors would stop training (exit code 1), warnings would not; each says what will be done. Every file is read once;
what has not changed since is remembered ($VITRAIL_CACHE, or ~/.cache/vitrail).
"""

import argparse
from pathlib import Path

from vitrail.cli.main import Answer
from vitrail.console import progress_bar
from vitrail.data.check import CheckReport, check_data
from vitrail.data.clean import write_clean_list
from vitrail.data.contact_sheets import draw_class_sheet, draw_near_duplicate_sheet
from vitrail.data.findings import Finding
from vitrail.files import write_json

MOST = 20  # findings of a kind that are printed; --json has them all


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("data", metavar="DATA")
    parser.add_argument(
        "--fix",
        nargs="?",
        const="",
        metavar="FILE",
        help="write a clean list for `train` (NAME-clean.csv): without unreadable images, copies and leaks",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="write check.json and pictures of the classes and the copies there"
    )
    parser.add_argument("--fresh", action="store_true", help="read every file again")


def run(arguments: argparse.Namespace) -> Answer:
    """Reads everything and lists what was found."""
    with progress_bar("reading images", 0) as progress:
        report = check_data(arguments.data, lambda done, total: progress.update(done, total), fresh=arguments.fresh)
    document, shown = report.to_json(), in_words(report)
    if arguments.fix is not None:
        name = Path(arguments.data).resolve().stem if Path(arguments.data).exists() else arguments.data
        file = Path(arguments.fix or f"{name}-clean.csv")
        out = write_clean_list(report, file)
        kept = report.images - out.total()
        document["clean"] = {"file": str(file), "images": kept, "left_out": dict(out)}
        reasons = ", ".join(f"{n} {reason}" for reason, n in out.items())
        shown.append(f"written: {file} with {kept} images, {out.total()} left out{f' ({reasons})' if reasons else ''}")
    if arguments.out:
        folder = Path(arguments.out)
        write_json(folder / "check.json", document)
        shown.append(f"written: {folder / 'check.json'}")
        if report.survey and report.survey.readable:
            draw_class_sheet(report.survey, folder / "classes.png")
            shown.append(f"written: {folder / 'classes.png'}, some images of every class")
        if report.survey and report.survey.near_duplicates:
            draw_near_duplicate_sheet(report.survey, folder / "near-duplicates.png")
            shown.append(f"written: {folder / 'near-duplicates.png'}, images that are nearly the same")
    return Answer(document, shown, code=1 if report.errors else 0)


def in_words(report: CheckReport) -> list[object]:
    """What was found, line by line."""
    shown: list[object] = []
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
    by_code: dict[str, list[Finding]] = {}
    for finding in report.findings:
        by_code.setdefault(finding.code, []).append(finding)
    for alike in by_code.values():
        shown += [f"{finding.level}: {finding}" for finding in alike[:MOST]]
        if len(alike) > MOST:
            shown.append(f"{alike[0].level}: {len(alike) - MOST} more like the last; --json lists them all")
    shown.append("ready to train" if not report.errors else f"{len(report.errors)} to mend before training")
    return shown
