"""The options of torchvision's references/classification/train.py -> fields of a recipe."""

from typing import Any

from vitrail.migration.settings import Library, Settings, find_architecture

DEFAULTS: dict[str, Any] = {  # of the script, for a command line, which has only what differs
    "model": "resnet18", "batch_size": 32, "epochs": 90, "opt": "sgd", "lr": 0.1, "momentum": 0.9,
    "weight_decay": 1e-4, "label_smoothing": 0.0, "mixup_alpha": 0.0, "cutmix_alpha": 0.0, "lr_scheduler": "steplr",
    "lr_warmup_epochs": 0, "lr_warmup_method": "constant", "lr_warmup_decay": 0.01, "lr_step_size": 30,
    "lr_gamma": 0.1, "lr_min": 0.0, "ra_magnitude": 9, "augmix_severity": 3, "random_erase": 0.0,
    "model_ema_steps": 32, "model_ema_decay": 0.99998, "interpolation": "bilinear", "val_resize_size": 256,
    "val_crop_size": 224, "train_crop_size": 224, "ra_reps": 3,
}  # fmt: skip
SHORT_NAMES = {"wd": "weight_decay", "b": "batch_size", "j": "workers"}
IGNORED = frozenset((
    "amp", "backend", "cache_dataset", "data_path", "device", "dist_backend", "dist_url", "distributed", "gpu",
    "output_dir", "print_freq", "rank", "resume", "start_epoch", "sync_bn", "test_only",
    "use_deterministic_algorithms", "use_v2", "workers",
))  # fmt: skip
NEUTRAL: dict[str, Any] = {"lr_step_size": 30, "lr_gamma": 0.1, "augmix_severity": 3, "ra_reps": 3}
WEIGHTS = {
    "IMAGENET1K_V1": "", "DEFAULT": "", "IMAGENET1K_SWAG_E2E_V1": ".swag_e2e_v1",
    "IMAGENET1K_SWAG_LINEAR_V1": ".swag_linear_v1",
}  # fmt: skip
CROP_SCALE = 0.08  # of torchvision's RandomResizedCrop


def convert(settings: Settings, processes: int | None) -> None:
    """Sets the fields of the recipe."""
    processes = processes or int(settings.number("world_size", 1))
    settings.known.add("world_size")
    convert_model(settings)
    epochs, warmup = settings.number("epochs", 90), settings.number("lr_warmup_epochs", 0)
    settings.changes["epochs"] = int(epochs)
    settings.set_warmup("lr_warmup_epochs", warmup, epochs)
    if warmup:
        settings.miss("lr_warmup_decay", "the warmup of a recipe is linear and starts near 0")
    settings.known |= {"lr_warmup_decay", "lr_warmup_method"}
    batch_size = int(settings.number("batch_size", 32)) * processes
    settings.changes["batch_size"] = batch_size
    convert_optimizer(settings)
    convert_images(settings)
    convert_ema(settings, batch_size, epochs)
    for name, field in (("mixup_alpha", "mixup"), ("cutmix_alpha", "cutmix"), ("label_smoothing", "label_smoothing")):
        settings.take(name, field)


def convert_model(settings: Settings) -> None:
    name = settings.read("model", "")
    weights = str(settings.read("weights", "") or "").rpartition(".")[2]
    card, _ = find_architecture("torchvision", str(name))
    if card is not None and weights in WEIGHTS:
        settings.model = f"torchvision/{name}{WEIGHTS[weights]}"
    else:
        if weights:
            settings.miss("weights", "vitrail does not know these weights")
        settings.set_model(card, name)


def convert_optimizer(settings: Settings) -> None:
    optimizer = str(settings.read("opt", "sgd")).lower()
    settings.known.add("momentum")
    if optimizer.startswith("sgd"):
        settings.changes["optimizer"] = "sgd"
        settings.take("momentum", "momentum")
        if "nesterov" not in optimizer:
            settings.miss("opt", "SGD has Nesterov momentum in a recipe")
    elif optimizer == "adamw":
        settings.changes["optimizer"] = "adamw"
    else:
        settings.miss("opt", "this recipe has adamw instead, to which the learning rate may not fit")
    settings.take("lr", "lr")
    settings.take("weight_decay", "weight_decay")
    others = ("norm_weight_decay", "bias_weight_decay", "transformer_embedding_decay")
    values = [settings.read(name) for name in others]
    settings.changes["weight_decay_on"] = "matrices" if values == [0, 0, 0] else "all"
    if values not in ([0, 0, 0], [None, None, None]):
        for name, value in zip(others, values, strict=True):
            if value is not None:
                settings.miss(name, "weight decay is for matrices, or for all parameters")
    settings.changes["max_grad_norm"] = settings.read("clip_grad_norm")
    if (schedule := str(settings.read("lr_scheduler", "steplr")).lower()) != "cosineannealinglr":
        settings.miss("lr_scheduler", f"there is no schedule {schedule}; the recipe has cosine")


def convert_images(settings: Settings) -> None:
    """Sets the size of images and their augmentation."""
    size = int(settings.number("train_crop_size", 224))
    crop, resized = settings.number("val_crop_size", 224), settings.number("val_resize_size", 256)
    settings.changes |= {"image_size": size, "fit": "crop", "crop_fraction": min(1.0, crop / resized)}
    if crop != size:
        settings.miss("val_crop_size", f"training and evaluation have the same size, {size}")
    if settings.model is None:
        settings.changes["normalize"] = "imagenet"
    if (interpolation := settings.read("interpolation", "bilinear")) in ("bilinear", "bicubic"):
        settings.changes["interpolation"] = interpolation
    else:
        settings.miss("interpolation", "a recipe has bilinear and bicubic")
    settings.changes |= {"crop": "resized", "crop_scale": CROP_SCALE, "flip": 0.5}
    settings.take("random_erase", "random_erasing")
    policy, magnitude = settings.read("auto_augment") or "", settings.number("ra_magnitude", 9)
    if policy == "ra":
        settings.changes |= {"policy": "randaugment", "policy_magnitude": int(magnitude)}
    elif policy == "ta_wide":
        settings.changes["policy"] = "trivialaugment"
    elif policy:
        settings.miss("auto_augment", "a recipe has randaugment (ra) and trivialaugment (ta_wide)")


def convert_ema(settings: Settings, batch_size: int, epochs: float) -> None:
    """Sets the decay of the EMA weights at each step; the script scales it with the batch size, and averages seldom."""
    steps, decay = settings.number("model_ema_steps", 32), settings.number("model_ema_decay", 0.99998)
    if settings.read("model_ema", False):
        alpha = min(1.0, (1.0 - decay) * batch_size * steps / epochs)
        if alpha < 1.0:
            settings.changes["ema_decay"] = (1.0 - alpha) ** (1.0 / steps)
        else:
            settings.miss("model_ema_decay", "the average would be the newest weights")


LIBRARY = Library(
    "torchvision", frozenset(("lr_scheduler", "lr_warmup_method", "auto_augment", "opt")), convert, IGNORED, NEUTRAL
)
