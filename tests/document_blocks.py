"""The code blocks of the README and the documentation, and how tests run them.

A comment right before a block says how a test runs it:

    <!-- test: NAME -->          the test of this name runs it
    <!-- in the test: A becomes B; ... -->   with the text B in place of A: a small model for a download, fewer epochs
    <!-- not run: REASON -->     no test runs it
"""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?:<!-- ([^\n]*?) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str  # relative to the repository
    language: str
    text: str
    note: str  # the comment before it

    @property
    def test(self) -> str:
        return self.note.removeprefix("test: ") if self.note.startswith("test: ") else ""

    @property
    def reason(self) -> str:
        """Why no test runs it."""
        return self.note.removeprefix("not run: ") if self.note.startswith("not run: ") else ""

    @property
    def script(self) -> str:
        """The text as the test runs it."""
        script = self.text
        if self.note.startswith("in the test: "):
            for change in self.note.removeprefix("in the test: ").split("; "):
                old, new = change.split(" becomes ")
                assert old in script, f"{self.page}: the block has no {old!r}"
                script = script.replace(old, new)
        return script


def list_pages() -> list[str]:
    """Returns the README, the pages of docs/ and the chapters."""
    paths = [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "docs" / "learn").glob("*.py"))]
    return ["README.md", *(path.relative_to(ROOT).as_posix() for path in paths)]


def read_page(page: str) -> str:
    """Returns the Markdown of a page; that of a chapter is in its comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".py"):
        return "\n".join(line[2:] for line in text.splitlines() if line.startswith("#") and not line.startswith("# %%"))
    return text


def list_blocks(page: str) -> list[Block]:
    """Returns the code blocks of a page, without the directives of the site."""
    return [Block(page, language, text, note) for note, language, text in BLOCK.findall(read_page(page))]


def plugin_code() -> str:
    """Returns the Python blocks of docs/plugins.md as one module, without those that import it."""
    blocks = [block.text for block in list_blocks("docs/plugins.md") if block.language == "python"]
    return "\n\n".join(block for block in blocks if "import my_parts" not in block)


def has_same_words(line: str, printed: str) -> bool:
    """Whether the output has the line, with any numbers in place of its own."""
    pattern = NUMBER.pattern.join(re.escape(part) for part in NUMBER.split(line.strip()))
    return re.search(pattern, printed) is not None


def shell(
    script: str, folder: Path, vitrail: Sequence[str], quick: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script in which `vitrail` is this command; `quick` are lines of sh before it that may set `$quick`."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "vitrail").write_text(f'#!/bin/sh\nquick=\n{quick}\nexec {shlex.join(vitrail)} "$@" $quick\n')
    (tools / "vitrail").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    env = {**os.environ, "TORCH_HOME": str(folder / "torch"), "PATH": path, **environment}
    return subprocess.run(["bash", "-eu", "-c", script], cwd=folder, env=env, capture_output=True, text=True)
