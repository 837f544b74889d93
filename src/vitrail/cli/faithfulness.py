"""Score how faithful a classifier's explanations are: whether its maps show what its predictions depend on.

Deletion removes the patches that a map calls most relevant, and the probability should fall. Insertion keeps only
these, and it should stay high. On images composed of several, the map for one object should be on that object. A model
with shuffled weights should get other maps. Control maps (random, center, edges) are scored beside the methods.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import add_data, add_device, add_model, add_skip_unreadable, count, load_classifier
from vitrail.cli.parser import Parser
from vitrail.tasks import refuse_task

if TYPE_CHECKING:
    from rich.table import Table

    from vitrail.explanation.scores import Faithfulness


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    add_data(parser)
    parser.add_argument(
        "--methods", metavar="NAME,NAME", help="methods, separated by commas (default: all; see vitrail explain --help)"
    )
    parser.add_argument(
        "--max-images", type=count(), default=100, metavar="COUNT", help="maximum number of images (default: 100)"
    )
    parser.add_argument(
        "--steps",
        type=count(),
        default=12,
        metavar="COUNT",
        help="points of a deletion or insertion curve (default: 12)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="SEED", help="seed of the random sample of images (default: 0)"
    )
    add_device(parser)
    add_skip_unreadable(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", help="also write faithfulness.json and faithfulness.png there (default: off)"
    )


def run(arguments: argparse.Namespace) -> Answer:
    from vitrail.console import progress_bar
    from vitrail.evaluation import open_scored_images
    from vitrail.explanation.faithfulness import count_steps, evaluate_faithfulness
    from vitrail.explanation.figures import save_faithfulness
    from vitrail.explanation.measures import MEASURES
    from vitrail.explanation.methods import METHODS, find_method
    from vitrail.files import write_json

    methods = [name.strip() for name in (arguments.methods or ",".join(METHODS)).split(",")]
    for name in methods:
        find_method(name)
    classifier = load_classifier(arguments)
    refuse_task(classifier.task, "faithfulness")
    scored = open_scored_images(classifier, arguments.data, arguments.skip_unreadable)
    with progress_bar("scoring", count_steps(len(methods))) as progress:
        started: list[str] = []

        def advance(name: str) -> None:
            progress.advance(1 if started else 0, note=name)
            started.append(name)

        result = evaluate_faithfulness(
            classifier, scored.images, methods=methods, max_images=arguments.max_images, steps=arguments.steps,
            seed=arguments.seed, description=scored.description, on_step=advance,
            skip_unreadable=arguments.skip_unreadable,
        )  # fmt: skip
    document = result.to_json()
    unreadable = f", {result.unreadable} more could not be read" if result.unreadable else ""
    lines: list[Any] = [f"{result.images} of {scored.description}{unreadable}", make_score_table(result)]
    lines += [f"{name.replace('_', ', ')}: {row.description}; {row.better} is better" for name, row in MEASURES.items()]
    lines.append("* best or statistically tied; cost: forward passes of this model, measured")
    if arguments.out:
        folder = Path(arguments.out)
        write_json(folder / "faithfulness.json", document)
        save_faithfulness(result, folder / "faithfulness.png")
        lines.append(f"written: {folder / 'faithfulness.json'}, {folder / 'faithfulness.png'}")
    return Answer(document, lines)


def make_score_table(result: Faithfulness) -> Table:
    """Returns a table with a row per method and control: each measure's mean and half of its 95% interval."""
    from rich.table import Column, Table
    from rich.text import Text

    from vitrail.explanation.measures import MEASURES

    method = Column("method", min_width=max(map(len, result.methods)))
    headers = {"randomization": "random-\nization"}  # the widest names, in two lines: a terminal has 80 columns
    columns = [Column(headers.get(name, name.replace("_", "\n")), no_wrap=True) for name in MEASURES]
    table = Table(method, *columns, "cost", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name, row in result.methods.items():
        cells = []
        for score in row.scores.values():
            interval = score and score.interval
            half = f"±{(interval[1] - interval[0]) / 2:.3f}" if interval else "-"
            cells.append("-" if score is None else f"{score.mean:.3f}{'*' if score.is_best else ' '}\n{half}")
        cost = "" if row.is_control or row.forward_passes is None else f"{row.forward_passes:.1f}"
        table.add_row(Text(name, style="dim" if row.is_control else ""), *cells, cost)
    return table
