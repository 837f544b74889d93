"""Cross-validation: a run for each fold, the scores of all out-of-fold predictions, and a final model on everything.

RUN/
  folds.json                 how it was started; a resume reads it
  fold-1/  fold-2/  ...      an ordinary run each: trained on the other folds, scored on its own
  cross_validation.json      the scores of the folds, their mean and deviation, and those of all predictions together
  predictions.csv            the prediction of each image by the fold that has not trained on it
  final/                     with `final`: a run on all images
"""

import csv
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

import numpy as np

from vitrail.callbacks.loggers import Logger
from vitrail.console import log
from vitrail.data.addresses import PYTHON_PREFIX
from vitrail.data.check import check_before_training
from vitrail.data.folds import assign_folds
from vitrail.data.open import open_source
from vitrail.data.python_data import Data
from vitrail.data.source import Listing, Source, encode_labels, name_of_data
from vitrail.documents import CrossValidationDocument, CrossValidationResult, FoldRow
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation import Evaluation, Outcome, evaluate
from vitrail.evaluation.calibration import calibrate
from vitrail.files import create_json, read_json_object, write_json, write_text
from vitrail.runs.claim import RUNS, check_out
from vitrail.runs.folder import RunFolder
from vitrail.runs.names import newest_folder, numbered_folders
from vitrail.runs.pretrained import Model
from vitrail.runs.resolve import RESULT_NEUTRAL_FIELDS, request_recipe
from vitrail.runs.result import Run
from vitrail.runs.train import train
from vitrail.tasks import refuse_task
from vitrail.training.recipe import Recipe, flatten_recipe, recipe_from_json
from vitrail.training.recipe_changes import TrainChanges

CONFIG_FILE = "folds.json"
Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"]
METRICS: tuple[Metric, ...] = get_args(Metric)
INTERVAL = (
    "95%, of the out-of-fold predictions of all images together. It covers the choice of images, not the variation "
    "between trainings. The folds share training images, so their deviation gives no interval."
)


@dataclass(frozen=True)
class CrossValidation:
    """The runs of all folds, the evaluation of all out-of-fold predictions, and the final run if there is one."""

    folder: Path
    runs: list[Run]
    evaluation: Evaluation
    result: CrossValidationResult
    final: Run | None = None

    def __repr__(self) -> str:
        """A line with the scores; `result` has everything."""
        return f"CrossValidation({str(self.folder)!r}: {len(self.runs)} folds, accuracy {self.result['accuracy']:.4f})"

    def to_json(self) -> CrossValidationDocument:
        """Returns the folder and the scores, as cross_validation.json has them."""
        document: CrossValidationDocument = {
            "run": str(self.folder),
            **self.result,  # type: ignore[typeddict-item]  # mypy: `final` could be in it
        }
        if self.final:
            document["final"] = str(self.final.folder)
        return document


@dataclass(frozen=True)
class Plan:
    """What a cross-validation trains, and where."""

    source: Source
    listing: Listing  # the images that are divided into folds
    fold_of: np.ndarray  # (n,), from 0
    recipe: Recipe
    folder: Path
    command: str  # that resumes it

    @property
    def folds(self) -> int:
        return int(self.fold_of.max()) + 1

    def fold_source(self, fold: int) -> Source:
        """Returns the data of a fold: its images are for test, those of the other folds for training."""
        held = self.fold_of == fold
        parts = {"train": self.listing.subset(np.flatnonzero(~held)), "test": self.listing.subset(np.flatnonzero(held))}
        return self.part_source(parts | self.source_split("validation"))

    def final_source(self) -> Source:
        """Returns the data of the final run: all images are for training, besides given validation and test images."""
        return self.part_source({"train": self.listing} | self.source_split("validation") | self.source_split("test"))

    def source_split(self, split: str) -> dict[str, Listing]:
        """Returns a split that the source has."""
        return {split: self.source.splits[split]} if split in self.source.splits else {}

    def part_source(self, splits: dict[str, Listing]) -> Source:
        return replace(self.source, splits=splits, notes=[], left_out=[], address=f"{PYTHON_PREFIX}{self.source.name}")

    def final_recipe(self, runs: list[Run]) -> Recipe:
        """Returns the recipe of the final run, which has no validation images unless the data has some.

        It trains for the median of the folds' best epochs if the recipe stops early.
        """
        if "validation" in self.source.splits:
            return self.recipe
        changes: dict[str, Any] = {"validation_fraction": 0.0}
        if self.recipe.patience is not None:
            best = [run.result["best_epoch"] for run in runs if "best_epoch" in run.result]
            changes |= {"patience": None, "epochs": max(1, round(float(np.median(best))))}
        return replace(self.recipe, **changes)


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

    Folds are stratified by class and never divide a group or identical images; the recipe's `split_seed` chooses them.
    Of data that is split, the training images are divided; given validation images select the weights in every fold,
    and given test images are in no fold. `final` trains a model on everything afterwards, in OUT/final. `resume`
    continues at the fold that is not finished. The other arguments are those of `train`. Raises `VitrailError` as
    `train` does, and `UsageError` if a class has fewer images than there are folds, or if there are fewer groups.
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
    runs, outcomes = [], []
    for fold in range(plan.folds):
        log(f"fold {fold + 1} of {plan.folds}")
        run = train_or_resume(plan, plan.fold_source(fold), plan.recipe, f"fold-{fold + 1}", options)
        runs.append(run)
        outcomes.append(predict_fold(run, plan, fold))
    evaluation = Evaluation(
        join_outcomes(outcomes), f"the {len(plan.listing)} images of {plan.source.name}, out of fold"
    )
    result = summarize(plan, runs, evaluation)
    write_json(plan.folder / "cross_validation.json", result)
    write_text(plan.folder / "predictions.csv", format_predictions(plan, evaluation.outcome, outcomes))
    final_run = None
    if final:
        log("final model, on everything")
        final_run = train_or_resume(plan, plan.final_source(), plan.final_recipe(runs), "final", options)
        final_run = calibrate_final(final_run, runs, outcomes)
    return CrossValidation(plan.folder, runs, evaluation, result, final_run)


def make_plan(
    data: Data,
    folds: int,
    model: Model | None,
    recipe: str | Path | Recipe | None,
    out: str | Path | None,
    changes: Mapping[str, Any],
    *,
    resume: bool,
    final: bool,
) -> Plan:
    """Opens the data, divides it, and begins or finds the folder; raises as `cross_validate`."""
    name = name_of_data(data)
    folder = find_folder(name, out) if resume else None
    config = read_config(folder) if folder else None
    requested = resume_recipe(config, recipe, changes) if config else request_recipe(recipe, model, changes)
    source = open_source(
        data, missing_ok=requested.skip_unreadable, task=requested.task, group_pattern=requested.group_pattern
    )
    refuse_task(source.task, "folds")
    origin = next((split for split in ("all", "train") if split in source.splits), None)
    if origin is None:
        raise VitrailError(f"{source.address} has no training images", "add a folder named train")
    fingerprint = source.fingerprint
    if config and (config["fingerprint"], config["folds"]) != (fingerprint, folds):
        what = "data" if config["fingerprint"] != fingerprint else f"number of folds, {config['folds']}"
        raise UsageError(f"{folder} was started with another {what}", "resume it as it was started")
    fold_of = assign_folds(source.splits[origin], folds, requested.split_seed)
    if folder is None or config is None:
        config = {"data": source.address, "folds": folds, "fingerprint": fingerprint, "recipe": requested.to_json()}
        folder = begin_folder(config, name, out)
    # the runs get images that have their groups already
    applied = replace(requested, group_pattern=None)
    command = resume_command(source.address, folds, folder, model, final)
    return Plan(source, source.splits[origin], fold_of, applied, folder, command)


def find_folder(name: str, out: str | Path | None) -> Path:
    """Returns `out`, or the newest of runs/NAME, runs/NAME-2, ... that is a cross-validation."""
    if out is not None:
        return Path(out)
    return newest_folder(numbered_folders(RUNS, name), lambda path: (path / CONFIG_FILE).exists())


def begin_folder(config: dict[str, Any], name: str, out: str | Path | None) -> Path:
    """Makes the folder and writes its folds.json; raises `UsageError` if the folder is taken."""
    check_out(out)
    paths = numbered_folders(RUNS, name) if out is None else iter([Path(out)])
    folder = next(path for path in paths if out is not None or not path.exists())
    folder.mkdir(parents=True, exist_ok=True)
    create_json(folder / CONFIG_FILE, config)
    return folder


def read_config(folder: Path) -> dict[str, Any] | None:
    """Returns the content of folds.json; None if there is no cross-validation yet."""
    path = folder / CONFIG_FILE
    if not path.exists():
        return None
    try:
        config = read_json_object(path)
        return config | {"recipe": recipe_from_json(config["recipe"]), "folds": int(config["folds"])}
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise VitrailError(f"{path} is damaged ({error!r})", "start a new cross-validation") from None


def resume_recipe(config: dict[str, Any], recipe: str | Path | Recipe | None, changes: Mapping[str, Any]) -> Recipe:
    """Returns the recipe that was started with; raises `UsageError` for another one. Some fields may change."""
    started: Recipe = config["recipe"]
    started = started.with_changes(**{name: changes[name] for name in RESULT_NEUTRAL_FIELDS if name in changes})
    before, now = flatten_recipe(started), flatten_recipe(started.with_changes(**changes))
    if isinstance(recipe, Recipe):
        now = flatten_recipe(recipe.with_changes(**changes))
    elif recipe is not None and str(recipe) != started.name:
        now = {**now, "recipe": str(recipe)}
    if different := [name for name in now if now[name] != before.get(name)]:
        raise UsageError(
            f"the cross-validation was started with another recipe: {different[0]} is {now[different[0]]}, before "
            f"{before.get(different[0])}",
            "resume it without recipe options",
        )
    return started


def resume_command(address: str, folds: int, folder: Path, model: Model | None, final: bool) -> str:
    """Returns what resumes a cross-validation: a command, or for data or a model of Python a call."""
    if address.startswith(PYTHON_PREFIX) or not (model is None or isinstance(model, str | Path)):
        options = ", model=model" * (model is not None) + ", final=True" * final
        return f"vitrail.cross_validate(data, {folds}, resume=True, out={str(folder)!r}{options})"
    command = ["vitrail", "train", address, "--folds", str(folds), "--resume", "--out", str(folder)]
    command += ["--from", str(model)] if model is not None else []
    return shlex.join(command + ["--final"] * final)


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


def predict_fold(run: Run, plan: Plan, fold: int) -> Outcome:
    """Returns the predictions of a fold's run on the images of the fold."""
    listing = plan.fold_source(fold).splits["test"].with_channels(run.classifier.preprocess.source_channels)
    images = encode_labels(listing, run.classifier.classes, plan.source.address)
    recipe = plan.recipe
    scored = evaluate(
        run.classifier, images, batch_size=256, workers=recipe.workers, skip_unreadable=recipe.skip_unreadable
    )
    return scored.outcome


def join_outcomes(outcomes: list[Outcome]) -> Outcome:
    """Returns the outcomes of all folds as one."""
    first = outcomes[0]
    groups = None if first.groups is None else tuple(group for each in outcomes for group in each.groups or ())
    return Outcome(
        [path for each in outcomes for path in each.paths],
        np.concatenate([each.labels for each in outcomes]),
        np.concatenate([each.logits for each in outcomes]),
        first.classes,
        tuple(error for each in outcomes for error in each.unreadable),
        groups,
    )


def summarize(plan: Plan, runs: list[Run], evaluation: Evaluation) -> CrossValidationResult:
    """Returns the scores of the folds, their mean and standard deviation, and those of all predictions together."""
    rows: list[FoldRow] = []
    for fold, run in enumerate(runs, 1):
        scores = run.result["test"]
        row: FoldRow = {
            "fold": fold,
            "run": str(run.folder),
            "images": scores["images"],
            "accuracy": scores["accuracy"],
            "balanced_accuracy": scores["balanced_accuracy"],
            "macro_f1": scores["macro_f1"],
            "loss": scores["loss"],
            "best_epoch": run.result.get("best_epoch"),
            "seconds": run.result["seconds"],
        }
        rows.append(row)
    values = {name: np.array([row[name] for row in rows]) for name in METRICS}
    return {
        "data": evaluation.description,
        "folds": len(runs),
        "recipe": plan.recipe.name,
        **evaluation.summary(),
        "interval": INTERVAL,
        "fold_mean": {name: float(each.mean()) for name, each in values.items()},
        "fold_sd": {name: float(each.std(ddof=1)) for name, each in values.items()},
        "rows": rows,
        "seconds": round(sum(run.result["seconds"] for run in runs), 3),
    }


def format_predictions(plan: Plan, pooled: Outcome, outcomes: list[Outcome]) -> str:
    """Returns the out-of-fold predictions as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["path", "fold", "true", "predicted", "probability", *(["group"] if pooled.groups else [])])
    for fold, outcome in enumerate(outcomes, 1):
        groups = [[group] for group in outcome.groups] if outcome.groups else [[]] * len(outcome.paths)
        rows = zip(outcome.paths, outcome.labels, outcome.predicted, outcome.confidence, groups, strict=True)
        for path, true, predicted, probability, group in rows:
            classes = outcome.classes
            writer.writerow([path, fold, classes[true], classes[predicted], f"{probability:.6f}", *group])
    return buffer.getvalue()


def calibrate_final(run: Run, runs: list[Run], outcomes: list[Outcome]) -> Run:
    """Returns the final run with a temperature fitted on the out-of-fold predictions, unless validation gave it one."""
    classifier = run.classifier
    if "calibration" in classifier.origin:
        return run
    uncalibrated = [
        replace(outcome, logits=outcome.logits * fold.classifier.temperature)
        for fold, outcome in zip(runs, outcomes, strict=True)
    ]
    fitted = calibrate(join_outcomes(uncalibrated))
    origin = {**classifier.origin, "calibration": {**fitted.to_json(), "fitted_on": "out-of-fold"}}
    classifier = replace(classifier, temperature=fitted.temperature, origin=origin)
    classifier.save(RunFolder(run.folder).artifact)
    return replace(run, classifier=classifier)


def describe_cross_validation(result: CrossValidationResult) -> list[str]:
    """Returns the lines below the table of folds: means, and the scores of all predictions with their intervals."""
    means = ", ".join(
        f"{name.replace('_', ' ')} {result['fold_mean'][name]:.4f} (sd {result['fold_sd'][name]:.4f})"
        for name in METRICS
    )
    low, high = result["accuracy_interval"]
    what = "groups" if "groups" in result else "images"
    return [
        f"mean of {result['folds']} folds: {means}",
        f"all {result['images']} out-of-fold predictions: accuracy {result['accuracy']:.4f} (95% interval {low:.4f} to "
        f"{high:.4f}, of other {what}; not of other trainings)",
    ]
