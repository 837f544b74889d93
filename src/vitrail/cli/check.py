"""Check a data set before training: unreadable images, wrong classes, duplicates, leaks between splits.

Errors stop training, warnings do not; each says what training will do. With an error the exit code is 1. Every file is
read once. Results for unchanged files come from a cache ($VITRAIL_CACHE, or ~/.cache/vitrail).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import add_data, add_group_pattern, add_task
from vitrail.cli.parser import Parser
from vitrail.tasks import GRADES, MULTI_LABEL, REGRESSION
from vitrail.training.advice import advise_pretrained_weights

if TYPE_CHECKING:
    from vitrail.data.check import CheckReport
    from vitrail.data.findings import Finding

MAX_SHOWN = 20  # findings of a code that are printed; --json has all


def add_arguments(parser: Parser) -> None:
    add_data(parser)
    parser.add_argument(
        "--fix",
        nargs="?",
        const="",
        metavar="FILE",
        help="write a clean list for `vitrail train`, without unreadable images, duplicates and leaks "
        "(default: off; without FILE, NAME-clean.csv)",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="also write check.json and pictures of classes and duplicates (default: off)"
    )
    add_group_pattern(parser)
    add_task(parser)
    parser.add_argument("--no-cache", action="store_true", help="read every file again (default: off)")


def run(arguments: argparse.Namespace) -> Answer:
    from vitrail.console import progress_bar
    from vitrail.data.check import check_data

    with progress_bar("reading images", 0) as progress:
        report = check_data(
            arguments.data,
            lambda done, total: progress.update(done, total),
            fresh=arguments.no_cache,
            group_pattern=arguments.group_pattern,
            task=arguments.task,
        )
    answer = Answer(report.to_json(), describe_report(report), code=1 if report.errors else 0)
    if arguments.fix is not None:
        add_clean_list(report, arguments, answer)
    if arguments.out:
        write_check(report, Path(arguments.out), answer)
    return answer


def add_clean_list(report: CheckReport, arguments: argparse.Namespace, answer: Answer) -> None:
    """Writes the list of --fix and adds it to the answer."""
    from vitrail.data.clean import write_clean_list
    from vitrail.files import base_name

    file = Path(arguments.fix or f"{base_name(arguments.data)}-clean.csv")
    removed = write_clean_list(report, file)
    count = report.images - removed.total()
    answer.document["clean"] = {"file": str(file), "images": count, "left_out": dict(removed)}
    reasons = ", ".join(f"{n} {reason}" for reason, n in removed.items())
    left_out = f"{removed.total()} left out{f' ({reasons})' if reasons else ''}"
    answer.shown.append(f"written: {file} with {count} images, {left_out}")


def write_check(report: CheckReport, folder: Path, answer: Answer) -> None:
    """Writes check.json and the pictures into a folder and adds them to the answer."""
    from vitrail.data.contact_sheets import draw_class_sheet, draw_near_duplicate_sheet
    from vitrail.files import write_json

    write_json(folder / "check.json", answer.document)
    answer.shown.append(f"written: {folder / 'check.json'}")
    if report.survey and report.survey.readable:
        draw_class_sheet(report.survey, folder / "classes.png")
        answer.shown.append(f"written: {folder / 'classes.png'}, some images of every class")
    if report.survey and report.survey.near_duplicates:
        draw_near_duplicate_sheet(report.survey, folder / "near-duplicates.png")
        answer.shown.append(f"written: {folder / 'near-duplicates.png'}, near-duplicates")


def describe_report(report: CheckReport) -> list[object]:
    """Returns the report as lines of text."""
    lines: list[object] = []
    if report.images:
        splits = ", ".join(f"{n} {split}" for split, n in report.splits.items() if split != "all")
        counts = sorted(report.classes.values())
        kinds: dict[str, str] = {MULTI_LABEL: "labels, any number per image", GRADES: "grades"}
        kind = kinds.get(report.task, "classes")
        each = f"{counts[0]} to {counts[-1]}" if counts else "0"
        total = f"{report.images} images of {len(report.classes)} {kind} ({each} each)"
        if report.task == REGRESSION:
            names = ", ".join(report.classes)
            total = f"{report.images} images with the number{'s' * (len(report.classes) > 1)} {names}"
        lines.append(total + (f": {splits}" if splits else ""))
    if report.sizes:
        h, w = report.sizes["height"], report.sizes["width"]
        lines.append(f"height {h[0]} to {h[2]} (median {h[1]}), width {w[0]} to {w[2]} (median {w[1]}) pixels")
    if report.survey and not isinstance(report.survey.source.channels, int):
        lines.append(f"{report.survey.source.channels}, whose values are kept as they are")
    by_code: dict[str, list[Finding]] = {}
    for finding in report.findings:
        by_code.setdefault(finding.code, []).append(finding)
    for findings in by_code.values():
        lines += [f"{finding.level}: {finding}" for finding in findings[:MAX_SHOWN]]
        if len(findings) > MAX_SHOWN:
            rest = len(findings) - MAX_SHOWN
            lines.append(f"{findings[0].level}: {rest} more of this kind; --json lists all")
    errors = len(report.errors)
    problems = f"{errors} problem{'' if errors == 1 else 's'} to fix before training"
    lines.append(problems if errors else "ready to train")
    train_images = report.splits.get("train", report.splits.get("all", 0))
    if not errors and (advice := advise_pretrained_weights(train_images, report.data)):
        lines.append(advice)
    return lines
