"""Training by many processes: the same batches, losses and counts as by one, whatever dies on the way."""

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
from torch.distributed import HashStore

import vitrail
from conftest import COLOURS, fill
from vitrail.errors import UsageError
from vitrail.runs.folder import RunFolder
from vitrail.training.launch import current_launch
from vitrail.training.rendezvous import agree_on_attempt

pytestmark = pytest.mark.scale

EPOCHS = 14
TINY = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 32, "patch": 4, "precision": "fp32", "check": False}
MIXED = {
    "mixup": 0.4,
    "cutmix": 1.0,
    "crop": "padded",
    "ema_decay": 0.9,
    "validation_fraction": 0.2,
    "optimizer": "adamw",
    "lr": 3e-3,
}
FILES = {
    "image_cache_gib": 0,
    "workers": 0,
    "skip_unreadable": True,
}  # read when needed, so that damage is found on the way
DAMAGED = [f"train/green/{number}.png" for number in (0, 3, 4, 11, 15, 18)]  # some are in validation


def environment() -> dict[str, str]:
    """The variables of a process that trains in a test."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    source = Path(__file__).parents[1] / "src"
    return kept | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(source)}


def observed_by(size: int, folder: Path, scenarios: dict[str, dict]) -> dict[str, list[dict]]:
    """What each of `size` processes saw of each scenario."""
    folder.mkdir()
    for name, options in scenarios.items():
        shutil.copytree(options["data"], folder / "data" / name)  # they damage what they read
    scenarios = {name: {**options, "data": str(folder / "data" / name)} for name, options in scenarios.items()}
    script = str(Path(__file__).parent / "ranks.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(size), str(folder), json.dumps(scenarios)], env=environment()
        )
        for rank in range(size)
    ]
    try:
        codes = [process.wait(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * size
    names = [*scenarios, "world"]
    return {name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(size)] for name in names}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three colours with test images."""
    return fill(tmp_path_factory.mktemp("data") / "photos", {"train": 21, "test": 5}, tuple(COLOURS), (16, 16))


@pytest.fixture(scope="module")
def seen(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[dict]]]:
    """The same training by 1, 2 and 3 processes."""
    common = {**TINY, **MIXED, **FILES, "data": str(photos), "damaged": DAMAGED, "batch_size": 8}
    scenarios = {
        "plain": {**common, "epochs": 8},  # 51 images, 7 steps an epoch, the last of 3
        "accumulated": {**common, "epochs": 8, "accumulation_steps": 3},
    }
    folder = tmp_path_factory.mktemp("seen")
    return {size: observed_by(size, folder / str(size), scenarios) for size in (1, 2, 3)}


def batches(processes: list[dict]) -> dict[tuple[int, int], list[str]]:
    """(step, part of the batch) -> a digest of every image in it with its target, in order, over all processes."""
    whole: dict[tuple[int, int], list[str]] = {}
    for seen in processes:  # by rank
        for step, number, images in seen["parts"]:
            whole.setdefault((step, number), []).extend(images)
    return whole


@pytest.mark.parametrize("scenario", ["plain", "accumulated"])
@pytest.mark.parametrize("size", [2, 3])
def test_together_they_see_the_very_batches_of_one_process(seen, size: int, scenario: str):
    alone, together = batches(seen[1][scenario]), batches(seen[size][scenario])
    assert len(alone) >= 50
    assert alone == together
    assert len({image for images in alone.values() for image in images}) > 300  # they differ, being mixed
    assert min(len(images) for images in alone.values()) < size  # somewhere a cut was empty


@pytest.mark.parametrize("scenario", ["plain", "accumulated"])
@pytest.mark.parametrize("size", [2, 3])
def test_losses_counts_and_gradients_are_those_of_one_process(seen, size: int, scenario: str):
    (alone,), together = seen[1][scenario], seen[size][scenario]
    assert len(alone["steps"]) >= 50
    for process in together:
        for mine, theirs in zip(process["steps"], alone["steps"], strict=True):
            assert mine[0] == theirs[0]
            assert mine[3] == theirs[3]  # images that could be read
            assert mine[1] == pytest.approx(theirs[1], abs=2e-4)
            assert mine[4] == pytest.approx(theirs[4], rel=2e-3)
        assert process["steps"] == together[0]["steps"]


@pytest.mark.parametrize("scenario", ["plain", "accumulated"])
@pytest.mark.parametrize("size", [2, 3])
def test_every_image_is_scored_once_and_what_cannot_be_read_is_counted(seen, size: int, scenario: str):
    (alone,), together = seen[1][scenario], seen[size][scenario]
    rows = together[0]["rows"]
    for mine, theirs in zip(rows, alone["rows"], strict=True):
        assert mine["unreadable"] == theirs["unreadable"] > 0
        assert mine["validation_accuracy"] == pytest.approx(theirs["validation_accuracy"])
        assert mine["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=2e-4)

    def totals(processes: list[dict]) -> list[tuple[int, int]]:
        """(images, right answers) of each evaluation, over all processes."""
        return [
            tuple(map(sum, zip(*parts, strict=True))) for parts in zip(*(p["scored"] for p in processes), strict=True)
        ]

    assert totals(together) == totals([alone])
    assert all(process["result"] == together[0]["result"] for process in together)  # each gets the run
    assert together[0]["result"]["test"]["images"] == alone["result"]["test"]["images"] == 15


def test_a_sharded_model_trains_as_a_copied_one(photos: Path, tmp_path: Path):
    common = {**TINY, **MIXED, **FILES, "data": str(photos), "damaged": DAMAGED, "batch_size": 8, "epochs": 2}
    scenarios = {name: {**common, "accumulation_steps": 2, "fsdp": name == "sharded"} for name in ("copied", "sharded")}
    found = observed_by(2, tmp_path / "seen", scenarios)
    copied, sharded = found["copied"][0], found["sharded"][0]
    assert len(sharded["steps"]) == len(copied["steps"]) >= 12
    for mine, theirs in zip(sharded["steps"], copied["steps"], strict=True):
        assert mine[1] == pytest.approx(theirs[1], abs=1e-5)
        assert mine[4] == pytest.approx(theirs[4], rel=1e-4)
    assert sharded["scored"] == copied["scored"]
    assert sharded["result"]["test"]["loss"] == pytest.approx(copied["result"]["test"]["loss"], abs=1e-4)


@pytest.fixture(scope="module")
def start(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights others start from."""
    out = tmp_path_factory.mktemp("start") / "run"
    return vitrail.train(photos, out=out, epochs=1, batch_size=16, report=False, **TINY).folder


LORA = {
    "recipe": "lora",
    "lora_rank": 2,
    "lora_target": "blocks",
    "ema_decay": 0.9,
    "precision": "fp32",
    "check": False,
}
SHARED = {"lora": LORA, "recomputed": {**TINY, "gradient_checkpointing": True}}
FOR_SHARED = {"batch_size": 16, "epochs": 2}


@pytest.fixture(scope="module")
def pair(photos: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What two processes saw of a sharded run, whole and in two parts, and of what memory is saved with."""
    pytest.importorskip("peft")
    sharded = {**TINY, **MIXED, "data": str(photos), "batch_size": 16, "epochs": 3, "fsdp": True}
    scenarios = {
        "whole": sharded,
        "half": {**sharded, "stop": 1},
        "again": {"data": str(photos), "out": "half", "resume": True, "fsdp": True, "check": False},
        **{name: {"data": str(photos), **FOR_SHARED, **options} for name, options in SHARED.items()},
    }
    scenarios["lora"]["model"] = str(start)
    return observed_by(2, tmp_path_factory.mktemp("pair") / "seen", scenarios)


def test_a_sharded_run_that_was_stopped_goes_on_to_the_same_bits(pair):
    for whole, half, again in zip(*(pair[name] for name in ("whole", "half", "again")), strict=True):
        assert len(half["steps"]) == 4  # of 51 images
        assert half["steps"] + again["steps"] == whole["steps"]
        assert again["result"]["test"] == whole["result"]["test"]


@pytest.mark.parametrize("name", SHARED)
def test_what_saves_memory_is_shared_too(pair, photos: Path, start: Path, tmp_path: Path, name: str):
    model = {"model": start} if name == "lora" else {}
    alone = vitrail.train(photos, out=tmp_path / "run", report=False, **FOR_SHARED, **SHARED[name], **model)
    for mine, theirs in zip(pair[name][0]["rows"], rows(alone.folder), strict=True):
        for score in ("train_loss", "validation_loss"):
            assert mine[score] == pytest.approx(theirs[score], abs=2e-4)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_one_process_meets_all_of_them_say(seen, size: int):
    for mine in seen[size]["world"]:
        assert mine["said"] == "only the last one knows (tell the others)"
        assert mine["sums"] == [size * (size - 1) / 2, size, True, False]
        assert mine["told"] == 0
        assert mine["gathered"] == list(range(size))


def agreed(store: HashStore, size: int) -> set[str]:
    """What the processes of an attempt, each in a thread of its own, call it."""
    with ThreadPoolExecutor(size) as threads:
        ranks = [threads.submit(agree_on_attempt, store, rank, size) for rank in reversed(range(size))]
        return {rank.result(timeout=60) for rank in ranks}


def test_an_attempt_meets_nobody_of_an_earlier_one():
    store = HashStore()
    store.set("vitrail/attempt", "dead")  # a process 0 that died before the others came
    store.set("vitrail/dead/nonce/1", "dead too")
    names = [agreed(store, size) for size in (3, 3, 2, 4)]  # all in the store that the launcher keeps
    assert all(len(name) == 1 for name in names)
    assert len(set.union(*names)) == 4
    assert "dead" not in set.union(*names)


def test_a_launch_knows_the_run_that_it_began(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from vitrail.runs import epochs, finish
    from vitrail.runs.resolve import find_run_of_launch

    monkeypatch.chdir(tmp_path)
    for module, name in ((finish, "draw_pictures"), (epochs, "draw_curves")):  # others show them
        monkeypatch.setattr(module, name, lambda *arguments: None)
    out = tmp_path / "run"
    assert current_launch() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this one")
    recipe = {"epochs": 1, "report": False, **TINY}
    first = vitrail.train(photos, out=out, **recipe)
    assert find_run_of_launch("this one", "photos", out).path == out
    assert find_run_of_launch("another", "photos", out) is None
    again = vitrail.train(photos, out=out, **recipe)  # the same words: it is gone on with, and all is done
    assert again.result["test"] == first.result["test"]
    default, second = Path("runs/photos"), Path("runs/photos-2")
    for copy in (default, second):
        shutil.copytree(out, copy)
    earlier = current_launch().started_at - 1
    for finished in (out, default):  # before this launcher: last week's launch had the same name
        os.utime(finished / "result.json", (earlier, earlier))
    with pytest.raises(UsageError, match="is not empty"):
        vitrail.train(photos, out=out, **recipe)
    assert find_run_of_launch("this one", "photos", None, current_launch().started_at).path == second
    os.utime(second / "result.json", (earlier, earlier))
    assert find_run_of_launch("this one", "photos", None, current_launch().started_at) is None
    (out / "result.json").unlink()  # it was never finished, so whichever launcher comes takes it up
    assert find_run_of_launch("this one", "photos", out, current_launch().started_at).path == out
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    with pytest.raises(UsageError, match="is not empty"):
        vitrail.train(photos, out=out, **recipe)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun on one machine: its process names the launch
    assert str(os.getppid()) in current_launch().id
    assert current_launch().id == current_launch().id


def test_places_of_all_processes_are_the_batch():
    from vitrail.data.augment import Augment
    from vitrail.training import Recipe
    from vitrail.training.batch_sharding import shard_positions
    from vitrail.training.distributed import World

    for n in range(1, 20):
        for accumulate in (1, 2, 3, 7):
            for size in (1, 2, 3, 5):
                recipe = Recipe(accumulation_steps=accumulate, augment=Augment(mixup=1.0))
                cuts = [shard_positions(n, recipe, World(rank=rank, size=size)) for rank in range(size)]
                for part, chunk in enumerate(torch.arange(n).chunk(accumulate)):
                    own = [cut[part][0][cut[part][1] :] for cut in cuts]
                    assert torch.cat(own).tolist() == chunk.tolist()
                    for where, spare in (cut[part] for cut in cuts):
                        assert spare == (len(where) > 0)
                        before = torch.cat([chunk[-1:], chunk])[chunk.tolist().index(where[spare])] if spare else None
                        assert before is None or before == where[0]


# Whole commands, started as people start them


def rows(run: Path) -> list[dict]:
    return RunFolder(run).load_metrics()


def command(data: Path, out: Path, *more: object) -> list[str]:
    tiny = {
        "width": 16,
        "depth": 2,
        "heads": 2,
        "mlp-width": 32,
        "patch": 4,
        "precision": "fp32",
        "validation-fraction": 0.2,
    }
    options = [word for name, value in {**tiny, "mixup": 0.4}.items() for word in (f"--{name}", value)]
    words = ["train", data, "--out", out, "--batch-size", 8, "--no-check", "--no-report", *options, *more]
    return [str(word) for word in words]


STARTED: list[subprocess.Popen] = []


def started(words: list[str]) -> subprocess.Popen:
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def _nothing_runs_on():
    """A test that fails leaves no process: workers of a launcher that is killed end themselves."""
    yield
    for process in STARTED:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()
    STARTED.clear()


def wait_for_rows(run: Path, n: int, process: subprocess.Popen, seconds: float = 280) -> None:
    """Until a run has recorded `n` epochs."""
    deadline = time.monotonic() + seconds
    while len(rows(run)) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    """Until something has happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def workers(launcher: subprocess.Popen) -> list[int]:
    """The processes that a launcher has started, by rank."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = {}
    for pid in children:
        variables = dict(
            pair.split("=", 1) for pair in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in pair
        )
        if "RANK" in variables:
            ranks[int(variables["RANK"])] = int(pid)
    return [ranks[rank] for rank in sorted(ranks)]


def finished(process: subprocess.Popen, seconds: float = 200) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The rows of the command by one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    code, _, err = finished(started([sys.executable, "-m", "vitrail", *command(photos, out, "--epochs", EPOCHS)]))
    assert code == 0, err
    return rows(out)


def same_course(mine: list[dict], theirs: list[dict]) -> None:
    """Every epoch is there once, and its loss is the same to rounding."""
    assert [row["epoch"] for row in mine] == [row["epoch"] for row in theirs]
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=5e-4)


def test_a_killed_worker_is_started_again_and_nothing_is_lost(photos: Path, alone: list[dict], tmp_path: Path):
    out = tmp_path / "run"
    words = command(photos, out, "--epochs", EPOCHS, "--processes", 2, "--json")
    launcher = started([sys.executable, "-m", "vitrail", *words])
    wait_for_rows(out, 2, launcher)
    os.kill(workers(launcher)[1], signal.SIGKILL)
    code, printed, err = finished(launcher)
    assert code == 0, err
    assert err.count("continuing after step") == 1
    assert json.loads(printed)["test"]["images"] == 15  # one answer, from one process
    same_course(rows(out), alone)


def test_an_interrupted_launch_is_saved_and_one_process_goes_on(photos: Path, alone: list[dict], tmp_path: Path):
    out = tmp_path / "run"
    launcher = started([sys.executable, "-m", "vitrail", *command(photos, out, "--epochs", EPOCHS, "--processes", 3)])
    wait_for_rows(out, 1, launcher)
    launcher.send_signal(signal.SIGINT)
    code, _, err = finished(launcher)
    assert code == 130, err
    assert re.search(r"error: stopped at step \d+ and saved\nhint: continue with: vitrail train .* --resume --out", err)
    assert len(rows(out)) < EPOCHS
    code, _, err = finished(
        started([sys.executable, "-m", "vitrail", "train", str(photos), "--resume", "--out", str(out)])
    )
    assert code == 0, err
    assert "the number of processes was 3, is 1: the result will be as good, but not the same to the last bit" in err
    same_course(rows(out), alone)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--processes", 0], "--processes is 0"),
        (["--processes", 2, "--fsdp", "--optimizer", "muon"], "Muon needs whole matrices, and --fsdp shards them"),
    ],
)
def test_what_cannot_be_shared_is_refused_once_and_not_tried_again(photos: Path, tmp_path: Path, more, said: str):
    launcher = started([sys.executable, "-m", "vitrail", *command(photos, tmp_path / "run", *more)])
    code, _, err = finished(launcher)
    assert code == 2
    assert err.count(said) == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture
def two_nodes():
    """Two network namespaces with a cable between them."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and ip (apt install iproute2)")
    names = [f"vitrail-{os.getpid()}-{side}" for side in "ab"]
    ends = [f"v{os.getpid() % 100000}{side}" for side in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            ip("-n", name, "addr", "add", f"10.199.0.{number}/24", "dev", end)
            for device in ("lo", end):
                ip("-n", name, "link", "set", device, "up")
        yield list(zip(names, ends, strict=True))
    finally:
        for name in names:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in found.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def torchrun(number: int, name: str, end: str, *words: object, variable: str = "VITRAIL=") -> subprocess.Popen:
    """vitrail on one of two nodes (0, 1), the first of which is where they meet."""
    conf = f"is_host={int(number == 0)},join_timeout=120,last_call_timeout=4"
    meet = [
        "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-id=nodes", "--rdzv-backend=c10d",
        "--rdzv-endpoint=10.199.0.1:29400", f"--local-addr=10.199.0.{number + 1}", f"--rdzv-conf={conf}",
    ]  # fmt: skip
    entered = ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={end}", variable, sys.executable]
    return started([*entered, "-m", "torch.distributed.run", *meet, "-m", "vitrail", *map(str, words)])


def pids(name: str) -> list[int]:
    """The processes of a node."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    return [int(pid) for pid in found.stdout.split()]


def test_a_lost_node_leaves_the_other_to_go_on(photos: Path, alone: list[dict], tmp_path: Path, two_nodes):
    out = tmp_path / "run"
    words = command(photos, out, "--epochs", EPOCHS)
    launchers = [torchrun(number, *node, *words) for number, node in enumerate(two_nodes)]
    wait_for_rows(out, 2, launchers[0])
    for pid in pids(two_nodes[1][0]):  # launcher and worker, in one moment
        os.kill(pid, signal.SIGKILL)
    code, _, err = finished(launchers[0])
    finished(launchers[1])
    assert code == 0, err
    assert "2 processes" in err
    assert "the number of processes was 2, is 1" in err
    same_course(rows(out), alone)


def test_a_node_that_comes_later_joins(photos: Path, tmp_path: Path, two_nodes):
    out = tmp_path / "run"
    words = command(photos, out, "--epochs", 2000)
    needed = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"  # else torchrun's own launchers wait for one another for ever
    launchers = [torchrun(0, *two_nodes[0], *words, variable=needed)]
    wait_for_rows(out, 2, launchers[0])
    launchers.append(torchrun(1, *two_nodes[1], *words, variable=needed))
    second = two_nodes[1][0]
    wait_for(lambda: any(b"\0WORLD_SIZE=2\0" in Path(f"/proc/{pid}/environ").read_bytes() for pid in pids(second)))
    wait_for_rows(out, len(rows(out)) + 3, launchers[0])
    launchers[0].send_signal(signal.SIGINT)
    code, _, err = finished(launchers[0])
    assert code != 0
    assert "the number of processes was 1, is 2" in err
    assert [row["epoch"] for row in rows(out)] == list(range(1, len(rows(out)) + 1))
