"""Prints the newest installed Python that vitrail supports and that is newer than this one; nothing if there is none.

Looks for python3.N on PATH and in pyenv's folder of versions. The classifiers in pyproject.toml say what is supported.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CLASSIFIER = re.compile(r'"Programming Language :: Python :: 3\.(\d+)"')
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def supported_minors() -> list[int]:
    """Returns the minor versions of Python 3 that pyproject.toml lists, newest first."""
    return sorted(map(int, CLASSIFIER.findall(PYPROJECT.read_text(encoding="utf-8"))), reverse=True)


def candidates(minor: int) -> Iterator[Path]:
    """Yields the programs that may be Python 3.`minor`: on PATH, then those of pyenv, newest first."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield Path(folder) / f"python3.{minor}"
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    patches = [path for path in versions.glob(f"3.{minor}.*") if path.name.rsplit(".", 1)[1].isdigit()]
    for path in sorted(patches, key=lambda path: int(path.name.rsplit(".", 1)[1]), reverse=True):
        yield path / "bin" / f"python3.{minor}"


def is_python(program: Path, minor: int) -> bool:
    """Returns whether a program runs, is this version of Python, and can make virtual environments.

    A program on PATH may be pyenv's placeholder, which does not run.
    """
    if not os.access(program, os.X_OK):
        return False
    code = f"import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, {minor}))"
    try:
        return subprocess.run([program, "-c", code], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def newest_python() -> Path | None:
    """Returns the newest supported Python here that is newer than the running one, if any."""
    minors = [minor for minor in supported_minors() if minor > sys.version_info.minor]
    found = (program for minor in minors for program in candidates(minor) if is_python(program, minor))
    return next(found, None)


if __name__ == "__main__":
    print(newest_python() or "")
