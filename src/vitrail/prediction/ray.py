"""The same parts through Ray Data: past one machine, Ray places the work and repeats what a dead node had in hand.

A row of the data set is a part; an actor holds the model and writes the part itself, so a part that Ray does twice is
the same file twice. The folder of results, and the images, must be where every machine sees them.
"""

import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.machine import count_cores
from vitrail.prediction.folder import PartManifest
from vitrail.prediction.listing import Part
from vitrail.prediction.local import Tell
from vitrail.prediction.part_job import PartJob
from vitrail.ray_cluster import NodeResources, connect_ray, count_slots, node_resources

TRIES = 2  # times in a row that Ray may get nothing done before it is said to have given up
REPEATS = 5  # times that Ray does a part again whose process or machine died


def ray_engine(address: str | None) -> Any:
    """An engine on the cluster at this address, or on one of its own; raises `UsageError` where Ray is missing."""
    try:
        import ray.data
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", "pip install 'vitrail[ray]'") from None

    def engine(task: PartJob, pieces: Sequence[Part], workers: int | None, tell: Tell) -> None:
        with (
            redirect_stdout(sys.stderr),
            connect_ray(address, count_cores()),
        ):  # Ray tells of dead processes where results go
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            left, in_vain = list(pieces), 0
            while left:
                done: set[int] = set()
                try:
                    for row in results(ray, task, left, workers):
                        if row["sentence"]:
                            raise VitrailError(str(row["sentence"]), str(row["hint"]) or None)
                        done.add(int(row["part"]))
                        tell(int(row["rows"]), None)
                except ray.exceptions.RayError as error:  # a lost node, or a part that ended its process six times
                    in_vain = 0 if done else in_vain + 1
                    if in_vain == TRIES:
                        raise gave_up(error) from None
                left = [piece for piece in left if piece.number not in done]

    return engine


def gave_up(error: Exception) -> VitrailError:
    """What is said where Ray does not get the work done."""
    return VitrailError(
        f"Ray gave up: {first_line(error)}", "often the memory is short: take fewer --workers, then --resume"
    )


def results(ray: Any, task: PartJob, pieces: Sequence[Part], workers: int | None) -> Iterator[dict[str, Any]]:
    """What became of each part, as it is done."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    threads = task.model.threads or 1
    nodes = node_resources(ray)
    on_gpu = not task.model.is_onnx and task.model.device is None and any(has.get("GPU", 0) >= 1 for has in nodes)
    on_gpu = on_gpu or (task.model.device or "").startswith("cuda")
    room = count_actor_slots(nodes, threads, on_gpu)
    size = min(len(pieces), workers or max(1, room))
    yield from (
        ray.data.from_items([asdict(piece) for piece in pieces], override_num_blocks=len(pieces))
        .map_batches(
            actor_of(task),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=threads,
            num_gpus=1 if on_gpu else 0,
            ray_remote_args_fn=lambda: {"max_task_retries": REPEATS},
        )
        .iter_rows()
    )


def count_actor_slots(nodes: Sequence[NodeResources], threads: int, on_gpu: bool) -> int:
    """How many processes have room at once; raises `UsageError` where it is for their threads that none has."""
    room = count_slots(nodes, threads, on_gpu)
    if not room and count_slots(nodes, 1, on_gpu):
        raise UsageError(f"no node of the Ray cluster has {threads} cores for a process", "take fewer --threads")
    return room


def actor_of(task: PartJob) -> type:
    """An actor for this task, which Ray can make again on any machine without asking for the task."""

    class Bound(PartActor):
        def __init__(self) -> None:
            super().__init__(task)

    return Bound


def at_home(task: PartJob) -> None:
    """Goes where the task's relative paths are meant from; raises `VitrailError` where that is not on this machine."""
    try:
        if task.working_directory is not None:
            os.chdir(task.working_directory)
    except OSError as error:
        raise VitrailError(
            f"relative paths start at {task.working_directory}, which is not on {platform.node()}: {error.strerror}",
            "name everything by its full path, as every machine sees it",
        ) from None


class PartActor:
    """A process of Ray's that holds the model."""

    def __init__(self, task: PartJob):
        self.task = task
        torch.set_num_threads(task.model.threads or 1)
        self.startup_error: VitrailError | None = None
        try:
            at_home(task)
            self.classifier = task.open()
        except VitrailError as error:
            self.startup_error = error

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Does one part; what goes wrong is said in the row, for Ray would repeat it for ever."""
        piece = Part(**{name: int(values[0]) for name, values in batch.items()})
        try:
            if self.startup_error:
                raise self.startup_error
            done: PartManifest = self.task.predict_part(self.classifier, piece, lambda n: None)
            said = {"part": done.part, "rows": done.rows, "sentence": "", "hint": ""}
        except VitrailError as error:
            said = {"part": piece.number, "rows": 0, "sentence": error.sentence, "hint": error.hint or ""}
        return {name: np.array([value]) for name, value in said.items()}
