"""The arguments of timm's train.py, as in its args.yaml -> fields of a recipe."""

import re
from typing import Any

from vitrail.migration.settings import Library, Settings, find_architecture

MEANS = {(0.5, 0.5, 0.5): "half", (0.485, 0.456, 0.406): "imagenet"}
STDS = {(0.5, 0.5, 0.5): "half", (0.229, 0.224, 0.225): "imagenet"}
MAGNITUDES = 3  # RandAugment: 10 magnitudes of timm are the 30 of torchvision; the ranges of the operations are equal
IGNORED = frozenset((
    "amp", "amp_dtype", "amp_impl", "bn_eps", "bn_momentum", "channels_last", "checkpoint_hist", "config", "data",
    "data_dir", "dataset", "dataset_download", "dataset_trust_remote_code", "device", "device_modules", "dist_bn",
    "dist_url", "distributed", "eval_metric", "experiment", "fast_norm", "fuser", "input_img_mode", "input_key",
    "kd_model_name", "local_rank", "log_interval", "log_wandb", "model_dtype", "model_ema_force_cpu",
    "naflex_loader", "no_ddp_bb", "no_prefetcher", "no_resume_opt", "num_classes", "output", "pin_mem",
    "prefetcher", "rank", "recovery_interval", "reparam", "resume", "save_images", "sched_on_updates", "split_bn",
    "start_epoch", "sync_bn", "synchronize_step", "target_key", "torchcompile", "torchcompile_mode", "torchscript",
    "train_num_samples", "train_split", "tta", "use_multi_epochs_loader", "val_interval", "val_num_samples",
    "val_split", "validation_batch_size", "wandb_project", "wandb_resume_id", "wandb_tags", "worker_seeding",
    "workers",
))  # fmt: skip
NEUTRAL = {
    "lr_k_decay": 1.0, "lr_cycle_mul": 1.0, "lr_cycle_decay": 0.5, "lr_cycle_limit": 1, "lr_noise_pct": 0.67,
    "lr_noise_std": 1.0, "decay_epochs": 90, "decay_milestones": [90, 180, 270], "decay_rate": 0.1,
    "patience_epochs": 10, "mixup_prob": 1.0, "mixup_switch_prob": 0.5, "mixup_mode": "batch", "recount": 1,
    "train_crop_mode": "rrc", "crop_mode": "center", "in_chans": 3, "kd_temperature": 4.0,
}  # fmt: skip


def convert(settings: Settings, processes: int | None) -> None:
    """Sets the fields of the recipe."""
    processes = processes or int(settings.number("world_size", 1))
    settings.known.add("world_size")
    convert_model(settings)
    convert_schedule(settings, processes)
    convert_optimizer(settings)
    convert_input(settings)
    if settings.read("no_aug", False):
        settings.known |= {"scale", "ratio", "hflip", "vflip", "color_jitter", "aa", "reprob", "remode"}
        settings.changes |= {"crop": "none", "flip": 0.0}
    else:
        convert_augmentation(settings)
    for name in ("mixup", "cutmix"):
        settings.take(name, name)
    settings.take("smoothing", "label_smoothing")
    for name, field in (("seed", "seed"), ("grad_checkpointing", "gradient_checkpointing")):
        settings.take(name, field)
    if settings.read("class_map", ""):
        settings.miss("class_map", "the classes are the names of the folders, in alphabetical order")
    if settings.read("model_ema", False):
        settings.take("model_ema_decay", "ema_decay")
    settings.known.add("model_ema_decay")


def convert_model(settings: Settings) -> None:
    name = str(settings.read("model", ""))
    card, checkpoints = find_architecture("timm", re.sub(r"^(hf[-_]hub:)?(timm/)?", "", name))
    if card is not None and settings.read("pretrained", False):
        settings.model = checkpoints[0] if len(checkpoints) == 1 else None
        if settings.model is None:
            settings.miss("pretrained", f"name one of the checkpoints with --from: {', '.join(checkpoints)}")
        settings.known.add("model")
    else:
        settings.known.add("pretrained")
        settings.set_model(card, name)
    if settings.read("initial_checkpoint", ""):
        settings.miss("initial_checkpoint", "start from the file with --from CARD@FILE")
    if settings.read("drop", 0):
        settings.miss("drop", "there is no dropout before the head; dropout is that of the blocks")
    settings.take("drop_path", "drop_path")


def convert_schedule(settings: Settings, processes: int) -> None:
    """Sets epochs, warmup, batch size and learning rate; a batch of timm is that of one process and micro-batch."""
    epochs, warmup = settings.number("epochs", 300), settings.number("warmup_epochs", 5)
    if settings.read("warmup_prefix", False):
        epochs += warmup
    settings.changes["epochs"] = int(epochs)
    settings.set_warmup("warmup_epochs", warmup, epochs)
    if warmup and settings.read("warmup_lr", 0):
        settings.miss("warmup_lr", "the warmup of a recipe starts near 0")
    settings.known.add("warmup_lr")
    if (schedule := settings.read("sched", "cosine")) != "cosine":
        settings.miss("sched", f"there is no schedule {schedule}; the recipe has cosine")
    accumulation = max(1, int(settings.number("grad_accum_steps", 1)))
    batch_size = int(settings.number("batch_size", 128)) * accumulation * processes
    settings.changes |= {"batch_size": batch_size, "accumulation_steps": accumulation}
    settings.known |= {"lr", "lr_base", "lr_base_size", "lr_base_scale"}
    settings.changes["lr"] = settings.number("lr", 0) or scale_lr(settings, batch_size)


def scale_lr(settings: Settings, batch_size: int) -> float:
    """Returns the learning rate that timm computes from the base rate and the batch size."""
    optimizer = str(settings.read("opt", "sgd")).lower()
    ratio = batch_size / settings.number("lr_base_size", 256)
    is_adaptive = "ada" in optimizer or "lamb" in optimizer
    scale = settings.read("lr_base_scale", "") or ("sqrt" if is_adaptive else "linear")
    return settings.number("lr_base", 0.1) * (ratio**0.5 if scale == "sqrt" else ratio)


def convert_optimizer(settings: Settings) -> None:
    optimizer = str(settings.read("opt", "sgd")).lower()
    if optimizer in ("sgd", "nesterov"):
        settings.changes["optimizer"] = "sgd"
        settings.take("momentum", "momentum")
    elif optimizer == "adamw":
        settings.changes["optimizer"] = "adamw"
    else:
        settings.miss("opt", "this recipe has adamw instead, to which the learning rate may not fit")
    settings.known.add("momentum")
    settings.take("weight_decay", "weight_decay")
    if settings.read("layer_decay") is not None:
        settings.take("layer_decay", "layer_decay")
    clip = settings.read("clip_grad")
    settings.changes["max_grad_norm"] = clip
    if clip is not None and settings.read("clip_mode", "norm") != "norm":
        settings.changes["max_grad_norm"] = None
        settings.miss("clip_mode", "a recipe clips the norm of the gradient only; this one does not clip")
    settings.known.add("clip_mode")


def convert_input(settings: Settings) -> None:
    """Sets image size, cropping and normalization, where they are not those of the model."""
    size = settings.read("img_size") or (settings.read("input_size") or [None])[-1]
    settings.known.add("input_size")
    if size is not None:
        settings.changes["image_size"] = size
    if settings.model is None:
        settings.changes["fit"] = "crop"
    settings.take("crop_pct", "crop_fraction")
    interpolation = settings.read("interpolation", "")
    if interpolation in ("bilinear", "bicubic"):
        settings.changes["interpolation"] = interpolation
    elif interpolation:
        settings.miss("interpolation", "a recipe has bilinear and bicubic")
    mean, std = (settings.read(name) for name in ("mean", "std"))
    if mean or std:
        normalize = MEANS.get(tuple(mean or ()))
        if normalize is not None and STDS.get(tuple(std or ())) == normalize:
            settings.changes["normalize"] = normalize
        else:
            settings.miss("mean", "normalize is half, imagenet or data")
            settings.miss("std", "normalize is half, imagenet or data")


def convert_augmentation(settings: Settings) -> None:
    scale = settings.read("scale", [0.08, 1.0])
    settings.changes |= {"crop": "resized", "crop_scale": scale[0]}
    if scale[-1] != 1.0:
        settings.miss("scale", "the largest crop of a recipe is the whole image")
    ratio = settings.read("ratio", [3 / 4, 4 / 3])
    if [round(each, 2) for each in ratio] != [0.75, 1.33]:
        settings.miss("ratio", "crops have an aspect ratio of 3/4 to 4/3")
    if (settings.read("train_interpolation") or "") not in ("", settings.changes.get("interpolation", "bilinear")):
        settings.miss("train_interpolation", "training and evaluation have the same interpolation")
    settings.take("hflip", "flip")
    policy = settings.read("aa") or ""
    if policy.startswith("rand"):
        convert_randaugment(settings, policy)
    elif policy:
        settings.miss("aa", "a recipe has randaugment and trivialaugment")
    if policy and not policy.startswith("3a"):
        settings.known.add("color_jitter")  # timm turns it off beside a policy
    settings.take("reprob", "random_erasing")
    if settings.read("reprob", 0) and settings.read("remode", "pixel") != "const":
        settings.miss("remode", "erased pixels get the mean color")
    settings.known.add("remode")


def convert_randaugment(settings: Settings, policy: str) -> None:
    """Sets RandAugment from a text such as rand-m9-n2-mstd0.5-inc1."""
    options: dict[str, Any] = {"m": 10.0, "n": 2.0}
    for part in policy.split("-")[1:]:
        if match := re.fullmatch(r"([a-z]+)([\d.]+)", part):
            options[match[1]] = float(match[2])
        else:
            options[part] = 1.0
    settings.changes |= {
        "policy": "randaugment",
        "policy_ops": int(options.pop("n")),
        "policy_magnitude": min(30, round(MAGNITUDES * options.pop("m"))),
    }
    options.pop("inc", None)  # whether a larger magnitude is a stronger change, as it is in torchvision
    if options:
        settings.miss("aa", f"without {', '.join(options)}: a recipe has the number of operations and their magnitude")


LIBRARY = Library("timm", frozenset(("opt", "sched", "aa", "smoothing")), convert, IGNORED, NEUTRAL)
