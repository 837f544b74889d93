"""A sweep's processes as tasks of a Ray cluster: each joins the sweep in its folder, which every node must see.

The folder is the same as without Ray, so local processes and tasks may work on one sweep, and one may go on with what
the other began. Ray places the tasks and starts another one where a task, its worker or its node has died; which trial
it then takes up is the sweep's own business, as everywhere.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vitrail import console
from vitrail.errors import VitrailError
from vitrail.interrupts import Interrupted
from vitrail.ray_cluster import NodeResources, connect_ray, count_slots, node_resources
from vitrail.sweeps.worker import run_worker

RETRIES = 20  # that a task is started again after its worker or node has died


class Tasks:
    """So many tasks of a cluster."""

    def __init__(self, ray: Any, out: Path, n: int, cpus: int, gpu: bool):
        self.ray = ray
        task = ray.remote(num_cpus=cpus, num_gpus=int(gpu), max_retries=RETRIES)(join)
        self.left = [task.remote(str(out.resolve()), cpus) for _ in range(n)]

    def look(self, finished: int) -> bool:
        """False where all are through. Raises `VitrailError` where one cannot go on."""
        ended, self.left = self.ray.wait(self.left, num_returns=len(self.left), timeout=0)
        try:
            self.ray.get(ended)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (
                cause if isinstance(cause, VitrailError) else VitrailError(f"a task of the sweep failed: {cause}")
            ) from None
        except self.ray.exceptions.RayError as error:
            raise VitrailError(f"Ray gave a task up: {error}", "go on with --resume") from None
        return bool(self.left)

    def stop(self) -> None:
        """Asks all to save and stop, and waits for them."""
        for each in self.left:
            self.ray.cancel(each, force=False)
        self.ray.wait(self.left, num_returns=len(self.left), timeout=60) if self.left else None


def join(out: str, threads: int) -> None:
    """What each task does: it joins the sweep until no trial is left."""
    console.quiet = True
    torch.set_num_threads(threads)
    try:
        run_worker(out)
    except Interrupted:  # the sweep is being stopped; the trial is saved and given back
        return


@contextmanager
def cluster(out: Path, n: int | None, trials: int, address: str | None) -> Iterator[Tasks]:
    """The tasks that work on a sweep, on a cluster that is there or one that is made for it.

    `n` tasks at a time, or as many as the cluster has cores (or GPUs, where it has any), and no more than trials.
    """
    with connect_ray(address) as ray:
        nodes = node_resources(ray)
        n, cpus, gpu = shared(nodes, n, trials)
        console.log(f"{n} tasks of {cpus} cores{' and a GPU' if gpu else ''} on {len(nodes)} node(s)")
        yield Tasks(ray, out, n, cpus, gpu)


def shared(nodes: Sequence[NodeResources], n: int | None, trials: int) -> tuple[int, int, bool]:
    """How many tasks, of how many cores, and whether with a GPU each: as many cores as all can have at once."""
    gpu = any(has.get("GPU", 0) >= 1 for has in nodes)
    room = max(1, count_slots(nodes, 1, gpu))
    n = min(n or room, trials)
    most = max((int(has.get("CPU", 0)) for has in nodes), default=0)
    return n, next((cpus for cpus in range(most, 1, -1) if count_slots(nodes, cpus, gpu) >= min(n, room)), 1), gpu
