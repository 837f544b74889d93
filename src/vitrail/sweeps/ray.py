"""The workers of a sweep as tasks of a Ray cluster. Every node must see the sweep's folder.

The folder is the same as without Ray: local processes and tasks may work on one sweep, and either may continue what the
other began. Ray places the tasks and restarts one whose worker process or node has died.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vitrail import console
from vitrail.errors import VitrailError
from vitrail.interrupts import Interrupted
from vitrail.parts import plugins_for_processes
from vitrail.plugins import load_plugins
from vitrail.ray_cluster import NodeResources, connect_ray, count_slots, node_resources
from vitrail.sweeps.worker import run_worker

MAX_RETRIES = 20  # restarts of a task whose process or node has died
STOP_TIMEOUT_S = 60


class RayWorkers:
    """Tasks of a Ray cluster."""

    def __init__(self, ray: Any, out: Path, count: int, cores: int, gpu: bool):
        self.ray = ray
        task = ray.remote(num_cpus=cores, num_gpus=int(gpu), max_retries=MAX_RETRIES)(join_sweep)
        plugins = plugins_for_processes()
        self.running = [task.remote(str(out.resolve()), cores, plugins) for _ in range(count)]

    def supervise(self, finished_trials: int) -> bool:
        """False once all tasks have ended. Raises `VitrailError` if one cannot continue."""
        ended, self.running = self.ray.wait(self.running, num_returns=len(self.running), timeout=0)
        try:
            self.ray.get(ended)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (
                cause if isinstance(cause, VitrailError) else VitrailError(f"a task of the sweep failed: {cause}")
            ) from None
        except self.ray.exceptions.RayError as error:
            raise VitrailError(f"Ray has given up a task: {error}", "continue with --resume") from None
        return bool(self.running)

    def stop(self) -> None:
        """Asks all tasks to save and stop, and waits for them."""
        for task in self.running:
            self.ray.cancel(task, force=False)
        if self.running:
            self.ray.wait(self.running, num_returns=len(self.running), timeout=STOP_TIMEOUT_S)


def join_sweep(out: str, threads: int, plugins: Sequence[str] = ()) -> None:
    """Runs a worker in a task, with these plugins."""
    console.quiet = True
    load_plugins(plugins)
    torch.set_num_threads(threads)
    try:
        run_worker(out)
    except Interrupted:  # the sweep is being stopped; the trial is saved and released
        return


@contextmanager
def start_ray_workers(out: Path, count: int | None, trials: int, address: str | None) -> Iterator[RayWorkers]:
    """Tasks on the cluster at the address, or on a new one on this machine.

    `count` is how many run at once (default: the cluster's cores, or its GPUs if it has any; at most the trials).
    """
    with connect_ray(address) as ray:
        nodes = node_resources(ray)
        count, cores, gpu = plan_tasks(nodes, count, trials)
        console.log(f"{count} tasks of {cores} cores{' and a GPU' if gpu else ''} on {len(nodes)} node(s)")
        yield RayWorkers(ray, out, count, cores, gpu)


def plan_tasks(nodes: Sequence[NodeResources], count: int | None, trials: int) -> tuple[int, int, bool]:
    """Returns the number of tasks, the cores of each (as many as all can have at once), and whether each has a GPU."""
    gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
    slots = max(1, count_slots(nodes, 1, gpu))
    count = min(count or slots, trials)
    largest = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    candidates = (cores for cores in range(largest, 1, -1) if count_slots(nodes, cores, gpu) >= min(count, slots))
    return count, next(candidates, 1), gpu
