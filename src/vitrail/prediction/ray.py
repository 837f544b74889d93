"""The engine for a Ray cluster: Ray Data places the parts on nodes and repeats those of a node that dies.

A row of the Ray data set is a part. An actor holds the model and writes the part itself: a part that Ray runs twice is
written twice, with the same content. Every machine must see the images and the folder of results under the same paths.
"""

import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.installation import install_hint
from vitrail.machine import count_cores
from vitrail.parts import plugins_for_processes
from vitrail.plugins import load_plugins
from vitrail.prediction.listing import Part
from vitrail.prediction.options import PredictOptions
from vitrail.prediction.part_job import PartJob
from vitrail.ray_cluster import NodeResources, connect_ray, count_slots, node_resources

MAX_ROUNDS_WITHOUT_PROGRESS = 2
MAX_TASK_RETRIES = 5  # per part, if its process or its machine dies


def make_ray_engine(address: str | None) -> Any:
    """Returns an engine on the cluster at `address`, or on one of its own; raises `UsageError` if Ray is missing."""
    try:
        import ray.data
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", install_hint("ray")) from None

    def run_on_ray(
        job: PartJob, parts: Sequence[Part], options: PredictOptions, on_images: Callable[[int], object]
    ) -> None:
        with redirect_stdout(sys.stderr), connect_ray(address, count_cores()):  # Ray prints on stdout, where results go
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            remaining, rounds_without_progress = list(parts), 0
            while remaining:
                done: set[int] = set()
                try:
                    for row in run_parts(ray, job, remaining, options.processes):
                        if row["error"]:
                            raise VitrailError(str(row["error"]), str(row["hint"]) or None)
                        done.add(int(row["part"]))
                        on_images(int(row["rows"]))
                except ray.exceptions.RayError as error:  # a lost node, or a part that keeps killing its process
                    rounds_without_progress = 0 if done else rounds_without_progress + 1
                    if rounds_without_progress == MAX_ROUNDS_WITHOUT_PROGRESS:
                        raise VitrailError(
                            f"Ray gave up: {first_line(error)}",
                            "memory may be short: use fewer --processes, then --resume",
                        ) from None
                remaining = [part for part in remaining if part.number not in done]

    return run_on_ray


def run_parts(ray: Any, job: PartJob, parts: Sequence[Part], processes: int | None) -> Iterator[dict[str, Any]]:
    """Yields the result of each part, as `PartActor` returns it, in the order in which they are done."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    threads = job.model.threads or 1
    nodes = node_resources(ray)
    use_gpu = wants_gpu(job, nodes)
    slots = count_actor_slots(nodes, threads, use_gpu)
    size = min(len(parts), processes or max(1, slots))
    yield from (
        ray.data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts))
        .map_batches(
            bind_actor(job),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=threads,
            num_gpus=1 if use_gpu else 0,
            ray_remote_args_fn=lambda: {"max_task_retries": MAX_TASK_RETRIES},
        )
        .iter_rows()
    )


def wants_gpu(job: PartJob, nodes: Sequence[NodeResources]) -> bool:
    """Returns whether actors need a GPU: for device cuda; without a device, for a PyTorch model if a node has one."""
    if (job.model.device or "").startswith("cuda"):
        return True
    return not job.model.is_program and job.model.device is None and any(node.get("GPU", 0) >= 1 for node in nodes)


def count_actor_slots(nodes: Sequence[NodeResources], threads: int, use_gpu: bool) -> int:
    """How many actors fit at once; raises `UsageError` if none fits because of its threads."""
    slots = count_slots(nodes, threads, use_gpu)
    if not slots and count_slots(nodes, 1, use_gpu):
        raise UsageError(f"no node of the Ray cluster has {threads} cores for a process", "use fewer --threads")
    return slots


def bind_actor(job: PartJob) -> type:
    """Returns an actor class without arguments, which Ray can start again on any machine."""
    plugins = plugins_for_processes()

    class BoundActor(PartActor):
        def __init__(self) -> None:
            super().__init__(job, plugins)

    return BoundActor


class PartActor:
    """A Ray process with the model."""

    def __init__(self, job: PartJob, plugins: Sequence[str] = ()):
        self.job = job
        torch.set_num_threads(job.model.threads or 1)
        self.startup_error: VitrailError | None = None
        try:
            enter_working_directory(job)
            load_plugins(plugins)
            self.classifier = job.load_classifier()
        except VitrailError as error:
            self.startup_error = error

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predicts one part. An error becomes part of the result: Ray would retry an exception."""
        part = Part(**{name: int(values[0]) for name, values in batch.items()})
        try:
            if self.startup_error:
                raise self.startup_error
            manifest = self.job.predict_part(self.classifier, part)
            result = {"part": manifest.part, "rows": manifest.rows, "error": "", "hint": ""}
        except VitrailError as error:
            result = {"part": part.number, "rows": 0, "error": error.sentence, "hint": error.hint or ""}
        return {name: np.array([value]) for name, value in result.items()}


def enter_working_directory(job: PartJob) -> None:
    """Changes to the folder where relative paths start; raises `VitrailError` if this machine does not have it."""
    try:
        if job.working_directory is not None:
            os.chdir(job.working_directory)
    except OSError as error:
        raise VitrailError(
            f"relative paths start at {job.working_directory}, which is not on {platform.node()}: {error.strerror}",
            "use absolute paths, valid on every machine",
        ) from None
