"""A run while it trains: what learns, from what data, where it is written, and how many steps are done."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from vitrail.data.images import Images
from vitrail.data.loader import count_batches
from vitrail.data.split import Splits
from vitrail.documents import EarlyStop
from vitrail.evaluation.outcomes import AnyOutcome
from vitrail.interrupts import Interrupted
from vitrail.machine import describe_numerics
from vitrail.module_classifier import TorchClassifier, module_of, with_module
from vitrail.options import check_fields
from vitrail.runs.folder import RunFolder
from vitrail.runs.hooks import RunHooks
from vitrail.tasks import SINGLE_LABEL, TASKS
from vitrail.training.checkpoint import collect_tensors, save_checkpoint
from vitrail.training.distributed import World
from vitrail.training.loss_monitor import LossMonitor
from vitrail.training.parallel import gather_model
from vitrail.training.recipe import Recipe
from vitrail.training.schedules import count_warmup_steps
from vitrail.training.step_stats import StepStats
from vitrail.training.train_state import TrainState

Row = dict[str, Any]  # a line of metrics.jsonl

OLD_PROGRESS_KEYS = {"gradient": "grad_norm", "made_with": "numerics"}  # of checkpoints before format 2


@dataclass
class Progress:
    """Progress of a run beside its tensors; a checkpoint holds it as JSON."""

    epoch: int = 0  # completed epochs
    seconds: float = 0.0  # of training, in this and earlier processes
    best: Row | None = None  # the row of the epoch whose weights are in the artifact; epoch 0 is the start
    loss: float = 0.0  # sums over the images of the current epoch
    correct: int = 0
    images: int = 0
    lr: float = 0.0  # of the last step
    grad_norm: float = 0.0
    unlabeled: int = 0  # of `images`
    unreadable: int = 0  # images of the current epoch that could not be read
    numerics: dict[str, Any] = field(default_factory=dict)  # hardware and software that decide the last bits of a sum
    callbacks: dict[str, Any] = field(default_factory=dict)  # the states of callbacks, by name
    stopped_early: EarlyStop | None = None  # epoch, epochs, step, callback and reason, once training has stopped

    def __post_init__(self) -> None:
        check_fields(self)

    def add(self, step: StepStats) -> None:
        """Adds a step's sums."""
        self.loss += step.loss * step.images
        self.correct += step.correct
        self.images += step.images
        self.unlabeled += step.unlabeled
        self.lr, self.grad_norm = step.lr, step.grad_norm

    @property
    def accuracy(self) -> float:
        """The fraction of right answers among the images with labels of the current epoch."""
        return self.correct / max(self.images - self.unlabeled, 1)


def progress_from_json(document: dict[str, Any]) -> Progress:
    """Reads the progress of a checkpoint of any format; raises `TypeError` or `UsageError` for anything else."""
    return Progress(**{OLD_PROGRESS_KEYS.get(key, key): value for key, value in document.items()})


@dataclass
class TrainingRun:
    """Everything that the epochs of a run need. Every process has one; the main one writes."""

    state: TrainState
    classifier: TorchClassifier  # what is saved: the model of `state` with classes, preprocessing and origin
    splits: Splits
    recipe: Recipe  # with sizes, epochs and batch size
    folder: RunFolder
    hooks: RunHooks = field(default_factory=RunHooks)
    chance_loss: float | None = None  # of a model that ignores the image, if it is known
    progress: Progress = field(default_factory=Progress)
    saved_at: float = field(default_factory=time.monotonic)  # the last checkpoint
    curves_drawn_at: float = -float("inf")
    outcome: AnyOutcome | None = None  # of the last validation, if this process has evaluated all of it
    training_images: Images | None = None  # labeled and unlabeled training images; None: those of the splits
    best_outcome: AnyOutcome | None = None  # of the weights in the artifact, unless an earlier process wrote it

    @property
    def world(self) -> World:
        """The processes that train."""
        return self.state.world

    @property
    def train_images(self) -> Images:
        """The images of an epoch."""
        return self.training_images or self.splits.train

    @property
    def starts_from_weights(self) -> bool:
        """Whether training started from pretrained weights."""
        return "from" in self.classifier.origin

    @property
    def epochs(self) -> int:
        """Epochs in all."""
        assert self.recipe.epochs is not None
        return self.recipe.epochs

    @property
    def selection_metric(self) -> str:
        """The validation score that selects the weights."""
        score = TASKS[self.classifier.task].score
        return self.recipe.selection_metric if self.classifier.task == SINGLE_LABEL else score

    @property
    def batch_size(self) -> int:
        """Images per step, over all processes."""
        assert self.recipe.batch_size is not None
        return self.recipe.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""
        return count_batches(len(self.train_images), self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch

    @property
    def eval_classifier(self) -> TorchClassifier:
        """The classifier that is evaluated and saved: with EMA weights if the recipe has them."""
        return with_module(self.classifier, self.state.eval_model)

    def save_checkpoint(self, label: str = "") -> None:
        """Writes a checkpoint, whose name ends with the label."""
        self.progress.numerics = self.describe_numerics()
        self.progress.callbacks = self.hooks.calls.state_dicts()
        tensors = collect_tensors(self.state) if self.world.is_sharded else None
        self.world.on_main(
            lambda: save_checkpoint(self.folder.checkpoints, self.state, asdict(self.progress), label, tensors)
        )
        self.saved_at = time.monotonic()

    def save_artifact(self) -> None:
        """Writes the classifier."""
        classifier = self.eval_classifier
        classifier = with_module(classifier, gather_model(module_of(classifier), self.world))
        self.world.on_main(lambda: classifier.save(self.folder.artifact))

    def save_after_callback(self) -> str:
        """Writes a checkpoint after the error of a callback; returns the hint for the error."""
        self.save_checkpoint()
        return f"saved at step {self.state.step}, continue with: {self.folder.resume_command()}"

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights are kept, by validation; 0 is the start. None without validation."""
        best = self.progress.best
        return best["epoch"] if best and "validation_loss" in best else None

    def call_hook(self, hook: str, epoch: int, **values: Any) -> None:
        """Calls a hook of the callbacks in this process; an error is kept."""
        self.hooks.moment = {
            "epoch": epoch,
            "step": self.state.step,
            "steps": self.total_steps,
            "lr": self.progress.lr or None,
            "best_epoch": self.best_epoch,
            "stopped_early": self.progress.stopped_early,
        }
        self.hooks.find_classifier = self.find_classifier
        self.hooks.call(hook, **values)

    def call_hook_on_all(self, hook: str, epoch: int, **values: Any) -> None:
        """Calls a hook in all processes; raises the error of a callback in all of them, once the run is saved."""
        if self.hooks.has(hook):
            self.call_hook(hook, epoch, **values)
            self.hooks.raise_error(self.save_after_callback)

    def find_classifier(self) -> TorchClassifier | None:
        """Returns the classifier that is evaluated; None if its weights are sharded."""
        return None if self.world.is_sharded else self.eval_classifier

    def stop_if_requested(self) -> bool:
        """Records a callback's request to stop; returns whether training has stopped, the same in all processes."""
        if self.progress.stopped_early is None and (stop := self.hooks.agree_on_stop()):
            epoch = -(-self.state.step // self.steps_per_epoch)
            if self.state.step < self.total_steps:
                moment = {"epoch": epoch, "epochs": self.epochs, "step": self.state.step}
                self.progress.stopped_early = cast(EarlyStop, {**moment, **stop})
        return self.progress.stopped_early is not None

    def describe_numerics(self) -> dict[str, Any]:
        """Returns what decides the last bits of a sum in this run."""
        return {**describe_numerics(self.classifier.device), "the number of processes": self.world.size}

    def loss_monitor(self) -> LossMonitor:
        """Returns a new monitor, which warns of a loss that diverges or stays at chance level."""
        return LossMonitor(self.chance_loss, count_warmup_steps(self.total_steps, self.recipe))

    def interrupted(self) -> Interrupted:
        """Returns the error that ends a run after a stop signal, once it is saved."""
        return Interrupted(
            f"stopped at step {self.state.step} and saved", f"continue with: {self.folder.resume_command()}"
        )
