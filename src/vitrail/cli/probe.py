"""Score a model's features without training it: k nearest neighbors and a linear head.

Both probes are fitted on the training images and scored on the test images, else on validation: on one class per image,
several labels, grades or numbers. The linear head's L2 penalty and the thresholds of several labels are chosen on
validation. Features are computed once and cached in ~/.cache/vitrail/features ($VITRAIL_CACHE).
"""

import argparse
from pathlib import Path
from typing import Any

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import (
    add_batch_size,
    add_data,
    add_device,
    add_model,
    add_skip_unreadable,
    add_task,
    count,
    load_classifier,
    positive_number,
)
from vitrail.cli.parser import Parser
from vitrail.errors import UsageError
from vitrail.options import option_parser
from vitrail.probe_documents import ProbeScores

DEFAULT_K = 20  # as in evaluation/knn.py, whose import would slow the help down
DEFAULT_TEMPERATURE = 0.07


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    add_data(parser)
    parser.add_argument(
        "--k", type=count(), default=DEFAULT_K, metavar="COUNT", help=f"neighbors that vote (default: {DEFAULT_K})"
    )
    parser.add_argument(
        "--temperature",
        type=positive_number,
        default=DEFAULT_TEMPERATURE,
        metavar="NUMBER",
        help=f"temperature of the neighbors' votes (default: {DEFAULT_TEMPERATURE})",
    )
    parser.add_argument(
        "--probe-l2", type=positive_number, metavar="NUMBER",
        help="L2 penalty of the linear head (default: the best on validation)",
    )  # fmt: skip
    parser.add_argument(
        "--image-size",
        type=option_parser(int | tuple[int, int]),
        metavar="PIXELS|HEIGHTxWIDTH",
        help="image size in pixels (default: the model's)",
    )
    add_task(parser)
    add_batch_size(parser, 64)
    parser.add_argument("--no-cache", action="store_true", help="neither read nor write cached features (default: off)")
    add_device(parser)
    add_skip_unreadable(parser)
    parser.add_argument("--out", metavar="FILE", help="also write the result as JSON to this file (default: off)")


def run(arguments: argparse.Namespace) -> Answer:
    from vitrail.evaluation.probe import open_probe_data, probe
    from vitrail.files import write_json

    classifier = load_classifier(arguments)
    if arguments.image_size is not None:
        classifier = classifier.with_image_size(arguments.image_size)
    splits = open_probe_data(classifier, arguments.data, arguments.skip_unreadable, arguments.task)
    if splits.test is None and splits.validation is None:
        raise UsageError(f"{arguments.data} has no test or validation images to score on", "add a folder named test")
    result = probe(
        classifier,
        splits,
        k=arguments.k,
        temperature=arguments.temperature,
        penalty=arguments.probe_l2,
        batch_size=arguments.batch_size,
        cache=not arguments.no_cache,
        skip_unreadable=arguments.skip_unreadable,
    )
    document = result.to_json()
    source = "set by --probe-l2" if arguments.probe_l2 else "chosen on validation" if splits.validation else "default"
    lines: list[Any] = [
        f"{document['train_images']} training images, scored on {result.split}; "
        f"fitting the linear head took {result.seconds:.1f} s"
    ]
    if unreadable := ", ".join(f"{n} of {name}" for name, n in result.unreadable.items()):
        lines.append(f"skipped, unreadable: {unreadable}")
    lines.append(describe_scores(document["linear"], f"linear probe (L2 penalty {result.head.penalty:g}, {source})"))
    lines.append(describe_scores(document["knn"], f"k-NN (k {result.k}, cosine, temperature {result.temperature:g})"))
    if arguments.out:
        write_json(Path(arguments.out), document)
        lines.append(f"written: {arguments.out}")
    return Answer({**document}, lines)


def describe_scores(scores: ProbeScores, name: str) -> str:
    from vitrail.evaluation.evaluation import describe_scored_images
    from vitrail.evaluation.probe_scores import describe_probe_scores

    return f"{name}: {describe_probe_scores(scores)}, {describe_scored_images(scores)}"
