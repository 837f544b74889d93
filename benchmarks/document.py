"""Updates the tables of benchmarks inside the documents."""

from pathlib import Path

from vitrail.files import write_text


def replace_table(text: str, name: str, path: Path) -> None:
    """Replaces the text between the markers of this name in a document; raises `SystemExit` if they are missing."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, has_start, rest = path.read_text().partition(start)
    _, has_end, after = rest.partition(end)
    if not has_start or not has_end:
        raise SystemExit(f"{path} has no {start} and {end} to put the table between")
    write_text(path, f"{before}{start}\n{text.strip()}\n{end}{after}")
