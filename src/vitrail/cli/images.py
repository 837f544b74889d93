"""The images that a person names: files, and folders with everything below them."""

from collections.abc import Sequence
from pathlib import Path

from vitrail.data.folder import images_below
from vitrail.errors import UsageError


def named_images(words: Sequence[str]) -> list[Path]:
    """The files in order; raises `UsageError` for a folder without images."""
    found: list[Path] = []
    for word in words:
        path = Path(word)
        if not path.is_dir():
            found.append(path)
            continue
        below, _ = images_below(path)
        if not below:
            raise UsageError(f"the folder {path} has no images")
        found += below
    return found
