"""Parts of the benchmarks that need no measurement."""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks import augmentation, cancels, serving, time_to_accuracy
from benchmarks.throughput import describe_ratios

from vitrail.benchmarking.candidates import VITRAIL, Candidate
from vitrail.benchmarking.results import make_rows
from vitrail.benchmarking.timing import Timing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beside", "none", "--curve", "there"], "--curve is drawn at the pace of the recipe that --beside names"),
        (["--also", "nowhere"], "nowhere has no metrics.jsonl"),
    ],
)
def test_wrong_arguments_are_refused_before_any_run(
    arguments, message, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("there/metrics.jsonl").touch()
    monkeypatch.setattr(time_to_accuracy, "train_recipe", lambda *args, **options: pytest.fail("it ran"))
    monkeypatch.setattr(sys, "argv", ["time_to_accuracy", "data", *arguments])
    with pytest.raises(SystemExit):
        time_to_accuracy.main()
    assert message in capsys.readouterr().err


def test_vitrail_is_compared_with_the_fastest_peer():
    seconds = {(VITRAIL, "fast"): 2.0, ("timm", "fp32"): 4.0, ("timm", "bf16"): 1.0, ("torchvision", "fp32"): 3.0}
    timings = {Candidate(*who, lambda: lambda: None): Timing((each,) * 3) for who, each in seconds.items()}
    assert describe_ratios(make_rows(timings, 8)) == ["best peer timm bf16 8.0 images/s;", "fast 0.50 (0.50 to 0.50);"]
    ours = {each: timing for each, timing in timings.items() if each.library == VITRAIL}
    assert describe_ratios(make_rows(ours, 8)) == ["no peers"]


def test_a_failed_connection_counts_as_a_failure():
    responses: list[serving.Response] = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    asyncio.run(serving.run_client(port, [b""], 0, time.perf_counter() + 0.1, responses))
    assert {response.status for response in responses} == {0}


def test_waiting_for_a_silent_server_times_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cancels, "TIMEOUT_S", 0.1)
    line = json.dumps({"event": "listening", "url": "http://127.0.0.1:1/"})
    command = [sys.executable, "-c", f"import sys; print({line!r}, file=sys.stderr)"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        log = cancels.ServerLog(process)
        process.wait()
        with pytest.raises(TimeoutError, match="did not log ready"):
            log.wait("ready")


def test_an_error_while_killing_is_raised():
    """The log names no worker process, so the task that kills it fails at once."""
    with subprocess.Popen(["true"], stderr=subprocess.PIPE, text=True) as process:
        log = cancels.ServerLog(process)
    arguments = argparse.Namespace(requests=1, clients=1, disconnect_fraction=0, kills=1, kill_interval_s=0)
    with pytest.raises(RuntimeError):
        asyncio.run(cancels.send_requests(1, cancels.build_classifier(), log, arguments))


def test_kinds_of_augmentation_are_trained_once_and_compared(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(augmentation, "KINDS", {name: augmentation.KINDS[name] for name in ("none", "all")})
    out = tmp_path / "rows.jsonl"
    arguments = ["augmentation", "digits", "--images", "2", "--epochs", "1", "--seeds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    augmentation.main()
    written = out.read_text()
    first, second = map(json.loads, written.splitlines())
    assert (first["kind"], second["kind"]) == ("none", "all") and first["images"] == second["images"] == 20
    assert f"| none | 1 | {first['train_accuracy']:.1%} | {first['test_accuracy']:.1%} |" in capsys.readouterr().out
    augmentation.main()
    assert out.read_text() == written
