"""Connects to a Ray cluster and counts what fits on its nodes."""

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.installation import install_hint

NodeResources = dict[str, float]  # what a node has: CPU, GPU, ...


@contextmanager
def connect_ray(address: str | None, cores: int | None = None) -> Iterator[Any]:
    """Yields the module `ray`, connected to a cluster until the end of the block.

    Without an address Ray starts on this machine, with `cores` (default: all), and leaves no files behind. A process
    that is already connected stays so. Raises `UsageError` if Ray is not installed, `VitrailError` if there is no
    connection.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("ray is not installed", install_hint("ray")) from None
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # a short path: Ray makes sockets below it
    temporary = Path(tempfile.mkdtemp(prefix="ray-")) if address is None else None
    try:
        try:
            if temporary:
                ray.init("local", num_cpus=cores, include_dashboard=False, _temp_dir=str(temporary), **quiet)
            else:
                ray.init(address, **quiet)
        except Exception as error:  # Ray raises many types, plain ones too when a busy machine is too slow for it
            failure = f"at {address} does not answer" if address else "does not start"
            raise VitrailError(f"Ray {failure}: {first_line(error)}", "see --ray-address; try again") from None
        yield ray
    finally:
        ray.shutdown()
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def node_resources(ray: Any) -> list[NodeResources]:
    """Returns the resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def count_slots(nodes: Sequence[NodeResources], cores: int, gpu: bool) -> int:
    """Counts the processes that fit at once if each needs `cores`, and a GPU if `gpu`, of one node."""
    return sum(int(min(node.get("CPU", 0) // cores, node.get("GPU", 0) if gpu else math.inf)) for node in nodes)
