"""vitrail's Ray Serve deployment with one replica on all cores. For benchmarks/serving.py."""

import logging
import shutil
import signal
import sys
import tempfile

import ray
from ray import serve

from vitrail.machine import count_cores
from vitrail.serving.ray import deployment
from vitrail.serving.settings import Settings

if __name__ == "__main__":
    path, port, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    home = tempfile.mkdtemp(prefix="ray-")
    try:
        quiet = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
        ray.init("local", num_cpus=count_cores(), _temp_dir=home, **quiet)
        serve.start(http_options={"port": port, "host": "127.0.0.1"})
        serve.run(
            deployment(path, Settings(max_batch_size=batch), threads=count_cores(), ray_actor_options={"num_cpus": 1}),
            route_prefix="/predict",
        )
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        serve.shutdown()
        ray.shutdown()
    finally:
        shutil.rmtree(home, ignore_errors=True)
