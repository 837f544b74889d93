"""A classifier in an exported file, whichever runtime runs it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from vitrail.classifier import BaseClassifier, Classifier, check_finite
from vitrail.data.preprocess import Preprocess
from vitrail.exporting.program import DISTANCE, LOGITS, PIXELS, TARGET
from vitrail.tasks import SINGLE_LABEL, TaskName
from vitrail.weights.artifact import Artifact
from vitrail.weights.unlike import UnlikeFacts


@dataclass
class ProgramClassifier(BaseClassifier):
    """A classifier whose logits a runtime computes from a graph."""

    session: Any = field(repr=False)  # what runs the graph
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float = 1.0
    origin: dict[str, Any] = field(default_factory=dict)
    exported: dict[str, Any] = field(default_factory=dict)  # how the file was made and verified
    task: TaskName = SINGLE_LABEL
    thresholds: tuple[float, ...] = ()
    facts: UnlikeFacts | None = None  # of the output `unlike`, if the graph has it

    @classmethod
    def from_artifact(cls, session: Any, artifact: Artifact, exported: dict[str, Any]) -> Self:
        """Returns the classifier of a file with these metadata."""
        return cls(
            session,
            artifact.classes,
            artifact.preprocess,
            artifact.temperature,
            artifact.origin,
            exported,
            artifact.task,
            artifact.thresholds,
            artifact.unlike,
        )

    @classmethod
    def in_memory(cls, session: Any, classifier: Classifier) -> Self:
        """Returns the classifier of a graph that has not been written to a file."""
        return cls(
            session,
            classifier.classes,
            classifier.preprocess,
            classifier.temperature,
            task=classifier.task,
            thresholds=classifier.thresholds,
        )

    @property
    def unlike_facts(self) -> UnlikeFacts | None:
        return self.facts

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs; the logits come first."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """The names of the graph's inputs; the pixels come first."""

    @abstractmethod
    def run_session(self, feed: dict[str, Any], outputs: Sequence[str]) -> list[Tensor]:
        """Runs the graph on arrays by name of the input and returns these outputs.

        Raises `VitrailError` if the runtime refuses.
        """

    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels of the model's size -> logits (B, Y) in float32, divided by the temperature.

        Raises `NonFiniteOutput` if one is NaN or infinite.
        """
        return check_finite(self.run(pixels_BCHW, LOGITS))

    def logits_and_distances(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns what `BaseClassifier.logits_and_distances` describes, from one run of the graph."""
        if self.facts is None:
            return self.logits(pixels_BCHW), None
        logits_BY, distances_B1 = self.run_outputs(pixels_BCHW, [LOGITS, DISTANCE])
        return check_finite(logits_BY), check_finite(distances_B1)[:, 0]

    def run(self, pixels_BCHW: Tensor, output: str, target_BY: Tensor | None = None) -> Tensor:
        """Returns one output of the graph, as `run_outputs` does."""
        return self.run_outputs(pixels_BCHW, [output], target_BY)[0]

    def run_outputs(self, pixels_BCHW: Tensor, outputs: Sequence[str], target_BY: Tensor | None = None) -> list[Tensor]:
        """Returns some outputs of the graph.

        A map explains the score of `target_BY` (B, Y): 1 for a class, -1 for the class that it is compared with.
        """
        feed = {PIXELS: pixels_BCHW.cpu().contiguous().numpy()}
        if TARGET in self.inputs:
            no_target_BY = torch.zeros(len(pixels_BCHW), len(self.classes))
            feed[TARGET] = (no_target_BY if target_BY is None else target_BY.cpu().float()).numpy()
        return self.run_session(feed, outputs)
