"""Sphinx extension: pages that are made of other files, and links that leave docs/.

A page may consist of a file beside docs/ (`include`) or of text that the package's data make (`generate`):

    ```{include} ../../ARCHITECTURE.md
    ```

    ```{generate} recipes
    ```

Both are expanded before Markdown is parsed, so that links in them can be rewritten: on GitHub a link to
../ARCHITECTURE.md leads to the file, on the site to the page that contains it.
"""

import os
import re
from pathlib import Path
from typing import Any

from generated import GENERATORS

DOCS = Path(__file__).parent.parent.resolve()
ROOT = DOCS.parent
REPOSITORY = "https://github.com/vitrail/vitrail/blob/main"
PAGES = {  # files and folders beside docs/ that have a page
    "ARCHITECTURE.md": "internals/architecture.md",
    "CONTRIBUTING.md": "internals/contributing.md",
    "SECURITY.md": "internals/security.md",
    "CHANGELOG.md": "internals/changelog.md",
    "README.md": "start/install.md",
    "docs": "index.md",
    "docs/adr": "internals/decisions.md",
    "src/vitrail/model": "source/index.md",
}
BLOCK = re.compile(r"^```\{(include|generate)\} (\S+)\n(.*?)```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"^:(start|end)-(?:after|before): (.+)$", re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def expand_page(app: Any, docname: str, source: list[str]) -> None:
    """Replaces the blocks of a Markdown page, and the links of any page; a handler of `source-read`."""
    page = Path(app.env.doc2path(docname))
    if page.suffix == ".py":
        source[0] = rewrite_links(source[0], page.parent, page)
        return

    def expand(block: re.Match[str]) -> str:
        kind, name, options = block.groups()
        if kind == "generate":
            return GENERATORS[name]()
        path = (page.parent / name).resolve()
        app.env.note_dependency(str(path))
        return rewrite_links(cut(path.read_text(encoding="utf-8"), dict(OPTION.findall(options))), path.parent, page)

    source[0] = BLOCK.sub(expand, rewrite_links(source[0], page.parent, page))


def cut(text: str, bounds: dict[str, str]) -> str:
    """Returns the part of a text after the words `start` and before the words `end`."""
    if "start" in bounds:
        text = text.split(bounds["start"], 1)[1]
    return text.split(bounds["end"], 1)[0] if "end" in bounds else text


def rewrite_links(text: str, base: Path, page: Path) -> str:
    """Returns the text of a file in the folder `base` with links that are right on `page`."""

    def rewrite(link: re.Match[str]) -> str:
        start, target, anchor, end = link.groups()
        path = Path(os.path.normpath(base / target))
        if ":" in target or not path.exists() or not path.is_relative_to(ROOT):
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        if name in PAGES:
            path = DOCS / PAGES[name]
        elif name.startswith("src/vitrail/model/"):
            path = DOCS / "source" / f"{path.stem}.md"
        elif not path.is_relative_to(DOCS):
            return f"{start}{REPOSITORY}/{name}{anchor or ''}{end}"
        return f"{start}{os.path.relpath(path, page.parent)}{anchor or ''}{end}"

    return LINK.sub(rewrite, text)


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", expand_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
