"""One process of several that train together; test_distributed starts it and reads its records.

python ranks.py RANK SIZE FOLDER SCENARIOS, where SCENARIOS is JSON: name -> options of vitrail.train. Writes
FOLDER/NAME-RANK.json: the statistics of every step, hashes of the images and targets of every micro-batch as the model
gets them, and the counts of every validation.
"""

import hashlib
import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

import vitrail
from vitrail import console
from vitrail.callbacks import Callback
from vitrail.callbacks.base import CallbackError
from vitrail.errors import VitrailError
from vitrail.interrupts import Interrupted
from vitrail.runs import epochs, finish, validation
from vitrail.runs import train as train_module
from vitrail.runs.folder import RunFolder
from vitrail.training import loop
from vitrail.training.distributed import join_world


def hash_images(images, targets):
    """Returns a hash of each image with its target."""
    return [
        hashlib.blake2b(image.numpy().tobytes() + target.numpy().tobytes(), digest_size=8).hexdigest()
        for image, target in zip(images.contiguous(), targets.contiguous(), strict=True)
    ]


def record_run(data, out, damaged=(), stop_after=None, asks_for_stop=None, fails=None, **options):
    """Runs vitrail.train and returns a record of it.

    `damaged` are image files to damage after the data was opened; `stop_after` is the epoch to stop after.
    `asks_for_stop` and `fails` are the rank and the step at which a callback in that process does so.
    """
    record = {"steps": [], "micro_batches": [], "validations": []}
    prepare_micro_batch, train_steps = loop.prepare_micro_batch, epochs.train_steps
    compute_any_outcome = validation.compute_any_outcome
    train_epochs, init_train_state = train_module.train_epochs, train_module.init_train_state

    def prepare_and_record(state, micro_batch, index, *rest):
        batch, targets = prepare_micro_batch(state, micro_batch, index, *rest)
        record["micro_batches"].append([state.step, index, hash_images(batch.images_BCHW, targets)])
        return batch, targets

    def train_and_record(*arguments, **options):
        for stats in train_steps(*arguments, **options):
            record["steps"].append([stats.step, stats.loss, stats.correct, stats.images, stats.grad_norm])
            yield stats

    def validate_and_record(*arguments, **options):
        outcome = compute_any_outcome(*arguments, **options)
        record["validations"].append([len(outcome.labels), int((outcome.predicted == outcome.labels).sum())])
        return outcome

    def damage_and_train(training):
        for name in damaged:
            file = Path(data, name)
            file.write_bytes(file.read_bytes()[:60])
        train_epochs(training)

    def init_with_own_generator_state(*arguments):
        if dist.is_initialized():
            torch.rand(dist.get_rank())  # so that the generators of the processes differ
        return init_train_state(*arguments)

    class Stop(Callback):
        def on_epoch_end(self, state):
            if state.epoch == stop_after:
                raise Interrupted("stopped")

    class EveryProcess(Callback):
        every_process = True

        def on_step_end(self, state):
            rank = dist.get_rank() if dist.is_initialized() else 0
            assert state.is_main == (rank == 0)
            if [rank, state.step] == fails:
                raise ZeroDivisionError("by zero")
            if [rank, state.step] == asks_for_stop:
                state.stop(f"rank {rank} asks for it")

    with (
        patch.object(loop, "prepare_micro_batch", prepare_and_record),
        patch.object(epochs, "train_steps", train_and_record),
        patch.object(validation, "compute_any_outcome", validate_and_record),
        patch.object(train_module, "train_epochs", damage_and_train),
        patch.object(train_module, "init_train_state", init_with_own_generator_state),
    ):
        try:
            run = vitrail.train(data, out=out, report=False, callbacks=[Stop(), EveryProcess()], **options)
        except Interrupted:
            return record
        except CallbackError as error:
            return {**record, "error": str(error)}
    rows = RunFolder(run.folder).load_metrics()
    return {**record, "rows": rows, "result": run.result, "classes": run.classifier.classes}


def call_collectives(world):
    """Returns the results of the collectives of a world."""

    def fail():
        raise VitrailError("only the main process fails", "all must know")

    def fail_on_last_rank():
        with world.raise_on_all():
            if world.rank == world.size - 1:
                raise VitrailError("only the last process fails", "all must know")

    def describe_error(function):
        try:
            function()
        except VitrailError as error:
            return str(error)

    return {
        "errors": [describe_error(fail_on_last_rank), describe_error(lambda: world.on_main(fail))],
        "sums": [*world.sum(world.rank, 1), *world.any(world.rank == 0, False)],
        "broadcast": world.broadcast(world.rank),
        "on_main": world.on_main(lambda: world.rank),
        "gathered": world.all_gather(world.rank),
    }


def main(rank: int, size: int, folder: Path, scenarios: dict) -> None:
    """Runs the scenarios one after another in one process group, as another engine would call them."""
    torch.set_num_threads(1)
    console.quiet = True
    epochs.draw_curves = finish.draw_pictures = lambda *arguments, **options: None
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    for name, options in scenarios.items():
        record = record_run(options.pop("data"), folder / options.pop("out", name), **options)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(record))
    with join_world(torch.device("cpu")) as world:
        results = call_collectives(world)
    (folder / f"world-{rank}.json").write_text(json.dumps(results))
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
