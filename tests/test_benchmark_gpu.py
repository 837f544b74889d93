"""The session of `python -m benchmarks.gpu` on a CPU with the smallest sizes, and its limits."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from benchmarks import gpu
from benchmarks.gpu_session import Recorder, Session


@pytest.mark.scale
@pytest.mark.parametrize("part", gpu.PARTS)
def test_every_part_passes_on_a_cpu_with_the_smallest_sizes(part: str, tmp_path: Path):
    code = gpu.main(["--tiny", "--device", "cpu", "--out", str(tmp_path), "--parts", part])
    outcome = json.loads((tmp_path / "gpu.json").read_text())["parts"][part]
    assert (code, outcome["status"]) == (0, "passed"), (outcome, (tmp_path / f"{part}.log").read_text())
    assert len(outcome["results"]) > 0
    assert json.loads((tmp_path / f"{part}.json").read_text())["results"] == outcome["results"]
    assert outcome["results"][-1]["name"] in (tmp_path / "gpu.md").read_text()


def test_all_parts_fit_into_the_time():
    assert sum(part.limit_s for part in gpu.PARTS.values()) <= 60 * gpu.MINUTES - gpu.END_SECONDS


def hang(session: Session, record: Recorder) -> None:
    record.add("before it hangs", value=1)
    child = subprocess.Popen(["sleep", "600"])
    (session.out / "child").write_text(str(child.pid))
    time.sleep(600)


def crash(session: Session, record: Recorder) -> None:
    record.add("before it crashes", value=1)
    os.abort()


def raise_error(session: Session, record: Recorder) -> None:
    record.add("before the error", value=1)
    raise RuntimeError("no kernel image is available")


def differ(session: Session, record: Recorder) -> None:
    record.compare("close", [1.0, 2.0], [1.0, 2.0001], 1e-3)
    record.compare("apart", [1.0, 2.0], [1.0, 2.1], 1e-3)
    record.compare("not a number", [1.0, float("nan")], [1.0, 2.0], 1e-3)
    record.compare("another shape", [1.0], [1.0, 2.0], 1e-3)


def agree(session: Session, record: Recorder) -> None:
    record.compare("the same", [1.0], [1.0], 0.0)


def test_a_part_that_hangs_crashes_or_fails_ends_alone_and_keeps_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limits = {"hang": (hang, 1.5), "crash": (crash, 30), "error": (raise_error, 30), "differ": (differ, 30)}
    parts = {name: gpu.Part(*each) for name, each in {**limits, "agree": (agree, 30)}.items()}
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    outcomes = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    expected = {"hang": "timed out", "crash": "error", "error": "error", "differ": "failed", "agree": "passed"}
    assert {name: outcome["status"] for name, outcome in outcomes.items()} == expected
    assert [outcomes[name]["results"][0]["value"] for name in ("hang", "crash", "error")] == [1, 1, 1]
    assert outcomes["error"]["error"] == "RuntimeError: no kernel image is available"
    assert [row["passed"] for row in outcomes["differ"]["results"]] == [True, False, False, False]
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    assert not child.exists() or child.read_text().split(")")[1].split()[0] == "Z"


def test_parts_are_left_out_when_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "PARTS", {"agree": gpu.Part(agree, 30)})
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path), "--minutes", "0.01"]) == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["agree"]["status"] == "skipped"


def test_an_unknown_part_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        gpu.main(["--parts", "parity,explode", "--out", str(tmp_path / "out")])
    assert "there is no part 'explode'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
