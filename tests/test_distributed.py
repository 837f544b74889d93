"""Training by several processes: the same batches, losses and counts as by one."""

import json
import os
import shutil
import subprocess
import sys
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


def load_rows(run: Path) -> list[dict]:
    return RunFolder(run).load_metrics()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes, with test images."""
    return fill(tmp_path_factory.mktemp("data") / "photos", {"train": 21, "test": 5}, tuple(COLORS), (16, 16))


@pytest.fixture(scope="module")
def uneven(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos with four training images of one class."""
    folder = shutil.copytree(photos, tmp_path_factory.mktemp("data") / "uneven")
    for path in sorted((folder / "train" / "red").iterdir())[4:]:
        path.unlink()
    return folder


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
    photos: Path, uneven: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
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
        "balanced": {**common, "data": str(uneven), "epochs": 8, "balance": "sampler"},
        "with-teacher": {
            **TINY,
            **data,
            "batch_size": 8,
            "epochs": 2,
            "accumulation_steps": 3,
            "validation_fraction": 0.2,
            "teacher": str(pretrained),
            "unlabeled": str(photos / "test"),
            "distillation": "features",
        },
    }
    sharded = {**TINY, **MIXED, **data, "batch_size": 16, "epochs": 3, "fsdp": True}
    of_two = {
        **{name: {**common, "epochs": 2, "accumulation_steps": 2, "fsdp": name == "fsdp"} for name in ("ddp", "fsdp")},
        "uninterrupted": sharded,
        "stopped": {**sharded, "stop_after": 1},
        "resumed": {**data, "out": "stopped", "resume": True, "fsdp": True, "check": False},
        "asked": {**TINY, **data, **SHORT, "asks_for_stop": [1, 3], "optimizer": "adamw", "fsdp": True},
        "failing": {**TINY, **data, **SHORT, "fails": [1, 3]},
        "failed": {**data, "out": "failing", "resume": True, "check": False},
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


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_train_on_the_balanced_batches_of_one_process(records, size: int):
    single, several = join_micro_batches(records[1]["balanced"]), join_micro_batches(records[size]["balanced"])
    assert len(single) >= 40 and single == several
    for actual, expected in zip(records[size]["balanced"][0]["rows"], records[1]["balanced"][0]["rows"], strict=True):
        assert actual["unreadable"] == expected["unreadable"] > 0
        for name in ("accuracy", "balanced_accuracy"):
            assert actual[f"validation_{name}"] == pytest.approx(expected[f"validation_{name}"])


@pytest.mark.parametrize("scenario", ["plain", "accumulated"])
@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_train_on_the_batches_of_one_process(records, size: int, scenario: str):
    single, several = join_micro_batches(records[1][scenario]), join_micro_batches(records[size][scenario])
    assert len(single) >= 50
    assert single == several
    assert len({image for images in single.values() for image in images}) > 300  # mixing makes them all different
    assert min(len(images) for images in single.values()) < size  # some shards were empty


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


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_learn_from_a_teacher_as_one_process(records, size: int):
    (single,), several = records[1]["with-teacher"], records[size]["with-teacher"]
    assert len(single["steps"]) == 18 and join_micro_batches(several) == join_micro_batches([single])
    for record in several:
        for actual, expected in zip(record["steps"], single["steps"], strict=True):
            assert actual[0] == expected[0] and actual[3] == expected[3]
            assert actual[1] == pytest.approx(expected[1], abs=2e-4)
            assert actual[4] == pytest.approx(expected[4], rel=2e-3)


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


def test_a_sharded_model_trains_like_a_replicated_one(records):
    ddp, fsdp = records[2]["ddp"][0], records[2]["fsdp"][0]
    assert len(fsdp["steps"]) == len(ddp["steps"]) >= 12
    for actual, expected in zip(fsdp["steps"], ddp["steps"], strict=True):
        assert actual[1] == pytest.approx(expected[1], abs=1e-5)
        assert actual[4] == pytest.approx(expected[4], rel=1e-4)
    assert fsdp["validations"] == ddp["validations"]
    assert fsdp["result"]["test"]["loss"] == pytest.approx(ddp["result"]["test"]["loss"], abs=1e-4)


def test_a_resumed_sharded_run_ends_with_the_same_bits(records):
    names = ("uninterrupted", "stopped", "resumed")
    for uninterrupted, stopped, resumed in zip(*(records[2][name] for name in names), strict=True):
        assert len(stopped["steps"]) == 4  # 51 images
        assert stopped["steps"] + resumed["steps"] == uninterrupted["steps"]
        assert resumed["result"]["test"] == uninterrupted["result"]["test"]


def test_all_processes_stop_after_the_step_at_which_a_callback_of_one_asks_for_it(records):
    for record in records[2]["asked"]:
        assert len(record["steps"]) == 3
        assert record["result"]["stopped_early"] == {
            "epoch": 1, "epochs": 2, "step": 3, "callback": "EveryProcess", "reason": "rank 1 asks for it",
        }  # fmt: skip
        assert record["result"]["test"] == records[2]["asked"][0]["result"]["test"]


def test_all_processes_end_with_the_error_of_a_callback_of_one_and_the_run_resumes(records):
    for failing, resumed in zip(records[2]["failing"], records[2]["failed"], strict=True):
        assert failing["error"].startswith(
            "the callback EveryProcess failed in on_step_end: ZeroDivisionError: by zero"
        )
        assert "saved at step 3, continue with: vitrail train" in failing["error"]
        assert [step[0] for step in failing["steps"] + resumed["steps"]] == list(range(1, 9))
        assert resumed["result"]["test"]["images"] == 15


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
        return {rank.result(timeout=250) for rank in ranks}


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
