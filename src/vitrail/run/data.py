"""The data of a run before it: checked, rid of what cannot be read, in memory where they fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.console import bar, say
from vitrail.data import Preprocess, Splits
from vitrail.data.check import UNREADABLE, Report, check
from vitrail.data.decode import ImageError
from vitrail.data.images import load_into_memory
from vitrail.data.sheets import draw_classes
from vitrail.errors import VitrailError
from vitrail.files import write_json
from vitrail.run.folder import RunFolder
from vitrail.train import Recipe

WARNINGS = 8  # that are said before training


def checked(data: str | Path, recipe: Recipe) -> Report:
    """What a check finds before training: warnings are said, errors raise `VitrailError`."""
    with bar("checking the data", 0) as progress:
        report = check(data, lambda done, total: progress.set(done, total), batch=recipe.batch, fit=recipe.fit or "pad")
    for finding in [finding for finding in report.findings if finding.level == "warning"][:WARNINGS]:
        say(f"warning: {finding}")
    if (more := len(report.warnings) - WARNINGS) > 0:
        say(f"warning: {more} more; vitrail check {data} says them all")
    errors = [
        f for f in report.findings if f.level == "error" and not (recipe.skip_unreadable and f.kind == UNREADABLE)
    ]
    if errors:
        others = f" (and {len(errors) - 1} more errors; vitrail check lists them)" if len(errors) > 1 else ""
        raise VitrailError(f"{data}: {errors[0].sentence}{others}", errors[0].then)
    return report


def without(splits: Splits, unreadable: list[str]) -> tuple[Splits, list[str]]:
    """The splits less the images of these names, and the names; raises `VitrailError` where none is left to train."""
    gone = set(unreadable)
    if not gone:
        return splits, []
    say(f"{len(gone)} image{'s' if len(gone) > 1 else ''} cannot be read and are left out, as --skip-unreadable says")
    parts = {
        name: images.subset([i for i, each in enumerate(images.names) if each not in gone])
        for name, images in splits.parts().items()
    }
    if not len(parts["train"]):
        raise VitrailError("not one training image can be read", "vitrail check says why")
    counts = {name: len(images) - len(parts[name]) for name, images in splits.parts().items()}
    kept: dict[str, Any] = {name: images if len(images) else None for name, images in parts.items()}
    return replace(splits, **kept, unreadable={name: n for name, n in counts.items() if n}), sorted(gone)


def show_data(report: Report, folder: RunFolder) -> None:
    """What the check found, beside the run: in full, and as a picture of the classes."""
    write_json(folder.path / "check.json", report.to_json())
    if report.seen:
        draw_classes(report.seen, folder.picture("classes"))


def in_memory(splits: Splits, budget: int, skip_unreadable: bool = False) -> Splits:
    """The splits decoded into memory where they fit in `budget` bytes, which proves that every file can be read."""
    parts = splits.parts()
    total = sum(map(len, parts.values()))
    with bar("reading images", total) as progress:
        try:
            loaded: dict[str, Any] = {
                name: load_into_memory(images, budget * len(images) // total, progress.tick)
                for name, images in parts.items()
            }
        except ImageError:
            if skip_unreadable:  # the loader will count it
                return splits
            raise
    return replace(splits, **loaded)


def refuse_small(splits: Splits, preprocess: Preprocess, skip_unreadable: bool = False) -> None:
    """Raises `ImageError` for an image that is too small or too thin, before anything is written.

    Of files that are not in memory only the headers are read.
    """
    for images in splits.parts().values():
        for i in range(len(images)):
            try:
                size = images.size(i)
            except ImageError:
                if skip_unreadable:  # the loader will count it
                    continue
                raise
            try:
                preprocess.check_size(*size)
            except ValueError as error:
                raise ImageError(images.paths[i], str(error)) from None
