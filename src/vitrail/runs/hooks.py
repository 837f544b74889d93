"""The callbacks of a run: their list, the state that they get, and how all processes agree on their requests."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from vitrail.callbacks.base import CallbackState, SplitScores
from vitrail.callbacks.calls import CallbackCalls, Stop
from vitrail.callbacks.early_stopping import EarlyStopping
from vitrail.callbacks.loggers import Logger, make_loggers
from vitrail.console import log
from vitrail.documents import HookScores
from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.evaluation.outcomes import AnyOutcome
from vitrail.module_classifier import TorchClassifier
from vitrail.runs.out_of_fold import find_out_of_fold
from vitrail.runs.result import ResultPrinter, Run
from vitrail.runs.start import Start
from vitrail.training.distributed import SINGLE_PROCESS, World
from vitrail.training.recipe import Recipe

Values = Mapping[str, Any]


class RunHooks:
    """Calls the callbacks of one run in one process, and holds the state that they get."""

    def __init__(self, callbacks: Sequence[object] = (), world: World = SINGLE_PROCESS):
        self.calls = CallbackCalls(callbacks, world.is_main)
        self.world = world
        self.facts: dict[str, Any] = {}  # the fields of the state that stay as they are
        self.moment: dict[str, Any] = {"epoch": 0, "step": 0, "steps": 0}  # those that change
        self.find_classifier: Callable[[], TorchClassifier | None] = lambda: None
        self.has_started = False

    def has(self, hook: str) -> bool:
        """Whether any callback has the hook; the same in all processes."""
        return self.calls.has(hook)

    def find_out_of_fold(self) -> AnyOutcome | None:
        """Returns the outcome by which a run without validation images is calibrated, if a callback has one."""
        return find_out_of_fold(self.calls.named.values())

    def show_result(self, run: Run) -> None:
        """Prints the scores of a run."""
        for callback in self.calls.named.values():
            if isinstance(callback, ResultPrinter):
                callback.show(run.folder, run.result)

    def check_start(self, start: Start) -> None:
        """Raises `UsageError` if training could never stop early though a callback asks for it."""
        if not any(isinstance(callback, EarlyStopping) for callback in self.calls.named.values()):
            return
        if start.recipe.train_on == "features":
            raise UsageError(f"recipe {start.recipe.name} has no epochs, so it cannot stop early", "leave out patience")
        if start.splits.validation is None:
            raise UsageError("early stopping needs validation images", "add --validation-fraction 0.1")

    def begin(self, start: Start, folder: Path, name: str, *, is_resumed: bool) -> None:
        """Sets the facts of a run. `folder` is its path, `name` that of the data."""
        self.facts = {
            "folder": folder,
            "data": name,
            "recipe": start.recipe,
            "classes": tuple(start.splits.classes),
            "images": MappingProxyType({split: len(images) for split, images in start.splits.as_dict().items()}),
            "device": self.world.device,
            "is_main": self.world.is_main,
            "world_size": self.world.size,
            "is_resumed": is_resumed,
            "epochs": (start.recipe.epochs or 0) if start.recipe.train_on == "images" else 0,
        }

    def start_without_epochs(self) -> None:
        """Calls on_run_start for a recipe that fits its head on features; raises the error of a callback."""
        self.has_started = True
        self.call("on_run_start")
        self.raise_error(lambda: "")

    def call(
        self,
        hook: str,
        *,
        evaluation: SplitScores | None = None,
        metrics: Values | None = None,
        error: str | None = None,
    ) -> None:
        """Calls a hook. Errors and requests to stop are kept until `raise_error` and `agree_on_stop`."""
        values: dict[str, Any] = {
            "metrics": MappingProxyType(dict(metrics or {})),
            "evaluation": evaluation,
            "error": error,
        }

        def make_state(request_stop: Callable[[str], None]) -> CallbackState:
            return CallbackState(
                **self.facts,
                **self.moment,
                **values,
                get_classifier=self.find_classifier,
                request_stop=request_stop,
            )

        self.calls.call(hook, make_state)

    def raise_error(self, save: Callable[[], str]) -> None:
        """If a callback has failed in any process, calls `save` and raises the error in all.

        `save` saves the run and returns a hint, which is added to that of the error.
        """
        if not any(self.world.any(self.calls.error is not None)):
            return
        hint = save()
        own = self.calls.take_error()
        errors = self.world.all_gather(own)
        error = own or next(filter(None, errors))
        if isinstance(error, VitrailError) and hint:
            error.hint = f"{error.hint}; {hint}" if error.hint else hint
        raise error

    def agree_on_stop(self) -> Stop | None:
        """Returns the request to stop of the process with the lowest rank that has one, in all processes."""
        return next(filter(None, self.world.all_gather(self.calls.stop)), None)

    def finish_scores(self, run: Run) -> None:
        """Calls on_evaluation_end with the final scores, if the run has any. They are saved already."""
        self.find_classifier = lambda: run.classifier
        self.moment["result"] = MappingProxyType(run.result)
        for split in ("test", "validation"):
            if split in run.result:
                self.call(
                    "on_evaluation_end",
                    evaluation=SplitScores(split, cast(HookScores, run.result[split]), is_final=True),
                )

    @contextmanager
    def call_run_end(self) -> Iterator[None]:
        """On exit calls on_run_end, also if an error ends the run; an error of a callback is then printed."""
        try:
            yield
        except BaseException as error:
            if self.has_started:
                self.call("on_run_end", error=error.sentence if isinstance(error, VitrailError) else first_line(error))
                if failure := self.calls.take_error():
                    log(f"warning: {failure}")
            raise
        self.call("on_run_end")
        self.raise_error(lambda: f"the run in {self.facts['folder']} is complete")


def make_hooks(
    callbacks: Sequence[object], logger: Logger | Sequence[Logger] | None, recipe: Recipe, world: World
) -> RunHooks:
    """Returns the callbacks of a run with those that the recipe and the logger add, and the printer of the result.

    Raises `UsageError` for an object that is not a callback, and for a logger whose library is missing.
    """
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        raise UsageError(f"callbacks is {callbacks!r}; it must be a list of callbacks")
    added = make_loggers(logger)
    if recipe.patience is not None:
        if any(isinstance(callback, EarlyStopping) for callback in callbacks):
            raise UsageError("the patience is set twice: by the recipe and by EarlyStopping", "leave out one of them")
        added.append(EarlyStopping(recipe.patience))
    if not any(isinstance(callback, ResultPrinter) for callback in callbacks):
        added.append(ResultPrinter())
    return RunHooks([*callbacks, *added], world)
