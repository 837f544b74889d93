"""Training by several processes that the command line and torchrun start, and that are killed, stopped or joined."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import COLORS, fill
from test_distributed import load_rows, process_environment

pytestmark = [pytest.mark.scale, pytest.mark.timeout(600)]
EPOCHS = 14


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes, with test images."""
    return fill(tmp_path_factory.mktemp("data") / "photos", {"train": 21, "test": 5}, tuple(COLORS), (16, 16))


def train_arguments(data: Path, out: Path, *more: object) -> list[str]:
    """Returns the arguments of a small `vitrail train`."""
    options = {
        "width": 16, "depth": 2, "heads": 2, "mlp-width": 32, "patch": 4, "precision": "fp32",
        "validation-fraction": 0.2, "mixup": 0.4, "batch-size": 8,
    }  # fmt: skip
    flags = [argument for name, value in options.items() for argument in (f"--{name}", value)]
    return [str(argument) for argument in ("train", data, "--out", out, "--no-check", "--no-report", *flags, *more)]


PROCESSES: list[subprocess.Popen] = []


def start(command: list[str]) -> subprocess.Popen:
    process = subprocess.Popen(
        command, env=process_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    PROCESSES.append(process)
    return process


@pytest.fixture(autouse=True)
def _kill_processes():
    """Kills the processes of a failed test; the workers of a killed launcher end by themselves."""
    yield
    for process in PROCESSES:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()
    PROCESSES.clear()


def wait_for_rows(run: Path, n: int, process: subprocess.Popen, seconds: float = 500) -> None:
    """Waits until a run has recorded `n` epochs."""
    deadline = time.monotonic() + seconds
    while len(load_rows(run)) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until(condition: Callable[[], bool], seconds: float = 500) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def worker_pids(launcher: subprocess.Popen) -> list[int]:
    """Returns the process ids of a launcher's workers, by rank."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = {}
    for pid in children:
        variables = dict(
            pair.split("=", 1) for pair in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in pair
        )
        if "RANK" in variables:
            ranks[int(variables["RANK"])] = int(pid)
    return [ranks[rank] for rank in sorted(ranks)]


def wait_for_end(process: subprocess.Popen, seconds: float = 500) -> tuple[int, str, str]:
    """Returns exit code, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def single_rows(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The metrics of a run by one process."""
    out = tmp_path_factory.mktemp("single") / "run"
    code, _, err = wait_for_end(
        start([sys.executable, "-m", "vitrail", *train_arguments(photos, out, "--epochs", EPOCHS)])
    )
    assert code == 0, err
    return load_rows(out)


def assert_same_losses(actual: list[dict], expected: list[dict]) -> None:
    """Asserts that both have the same epochs, and the same losses except for rounding."""
    for key in ("epoch", "step"):
        assert [row[key] for row in actual] == [row[key] for row in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=5e-4)


def test_a_killed_worker_is_restarted_and_no_epoch_is_lost(photos: Path, single_rows: list[dict], tmp_path: Path):
    out = tmp_path / "run"
    arguments = train_arguments(photos, out, "--epochs", EPOCHS, "--processes", 2, "--json")
    launcher = start([sys.executable, "-m", "vitrail", *arguments])
    wait_for_rows(out, 2, launcher)
    os.kill(worker_pids(launcher)[1], signal.SIGKILL)
    code, printed, err = wait_for_end(launcher)
    assert code == 0, err
    assert err.count("continuing after step") == 1
    assert json.loads(printed)["test"]["images"] == 15  # one process prints the result
    assert_same_losses(load_rows(out), single_rows)


def test_an_interrupted_launch_can_be_resumed_by_one_process(photos: Path, single_rows: list[dict], tmp_path: Path):
    out = tmp_path / "run"
    launcher = start(
        [sys.executable, "-m", "vitrail", *train_arguments(photos, out, "--epochs", EPOCHS, "--processes", 3)]
    )
    wait_for_rows(out, 1, launcher)
    launcher.send_signal(signal.SIGINT)
    code, _, err = wait_for_end(launcher)
    assert code == 130, err
    assert re.search(r"error: stopped at step \d+ and saved\nhint: continue with: vitrail train .* --resume --out", err)
    assert len(load_rows(out)) < EPOCHS
    code, _, err = wait_for_end(
        start([sys.executable, "-m", "vitrail", "train", str(photos), "--resume", "--out", str(out)])
    )
    assert code == 0, err
    assert "the number of processes was 3, is 1: the result will be as good, but not the same to the last bit" in err
    assert_same_losses(load_rows(out), single_rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes", 0], "--processes: 0 is too small"),
        (["--processes", 2, "--fsdp", "--optimizer", "muon"], "Muon needs whole matrices, and --fsdp shards them"),
    ],
)
def test_impossible_options_are_reported_once_and_not_retried(photos: Path, tmp_path: Path, flags, message: str):
    launcher = start([sys.executable, "-m", "vitrail", *train_arguments(photos, tmp_path / "run", *flags)])
    code, _, err = wait_for_end(launcher)
    assert code == 2
    assert err.count(message) == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture
def two_nodes():
    """Two network namespaces with a virtual cable between them: (name, interface) of each."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and ip (apt install iproute2)")
    names = [f"vitrail-{os.getpid()}-{letter}" for letter in "ab"]
    interfaces = [f"v{os.getpid() % 100000}{letter}" for letter in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            peer = ("peer", "name", interfaces[1], "netns", names[1])
            ip("link", "add", interfaces[0], "netns", names[0], "type", "veth", *peer)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        for number, (name, interface) in enumerate(zip(names, interfaces, strict=True), 1):
            ip("-n", name, "addr", "add", f"10.199.0.{number}/24", "dev", interface)
            for device in ("lo", interface):
                ip("-n", name, "link", "set", device, "up")
        yield list(zip(names, interfaces, strict=True))
    finally:
        for name in names:
            listing = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in listing.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def torchrun(
    number: int, name: str, interface: str, *arguments: object, variable: str = "VITRAIL="
) -> subprocess.Popen:
    """Starts vitrail by torchrun on node 0, which hosts the rendezvous, or node 1."""
    conf = f"is_host={int(number == 0)},join_timeout=120,last_call_timeout=4"
    options = [
        "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-id=nodes", "--rdzv-backend=c10d",
        "--rdzv-endpoint=10.199.0.1:29400", f"--local-addr=10.199.0.{number + 1}", f"--rdzv-conf={conf}",
    ]  # fmt: skip
    python = ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={interface}", variable, sys.executable]
    return start([*python, "-m", "torch.distributed.run", *options, "-m", "vitrail", *map(str, arguments)])


def node_pids(name: str) -> list[int]:
    """Returns the process ids of a node."""
    listing = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    return [int(pid) for pid in listing.stdout.split()]


def test_training_continues_on_one_node_when_the_other_is_lost(
    photos: Path, single_rows: list[dict], tmp_path: Path, two_nodes
):
    out = tmp_path / "run"
    arguments = train_arguments(photos, out, "--epochs", EPOCHS)
    launchers = [torchrun(number, *node, *arguments) for number, node in enumerate(two_nodes)]
    wait_for_rows(out, 2, launchers[0])
    for pid in node_pids(two_nodes[1][0]):  # launcher and worker at once
        os.kill(pid, signal.SIGKILL)
    code, _, err = wait_for_end(launchers[0])
    wait_for_end(launchers[1])
    assert code == 0, err
    assert "2 processes" in err
    assert "the number of processes was 2, is 1" in err
    assert_same_losses(load_rows(out), single_rows)


def test_a_node_can_join_later(photos: Path, tmp_path: Path, two_nodes):
    out = tmp_path / "run"
    arguments = train_arguments(photos, out, "--epochs", 2000)
    variable = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"  # else torchrun's own launchers wait for each other forever
    launchers = [torchrun(0, *two_nodes[0], *arguments, variable=variable)]
    wait_for_rows(out, 2, launchers[0])
    launchers.append(torchrun(1, *two_nodes[1], *arguments, variable=variable))
    second = two_nodes[1][0]
    wait_until(
        lambda: any(b"\0WORLD_SIZE=2\0" in Path(f"/proc/{pid}/environ").read_bytes() for pid in node_pids(second))
    )
    wait_for_rows(out, len(load_rows(out)) + 3, launchers[0])
    launchers[0].send_signal(signal.SIGINT)
    code, _, err = wait_for_end(launchers[0])
    assert code != 0
    assert "the number of processes was 1, is 2" in err
    assert [row["epoch"] for row in load_rows(out)] == list(range(1, len(load_rows(out)) + 1))
