"""Renders the document and the pictures of a report as one HTML file that needs nothing else."""

from base64 import b64encode
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from vitrail.evaluation.confusion import cell_shade
from vitrail.report import charts
from vitrail.report.embedding_map import CLASS_COLORS
from vitrail.report.findings import Level
from vitrail.report.plot import short
from vitrail.report.recall_window import recall_windows
from vitrail.report.sprite_sheets import sprite_position

LEVEL_LABELS = {Level.OK: "OK", Level.NOTE: "Note", Level.WARNING: "Warning"}
MAX_PAIRS = 12  # of confused classes below a matrix; without a matrix all pairs are listed


def render_page(document: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """Returns the page. It refers to nothing outside, and all names are escaped."""
    environment = Environment(
        loader=FunctionLoader(read_resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "short": short}
    environment.globals |= {
        "charts": charts,
        "colors": CLASS_COLORS,
        "level_labels": LEVEL_LABELS,
        "sprite_position": sprite_position,
        "cell_shade": cell_shade,
        "confused_pairs": confused_pairs,
        "measured": list_measures,
    }
    page: str = environment.get_template("page.html").render(
        d=document,
        window=recall_windows(document["per_class"]),
        style=Markup(read_resource("style.css")),
        script=Markup(read_resource("page.js")),
        pictures={name: b64encode(content).decode() for name, content in pictures.items()},
        script_data=script_data(document),
    )
    return page


def read_resource(name: str) -> str:
    return files("vitrail.report").joinpath("templates", name).read_text(encoding="utf-8")


def script_data(document: dict[str, Any]) -> dict[str, Any]:
    """Returns what the page's script needs: classes, cells of the matrix, thumbnails, and points of the embedding."""
    thumbnails = document["thumbnails"]
    return {
        "classes": document["classes"],
        "cells": document["confusion"]["cells"],
        "columns": thumbnails["columns"],
        "rows": thumbnails["rows"],
        "images": [
            [row["path"], row["true"], row.get("predicted"), row.get("probability")] for row in thumbnails["images"]
        ],
        "points": [[p["x"], p["y"], p["true"], p["predicted"]] for p in document["embedding"]["points"]],
    }


def confused_pairs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the most confused pairs of classes, each with the number of its cell."""
    classes = document["classes"]
    support = {row["class"]: row["images"] for row in document["per_class"]}
    cells = [(n, cell) for n, cell in enumerate(document["confusion"]["cells"]) if cell["true"] != cell["predicted"]]
    cells.sort(key=lambda pair: -pair[1]["images"])
    if document["confusion"]["matrix"]:
        cells = cells[:MAX_PAIRS]
    return [
        {
            "cell": n,
            "true": classes[cell["true"]],
            "predicted": classes[cell["predicted"]],
            "images": cell["images"],
            "support": support[classes[cell["true"]]],
            "fraction": round(cell["images"] / support[classes[cell["true"]]], 4),
        }
        for n, cell in cells
    ]


def list_measures(faithfulness: dict[str, Any]) -> list[str]:
    """Returns the measures for which some method has a score."""
    return [n for n in faithfulness["measures"] if any(row[n] for row in faithfulness["methods"].values())]


def percent(value: float | None, digits: int = 1) -> str:
    """Formats a fraction as a percentage; None as a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def number(value: float | None, digits: int = 3) -> str:
    """Formats a number with this number of decimals; None as a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"
