"""One process of several that train together; test_distributed starts it and reads what it saw.

python ranks.py RANK SIZE FOLDER SCENARIOS, where SCENARIOS is JSON: name -> options of vitrail.train. Writes
FOLDER/NAME-RANK.json: for every step its loss, what it counted and a digest of each image and target as the model met
them, and what every evaluation found.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import vitrail
from vitrail import console
from vitrail.errors import VitrailError
from vitrail.interrupts import Interrupted
from vitrail.runs import epochs, finish, validation
from vitrail.runs import train as runs
from vitrail.runs.folder import RunFolder
from vitrail.training import loop
from vitrail.training.distributed import join_world


def digests(images, targets):
    """One for each image with its target."""
    return [
        hashlib.blake2b(image.numpy().tobytes() + target.numpy().tobytes(), digest_size=8).hexdigest()
        for image, target in zip(images.contiguous(), targets.contiguous(), strict=True)
    ]


def observed(data, out, damaged=(), stop=None, **options):
    """A run of vitrail.train with everything it saw; it may be stopped after an epoch."""
    seen = {"steps": [], "parts": [], "scored": []}
    mix, add, classify, seed_part = (
        loop.mix_batch,
        epochs.Progress.add,
        validation.compute_outcome,
        loop.seed_micro_batch,
    )
    at = []

    def seeing_seed(seed, step, number, rank=0):
        at[:] = [step, number]
        seed_part(seed, step, number, rank)

    def seeing_mix(*arguments):
        images, targets = mix(*arguments)
        seen["parts"].append([*at, digests(images, targets)])
        return images, targets

    def seeing_add(self, step):
        seen["steps"].append([step.step, step.loss, step.correct, step.images, step.grad_norm])
        add(self, step)

    def seeing_classify(*arguments, **options):
        outcome = classify(*arguments, **options)
        seen["scored"].append([len(outcome.labels), int((outcome.predicted == outcome.labels).sum())])
        return outcome

    def damaging(training):
        for name in damaged:  # the data were sound when they were looked at
            file = Path(data, name)
            file.write_bytes(file.read_bytes()[:60])
        train_epochs(training)

    def elsewhere(*arguments):
        if dist.is_initialized():
            torch.rand(dist.get_rank())  # each process's generator stands in a place of its own
        return trainee(*arguments)

    def stopping(folder, row):
        if row["epoch"] == stop:
            raise Interrupted("stopped")

    train_epochs, trainee = runs.train_epochs, runs.init_train_state
    runs.train_epochs, runs.init_train_state = damaging, elsewhere
    loop.mix_batch, epochs.Progress.add, validation.compute_outcome, loop.seed_micro_batch = (
        seeing_mix,
        seeing_add,
        seeing_classify,
        seeing_seed,
    )
    try:
        run = vitrail.train(data, out=out, report=False, epoch_callbacks=[stopping], **options)
    except Interrupted:
        return seen
    finally:
        runs.train_epochs, runs.init_train_state = train_epochs, trainee
        loop.mix_batch, epochs.Progress.add, validation.compute_outcome, loop.seed_micro_batch = (
            mix,
            add,
            classify,
            seed_part,
        )
    return {
        **seen,
        "rows": RunFolder(run.folder).load_metrics(),
        "result": run.result,
        "classes": run.classifier.classes,
    }


def main(rank: int, size: int, folder: Path, scenarios: dict) -> None:
    """Runs the scenarios one after another in one process group, as a foreign engine would call them."""
    torch.set_num_threads(1)
    console.quiet = True
    epochs.draw_curves = finish.draw_pictures = lambda *arguments: None
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    for name, options in scenarios.items():
        seen = observed(options.pop("data"), folder / options.pop("out", name), **options)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(seen))
    with join_world(torch.device("cpu")) as world:
        try:
            with world.raise_on_all():
                if rank == size - 1:
                    raise VitrailError("only the last one knows", "tell the others")
            said = "nothing"
        except VitrailError as error:
            said = str(error)
        sums = [*world.sum(rank, 1), *world.any(rank == 0, False)]
        same = {"said": said, "sums": sums, "told": world.broadcast(rank), "gathered": world.all_gather(rank)}
    (folder / f"world-{rank}.json").write_text(json.dumps(same))
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
