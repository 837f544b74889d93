"""Cross-validation: a run for each fold, the scores of all out-of-fold predictions, and a final model on everything.

RUN/
  folds.json                 how it was started; a resume reads it
  fold-1/  fold-2/  ...      an ordinary run each: trained on the other folds, scored on its own
  cross_validation.json      the scores of the folds, their mean and deviation, and those of all predictions together
  predictions.csv            the prediction of each image by the fold that has not trained on it
  final/                     with `final`: a run on all images
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, cast

from vitrail.callbacks.loggers import Logger
from vitrail.console import log
from vitrail.data.check import check_before_training
from vitrail.data.python_data import Data
from vitrail.data.source import Source, encode_labels
from vitrail.documents import CrossValidationDocument, CrossValidationResult
from vitrail.errors import VitrailError
from vitrail.evaluation import Evaluation
from vitrail.evaluation.outcomes import AnyOutcome, compute_any_outcome
from vitrail.files import write_json, write_text
from vitrail.runs.fold_plan import Plan, make_plan
from vitrail.runs.fold_table import evaluate_joined, format_predictions, join_outcomes, summarize
from vitrail.runs.folder import RunFolder
from vitrail.runs.out_of_fold import OutOfFold, remove_temperature
from vitrail.runs.pretrained import Model
from vitrail.runs.result import SCORE_NAMES, Run
from vitrail.runs.train import train
from vitrail.tasks import TASKS
from vitrail.training.recipe import Recipe
from vitrail.training.recipe_changes import TrainChanges


@dataclass(frozen=True)
class CrossValidation:
    """The runs of all folds, the evaluation of all out-of-fold predictions, and the final run if there is one."""

    folder: Path
    runs: list[Run]
    evaluation: Evaluation  # or that of another task
    result: CrossValidationResult
    final: Run | None = None

    def __repr__(self) -> str:
        """A line with the scores; `result` has everything."""
        name = TASKS[self.runs[0].classifier.task].score
        score = cast(Mapping[str, float], self.result)[name]
        return f"CrossValidation({str(self.folder)!r}: {len(self.runs)} folds, {SCORE_NAMES[name]} {score:.4f})"

    def to_json(self) -> CrossValidationDocument:
        """Returns the folder and the scores, as cross_validation.json has them."""
        document: CrossValidationDocument = {
            "run": str(self.folder),
            **self.result,  # type: ignore[typeddict-item]  # mypy: `final` could be in it
        }
        if self.final:
            document["final"] = str(self.final.folder)
        return document


def cross_validate(
    data: Data,
    folds: int = 5,
    *,
    final: bool = False,
    model: Model | None = None,
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    report: bool = True,
    pictures: bool = True,
    check: bool = True,
    torch_files: bool = False,
    logger: Logger | Sequence[Logger] | None = None,
    **changes: Unpack[TrainChanges],
) -> CrossValidation:
    """Trains one run per fold in OUT/fold-1, OUT/fold-2, ...; returns the scores of all out-of-fold predictions.

    Folds are stratified by class, label, grade or the quantiles of numbers, and never divide a group or identical
    images; the recipe's `split_seed` chooses them. Of data that is split, the training images are divided; given
    validation images select the weights in every fold, and given test images are in no fold. `final` trains a model on
    everything afterwards, in OUT/final; its temperature and thresholds are fitted on the out-of-fold predictions.
    `resume` continues at the fold that is not finished. The other arguments are those of `train`. Raises `VitrailError`
    as `train` does, and `UsageError` if a class or label has fewer images than there are folds, or if there are fewer
    groups.
    """
    plan = make_plan(data, folds, model, recipe, out, changes, resume=resume, final=final)
    if check:
        source, skip = plan.source, plan.recipe.skip_unreadable
        check_before_training(
            source, batch_size=plan.recipe.batch_size, fit=plan.recipe.fit or "pad", skip_unreadable=skip
        )
    if "test" in plan.source.splits:
        log(f"{len(plan.source.splits['test'])} given test images are in no fold")
    options: dict[str, Any] = {
        "model": model,
        "device": device,
        "torch_files": torch_files,
        "logger": logger,
        "report": report,
        "pictures": pictures,
        "check": plan.recipe.skip_unreadable,  # only then do the runs need to know what cannot be read
    }
    runs: list[Run] = []
    outcomes: list[AnyOutcome] = []
    for fold in range(plan.folds):
        log(f"fold {fold + 1} of {plan.folds}")
        run = train_or_resume(plan, plan.fold_source(fold), plan.recipe, f"fold-{fold + 1}", options)
        runs.append(run)
        outcomes.append(predict_fold(run, plan, fold))
    evaluation = evaluate_joined(plan, outcomes)
    result = summarize(plan, runs, evaluation)
    write_json(plan.folder / "cross_validation.json", result)
    write_text(plan.folder / "predictions.csv", format_predictions(outcomes))
    final_run = None
    if final:
        log("final model, on everything")
        uncalibrated = remove_temperature(outcomes, [run.classifier.temperature for run in runs])
        options["callbacks"] = [OutOfFold(join_outcomes(uncalibrated))]
        final_run = train_or_resume(plan, plan.final_source(), plan.final_recipe(runs), "final", options)
    return CrossValidation(plan.folder, runs, cast(Evaluation, evaluation), result, final_run)


@contextmanager
def resume_hint(command: str) -> Iterator[None]:
    """An error within the block gets the hint to resume the cross-validation, instead of the run of one fold."""
    try:
        yield
    except VitrailError as error:
        error.hint = f"the finished folds are kept; continue with: {command}"
        raise


def train_or_resume(plan: Plan, source: Source, recipe: Recipe, name: str, options: Mapping[str, Any]) -> Run:
    """Trains a run in a folder of the cross-validation, resumes it, or returns it if it is finished."""
    out = plan.folder / name
    with resume_hint(plan.command):
        return train(source, recipe=recipe, out=out, resume=RunFolder(out).config_file.exists(), **options)


def predict_fold(run: Run, plan: Plan, fold: int) -> AnyOutcome:
    """Returns the predictions of a fold's run on the images of the fold."""
    listing = plan.fold_source(fold).splits["test"].with_channels(run.classifier.preprocess.source_channels)
    images = encode_labels(listing, run.classifier.classes, plan.source.address)
    recipe = plan.recipe
    return compute_any_outcome(run.classifier, images, workers=recipe.workers, skip_unreadable=recipe.skip_unreadable)
