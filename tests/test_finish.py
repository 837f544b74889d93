"""The end of a run: the score comes first, then pictures and a report that may take a quarter of the training time."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import vitrail
from test_report import random_subject
from vitrail.callbacks import Callback, CallbackState
from vitrail.cli import main
from vitrail.errors import UsageError
from vitrail.evaluation import evaluate
from vitrail.evaluation.evaluation import open_scored_images
from vitrail.interrupts import Interrupted
from vitrail.report.budget import MINIMUM, NO_LIMIT, Budget, fit_sizes
from vitrail.report.collect import collect
from vitrail.report.faithfulness import collect_faithfulness
from vitrail.report.page import render_page
from vitrail.report.subject import SampleSizes
from vitrail.runs import finish
from vitrail.runs.finish import ReportInterrupted
from vitrail.training.curves import draw_curves

TINY = {"epochs": 1, "width": 16, "depth": 1, "heads": 2, "mlp_width": 16}
TINY_OPTIONS = ("--epochs", "1", "--width", "16", "--depth", "1", "--heads", "2", "--mlp-width", "16")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_score_is_printed_before_the_report_and_a_signal_then_loses_nothing(photos: Path):
    out = photos.parent / "run"
    command = [sys.executable, "-m", "vitrail", "train", str(photos), "--out", str(out), *TINY_OPTIONS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert not (out / "report.html").exists()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 130, errors
    result = json.loads((out / "result.json").read_text())
    assert line.startswith(f"test accuracy {result['test']['accuracy']:.4f} (95% interval ")
    assert not (out / "report.html").exists()
    assert f"write it with: vitrail evaluate {out} {photos} --report" in errors


@pytest.mark.usefixtures("pictures")
def test_the_command_that_is_named_writes_the_report(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    class Interrupter(Callback):
        def on_evaluation_end(self, state: CallbackState) -> None:
            if state.evaluation is not None and state.evaluation.is_final:
                assert json.loads((state.folder / "result.json").read_text()) == state.result
                os.kill(os.getpid(), signal.SIGTERM)

    out = photos.parent / "run"
    with pytest.raises(ReportInterrupted) as caught:
        vitrail.train(photos, out=out, callbacks=[Interrupter()], **TINY)
    assert isinstance(caught.value, Interrupted) and caught.value.run.result["test"]["images"] == 12
    _, verb, *arguments = shlex.split(str(caught.value.hint).removeprefix("write it with: "))
    monkeypatch.chdir(photos.parent)
    assert main([verb, *arguments]) == 0
    assert (photos.parent / "reports" / "run" / "report.html").exists()
    capsys.readouterr()
    before = files_of(out)
    assert main(["train", str(photos), "--out", str(out), "--resume"]) == 0
    printed = capsys.readouterr()
    assert f"test accuracy {caught.value.run.result['test']['accuracy']:.4f}" in printed.out
    assert "is finished" in printed.err and "epoch 1/1" not in printed.err
    after = files_of(out)
    assert {"report.html", "report.json", "attention.png", "confusion.png"} <= after.keys() - before.keys()
    assert {name: after[name] for name in before} == before


def test_with_json_a_signal_during_the_report_still_prints_the_scores(photos: Path, monkeypatch, capsys):
    def interrupt(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(finish, "write_run_report", interrupt)
    out = photos.parent / "run"
    assert main(["train", str(photos), "--out", str(out), *TINY_OPTIONS, "--json"]) == 130
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"run": str(out), **json.loads((out / "result.json").read_text())}
    assert "test accuracy" in printed.err and "vitrail evaluate" in printed.err


def test_a_finished_run_without_checkpoints_is_returned_as_it_is(photos: Path):
    run = vitrail.train(photos, out=photos.parent / "run", report=False, **TINY)
    shutil.rmtree(run.folder / "checkpoint")
    before = files_of(run.folder)
    again = vitrail.train(photos, out=run.folder, resume=True, report=False)
    assert again.result == run.result
    assert files_of(run.folder) == before


def test_the_validation_images_are_not_evaluated_again_for_the_score(make_folder, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("evaluated again")

    folder = make_folder("photos", {"train": 12, "val": 20})
    with monkeypatch.context() as patch:
        patch.setattr(finish, "compute_any_outcome", refuse)
        patch.setattr(finish, "evaluate_any", refuse)
        run = vitrail.train(folder, out=folder.parent / "run", report=False, **TINY)
    scored = open_scored_images(run.classifier, folder)
    loaded = vitrail.load(run.folder)
    assert run.result["validation"] == evaluate(loaded, scored.images, optimistic=scored.optimistic).summary()
    (run.folder / "result.json").unlink()  # as if it had been killed before the scores: now they must be computed
    again = vitrail.train(folder, out=run.folder, resume=True, report=False)
    assert again.result["validation"] == run.result["validation"]


def test_resume_starts_a_run_where_there_is_none_and_says_so(photos: Path, capsys):
    out = photos.parent / "run"
    arguments = ["train", str(photos), "--out", str(out), "--resume", "--no-report", *TINY_OPTIONS]
    assert main(arguments) == 0
    first = capsys.readouterr()
    assert f"there is no run in {out} to resume, so a new one starts" in first.err
    assert main(arguments) == 0
    second = capsys.readouterr()
    assert "so a new one starts" not in second.err
    assert second.out == first.out


def test_more_epochs_are_refused_with_the_way_to_train_longer(photos: Path):
    run = vitrail.train(photos, out=photos.parent / "run", report=False, **TINY)
    with pytest.raises(UsageError) as caught:
        vitrail.train(photos, out=run.folder, resume=True, epochs=2, width=32)
    assert "epochs is 2, before 1" in caught.value.sentence and "width is 32, before 16" in caught.value.sentence
    _, command = str(caught.value.hint).split("new run: vitrail ")
    assert shlex.split(command) == ["train", str(photos), "--from", str(run.folder), "--epochs", "2"]


def test_without_time_a_report_has_its_cheap_parts_and_says_what_is_missing():
    subject = random_subject(200, 3)
    subject = replace(subject, splits={"train": random_subject(10, 3).images}, command="vitrail evaluate x y --report")
    complete = SampleSizes()
    assert fit_sizes(subject, complete, NO_LIMIT) == complete
    document, pictures = collect(subject, complete, budget=Budget(0.0))
    shortened = document["shortened_parts"]
    for part in ("attribution", "embedding"):
        assert shortened[part] == {"images": MINIMUM[part], "complete": 200}
    assert shortened["faithfulness"] == {"images": 0, "complete": 64}
    assert document["faithfulness"] is None
    assert document["embedding"]["images"] == MINIMUM["embedding"]
    assert document["attribution"]["images"] == MINIMUM["attribution"]
    page = render_page(document, pictures)
    assert "the faithfulness of maps (0 of 64 images)" in page
    assert "the report of a run takes at most a quarter of the time of training" in page
    assert document["per_class"] and document["confusion"]["matrix"]


def test_enough_time_makes_a_complete_report_and_less_time_a_smaller_one():
    subject = random_subject(200, 3)
    complete = SampleSizes()
    assert fit_sizes(subject, complete, Budget(1e6)) == complete
    sizes = [fit_sizes(subject, complete, Budget(seconds)).faithfulness for seconds in (0.0, 1e6)]
    assert sizes == [0, 64]


def test_faithfulness_stops_when_the_time_is_over():
    subject = random_subject(40, 3)
    steps: list[str] = []
    assert collect_faithfulness(subject, subject.images, NO_LIMIT, steps.append)[0] is not None
    assert steps
    section, reason = collect_faithfulness(subject, subject.images, Budget(0.0), steps.append)
    assert section is None and reason is not None and "a quarter" in reason


def test_the_curves_mark_the_kept_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: (drawn.append(self), path.write_bytes(b"")))
    rows = [{"epoch": n, "train_loss": 1 / n, "validation_accuracy": 0.5} for n in (1, 2, 3)]
    draw_curves(rows, tmp_path / "curves.png", "photos, recipe small", best_x=2)
    (figure,) = drawn
    assert figure.get_suptitle() == "photos, recipe small"
    for axes in figure.axes:
        marks = [line for line in axes.lines if line.get_label() == "kept: epoch 2"]
        assert [list(line.get_xdata()) for line in marks] == [[2, 2]]
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
