"""The code that type checkers read runs, too."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitrail
from document_types import check_document
from vitrail import documents, export_documents, probe_documents
from vitrail.parts import PARTS
from vitrail.registry import RULES

sys.path.append(str(Path(__file__).parent / "typing"))

import results
import user_code


def test_the_code_of_a_user_runs(run: vitrail.Run, colors: Path, tmp_path: Path):
    clf, file = run.classifier, next(colors.glob("test/red/*.png"))
    user_code.predict(clf, file)
    user_code.predict_files(clf, run.folder, colors / "test", tmp_path / "predictions")
    user_code.explain_and_export(clf, file, tmp_path)
    assert user_code.handle_errors(clf) == "there is no such file"
    user_code.make_values()
    assert user_code.use_scikit_learn().get_params()["epochs"] == 1
    with pytest.raises(vitrail.UsageError, match="a recipe has no field 'epoch'"):
        user_code.mistype(vitrail.Recipe())
    assert user_code.train_and_evaluate(colors, tmp_path / "run").folder == tmp_path / "run"


@pytest.fixture
def own_parts() -> Iterator[None]:
    """Registers the parts of the user's code, and removes them at the end."""
    before = set(PARTS)
    user_code.register_parts()
    yield
    for kind, name in set(PARTS) - before:
        del RULES[kind].table[name], PARTS[kind, name]


@pytest.mark.usefixtures("own_parts")
def test_parts_callbacks_and_data_of_a_user_train(tmp_path: Path):
    assert len(user_code.train_with_own_parts(tmp_path / "run")) == 4  # a loss per step, until the callback stops it
    assert len(user_code.train_another_model(tmp_path / "other")) == 4


def test_results_are_what_their_types_say(run: vitrail.Run, colors: Path, tmp_path: Path):
    check_document(run.result, documents.RunResult)
    check_document(run.to_json(), documents.RunDocument)
    assert results.read_run(run) > 0.5
    evaluation = vitrail.evaluate(run.classifier, colors, metrics=["macro_f1"])
    check_document(evaluation.summary(), documents.Scores)
    check_document(evaluation.to_json(), documents.EvaluationDocument)
    check_document(evaluation.averages, documents.Averages)
    assert set(results.read_evaluation(evaluation)) <= set(evaluation.outcome.paths)
    probe = vitrail.probe(run.classifier, colors)
    check_document(probe.to_json(), probe_documents.ProbeDocument)
    assert results.read_probe(probe) == probe.to_json()["linear"]["accuracy"]
    assert results.read_origin(run.classifier) == run.classifier.origin["data"]["name"]
    preprocess = run.classifier.preprocess
    check_document(preprocess.to_json(), documents.PreprocessDocument)
    assert results.read_values(vitrail.Recipe(), preprocess) == preprocess
    program, folder = results.read_exports(run.classifier, tmp_path)
    check_document(program, export_documents.ExportDocument)
    check_document(folder, export_documents.LibraryDocument)
    image = next(colors.glob("test/red/*.png"))
    predictions = run.classifier.predict([image])
    summary = vitrail.predict_all(
        run.folder, [image, tmp_path / "gone.png"], tmp_path / "rows", format="csv", processes=1
    )
    check_document(summary.to_json(), documents.PredictTotals)
    assert results.read_predictions(predictions, summary, tmp_path / "out.json") == [str(tmp_path / "gone.png")]
    check_document({**run.result, "seconds": 1.0}, documents.RunResult)
    with pytest.raises(AssertionError):
        check_document({**run.result, "seconds": "1"}, documents.RunResult)


def test_the_result_of_a_stopped_run_is_what_its_type_says(colors: Path, tmp_path: Path):
    keep = results.KeepResult()
    small = dict(epochs=4, width=8, depth=1, heads=1, mlp_width=8, report=False)
    callbacks = [keep, user_code.StopAtStep(1)]
    run = vitrail.train(colors, out=tmp_path / "run", model=None, callbacks=callbacks, **small)
    check_document(run.result, documents.RunResult)
    assert run.result["stopped_early"]["reason"] == "step 1 is reached"
    assert keep.seconds == run.result["seconds"]
    check_document(run.result["test"], documents.HookScores)
    assert keep.loss == run.result["test"]["loss"]
