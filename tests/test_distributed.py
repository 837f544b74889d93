"""Training by several processes: the same batches, losses and counts as by one, also after processes are lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError, HashStore

import vitrail
from conftest import COLORS, fill
from vitrail.errors import UsageError
from vitrail.runs.folder import RunFolder
from vitrail.training import rendezvous
from vitrail.training.distributed import PeerLost, init_process_group, is_connection_error
from vitrail.training.launch import current_launch
from vitrail.training.rendezvous import agree_on_attempt

pytestmark = [pytest.mark.scale, pytest.mark.timeout(600)]
needs_records = pytest.mark.xdist_group("records")  # tests of a group share its fixtures in one process of pytest
needs_single_rows = pytest.mark.xdist_group("single rows")

EPOCHS = 14
TINY = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 32, "patch": 4, "precision": "fp32", "check": False}
MIXED = {
    "mixup": 0.4, "cutmix": 1.0, "crop": "padded", "ema_decay": 0.9, "validation_fraction": 0.2, "optimizer": "adamw",
    "lr": 3e-3,
}  # fmt: skip
FROM_FILES = {"image_cache_gib": 0, "workers": 0, "skip_unreadable": True}  # damage is then found while training
DAMAGED = [f"train/green/{i}.png" for i in (0, 3, 4, 11, 15, 18)]  # some are in validation


def process_environment() -> dict[str, str]:
    """Returns the environment variables of a training process."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    source = Path(__file__).parents[1] / "src"
    return inherited | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(source)}


def run_ranks(size: int, folder: Path, scenarios: dict[str, dict]) -> dict[str, list[dict]]:
    """Runs the scenarios by `size` processes of `ranks.py`; returns the record of each rank by scenario."""
    folder.mkdir()
    for name, options in scenarios.items():
        shutil.copytree(options["data"], folder / "data" / name)  # the scenarios damage their data
    scenarios = {name: {**options, "data": str(folder / "data" / name)} for name, options in scenarios.items()}
    script = str(Path(__file__).parent / "ranks.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(size), str(folder), json.dumps(scenarios)],
            env=process_environment(),
        )
        for rank in range(size)
    ]
    try:
        codes = [process.wait(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * size
    names = [*scenarios, "world"]
    return {name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(size)] for name in names}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes, with test images."""
    return fill(tmp_path_factory.mktemp("data") / "photos", {"train": 21, "test": 5}, tuple(COLORS), (16, 16))


@pytest.fixture(scope="module")
def pretrained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights other runs start from."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    return vitrail.train(photos, out=out, epochs=1, batch_size=16, report=False, **TINY).folder


LORA = {
    "recipe": "lora",
    "lora_rank": 2,
    "lora_target": "blocks",
    "ema_decay": 0.9,
    "precision": "fp32",
    "check": False,
}
MEMORY_SAVING = {"lora": LORA, "checkpointing": {**TINY, "gradient_checkpointing": True}}
SHORT = {"batch_size": 16, "epochs": 2}


@pytest.fixture(scope="module")
def records(
    photos: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, list[dict]]]:
    """Records of the same training by 1, 2 and 3 processes.

    Two processes also train a sharded model, uninterrupted and resumed, and with the options that save memory.
    """
    pytest.importorskip("peft")
    data = {"data": str(photos)}
    common = {**TINY, **MIXED, **FROM_FILES, **data, "damaged": DAMAGED, "batch_size": 8}
    scenarios = {
        "plain": {**common, "epochs": 8},  # 51 images, 7 steps per epoch, the last with 3 images
        "accumulated": {**common, "epochs": 8, "accumulation_steps": 3},
    }
    sharded = {**TINY, **MIXED, **data, "batch_size": 16, "epochs": 3, "fsdp": True}
    of_two = {
        **{name: {**common, "epochs": 2, "accumulation_steps": 2, "fsdp": name == "fsdp"} for name in ("ddp", "fsdp")},
        "uninterrupted": sharded,
        "stopped": {**sharded, "stop_after": 1},
        "resumed": {**data, "out": "stopped", "resume": True, "fsdp": True, "check": False},
        "lora": {**data, **SHORT, **LORA, "model": str(pretrained)},
        "checkpointing": {**data, **SHORT, **MEMORY_SAVING["checkpointing"]},
    }
    folder = tmp_path_factory.mktemp("records")
    return {
        size: run_ranks(size, folder / str(size), {**scenarios, **(of_two if size == 2 else {})}) for size in (1, 2, 3)
    }


def join_micro_batches(by_rank: list[dict]) -> dict[tuple[int, int], list[str]]:
    """Returns (step, micro-batch) -> the hashes of its images with their targets, over all ranks in order."""
    hashes: dict[tuple[int, int], list[str]] = {}
    for record in by_rank:
        for step, index, image_hashes in record["micro_batches"]:
            hashes.setdefault((step, index), []).extend(image_hashes)
    return hashes


@needs_records
@pytest.mark.parametrize("scenario", ["plain", "accumulated"])
@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_train_on_the_batches_of_one_process(records, size: int, scenario: str):
    single, several = join_micro_batches(records[1][scenario]), join_micro_batches(records[size][scenario])
    assert len(single) >= 50
    assert single == several
    assert len({image for images in single.values() for image in images}) > 300  # mixing makes them all different
    assert min(len(images) for images in single.values()) < size  # some shards were empty


@needs_records
@pytest.mark.parametrize("scenario", ["plain", "accumulated"])
@pytest.mark.parametrize("size", [2, 3])
def test_losses_counts_and_gradients_are_those_of_one_process(records, size: int, scenario: str):
    (single,), several = records[1][scenario], records[size][scenario]
    assert len(single["steps"]) >= 50
    for record in several:
        for actual, expected in zip(record["steps"], single["steps"], strict=True):
            step, loss, _, images, grad_norm = expected
            assert actual[0] == step
            assert actual[3] == images  # without the unreadable ones
            assert actual[1] == pytest.approx(loss, abs=2e-4)
            assert actual[4] == pytest.approx(grad_norm, rel=2e-3)
        assert record["steps"] == several[0]["steps"]


@needs_records
@pytest.mark.parametrize("scenario", ["plain", "accumulated"])
@pytest.mark.parametrize("size", [2, 3])
def test_every_validation_image_is_scored_once_and_unreadable_ones_are_counted(records, size: int, scenario: str):
    (single,), several = records[1][scenario], records[size][scenario]
    for actual, expected in zip(several[0]["rows"], single["rows"], strict=True):
        assert actual["unreadable"] == expected["unreadable"] > 0
        assert actual["validation_accuracy"] == pytest.approx(expected["validation_accuracy"])
        assert actual["validation_loss"] == pytest.approx(expected["validation_loss"], abs=2e-4)

    def sum_validations(by_rank: list[dict]) -> list[tuple[int, int]]:
        """Returns (images, correct) of each validation, over all ranks."""
        validations = zip(*(record["validations"] for record in by_rank), strict=True)
        return [tuple(map(sum, zip(*counts, strict=True))) for counts in validations]

    assert sum_validations(several) == sum_validations([single])
    assert all(record["result"] == several[0]["result"] for record in several)  # every process returns the run
    assert several[0]["result"]["test"]["images"] == single["result"]["test"]["images"] == 15


@needs_records
def test_a_sharded_model_trains_like_a_replicated_one(records):
    ddp, fsdp = records[2]["ddp"][0], records[2]["fsdp"][0]
    assert len(fsdp["steps"]) == len(ddp["steps"]) >= 12
    for actual, expected in zip(fsdp["steps"], ddp["steps"], strict=True):
        assert actual[1] == pytest.approx(expected[1], abs=1e-5)
        assert actual[4] == pytest.approx(expected[4], rel=1e-4)
    assert fsdp["validations"] == ddp["validations"]
    assert fsdp["result"]["test"]["loss"] == pytest.approx(ddp["result"]["test"]["loss"], abs=1e-4)


@needs_records
def test_a_resumed_sharded_run_ends_with_the_same_bits(records):
    names = ("uninterrupted", "stopped", "resumed")
    for uninterrupted, stopped, resumed in zip(*(records[2][name] for name in names), strict=True):
        assert len(stopped["steps"]) == 4  # 51 images
        assert stopped["steps"] + resumed["steps"] == uninterrupted["steps"]
        assert resumed["result"]["test"] == uninterrupted["result"]["test"]


@needs_records
@pytest.mark.parametrize("name", MEMORY_SAVING)
def test_lora_and_gradient_checkpointing_work_with_two_processes(
    records, photos: Path, pretrained: Path, tmp_path: Path, name: str
):
    model = {"model": pretrained} if name == "lora" else {}
    single = vitrail.train(photos, out=tmp_path / "run", report=False, **SHORT, **MEMORY_SAVING[name], **model)
    for actual, expected in zip(records[2][name][0]["rows"], load_rows(single.folder), strict=True):
        assert actual.keys() == expected.keys()
        for metric in {"train_loss", "validation_loss"} & expected.keys():  # epoch 0 has no training loss
            assert actual[metric] == pytest.approx(expected[metric], abs=2e-4)


@needs_records
@pytest.mark.parametrize("size", [1, 2, 3])
def test_collectives_return_the_same_in_all_processes(records, size: int):
    for results in records[size]["world"]:
        assert results["errors"] == [f"only the {which} process fails (all must know)" for which in ("last", "main")]
        assert results["sums"] == [size * (size - 1) / 2, size, True, False]
        assert results["broadcast"] == results["on_main"] == 0
        assert results["gathered"] == list(range(size))


def attempt_ids(store: HashStore, size: int) -> set[str]:
    """Returns the ids of one attempt that its processes, each in a thread, agree on."""
    with ThreadPoolExecutor(size) as threads:
        ranks = [threads.submit(agree_on_attempt, store, rank, size) for rank in reversed(range(size))]
        return {rank.result(timeout=60) for rank in ranks}


def test_an_attempt_ignores_the_processes_of_an_earlier_one():
    store = HashStore()
    store.set("vitrail/attempt", "dead")  # its rank 0 died before the others came
    store.set("vitrail/dead/nonce/1", "dead too")
    attempts = [attempt_ids(store, size) for size in (3, 3, 2, 4)]  # the launcher keeps the store
    assert all(len(ids) == 1 for ids in attempts)
    assert len(set.union(*attempts)) == 4
    assert "dead" not in set.union(*attempts)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        # gloo on CPUs, from killed, stopped and crashed processes
        (
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:28047: "
            "Connection reset by peer. This is typically caused by a remote worker hanging",
            True,
        ),
        ("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:39312.", True),
        ("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete", True),
        ("Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:144] no error", True),
        ("Timeout waiting for key: default_pg/0//cpu//0/1 after 600000 ms", True),
        ("Wait timeout", True),
        # NCCL on GPUs
        (
            DistBackendError(
                "NCCL error in: ProcessGroupNCCL.cpp:2021, remote process exited or there was a network error\n"
                "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting"
            ),
            True,
        ),
        (
            DistBackendError(
                "unhandled system error\nncclSystemError: System call (e.g. socket, malloc) failed\n"
                "Last error:\nsocketStartConnect: Connect to 10.0.0.1<40873> failed : Connection refused"
            ),
            True,
        ),
        (DistBackendError("NCCL communicator was aborted on rank 0."), True),
        # the store
        (DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."), True),
        (
            DistNetworkError("The client socket has timed out after 3000ms while trying to connect to (::1, 29778)"),
            True,
        ),
        (DistStoreError("wait timeout after 300000ms, keys: /default_pg/0//1"), True),
        (TimeoutError("process 0 does not answer"), True),
        # errors of this process
        (
            DistBackendError(
                "NCCL error in: ProcessGroupNCCL.cpp:2021, unhandled cuda error, NCCL version 2.20.5\n"
                "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
            ),
            False,
        ),
        (DistBackendError("Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 65000"), False),
        ("Invalid scalar type for gloo", False),
        ("ProcessGroupGloo::allgather: invalid output tensor list at index 0 (expected length 2, got 1)", False),
        ("[enforce fail at gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find address for: eth7", False),
        ("ProcessGroupNCCL is only supported with GPUs, no GPUs found!", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", False),
    ],
)
def test_only_lost_connections_are_called_a_lost_process(error: str | Exception, is_lost: bool):
    assert is_connection_error(RuntimeError(error) if isinstance(error, str) else error) == is_lost


def test_a_wrong_setting_of_the_network_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rendezvous, "rendezvous_store", lambda rank, size: HashStore())
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "eth77"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PeerLost, match=r"process 0 of 2 cannot join the others: .*eth77"):
        init_process_group(torch.device("cpu"))


def test_a_launch_finds_the_run_that_it_began(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from vitrail.runs.resolve import find_run_of_launch

    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    assert current_launch() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this one")
    recipe = {"epochs": 1, "report": False, **TINY}
    first = vitrail.train(photos, out=out, **recipe)
    assert find_run_of_launch("this one", "photos", out).path == out
    assert find_run_of_launch("another", "photos", out) is None
    again = vitrail.train(photos, out=out, **recipe)  # the same command resumes the run, which is finished
    assert again.result["test"] == first.result["test"]
    default, second = Path("runs/photos"), Path("runs/photos-2")
    for copy in (default, second):
        shutil.copytree(out, copy)
    earlier = current_launch().started_at - 1
    for finished_run in (out, default):  # finished by an earlier launch of the same name
        os.utime(finished_run / "result.json", (earlier, earlier))
    with pytest.raises(UsageError, match="is not empty"):
        vitrail.train(photos, out=out, **recipe)
    assert find_run_of_launch("this one", "photos", None, current_launch().started_at).path == second
    os.utime(second / "result.json", (earlier, earlier))
    assert find_run_of_launch("this one", "photos", None, current_launch().started_at) is None
    (out / "result.json").unlink()  # an unfinished run is resumed by any launch of the name
    assert find_run_of_launch("this one", "photos", out, current_launch().started_at).path == out
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    with pytest.raises(UsageError, match="is not empty"):
        vitrail.train(photos, out=out, **recipe)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's default: its process identifies the launch
    assert str(os.getppid()) in current_launch().id
    assert current_launch().id == current_launch().id


def test_the_shards_of_all_processes_are_the_batch():
    from vitrail.data.augment import Augment
    from vitrail.training.batch_sharding import shard_positions
    from vitrail.training.distributed import World
    from vitrail.training.recipe import Recipe

    for n in range(1, 20):
        for accumulation_steps in (1, 2, 3, 7):
            for size in (1, 2, 3, 5):
                recipe = Recipe(accumulation_steps=accumulation_steps, augment=Augment(mixup=1.0))
                shards = [shard_positions(n, recipe, World(rank=rank, size=size)) for rank in range(size)]
                for i, micro_batch in enumerate(torch.arange(n).chunk(accumulation_steps)):
                    own = [positions[overlap:] for positions, overlap in (shard[i] for shard in shards)]
                    assert torch.cat(own).tolist() == micro_batch.tolist()
                    for positions, overlap in (shard[i] for shard in shards):
                        assert overlap == (len(positions) > 0)
                        if overlap:
                            shifted = torch.cat([micro_batch[-1:], micro_batch])  # each image's predecessor
                            assert positions[0] == shifted[micro_batch.tolist().index(positions[overlap])]


# The command line


def load_rows(run: Path) -> list[dict]:
    return RunFolder(run).load_metrics()


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


def wait_for_rows(run: Path, n: int, process: subprocess.Popen, seconds: float = 280) -> None:
    """Waits until a run has recorded `n` epochs."""
    deadline = time.monotonic() + seconds
    while len(load_rows(run)) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
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


def wait_for_end(process: subprocess.Popen, seconds: float = 200) -> tuple[int, str, str]:
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


@needs_single_rows
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


@needs_single_rows
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


@needs_single_rows
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
