"""What users get back, for type checkers: here mypy allows no expression whose type has `Any` in it.

`make check` runs them. tests/test_user_code.py runs the code itself.
"""

from pathlib import Path
from typing import assert_type

import vitrail
from vitrail.callbacks import CallbackState
from vitrail.documents import (
    ClassScores,
    Confusion,
    CrossValidationDocument,
    CrossValidationResult,
    EarlyStop,
    EvaluationDocument,
    FoldRow,
    HookScores,
    PartDocument,
    PredictTotals,
    PreprocessDocument,
    RunDocument,
    RunResult,
    ScoredImage,
    Scores,
    SweepResult,
    TrialRow,
)
from vitrail.export_documents import ExportDocument, Int8Document, LibraryDocument
from vitrail.json_types import JsonObject, JsonValue
from vitrail.label_documents import CoOccurrence, LabelScores, MultiLabelDocument, MultiLabelScores, ScoredLabels
from vitrail.number_documents import ErrorsOfNumber, NumberDocument, NumberScores, ScoredNumbers
from vitrail.probe_documents import ProbeDocument
from vitrail.training.recipe_changes import ModelChanges


def read_run(run: vitrail.Run) -> float:
    assert_type(run.result, RunResult)
    assert_type(run.to_json(), RunDocument)
    assert_type(run.result["seconds"], float)
    assert_type(run.result.get("stopped_early"), EarlyStop | None)
    assert_type(run.result.get("probe"), ProbeDocument | None)
    scores = run.result.get("test")
    assert_type(scores, Scores | None)
    if scores is None:
        return 0.0
    assert_type(scores["accuracy_interval"], list[float])
    assert_type(scores["images"], int)
    assert_type(scores.get("top5"), float | None)
    return scores["accuracy"]


def read_evaluation(evaluation: vitrail.Evaluation) -> list[str]:
    assert_type(evaluation.summary(), Scores)
    assert_type(evaluation.averages["macro_f1"], float)
    assert_type(evaluation.metrics, dict[str, float])
    document = evaluation.to_json()
    assert_type(document, EvaluationDocument)
    assert_type(document["per_class"], dict[str, ClassScores])
    assert_type(document["per_class"]["red"]["recall"], float | None)
    assert_type(document["confusion"], Confusion)
    assert_type(document["confusion"]["matrix"], list[list[int]])
    assert_type(document["predictions"], list[ScoredImage])
    return [each["path"] for each in document["predictions"] if each["true"] != each["label"]]


def read_label_evaluation(evaluation: vitrail.MultiLabelEvaluation) -> list[str]:
    assert_type(evaluation.summary(), MultiLabelScores)
    assert_type(evaluation.summary()["map_interval"], list[float] | None)
    assert_type(evaluation.averages["micro_f1"], float)
    assert_type(evaluation.per_class, dict[str, LabelScores])
    document = evaluation.to_json()
    assert_type(document, MultiLabelDocument)
    assert_type(document["co_occurrence"], CoOccurrence)
    assert_type(document["co_occurrence"]["images"], list[list[int]])
    assert_type(document["predictions"], list[ScoredLabels])
    return [each["path"] for each in document["predictions"] if each["true"] != each["labels"]]


def read_number_evaluation(evaluation: vitrail.NumberEvaluation) -> list[str]:
    assert_type(evaluation.summary(), NumberScores)
    assert_type(evaluation.summary()["mae_interval"], list[float] | None)
    assert_type(evaluation.per_number, dict[str, ErrorsOfNumber])
    document = evaluation.to_json()
    assert_type(document, NumberDocument)
    assert_type(document["predictions"], list[ScoredNumbers])
    return [each["path"] for each in document["predictions"] if each["true"] != each["predicted"]]


def read_cross_validation(folds: vitrail.CrossValidation) -> float:
    assert_type(folds.result, CrossValidationResult)
    assert_type(folds.to_json(), CrossValidationDocument)
    assert_type(folds.to_json().get("final"), str | None)
    assert_type(folds.evaluation, vitrail.Evaluation)
    assert_type(folds.result["rows"], list[FoldRow])
    assert_type(folds.result["accuracy_interval"], list[float])
    return max(row.get("accuracy", 0.0) for row in folds.result["rows"]) - folds.result["fold_mean"]["accuracy"]


def read_origin(classifier: vitrail.Classifier | vitrail.ModuleClassifier) -> str | None:
    assert_type(classifier.origin, JsonObject)
    data = classifier.origin.get("data")
    if not isinstance(data, dict):
        return None
    assert_type(data, JsonObject)
    name = data.get("name")
    return name if isinstance(name, str) else None


def read_explanation(explanation: vitrail.Explanation) -> JsonObject:
    assert_type(explanation.to_json(), JsonObject)
    return explanation.to_json()


def read_values(recipe: vitrail.Recipe, preprocess: vitrail.Preprocess) -> vitrail.Preprocess:
    assert_type(recipe.model, ModelChanges)
    assert_type(recipe.model.get("width"), int | None)
    assert_type(recipe.parts(), list[PartDocument])
    assert_type(recipe.to_json(), JsonObject)
    assert_type(recipe.to_json()["epochs"], JsonValue)
    document = preprocess.to_json()
    assert_type(document, PreprocessDocument)
    assert_type(document["image_size"], tuple[int, int])
    return vitrail.Preprocess.from_json(document)


def read_exports(classifier: vitrail.Classifier, out: Path) -> tuple[ExportDocument, LibraryDocument]:
    program = vitrail.export(classifier, out / "model.onnx", format="onnx", map=True)
    assert_type(program.to_json(), ExportDocument)
    assert_type(program.to_json()["outputs"], list[str])
    assert_type(program.to_json().get("map_difference"), float | None)
    assert_type(program.to_json().get("int8"), Int8Document | None)
    folder = vitrail.export(classifier, out / "timm", format="timm")
    assert_type(folder.to_json(), LibraryDocument)
    assert_type(folder.to_json()["agreement"], float | None)
    return program.to_json(), folder.to_json()


def read_probe(probe: vitrail.Probe) -> float | None:
    document = probe.to_json()
    assert_type(document, ProbeDocument)
    assert_type(document["linear"]["penalty"], float)
    assert_type(document["knn"]["k"], int)
    return document["linear"].get("accuracy")


def read_sweep(sweep: vitrail.Sweep) -> dict[str, str | int | float | bool | None]:
    assert_type(sweep.result, SweepResult)
    assert_type(sweep.to_json(), SweepResult)
    assert_type(sweep.best, TrialRow | None)
    assert_type([row.get("accuracy") for row in sweep.result["rows"]], list[float | None])
    return sweep.best["values"] if sweep.best else {}


def read_predictions(predictions: vitrail.Predictions, summary: vitrail.PredictSummary, out: Path) -> list[str]:
    assert_type(predictions.labels, list[str | None])
    assert_type(predictions.errors, dict[int, str])
    assert_type(predictions[0].probabilities, dict[str, float])
    assert_type(predictions.to_columns(), dict[str, list[str | None] | list[float | None]])
    assert_type(predictions.save(out, format="coco"), Path)
    assert_type(summary.to_json(), PredictTotals)
    return [each["path"] for each in summary.to_json()["unreadable_files"]]


class KeepResult(vitrail.Callback):
    """Keeps the result of a run."""

    seconds = 0.0
    loss = 0.0

    def on_evaluation_end(self, state: CallbackState) -> None:
        if state.evaluation is not None:
            assert_type(state.evaluation.scores, HookScores)
            assert_type(state.evaluation.scores.get("accuracy_interval"), list[float] | None)
            self.loss = state.evaluation.scores["loss"]

    def on_run_end(self, state: CallbackState) -> None:
        assert_type(state.result, RunResult | None)
        assert_type(state.stopped_early, EarlyStop | None)
        if state.result is not None:
            self.seconds = state.result["seconds"]
