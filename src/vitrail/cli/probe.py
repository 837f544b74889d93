"""Say how far a model's features go without training it: k nearest neighbours and a linear head.

DATA is what `train` takes. Both probes are fitted on its training images and scored on test (else validation); the
linear one chooses its penalty on validation, and where that is scored too, it is said. Features are computed once and
kept in ~/.cache/vitrail/features ($VITRAIL_CACHE), which may be emptied at will.
"""

import argparse
from pathlib import Path

from vitrail.cli.loading import add_model, loaded
from vitrail.cli.main import Answer
from vitrail.errors import UsageError
from vitrail.evaluation.evaluation import describe_scored_images
from vitrail.evaluation.knn import DEFAULT_K, DEFAULT_TEMPERATURE
from vitrail.evaluation.probe import open_probe_data, probe
from vitrail.files import write_json
from vitrail.options import option_parser


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_model(parser)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--k", type=int, default=DEFAULT_K, metavar="N", help=f"neighbours that vote ({DEFAULT_K})")
    parser.add_argument(
        "--temperature",
        type=float,
        default=DEFAULT_TEMPERATURE,
        metavar="X",
        help=f"of their votes ({DEFAULT_TEMPERATURE})",
    )
    parser.add_argument("--penalty", type=float, metavar="X", help="of the linear head (the best on validation)")
    parser.add_argument(
        "--image-size",
        type=option_parser(int | tuple[int, int]),
        metavar="N",
        help="side of the image in pixels (the model's)",
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images at a time (64)")
    parser.add_argument("--no-cache", action="store_true", help="neither read nor keep features")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (the best there is)")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out images that cannot be read, and count"
    )
    parser.add_argument("--out", metavar="FILE", help="also write the JSON there")


def run(arguments: argparse.Namespace) -> Answer:
    """Probes and shows both scores."""
    if arguments.batch < 1:
        raise UsageError(f"--batch is {arguments.batch}; it must be at least 1")
    if arguments.penalty is not None and not arguments.penalty > 0:
        raise UsageError(f"--penalty is {arguments.penalty}; it must be above 0")
    classifier = loaded(arguments)
    if arguments.image_size is not None:
        classifier = classifier.with_image_size(arguments.image_size)
    splits = open_probe_data(classifier, arguments.data, arguments.skip_unreadable)
    if splits.test is None and splits.validation is None:
        raise UsageError(f"{arguments.data} keeps no image back to score on", "add a folder named test")
    found = probe(
        classifier,
        splits,
        k=arguments.k,
        temperature=arguments.temperature,
        penalty=arguments.penalty,
        batch_size=arguments.batch,
        cache=not arguments.no_cache,
        skip_unreadable=arguments.skip_unreadable,
    )
    document = found.to_json()
    chosen = "given" if arguments.penalty else "chosen on validation" if splits.validation else "not chosen"
    shown = [
        f"{document['train_images']} training images, {found.split} scored; the linear head took {found.seconds:.1f} s"
    ]
    if gone := ", ".join(f"{n} of {name}" for name, n in found.unreadable.items()):
        shown.append(f"could not be read and count for nothing: {gone}")
    for name, how in (
        ("linear", f"linear probe (penalty {found.head.penalty:g}, {chosen})"),
        ("knn", f"k-NN (k {found.k}, cosine, temperature {found.temperature:g})"),
    ):
        scores = document[name]
        low, high = scores["accuracy_interval"]
        interval = f"95 % interval {low:.4f} to {high:.4f}"
        shown.append(f"{how}: accuracy {scores['accuracy']:.4f} ({interval}), {describe_scored_images(scores)}")
    if arguments.out:
        write_json(Path(arguments.out), document)
        shown.append(f"written: {arguments.out}")
    return Answer(document, shown)
