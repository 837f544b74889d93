"""A Ray cluster, for as long as it is needed."""

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError, VitrailError, first_line

NodeResources = dict[str, float]  # what a node has: CPU, GPU, ...


@contextmanager
def connect_ray(address: str | None, cores: int | None = None) -> Iterator[Any]:
    """Ray, connected to a cluster, which is let go at the end.

    It is the one that this process has joined before, the one at the address, or one of this machine's own with so many
    cores (all of it unless said), whose files lie in a folder that goes with it. Raises `UsageError` where Ray is not
    installed, `VitrailError` where nobody answers.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("ray is not installed", "pip install 'vitrail[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    home = Path(tempfile.mkdtemp(prefix="ray-")) if address is None else None  # short: sockets lie in it
    try:
        try:
            if home:
                ray.init("local", num_cpus=cores, include_dashboard=False, _temp_dir=str(home), **quiet)
            else:
                ray.init(address, **quiet)
        except Exception as error:  # Ray raises plain ones too, where a busy machine is too slow for it
            where = f"at {address} does not answer" if address else "does not start"
            raise VitrailError(f"Ray {where}: {first_line(error)}", "see --ray-address; try again") from None
        yield ray
    finally:
        ray.shutdown()
        if home:
            shutil.rmtree(home, ignore_errors=True)


def node_resources(ray: Any) -> list[NodeResources]:
    """What each node has that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def count_slots(nodes: Sequence[NodeResources], cores: int, gpu: bool) -> int:
    """How many processes of so many cores, and a GPU if so, have room at once; each lies on one node as a whole."""
    return sum(int(min(has.get("CPU", 0) // cores, has.get("GPU", 0) if gpu else math.inf)) for has in nodes)
