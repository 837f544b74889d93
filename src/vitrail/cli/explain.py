"""Show which parts of an image a prediction is based on: for each image, a picture of the relevance map.

Without --class, the predicted class is explained; of a classifier for several labels, each predicted label. With
--against, the map shows evidence for one class and against another. Attention and rollout are the same for every class:
they show where the model looks. `vitrail faithfulness` scores how faithful each method is.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import (
    add_device,
    add_model,
    add_shown_channels,
    load_any_classifier,
    require_classifier,
    show_channels,
)
from vitrail.cli.parser import Parser
from vitrail.console import progress_bar
from vitrail.errors import UsageError
from vitrail.tasks import MULTI_LABEL, REGRESSION

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.explanation.explanation import Explanation
    from vitrail.explanation.targets import Target
    from vitrail.model.config import ViTConfig
    from vitrail.module_classifier import TorchClassifier

MAX_NAME_BYTES = 200  # of a picture's file name: disks allow 255, and a number and an extension follow
FIELDS = (  # of an image's row; None if the image cannot be read
    "label", "probability", "predicted", "against", "method", "layer", "head", "query", "class_blind", "signed", "cost",
    "map", "summary",
)  # fmt: skip


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, folders, tar shards, tables of paths")
    method = parser.add_argument("--method", metavar="NAME", help="one of those below")
    parser.complete_help = lambda: describe_methods(parser, method)
    parser.add_argument(
        "--class", dest="label", metavar="LABEL", help="the class to explain (default: the predicted class)"
    )
    parser.add_argument(
        "--against", metavar="LABEL", help="show evidence for the class against this one (default: against all others)"
    )
    parser.add_argument(
        "--layer",
        metavar="INDEX|all",
        help="layer from 0, or from the end with -1; all: one picture of all (default: the method's)",
    )
    parser.add_argument(
        "--attention-head",
        dest="head",
        default="mean",
        metavar="INDEX|mean|all",
        help="attention head from 0; all: one picture of all (default: mean)",
    )
    parser.add_argument(
        "--query",
        metavar="ROW,COLUMN",
        help="show what this patch attends to, counted from 0 (default: what the pool reads)",
    )
    parser.add_argument(
        "--picture", choices=["panels", "overlay"], default="panels", help="layout of the picture (default: panels)"
    )
    parser.add_argument("--smooth", action="store_true", help="blur the edges of the patches (default: off)")
    add_shown_channels(parser)
    parser.add_argument("--format", choices=["png", "svg"], default="png", help="file format (default: png)")
    add_device(parser)
    parser.add_argument(
        "--out", default="explanations", metavar="FOLDER", help="folder for the pictures (default: explanations)"
    )


def describe_methods(parser: Parser, option: argparse.Action) -> None:
    """Adds the methods to the help."""
    from vitrail.explanation.methods import DEFAULT_METHOD, METHODS
    from vitrail.plugins import load_entry_points

    load_entry_points()
    rows = "\n".join(
        f"  {name:21}{row.description}{' (same for every class)' if row.class_blind else ''}: {row.cost}"
        for name, row in METHODS.items()
    )
    parser.epilog = f"methods and their cost:\n{rows}"
    option.help = (
        f"one of those below (default: {DEFAULT_METHOD}; with --layer, --attention-head or --query: attention)"
    )


def run(arguments: argparse.Namespace) -> Answer:
    from vitrail.cli.images import list_input_images
    from vitrail.data.decode import ImageError
    from vitrail.explanation.api import explain_views
    from vitrail.explanation.methods import DEFAULT_METHOD
    from vitrail.explanation.targets import parse_target

    classifier = show_channels(load_explainable(arguments), arguments.shown_channels)
    target = parse_target_options(arguments.label, arguments.against)
    parse_target(classifier.classes, target)  # fails for an unknown class before any work
    depth, count = (config.depth, config.heads) if (config := vit_config(classifier)) else (0, 0)
    layers, heads = parse_layers(arguments.layer, depth), parse_heads(arguments.head, count)
    if len(layers) > 1 and len(heads) > 1:
        raise UsageError("all layers of all heads do not fit into a picture", "choose one layer or one head")
    if len(layers) > 1 or len(heads) > 1:
        for option, is_set in (("picture overlay", arguments.picture == "overlay"), ("smooth", arguments.smooth)):
            if is_set:
                raise UsageError(f"--{option} is for one map, not for a picture of many", "name one layer or one head")
    query = parse_query(arguments.query)
    looks_inside = arguments.layer or arguments.head != "mean" or query
    method = arguments.method or ("attention" if looks_inside else DEFAULT_METHOD)
    rows: list[dict[str, Any]] = []
    several = ["heads"] if len(heads) > 1 else ["layers"] if len(layers) > 1 else []
    images, views = list_input_images(arguments.images), [(layer, head) for layer in layers for head in heads]
    with progress_bar("explaining", len(images)) as progress:
        for image in images:
            try:
                pixels = image.read(classifier.preprocess.source_channels)
                by_target = [
                    explain_views(classifier, pixels, views, method=method, target=each, query=query)
                    for each in choose_targets(classifier, pixels, target, method)
                ]
            except ImageError as error:
                rows.append(
                    {"path": image.path, **dict.fromkeys([*FIELDS, *several]), "error": error.reason, "files": []}
                )
            else:
                for explanations in by_target:
                    label = arguments.label or (explanations[0].label if len(by_target) > 1 else None)
                    name = ".".join(filter(None, [Path(image.path).stem, method, label]))
                    picture = unused_path(Path(arguments.out), safe_file_name(name), arguments.format)
                    draw(explanations, picture, arguments)
                    each = [explanation.to_json() for explanation in explanations]
                    rest = dict.fromkeys(several, each)
                    extra = {"summary": explanations[0].summary, "files": [str(picture)], "error": None}
                    rows.append({"path": image.path, **each[0], **rest, **extra})
            progress.advance()
    shown = [f"{row['path']}: {row['error'] or row['summary'] + '; ' + row['files'][0]}" for row in rows]
    return Answer({"explanations": rows}, shown, code=1 if any(row["error"] for row in rows) else 0)


def load_explainable(arguments: argparse.Namespace) -> TorchClassifier:
    """Returns the classifier; raises `UsageError` for an exported file, and for options of a ViT if it is none."""
    from vitrail.module_classifier import ModuleClassifier

    looks_inside = arguments.layer or arguments.head != "mean" or arguments.query
    classifier = load_any_classifier(arguments)
    if isinstance(classifier, ModuleClassifier) and not looks_inside:
        return classifier
    use = "explain with --layer, --attention-head or --query" if looks_inside else "explain"
    return require_classifier(classifier, arguments.model, use)


def vit_config(classifier: TorchClassifier) -> ViTConfig | None:
    """Returns the config of a ViT; None for another model."""
    from vitrail.classifier import Classifier

    return classifier.vit.config if isinstance(classifier, Classifier) else None


def choose_targets(classifier: TorchClassifier, pixels: Tensor, target: Target, method: str) -> list[Target]:
    """Returns what to explain of an image: the target, or each predicted label or number of a model for several."""
    from vitrail.explanation.methods import find_method

    if target is None and classifier.task == REGRESSION and not find_method(method).class_blind:
        return list(classifier.classes)
    if target is not None or classifier.task != MULTI_LABEL or find_method(method).class_blind:
        return [target]
    prediction: Any = classifier.predict(pixels)
    return prediction.labels or [None]


def draw(explanations: Sequence[Explanation], path: Path, arguments: argparse.Namespace) -> None:
    from vitrail.explanation.figures import save_explanation, save_heads, save_layers, save_overlay

    first, last = explanations[0], explanations[-1]
    if len(explanations) > 1:
        save_layers(explanations, path) if first.layer != last.layer else save_heads(explanations, path)
    elif arguments.picture == "overlay":
        save_overlay(first, path, arguments.smooth)
    else:
        save_explanation(first, path, arguments.smooth)


def parse_target_options(label: str | None, against: str | None) -> Target:
    """Returns the target of --class and --against; None for the predicted class."""
    if against is None:
        return label
    if label is None:
        raise UsageError("--against needs --class", "add --class LABEL")
    return label, against


def parse_layers(text: str | None, depth: int) -> list[int | None]:
    """Returns [None] for the method's default, all layers for `all`, else one layer."""
    if text is None:
        return [None]
    if text == "all":
        return list(range(depth))
    if not text.removeprefix("-").isdecimal():
        raise UsageError(f"--layer is {text!r}", "give a number or all")
    return [int(text)]


def parse_heads(text: str, heads: int) -> list[int | None]:
    """Returns [None] for the mean, all heads for `all`, else one head; raises `UsageError` for other text."""
    if text == "mean":
        return [None]
    if text == "all":
        return list(range(heads))
    if not text.isdecimal():
        raise UsageError(f"--attention-head is {text!r}", "give a number, mean or all")
    return [int(text)]


def parse_query(text: str | None) -> tuple[int, int] | None:
    """Returns (row, column) of ROW,COLUMN."""
    if text is None:
        return None
    row, _, column = text.partition(",")
    if not (row.strip().isdecimal() and column.strip().isdecimal()):
        raise UsageError(f"--query is {text!r}", "give a patch's row and column, such as 3,5")
    return int(row), int(column)


def safe_file_name(name: str) -> str:
    """Returns a file name for any text: a class may have any name."""
    return re.sub(r"[^\w.+=@ -]", "_", name).encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def unused_path(folder: Path, stem: str, kind: str) -> Path:
    """Returns a path that does not exist yet, so that existing pictures are kept."""
    path = folder / f"{stem}.{kind}"
    number = 2
    while path.exists():
        path = folder / f"{stem}-{number}.{kind}"
        number += 1
    return path
