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
from vitrail.options import check_fields, option
from vitrail.weights.config_json import config_values_from_json, position_to_json
from vitrail.weights.sizes import SIZES
from vitrail.weights.upgrade import RECIPE_KEYS, upgrade_recipe

DEFAULT_RECIPE = "small"
DEFAULT_TRANSFER_RECIPE = "finetune"  # the default for a model that has learnt before

OptimizerName = Literal["adamw", "sgd", "muon"]
ScheduleName = Literal["cosine", "linear", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
WeightDecayOn = Literal["matrices", "all"]
NormalizeBy = Literal["half", "imagenet", "data"]
TrainOn = Literal["images", "features"]
HeadInit = Literal["random", "probe"]
LoraTarget = Literal["qkv", "attention", "blocks"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train; `model` holds the fields of `ViTConfig` that it sets, the rest come from the data.

    Raises `UsageError` when a field is impossible.
    """

    name: str = "custom"
    description: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    augment: Augment = Augment()
    seed: int = option(0, "seed of the initial weights, the order of images and the augmentation", ge=0)
    epochs: int | None = option(
        None, "passes over the training images; none: chosen from the number of training images", ge=1
    )
    batch_size: int | None = option(None, "images per step; none: chosen from the number of training images", ge=1)
    accumulation_steps: int = option(
        1, "micro-batches that a batch is split into, to save memory (gradient accumulation)", ge=1
    )
    optimizer: OptimizerName = option("adamw", "optimizer")
    lr: float = option(1e-3, "peak learning rate", gt=0)
    muon_lr: float = option(0.02, "peak learning rate of Muon, for the matrices of the blocks", gt=0)
    weight_decay: float = option(0.05, "weight decay", ge=0)
    weight_decay_on: WeightDecayOn = option(
        "matrices", "parameters that decay: matrices (no norms, biases, tokens or positions), or all"
    )
    momentum: float = option(0.9, "momentum of SGD", ge=0, lt=1)
    muon_momentum: float = option(0.95, "momentum of Muon", ge=0, lt=1)
    schedule: ScheduleName = option("cosine", "learning rate schedule after the warmup")
    warmup_fraction: float = option(
        0.1, "fraction of all steps in which the learning rate rises to its peak", ge=0, lt=1
    )
    max_grad_norm: float | None = option(1.0, "maximum gradient norm, or none for no clipping", gt=0)
    label_smoothing: float = option(0.0, "label smoothing", ge=0, lt=1)
    ema_decay: float | None = option(None, "decay of the EMA weights, or none for no averaging", gt=0, lt=1)
    initial_image_scale: float = option(
        1.0, "image size at the first step, as a fraction of the full size (progressive resizing)", gt=0, le=1
    )
    image_growth_fraction: float = option(
        0.7, "fraction of all steps after which images have their full size", gt=0, le=1
    )
    zero_init_residual: bool = option(False, "zero-init residual branches: each block starts as the identity")
    patch_init_std: float | None = option(
        None, "standard deviation of the initial patch projection; none: from its fan-in", gt=0
    )
    precision: Precision = option(
        "auto", "number format of the forward pass; auto: bf16 where the device computes it natively"
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, more time")
    normalize: NormalizeBy | None = option(
        None, "mean and std of the pixels; none: the model's, else measured on the training images"
    )
    fit: Fit | None = option(None, "how images of another aspect ratio are fitted; none: the model's, else pad")
    interpolation: Interpolation | None = option(None, "interpolation of resizing; none: the model's, else bilinear")
    crop_fraction: float | None = option(
        None, "fraction of the resized image that the center crop keeps; none: the model's, else 1", gt=0, le=1
    )
    train_on: TrainOn = option("images", "images, or features: compute features once and fit a linear head on them")
    probe_l2: float | None = option(None, "L2 penalty of a head fitted on features; none: the best on validation", gt=0)
    layer_decay: float = option(1.0, "learning rate of a block, as a fraction of the next block's", gt=0, le=1)
    freeze: int | Literal["backbone"] = option(0, "number of first blocks to freeze, or backbone", ge=0)
    head_init: HeadInit = option("random", "initial weights of a new head: random, or those of a linear probe")
    lora_rank: int | None = option(None, "rank of LoRA updates; none: no LoRA", ge=1)
    lora_alpha: float = option(16.0, "LoRA updates are scaled by lora_alpha / lora_rank", gt=0)
    lora_dropout: float = option(0.0, "dropout before LoRA updates", ge=0, lt=1)
    lora_target: LoraTarget = option("attention", "matrices of the blocks that LoRA updates")
    validation_fraction: float = option(
        0.1,
        "fraction of the training images held out for validation, where the data has no such split",
        ge=0,
        lt=1,
    )
    test_fraction: float = option(
        0.2, "fraction of the images held out for test, where the data has no such split", ge=0, lt=1
    )
    split_seed: int = option(0, "seed of the random split into training, validation and test", ge=0)
    image_cache_gib: float = option(2.0, "memory for decoded images, in GiB", ge=0)
    workers: int | None = option(None, "data-loading processes; none: chosen from the data and the CPU cores", ge=0)
    skip_unreadable: bool = option(False, "skip and count images that cannot be read, instead of stopping")

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "model", config_values_from_json(self.model))
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
    def needs_pretrained_weights(self) -> bool:
        """Whether it makes sense for a model that has learnt something before, and for no other."""
        return (
            self.train_on == "features"
            or self.freeze != 0
            or self.lora_rank is not None
            or self.head_init == "probe"
            or self.layer_decay != 1.0
        )

    def with_changes(self, **changes: Any) -> "Recipe":
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
            place = RECIPE_FIELDS.get(name)
            if place is None:
                raise UsageError(f"a recipe has no field {name!r}", _unknown_field_hint(name, value))
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


def _unknown_field_hint(name: str, value: Any) -> str | None:
    if isinstance(value, dict):
        return "write its fields at the top level"
    return f"it is now called {RECIPE_KEYS[name]}" if name in RECIPE_KEYS else did_you_mean(name, RECIPE_FIELDS)


def recipe_from_json(document: dict[str, Any]) -> Recipe:
    """The recipe that `to_json` wrote; raises `TypeError`, `KeyError` or `UsageError` where something else is there."""
    document = upgrade_recipe(document)
    return Recipe(**{**document, "augment": Augment(**document["augment"])})


# Where each field that a user may set belongs; names are unique across the three.
RECIPE_FIELDS: dict[str, str] = {
    **{f.name: "model" for f in fields(ViTConfig) if f.name not in ("classes", "channels")},
    **{f.name: "augment" for f in fields(Augment)},
    **{f.name: "recipe" for f in fields(Recipe) if f.name not in ("name", "description", "model", "augment")},
}

# The recipe's own fields that have an effect when only a head is fitted, on features.
FEATURE_FIELDS = {
    "train_on", "probe_l2", "seed", "normalize", "fit", "interpolation", "crop_fraction", "validation_fraction",
    "test_fraction", "split_seed", "image_cache_gib", "workers", "skip_unreadable",
}  # fmt: skip


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="small",
            description="""The default: a plain ViT from scratch for small sets, on a laptop.

            CIFAR-10: 81.6 % test accuracy after the 10 epochs that it takes by itself (one seed), 18 minutes on one
            busy core in bf16. digits: 97.4 % (mean of 5 seeds) in under two minutes. Its settings are common practice
            for small ViTs (arXiv 2205.01580, Muon), not the outcome of a search.
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
            description="""A ViT from scratch on CIFAR-10, every setting that of tintn/vision-transformer-from-scratch.

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
            fit="squash",
            precision="fp32",
            validation_fraction=0.0,
        ),
        Recipe(
            name="speedrun-75",
            description="""The fastest recipe to 75.5 % on CIFAR-10 with a plain ViT; recipe tutorial needs 100 epochs.

            docs/benchmarks.md has the times. Images begin at half their side, so that the first epochs cost a quarter;
            nothing is kept back for validation, so the last weights are kept.
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
            description="""90 % on CIFAR-10 with a plain ViT, on two CPU cores, in about an hour and a quarter.

            90.0 % of the test images (89.4 to 90.6; one seed) after 71 minutes of training beside other work. Its
            settings come from speedrun-75 and from common practice, not from a search; as there the last weights are
            kept, and images begin at half their side.
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
            description="""A short training of all weights of a model that has learnt before (--from MODEL).

            Earlier blocks learn more slowly (layer-wise decay, arXiv 2106.08254), a new head starts as the linear probe
            (arXiv 2202.10054), so that training begins where the probe ends.
            """,
            model=dict(drop_path=0.1),
            augment=Augment(crop="resized", crop_area=0.5),
            epochs=10,
            batch_size=64,
            lr=3e-4,
            layer_decay=0.75,
            weight_decay=0.05,
            label_smoothing=0.1,
            head_init="probe",
        ),
        Recipe(
            name="linear",
            description="""A linear head on the frozen features of a model (--from MODEL): the probe, as a classifier.

            Features are computed once and kept; the head is a logistic regression whose penalty is chosen on
            validation. Minutes where others take hours.
            """,
            train_on="features",
        ),
        Recipe(
            name="lora",
            description="""Low-rank updates of a model's attention (--from MODEL), arXiv 2106.09685.

            Optimiser and gradients need little memory, because the weights themselves stand still; at the end the
            updates are merged into them, and the artefact is an ordinary ViT.
            """,
            augment=Augment(crop="resized", crop_area=0.5),
            epochs=10,
            batch_size=64,
            lr=1e-3,
            weight_decay=0.01,
            label_smoothing=0.1,
            lora_rank=8,
            head_init="probe",
        ),
    )
}


def find_recipe(name: str | Path | Recipe, **changes: Any) -> Recipe:
    """A recipe by name, from a TOML or JSON file, or itself, with changes; raises `UsageError` if there is none.

    A file sets any fields by name, on top of the built-in recipe that its `base` names (else `small`).
    """
    if isinstance(name, Recipe):
        return name.with_changes(**changes)
    if str(name) in RECIPES:
        return RECIPES[str(name)].with_changes(**changes)
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
    name = str(document.pop("base", DEFAULT_RECIPE))
    if name not in RECIPES:
        raise UsageError(f"{path}: there is no built-in recipe {name!r}", did_you_mean(name, RECIPES))
    base = RECIPES[name]
    return replace(base.with_changes(**document), name=path.stem, description=f"from {path.name}").with_changes(
        **changes
    )
