"""A session on a GPU in one command, at most nine minutes: checks against the CPU, speed beside timm, and CIFAR-10.

    python -m benchmarks.gpu [--data cifar10] [--out gpu] [--parts parity,train] [--minutes 9] [--device NAME] [--tiny]

Each part runs in a process of its own with a time limit of its own; one that fails, hangs or crashes ends alone. Each
result is written to OUT/PART.json as soon as it is there, and OUT/gpu.json and OUT/gpu.md after each part. What a part
prints is in OUT/PART.log. The exit code is 1 if a part did not pass. `--tiny` runs everything with the smallest
sizes, to check on a CPU that it works. Needs `pip install 'vitrail[bench,test]'`.
"""

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import gpu_checks, gpu_speed
from benchmarks.gpu_session import Recorder, Session, explain_error
from vitrail.files import write_json, write_text

MINUTES = 9.0
END_SECONDS = 2.0  # to write the last results


@dataclass(frozen=True)
class Part:
    """What a part runs, and its limit in seconds."""

    run: Callable[[Session, Recorder], None]
    limit_s: float


PARTS: dict[str, Part] = {
    "machine": Part(gpu_checks.describe, 20),
    "parity": Part(gpu_checks.compare_with_cpu, 40),
    "recording": Part(gpu_checks.compare_recordings, 15),
    "explanations": Part(gpu_checks.compare_explanations, 25),
    "train": Part(gpu_checks.train_in_each_precision, 45),
    "resume": Part(gpu_checks.resume_a_run, 25),
    "predict": Part(gpu_checks.predict_a_folder, 25),
    "export": Part(gpu_checks.export_programs, 40),
    "serve": Part(gpu_checks.serve_batches, 45),
    "inference": Part(gpu_speed.time_inference, 40),
    "training": Part(gpu_speed.time_training, 40),
    "compiled": Part(gpu_speed.time_compiled_training, 55),
    "accuracy": Part(gpu_speed.train_to_accuracy, 115),
}


@dataclass
class Outcome:
    """How a part ended: passed, failed (a check), error, timed out, or skipped for lack of time."""

    status: str
    seconds: float = 0.0
    limit_s: float = 0.0
    error: str | None = None
    results: list[dict[str, Any]] = field(default_factory=list)


def run_part(name: str, part: Part, session: Session, limit_s: float) -> Outcome:
    """Runs a part in a fork, which is killed at the limit; returns how it ended, with the results until then."""
    recorder = Recorder(session.out / f"{name}.json")
    recorder.path.unlink(missing_ok=True)  # of an earlier session
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        os._exit(run_in_fork(name, part, replace(session, limit_s=limit_s), recorder))
    code = wait_for_exit(process, started + limit_s)
    seconds = round(time.monotonic() - started, 1)
    document = json.loads(recorder.path.read_text()) if recorder.path.exists() else {}
    results, error = document.get("results", []), document.get("error")
    if code is None:
        status, error = "timed out", f"it had not ended after {limit_s:.0f} s"
    elif code != 0 or error:
        status, error = "error", error or f"its process ended with {code}"
    else:
        status = "failed" if any(row.get("passed") is False for row in results) else "passed"
    return Outcome(status, seconds, round(limit_s, 1), error, results)


def run_in_fork(name: str, part: Part, session: Session, recorder: Recorder) -> int:
    """Runs a part in this process, whose output goes to a file; returns the exit code."""
    try:
        os.setsid()  # the processes that the part starts end with it
        with (session.out / f"{name}.log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stdout = sys.stderr = log
            try:
                part.run(session, recorder)
            except BaseException as error:
                traceback.print_exc(file=log)
                recorder.fail(explain_error(error))
        return 0
    except BaseException:
        return 70


def wait_for_exit(process: int, deadline: float) -> int | None:
    """Returns the exit code of a part, or None if it had to be killed; no process of the part stays."""
    code: int | None = None
    while code is None and time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.02)
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:  # all have ended, or the fork has no group yet
        if code is None:
            os.kill(process, signal.SIGKILL)
    if code is None:
        os.waitpid(process, 0)
    return code


def run_session(session: Session, parts: Mapping[str, Part], minutes: float) -> dict[str, Outcome]:
    """Runs the parts one after another, writes the results after each, and returns them."""
    end = time.monotonic() + 60 * minutes - END_SECONDS
    outcomes: dict[str, Outcome] = {}
    for name, part in parts.items():
        limit_s = min(part.limit_s, end - time.monotonic())
        outcomes[name] = run_part(name, part, session, limit_s) if limit_s > 1 else Outcome("skipped")
        print(f"{name}: {outcomes[name].status}, {outcomes[name].seconds:g} s", file=sys.stderr, flush=True)
        document = {part_name: asdict(outcome) for part_name, outcome in outcomes.items()}
        write_json(session.out / "gpu.json", {"minutes": minutes, "tiny": session.tiny, "parts": document})
        write_text(session.out / "gpu.md", format_markdown(outcomes))
    return outcomes


def format_markdown(outcomes: Mapping[str, Outcome]) -> str:
    """The results as Markdown: a table of the parts, then the results of each."""
    lines = ["| part | result | seconds |", "| --- | --- | --: |"]
    lines += [f"| {name} | {outcome.status} | {outcome.seconds:g} |" for name, outcome in outcomes.items()]
    for name, outcome in outcomes.items():
        lines += ["", f"#### {name}", ""]
        lines += [f"{outcome.error}", ""] if outcome.error else []
        lines += [f"- {describe_result(row)}" for row in outcome.results]
    return "\n".join(lines) + "\n"


def describe_result(row: Mapping[str, Any]) -> str:
    """A result as a phrase."""
    values = {key: value for key, value in row.items() if key not in ("name", "passed")}
    phrase = ", ".join(f"{key} {format_value(value)}" for key, value in values.items())
    verdict = {True: "passed; ", False: "**failed**; "}.get(row.get("passed"), "")  # type: ignore[arg-type]
    return f"{row['name']}: {verdict}{phrase}"


def format_value(value: object) -> str:
    """A figure with four digits, everything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    """Runs the session; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="what `accuracy` trains on (default: cifar10)")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--parts", default=",".join(PARTS), help="separated by commas (default: all)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for all parts (default: {MINUTES:g})")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to check that it runs")
    options = parser.parse_args(arguments)
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    session = Session(options.device, options.out.resolve(), options.data, options.tiny)
    patience = 10 if options.tiny else 1  # a CPU may be busy
    parts = {name: replace(PARTS[name], limit_s=patience * PARTS[name].limit_s) for name in names}
    outcomes = run_session(session, parts, patience * options.minutes)
    print(json.dumps({"out": str(options.out), "parts": {name: each.status for name, each in outcomes.items()}}))
    return int(any(outcome.status != "passed" for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
