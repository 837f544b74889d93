"""Tables of benchmarks in the documents that show them."""

from pathlib import Path

from vitrail.files import write_text


def put(text: str, name: str, path: Path) -> None:
    """Replaces what stands between the marks of this name in a document; raises `SystemExit` where it has none."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = path.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"{path} has no {begin} and {end} to put the table between")
    write_text(path, f"{before}{begin}\n{text.strip()}\n{end}{after}")
