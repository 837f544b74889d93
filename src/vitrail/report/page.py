"""The document and its pictures -> one HTML file that needs nothing else."""

from base64 import b64encode
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from vitrail.report import charts
from vitrail.report.embedding_map import COLOURS
from vitrail.report.recall_window import window


def render_page(document: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """The page; nothing in it leads outside, and every name in it is escaped."""
    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "number": number, "short": charts.short}
    environment.globals |= {
        "charts": charts, "colours": COLOURS, "place": place, "level": level, "confused_pairs": confused_pairs,
        "measured_of": measured_of,
    }  # fmt: skip
    page: str = environment.get_template("page.html").render(
        d=document,
        window=window(document["per_class"]),
        style=Markup(read("style.css")),
        script=Markup(read("page.js")),
        pictures={name: b64encode(content).decode() for name, content in pictures.items()},
        wanted=for_script(document),
    )
    return page


def read(name: str) -> str:
    """A file that lies beside this one."""
    return files("vitrail.report").joinpath(name).read_text(encoding="utf-8")


def for_script(document: dict[str, Any]) -> dict[str, Any]:
    """What the page's script needs to open a cell: classes, cells, and what each thumbnail shows."""
    sheet = document["thumbnails"]
    return {
        "classes": document["classes"],
        "cells": document["confusion"]["cells"],
        "columns": sheet["columns"],
        "rows": sheet["rows"],
        "images": [[row["path"], row["true"], row.get("predicted"), row.get("probability")] for row in sheet["images"]],
        "points": [[p["x"], p["y"], p["true"], p["predicted"]] for p in document["embedding"]["points"]],
    }


def place(layout: dict[str, Any], tile: int) -> dict[str, Any]:
    """The sheet that a tile is on, and where: background positions in per cent."""
    per_sheet = layout["columns"] * max(layout["rows"], default=1)
    sheet, inside = divmod(tile, per_sheet)
    row, column = divmod(inside, layout["columns"])
    across, down = layout["columns"] - 1, layout["rows"][sheet] - 1
    return {
        "file": layout["files"][sheet],
        "x": round(100 * column / across, 4) if across else 0,
        "y": round(100 * row / down, 4) if down else 0,
    }


def confused_pairs(document: dict[str, Any], most: int = 12) -> list[dict[str, Any]]:
    """The pairs that are mistaken most often, each with its cell's number; as many as a matrix leaves need of."""
    classes = document["classes"]
    support = {row["class"]: row["images"] for row in document["per_class"]}
    cells = [(n, cell) for n, cell in enumerate(document["confusion"]["cells"]) if cell["true"] != cell["predicted"]]
    cells.sort(key=lambda pair: -pair[1]["images"])
    if document["confusion"]["matrix"]:
        cells = cells[:most]
    return [
        {
            "cell": n, "true": classes[cell["true"]], "predicted": classes[cell["predicted"]], "images": cell["images"],
            "of": support[classes[cell["true"]]], "part": round(cell["images"] / support[classes[cell["true"]]], 4),
        }
        for n, cell in cells
    ]  # fmt: skip


def measured_of(faithfulness: dict[str, Any]) -> list[str]:
    """The measures that some method has a score for."""
    return [n for n in faithfulness["measures"] if any(row[n] for row in faithfulness["methods"].values())]


def percent(value: float | None, digits: int = 1) -> str:
    """81.6 %, or a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u00a0%"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def level(part: float) -> int:
    """The shade of a cell, 0 to 6, from the part of the row that is in it."""
    return min(6, int(7 * part**0.6)) if part else 0
