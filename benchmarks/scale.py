"""How training scales over processes: measured here with one and two, modeled for 8, 64 and 512 GPUs.

    python -m benchmarks.scale --write docs/scale.md

Measured: steps of the training loop on random images with one process and with two, alternating, one thread each; the
bytes that a step sends, counted by the kernel on the loopback of a separate network namespace (as root); how fast a
core decodes and crops photographs. Modeled: communication by model size, and the step time of larger groups; the
assumptions are the constants below.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist

import vitrail
from benchmarks.document import replace_table
from vitrail.data.augment import build_augmentation
from vitrail.data.decode import decode
from vitrail.data.preprocess import Preprocess
from vitrail.machine import describe_hardware
from vitrail.training.distributed import join_world
from vitrail.training.loop import train_steps
from vitrail.training.recipes import find_recipe
from vitrail.training.train_state import init_train_state
from vitrail.weights.sizes import SIZES

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "temple.jpg"
SIZE_NAMES = ("Ti", "S", "B", "L", "H")


@dataclass(frozen=True)
class Machines:
    """The hardware that the model assumes: DGX H100 (docs.nvidia.com/dgx/dgxh100-user-guide).

    Peak rates are NVIDIA's; the fractions that training reaches are our assumption.
    """

    flops: float = 989e12  # bf16 without sparsity, of an H100 SXM
    flops_utilization: float = 0.4  # of a ViT's training step
    memory_bandwidth: float = 3.35e12  # bytes/s of HBM3
    nvlink_bandwidth: float = 450e9  # bytes/s in each direction between GPUs of a node (NVLink 4: 900 GB/s both ways)
    network_bandwidth: float = 50e9  # bytes/s of a 400 Gb/s network card; each GPU of a node has one
    bandwidth_utilization: float = 0.8  # of both, by NCCL
    latency: float = 10e-6  # seconds per hop
    gpus_per_node: int = 8
    cores_per_node: int = 112  # two processors of 56


CLUSTER = Machines()


def count_parameters(size: str) -> int:
    """Parameters of a ViT at 224 pixels with 1000 classes."""
    return sum(p.numel() for p in meta_vit(size).parameters())


def meta_vit(size: str) -> vitrail.ViT:
    """A ViT of this size on the meta device."""
    patch = 14 if size == "H" else 16
    with torch.device("meta"):
        return vitrail.ViT(vitrail.ViTConfig(**SIZES[size], patch=patch, image_size=224, classes=1000))


def count_flops(size: str) -> float:
    """FLOPs of a training step per image: the backward pass costs twice the forward; a multiply-add counts as two."""
    config = meta_vit(size).config
    tokens = (224 // config.patch) ** 2 + 1
    width, depth = config.width, config.depth
    block = tokens * (4 * width * width + 2 * width * config.mlp_width) + 2 * tokens * tokens * width
    patches = (tokens - 1) * 3 * config.patch**2 * width
    return 3 * 2 * (depth * block + patches + width * 1000)


def count_sent_bytes(size: str, gpus: int, sharded: bool) -> float:
    """Bytes that a process sends per step, in float32.

    DDP reduces gradients in a ring: each of N processes sends 2(N-1)/N of them (Patarasuk and Yuan 2009). FSDP2 gathers
    the weights for the forward and again for the backward pass and scatters the gradients: three times (N-1)/N.
    """
    return (3 if sharded else 2) * (gpus - 1) / gpus * 4 * count_parameters(size)


def step_time(size: str, gpus: int, images: float, per_core: float, sharded: bool = False) -> dict[str, float]:
    """Seconds of a step with `images` per GPU, and its parts.

    compute   = images * flops / (peak flops * utilization)
    network   = bytes / (bandwidth * utilization) + 2 log2(N) * latency per bucket of 25 MB. It overlaps the backward
                pass (two thirds of compute); `waited` is what remains. Between nodes all network cards of a node work
                together, so the bandwidth is their sum, if that is less than NVLink's.
    optimizer = 28 bytes per weight (AdamW reads 4 numbers and writes 3) / memory bandwidth; 1/N of it when sharded
    loader    = images * GPUs per node / (cores * images per second of a core), in parallel to all else
    """
    weights = count_parameters(size)
    bandwidth = (
        CLUSTER.nvlink_bandwidth
        if gpus <= CLUSTER.gpus_per_node
        else min(CLUSTER.nvlink_bandwidth, CLUSTER.gpus_per_node * CLUSTER.network_bandwidth)
    ) * CLUSTER.bandwidth_utilization
    compute = images * count_flops(size) / (CLUSTER.flops * CLUSTER.flops_utilization)
    hops = 2 * math.log2(gpus) * CLUSTER.latency * math.ceil(4 * weights / 25e6)
    network = count_sent_bytes(size, gpus, sharded) / bandwidth + hops
    waited = max(0.0, network - compute * 2 / 3)
    optimizer = 28 * weights / CLUSTER.memory_bandwidth / (gpus if sharded else 1)
    loader = images * min(gpus, CLUSTER.gpus_per_node) / (CLUSTER.cores_per_node * per_core)
    busy = compute + waited + optimizer
    return {
        "compute": compute, "network": network, "waited": waited, "optimizer": optimizer, "loader": loader,
        "step": max(busy, loader),
        "efficiency": (compute + 28 * weights / CLUSTER.memory_bandwidth) / max(busy, loader),
    }  # fmt: skip


# Measurements


def time_steps(rank: int, size: int, folder: Path, model: str, steps: int, batch: int) -> None:
    """Times steps of the training loop in one of `size` processes; rank 0 writes the result."""
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    with join_world(torch.device("cpu")) as world:
        torch.manual_seed(0)
        vit = vitrail.ViT(vitrail.ViTConfig(**SIZES[model], patch=16, image_size=224, classes=1000))
        recipe = find_recipe("small", epochs=1, batch_size=batch * size, mixup=0.0, cutmix=0.0)
        pixels = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
        labels = torch.randint(0, 1000, (batch * size,))
        state = init_train_state(vit, recipe, world)
        training = train_steps(
            state,
            ((pixels, labels) for _ in range(steps + 2)),
            recipe,
            Preprocess(image_size=(224, 224)),
            total_steps=100,
        )
        next(training), next(training)
        before, wall, cpu = read_sent_bytes(), time.perf_counter(), time.process_time()
        for _ in range(steps):
            next(training)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        cpu = world.sum(cpu)[0]
        result = {"wall": wall / steps, "cpu": cpu / steps, "bytes": (read_sent_bytes() - before) / steps}
        if world.is_main:
            (folder / "result.json").write_text(json.dumps(result))
    if size > 1:
        dist.destroy_process_group()


def read_sent_bytes() -> int:
    """Bytes sent over the loopback of this network namespace since it was made."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def measure_processes(size: int, model: str, steps: int, batch: int) -> dict[str, Any]:
    """Time and bytes per step with `size` processes, in a separate network namespace if this is root."""
    is_isolated = os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "benchmarks.scale",
            "--model",
            model,
            "--steps",
            str(steps),
            "--batch",
            str(batch),
        ]
        ranks = [[*command, "--rank", str(rank), str(size), folder] for rank in range(size)]
        commands = " & ".join(" ".join(rank) for rank in ranks)
        if is_isolated:
            subprocess.run(["unshare", "--net", "sh", "-c", f"ip link set lo up; {commands} & wait"], check=True)
        else:
            subprocess.run(["sh", "-c", f"{commands} & wait"], check=True)
        return {**json.loads(Path(folder, "result.json").read_text()), "is_isolated": bool(is_isolated)}


def measure_decoding(seconds: float = 5.0) -> float:
    """Photographs that a core decodes and crops per second of CPU time."""
    augmentation = build_augmentation(find_recipe("small", crop="resized").augment, Preprocess(image_size=(224, 224)))
    started, n = time.process_time(), 0
    while time.process_time() - started < seconds:
        augmentation.augment_image(decode(PHOTO))
        n += 1
    return n / (time.process_time() - started)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs all measurements, one process and two alternating."""
    rounds = []
    for number in range(arguments.rounds):
        one = measure_processes(1, arguments.model, arguments.steps, arguments.batch)
        two = measure_processes(2, arguments.model, arguments.steps, arguments.batch)
        rounds.append({"one": one, "two": two})
        print(
            f"round {number + 1}: {one['wall']:.2f} s per step with one, {two['wall']:.2f} s with two", file=sys.stderr
        )
    return {
        "rounds": rounds,
        "decoded_per_second": measure_decoding(),
        "hardware": describe_hardware(torch.device("cpu")),
    }


def format_report(result: dict[str, Any], arguments: argparse.Namespace) -> str:
    """The tables, as Markdown."""
    hardware = result["hardware"]
    rounds, per_core = result["rounds"], result["decoded_per_second"]
    wall = [each["one"]["wall"] / each["two"]["wall"] for each in rounds]
    cpu = [2 * each["one"]["cpu"] / each["two"]["cpu"] for each in rounds]
    expected_bytes = count_sent_bytes(arguments.model, 2, False)
    sent_bytes = statistics.mean(each["two"]["bytes"] for each in rounds)
    model = arguments.model
    spread = "" if len(rounds) < 2 else f" (from {min(wall):.2f} to {max(wall):.2f})"
    lines = [
        f"Measured on {hardware['device']}, torch {hardware['torch']}, ViT-{model}/16 at 224 pixels, "
        f"{arguments.batch} images per process and step, one thread per process, {arguments.steps} steps, "
        f"n = {len(rounds)} rounds.",
        "",
        "| processes | seconds per step | images/s | efficiency by wall time | by CPU time |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, n in (("one", 1), ("two", 2)):
        seconds = statistics.mean(each[name]["wall"] for each in rounds)
        efficiencies = ("1", "1") if n == 1 else (f"{statistics.mean(wall):.2f}{spread}", f"{statistics.mean(cpu):.2f}")
        lines.append(
            f"| {n} | {seconds:.2f} | {n * arguments.batch / seconds:.1f} | {efficiencies[0]} | {efficiencies[1]} |"
        )
    method = (
        "counted in a separate network namespace" if rounds[0]["two"]["is_isolated"] else "counted on a shared loopback"
    )
    lines += [
        "",
        f"A step of two processes put {sent_bytes / 1e6:.1f} MB on the wire ({method}, with headers); the formula "
        f"gives 2 x {expected_bytes / 1e6:.1f} MB, a ratio of {sent_bytes / 2 / expected_bytes:.3f}.",
        "",
        "Bytes that a process sends per step:",
        "",
        "| size | parameters | DDP, 2 | DDP, 8 | DDP, 512 | FSDP2, 8 | FSDP2, 512 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in SIZE_NAMES:
        cells = [(2, False), (8, False), (512, False), (8, True), (512, True)]
        cells_text = " | ".join(f"{count_sent_bytes(size, gpus, sharded) / 1e6:,.0f} MB" for gpus, sharded in cells)
        lines.append(f"| {size} | {count_parameters(size) / 1e6:.1f} M | {cells_text} |")
    for title, images in (
        ("64 images per GPU", lambda gpus: 64.0),
        ("4,096 images per step", lambda gpus: 4096 / gpus),
    ):
        lines += [
            "",
            f"Model, {title} (milliseconds; a core decodes {per_core:.0f} photographs per second, as measured here):",
            "",
            "| size | GPUs | compute | network | network wait | optimizer | loader | efficiency | bottleneck |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for size in SIZE_NAMES:
            for gpus in (8, 64, 512):
                t = step_time(size, gpus, images(gpus), per_core)
                excess = {
                    "the loader": t["loader"] - t["compute"],
                    "the network": t["waited"],
                    "the optimizer": t["optimizer"],
                }
                worst = max(excess, key=lambda name: excess[name])
                bottleneck = worst if t["efficiency"] < 0.9 else "compute"
                times = " | ".join(f"{1e3 * t[k]:.1f}" for k in ("compute", "network", "waited", "optimizer", "loader"))
                lines.append(f"| {size} | {gpus} | {times} | {t['efficiency']:.2f} | {bottleneck} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark, prints the tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Ti", choices=SIZE_NAMES, help="size of the ViT that is timed (Ti)")
    parser.add_argument("--batch", type=int, default=16, help="images per process (16)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--write", type=Path, help="put the tables into this document")
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        rank, size, folder = arguments.rank
        time_steps(int(rank), int(size), Path(folder), arguments.model, arguments.steps, arguments.batch)
        return
    result = run(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1))
    text = format_report(result, arguments)
    if arguments.write:
        replace_table(text, "scale", arguments.write)
    print(text)


if __name__ == "__main__":
    main()
