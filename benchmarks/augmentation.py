"""Trains a small ViT on few images with several kinds of augmentation, and compares the test accuracy.

    python -m benchmarks.augmentation DATA --out FILE.jsonl [--images 100] [--epochs 100] [--seeds 3]

DATA has a split for training and one for test. Each trial draws --images training images of each class by its seed and
adds a line to FILE: the accuracy on all test images at the end, and on its training images without augmentation. The
test images choose nothing. Trials that are in FILE already are skipped, so a stopped benchmark continues. At the end it
prints a Markdown table; the chapter docs/learn/augmentation.py draws the same file.
"""

import argparse
import itertools
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.finetuning import draw_images
from vitrail.classifier import Classifier
from vitrail.data.images import Images, load_into_memory
from vitrail.data.open import open_data
from vitrail.data.split import Splits
from vitrail.evaluation.outcome import compute_outcome
from vitrail.runs.start import random_vit
from vitrail.training.batch_sharding import make_train_loader
from vitrail.training.data_defaults import complete_recipe, resolve_model
from vitrail.training.distributed import SINGLE_PROCESS
from vitrail.training.loop import train_steps
from vitrail.training.recipes import find_recipe
from vitrail.training.train_state import init_train_state

Row = dict[str, Any]
SHIFTS: Row = {"flip": 0.5, "crop": "padded", "crop_padding": 0.125}
KINDS: dict[str, Row] = {  # strengths of DeiT (arXiv 2012.12877); those of RandAugment are torchvision's defaults
    "none": {"flip": 0.0, "crop": "none"},
    "flips and shifts": SHIFTS,
    "RandAugment": {**SHIFTS, "policy": "randaugment", "policy_ops": 2, "policy_magnitude": 9},
    "MixUp": {**SHIFTS, "mixup": 0.8},
    "CutMix": {**SHIFTS, "cutmix": 1.0},
    "all": {**SHIFTS, "policy": "randaugment", "policy_ops": 2, "policy_magnitude": 9, "mixup": 0.8, "cutmix": 1.0},
}
MODEL: Row = {"width": 64, "depth": 4, "heads": 2, "mlp_width": 256, "label_smoothing": 0.0, "batch_size": 100}


def run_trial(splits: Splits, kind: str, seed: int, epochs: int) -> Row:
    """Trains in the loop of a real run, without its files; returns the row of the trial."""
    started = time.process_time()
    recipe = find_recipe("speedrun-75", seed=seed, epochs=epochs, workers=0, **MODEL, **KINDS[kind])
    config, preprocess = resolve_model(recipe, splits)
    recipe, preprocess = complete_recipe(recipe, config, preprocess, splits, transfers=False)
    state = init_train_state(random_vit(config, recipe), recipe)
    loader = make_train_loader(splits.train, preprocess, recipe, SINGLE_PROCESS)
    losses: list[float] = []
    for epoch in range(epochs):
        steps = train_steps(state, loader.epoch(epoch), recipe, preprocess, total_steps=epochs * len(loader))
        losses.append(statistics.mean(step.loss for step in steps))
    classifier = Classifier(state.eval_model.eval(), splits.classes, preprocess)
    assert splits.test is not None
    correct = {name: compute_outcome(classifier, images, workers=0).correct
               for name, images in (("train", splits.train), ("test", splits.test))}  # fmt: skip
    return {
        "kind": kind,
        "seed": seed,
        "epochs": epochs,
        "images": len(splits.train),
        "test_images": len(splits.test),
        "train_accuracy": float(correct["train"].mean()),
        "test_accuracy": float(correct["test"].mean()),
        "losses": [round(loss, 3) for loss in losses],
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def trial_key(row: Row) -> tuple[Any, ...]:
    """Returns what identifies a trial."""
    return tuple(row[name] for name in ("kind", "seed", "epochs", "images"))


def load_rows(path: Path) -> list[Row]:
    """Returns the trials in a file; none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_trials(arguments: argparse.Namespace) -> None:
    """Runs the trials that are not in the file, seed by seed, and adds them to it."""
    all_splits = open_data(arguments.data, channels=3)
    if all_splits.test is None:
        raise SystemExit(f"{arguments.data} has no test images")
    test: Images = load_into_memory(all_splits.test, 1 << 30)
    done = {trial_key(row) for row in load_rows(arguments.out)}
    images = arguments.images * len(all_splits.classes)
    for seed, kind in itertools.product(range(arguments.seeds), KINDS):
        if (kind, seed, arguments.epochs, images) in done:
            continue
        (drawn,) = draw_images(all_splits.train, [arguments.images], seed)
        splits = replace(all_splits, train=load_into_memory(drawn, 1 << 30), validation=None, test=test)
        row = run_trial(splits, kind, seed, arguments.epochs)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"seed {seed}, {kind}: {row['test_accuracy']:.1%} after {row['cpu_seconds']} s of CPU time", flush=True)


def format_table(rows: list[Row]) -> str:
    """Returns the Markdown table: a row for each kind of augmentation, over the seeds."""
    lines = ["| augmentation | seeds | training images | test images (sd) | s |", "| --- | --: | --: | --: | --: |"]
    for kind in KINDS:
        group = [row for row in rows if row["kind"] == kind]
        if not group:
            continue
        train, test, seconds = (
            [row[name] for row in group] for name in ("train_accuracy", "test_accuracy", "cpu_seconds")
        )
        spread = f" ({100 * statistics.stdev(test):.1f})" if len(test) > 1 else ""
        lines.append(
            f"| {kind} | {len(group)} | {statistics.mean(train):.1%} | {statistics.mean(test):.1%}{spread} "
            f"| {statistics.mean(seconds):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the missing trials and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=100, help="training images of each class (default: 100)")
    parser.add_argument("--epochs", type=int, default=100, help="(default: 100)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run_trials(arguments)
    print(format_table(load_rows(arguments.out)))


if __name__ == "__main__":
    main()
