"""The recipe: everything about a training that its user may choose, as a value that is checked when it is made."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Unpack, cast

from vitrail.data.augment import Augment
from vitrail.data.group_pattern import compile_pattern
from vitrail.data.options import Fit, Interpolation
from vitrail.documents import PartDocument
from vitrail.errors import UsageError, did_you_mean
from vitrail.json_types import JsonObject
from vitrail.model.config import ViTConfig
from vitrail.options import check_fields, hint_for_name, option
from vitrail.parts import needed_parts
from vitrail.tasks import TaskName
from vitrail.training.field_hints import FIELD_HINTS
from vitrail.training.recipe_changes import ModelChanges, RecipeChanges
from vitrail.weights.config_json import config_values_from_json, position_to_json
from vitrail.weights.sizes import SIZES
from vitrail.weights.upgrade import RECIPE_KEYS, upgrade_recipe

Architecture = Literal["vit"]
OptimizerName = Literal["adamw", "sgd", "muon"]
LossName = Literal[
    "cross_entropy", "binary_cross_entropy", "focal", "asymmetric", "cumulative", "mse_loss", "l1_loss",
    "smooth_l1_loss", "huber_loss",
]  # fmt: skip
BalanceName = Literal["none", "weights", "sampler", "logits"]
ScheduleName = Literal["cosine", "linear", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
WeightDecayOn = Literal["matrices", "all"]
NormalizeBy = Literal["half", "imagenet", "data"]
TrainOn = Literal["images", "features"]
HeadInit = Literal["random", "probe"]
DistillationName = Literal["soft", "hard", "features"]
TeacherSees = Literal["image", "batch"]
LoraTarget = Literal["qkv", "attention", "blocks"]


MAX_EVALUATION_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. `model` has the fields of `ViTConfig` that the recipe sets; the data determines the others.

    Raises `UsageError` if a field is impossible.
    """

    name: str = "custom"
    description: str = ""
    model: ModelChanges = field(default_factory=ModelChanges)
    architecture: Architecture | str = option("vit", "model to train: a ViT, or one that a plugin builds", part="model")
    augment: Augment = Augment()
    seed: int = option(0, "seed of the initial weights, the order of images and the augmentation", ge=0)
    epochs: int | None = option(
        None, "passes over the training images; none: chosen from the number of training images", ge=1
    )
    patience: int | None = option(
        None, "stop after this number of epochs without a better validation score; none: train for all epochs", ge=1
    )
    batch_size: int | None = option(None, "images per step; none: chosen from the number of training images", ge=1)
    accumulation_steps: int = option(
        1, "micro-batches that a batch is split into, to save memory (gradient accumulation)", ge=1
    )
    optimizer: OptimizerName | str = option("adamw", "optimizer", part="optimizer")
    lr: float | None = option(
        1e-3,
        "peak learning rate of AdamW or SGD; with Muon only of embeddings, norms, biases and head, not of the blocks' "
        "matrices (muon_lr); none: for pretrained weights, chosen from the number of steps",
        gt=0,
    )
    muon_lr: float = option(0.02, "peak learning rate of Muon, for the matrices of the blocks (most weights)", gt=0)
    weight_decay: float = option(0.05, "weight decay", ge=0)
    weight_decay_on: WeightDecayOn = option(
        "matrices", "parameters that decay: matrices (no norms, biases, tokens or positions), or all"
    )
    momentum: float = option(0.9, "momentum of SGD", ge=0, lt=1)
    muon_momentum: float = option(0.95, "momentum of Muon", ge=0, lt=1)
    schedule: ScheduleName | str = option("cosine", "learning rate schedule after the warmup", part="schedule")
    warmup_fraction: float = option(
        0.1, "fraction of all steps in which the learning rate rises to its peak", ge=0, lt=1
    )
    min_warmup_steps: int = option(
        0, "the warmup takes at least this number of steps, but at most half of all steps", ge=0
    )
    task: TaskName | None = option(
        None,
        "single_label (one class per image), multi_label (several), grades (ordered classes) or regression (numbers); "
        "none: chosen from the data",
    )
    loss: LossName | str | None = option(
        None,
        "training loss; none: cross_entropy, binary_cross_entropy with several labels per image, mse_loss for numbers; "
        "cross_entropy:class_weights=balanced is the same as balance weights",
        part="loss",
    )
    balance: BalanceName = option(
        "none",
        "what to do about classes of unequal size; weights: weight the classes in the loss; sampler: draw equally many "
        "images of each class; logits: shift the logits by the class frequencies in the loss",
    )
    balance_strength: float = option(
        1.0, "strength of balance; 1: all classes count alike; 0.5: each by the square root of its size", gt=0, le=2
    )
    distillation: DistillationName | None = option(
        None,
        "what a student learns from its teacher (--teacher); soft: its probabilities or numbers; hard: its most "
        "probable class, or its labels; features: its pooled vectors; none: soft, or features if the teacher has no "
        "classes",
    )
    teacher_weight: float = option(0.9, "share of the teacher in the loss; the rest is of the labels", gt=0, le=1)
    teacher_temperature: float = option(2.0, "temperature of the probabilities of teacher and student", gt=0)
    teacher_sees: TeacherSees | None = option(
        None,
        "image: the teacher answers once for each image, without augmentation; batch: it answers in each step for the "
        "augmented images; none: image, or batch if images are mixed",
    )
    max_grad_norm: float | None = option(1.0, "maximum gradient norm, or none for no clipping", gt=0)
    label_smoothing: float = option(0.0, "fraction of the target that goes to all classes", ge=0, lt=1)
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
    shown_channels: str | None = option(
        None, "which channels pictures of bands show, one or three, counted from 1: 4,3,2; none: the first ones"
    )
    fit: Fit | None = option(None, "how images of another aspect ratio are fitted; none: the model's, else pad")
    interpolation: Interpolation | None = option(None, "interpolation of resizing; none: the model's, else bilinear")
    crop_fraction: float | None = option(
        None, "fraction of the resized image that the center crop keeps; none: the model's, else 1", gt=0, le=1
    )
    train_on: TrainOn = option("images", "images, or features: compute features once and fit a linear head on them")
    probe_l2: float | None = option(None, "L2 penalty of a head fitted on features; none: the best on validation", gt=0)
    layer_decay: float = option(1.0, "learning rate of a block, as a fraction of the next block's", gt=0, le=1)
    freeze: int | str | tuple[str, ...] = option(
        0,
        "what to freeze: the first COUNT blocks; backbone; or patterns of names of parameters or modules, such as "
        "'patch_embed blocks.*.attn'",
        ge=0,
    )
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
    group_pattern: str | None = option(
        None,
        "regular expression with one capture group, which finds the group of an image in its path below DATA; groups "
        "(patients, videos, bursts) are never divided; none: the groups that the data has",
    )
    split_seed: int = option(0, "seed of the random split into training, validation and test", ge=0)
    image_cache_gib: float = option(2.0, "memory for decoded images, in GiB", ge=0)
    workers: int | None = option(None, "data-loading processes; none: chosen from the data and the CPU cores", ge=0)
    skip_unreadable: bool = option(False, "skip and count images that cannot be read, instead of stopping")

    def __post_init__(self) -> None:
        if isinstance(self.freeze, list | tuple):  # one form in files, so that recipes compare equal
            object.__setattr__(self, "freeze", " ".join(map(str, self.freeze)) or 0)
        check_fields(self)
        object.__setattr__(self, "model", config_values_from_json({**self.model}))
        if not self.is_vit and (
            self.lora_rank or self.train_on == "features" or (self.freeze and not self.frozen_patterns)
        ):
            raise UsageError(
                f"{self.architecture!r} is not a ViT, so lora_rank, train_on features and freeze COUNT cannot be used",
                "freeze takes patterns of parameter names",
            )
        if self.lora_rank and self.freeze == "backbone":
            raise UsageError("LoRA trains the backbone, and freeze 'backbone' freezes it", "choose one of them")
        if self.group_pattern is not None:
            compile_pattern(self.group_pattern)
        if self.train_on == "features" and self.balance != "none":
            raise UsageError("a head on features is fitted without balance", "use --train-on images, or --balance none")
        if self.lora_rank and self.frozen_patterns:
            raise UsageError(
                "LoRA trains only its updates and the head, so parameters cannot be frozen by name besides",
                "give freeze a number of blocks",
            )
        if self.train_on == "features" and (
            self.lora_rank or self.freeze or self.model.get("head", "linear") != "linear"
        ):
            raise UsageError(
                "on features only a linear head is trained, so lora_rank, freeze and another head cannot be used",
                "use --train-on images",
            )

    @property
    def peak_lr(self) -> float:
        """The peak learning rate of a recipe that has one; raises `UsageError` if it is still to be chosen."""
        if self.lr is None:
            raise UsageError(f"recipe {self.name} has no learning rate", "set lr")
        return self.lr

    @property
    def selection_metric(self) -> str:
        """The metric on validation that selects the weights of a run: balanced accuracy if the classes are balanced."""
        return "accuracy" if self.balance == "none" else "balanced_accuracy"

    @property
    def is_vit(self) -> bool:
        """Whether a ViT is trained; else a model that a plugin builds."""
        return self.architecture == "vit"

    @property
    def frozen_patterns(self) -> tuple[str, ...]:
        """The patterns of `freeze`, if it has patterns of names."""
        if not isinstance(self.freeze, str) or self.freeze == "backbone":
            return ()
        return tuple(self.freeze.replace(",", " ").split())

    @property
    def needs_pretrained_weights(self) -> bool:
        """Whether the recipe makes sense only for a pretrained model.

        Parameters may be frozen by name at random weights, too (a random patch projection: arXiv 2104.02057). Builders
        of other models may load weights themselves.
        """
        return self.is_vit and (
            self.train_on == "features"
            or (self.freeze != 0 and not self.frozen_patterns)
            or self.lora_rank is not None
            or self.head_init == "probe"
            or self.layer_decay != 1.0
            or self.lr is None
        )

    def evaluation_batch_size(self, processes: int = 1) -> int:
        """Returns the images per batch of one of several processes when nothing is trained.

        It is four times the micro-batch of training, at most 256: without gradients a forward pass keeps the
        activations of one block instead of all.
        """
        if self.batch_size is None:
            return MAX_EVALUATION_BATCH
        micro_batch = -(-self.batch_size // (self.accumulation_steps * processes))
        return min(MAX_EVALUATION_BATCH, 4 * micro_batch)

    def with_changes(self, **changes: Unpack[RecipeChanges]) -> "Recipe":
        """Returns the recipe with other values for any fields of its own, its augmentation or its model.

        `size` sets the model fields of a named size. Raises `UsageError` for an unknown field.
        """
        by_group: dict[str, dict[str, Any]] = {"recipe": {}, "augment": {}, "model": {}}
        values: dict[str, Any] = {**changes}
        if "size" in values:
            size = str(values.pop("size"))
            if size not in SIZES:
                raise UsageError(f"there is no size {size!r}", did_you_mean(size, SIZES))
            by_group["model"] |= SIZES[size]
        for name, value in values.items():
            if name not in RECIPE_FIELDS:
                raise UsageError(f"a recipe has no field {name!r}", _hint_for_unknown_field(name, value))
            by_group[RECIPE_FIELDS[name]][name] = value
        own, augment = by_group["recipe"], by_group["augment"]
        model = cast(ModelChanges, {**self.model, **by_group["model"]})
        changed = replace(self, **own, augment=replace(self.augment, **augment), model=model)
        if not changed.is_vit and (unused := sorted({name for name in changes if name in VIT_FIELDS})):
            raise UsageError(
                f"{changed.architecture!r} is not a ViT, and {', '.join(unused)} has no effect on it",
                "write arguments of its builder as architecture NAME:ARGUMENT=VALUE",
            )
        if changed.train_on == "features" and (unused := sorted(({*own} - FEATURE_FIELDS) | {*augment})):
            raise UsageError(
                f"recipe {self.name} fits its head on features, where {', '.join(unused)} has no effect",
                f"it uses {', '.join(sorted(FEATURE_FIELDS))}, or use --train-on images",
            )
        return changed if changed.is_vit else without_vit_fields(changed)

    def parts(self) -> list[PartDocument]:
        """Returns the parts of plugins that the recipe names, as files name them."""
        model: dict[str, str] = {kind: self.model[kind] for kind in ("pool", "mlp", "head") if kind in self.model}
        if isinstance(position := self.model.get("position"), str):
            model["position"] = position
        loss = {"loss": self.loss} if self.loss else {}
        own = {"model": self.architecture, **loss, "optimizer": self.optimizer, "schedule": self.schedule}
        return needed_parts({**model, **own, "augmentation": self.augment.policy})

    def to_json(self) -> JsonObject:
        """Returns the recipe as a JSON document."""
        document = asdict(self)
        if "position" in self.model:
            document["model"]["position"] = position_to_json(self.model["position"])
        return document


def recipe_from_json(document: dict[str, Any]) -> Recipe:
    """Returns the recipe that `to_json`, of this version or an older one, wrote.

    Raises `TypeError`, `KeyError` or `UsageError` for any other document.
    """
    document = upgrade_recipe(document)
    return Recipe(**{**document, "augment": Augment(**document["augment"])})


def _hint_for_unknown_field(name: str, value: Any) -> str | None:
    if isinstance(value, dict):
        return "write its fields at the top level"
    renamed = f"it is now called {RECIPE_KEYS[name]}" if name in RECIPE_KEYS else None
    return renamed or FIELD_HINTS.get(name) or hint_for_name(name, RECIPE_FIELDS)


# The fields that a user may set, and the dataclass that has each; names are unique across the three.
RECIPE_FIELDS: dict[str, str] = {
    **{f.name: "model" for f in fields(ViTConfig) if f.name not in ("classes", "channels")},
    **{f.name: "augment" for f in fields(Augment)},
    **{f.name: "recipe" for f in fields(Recipe) if f.name not in ("name", "description", "model", "augment")},
}

# The fields that have an effect only on a ViT.
VIT_FIELDS = {
    *(f.name for f in fields(ViTConfig) if f.name != "image_size"), "size", "initial_image_scale",
    "image_growth_fraction", "zero_init_residual", "patch_init_std", "gradient_checkpointing", "layer_decay",
    "head_init", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "train_on", "probe_l2",
}  # fmt: skip

# The recipe's own fields that have an effect when only a head is fitted, on features.
FEATURE_FIELDS = {
    "train_on", "task", "probe_l2", "seed", "normalize", "shown_channels", "fit", "interpolation", "crop_fraction",
    "validation_fraction", "test_fraction", "split_seed", "group_pattern", "image_cache_gib", "workers",
    "skip_unreadable",
}  # fmt: skip


def without_vit_fields(recipe: Recipe) -> Recipe:
    """Returns a recipe for another model than a ViT: the fields that have no effect on it have their defaults."""
    defaults: dict[str, Any] = {f.name: f.default for f in fields(Recipe) if f.name in VIT_FIELDS}
    model: ModelChanges = {"image_size": recipe.model["image_size"]} if "image_size" in recipe.model else {}
    return replace(recipe, **defaults, model=model)


def flatten_recipe(recipe: Recipe) -> dict[str, Any]:
    """Returns the name of a recipe, and all its fields that a user may set and that are set."""
    parts = {"recipe": vars(recipe), "augment": vars(recipe.augment), "model": recipe.model}
    values = {name: parts[part][name] for name, part in RECIPE_FIELDS.items() if name in parts[part]}
    return {"recipe": recipe.name, **values}
