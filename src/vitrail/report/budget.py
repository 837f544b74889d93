"""The time that a report may take, and the number of images in each part that fits into it."""

import time
from dataclasses import asdict, dataclass, field, replace

from vitrail.report.subject import (
    FORWARDS_PER_EXPLANATION,
    FORWARDS_PER_SCORED_IMAGE,
    MIN_FAITHFULNESS_IMAGES,
    SampleSizes,
    Subject,
)

TIMED_IMAGES = 8  # read and classified to measure the speed
FRACTIONS = {  # of the time, for each part that takes longer with more images
    "near_duplicates": 0.15,
    "properties": 0.15,
    "attribution": 0.2,
    "embedding": 0.1,
    "faithfulness": 0.4,
}
PART_NAMES = {
    "near_duplicates": "near-duplicates",
    "properties": "accuracy by image property",
    "attribution": "the mean maps of classes",
    "embedding": "the embedding map",
    "faithfulness": "the faithfulness of maps",
}
MINIMUM = {"properties": 100, "attribution": 24, "embedding": 60}  # images that are always used
MIN_SECONDS = {"near_duplicates": 1.0, "properties": 1.0}  # that a part always gets
OVERHEAD_S = 0.002  # for an image beside reading and the model: its signature, its properties, t-SNE


class BudgetExceeded(Exception):
    """A part took much longer than expected."""


@dataclass(frozen=True)
class Budget:
    """The seconds that a report may take from now on; None for no limit."""

    seconds: float | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def remaining_s(self) -> float:
        """The seconds that are left, at least 0; infinity without a limit."""
        if self.seconds is None:
            return float("inf")
        return max(0.0, self.seconds - (time.perf_counter() - self.started))

    def check(self) -> None:
        """Raises `BudgetExceeded` if no time is left."""
        if not self.remaining_s:
            raise BudgetExceeded


NO_LIMIT = Budget()


def fit_sizes(subject: Subject, sizes: SampleSizes, budget: Budget) -> SampleSizes:
    """Returns the sizes, lowered to what this machine can do in the time that is left.

    Cheap parts keep a minimum of images even without time; faithfulness is left out if too few images fit.
    """
    if budget.seconds is None:
        return sizes
    read_s, forward_s = measure_speed(subject)
    seconds_per_image = {
        "near_duplicates": read_s,
        "properties": read_s,
        "attribution": read_s + FORWARDS_PER_EXPLANATION * forward_s,
        "embedding": read_s + forward_s,
        "faithfulness": read_s + FORWARDS_PER_SCORED_IMAGE * forward_s,
    }
    affordable: dict[str, int] = {}
    for part, fraction in FRACTIONS.items():
        seconds = max(fraction * budget.remaining_s, MIN_SECONDS.get(part, 0.0))
        images = int(seconds / (seconds_per_image[part] + OVERHEAD_S))
        affordable[part] = min(getattr(sizes, part), max(images, MINIMUM.get(part, 0)))
    if affordable["faithfulness"] < MIN_FAITHFULNESS_IMAGES:
        affordable["faithfulness"] = 0
    return replace(sizes, **affordable)


def measure_speed(subject: Subject) -> tuple[float, float]:
    """Returns the seconds to read an image and fit it to the model's size, and those of a forward pass for one."""
    step = max(1, len(subject.images) // TIMED_IMAGES)
    indices = range(0, len(subject.images), step)[:TIMED_IMAGES]
    started = time.perf_counter()
    pixels = subject.images.load_batch(subject.classifier.preprocess, indices)
    read_s = (time.perf_counter() - started) / len(pixels)
    subject.classifier.logits(pixels[:1])  # the first call prepares kernels
    started = time.perf_counter()
    subject.classifier.logits(pixels).cpu()
    return read_s, (time.perf_counter() - started) / len(pixels)


def list_shortened(used: SampleSizes, complete: SampleSizes, available: dict[str, int]) -> dict[str, dict[str, int]]:
    """Returns the parts that have fewer images than a complete report: the used and the complete number.

    `available` is the number of images that each part could use.
    """
    rows = {}
    for part, images in asdict(used).items():
        full = min(getattr(complete, part), available.get(part, 0))
        if images < full:
            rows[part] = {"images": images, "complete": full}
    return rows


def describe_shortened(rows: dict[str, dict[str, int]]) -> str:
    """Returns the shortened parts as text, each with its numbers of images."""
    return ", ".join(
        f"{PART_NAMES[part]} ({row['images']:,} of {row['complete']:,} images)" for part, row in rows.items()
    )
