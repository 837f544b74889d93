"""How long training stands still when a worker or a whole node is killed.

    python -m benchmarks.restarts [--kills 5] [--write docs/scale.md]

Two processes train on `digits`; one is killed (SIGKILL) after its second epoch. Timed is from the kill to the second
row of metrics that comes after it (the first may have been under way): noticing, starting Python and torch again,
meeting, reading the checkpoint, and an epoch or two. The nodes are two network namespaces with a cable between them,
launched by torchrun, for which this must be root.
"""

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.document import replace_table
from vitrail.machine import count_cores, processor_name
from vitrail.runs.folder import RunFolder

SMALL = "--width 32 --depth 2 --heads 2 --mlp-width 64 --epochs 400 --no-check --no-report --quiet"
PATIENCE = 180.0


def main() -> None:
    """Kills, then says and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--write", type=Path, help="put the table into this document")
    arguments = parser.parse_args()
    lines = ["| killed | restarts timed | median | longest |", "| --- | ---: | ---: | ---: |"]
    for name, once in (("a worker of `--processes 2`", worker), ("one of two nodes, with its launcher", node)):
        took = []
        for number in range(arguments.kills):
            took.append(once())
            print(f"{name}, {number + 1}: {took[-1]:.1f} s", file=sys.stderr, flush=True)
        lines.append(f"| {name} | {len(took)} | {statistics.median(took):.1f} s | {max(took):.1f} s |")
    table = "\n".join(
        [
            *lines,
            "",
            f"{count_cores()} cores ({processor_name()}); from the kill to the second epoch recorded after it.",
            "",
        ]
    )
    print(table)
    if arguments.write:
        replace_table(table, "restarts", arguments.write)


def worker() -> float:
    """Seconds that the death of a worker costs, on one machine."""
    with folder() as out:
        words = [sys.executable, "-m", "vitrail", "train", "digits", "--out", str(out), *SMALL.split()]
        with process([*words, "--processes", "2"]) as launcher:
            return between(out, lambda: os.kill(ranks(launcher.pid)[1], signal.SIGKILL))


def node() -> float:
    """Seconds that the death of one of two nodes costs the other."""
    names = [f"restarts-{os.getpid()}-{side}" for side in "ab"]
    ends = [f"r{os.getpid() % 100000}{side}" for side in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            ip("-n", name, "addr", "add", f"10.198.0.{number}/24", "dev", end)
            for device in ("lo", end):
                ip("-n", name, "link", "set", device, "up")
        with folder() as out:
            commands = [
                launch(number, name, end, out) for number, (name, end) in enumerate(zip(names, ends, strict=True))
            ]
            with process(commands[0]), process(commands[1]):

                def kill() -> None:
                    for pid in ip("netns", "pids", names[1]).split():
                        os.kill(int(pid), signal.SIGKILL)

                return between(out, kill)
    finally:
        for name in names:
            for pid in ip("netns", "pids", name).split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", name)


def launch(number: int, name: str, end: str, out: Path) -> list[str]:
    """torchrun on a node; the first is the one where they meet."""
    conf = f"is_host={int(number == 0)},join_timeout=120,last_call_timeout=4"
    torchrun = (
        f"--nnodes=1:2 --nproc-per-node=1 --max-restarts=3 --rdzv-id=nodes --rdzv-backend=c10d --rdzv-conf={conf}"
    )
    meet = ["--rdzv-endpoint=10.198.0.1:29400", f"--local-addr=10.198.0.{number + 1}"]
    program = ["-m", "vitrail", "train", "digits", "--out", str(out), *SMALL.split()]
    entered = ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={end}", sys.executable]
    return [*entered, "-m", "torch.distributed.run", *torchrun.split(), *meet, *program]


def between(out: Path, kill: Callable[[], None]) -> float:
    """Seconds from a kill, after two epochs, to the second epoch after it."""
    wait_for(out, 2)
    there = len(RunFolder(out).load_metrics())
    began = time.monotonic()
    kill()
    wait_for(out, there + 2)
    return time.monotonic() - began


def wait_for(out: Path, epochs: int) -> None:
    """Until so many epochs are recorded."""
    deadline = time.monotonic() + PATIENCE
    while not (out / "metrics.jsonl").exists() or len(RunFolder(out).load_metrics()) < epochs:
        if time.monotonic() > deadline:
            raise SystemExit(f"no epoch {epochs} within {PATIENCE:.0f} s")
        time.sleep(0.02)


def ranks(launcher: int) -> dict[int, int]:
    """The processes that a launcher has started, by rank."""
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        rank = re.search(rb"\0RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
        if rank:
            found[int(rank[1])] = int(pid)
    return found


@contextmanager
def folder() -> Iterator[Path]:
    """A run folder that is gone afterwards."""
    root = Path(tempfile.mkdtemp())
    try:
        yield root / "run"
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def process(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is ended afterwards, with all that it has started."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    running = subprocess.Popen(
        words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield running
    finally:
        for pid in left_of(running.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.wait()


def left_of(session: int) -> list[int]:
    """The processes of a session, whatever groups they have."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            found.append(int(path.parent.name))
    return found


def ip(*words: str) -> str:
    """What the program ip answers."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
