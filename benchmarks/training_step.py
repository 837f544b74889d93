"""A training step of the default recipe beside timm's twin of its model, in turn.

    python -m benchmarks.training_step [--threads 1] [--rounds 21] [--clock cpu] [--write docs/benchmarks.md]

The step of vitrail is that of a run: normalization, autocast, label smoothing, clipping, Muon and AdamW, EMA, and
reading the loss. The twin has the same blocks, and normalizes, trains and reads its loss in plain PyTorch, without
clipping and EMA.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.document import replace_table
from vitrail.benchmarking.timing import Timing, time_alternately
from vitrail.data.preprocess import Preprocess
from vitrail.machine import describe_hardware, keep_freed_memory
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.training.loop import train_step
from vitrail.training.muon import Muon
from vitrail.training.recipes import find_recipe
from vitrail.training.train_state import init_train_state

Run = Callable[[], object]
TWIN = "timm, AdamW, fp32"  # what ratios refer to


@dataclass(frozen=True)
class Task:
    """Images and patches of a training, and the images of a step."""

    name: str
    channels: int
    size: int
    patch: int
    batch: int

    def draw_batch(self) -> tuple[Tensor, Tensor]:
        """Returns random pixels and labels."""
        pixels = torch.randint(0, 256, (self.batch, self.channels, self.size, self.size), dtype=torch.uint8)
        return pixels, torch.randint(0, 10, (self.batch,))


TASKS = (
    Task("digits, batch 64", channels=1, size=8, patch=2, batch=64),
    Task("digits, batch 8", channels=1, size=8, patch=2, batch=8),
    Task("CIFAR-10, batch 64", channels=3, size=32, patch=4, batch=64),
)


def make_own_step(task: Task, **changes: object) -> Run:
    """Returns a step of recipe `small`."""
    recipe = find_recipe("small", epochs=1, batch_size=task.batch, **changes)  # type: ignore[arg-type]
    sizes = dict(patch=task.patch, image_size=task.size, channels=task.channels, classes=10)
    torch.manual_seed(0)
    state = init_train_state(ViT(ViTConfig(**recipe.model | sizes)), recipe)  # type: ignore[arg-type]
    state.set_train_mode()
    each = (0.5,) * task.channels
    preprocess, batch = Preprocess(image_size=(task.size, task.size), mean=each, std=each), task.draw_batch()
    return lambda: train_step(state, batch, recipe, preprocess, total_steps=10**6).loss


def make_twin_step(task: Task, make_optimizers: Callable[[torch.nn.Module], list[Optimizer]], *, bf16: bool) -> Run:
    """Returns a step of timm's model with the same blocks."""
    import timm

    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=task.size, patch_size=task.patch, in_chans=task.channels, num_classes=10, embed_dim=96, depth=5,
        num_heads=3, mlp_ratio=4, class_token=False, global_pool="avg", fc_norm=False, qk_norm=True,
    ).train()  # fmt: skip
    optimizers, (pixels, labels) = make_optimizers(model), task.draw_batch()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model((pixels.float() / 255 - 0.5) / 0.5)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return step


def use_adamw(model: torch.nn.Module) -> list[Optimizer]:
    """Returns AdamW for all parameters."""
    return [torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)]


def use_muon(kind: Callable[..., Optimizer]) -> Callable[[torch.nn.Module], list[Optimizer]]:
    """Returns a function that makes Muon for the matrices of the blocks, and AdamW for the others."""

    def make(model: torch.nn.Module) -> list[Optimizer]:
        is_matrix = {name: name.startswith("blocks.") and each.ndim == 2 for name, each in model.named_parameters()}
        matrices, others = (
            [each for name, each in model.named_parameters() if is_matrix[name] is wanted] for wanted in (True, False)
        )
        return [kind(matrices, lr=0.02), torch.optim.AdamW(others, lr=1e-3, fused=True)]

    return make


def make_steps(task: Task) -> dict[str, Run]:
    """Returns the steps that are compared, by name."""
    return {
        "vitrail, as trained (Muon, EMA, clipping, `auto`)": make_own_step(task),
        "vitrail, the same in fp32": make_own_step(task, precision="fp32"),
        "vitrail, AdamW, no EMA, fp32": make_own_step(task, precision="fp32", optimizer="adamw", ema_decay=None),
        "timm, vitrail's Muon, fp32": make_twin_step(task, use_muon(Muon), bf16=False),
        "timm, `torch.optim.Muon`, fp32": make_twin_step(task, use_muon(torch.optim.Muon), bf16=False),
        TWIN: make_twin_step(task, use_adamw, bf16=False),
        "timm, AdamW, bf16 autocast": make_twin_step(task, use_adamw, bf16=True),
    }


def format_rows(task: Task, timings: dict[str, Timing]) -> list[str]:
    """Returns the rows of a table: milliseconds, and how many times those of the twin."""
    rows = []
    for name, timing in timings.items():
        median, low, high = timings[TWIN].ratio(timing)  # speeds: the inverse of the times
        ratio = "1" if name == TWIN else f"{median:.2f} ({low:.2f} to {high:.2f})"
        rows.append(f"| {task.name} | {name} | {1000 * timing.median:.1f} | {ratio} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    rows, load = [], os.getloadavg()[0]
    for task in TASKS:
        steps = make_steps(task)
        measured = time_alternately(list(steps.values()), rounds=arguments.rounds, min_seconds=0, clock=arguments.clock)
        rows += format_rows(task, dict(zip(steps, measured, strict=True)))
    hardware = describe_hardware(torch.device("cpu"))
    text = "\n".join(
        (
            f"{hardware['device']}, torch {hardware['torch']}, {arguments.threads} thread(s), {arguments.clock} time, "
            f"medians of {arguments.rounds} alternating rounds (quartiles); load average {load:.1f} before and "
            f"{os.getloadavg()[0]:.1f} after.",
            "",
            "| task | step | ms | times the twin with AdamW |",
            "| --- | --- | --: | --: |",
            *rows,
        )
    )
    print(text)
    if arguments.write:
        replace_table(text, "training-step", arguments.write)


if __name__ == "__main__":
    main()
