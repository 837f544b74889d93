"""The subject of a report, and the number of images that each part of it uses."""

import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vitrail.classifier import Classifier
from vitrail.data.images import Images
from vitrail.documents import EarlyStop
from vitrail.evaluation import Evaluation

CPU_BUDGET = 1e13  # multiply-adds for maps and their scores: one or two minutes on two cores
GPU_SPEEDUP = 100  # of a GPU over a CPU, roughly
FORWARDS_PER_SCORED_IMAGE = 200  # to score four explanation methods, roughly
FORWARDS_PER_EXPLANATION = 12  # of the default method, roughly: a forward and a backward pass with attention kept
MIN_FAITHFULNESS_IMAGES = 8
MAX_CORRUPTED_IMAGES = 2000
MIN_CORRUPTED_IMAGES = 100
CORRUPTED_COPIES = 19  # of an image: six corruptions with three strengths, and none


class Described(Protocol):
    """What the provenance of a report is made from."""

    @property
    def classifier(self) -> Classifier: ...
    @property
    def model_path(self) -> str: ...
    @property
    def command(self) -> str: ...


@dataclass(frozen=True)
class Subject:
    """A classifier, the images that it was scored on, and their context.

    `images` are the readable images of the scored split, in the order of the evaluation. `splits` are all splits of the
    data. `training_metrics` are the rows of the run's metrics. `stopped_early` says when and why training stopped
    before its last epoch. `command` is the command that repeats the report.
    """

    classifier: Classifier
    images: Images
    evaluation: Evaluation
    split: str = "test"
    splits: dict[str, Images] = field(default_factory=dict)
    training_metrics: list[dict[str, Any]] = field(default_factory=list)
    stopped_early: EarlyStop | None = None
    model_path: str = ""
    command: str = ""
    skip_unreadable: bool = False

    @property
    def validation(self) -> Images | None:
        """The validation split, unless it is the scored one."""
        return self.splits.get("validation") if self.split != "validation" else None


def report_command(model: str | Path, data: str | Path, options: list[str]) -> str:
    """Returns the command that writes the report."""
    return shlex.join(["vitrail", "evaluate", str(model), str(data), "--report", *options])


@dataclass(frozen=True)
class SampleSizes:
    """The maximum number of images in each part of a report."""

    thumbnails: int = 2400  # in the whole report
    per_cell: int = 30  # thumbnails in a cell of the confusion matrix
    mistakes: int = 12
    examples: int = 24  # of suspected label errors, and of near-duplicate pairs
    attribution: int = 300  # explained for the mean map of each class
    faithfulness: int = 64  # on which explanation methods are scored; 0 skips this part
    properties: int = 10_000
    embedding: int = 800
    near_duplicates: int = 100_000  # compared with one another, in all splits together
    corruptions: int = 0  # 0 skips this part

    @classmethod
    def for_model(cls, classifier: Classifier, corruptions: bool = False) -> "SampleSizes":
        """Returns sizes that a model of this size can process in minutes on its device.

        They depend on the size of the model and the type of device, not on time, so a report can be repeated.
        `fit_sizes` of the report's budget lowers them to what fits into a given time.
        """
        budget = CPU_BUDGET * (GPU_SPEEDUP if classifier.device.type in ("cuda", "mps") else 1)
        images = budget / forward_cost(classifier)
        corrupted = int(min(MAX_CORRUPTED_IMAGES, max(10 * images / CORRUPTED_COPIES, MIN_CORRUPTED_IMAGES)))
        faithfulness = images / FORWARDS_PER_SCORED_IMAGE
        return cls(
            attribution=int(min(cls.attribution, max(images / 3 / 4, 24))),  # 3 for the backward pass, 4 parts
            faithfulness=int(min(cls.faithfulness, faithfulness)) if faithfulness >= MIN_FAITHFULNESS_IMAGES else 0,
            embedding=int(min(cls.embedding, max(images, 60))),
            corruptions=corrupted if corruptions else 0,
        )


def forward_cost(classifier: Classifier) -> float:
    """Estimates the multiply-adds of a forward pass on one image: parameters of the blocks times tokens."""
    config = classifier.vit.config
    tokens = math.prod(pixels // config.patch for pixels in classifier.preprocess.image_size) + config.prefix_tokens
    return float(sum(p.numel() for p in classifier.vit.blocks.parameters()) * tokens)
