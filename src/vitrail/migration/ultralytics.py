"""The settings of a classifier that ultralytics trained, as in its args.yaml -> fields of a recipe."""

from vitrail.errors import UsageError
from vitrail.migration.settings import Library, Settings
from vitrail.training.recipes import RECIPES

IGNORED = frozenset((  # including those of detection, which ultralytics does not use for classes
    "agnostic_nms", "amp", "angle", "augment", "batch_inference", "bgr", "box", "cache", "cfg", "classes",
    "close_mosaic", "cls", "cls_pw", "compile", "conf", "copy_paste", "copy_paste_mode", "cutmix", "data",
    "degrees", "deterministic", "device", "dfl", "dnn", "dynamic", "embed", "end2end", "exist_ok", "format", "half",
    "int8", "iou", "keras", "kobj", "line_width", "mask_ratio", "max_det", "mixup", "mode", "mosaic", "multi_scale",
    "name", "nms", "opset", "optimize", "overlap_mask", "perspective", "plots", "pose", "profile", "project",
    "rect", "resume", "retina_masks", "rle", "save", "save_conf", "save_crop", "save_dir", "save_frames",
    "save_hybrid", "save_json", "save_period", "save_txt", "shear", "show", "show_boxes", "show_conf",
    "show_labels", "simplify", "single_cls", "source", "split", "stream_buffer", "task", "tracker", "translate",
    "val", "verbose", "vid_stride", "visualize", "workers", "workspace",
))  # fmt: skip
NEUTRAL = {"fraction": 1.0, "crop_fraction": 1.0}
MAX_GRAD_NORM = 10.0  # ultralytics clips to it


def convert(settings: Settings, processes: int | None) -> None:
    """Sets the fields of the recipe; a batch is that of all processes."""
    if settings.read("task", "classify") != "classify":
        raise UsageError(f"these are settings for the task {settings.values['task']}", "vitrail classifies images")
    settings.miss(
        "model", "not a ViT; the recipe has that of recipe small (remove its fields to start from weights with --from)"
    )
    settings.changes |= RECIPES["small"].model
    settings.known.add("pretrained")
    epochs, warmup = settings.number("epochs", 100), settings.number("warmup_epochs", 3.0)
    settings.changes["epochs"] = int(epochs)
    settings.set_warmup("warmup_epochs", warmup, epochs)
    for name in ("warmup_momentum", "warmup_bias_lr"):
        if warmup and settings.read(name, 0):
            settings.miss(name, "in the warmup of a recipe only the learning rate changes, from near 0")
        settings.known.add(name)
    if settings.read("patience", 0):
        settings.take("patience", "patience")
    convert_batch(settings)
    convert_optimizer(settings)
    settings.changes["schedule"] = "cosine" if settings.read("cos_lr", False) else "linear"
    if settings.read("lrf", 0):
        settings.miss("lrf", "the learning rate ends at 0")
    settings.take("seed", "seed")
    settings.take("label_smoothing", "label_smoothing")
    if settings.read("dropout", 0):
        settings.miss("dropout", "there is no dropout before the head; dropout is that of the blocks")
    convert_images(settings)


def convert_batch(settings: Settings) -> None:
    """Sets the batch size: ultralytics accumulates gradients up to its nominal batch, and scales the weight decay."""
    batch, nominal = settings.number("batch", 16), settings.number("nbs", 64)
    decay = settings.number("weight_decay", 0.0005)
    settings.changes["weight_decay"] = decay
    if batch < 1:
        settings.miss("batch", "the number of images per batch is chosen from their number")
        return
    accumulation = max(1, round(nominal / batch))
    settings.changes |= {"batch_size": int(batch) * accumulation, "accumulation_steps": accumulation}
    settings.changes["weight_decay"] = decay * batch * accumulation / nominal


def convert_optimizer(settings: Settings) -> None:
    optimizer = settings.read("optimizer", "auto")
    settings.known.add("momentum")
    settings.changes["max_grad_norm"] = MAX_GRAD_NORM
    if optimizer == "auto":
        settings.known.add("lr0")  # ultralytics does not use it either
        settings.miss("optimizer", "ultralytics chooses one and its learning rate; the recipe has adamw and 0.001")
    elif optimizer in ("SGD", "AdamW"):
        settings.changes["optimizer"] = optimizer.lower()
        settings.take("lr0", "lr")
        if optimizer == "SGD":
            settings.take("momentum", "momentum")
    else:
        settings.miss("optimizer", "a recipe has sgd and adamw; it has adamw")
        settings.take("lr0", "lr")


def convert_images(settings: Settings) -> None:
    """Sets the size of images and their augmentation."""
    settings.take("imgsz", "image_size")
    settings.changes |= {"fit": "crop", "crop": "resized", "crop_scale": max(0.01, 1 - settings.number("scale", 0.5))}
    settings.take("fliplr", "flip")
    settings.take("erasing", "random_erasing")
    policy = settings.read("auto_augment")
    if policy == "randaugment":
        settings.changes["policy"] = "randaugment"
    elif policy:
        settings.miss("auto_augment", "a recipe has randaugment and trivialaugment")
    if policy:
        settings.known |= {"hsv_h", "hsv_s", "hsv_v"}  # ultralytics does not change colors beside a policy


LIBRARY = Library("ultralytics", frozenset(("imgsz", "lr0", "lrf")), convert, IGNORED, NEUTRAL)
