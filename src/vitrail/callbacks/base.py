"""What a callback is: an object with hooks, each of which gets the state of the run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.documents import EarlyStop, HookScores, RunResult
from vitrail.errors import UsageError, VitrailError

if TYPE_CHECKING:
    import torch

    from vitrail.classifier import Classifier
    from vitrail.module_classifier import ModuleClassifier
    from vitrail.training.recipe import Recipe

HOOKS = ("on_run_start", "on_epoch_start", "on_step_end", "on_evaluation_end", "on_epoch_end", "on_run_end")


class CallbackError(VitrailError):
    """A callback raised an error. The message names the callback and its hook."""


class EndRun(Exception):
    """Raised by a hook, it ends the run without scores, once the checkpoint is saved; `vitrail.train` raises it."""


@dataclass(frozen=True)
class SplitScores:
    """The scores on the images of a split.

    `scores` has `loss` and `accuracy`. The final scores also have what result.json has for the split, such as
    `accuracy_interval`.
    """

    split: str  # train, validation or test
    scores: HookScores
    is_final: bool  # of the finished run; else of an epoch


@dataclass(frozen=True, kw_only=True)
class CallbackState:
    """The state of a run in the moment of a call. It is read-only: only `stop` has an effect on the run."""

    folder: Path  # the run folder
    data: str  # name of the data
    recipe: "Recipe"  # with sizes, epochs and batch size
    classes: tuple[str, ...]
    images: Mapping[str, int]  # split -> number of images
    device: "torch.device"
    is_main: bool  # whether this process has rank 0
    world_size: int  # processes that train the model
    is_resumed: bool  # whether the run continues from a checkpoint
    epoch: int  # the current epoch, from 1; 0 before the first
    epochs: int  # in all; 0 for a recipe that trains on features
    step: int  # steps done in the whole run
    steps: int  # in all
    lr: float | None = None  # of the last step
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the step or the epoch; names as in metrics.jsonl
    best_epoch: int | None = None  # the epoch whose weights are kept, by validation; 0 is the start
    evaluation: SplitScores | None = None  # the scores that were just measured
    stopped_early: EarlyStop | None = None  # epoch, step, callback and reason of an early stop
    result: RunResult | None = None  # content of result.json, once the run is scored
    error: str | None = None  # what ended the run, if it did not finish
    get_classifier: "Callable[[], Classifier | ModuleClassifier | None]" = field(default=lambda: None, repr=False)
    request_stop: Callable[[str], None] = field(default=lambda reason: None, repr=False)

    @property
    def classifier(self) -> "Classifier | ModuleClassifier | None":
        """The classifier that is evaluated, for reading: with EMA weights if the recipe has them.

        None if the weights are sharded (FSDP), where a single process cannot use them, and if there is no model. With
        another architecture than a ViT it is a `ModuleClassifier`.
        """
        return self.get_classifier()

    @property
    def model(self) -> "torch.nn.Module | None":
        """The module of `classifier`, for reading: its ViT, or the module of another architecture; None without one."""
        from vitrail.module_classifier import module_of

        return module_of(self.classifier) if self.classifier else None

    def stop(self, reason: str) -> None:
        """Asks for the end of training after the current step or epoch; the run is then finished as usual.

        The reason is printed and stored in result.json.
        """
        if not isinstance(reason, str) or not reason.strip():
            raise UsageError(f"the reason of a stop is {reason!r}; it must be a sentence")
        self.request_stop(reason.strip())


class Callback:
    """Base class of callbacks, with every hook doing nothing.

    Any object with some of the hooks is a callback; it need not inherit. A callback with `state_dict` and
    `load_state_dict` has its state, which must be JSON, in the checkpoints of the run.
    """

    every_process: bool = False  # whether it is called in all processes that train the model; else only in the main one

    def on_run_start(self, state: CallbackState) -> None:
        """Called before the first epoch, or before the first after a resume."""

    def on_epoch_start(self, state: CallbackState) -> None:
        """Called before each epoch."""

    def on_step_end(self, state: CallbackState) -> None:
        """Called after each step, with its loss, accuracy, learning rate and gradient norm as `metrics`."""

    def on_evaluation_end(self, state: CallbackState) -> None:
        """Called after each validation, and once the final scores are saved."""

    def on_epoch_end(self, state: CallbackState) -> None:
        """Called after each epoch, with its row of metrics.jsonl as `metrics`."""

    def on_run_end(self, state: CallbackState) -> None:
        """Called at the end of a run, after the report, and also if an error or a signal ends it."""
