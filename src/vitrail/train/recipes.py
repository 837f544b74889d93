"""How to train, as data. Each recipe is headed by what it reproduces, the figure expected and the time it takes."""

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from vitrail.data.augment import Augment
from vitrail.errors import UsageError, did_you_mean
from vitrail.model import ViTConfig
from vitrail.weights.sizes import SIZES

Optimizer = Literal["adamw", "sgd", "muon"]
Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
DecayOn = Literal["matrices", "all"]
Normalise = Literal["half", "imagenet", "data"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train; `model` holds the fields of `ViTConfig` that it sets, the rest come from the data.

    Raises `UsageError` when a field is impossible.
    """

    name: str = "custom"
    about: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    augment: Augment = Augment()
    seed: int = field(default=0, metadata={"help": "decides initial weights, order and augmentation"})
    epochs: int | None = field(
        default=None, metadata={"help": "passes over the training images; none: by their number"}
    )
    batch: int | None = field(default=None, metadata={"help": "images per step; none: by the number of images"})
    accumulate: int = field(default=1, metadata={"help": "parts that a batch is computed in, to save memory"})
    optimizer: Optimizer = field(default="adamw", metadata={"help": "how weights follow gradients"})
    lr: float = field(default=1e-3, metadata={"help": "highest learning rate"})
    matrix_lr: float = field(default=0.02, metadata={"help": "highest learning rate of Muon on the blocks' matrices"})
    weight_decay: float = field(default=0.05, metadata={"help": "decay of weights"})
    decay_on: DecayOn = field(default="matrices", metadata={"help": "spare norms, biases, tokens, positions, or not"})
    momentum: float = field(default=0.9, metadata={"help": "momentum of SGD"})
    schedule: Schedule = field(default="cosine", metadata={"help": "course of the learning rate after warm-up"})
    warmup: float = field(default=0.1, metadata={"help": "part of all steps in which the learning rate rises"})
    clip: float | None = field(default=1.0, metadata={"help": "longest gradient, or none"})
    label_smoothing: float = field(default=0.0, metadata={"help": "probability spread over all classes"})
    ema: float | None = field(default=None, metadata={"help": "decay of averaged weights, or none"})
    zero_branches: bool = field(default=False, metadata={"help": "start each block as the identity"})
    patch_std: float | None = field(default=None, metadata={"help": "start of the patch projection; none: by its size"})
    precision: Precision = field(default="auto", metadata={"help": "number format; auto: bf16 where it is fast"})
    recompute: bool = field(default=False, metadata={"help": "less memory for more time (gradient checkpointing)"})
    normalise: Normalise = field(default="data", metadata={"help": "mean and deviation of the pixels"})
    fit: Literal["pad", "crop", "squash"] = field(default="pad", metadata={"help": "what becomes of other proportions"})
    validation: float = field(default=0.1, metadata={"help": "part of the training images that chooses the weights"})
    test: float = field(default=0.2, metadata={"help": "part kept back as test where the data has none"})
    split_seed: int = field(default=0, metadata={"help": "decides which images are kept back"})
    memory: float = field(default=2.0, metadata={"help": "GiB of decoded images to keep in memory"})
    workers: int | None = field(default=None, metadata={"help": "processes that read images; none: by the data"})

    def __post_init__(self) -> None:
        for name, allowed in (
            ("optimizer", Optimizer),
            ("schedule", Schedule),
            ("precision", Precision),
            ("decay_on", DecayOn),
            ("normalise", Normalise),
        ):
            if getattr(self, name) not in get_args(allowed):
                raise UsageError(
                    f"{name} {getattr(self, name)!r} is not known", did_you_mean(getattr(self, name), get_args(allowed))
                )
        for name in ("epochs", "batch", "accumulate"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "matrix_lr"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("validation", "test", "warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema is {self.ema}; it must be between 0 and 1, or none")
        known = {f.name for f in fields(ViTConfig)}
        for name in self.model:
            if name not in known:
                raise UsageError(f"the model has no field {name!r}", did_you_mean(name, known))

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
                raise UsageError(f"a recipe has no field {name!r}", did_you_mean(name, FIELDS))
            {"recipe": own, "augment": augment, "model": model}[place][name] = value
        try:
            return replace(self, **own, augment=replace(self.augment, **augment), model={**self.model, **model})
        except TypeError as error:
            raise UsageError(f"a field of the recipe has a wrong type: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def recipe_from_json(document: dict[str, Any]) -> Recipe:
    """The recipe that `to_json` wrote; raises `TypeError` or `KeyError` where something else is there."""
    return Recipe(**{**document, "augment": Augment(**document["augment"])})


# Where each field that a user may set belongs; names are unique across the three.
FIELDS: dict[str, str] = {
    **{f.name: "model" for f in fields(ViTConfig) if f.name not in ("classes", "channels")},
    **{f.name: "augment" for f in fields(Augment)},
    **{f.name: "recipe" for f in fields(Recipe) if f.name not in ("name", "about", "model", "augment")},
}


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="small",
            about="""The default: a plain ViT from scratch for small sets, on a laptop.

            Reproduces nothing; it is what we found best on a validation split of CIFAR-10's training images.
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
            about="""A ViT from scratch on CIFAR-10 to the letter of tintn/vision-transformer-from-scratch.

            Reproduces its 75.5 % test accuracy after 100 epochs. All 50,000 training images train, no image chooses
            weights: the last ones are kept, and the test set is only recorded beside them.
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
            validation=0.0,
        ),
    )
}


def find_recipe(name: str | Path | Recipe, **changes: Any) -> Recipe:
    """A recipe by name, from a TOML or JSON file, or itself, with changes; raises `UsageError` if there is none.

    A file sets any fields by name, on top of the recipe that its `base` names (else `small`).
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
    except (UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is not a recipe: {error}", "write it as TOML or JSON") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not a recipe: it holds no fields by name")
    base = find_recipe(str(document.pop("base", "small")))
    return replace(base.but(**document), name=path.stem, about=f"from {path.name}").but(**changes)
