"""The model card that goes with given weights: what it is, what it scored, how to load it."""

from typing import Any

from vitrail.classifier import Classifier
from vitrail.data.open import OPTIMISTIC


def write_model_card(
    classifier: Classifier, library: str, load_code: str, comparison: dict[str, Any] | None, note: str = ""
) -> str:
    """A README in the hub's form: YAML between dashes, then Markdown; without `agreed` it says that nobody compared."""
    origin, config = classifier.origin, classifier.vit.config
    license = origin.get("license")
    task = "image-classification" if classifier.classes else "image-feature-extraction"
    head = ["---", f"library_name: {library}", f"pipeline_tag: {task}"]
    if isinstance(license, str):
        head.append(f"license: {quoted(license.lower())}")
    head += ["tags: [vision-transformer, vitrail]", "---", ""]
    size = config.image_size if isinstance(config.image_size, int) else "x".join(map(str, config.image_size))
    parameters = sum(parameter.numel() for parameter in classifier.vit.parameters())
    lines = [
        f"# ViT {config.width}x{config.depth}, patch {config.patch}, {size} px",
        "",
        f"{parameters:,} parameters, written by vitrail.",
        "",
        "## How to use",
        "",
        "```python",
        *load_code.split("; "),
        "```",
        "",
    ]
    prepare = classifier.preprocess
    lines += [
        f"Images: {prepare.fit} to {prepare.image_size[0]}x{prepare.image_size[1]} ({prepare.interpolation}, "
        f"crop fraction {prepare.crop_fraction:.4g}), then mean {list(prepare.mean)} and standard deviation "
        f"{list(prepare.std)} of values from 0 to 1.",
        "",
    ]
    if note:
        lines += [f"Mind that {note}.", ""]
    if comparison:
        compared = f"on {comparison['compared_on']}: largest difference {comparison['max_difference']:.1e}"
        lines += [f"Its answers were compared with vitrail's {compared}.", ""]
    else:
        lines += [f"Its answers were not compared with vitrail's: {library} was not there when it was written.", ""]
    if metrics := origin.get("metrics"):
        lines += ["## Metrics", "", "| split | images | accuracy | 95 % interval |", "| --- | --: | --: | --- |"]
        for split, scores in metrics.items():
            low, high = scores.get("accuracy_interval", (float("nan"),) * 2)
            lines.append(f"| {split} | {scores['images']} | {scores['accuracy']:.4f} | {low:.4f} to {high:.4f} |")
        lines.append("")
        for split, scores in metrics.items():
            if scores.get("optimistic"):
                lines += [f"The {split} images are those {OPTIMISTIC}.", ""]
    if classifier.classes:
        lines += ["## Classes", "", ", ".join(plain(name) for name in classifier.classes), ""]
    for key, title in (("card", "Started from"), ("source", "Source"), ("license", "License")):
        if isinstance(origin.get(key), str) and origin[key]:
            lines += [f"{title}: {plain(origin[key])}", ""]
    return "\n".join([*head, *lines])


def quoted(text: str) -> str:
    """Text as a YAML string."""
    return '"' + text.replace("\\", "\\\\").replace('"', "'").replace("\n", " ") + '"'


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join("\\" + letter if letter in "\\`*_{}[]<>#|" else letter for letter in text.replace("\n", " "))
