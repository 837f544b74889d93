"""The options of verbs that train: what training starts from, where it writes, and every field of a recipe."""

import argparse
from typing import Any

from vitrail.cli.arguments import MODEL_HELP, add_device, add_torch_files
from vitrail.cli.field_options import add_field_options, format_default
from vitrail.cli.parser import Parser
from vitrail.data.augment import Augment
from vitrail.model.config import POSITIONS, ViTConfig
from vitrail.options import check_values
from vitrail.parts import check_part
from vitrail.training.recipe import RECIPE_FIELDS, Recipe
from vitrail.training.recipes import DEFAULT_RECIPE, DEFAULT_TRANSFER_RECIPE, RECIPES
from vitrail.weights.sizes import SIZES

GROUPS = (("training", Recipe, "recipe"), ("augmentation", Augment, "augment"), ("model", ViTConfig, "model"))
COMMON = {  # shown by --help; the others by --help-all
    "epochs", "patience", "batch_size", "lr", "optimizer", "seed", "validation_fraction", "workers", "skip_unreadable",
    "mixup", "cutmix", "width", "depth", "heads", "patch", "image_size",
}  # fmt: skip
FROM_DATA = {  # chosen by training/data_defaults.py unless the recipe sets them
    "patch": "chosen from the image size",
    "image_size": "chosen from the images",
}


def add_training_options(parser: Parser, *, out_help: str, resume_help: str) -> None:
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help=f"{', '.join(RECIPES)}, or a TOML or JSON file; `vitrail recipe NAME` prints its values "
        f"(default: {DEFAULT_RECIPE}; with --from, {DEFAULT_TRANSFER_RECIPE})",
    )
    parser.add_argument(
        "--from", dest="model", metavar="MODEL", help=f"weights to start from: {MODEL_HELP} (default: from scratch)"
    )
    add_torch_files(parser)
    parser.add_argument(
        "--size", choices=list(SIZES), default=argparse.SUPPRESS,
        help="named model size: sets width, depth, heads and MLP width (default: the recipe's)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", help=out_help)
    parser.add_argument("--resume", action="store_true", help=f"{resume_help} (default: off)")
    add_device(parser)
    parser.add_argument("--no-check", action="store_true", help="skip the check of the data (default: off)")
    parser.add_argument("--no-pictures", action="store_true", help="draw no pictures (default: off)")
    parser.checks.append(check_recipe_options)
    defaults = describe_defaults()
    for title, dataclass_type, part in GROUPS:
        names = [name for name, belongs_to in RECIPE_FIELDS.items() if belongs_to == part]
        common = parser.add_argument_group(f"{title} (fields of the recipe)")
        advanced = parser.add_advanced_group(f"{title}, more fields")
        for group, selected in (
            (common, [name for name in names if name in COMMON]),
            (advanced, [name for name in names if name not in COMMON]),
        ):
            add_field_options(group, dataclass_type, selected, defaults)


def describe_defaults() -> dict[str, str]:
    """Returns the default of every recipe field as text: its value in the default recipe."""
    recipe = RECIPES[DEFAULT_RECIPE]
    values: dict[str, Any] = {**vars(ViTConfig()), **vars(recipe.augment), **vars(recipe), **recipe.model}
    texts = {}
    for name in RECIPE_FIELDS:
        value = values[name]
        if name == "position":
            value = next(key for key, kind in POSITIONS.items() if isinstance(value, kind))
        texts[name] = f"{format_default(value)} in recipe {DEFAULT_RECIPE}"
        if name in FROM_DATA and name not in recipe.model:
            texts[name] = FROM_DATA[name]
    return texts


def check_recipe_options(arguments: argparse.Namespace) -> None:
    """Raises `UsageError` for an impossible value, before a verb imports more than the options need."""
    for name, value in recipe_changes(arguments).items():
        if name == "position":
            check_part(name, "position", value, POSITIONS)
        elif name != "size":
            dataclass_type = next(each for _, each, part in GROUPS if part == RECIPE_FIELDS[name])
            check_values(dataclass_type, {name: value})


def recipe_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of the recipe that the user set."""
    options = vars(arguments)
    return {name: options[name] for name in (*RECIPE_FIELDS, "size") if name in options}
