"""How training grows over processes: measured here with one and two, computed for 8, 64 and 512 GPUs.

    python -m benchmarks.scale --write docs/scale.md

Measured: steps of `vitrail.train`'s own loop on made-up images by one process and by two, in turn, a thread each; the
bytes that a step sends, which the kernel counts on the loopback of a network namespace of its own (as root); how fast
a core decodes and crops photographs. Computed: communication by model size, and a model of larger groups, whose
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
from vitrail.training import find_recipe
from vitrail.training.distributed import join_world
from vitrail.training.loop import train_steps
from vitrail.training.train_state import init_train_state
from vitrail.weights.sizes import SIZES

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "temple.jpg"
SHOWN = ("Ti", "S", "B", "L", "H")


@dataclass(frozen=True)
class Machines:
    """What the model assumes: DGX H100 (docs.nvidia.com/dgx/dgxh100-user-guide), its GPUs and its network.

    Peak rates are NVIDIA's; what is reached of them is our assumption.
    """

    flops: float = 989e12  # bf16 without sparsity, of an H100 SXM
    reached: float = 0.4  # of them by a ViT's step
    memory: float = 3.35e12  # bytes/s of HBM3
    inside: float = 450e9  # bytes/s in each direction between GPUs of a node (NVLink 4: 900 GB/s both ways)
    outside: float = 50e9  # bytes/s of a 400 Gb/s network card, of which each GPU of a node has one
    carried: float = 0.8  # of both by NCCL
    latency: float = 10e-6  # seconds for a hop
    node: int = 8  # GPUs
    cores: int = 112  # of a node: two processors of 56


HERE = Machines()


def parameters(size: str) -> int:
    """Of a ViT at 224 pixels with 1000 classes."""
    return sum(p.numel() for p in meta(size).parameters())


def meta(size: str) -> vitrail.ViT:
    """A ViT of this size without memory."""
    patch = 14 if size == "H" else 16
    with torch.device("meta"):
        return vitrail.ViT(vitrail.ViTConfig(**SIZES[size], patch=patch, image_size=224, classes=1000))


def flops(size: str) -> float:
    """Of a training step for an image: a forward and twice as much backward, two for each multiplication."""
    config = meta(size).config
    tokens = (224 // config.patch) ** 2 + 1
    width, depth = config.width, config.depth
    block = tokens * (4 * width * width + 2 * width * config.mlp_width) + 2 * tokens * tokens * width
    patches = (tokens - 1) * 3 * config.patch**2 * width
    return 3 * 2 * (depth * block + patches + width * 1000)


def sent(size: str, gpus: int, sharded: bool) -> float:
    """Bytes that a process sends in a step in float32.

    DDP adds gradients up in a ring: each of N sends its 2(N-1)/N part (Patarasuk and Yuan 2009). FSDP2 gathers weights
    for the forward and again for the backward and scatters gradients: three times (N-1)/N.
    """
    return (3 if sharded else 2) * (gpus - 1) / gpus * 4 * parameters(size)


def step_time(size: str, gpus: int, images: float, per_core: float, sharded: bool = False) -> dict[str, float]:
    """Seconds of a step of `images` a GPU, and what they are made of.

    compute = images * flops / (peak * reached)
    network = bytes / (bandwidth * carried) + 2 log2(N) * latency for each bucket of 25 MB, of which what outlasts the
              backward (two thirds of compute) is waited for; rings cross from node to node by all cards at once, so
              between nodes the bandwidth is that of a node's cards together, if it is less than inside
    optimiser = AdamW's 28 bytes a weight (reads 4 numbers, writes 3) / memory bandwidth, a part of them when sharded
    loader  = images * GPUs of a node / (cores * rate of a core), at the same time as everything else
    """
    many = parameters(size)
    band = (HERE.inside if gpus <= HERE.node else min(HERE.inside, HERE.node * HERE.outside)) * HERE.carried
    compute = images * flops(size) / (HERE.flops * HERE.reached)
    hops = 2 * math.log2(gpus) * HERE.latency * math.ceil(4 * many / 25e6)
    network = sent(size, gpus, sharded) / band + hops
    waited = max(0.0, network - compute * 2 / 3)
    optimiser = 28 * many / HERE.memory / (gpus if sharded else 1)
    loader = images * min(gpus, HERE.node) / (HERE.cores * per_core)
    busy = compute + waited + optimiser
    return {
        "compute": compute, "network": network, "waited": waited, "optimiser": optimiser, "loader": loader,
        "step": max(busy, loader), "efficiency": (compute + 28 * many / HERE.memory) / max(busy, loader),
    }  # fmt: skip


# What is measured


def steps_here(rank: int, size: int, folder: Path, model: str, steps: int, batch: int) -> None:
    """Times steps of the training loop as one of `size` processes; the first one writes what it found."""
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    with join_world(torch.device("cpu")) as world:
        torch.manual_seed(0)
        vit = vitrail.ViT(vitrail.ViTConfig(**SIZES[model], patch=16, image_size=224, classes=1000))
        recipe = find_recipe("small", epochs=1, batch_size=batch * size, mixup=0.0, cutmix=0.0)
        pixels = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
        labels = torch.randint(0, 1000, (batch * size,))
        learner = init_train_state(vit, recipe, world)
        going = train_steps(
            learner,
            ((pixels, labels) for _ in range(steps + 2)),
            recipe,
            Preprocess(image_size=(224, 224)),
            total_steps=100,
        )
        next(going), next(going)
        before, wall, cpu = sent_here(), time.perf_counter(), time.process_time()
        for _ in range(steps):
            next(going)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        cpu = world.sum(cpu)[0]
        found = {"wall": wall / steps, "cpu": cpu / steps, "bytes": (sent_here() - before) / steps}
        if world.is_main:
            (folder / "found.json").write_text(json.dumps(found))
    if size > 1:
        dist.destroy_process_group()


def sent_here() -> int:
    """Bytes that have gone over the loopback of this network namespace."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def measured(size: int, model: str, steps: int, batch: int) -> dict[str, Any]:
    """What `size` processes took for a step, in a network namespace of their own where we may make one."""
    apart = os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip")
    with tempfile.TemporaryDirectory() as folder:
        words = [
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
        ranks = [[*words, "--rank", str(rank), str(size), folder] for rank in range(size)]
        commands = " & ".join(" ".join(rank) for rank in ranks)
        if apart:
            subprocess.run(["unshare", "--net", "sh", "-c", f"ip link set lo up; {commands} & wait"], check=True)
        else:
            subprocess.run(["sh", "-c", f"{commands} & wait"], check=True)
        return {**json.loads(Path(folder, "found.json").read_text()), "apart": bool(apart)}


def decoded(seconds: float = 5.0) -> float:
    """Photographs that a core decodes and crops in a second, by CPU time."""
    change = build_augmentation(find_recipe("small", crop="resized").augment, Preprocess(image_size=(224, 224)))
    began, n = time.process_time(), 0
    while time.process_time() - began < seconds:
        change.augment_image(decode(PHOTO))
        n += 1
    return n / (time.process_time() - began)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured, one process and two in turn."""
    rounds = []
    for number in range(arguments.rounds):
        one = measured(1, arguments.model, arguments.steps, arguments.batch)
        two = measured(2, arguments.model, arguments.steps, arguments.batch)
        rounds.append({"one": one, "two": two})
        print(f"round {number + 1}: {one['wall']:.2f} s a step by one, {two['wall']:.2f} s by two", file=sys.stderr)
    return {"rounds": rounds, "decoded": decoded(), "hardware": describe_hardware(torch.device("cpu"))}


def report(found: dict[str, Any], arguments: argparse.Namespace) -> str:
    """The tables, as Markdown."""
    rounds, per_core = found["rounds"], found["decoded"]
    wall = [each["one"]["wall"] / each["two"]["wall"] for each in rounds]
    cpu = [2 * each["one"]["cpu"] / each["two"]["cpu"] for each in rounds]
    bytes_ = statistics.mean(each["two"]["bytes"] for each in rounds)
    model = arguments.model
    spread = "" if len(rounds) < 2 else f" (from {min(wall):.2f} to {max(wall):.2f})"
    lines = [
        f"Measured on {found['hardware']['device']}, torch {found['hardware']['torch']}, ViT-{model}/16 at 224 pixels, "
        f"{arguments.batch} images a process and step, a thread a process, {arguments.steps} steps, "
        f"n = {len(rounds)} rounds.",
        "",
        "| processes | seconds a step | images/s | efficiency by wall time | by CPU time |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, n in (("one", 1), ("two", 2)):
        seconds = statistics.mean(each[name]["wall"] for each in rounds)
        shown = ("1", "1") if n == 1 else (f"{statistics.mean(wall):.2f}{spread}", f"{statistics.mean(cpu):.2f}")
        lines.append(f"| {n} | {seconds:.2f} | {n * arguments.batch / seconds:.1f} | {shown[0]} | {shown[1]} |")
    counted = (
        "counted in a network namespace of its own" if rounds[0]["two"]["apart"] else "counted on a shared loopback"
    )
    lines += [
        "",
        f"A step of two processes put {bytes_ / 1e6:.1f} MB on the wire ({counted}, headers and all); the formula says "
        f"2 x {sent(model, 2, False) / 1e6:.1f} MB, a ratio of {bytes_ / 2 / sent(model, 2, False):.3f}.",
        "",
        "Bytes that a process sends in a step:",
        "",
        "| size | parameters | DDP, 2 | DDP, 8 | DDP, 512 | FSDP2, 8 | FSDP2, 512 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in SHOWN:
        cells = [(2, False), (8, False), (512, False), (8, True), (512, True)]
        shown_bytes = " | ".join(f"{sent(size, gpus, sharded) / 1e6:,.0f} MB" for gpus, sharded in cells)
        lines.append(f"| {size} | {parameters(size) / 1e6:.1f} M | {shown_bytes} |")
    for title, images in (
        ("64 images a GPU", lambda gpus: 64.0),
        ("4,096 images a step, however many GPUs", lambda gpus: 4096 / gpus),
    ):
        lines += [
            "",
            f"Model, {title} (milliseconds; a core decodes {per_core:.0f} photographs a second, as measured here):",
            "",
            "| size | GPUs | compute | network | waited for | optimiser | loader | efficiency | what limits |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for size in SHOWN:
            for gpus in (8, 64, 512):
                t = step_time(size, gpus, images(gpus), per_core)
                limits = {
                    "the loader": t["loader"] - t["compute"],
                    "the network": t["waited"],
                    "the optimiser": t["optimiser"],
                }
                worst = max(limits, key=lambda name: limits[name])
                limit = worst if t["efficiency"] < 0.9 else "nothing much"
                times = " | ".join(f"{1e3 * t[k]:.1f}" for k in ("compute", "network", "waited", "optimiser", "loader"))
                lines.append(f"| {size} | {gpus} | {times} | {t['efficiency']:.2f} | {limit} |")
    return "\n".join(lines)


def main() -> None:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Ti", choices=SHOWN, help="size of the ViT that is timed (Ti)")
    parser.add_argument("--batch", type=int, default=16, help="images of a process (16)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--write", type=Path, help="put the tables into this document")
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        rank, size, folder = arguments.rank
        steps_here(int(rank), int(size), Path(folder), arguments.model, arguments.steps, arguments.batch)
        return
    found = run(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))
    text = report(found, arguments)
    if arguments.write:
        replace_table(text, "scale", arguments.write)
    print(text)


if __name__ == "__main__":
    main()
