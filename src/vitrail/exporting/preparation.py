"""How to prepare an image for an exported model, in words and as data. Other programs need no vitrail.

The words are in model cards and in the ONNX file. The data beside them hold the same values:

    color       RGB or L (gray), Pillow's names
    resize      rule, size, interpolation and antialias; `rule` is one of
                  fit_inside: scale = min(H / h, W / w) for the size (H, W), each side round(side * scale), at least 1
                  cover: the side with the larger of H / h and W / w becomes exactly that of the size, the other keeps
                    the proportions, rounded down
                  exact: to the size
    pad, crop   size, and where the image or the crop starts: `offset` is how half of the difference is rounded
    cut_off     rows at the bottom and columns at the right, after that
    input       name, layout, type, range
"""

from typing import Any

from vitrail.classifier import BaseClassifier
from vitrail.data.bands import describe_channels
from vitrail.data.decode import BACKGROUND
from vitrail.data.preprocess import Preprocess
from vitrail.exporting.program import LOGITS, PIXELS
from vitrail.tasks import DEFAULT_THRESHOLD, MULTI_LABEL, REGRESSION, TASKS

RULES = {"pad": "fit_inside", "crop": "cover", "stretch": "exact"}


def prepare_document(classifier: BaseClassifier) -> dict[str, Any]:
    """Returns the words and the data for a program, which takes 8-bit pixels, or the values of bands."""
    preprocess = classifier.preprocess
    target = "canvas" if preprocess.fit == "pad" else "crop"
    return {
        "words": [*describe_geometry(preprocess), *describe_program(classifier)],
        "color": color_name(preprocess),
        "transparent_over": list(BACKGROUND),
        "exif_orientation": "applied",
        "resize": {
            "rule": RULES[preprocess.fit],
            "size": list(resize_target(preprocess)),
            "interpolation": preprocess.interpolation,
            "antialias": True,
        },
        target: {
            "size": list(preprocess.fitted_size),
            "offset": offset_rounding(preprocess),
            **({"color": preprocess.mean_pixel} if preprocess.fit == "pad" else {}),
        },
        "cut_off": {"bottom": preprocess.trim[0], "right": preprocess.trim[1]},
        "input": {"name": PIXELS, "layout": "NCHW", **describe_values(preprocess)},
        "inside_the_graph": [*divisor(preprocess), "mean", "standard deviation", describe_scaling(classifier)],
        "output": {"name": LOGITS, **describe_output(classifier)},
    }


def describe_output(classifier: BaseClassifier) -> dict[str, Any]:
    """Returns what the output of a program is: logits without their activation, or numbers in their units."""
    if classifier.task == REGRESSION:
        return {"numbers": list(classifier.classes), "scale_applied": True}
    return {
        f"{TASKS[classifier.task].activation}_applied": False,
        "temperature_applied": True,
        **describe_thresholds(classifier),
    }


def describe_geometry(preprocess: Preprocess) -> list[str]:
    """Returns the steps from a file to pixels of the model's size, one sentence each."""
    height, width = preprocess.fitted_size
    rows, columns = preprocess.trim
    cut = [f"Cut off {rows} rows at the bottom and {columns} columns at the right."] if rows or columns else []
    new_height, new_width = resize_target(preprocess)
    filter = f"{preprocess.interpolation} interpolation and antialiasing, as Pillow's resize does"
    rounding = "down" if offset_rounding(preprocess) == "floor" else "to the nearest integer, halves to the even one"
    steps = [describe_decoding(preprocess)]
    if preprocess.fit == "pad":
        color_text = f"({', '.join(map(str, preprocess.mean_pixel))})"
        return [
            *steps,
            f"Resize it with its proportions to fit inside {height} x {width} (height x width), with {filter}.",
            f"Center it on a canvas of {height} x {width} of the color {color_text}, offsets rounded down.",
            *cut,
        ]
    if preprocess.fit == "crop":
        steps.append(f"Resize it with its proportions to cover {new_height} x {new_width}, with {filter}.")
    else:
        steps.append(f"Resize it to {new_height} x {new_width} (height x width), with {filter}.")
    if preprocess.fit == "crop" or (new_height, new_width) != (height, width):
        steps.append(f"Take the center of {height} x {width}, offsets rounded {rounding}.")
    return [*steps, *cut]


def describe_program(classifier: BaseClassifier) -> list[str]:
    """Returns what a program takes, what is inside it and what it returns."""
    preprocess = classifier.preprocess
    values = "uint8 from 0 to 255" if preprocess.values == "uint8" else "float32 with the values of the file"
    inside = "divides by 255, " if preprocess.values == "uint8" else ""
    sentences = [
        f"Pass the pixels as {values} in the layout (batch, channel, height, width); "
        f"channels: {describe_order(preprocess)}.",
        f"Do not normalize: the graph {inside}subtracts the mean and divides by the standard deviation.",
    ]
    if classifier.task == REGRESSION:
        sentences.append(f"The output is the numbers {', '.join(classifier.classes)}, in their units: use it as it is.")
    elif classifier.classes:
        sentences.append(
            f"{describe_activation(classifier, 'logits')}, in the order of the classes. The logits are divided by the "
            "temperature in the graph: do not divide again."
        )
    return sentences


def describe_activation(classifier: BaseClassifier, outputs: str) -> str:
    """Returns what turns the outputs into probabilities, as the begin of a sentence."""
    activation = TASKS[classifier.task].activation
    if classifier.task == REGRESSION:
        return f"The {outputs} are the numbers, in their units"
    if classifier.task != MULTI_LABEL:
        return f"A {activation} turns the {outputs} into probabilities"
    return (
        f"A {activation} turns the {outputs} into probabilities, and an image has each label that reaches its threshold"
    )


def describe_thresholds(classifier: BaseClassifier) -> dict[str, Any]:
    """Returns the thresholds of a classifier for several labels, by label; nothing for another one."""
    if classifier.task != MULTI_LABEL:
        return {}
    thresholds = classifier.thresholds or (DEFAULT_THRESHOLD,) * len(classifier.classes)
    return {"thresholds": dict(zip(classifier.classes, thresholds, strict=True))}


def describe_normalization(preprocess: Preprocess) -> str:
    """Returns the last step for a model that takes normalized values."""
    begin = "Divide by 255, subtract" if preprocess.values == "uint8" else "Subtract"
    return (
        f"{begin} the mean {list(preprocess.mean)} and divide by the standard deviation "
        f"{list(preprocess.std)}; channels: {describe_order(preprocess)}."
    )


def color_name(preprocess: Preprocess) -> str:
    if preprocess.has_bands:
        return f"{preprocess.channels} bands"
    return "RGB" if preprocess.channels == 3 else "L"


def describe_decoding(preprocess: Preprocess) -> str:
    """Returns the first step, from a file to pixels."""
    if preprocess.has_bands:
        channels = describe_channels(preprocess.source_channels)
        return f"Read the file, which has {channels}, keep its values, and apply its EXIF orientation."
    color = "RGB" if preprocess.channels == 3 else "gray (Pillow's L)"
    return f"Decode the file to 8-bit {color}, apply its EXIF orientation, and put transparent pixels over white."


def describe_order(preprocess: Preprocess) -> str:
    """Returns what the channels are, in order."""
    if preprocess.has_bands:
        return f"the {preprocess.channels} of the file, in its order"
    return "red, green, blue" if preprocess.channels == 3 else "one gray"


def describe_values(preprocess: Preprocess) -> dict[str, Any]:
    """Returns number format and range of the pixels, and what the values are."""
    if preprocess.values == "uint8":
        return {"type": "uint8", "range": [0, 255]}
    return {"type": "float32", "values": preprocess.values}


def describe_scaling(classifier: BaseClassifier) -> str:
    """Returns what the outputs of the model are scaled by."""
    return "scale" if classifier.task == REGRESSION else "temperature"


def divisor(preprocess: Preprocess) -> list[str]:
    return ["divide by 255"] if preprocess.values == "uint8" else []


def resize_target(preprocess: Preprocess) -> tuple[int, int]:
    """Returns the size of the resize's rule: larger than the model's if a center crop follows."""
    height, width = preprocess.fitted_size
    if preprocess.fit == "pad":
        return height, width
    return round(height / preprocess.crop_fraction), round(width / preprocess.crop_fraction)


def offset_rounding(preprocess: Preprocess) -> str:
    """Returns `floor`, or `round` as Python and torchvision's center crop round."""
    return "floor" if preprocess.fit == "pad" or preprocess.engine == "transformers" else "round"
