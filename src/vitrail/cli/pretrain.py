"""Pre-train a ViT on images without labels: a masked autoencoder (arXiv 2111.06377).

DATA is a folder of images, at any depth, whose names mean nothing; of other data (a folder with train/, a built-in
name, a table, shards) the training images are used, without their labels. Leave test images out of it. The encoder is
then a start for training: vitrail train DATA --from OUT
"""

from __future__ import annotations

import argparse
from functools import partial

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import MODEL_HELP, add_device, add_torch_files, count
from vitrail.cli.field_options import add_field_options, format_default
from vitrail.cli.launch import answer_in_group, is_launched, launch
from vitrail.cli.parser import Parser
from vitrail.data.augment import Augment
from vitrail.model.config import ViTConfig
from vitrail.pretraining.settings import (
    AUGMENT_OPTIONS,
    MAE_RECIPE,
    MODEL_OPTIONS,
    RECIPE_OPTIONS,
    MaskSettings,
)
from vitrail.training.recipe import Recipe

MASK_OPTIONS = tuple(MaskSettings.__dataclass_fields__)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("data", metavar="DATA", help="images without labels (see above)")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where the encoder is written (required)")
    parser.add_argument(
        "--from", dest="model", metavar="MODEL", help=f"weights to start from: {MODEL_HELP} (default: from scratch)"
    )
    add_torch_files(parser)
    parser.add_argument(
        "--probe-data", metavar="DATA", help="labeled images: score the features on them along the way (default: none)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the pre-training in --out; start it if there is none (default: off)",
    )
    parser.add_argument(
        "--processes", type=count(), metavar="COUNT", help="processes that train one model (default: 1)"
    )
    add_device(parser)
    defaults = {
        name: format_default(value)
        for values in (vars(ViTConfig()), vars(MAE_RECIPE.augment), vars(MAE_RECIPE), MAE_RECIPE.model)
        for name, value in values.items()
        if name != "position"
    }
    defaults |= {"patch": "chosen from the image size", "image_size": "chosen from the images", "position": "learned"}
    add_field_options(parser.add_argument_group("masked autoencoder"), MaskSettings, MASK_OPTIONS)
    groups = (("training", Recipe, RECIPE_OPTIONS), ("augmentation", Augment, AUGMENT_OPTIONS))
    for title, owner, names in (*groups, ("model", ViTConfig, MODEL_OPTIONS)):
        add_field_options(parser.add_argument_group(title), owner, names, defaults)


def run(arguments: argparse.Namespace) -> Answer | None:
    """Pre-trains; of several processes, the first one returns the answer."""
    if arguments.processes is not None and not is_launched():
        return launch(arguments.command_line, arguments.processes)
    return answer_in_group(partial(pretrain_and_describe, arguments))


def pretrain_and_describe(arguments: argparse.Namespace) -> Answer:
    """Pre-trains; returns the last row of metrics as JSON and as text."""
    from vitrail.pretraining.pretrain import pretrain

    options = vars(arguments)
    mask = {name: options[name] for name in MASK_OPTIONS if name in options}
    changes = {name: options[name] for name in (*RECIPE_OPTIONS, *AUGMENT_OPTIONS, *MODEL_OPTIONS) if name in options}
    done = pretrain(
        arguments.data,
        out=arguments.out,
        model=arguments.model,
        probe_data=arguments.probe_data,
        settings=MaskSettings(**mask) if mask else None,
        resume=arguments.resume,
        device=arguments.device,
        torch_files=arguments.torch_files,
        **changes,
    )
    lines = [f"loss {done.result['loss']:.4f} after {done.result['epoch']} epochs, {done.result['seconds']:.0f} s"]
    lines += [
        f"{name} {done.result[key]:.4f}"
        for key, name in (("knn_accuracy", "k-NN accuracy"), ("linear_accuracy", "linear probe accuracy"))
        if key in done.result
    ]
    lines.append(f"files are in {done.folder}; train with: vitrail train DATA --from {done.folder}")
    return Answer(done.to_json(), lines)
