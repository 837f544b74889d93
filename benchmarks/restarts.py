"""How long training pauses after a worker or a whole node is killed.

    python -m benchmarks.restarts [--kills 5] [--write docs/scale.md]

Two processes train on `digits`; one is killed (SIGKILL) after the second epoch. The time is from the kill to the second
row of metrics after it (the first row may belong to an epoch that had almost ended): noticing the loss, starting Python
and torch, the rendezvous, reading the checkpoint, and an epoch or two. The nodes are two network namespaces with a
virtual cable between them, launched by torchrun; this needs root.
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

OPTIONS = "--width 32 --depth 2 --heads 2 --mlp-width 64 --epochs 400 --no-check --no-report --quiet"
TIMEOUT_S = 180.0


def main() -> None:
    """Runs the benchmark, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--write", type=Path, help="put the table into this document")
    arguments = parser.parse_args()
    lines = ["| killed | restarts timed | median | longest |", "| --- | ---: | ---: | ---: |"]
    for name, measure in (
        ("a worker of `--processes 2`", time_worker_loss),
        ("one of two nodes, with its launcher", time_node_loss),
    ):
        seconds: list[float] = []
        for number in range(arguments.kills):
            seconds.append(measure())
            print(f"{name}, {number + 1}: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
        lines.append(f"| {name} | {len(seconds)} | {statistics.median(seconds):.1f} s | {max(seconds):.1f} s |")
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


def time_worker_loss() -> float:
    """Seconds after the death of a worker, on one machine."""
    with run_folder() as out:
        command = [sys.executable, "-m", "vitrail", "train", "digits", "--out", str(out), *OPTIONS.split()]
        with started([*command, "--processes", "2"]) as launcher:
            return time_recovery(out, lambda: os.kill(find_ranks(launcher.pid)[1], signal.SIGKILL))


def time_node_loss() -> float:
    """Seconds after the death of one of two nodes."""
    names = [f"restarts-{os.getpid()}-{letter}" for letter in "ab"]
    interfaces = [f"r{os.getpid() % 100000}{letter}" for letter in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ends = [[interface, "netns", name] for interface, name in zip(interfaces, names, strict=True)]
        ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for number, (name, interface) in enumerate(zip(names, interfaces, strict=True), 1):
            ip("-n", name, "addr", "add", f"10.198.0.{number}/24", "dev", interface)
            for device in ("lo", interface):
                ip("-n", name, "link", "set", device, "up")
        with run_folder() as out:
            commands = [
                launch_command(number, name, interface, out)
                for number, (name, interface) in enumerate(zip(names, interfaces, strict=True))
            ]
            with started(commands[0]), started(commands[1]):

                def kill() -> None:
                    for pid in ip("netns", "pids", names[1]).split():
                        os.kill(int(pid), signal.SIGKILL)

                return time_recovery(out, kill)
    finally:
        for name in names:
            for pid in ip("netns", "pids", name).split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", name)


def launch_command(number: int, name: str, interface: str, out: Path) -> list[str]:
    """torchrun on a node; node 0 hosts the rendezvous."""
    conf = f"is_host={int(number == 0)},join_timeout=120,last_call_timeout=4"
    torchrun = (
        f"--nnodes=1:2 --nproc-per-node=1 --max-restarts=3 --rdzv-id=nodes --rdzv-backend=c10d --rdzv-conf={conf}"
    )
    rendezvous = ["--rdzv-endpoint=10.198.0.1:29400", f"--local-addr=10.198.0.{number + 1}"]
    program = ["-m", "vitrail", "train", "digits", "--out", str(out), *OPTIONS.split()]
    in_namespace = ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={interface}", sys.executable]
    return [*in_namespace, "-m", "torch.distributed.run", *torchrun.split(), *rendezvous, *program]


def time_recovery(out: Path, kill: Callable[[], None]) -> float:
    """Seconds from a kill after two epochs to the second epoch after it."""
    wait_for_epochs(out, 2)
    recorded = len(RunFolder(out).load_metrics())
    started_at = time.monotonic()
    kill()
    wait_for_epochs(out, recorded + 2)
    return time.monotonic() - started_at


def wait_for_epochs(out: Path, epochs: int) -> None:
    """Waits until a run has recorded this number of epochs."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (out / "metrics.jsonl").exists() or len(RunFolder(out).load_metrics()) < epochs:
        if time.monotonic() > deadline:
            raise SystemExit(f"no epoch {epochs} within {TIMEOUT_S:.0f} s")
        time.sleep(0.02)


def find_ranks(launcher: int) -> dict[int, int]:
    """The process ids of a launcher's workers, by rank."""
    pids = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        rank = re.search(rb"\0RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
        if rank:
            pids[int(rank[1])] = int(pid)
    return pids


@contextmanager
def run_folder() -> Iterator[Path]:
    """A path for a run folder, which is deleted at the end."""
    root = Path(tempfile.mkdtemp())
    try:
        yield root / "run"
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A running command; it and all that it has started are killed at the end."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        for pid in list_session(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def list_session(session: int) -> list[int]:
    """The process ids of a session, in all its process groups."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            pids.append(int(path.parent.name))
    return pids


def ip(*arguments: str) -> str:
    """Runs the program ip; returns its output."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
