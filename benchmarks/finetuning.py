"""Compares fine-tuned models with the linear probe that they start from, on small data sets.

    python -m benchmarks.finetuning MODEL --set NAME=DATA[,TRAIN,VALIDATION[,TEST]] --out FILE.jsonl
        [--epochs 1,3,5,10,30] [--seeds 5] [--change FIELD=VALUE]

Each trial trains recipe `finetune` from the weights of MODEL in the loop of a real run, without its files, and adds a
line to FILE: the scores of every epoch on validation, and which test images the probe, the kept weights and those of
the last epoch get right. Trials that are in FILE already are skipped, so a stopped benchmark continues. TRAIN,
VALIDATION and TEST are numbers of images of each class; the seed draws those for training and validation. At the end it
prints a Markdown table of all trials in FILE; without --set it only prints it.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.data.images import Images, load_into_memory
from vitrail.data.open import open_data
from vitrail.data.split import Splits
from vitrail.evaluation.outcome import compute_outcome
from vitrail.intervals import t_interval
from vitrail.runs.data import RunData
from vitrail.runs.epochs import train_epochs
from vitrail.runs.folder import RunFolder
from vitrail.runs.pretrained import Pretrained, load_pretrained
from vitrail.runs.start import build_classifier
from vitrail.runs.train import probe_start
from vitrail.runs.training_run import TrainingRun
from vitrail.sweeps.space import parse_value
from vitrail.training.recipes import find_recipe
from vitrail.training.train_state import init_train_state

IMAGE_SIZE = 56
Row = dict[str, Any]


@dataclass
class UnsavedRun(TrainingRun):
    """A run that keeps its best weights in memory and writes neither checkpoints nor an artifact."""

    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    def save_checkpoint(self, label: str = "") -> None:
        """Writes nothing."""

    def save_artifact(self) -> None:
        """Copies the weights."""
        self.kept = {name: tensor.clone() for name, tensor in self.state.eval_model.state_dict().items()}


@dataclass(frozen=True)
class DataSet:
    """A set of the benchmark: its name, its address, and how many images of each class it takes (default: all)."""

    name: str
    data: str
    train: int | None = None
    validation: int | None = None
    test: int | None = None

    def open(self, seed: int) -> Splits:
        """Returns the splits for a seed, in memory. The test images are the same for all seeds."""
        splits = open_data(self.data, channels=3, split_seed=seed)
        train, validation, test = splits.train, splits.validation, splits.test
        if self.train is not None and self.validation is not None:
            train, validation = draw_images(train, [self.train, self.validation], seed)
        if self.test is not None and test is not None:
            test = draw_images(test, [self.test], seed=0)[0]
        splits = replace(splits, train=train, validation=validation, test=test)
        in_memory: dict[str, Any] = {
            name: load_into_memory(images, 1 << 30) for name, images in splits.as_dict().items()
        }
        return replace(splits, **in_memory)


def parse_set(text: str) -> DataSet:
    """Reads NAME=DATA[,TRAIN,VALIDATION[,TEST]]."""
    name, _, rest = text.partition("=")
    data, *counts = rest.split(",")
    return DataSet(name, data, *map(int, counts))


def draw_images(images: Images, counts: list[int], seed: int) -> list[Images]:
    """Draws disjoint sets with these numbers of images per class."""
    generator = np.random.default_rng(seed)
    drawn: list[list[int]] = [[] for _ in counts]
    for label in range(len(images.classes)):
        members = generator.permutation(np.flatnonzero(images.labels == label))
        for indices, start, count in zip(drawn, np.cumsum([0, *counts]), counts, strict=False):
            indices += members[start : start + count].tolist()
    return [images.subset(sorted(indices)) for indices in drawn]


def run_trial(data_set: DataSet, splits: Splits, pretrained: Pretrained, seed: int, epochs: int, changes: Row) -> Row:
    """Trains from the probe; returns the row of the trial, with the test images that each model gets right."""
    started = time.process_time()
    recipe = find_recipe("finetune", image_size=IMAGE_SIZE, seed=seed, workers=0, epochs=epochs, **changes)
    start = build_classifier(recipe, RunData(splits), pretrained, torch.device("cpu"))
    probes = probe_start(start)
    state = init_train_state(start.classifier.vit, start.recipe)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "checkpoint").mkdir()
        run = UnsavedRun(state, start.classifier, splits, start.recipe, RunFolder(Path(folder)))
        train_epochs(run)
        rows = RunFolder(Path(folder)).load_metrics()
    assert run.progress.best is not None and probes.linear is not None and splits.test is not None
    last = compute_outcome(run.eval_classifier, splits.test, workers=0)
    state.eval_model.load_state_dict(run.kept)
    kept = compute_outcome(run.eval_classifier, splits.test, workers=0)
    return {
        "set": data_set.name,
        "seed": seed,
        "epochs": epochs,
        "changes": changes,
        "images": {name: len(images) for name, images in splits.as_dict().items()},
        "recipe": {name: getattr(start.recipe, name) for name in ("epochs", "batch_size", "lr", "min_warmup_steps")},
        "steps": run.total_steps,
        "validation_accuracies": [row["validation_accuracy"] for row in rows],
        "validation_losses": [row["validation_loss"] for row in rows],
        "best_epoch": run.progress.best["epoch"],
        "correct": {
            "probe": encode(probes.linear.outcome.correct),
            "kept": encode(kept.correct),
            "last": encode(last.correct),
        },
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def encode(correct: np.ndarray) -> str:
    """Returns a 0 or 1 for each image."""
    return "".join("01"[int(each)] for each in correct)


def decode(correct: str) -> np.ndarray:
    """Reads what `encode` wrote, as 0.0 and 1.0."""
    return np.array([float(each) for each in correct])


def trial_key(row: Row) -> str:
    """Returns what identifies a trial."""
    return json.dumps([row[name] for name in ("set", "seed", "epochs", "changes")], sort_keys=True)


def load_rows(path: Path) -> list[Row]:
    """Returns the trials in a file; none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_trials(arguments: argparse.Namespace) -> None:
    """Runs the trials that are not in the file, seed by seed, and adds them to it."""
    pretrained = load_pretrained(arguments.model, find_recipe("finetune"), torch.device("cpu"))
    assert pretrained is not None
    done = {trial_key(row) for row in load_rows(arguments.out)}
    changes = {name: parse_value(name, text) for name, text in (each.split("=", 1) for each in arguments.change)}
    for seed, data_set in itertools.product(range(arguments.seeds), arguments.set):
        trials = [{"set": data_set.name, "seed": seed, "epochs": n, "changes": changes} for n in arguments.epochs]
        if not (missing := [trial for trial in trials if trial_key(trial) not in done]):
            continue
        splits = data_set.open(seed)
        for trial in missing:
            row = run_trial(data_set, splits, pretrained, seed, trial["epochs"], changes)
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


def format_table(rows: list[Row]) -> str:
    """Returns the Markdown table: a row for each set and number of epochs, over the seeds.

    The interval is that of the mean paired difference between the kept weights and the probe, over test images, each
    with its mean over the seeds, which share the test images.
    """
    columns = ["set", "epochs", "probe", "kept (sd over seeds)", "last epoch", "seeds", "worst seed, points",
               "kept - probe, points (95% interval)", "below the probe beyond the interval"]  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " --: |" * (len(columns) - 1)]
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["set"], row["epochs"]].append(row)
    for (name, epochs), group in sorted(groups.items()):
        probe, kept, last = (
            np.stack([decode(row["correct"][key]) for row in group]) for key in ("probe", "kept", "last")
        )
        differences = kept - probe
        of_seeds = 100 * differences.mean(axis=1)
        low, high = paired_interval(differences.mean(axis=0))
        below = sum(paired_interval(each)[1] < 0 for each in differences)
        deviation = f"{100 * kept.mean(axis=1).std(ddof=1):.1f}" if len(group) > 1 else "-"
        lines.append(
            f"| {name} | {epochs} | {probe.mean():.1%} | {kept.mean():.1%} ({deviation}) | {last.mean():.1%} "
            f"| {len(group)} | {of_seeds.min():+.1f} | {of_seeds.mean():+.1f} ({low:+.1f} to {high:+.1f}) "
            f"| {below} of {len(group)} |"
        )
    return "\n".join(lines)


def paired_interval(differences: np.ndarray) -> tuple[float, float]:
    """Returns the 95% interval of the mean of paired differences, in points."""
    low, high = t_interval(differences) or (float("nan"), float("nan"))
    return 100 * low, 100 * high


def main() -> None:
    """Runs the missing trials and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--set", type=parse_set, action="append", default=[], metavar="NAME=DATA[,N,N[,N]]")
    parser.add_argument("--epochs", type=lambda text: [int(n) for n in text.split(",")], default=[1, 3, 5, 10, 30])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--change", action="append", default=[], metavar="FIELD=VALUE", help="a field of the recipe")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.set:
        run_trials(arguments)
    print(format_table(load_rows(arguments.out)))


if __name__ == "__main__":
    main()
