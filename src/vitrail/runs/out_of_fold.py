"""Calibrates the final model of a cross-validation, which has no validation images of its own."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vitrail.callbacks.base import Callback, CallbackState
from vitrail.console import log
from vitrail.evaluation.numbers import NumberOutcome
from vitrail.evaluation.outcomes import AnyOutcome

OUT_OF_FOLD = "out-of-fold"


class OutOfFold(Callback):
    """Gives a run the outcome on which its temperature and thresholds are fitted if it has no validation images.

    `uncalibrated` is that of the folds' classifiers without a temperature, on the images that they have not trained on.
    """

    def __init__(self, uncalibrated: AnyOutcome):
        self.uncalibrated = uncalibrated

    def on_run_start(self, state: CallbackState) -> None:
        """Prints on what the run is calibrated."""
        if "validation" not in state.images and not isinstance(self.uncalibrated, NumberOutcome):
            log(f"calibrated on the {len(self.uncalibrated.labels)} out-of-fold predictions")


def find_out_of_fold(callbacks: Iterable[object]) -> AnyOutcome | None:
    """Returns the outcome that the callbacks of a run give it, if one does."""
    return next((each.uncalibrated for each in callbacks if isinstance(each, OutOfFold)), None)


def remove_temperature(outcomes: Sequence[AnyOutcome], temperatures: Sequence[float]) -> list[AnyOutcome]:
    """Returns the outcomes of classifiers with these temperatures as they would be without."""
    return [
        replace(outcome, logits=outcome.logits * temperature)
        for outcome, temperature in zip(outcomes, temperatures, strict=True)
    ]
