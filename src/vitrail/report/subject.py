"""What a report is about, and how deep it goes."""

import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.classifier import Classifier
from vitrail.data import Images
from vitrail.evaluation import Evaluation

CPU_BUDGET = 1e13  # multiply-adds that maps and their scores may take: a minute or two on two cores
GPU_FACTOR = 100
TRIALS = 200  # forward passes that scoring four methods on one image takes, about


@dataclass(frozen=True)
class Subject:
    """A classifier, the images it was scored on, and everything known around them.

    `parts` are all splits of the data by name, the scored one (`split`) among them; `curves` the rows of the run's
    metrics; `command` what to type to make the report again.
    """

    classifier: Classifier
    images: Images
    evaluation: Evaluation
    split: str = "test"
    parts: dict[str, Images] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)
    model: str = ""
    command: str = ""
    skip_unreadable: bool = False

    @property
    def validation(self) -> Images | None:
        """Images to choose by, if there are any besides those that are scored."""
        return self.parts.get("validation") if self.split != "validation" else None


def report_command(model: str | Path, data: str | Path, options: list[str]) -> str:
    """What to type to make the report."""
    return shlex.join(["vitrail", "evaluate", str(model), str(data), "--report", *options])


@dataclass(frozen=True)
class SampleSizes:
    """How many images each part of the report looks at."""

    thumbnails: int = 2400  # in all
    by_cell: int = 30  # of them in a cell of the confusion matrix
    mistakes: int = 12
    suspects: int = 24
    maps: int = 300  # explained for the mean map per class
    scored: int = 64  # on which explanations are scored; 0 leaves that out
    properties: int = 10_000
    embedded: int = 800
    compared: int = 100_000  # images among which copies are looked for
    corruptions: int = 0  # 0 leaves them out

    @classmethod
    def for_model(cls, classifier: Classifier, corruptions: bool = False) -> "SampleSizes":
        """As deep as the model's size allows: maps of a large model on a CPU would take hours.

        What is left out is so by the model's size and the kind of device, not by a clock, so a report can be repeated.
        """
        budget = CPU_BUDGET * (GPU_FACTOR if classifier.device.type in ("cuda", "mps") else 1)
        images = budget / forward_cost(classifier)
        return cls(
            maps=int(min(cls.maps, max(images / 3 / 4, 24))),
            scored=int(min(cls.scored, images / TRIALS)) if images / TRIALS >= 8 else 0,
            embedded=int(min(cls.embedded, max(images, 60))),
            corruptions=2000 if corruptions else 0,
        )


def forward_cost(classifier: Classifier) -> float:
    """Multiply-adds of one image's forward pass, about: parameters times tokens."""
    config = classifier.vit.config
    tokens = math.prod(side // config.patch for side in classifier.preprocess.image_size) + config.prefix_tokens
    return float(sum(p.numel() for p in classifier.vit.blocks.parameters()) * tokens)
