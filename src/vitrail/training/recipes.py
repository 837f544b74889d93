"""The built-in recipes, and recipes from files.

A recipe from scratch is described by the accuracy that it reaches or reproduces, and where its time is documented; one
for pretrained weights (finetune, linear, lora) by what it does with them. A new recipe is one more row of `RECIPES`.
"""

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Unpack, get_args

from vitrail.data.augment import Augment
from vitrail.errors import UsageError, did_you_mean
from vitrail.model.config import ViTConfig
from vitrail.options import field_types
from vitrail.training.recipe import RECIPE_FIELDS, Recipe
from vitrail.training.recipe_changes import RecipeChanges

DEFAULT_RECIPE = "small"
DEFAULT_TRANSFER_RECIPE = "finetune"  # the default for a pretrained model


class BuiltInRecipes(Mapping[str, Recipe]):
    """Recipes by name. Each is returned as a copy, so that changing its `model` does not change the built-in one."""

    def __init__(self, recipes: Iterable[Recipe]):
        self._recipes = {recipe.name: recipe for recipe in recipes}

    def add(self, recipe: Recipe) -> None:
        """Adds a recipe, or replaces one of the same name; `vitrail.register` does it for plugins."""
        self._recipes[recipe.name] = recipe

    def __getitem__(self, name: str) -> Recipe:
        recipe = self._recipes[name]
        return replace(recipe, model=recipe.model.copy())

    def __iter__(self) -> Iterator[str]:
        return iter(self._recipes)

    def __len__(self) -> int:
        return len(self._recipes)


RECIPES = BuiltInRecipes(
    (
        Recipe(
            name="small",
            description="""The default: a plain ViT from scratch, for small data sets on a laptop.

            CIFAR-10: 81.6% test accuracy after 10 epochs, its default there (one seed), in 18 minutes on one busy core
            in bf16. digits: 97.4% (mean of 5 seeds) in under two minutes. Its settings are common practice for small
            ViTs (arXiv 2205.01580, Muon), not the result of a search.
            """,
            model=dict(width=96, depth=5, heads=3, mlp_width=384, prefix_tokens=0, pool="mean", qk_norm=True),
            augment=Augment(crop="padded"),
            optimizer="muon",
            lr=1e-3,
            muon_lr=0.02,
            weight_decay=0.05,
            schedule="linear",
            label_smoothing=0.1,
            ema_decay=0.99,
            zero_init_residual=True,
        ),
        Recipe(
            name="tutorial",
            description="""A ViT from scratch on CIFAR-10, as in tintn/vision-transformer-from-scratch.

            Its authors report 75.5% test accuracy after 100 epochs; this recipe had 76.5% after the last epoch, 75.2%
            on average over the last ten (one seed). It trains on all 50,000 training images, without validation: the
            last weights are saved, and test accuracy is only recorded. Computes in float32 as the original; with
            --precision bf16 the average of the last ten epochs was 73.9%.
            """,
            model=dict(
                width=48,
                depth=4,
                heads=4,
                mlp_width=192,
                patch=4,
                image_size=32,
                mlp="gelu_tanh",
                final_norm=False,
                norm_eps=1e-5,
            ),
            augment=Augment(flip=0.5, crop="resized", crop_scale=0.8),
            epochs=100,
            batch_size=256,
            optimizer="adamw",
            lr=0.01,
            weight_decay=0.01,
            weight_decay_on="all",
            schedule="constant",
            warmup_fraction=0.0,
            max_grad_norm=None,
            patch_init_std=0.02,
            normalize="half",
            fit="stretch",
            precision="fp32",
            validation_fraction=0.0,
        ),
        Recipe(
            name="speedrun-75",
            description="""The fastest recipe to 75.5% on CIFAR-10 with a plain ViT; recipe tutorial needs 100 epochs.

            docs/benchmarks.md has the times. Images start at half their size, so the first epochs take a quarter
            of the time. There is no validation split, so the last weights are saved.
            """,
            model=dict(width=96, depth=4, heads=2, mlp_width=384, patch=4, image_size=32, prefix_tokens=0, pool="mean"),
            augment=Augment(crop="padded", crop_padding=0.0625),
            epochs=4,
            batch_size=256,
            optimizer="muon",
            lr=6e-3,
            muon_lr=0.02,
            muon_momentum=0.9,
            weight_decay=0.05,
            schedule="linear",
            label_smoothing=0.1,
            zero_init_residual=True,
            initial_image_scale=0.5,
            image_growth_fraction=0.85,
            max_grad_norm=None,
            validation_fraction=0.0,
        ),
        Recipe(
            name="speedrun-90",
            description="""90% on CIFAR-10 with a plain ViT, on two CPU cores, in about an hour and a quarter.

            90.0% test accuracy (89.4 to 90.6; one seed) after 71 minutes of training on a machine with other work. Its
            settings come from speedrun-75 and common practice, not from a search. As in speedrun-75, images start at
            half their size and the last weights are saved.
            """,
            model=dict(
                width=192, depth=6, heads=3, mlp_width=768, patch=4, image_size=32, prefix_tokens=0, pool="mean"
            ),
            augment=Augment(crop="padded", cutmix=0.4),
            epochs=38,
            batch_size=256,
            optimizer="muon",
            lr=3e-3,
            muon_lr=0.02,
            weight_decay=0.05,
            schedule="linear",
            label_smoothing=0.1,
            zero_init_residual=True,
            initial_image_scale=0.5,
            image_growth_fraction=0.8,
            max_grad_norm=None,
            validation_fraction=0.0,
        ),
        Recipe(
            name="finetune",
            description="""Fine-tunes all weights of a pretrained model (--from MODEL).

            Earlier blocks have a lower learning rate (layer-wise decay, arXiv 2106.08254), and a new head starts with
            the weights of the linear probe (arXiv 2202.10054). The start is scored as epoch 0, and its weights are kept
            if no epoch beats them on validation. The learning rate grows with the number of steps, the batch size with
            the number of images, and the warmup takes 20 steps or half of all; docs/log.md has the search.
            """,
            augment=Augment(crop="resized", crop_scale=0.5),
            epochs=10,
            lr=None,
            min_warmup_steps=20,
            layer_decay=0.75,
            weight_decay=0.05,
            label_smoothing=0.1,
            head_init="probe",
        ),
        Recipe(
            name="linear",
            description="""Fits a linear head on the frozen features of a model (--from MODEL): a linear probe.

            Features are computed once and cached; the head is a logistic regression (of numbers, a ridge regression)
            whose L2 penalty is chosen on validation. It takes minutes instead of hours.
            """,
            train_on="features",
        ),
        Recipe(
            name="lora",
            description="""Trains low-rank updates of a model's attention (--from MODEL), arXiv 2106.09685.

            Optimizer and gradients need little memory, because the weights themselves are frozen; at the end the
            updates are merged into them, and the artifact is an ordinary ViT.
            """,
            augment=Augment(crop="resized", crop_scale=0.5),
            epochs=10,
            batch_size=64,
            lr=1e-3,
            weight_decay=0.01,
            label_smoothing=0.1,
            lora_rank=8,
            head_init="probe",
        ),
    )
)


def find_recipe(name: str | Path | Recipe, **changes: Unpack[RecipeChanges]) -> Recipe:
    """Returns a recipe, given by its name, a TOML or JSON file, or itself, with changes.

    A file sets fields by name, on top of the built-in recipe that its `base` names (`small` by default). In TOML, which
    has no null, "none" is the value of a field that can be none. Raises `UsageError` if there is no such recipe or the
    file is not one.
    """
    if isinstance(name, Recipe):
        return name.with_changes(**changes)
    if str(name) in RECIPES:
        return RECIPES[str(name)].with_changes(**changes)
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"there is no recipe {str(name)!r}", did_you_mean(str(name), RECIPES))
    return load_recipe_file(path).with_changes(**changes)


def load_recipe_file(path: Path) -> Recipe:
    """Reads a recipe from a TOML or JSON file; raises `UsageError`."""
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # what both parsers raise, and text that is not UTF-8
        raise UsageError(f"{path} is not a recipe: {error}", "write it as TOML or JSON") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not a recipe: it is not an object with fields")
    if path.suffix != ".json":
        document = {name: None if is_none(name, value) else value for name, value in document.items()}
    base = str(document.pop("base", DEFAULT_RECIPE))
    if base not in RECIPES:
        raise UsageError(f"{path}: there is no built-in recipe {base!r}", did_you_mean(base, RECIPES))
    return replace(RECIPES[base].with_changes(**document), name=path.stem, description=f"from {path.name}")


def is_none(name: str, value: object) -> bool:
    """Returns whether a value of a TOML file is the word none, in a field that can be none and not that word."""
    if value != "none" or name not in RECIPE_FIELDS:
        return False
    owner = {"recipe": Recipe, "augment": Augment, "model": ViTConfig}[RECIPE_FIELDS[name]]
    return type(None) in get_args(field_types(owner)[name])
