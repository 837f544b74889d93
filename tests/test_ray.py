"""Sweeps and training on a Ray cluster with killed workers, if ray and optuna are installed."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitrail
from test_serve_ray import find_descendants
from vitrail.errors import UsageError, VitrailError
from vitrail.runs.folder import RunFolder
from vitrail.sweeps.folder import SweepFolder

pytestmark = [pytest.mark.scale, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]
TINY: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 16, "batch_size": 12, "optimizer": "adamw"}


def run_in_thread(function: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    """Starts a thread that calls a function; returns it and the list of what the function raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """Calls a function until it returns something true; returns that."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the condition was not met"
        time.sleep(0.02)
    return value


def test_a_sweep_survives_a_killed_ray_task(ray_cluster: Any, colors: Path, tmp_path: Path):
    """Every trial runs once; the killed one resumes from its checkpoint."""
    pytest.importorskip("optuna")
    out = tmp_path / "out"
    killed: list[int] = []

    def kill() -> None:
        def find_running_trial() -> int | None:
            for path in sorted((out / "trials").glob("*")):
                content = SweepFolder(out).lock_path(int(path.name)).read_text()
                if content and 2 <= len(RunFolder(path).load_metrics()) < 10:
                    killed.append(int(path.name))
                    return int(json.loads(content)["process"])
            return None

        os.kill(wait_for(find_running_trial), signal.SIGKILL)

    thread, raised = run_in_thread(kill)
    done = vitrail.sweep(colors, vary={"lr": "1e-4..1e-2:log"}, trials=4, pruner="none", out=out, engine="ray",
                         processes=2, epochs=14, check=False, **TINY)  # fmt: skip
    thread.join()
    assert not raised
    rows = done.result["rows"]
    assert Counter(row["trial"] for row in rows) == dict.fromkeys(range(4), 1)
    assert {row["state"] for row in rows} == {"complete"}
    assert next(row for row in rows if row["trial"] == killed[0])["restarts"] == 1
    for row in rows:
        assert [each["epoch"] for each in RunFolder(out / row["run"]).load_metrics()] == list(range(1, 15))
    resumed = vitrail.sweep(colors, out=out, resume=True)  # without Ray
    assert resumed.result["rows"] == rows


def test_ray_train_resumes_after_a_worker_is_killed(ray_cluster: Any, colors: Path, tmp_path: Path):
    """One of two processes is killed: the run ends with the losses of an undisturbed run."""
    from vitrail.runs.ray import train_on_ray

    out = tmp_path / "out"

    def kill() -> None:
        def has_trained() -> bool:
            return 3 <= len(RunFolder(out).load_metrics()) < 15

        wait_for(has_trained)
        os.kill(find_descendants(b"RayTrainWorker")[-1], signal.SIGKILL)

    thread, raised = run_in_thread(kill)
    options = {"epochs": 24, "report": False, "check": False, "precision": "fp32", **TINY}
    done = train_on_ray(colors, out=out, processes=2, restarts=2, **options)
    thread.join()
    assert not raised
    rows = RunFolder(out).load_metrics()
    assert [row["epoch"] for row in rows] == list(range(1, 25))
    assert done.result["test"]["images"] == 24
    assert not list(out.parent.glob(".ray-*"))
    single = vitrail.train(colors, out=tmp_path / "single", **options)  # the same global batches in one process
    for ours, theirs in zip(rows, RunFolder(single.folder).load_metrics(), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)


def test_errors_that_a_restart_cannot_repair_are_raised_at_once(ray_cluster: Any, colors: Path, tmp_path: Path):
    from vitrail.runs.ray import train_on_ray

    with pytest.raises(VitrailError, match="diverged"):
        train_on_ray(colors, out=tmp_path / "out", processes=1, epochs=2, report=False, check=False,
                     **{**TINY, "lr": 1e30})  # fmt: skip
    with pytest.raises(UsageError, match="is not empty"):
        train_on_ray(colors, out=tmp_path / "out", processes=1, **TINY)


def test_wrong_options_need_no_cluster(colors: Path, tmp_path: Path):
    from vitrail.runs.ray import train_on_ray

    for more, error in (
        ({"processes": 0}, "no number is from"),
        ({"processes": (3, 2)}, "no number is from"),
        ({"restarts": -1}, "restarts is -1"),
        ({"recipe": "smal"}, "no recipe 'smal'"),
        ({"epochs": -1}, "epochs is -1"),
        ({"resume": True, "out": colors}, "not a run that can be resumed"),
    ):
        with pytest.raises(UsageError, match=error):
            train_on_ray(colors, **{"out": tmp_path / "out", **more})
