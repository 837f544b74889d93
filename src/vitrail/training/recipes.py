"""How to train, as data.

A recipe from scratch is headed by the figure that it reaches or reproduces and where to find the time, one for weights
that have learnt before (finetune, linear, lora) by what it does with them.
"""

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from vitrail.data.augment import Augment
from vitrail.data.preprocess import Fit, Interpolation
from vitrail.errors import UsageError, did_you_mean
from vitrail.model import ViTConfig
from vitrail.model.config import position_to_json, values_from_json
from vitrail.options import check_fields, option
from vitrail.weights.sizes import SIZES

DEFAULT = "small"
TRANSFER = "finetune"  # the default for a model that has learnt before

Optimizer = Literal["adamw", "sgd", "muon"]
Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
DecayOn = Literal["matrices", "all"]
Normalise = Literal["half", "imagenet", "data"]
TrainOn = Literal["images", "features"]
HeadStart = Literal["random", "probe"]
LoraOn = Literal["qkv", "attention", "blocks"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train; `model` holds the fields of `ViTConfig` that it sets, the rest come from the data.

    Raises `UsageError` when a field is impossible.
    """

    name: str = "custom"
    about: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    augment: Augment = Augment()
    seed: int = option(0, "decides initial weights, order and augmentation", ge=0)
    epochs: int | None = option(None, "passes over the training images; none: by their number", ge=1)
    batch: int | None = option(None, "images per step; none: by the number of images", ge=1)
    accumulate: int = option(1, "parts that a batch is computed in, to save memory", ge=1)
    optimizer: Optimizer = option("adamw", "how weights follow gradients")
    lr: float = option(1e-3, "highest learning rate", gt=0)
    matrix_lr: float = option(0.02, "highest learning rate of Muon on the blocks' matrices", gt=0)
    weight_decay: float = option(0.05, "decay of weights", ge=0)
    decay_on: DecayOn = option("matrices", "spare norms, biases, tokens, positions, or not")
    momentum: float = option(0.9, "momentum of SGD", ge=0, lt=1)
    matrix_momentum: float = option(0.95, "momentum of Muon", ge=0, lt=1)
    schedule: Schedule = option("cosine", "course of the learning rate after warm-up")
    warmup: float = option(0.1, "part of all steps in which the learning rate rises", ge=0, lt=1)
    clip: float | None = option(1.0, "longest gradient, or none", gt=0)
    label_smoothing: float = option(0.0, "probability spread over all classes", ge=0, lt=1)
    ema: float | None = option(None, "decay of averaged weights, or none", gt=0, lt=1)
    grow_from: float = option(1.0, "side of the images at the start, as part of the model's", gt=0, le=1)
    grow_until: float = option(0.7, "part of all steps after which images have their whole size", gt=0, le=1)
    zero_branches: bool = option(False, "start each block as the identity")
    patch_std: float | None = option(None, "start of the patch projection; none: by its size", gt=0)
    precision: Precision = option("auto", "number format; auto: bf16 where it is fast")
    recompute: bool = option(False, "less memory for more time (gradient checkpointing)")
    normalise: Normalise | None = option(None, "mean and deviation of the pixels; none: the model's, else data")
    fit: Fit | None = option(None, "what becomes of other proportions; none: the model's, else pad")
    interpolation: Interpolation | None = option(None, "how images are resized; none: the model's, else bilinear")
    crop_fraction: float | None = option(
        None, "part of the resized image that fit 'crop' takes; none: the model's, else all", gt=0, le=1
    )
    train_on: TrainOn = option("images", "features: compute them once, fit a linear head")
    penalty: float | None = option(None, "of a head fitted on features; none: the best on validation", gt=0)
    layer_decay: float = option(1.0, "a block's learning rate, as part of the next one's", gt=0, le=1)
    freeze: int | Literal["backbone"] = option(0, "first blocks that keep their weights, or backbone", ge=0)
    head_start: HeadStart = option("random", "start of a new head: random, or a linear probe's")
    lora_rank: int | None = option(None, "rank of LoRA's updates, which then train alone; or none", ge=1)
    lora_alpha: float = option(16.0, "LoRA's updates are scaled by this over their rank", gt=0)
    lora_dropout: float = option(0.0, "dropout before LoRA's updates", ge=0, lt=1)
    lora_on: LoraOn = option("attention", "the blocks' matrices that LoRA updates")
    validation: float = option(0.1, "part of the training images that chooses the weights", ge=0, lt=1)
    test: float = option(0.2, "part kept back as test where the data has none", ge=0, lt=1)
    split_seed: int = option(0, "decides which images are kept back", ge=0)
    memory: float = option(2.0, "GiB of decoded images to keep in memory", ge=0)
    workers: int | None = option(None, "processes that read images; none: by the data", ge=0)
    skip_unreadable: bool = option(False, "go on without images that cannot be read, and count them")

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "model", values_from_json(self.model))
        if self.lora_rank and self.freeze == "backbone":
            raise UsageError("LoRA trains the backbone that freeze 'backbone' would keep", "choose one of them")
        if self.train_on == "features" and (
            self.lora_rank or self.freeze or self.model.get("head", "linear") != "linear"
        ):
            raise UsageError(
                "on features only a linear head is trained: lora_rank, freeze and another head do not go with it",
                "use --train-on images",
            )

    @property
    def starts_from_weights(self) -> bool:
        """Whether it makes sense for a model that has learnt something before, and for no other."""
        return (
            self.train_on == "features"
            or self.freeze != 0
            or self.lora_rank is not None
            or self.head_start == "probe"
            or self.layer_decay != 1.0
        )

    def but(self, **changes: Any) -> "Recipe":
        """The recipe with other values for any of its own, its augmentation's or its model's fields.

        Raises `UsageError` naming a field that none of them has.
        """
        own: dict[str, Any] = {}
        augment: dict[str, Any] = {}
        model: dict[str, Any] = {}
        if "size" in changes:
            size = str(changes.pop("size"))
            if size not in SIZES:
                raise UsageError(f"there is no size {size!r}", did_you_mean(size, SIZES))
            model |= SIZES[size]
        for name, value in changes.items():
            place = FIELDS.get(name)
            if place is None:
                hint = "write its fields at the top level" if isinstance(value, dict) else did_you_mean(name, FIELDS)
                raise UsageError(f"a recipe has no field {name!r}", hint)
            {"recipe": own, "augment": augment, "model": model}[place][name] = value
        changed = replace(self, **own, augment=replace(self.augment, **augment), model={**self.model, **model})
        if changed.train_on == "features" and (idle := sorted(({*own} - FEATURE_FIELDS) | {*augment})):
            raise UsageError(
                f"recipe {self.name} fits its head on features, where {', '.join(idle)} means nothing",
                f"it uses {', '.join(sorted(FEATURE_FIELDS))}, or use --train-on images",
            )
        return changed

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        document = asdict(self)
        if "position" in self.model:
            document["model"]["position"] = position_to_json(self.model["position"])
        return document


def recipe_from_json(document: dict[str, Any]) -> Recipe:
    """The recipe that `to_json` wrote; raises `TypeError`, `KeyError` or `UsageError` where something else is there."""
    return Recipe(**{**document, "augment": Augment(**document["augment"])})


# Where each field that a user may set belongs; names are unique across the three.
FIELDS: dict[str, str] = {
    **{f.name: "model" for f in fields(ViTConfig) if f.name not in ("classes", "channels")},
    **{f.name: "augment" for f in fields(Augment)},
    **{f.name: "recipe" for f in fields(Recipe) if f.name not in ("name", "about", "model", "augment")},
}

# The recipe's own fields that mean something where only a head is fitted, on features.
FEATURE_FIELDS = {"train_on", "penalty", "seed", "normalise", "fit", "interpolation", "crop_fraction", "validation",
                  "test", "split_seed", "memory", "workers", "skip_unreadable"}  # fmt: skip


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="small",
            about="""The default: a plain ViT from scratch for small sets, on a laptop.

            CIFAR-10: 81.6 % test accuracy after the 10 epochs that it takes by itself (one seed), 18 minutes on one
            busy core in bf16. digits: 97.4 % (mean of 5 seeds) in under two minutes. Its settings are common practice
            for small ViTs (arXiv 2205.01580, Muon), not the outcome of a search.
            """,
            model=dict(width=96, depth=5, heads=3, mlp_width=384, prefix_tokens=0, pool="mean", qk_norm=True),
            augment=Augment(crop="padded"),
            optimizer="muon",
            lr=1e-3,
            matrix_lr=0.02,
            weight_decay=0.05,
            schedule="linear",
            label_smoothing=0.1,
            ema=0.99,
            zero_branches=True,
        ),
        Recipe(
            name="tutorial",
            about="""A ViT from scratch on CIFAR-10, every setting that of tintn/vision-transformer-from-scratch.

            Its authors report 75.5 % test accuracy after 100 epochs; ours had 76.5 % at the last, 75.2 % over the last
            ten on average (one seed). All 50,000 training images train and none chooses weights: the last ones are
            kept, and the test set is only recorded beside them. Computes in float32 as theirs does; with --precision
            bf16 the last ten had 73.9 %.
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
            augment=Augment(flip=0.5, crop="resized", crop_area=0.8),
            epochs=100,
            batch=256,
            optimizer="adamw",
            lr=0.01,
            weight_decay=0.01,
            decay_on="all",
            schedule="constant",
            warmup=0.0,
            clip=None,
            patch_std=0.02,
            normalise="half",
            fit="squash",
            precision="fp32",
            validation=0.0,
        ),
        Recipe(
            name="speedrun-75",
            about="""The shortest way to 75.5 % on CIFAR-10 with a plain ViT, which takes recipe tutorial 100 epochs.

            docs/benchmarks.md has the times. Images begin at half their side, so that the first epochs cost a quarter;
            nothing is kept back for validation, so the last weights are kept.
            """,
            model=dict(width=96, depth=4, heads=2, mlp_width=384, patch=4, image_size=32, prefix_tokens=0, pool="mean"),
            augment=Augment(crop="padded", crop_padding=0.0625),
            epochs=4,
            batch=256,
            optimizer="muon",
            lr=6e-3,
            matrix_lr=0.02,
            matrix_momentum=0.9,
            weight_decay=0.05,
            schedule="linear",
            label_smoothing=0.1,
            zero_branches=True,
            grow_from=0.5,
            grow_until=0.85,
            clip=None,
            validation=0.0,
        ),
        Recipe(
            name="speedrun-90",
            about="""90 % on CIFAR-10 with a plain ViT, on two CPU cores, in about an hour and a quarter.

            90.0 % of the test images (89.4 to 90.6; one seed) after 71 minutes of training beside other work. Its
            settings come from speedrun-75 and from common practice, not from a search; as there the last weights are
            kept, and images begin at half their side.
            """,
            model=dict(
                width=192, depth=6, heads=3, mlp_width=768, patch=4, image_size=32, prefix_tokens=0, pool="mean"
            ),
            augment=Augment(crop="padded", cutmix=0.4),
            epochs=38,
            batch=256,
            optimizer="muon",
            lr=3e-3,
            matrix_lr=0.02,
            weight_decay=0.05,
            schedule="linear",
            label_smoothing=0.1,
            zero_branches=True,
            grow_from=0.5,
            grow_until=0.8,
            clip=None,
            validation=0.0,
        ),
        Recipe(
            name="finetune",
            about="""A short training of all weights of a model that has learnt before (--from MODEL).

            Earlier blocks learn more slowly (layer-wise decay, arXiv 2106.08254), a new head starts as the linear probe
            (arXiv 2202.10054), so that training begins where the probe ends.
            """,
            model=dict(drop_path=0.1),
            augment=Augment(crop="resized", crop_area=0.5),
            epochs=10,
            batch=64,
            lr=3e-4,
            layer_decay=0.75,
            weight_decay=0.05,
            label_smoothing=0.1,
            head_start="probe",
        ),
        Recipe(
            name="linear",
            about="""A linear head on the frozen features of a model (--from MODEL): the probe, as a classifier.

            Features are computed once and kept; the head is a logistic regression whose penalty is chosen on
            validation. Minutes where others take hours.
            """,
            train_on="features",
        ),
        Recipe(
            name="lora",
            about="""Low-rank updates of a model's attention (--from MODEL), arXiv 2106.09685.

            Optimiser and gradients need little memory, because the weights themselves stand still; at the end the
            updates are merged into them, and the artefact is an ordinary ViT.
            """,
            augment=Augment(crop="resized", crop_area=0.5),
            epochs=10,
            batch=64,
            lr=1e-3,
            weight_decay=0.01,
            label_smoothing=0.1,
            lora_rank=8,
            head_start="probe",
        ),
    )
}


def find_recipe(name: str | Path | Recipe, **changes: Any) -> Recipe:
    """A recipe by name, from a TOML or JSON file, or itself, with changes; raises `UsageError` if there is none.

    A file sets any fields by name, on top of the built-in recipe that its `base` names (else `small`).
    """
    if isinstance(name, Recipe):
        return name.but(**changes)
    if str(name) in RECIPES:
        return RECIPES[str(name)].but(**changes)
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"there is no recipe {str(name)!r}", did_you_mean(str(name), RECIPES))
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # what both parsers raise, and text that is not UTF-8
        raise UsageError(f"{path} is not a recipe: {error}", "write it as TOML or JSON") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not a recipe: it holds no fields by name")
    name = str(document.pop("base", DEFAULT))
    if name not in RECIPES:
        raise UsageError(f"{path}: there is no built-in recipe {name!r}", did_you_mean(name, RECIPES))
    base = RECIPES[name]
    return replace(base.but(**document), name=path.stem, about=f"from {path.name}").but(**changes)
