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
    EarlyStop,
    EvaluationDocument,
    PredictTotals,
    ProbeDocument,
    RunDocument,
    RunResult,
    ScoredImage,
    Scores,
    SweepResult,
    TrialRow,
)


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
    assert_type([row["accuracy"] for row in sweep.result["rows"]], list[float | None])
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

    def on_run_end(self, state: CallbackState) -> None:
        assert_type(state.result, RunResult | None)
        assert_type(state.stopped_early, EarlyStop | None)
        if state.result is not None:
            self.seconds = state.result["seconds"]
