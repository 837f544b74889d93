"""What a check can find: a code for each kind of finding, and one table of texts for all of them."""

import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from vitrail.data.pixel_range import DEPTH_RULE

RANDOM_DIVISION = ", and a random division can put one in training and the other in test; groups prevent that"
GROUP_EFFECTS = {
    True: "a random division puts images of a group in training and in test, which raises the score; if they are alike "
    "use",
    False: "their intervals are too narrow if images of a group are alike; then use",
}
EXAMPLES = 3  # in a message; the finding has all paths
FIT_EFFECTS = {
    "pad": "they are shrunk and padded",
    "crop": "only their center is used",
    "stretch": "their proportions are changed",
}


class Code(StrEnum):
    """The kind of a finding; its value is stable and part of the JSON output."""

    UNREADABLE_IMAGE = "unreadable-image"
    UNREACHABLE_IMAGE = "unreachable-image"
    DAMAGED_SOURCE = "damaged-source"
    INVALID_LAYOUT = "invalid-layout"
    NO_TRAINING_IMAGES = "no-training-images"
    SINGLE_CLASS = "single-class"
    UNKNOWN_CLASSES = "unknown-classes"
    MISSING_CLASSES = "missing-classes"
    SMALL_CLASSES = "small-classes"
    CLASS_IMBALANCE = "class-imbalance"
    FEWER_THAN_A_BATCH = "fewer-than-a-batch"
    SIMILAR_CLASS_NAMES = "similar-class-names"
    SEVERAL_LABELS = "several-labels"
    WITHOUT_LABELS = "images-without-labels"
    ALWAYS_TOGETHER = "labels-always-together"
    LABEL_EVERYWHERE = "label-in-every-image"
    CONSTANT_NUMBER = "constant-number"
    FAR_NUMBERS = "far-numbers"
    IGNORED = "ignored"
    WRONG_EXTENSION = "wrong-extension"
    LISTED_TWICE = "listed-twice"
    DUPLICATES_ACROSS_CLASSES = "duplicates-across-classes"
    DUPLICATES_ACROSS_SPLITS = "duplicates-across-splits"
    DUPLICATES = "duplicates"
    NEAR_DUPLICATES_ACROSS_CLASSES = "near-duplicates-across-classes"
    NEAR_DUPLICATES_ACROSS_SPLITS = "near-duplicates-across-splits"
    NEAR_DUPLICATES = "near-duplicates"
    MIXED_COLOR = "mixed-color"
    HIGH_BIT_DEPTH = "high-bit-depth"
    TRANSPARENT = "transparent"
    ROTATED = "rotated"
    ANIMATED = "animated"
    SMALL_IMAGES = "small-images"
    LARGE_IMAGES = "large-images"
    ELONGATED_IMAGES = "elongated-images"
    CROP_LOSS = "crop-loss"
    CONSTANT_IMAGES = "constant-images"
    GROUPS_ACROSS_SPLITS = "groups-across-splits"
    SUGGESTED_GROUPS = "suggested-groups"


@dataclass(frozen=True)
class Template:
    """The texts of a kind of finding: formats of a finding's values and of what `describe_paths` adds."""

    message: str
    consequence: str
    level: Literal["error", "warning"] = "warning"


SKIPPABLE = frozenset((Code.UNREADABLE_IMAGE, Code.DAMAGED_SOURCE))  # errors that --skip-unreadable permits
SKIP_HINT = "training stops, or continues without it with --skip-unreadable"
LEAK_HINT = "the score will be too high; --fix leaves the training copy out"

TEMPLATES: dict[Code, Template] = {
    Code.UNREADABLE_IMAGE: Template("{example}: {reason}", SKIP_HINT, "error"),
    Code.UNREACHABLE_IMAGE: Template(
        "{example} cannot be read now: {reason}", "training stops: the image may be good; try again later", "error"
    ),
    Code.DAMAGED_SOURCE: Template("{reason}", SKIP_HINT, "error"),
    Code.INVALID_LAYOUT: Template("{reason}", "{hint}", "error"),
    Code.NO_TRAINING_IMAGES: Template("there are {splits!n} but no training images", "training stops", "error"),
    Code.SINGLE_CLASS: Template("there is only the class {name!r}; two are needed", "training stops", "error"),
    Code.UNKNOWN_CLASSES: Template(
        "{split} has classes that training lacks: {classes!j}",
        "training stops: add training images of these classes, or remove them",
        "error",
    ),
    Code.MISSING_CLASSES: Template(
        "{split} has no image of {classes!j}", "class indices stay the same, and these classes have no score there"
    ),
    Code.SMALL_CLASSES: Template(
        "fewer than {limit} training images: {classes!j}", "they are used as they are, and their scores are unreliable"
    ),
    Code.CLASS_IMBALANCE: Template(
        "{largest!r} has {n_largest} training images, {smallest!r} only {n_smallest}: {ratio:.0f} times fewer",
        "all images count alike, so accuracy is mostly that of large classes (always {largest!r} would be right for "
        "{share:.0%}): look at balanced accuracy and macro F1; --balance makes classes count alike in training",
    ),
    Code.FEWER_THAN_A_BATCH: Template(
        "{images} training images are fewer than a batch of {batch_size}", "each epoch is one step with all of them"
    ),
    Code.SIMILAR_CLASS_NAMES: Template(
        "the classes {classes!q} differ only in case, accents, spaces or punctuation",
        "they remain separate classes: rename one to merge them",
    ),
    Code.SEVERAL_LABELS: Template(
        "{n} labels look like several classes each, for example {example_label!r}",
        "each is one class of that name: with --task multi_label they are several",
    ),
    Code.WITHOUT_LABELS: Template(
        "{images_are} without any label, for example {example}",
        "they are used as images that show none of the labels: remove those that have not been labeled yet",
    ),
    Code.ALWAYS_TOGETHER: Template(
        "the labels {classes!n} always come together ({n} training images)",
        "the model cannot tell them apart: merge them, or add images that have one of them",
    ),
    Code.LABEL_EVERYWHERE: Template(
        "all training images have the label {name!r}", "it teaches nothing, and its score is perfect for any model"
    ),
    Code.CONSTANT_NUMBER: Template(
        "{name!r} is {number} in all training images",
        "training refuses it, because a number that never changes cannot be learned: remove its column",
        "error",
    ),
    Code.FAR_NUMBERS: Template(
        "{images_are} far from the others in {name!r}, for example {example} with {number} (half of the images: {low} "
        "to {high})",
        "they are used: correct numbers that stand for a missing value; l1_loss and huber_loss weigh them less",
    ),
    Code.IGNORED: Template("{reason}", "not used"),
    Code.WRONG_EXTENSION: Template(
        "{images_are} named like another format, for example {example}, which is a {format}",
        "they are read by their content",
    ),
    Code.LISTED_TWICE: Template(
        "{images_are} listed more than once ({conflicts} with different classes), for example {example}",
        "each row counts; --fix keeps one",
    ),
    Code.DUPLICATES_ACROSS_CLASSES: Template(
        "the same image in different classes, {times}, for example {examples}",
        "both labels are used; --fix leaves all of these images out",
    ),
    Code.DUPLICATES_ACROSS_SPLITS: Template(
        "the same image in different splits, {times}, for example {examples}", LEAK_HINT
    ),
    Code.DUPLICATES: Template(
        "the same image more than once, {times}, for example {examples}", "it has more weight; --fix keeps one"
    ),
    Code.NEAR_DUPLICATES_ACROSS_CLASSES: Template(
        "nearly the same image in different classes, {times}, for example {examples}", "both are used as labeled"
    ),
    Code.NEAR_DUPLICATES_ACROSS_SPLITS: Template(
        "nearly the same image in different splits, {times}, for example {examples}", LEAK_HINT
    ),
    Code.NEAR_DUPLICATES: Template(
        "nearly the same image more than once, {times}, for example {examples}", "all are kept{division_effect}"
    ),
    Code.MIXED_COLOR: Template(
        "images in gray and in color ({n_gray} of {n_images} are gray)",
        "gray ones become color images: the model may learn grayness as a shortcut",
    ),
    Code.HIGH_BIT_DEPTH: Template("{images_are} in 16 bits or floats, for example {example}", DEPTH_RULE),
    Code.TRANSPARENT: Template(
        "{images_are} partly transparent, for example {example}", "the background becomes white"
    ),
    Code.ROTATED: Template(
        "{images_are} stored rotated or flipped, for example {example}", "they are turned upright as EXIF says"
    ),
    Code.ANIMATED: Template("{images_are} animated, for example {example}", "the first frame is used"),
    Code.SMALL_IMAGES: Template(
        "{images_are} far smaller than the others, for example {example} with {width}x{height} pixels",
        "training refuses an image that is smaller than a patch",
    ),
    Code.LARGE_IMAGES: Template(
        "{images_are} very large, for example {example} with {width}x{height} pixels", "reading them is slow"
    ),
    Code.ELONGATED_IMAGES: Template(
        "{images_are} more than {ratio} times as long as wide, for example {example} with {width}x{height} pixels",
        "{fit_effect}",
    ),
    Code.CROP_LOSS: Template(
        "a square crop removes {mean_loss:.0%} of the average image and {max_loss:.0%} of {example}",
        "use fit pad to keep everything",
    ),
    Code.CONSTANT_IMAGES: Template(
        "{images_are} of a single color, for example {example}", "they are used like the others"
    ),
    Code.GROUPS_ACROSS_SPLITS: Template(
        "{n} of {total} groups are in several splits, for example {group!r} in {splits!n}",
        "the score will be too high: images of a group are alike; divide the data by group",
    ),
    Code.SUGGESTED_GROUPS: Template(
        "names suggest {groups} groups of images that belong together, for example {group!r}: {names!j}{crossing}",
        "{group_effect} --group-pattern {quoted_pattern}",
    ),
}


NEAR_DUPLICATE_CODES = frozenset(
    (Code.NEAR_DUPLICATES_ACROSS_CLASSES, Code.NEAR_DUPLICATES_ACROSS_SPLITS, Code.NEAR_DUPLICATES)
)


class ListFormatter(string.Formatter):
    """Formats lists in templates: !j joins with commas, !n with "and", !q quotes each item and joins with "and"."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Converts a list to text; other conversions are those of `str.format`."""
        if conversion in ("j", "n", "q") and isinstance(value, Sequence):
            return (", " if conversion == "j" else " and ").join(repr(v) if conversion == "q" else v for v in value)
        return super().convert_field(value, conversion)


FORMATTER = ListFormatter()


@dataclass(frozen=True)
class Finding:
    """Something that a check found: its kind, the images concerned, and values for its texts."""

    code: Code
    paths: list[str] = field(default_factory=list)  # names of the images; one group or pair after the other
    values: Mapping[str, Any] = field(default_factory=dict)
    groups: list[list[str]] = field(default_factory=list)  # of duplicates: the names in each group or pair

    @property
    def level(self) -> Literal["error", "warning"]:
        """Errors stop training, warnings do not."""
        return TEMPLATES[self.code].level

    @property
    def is_skippable(self) -> bool:
        """Whether training can continue with --skip-unreadable."""
        return self.code in SKIPPABLE

    @property
    def message(self) -> str:
        return FORMATTER.format(TEMPLATES[self.code].message, **self.values, **self._derived_values())

    @property
    def consequence(self) -> str:
        """What training will do about it, or what the user can do."""
        return FORMATTER.format(TEMPLATES[self.code].consequence, **self.values, **self._derived_values())

    def _derived_values(self) -> dict[str, str]:
        """Returns the values that follow from the others, as text."""
        is_near = self.code in NEAR_DUPLICATE_CODES
        n, joiner = len(self.paths), " ~ " if is_near else " = "
        count = f"{len(self.groups)} time{'' if len(self.groups) == 1 else 's'}"
        shown = self.groups[:EXAMPLES] if is_near else [group[:EXAMPLES] for group in self.groups[:1]]
        return {
            "images_are": "1 image is" if n == 1 else f"{n} images are",
            "example": self.paths[0] if self.paths else "",
            "times": f"at least {count}" if self.values.get("is_lower_bound") else count,
            "examples": ", ".join(joiner.join(group) for group in shown),
            "fit_effect": FIT_EFFECTS.get(self.values.get("fit", ""), ""),
            "division_effect": RANDOM_DIVISION if self.values.get("is_divided_at_random") else "",
            "crossing": f"; {n_crossing} of them are in several splits"
            if (n_crossing := self.values.get("crossing_groups"))
            else "",
            "group_effect": GROUP_EFFECTS[bool(self.values.get("is_divided_at_random"))],
            "quoted_pattern": shlex.quote(str(self.values.get("pattern", ""))),
        }

    def __str__(self) -> str:
        return f"{self.message}; {self.consequence}"

    def to_json(self) -> dict[str, Any]:
        """Returns a dict with stable keys; `code` identifies the kind of finding."""
        return {
            "code": str(self.code),
            "level": self.level,
            "message": self.message,
            "consequence": self.consequence,
            "paths": self.paths,
            "values": dict(self.values),
        }
