"""Sweeps: their spaces, their tables, and that killed processes neither lose nor repeat a trial."""

import csv
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from document_types import check_document
from kills import die_at_operation
from vitrail import console, documents
from vitrail.cli.main import main
from vitrail.cli.parser import Parser
from vitrail.cli.recipe_options import recipe_changes
from vitrail.data.open import open_data
from vitrail.errors import UsageError, VitrailError
from vitrail.installation import install_hint
from vitrail.runs.folder import RunFolder
from vitrail.sweeps import lease, sampling, worker
from vitrail.sweeps import trial as trials
from vitrail.sweeps.config import SweepConfig
from vitrail.sweeps.folder import SweepFolder, create_sweep
from vitrail.sweeps.lease import LeaseObserver
from vitrail.sweeps.results import train_command
from vitrail.sweeps.sampling import find_conflict, propose_values, space_distributions
from vitrail.sweeps.space import (
    Choice,
    Range,
    count_points,
    iterate_points,
    load_space,
    parse_space,
    parse_vary,
    space_to_json,
)
from vitrail.sweeps.study import open_study
from vitrail.training.checkpoint import find_newest_checkpoint
from vitrail.training.recipes import find_recipe

TINY: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 16, "batch_size": 16, "epochs": 3}
VARY = {"lr": "1e-4..1e-1:log", "depth": "1..2", "optimizer": ["adamw", "muon"]}


@pytest.fixture(scope="module")
def whole(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> vitrail.Sweep:
    """A sweep that ran without interruption."""
    out = tmp_path_factory.mktemp("sweeps") / "whole"
    torch.set_num_threads(1)
    return vitrail.sweep(colors, vary=VARY, trials=5, out=out, **tiny_options(depth=None))


def tiny_options(**changes: Any) -> dict[str, Any]:
    """Options of a tiny run; a change to None leaves an option out."""
    return {name: value for name, value in {**TINY, **changes}.items() if value is not None}


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns that are equal in two sweeps with the same results."""
    columns = ("rank", "trial", "state", "values", "accuracy", "accuracy_interval", "loss", "epochs", "run")
    return [{name: row[name] for name in columns} for row in rows]


def make_config(colors: Path, vary: dict[str, Any], **more: Any) -> SweepConfig:
    recipe = find_recipe("small", **TINY)
    defaults = {"data": str(colors), "fingerprint": "x", "validation_images": 6, "epochs": 3, "recipe": recipe}
    return SweepConfig(**{**defaults, "space": parse_space(vary), **more})


# Spaces


@pytest.mark.parametrize(
    ("field", "values", "axis"),
    [
        ("lr", "1e-4..1e-2:log", Range(1e-4, 1e-2, log=True)),
        ("width", "96..192:32", Range(96, 192, step=32, is_integer=True)),
        ("width", {"from": 96, "to": 192, "step": 32}, Range(96, 192, step=32, is_integer=True)),
        ("depth", "1..4", Range(1, 4, is_integer=True)),
        ("label_smoothing", "0..0.2", Range(0.0, 0.2)),
        ("width", "96,128,192", Choice((96, 128, 192))),
        ("width", [96, 128], Choice((96, 128))),
        ("ema_decay", "none, 0.99", Choice((None, 0.99))),
        ("qk_norm", "true,false", Choice((True, False))),
        ("position", "learned,rotary", Choice(("learned", "rotary"))),
        ("size", "Ti,S", Choice(("Ti", "S"))),
        ("image_size", "16,16x32", Choice((16, "16x32"))),
        ("image_size", [16, (16, 32)], Choice((16, "16x32"))),
        ("freeze", "0,2,backbone", Choice((0, 2, "backbone"))),
    ],
)
def test_values_of_a_field(field: str, values: Any, axis: Range | Choice):
    space = parse_space({field: values})
    assert space == {field: axis}
    assert parse_space(json.loads(json.dumps(space_to_json(space)))) == space


@pytest.mark.parametrize(
    ("field", "values", "error"),
    [
        ("lrr", "1..2", "did you mean lr"),
        ("lr", "2..1", "the range 2..1 is empty"),
        ("lr", "1..1", "is empty"),
        ("lr", "-1..1", "must be a number or none, above 0"),
        ("lr", "0..1:log", "starts above 0"),
        ("lr", "1..2:x", "not a range of numbers"),
        ("lr", "a..b", "not a range of numbers"),
        ("lr", "nan..1", "not a number"),
        ("lr", "1e-3..inf", "not a number"),
        ("lr", "1..2:5", "do not lead"),
        ("lr", "1..2:-1", "do not lead"),
        ("lr", {"from": 1, "to": 2, "log": True, "step": 1}, "not both"),
        ("lr", {"from": 1}, "needs from and to"),
        ("lr", {"low": 1, "high": 2}, "a range has no 'high'"),
        ("lr", {"from": 1, "to": 2, "log": "yes"}, "true or false"),
        ("lr", 3, "neither a range nor a list"),
        ("lr", "", "cannot be ''"),
        ("lr", [], "empty list"),
        ("lr", "1,", "cannot be ''"),
        ("lr", "0.1,0.10", "twice"),
        ("depth", "1.5..3", "whole number"),
        ("depth", "0..3", "at least 1"),
        ("width", "96,abc", "cannot be 'abc'"),
        ("optimizer", "adam,muon", "'adam' is not known"),
        ("optimizer", ["adam"], "'adam' is not known"),
        ("optimizer", "1..2", "its values are words"),
        ("position", "nowhere", "not known"),
        ("size", "XXL", "no size 'XXL'"),
        ("qk_norm", "maybe", "true or false"),
        ("flip", "2,3", "at most 1"),
        ("test_fraction", "0.1,0.2", "cannot be varied"),
        ("split_seed", "1..9", "cannot be varied"),
        ("workers", "1..9", "cannot be varied"),
    ],
)
def test_invalid_values_are_rejected(field: str, values: Any, error: str):
    with pytest.raises(UsageError) as caught:
        parse_space({field: values})
    assert error in str(caught.value)


def test_spaces_from_arguments_and_files(tmp_path: Path):
    assert parse_vary(["lr=1..2", "mlp-width=3", "--depth=1"]) == {"lr": "1..2", "mlp_width": "3", "depth": "1"}
    with pytest.raises(UsageError, match="twice"):
        parse_vary(["lr=1", "lr=2"])
    file = tmp_path / "space.toml"
    file.write_text('lr = "1e-4..1e-2:log"\nwidth = [96, 128]\nwarmup_fraction = {from = 0, to = 0.3}\n')
    assert parse_space(load_space(file)) == {
        "lr": Range(1e-4, 1e-2, log=True), "width": Choice((96, 128)), "warmup_fraction": Range(0.0, 0.3)
    }  # fmt: skip
    file.write_text("lr = ")
    with pytest.raises(UsageError, match="is not a space"):
        load_space(file)
    with pytest.raises(UsageError, match="cannot be read"):
        load_space(tmp_path / "nowhere.toml")


def test_finite_spaces():
    space = parse_space({"width": "96..192:32", "depth": "1..2", "flip": "0..1:0.25"})
    points = list(iterate_points(space) or ())
    assert len(points) == count_points(space) == 4 * 2 * 5
    assert points[0] == {"width": 96, "depth": 1, "flip": 0.0}
    assert points[-1] == {"width": 192, "depth": 2, "flip": 1.0}
    assert count_points(parse_space({"lr": "1e-4..1e-2:log"})) is None
    assert iterate_points(parse_space({"lr": "1e-4..1e-2:log"})) is None


def test_proposals_are_in_the_space_and_distinct(colors: Path):
    """Also if the steps end before the range, and if few points are left."""
    import optuna

    vary = {"width": "16..63:16", "depth": "1..3", "dropout": "0..0.5", "lr": "1e-5..1e-1:log", "batch_size": "2..512"}
    config = make_config(colors, vary, trials=40)
    study = optuna.create_study(direction="maximize")
    for number in range(40):
        values = propose_values(config, study.trials)
        assert values is not None and find_conflict(config, values) is None
        assert values["width"] in (16, 32, 48) and values["depth"] in (1, 2, 3)
        trial = optuna.create_trial(
            value=random.Random(number).random(), params=values, distributions=space_distributions(config)
        )
        study.add_trial(trial)
    assert len({repr(sorted(trial.params.items())) for trial in study.trials}) == 40
    few = make_config(colors, {"heads": "1,2,3,4,5", "width": "16,24"}, trials=6)  # 3 and 5 divide no 16, 5 no 24
    study = optuna.create_study(direction="maximize")
    while (values := propose_values(few, study.trials)) is not None:
        study.add_trial(optuna.create_trial(value=0.5, params=values, distributions=space_distributions(few)))
    assert len(study.trials) == 3 + 4


def test_proposals_depend_on_seed_and_history(colors: Path):
    config = make_config(colors, {"lr": "1e-4..1e-2:log", "depth": "1..9"})
    assert propose_values(config, []) == propose_values(config, [])
    other = make_config(colors, {"lr": "1e-4..1e-2:log", "depth": "1..9"}, sweep_seed=1)
    assert propose_values(config, []) != propose_values(other, [])


def test_a_large_space_is_not_enumerated(
    colors: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """One point in a hundred is possible, and none of the first draws."""
    monkeypatch.setattr(sampling, "iterate_points", None)
    monkeypatch.setattr(sampling, "MAX_DRAWS", 2)
    config = make_config(colors, {"width": "16..300", "heads": "16..300"})
    assert all(find_conflict(config, sampling.sample_values(config, [], 0, draw)) for draw in range(2))
    values = propose_values(config, [])
    assert values is not None and find_conflict(config, values) is None
    none = make_config(colors, {"width": "16..300", "heads": "301..999"})
    monkeypatch.setattr(sampling, "MAX_ENUMERATED_POINTS", 9)
    assert propose_values(none, []) is None
    assert "none of 9 random points is possible and new" in capsys.readouterr().err


# Results


@pytest.mark.newest
def test_the_table(whole: vitrail.Sweep, colors: Path):
    rows, result = whole.result["rows"], whole.result
    check_document(whole.to_json(), documents.SweepResult)
    assert sorted(row["trial"] for row in rows) == list(range(5))
    assert result["complete"] + result["pruned"] == 5
    complete = [row for row in rows if row["state"] == "complete"]
    assert [row["rank"] for row in complete] == list(range(1, len(complete) + 1))
    assert rows[: len(complete)] == complete
    ordered = [(-row["accuracy"], row["loss"]) for row in complete]
    assert ordered == sorted(ordered)
    assert whole.best == rows[0]
    for row in rows:
        low, high = row["accuracy_interval"]
        assert low <= row["accuracy"] <= high
        run = RunFolder(whole.folder / row["run"])
        epochs_of_run = run.load_metrics()
        best = max(epochs_of_run, key=lambda each: (each["validation_accuracy"], -each["validation_loss"]))
        assert row["accuracy"] == best["validation_accuracy"]
        assert row["epochs"] == len(epochs_of_run) == (3 if row["state"] == "complete" else row["epochs"])
        recipe = run.load_recipe()
        assert (recipe.lr, recipe.optimizer, recipe.model["depth"]) == (
            row["values"]["lr"], row["values"]["optimizer"], row["values"]["depth"]
        )  # fmt: skip
    written = json.loads((whole.folder / "sweep.json").read_text())
    assert written == result
    with (whole.folder / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["lr"]) for line in lines] == [row["values"]["lr"] for row in rows]
    assert (whole.folder / "slices.png").stat().st_size > 5000
    assert (whole.folder / "parallel.png").stat().st_size > 5000
    if result["importance"]:
        assert sum(result["importance"].values()) == pytest.approx(1, abs=0.01)
        assert set(result["importance"]) == set(VARY)


@pytest.mark.newest
def test_the_best_run_can_be_loaded(whole: vitrail.Sweep, colors: Path):
    assert whole.best is not None
    clf = vitrail.load(whole.folder / whole.best["run"])
    assert clf.classes == ("blue", "green", "red")
    assert set(clf.origin["metrics"]) == {"validation"}


def test_the_command_trains_the_best_trial(whole: vitrail.Sweep):
    """`train` parses it as the recipe of the trial."""
    from vitrail.cli import train as verb

    assert whole.best is not None
    arguments = shlex.split(whole.result["command"])
    assert arguments[:2] == ["vitrail", "train"]
    parser = Parser(allow_abbrev=False)
    verb.add_arguments(parser)
    parsed = parser.parse(arguments[2:])
    recipe = find_recipe(parsed.recipe or "small", **recipe_changes(parsed))
    assert recipe == RunFolder(whole.folder / whole.best["run"]).load_recipe()


def test_commands_for_other_recipes(colors: Path):
    from vitrail.cli import train as verb

    recipe = find_recipe(
        "tutorial", qk_norm=True, position="rotary", image_size=(16, 32), max_grad_norm=2.0, validation_fraction=0.1
    )
    config = make_config(colors, {"ema_decay": "none,0.9", "qkv_bias": "true,false"}, recipe=recipe, model="some/model")
    arguments = shlex.split(train_command(config, {"ema_decay": None, "qkv_bias": False}))
    parser = Parser(allow_abbrev=False)
    verb.add_arguments(parser)
    parsed = parser.parse(arguments[2:])
    assert parsed.model == "some/model"
    assert find_recipe(parsed.recipe, **recipe_changes(parsed)) == recipe.with_changes(ema_decay=None, qkv_bias=False)


def test_trials_read_no_test_image(make_folder: Callable[..., Path], tmp_path: Path):
    """The test images are unreadable, so reading one fails. Only `score_test` reads them."""
    data = make_folder("data", {"train": 12, "test": 4})
    for image in (data / "test").rglob("*.png"):
        image.write_bytes(image.read_bytes()[:60])
    done = vitrail.sweep(data, vary={"lr": [1e-3, 1e-2]}, out=tmp_path / "out", check=False, **tiny_options(epochs=1))
    assert done.result["complete"] == 2
    for row in done.result["rows"]:
        assert "test" not in json.loads((done.folder / row["run"] / "result.json").read_text())
    with pytest.raises(VitrailError, match="test"):
        vitrail.sweep(data, out=done.folder, resume=True, score_test=True)


def copy_sweep(whole: vitrail.Sweep, tmp_path: Path) -> Path:
    """A copy of the sweep in another folder."""
    shutil.copytree(whole.folder, tmp_path / "out")
    return tmp_path / "out"


def test_the_best_is_scored_once(whole: vitrail.Sweep, colors: Path, tmp_path: Path):
    out = copy_sweep(whole, tmp_path)
    done = vitrail.sweep(colors, out=out, resume=True, score_test=True)
    assert done.test_run is not None and done.best is not None
    scores = done.result["best_on_test"]
    check_document(done.to_json(), documents.SweepResult)
    assert scores["trial"] == done.best["trial"] and scores["test"]["images"] == 24
    assert (out / "best" / "report.html").exists()
    trial, best = (vitrail.load(path) for path in (out / done.best["run"], out / "best"))
    assert all(torch.equal(a, b) for a, b in zip(trial.vit.parameters(), best.vit.parameters(), strict=True))
    assert vitrail.sweep(colors, out=out, resume=True).result["best_on_test"] == scores  # the table keeps it
    (out / "best" / "trial.json").write_text(json.dumps({"trial": done.best["trial"] + 1}))
    with pytest.raises(UsageError, match="has been scored on test"):
        vitrail.sweep(colors, out=out, resume=True, score_test=True)


# Failures


def test_a_trial_that_diverges_is_a_failed_trial(colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["sweep", str(colors), "--vary", "lr=1e-3,1e30", "--optimizer", "adamw", "--metric", "loss"]
    arguments += ["--out", str(tmp_path / "out")]
    assert main([*arguments, *options(epochs=2), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    good, bad = result["rows"]
    assert (good["state"], bad["state"]) == ("complete", "failed")
    assert "diverged" in bad["error"]
    assert result["trials"] == 2  # the space has two points
    assert main(["sweep", str(colors), "--resume", "--out", str(tmp_path / "out")]) == 0
    assert "failed" in capsys.readouterr().out


def options(**changes: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in tiny_options(**changes).items()]


def test_an_error_in_every_trial_stops_the_sweep(colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def broken(*arguments: Any, **more: Any) -> None:
        calls.append(1)
        raise RuntimeError("the kernel is missing")

    monkeypatch.setattr(trials, "train", broken)
    with pytest.raises(VitrailError, match="3 trials in a row failed.*the kernel is missing"):
        vitrail.sweep(colors, vary={"lr": "1e-4..1e-2"}, trials=9, out=tmp_path / "out", **TINY)
    assert len(calls) == 3


def test_a_full_disk_leaves_the_trial_unfinished(colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = trials.train

    def full(*arguments: Any, **more: Any) -> None:
        raise VitrailError("no room is left", "make room")

    monkeypatch.setattr(trials, "train", full)
    with pytest.raises(VitrailError, match="no room is left"):
        vitrail.sweep(colors, vary={"lr": [1e-3, 1e-2]}, out=tmp_path / "out", **tiny_options(epochs=1))
    monkeypatch.setattr(trials, "train", real)
    done = vitrail.sweep(colors, out=tmp_path / "out", resume=True)
    assert [row["state"] for row in done.result["rows"]] == ["complete", "complete"]
    assert not any("restarts" in row for row in done.result["rows"])  # its lease was released


@pytest.mark.newest
def test_a_trial_that_crashes_three_processes_has_failed(colors: Path, tmp_path: Path):
    out = tmp_path / "out"
    pid = os.fork()
    if not pid:  # this process begins the sweep and dies in its first trial
        trials.train = lambda *arguments, **more: os.kill(os.getpid(), signal.SIGKILL)
        console.quiet = True
        vitrail.sweep(colors, vary={"lr": [1e-3, 1e-2]}, out=out, **tiny_options(epochs=1))
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    for _ in range(2):
        pid = os.fork()
        if not pid:
            trials.train = lambda *arguments, **more: os.kill(os.getpid(), signal.SIGKILL)
            worker.run_worker(out)
            os._exit(1)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    done = vitrail.sweep(colors, out=out, resume=True)
    good, bad = done.result["rows"]
    check_document(done.to_json(), documents.SweepResult)
    assert (good["trial"], good["state"]) == (1, "complete")
    assert (bad["trial"], bad["state"], bad["restarts"]) == (0, "failed", 3)
    assert "its process died 3 times" in bad["error"]


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"vary": {}}, "needs a field to vary"),
        ({"vary": {"lr": "1..2"}, "trials": 0}, "trials is 0"),
        ({"vary": {"lr": "1..2"}, "processes": 0}, "processes is 0"),
        ({"vary": {"lr": "1..2"}, "ray_address": "head:6379"}, "--ray-address is for Ray"),
        ({"vary": {"lr": "1..2"}, "validation_fraction": 0.0}, "holds out no validation images"),
        ({"vary": {"width": [17, 19]}}, "no trial can have such values: width 17"),
        ({"vary": {"epochs": "1..3"}, "pruner": "median"}, "different lengths"),
        ({"vary": {"lr": "1..2"}, "metric": "luck"}, "metric 'luck' is not known"),
        ({"vary": {"lr": "1..2"}, "device": "abacus"}, "there is no device"),
        ({"vary": {"lr": "1..2"}, "resume": True}, "not a sweep that can be resumed"),
    ],
)
def test_wrong_options_write_nothing(colors: Path, tmp_path: Path, more: dict[str, Any], error: str):
    with pytest.raises(UsageError, match=error):
        vitrail.sweep(colors, out=tmp_path / "out", **{**TINY, **more})
    assert not (tmp_path / "out").exists()


def test_the_error_without_optuna(colors: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=re.escape(f"optuna is not installed ({install_hint('sweep')})")):
        vitrail.sweep(colors, vary={"lr": [1, 2]})


def test_resume_rejects_changed_options(
    whole: vitrail.Sweep, colors: Path, make_folder: Callable[..., Path], tmp_path: Path
):
    (file := tmp_path / "small.toml").write_text("width = 32\n")  # the same name
    for more, error in (
        ({"vary": {"lr": "1e-4..1e-1:log"}}, r"another space \(it differs in depth, optimizer\)"),
        ({"vary": {**VARY, "lr": "1e-4..1e-2:log"}}, r"another space \(it differs in lr\)"),
        ({"width": 32}, "another recipe"),
        ({"recipe": "tutorial"}, "another recipe"),
        ({"sampler": "random"}, "with sampler tpe, not random"),
        ({"trials": 3}, "has 5 trials already"),
        ({"model": "cifar10-small"}, r"with model none, not cifar10-small \(resume it without --from\)"),
        ({"device": "cpu"}, "with device none, not cpu"),
        ({"torch_files": True}, "with torch_files false, not true"),
        ({"recipe": file}, "another recipe"),
    ):
        with pytest.raises(UsageError, match=error):
            vitrail.sweep(colors, out=whole.folder, resume=True, **more)
    with pytest.raises(UsageError, match="was started on"):
        vitrail.sweep(make_folder("other", 8), out=whole.folder, resume=True)
    with pytest.raises(UsageError, match="is not empty"):
        vitrail.sweep(colors, vary=VARY, out=whole.folder)
    for more in ({"mlp_width": 16}, {"recipe": "small", **tiny_options(depth=None)}):
        again = vitrail.sweep(colors, out=whole.folder, resume=True, vary=VARY, sampler="tpe", **more)
        assert comparable(again.result["rows"]) == comparable(whole.result["rows"])


def test_damaged_files_are_named(whole: vitrail.Sweep, colors: Path, tmp_path: Path):
    out = tmp_path / "out"
    (out / "locks").mkdir(parents=True)
    for damage in ("{", "[]", '{"data": 1}', "[" * 100_000):
        (out / "config.json").write_text(damage)
        with pytest.raises(VitrailError, match="is damaged"):
            vitrail.sweep(colors, out=out, resume=True)
    (out / "config.json").write_bytes((whole.folder / "config.json").read_bytes())
    (out / "study.db").write_bytes(b"no database" * 1000)
    with pytest.raises(VitrailError, match=r"study.db cannot be used"):
        vitrail.sweep(colors, out=out, resume=True)


# Kills


@pytest.mark.newest
def test_kills_do_not_change_the_result(whole: vitrail.Sweep, colors: Path, tmp_path: Path):
    """All processes but the last are killed at a random file operation; no trial is lost, repeated or changed."""
    out, draw, kills = tmp_path / "killed", random.Random(5), 0
    resume = False
    while True:
        pid = os.fork()
        if not pid:
            code = 70
            try:
                console.quiet, trials.MAX_CRASHES = True, 99
                if kills < 6:
                    die_at_operation(1 + int(draw.expovariate(1 / 12)), draw.random() < 0.5)
                more: dict[str, Any] = (
                    {"resume": True} if resume else {"vary": VARY, "trials": 5, **tiny_options(depth=None)}
                )
                vitrail.sweep(colors, out=out, **more)
                code = 0
            except BaseException as error:
                print(repr(error), file=sys.stderr)
            finally:
                os._exit(code)
        draw.random()  # the next process dies elsewhere
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        resume = (out / "config.json").exists()
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
    assert kills >= 4
    rows = json.loads((out / "sweep.json").read_text())["rows"]
    assert comparable(rows) == comparable(whole.result["rows"])
    for row in rows:
        ours, theirs = (folder / row["run"] / "classifier.safetensors" for folder in (out, whole.folder))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.newest
def test_one_process_holds_a_lease(tmp_path: Path):
    path = tmp_path / "locks" / "000"
    first = LeaseObserver().take(path)
    assert first is not None and not first.was_abandoned
    assert LeaseObserver().take(path) is None
    first.release()
    second = LeaseObserver().take(path)
    assert second is not None and not second.was_abandoned
    second.release()


def test_a_lease_of_another_machine_ends_with_its_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The lock is free, as on a file system whose locks do not work across machines."""
    path, observer = tmp_path / "000", LeaseObserver()
    path.write_text(json.dumps({"machine": "another", "process": 1}))
    monkeypatch.setattr(lease, "HEARTBEAT_TIMEOUT_S", 0.2)
    assert observer.take(path) is None  # seen for the first time
    time.sleep(0.3)
    os.utime(path)  # a heartbeat
    assert observer.take(path) is None
    time.sleep(0.3)
    taken = observer.take(path)
    assert taken is not None and taken.was_abandoned
    taken.release()


def test_a_trial_that_another_machine_has_taken_is_not_recorded(colors: Path, tmp_path: Path):
    """The other machine took this process for dead."""
    out = tmp_path / "out"
    config = make_config(colors, {"lr": [1e-3]}, pruner="none", fingerprint=open_data(colors).fingerprint)
    folder = create_sweep(config, out)
    theirs = json.dumps({"machine": "another", "process": 1})

    def take_over(number: int, row: Any) -> None:
        if number == 0 and row is not None:
            folder.lock_path(0).write_text(theirs)
            scores = {"accuracy": 0.25, "accuracy_interval": [0.1, 0.5], "loss": 1.0, "epochs": 3, "seconds": 1.0}
            with open_study(folder, config) as study:
                study.open_trial(0).set_user_attr("scores", scores)
                study.end_trial(0, "COMPLETE", 0.25)

    worker.run_worker(out, take_over)
    assert folder.lock_path(0).read_text() == theirs  # the lease of the other machine is not released
    (row,) = json.loads((out / "sweep.json").read_text())["rows"]
    assert (row["state"], row["accuracy"]) == ("complete", 0.25)


@pytest.mark.parametrize(
    ("nodes", "count", "plan"),
    [
        ([(8, 0), (8, 0)], 1, (1, 8, False)),  # a task runs on one node
        ([(8, 0), (8, 0)], 3, (3, 4, False)),
        ([(8, 0), (8, 0)], None, (12, 1, False)),  # at most the number of trials
        ([(2, 0), (1, 0)], None, (3, 1, False)),
        ([(16, 2), (64, 0)], None, (2, 8, True)),  # with GPUs, the cores of their nodes
        ([(16, 2), (64, 0)], 4, (4, 8, True)),  # two at a time
        ([(0, 0)], None, (1, 1, False)),  # nodes with cores may join
    ],
)
def test_a_ray_task_fits_on_a_node(nodes: list[Any], count: int | None, plan: tuple[int, int, bool]):
    from vitrail.sweeps.ray import plan_tasks

    assert plan_tasks([{"CPU": cores, "GPU": gpus} for cores, gpus in nodes], count, 12) == plan


@pytest.mark.scale
@pytest.mark.timeout(600)
def test_processes_share_a_sweep_and_one_is_killed(colors: Path, tmp_path: Path):
    """One of two worker processes is killed in a trial: the sweep prints it, and every trial runs once."""
    out = tmp_path / "out"
    arguments = ["--vary", "lr=1e-4..1e-1:log", "--pruner", "none", "--trials", "4", "--processes", "2", "--json"]
    with start_sweep(colors, out, *arguments, *options(epochs=12)) as running:
        number, victim = find_running_trial(out)
        os.kill(victim, signal.SIGKILL)
        answer, log = running.communicate(timeout=500)
    assert running.returncode == 0, log
    assert f"process {victim} was killed (signal 9)" in log
    rows = json.loads(answer)["rows"]
    assert Counter(row["trial"] for row in rows) == dict.fromkeys(range(4), 1)
    assert {row["state"] for row in rows} == {"complete"}
    assert next(row for row in rows if row["trial"] == number)["restarts"] == 1
    for row in rows:
        assert [each["epoch"] for each in RunFolder(out / row["run"]).load_metrics()] == list(range(1, 13))


@contextmanager
def start_sweep(data: Path, out: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep of the command line in its own process, which is killed at the end."""
    command = [sys.executable, "-m", "vitrail", "sweep", str(data), "--out", str(out), "--no-check", *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=single_threaded(), start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def single_threaded() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def find_running_trial(out: Path) -> tuple[int, int]:
    """A trial that has completed some epochs, and its process."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        for path in sorted((out / "trials").glob("*")):
            lock = SweepFolder(out).lock_path(int(path.name))
            done = len(RunFolder(path).load_metrics())
            if 1 <= done < 10 and lock.exists() and (content := lock.read_text()):
                return int(path.name), json.loads(content)["process"]
        time.sleep(0.01)
    raise AssertionError("no trial was running")


@pytest.mark.scale
@pytest.mark.timeout(600)
def test_ctrl_c_saves_the_trial_and_prints_the_resume_command(colors: Path, tmp_path: Path):
    out = tmp_path / "out"
    with start_sweep(colors, out, "--vary", "lr=1e-3,1e-2", *options(epochs=40)) as running:
        number, process = find_running_trial(out)
        assert process == running.pid
        running.send_signal(signal.SIGINT)
        log = running.communicate(timeout=300)[1]
    assert running.returncode == 130
    assert f"vitrail sweep {colors} --resume --out {out}" in log
    assert find_newest_checkpoint(out / "trials" / f"{number:03d}" / "checkpoint") is not None
    taken = LeaseObserver().take(SweepFolder(out).lock_path(number))
    assert taken is not None and not taken.was_abandoned  # the lease was released
    taken.release()


def test_more_trials_extend_a_sweep(whole: vitrail.Sweep, colors: Path, tmp_path: Path):
    out = copy_sweep(whole, tmp_path)
    more = vitrail.sweep(colors, out=out, resume=True, trials=6)
    rows = {row["trial"]: row for row in more.result["rows"]}
    assert sorted(rows) == list(range(6)) and rows[5]["accuracy"] is not None
    for row in whole.result["rows"]:
        assert comparable([{**rows[row["trial"]], "rank": None}]) == comparable([{**row, "rank": None}])
