"""Score the explanations of a classifier: whether its maps show what its answers rest on.

Patches that a map calls relevant are left out, and the answer should fall (deletion) or, left alone, should hold
(insertion); on images put together from several, the map for one object should lie on it; and a model with shuffled
weights should get other maps. Maps that know nothing (random, centre, edges) are scored beside them.
"""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vitrail.cli.loading import add_model, loaded
from vitrail.cli.main import Answer
from vitrail.console import progress_bar
from vitrail.errors import UsageError
from vitrail.evaluation import open_scored_images
from vitrail.explanation import METHODS
from vitrail.explanation.faithfulness import count_steps, evaluate_faithfulness
from vitrail.explanation.figures import save_faithfulness
from vitrail.explanation.measures import MEASURES
from vitrail.explanation.methods import find_method
from vitrail.explanation.scores import Faithfulness
from vitrail.files import write_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_model(parser)
    parser.add_argument("data", metavar="DATA", help="what `train` takes")
    parser.add_argument("--methods", metavar="M,M", help=f"separated by commas (all: {', '.join(METHODS)})")
    parser.add_argument("--images", type=int, default=100, metavar="N", help="images to score on (100)")
    parser.add_argument("--steps", type=int, default=12, metavar="N", help="points of a curve (12)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which images are drawn (0)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (the best there is)")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out images that cannot be read, and count"
    )
    parser.add_argument("--out", metavar="DIR", help="also write faithfulness.json and faithfulness.png there")


def run(arguments: argparse.Namespace) -> Answer:
    """Scores and shows a table."""
    for name in ("images", "steps"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    methods = [name.strip() for name in (arguments.methods or ",".join(METHODS)).split(",")]
    for name in methods:
        find_method(name)
    classifier = loaded(arguments)
    scored = open_scored_images(classifier, arguments.data, arguments.skip_unreadable)
    with progress_bar("scoring", count_steps(len(methods))) as progress:
        begun: list[str] = []

        def tick(name: str) -> None:
            progress.advance(1 if begun else 0, note=name)
            begun.append(name)

        found = evaluate_faithfulness(
            classifier, scored.images, methods=methods, max_images=arguments.images,
            steps=arguments.steps, seed=arguments.seed, description=scored.description, on_step=tick,
            skip_unreadable=arguments.skip_unreadable,
        )  # fmt: skip
    document = found.to_json()
    gone = f", {found.unreadable} more could not be read" if found.unreadable else ""
    shown: list[Any] = [f"{found.images} of {scored.description}{gone}", table(found)]
    shown += [f"{name.replace('_', ', ')}: {row.description}; {row.better} is better" for name, row in MEASURES.items()]
    shown.append("* best, or not to be told from the best; cost in forward passes of this model, as measured")
    if arguments.out:
        folder = Path(arguments.out)
        write_json(folder / "faithfulness.json", document)
        save_faithfulness(found, folder / "faithfulness.png")
        shown.append(f"written: {folder / 'faithfulness.json'}, {folder / 'faithfulness.png'}")
    return Answer(document, shown)


def table(found: Faithfulness) -> Table:
    """A row per method and control, a column per measure: the mean over half the 95 % interval."""
    shown = Table("method", *(name.replace("_", "\n") for name in MEASURES), "cost", box=None, header_style="bold")
    for name, row in found.methods.items():
        cells = []
        for score in row.scores.values():
            half = 0.0 if score is None else (score.interval[1] - score.interval[0]) / 2
            cells.append("-" if score is None else f"{score.mean:.3f}{'*' if score.is_best else ' '}\n±{half:.3f}")
        cost = "" if row.is_control or row.forward_passes is None else f"{row.forward_passes:.1f}"
        shown.add_row(Text(name, style="dim" if row.is_control else ""), *cells, cost)
    return shown
