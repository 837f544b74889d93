"""Measure the speed of a model on this machine, beside other libraries' ViTs of the same size, in one alternating run.

vitrail is measured with its plain model and its fast copy (predict --fast), another library also in ONNX Runtime.
Missing libraries are named; the extra `bench` installs all of them.
"""

import argparse

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import add_device, add_model, add_threads, count, load_classifier, positive_number
from vitrail.cli.parser import Parser
from vitrail.errors import UsageError


def add_arguments(parser: Parser) -> None:
    add_model(parser, default="cifar10-small")
    parser.add_argument(
        "--batch-sizes", type=count(), nargs="+", default=[1, 8], metavar="COUNT", help="batch sizes (default: 1 8)"
    )
    parser.add_argument(
        "--train", type=count(), nargs="?", const=64, metavar="COUNT",
        help="also measure a training step with this batch size (default: off; without COUNT, 64)",
    )  # fmt: skip
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also measure torch.compile: takes minutes, needs a C++ compiler (default: off)",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="also compare the fast copy's labels with the plain model's on these images (default: off)",
    )
    parser.add_argument("--max-images", type=count(), metavar="COUNT", help="maximum number of images (default: 500)")
    add_threads(parser)
    parser.add_argument("--rounds", type=count(), default=7, metavar="COUNT", help="alternating rounds (default: 7)")
    parser.add_argument(
        "--min-round-s", type=positive_number, default=0.2, metavar="SECONDS",
        help="minimum time of a measurement in seconds (default: 0.2)",
    )  # fmt: skip
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="wall time, or CPU time for busy machines (default: wall)",
    )
    parser.add_argument(
        "--measure-memory", action="store_true", help="also measure peak memory, in separate processes (default: off)"
    )
    add_device(parser)
    parser.add_argument("--out", metavar="FOLDER", help="also write bench.json and bench.png there (default: off)")


def run(arguments: argparse.Namespace) -> Answer:
    import torch

    from vitrail.cli.run_benchmarks import run_benchmarks
    from vitrail.machine import keep_freed_memory

    if arguments.max_images and not arguments.data:
        raise UsageError("--max-images is for the images of --data", "add --data DATA")
    classifier = load_classifier(arguments)
    if classifier.device.type == "mps":
        raise UsageError("bench does not support mps", "use --device cpu")
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads or before)
    try:
        return run_benchmarks(arguments, classifier)
    finally:
        torch.set_num_threads(before)
