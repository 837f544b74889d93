"""What runs the parts: this machine or a Ray cluster."""

from collections.abc import Callable, Sequence

from vitrail.machine import count_cores
from vitrail.prediction.cpu_pool import CpuPool
from vitrail.prediction.gpu_stream import predict_in_stream
from vitrail.prediction.listing import Part
from vitrail.prediction.options import PredictOptions
from vitrail.prediction.part_job import PartJob

# Predicts all parts and calls the last argument with the number of images after each batch; the number is negative if
# images have to be predicted again. Raises `VitrailError` for the first failure.
Engine = Callable[[PartJob, Sequence[Part], PredictOptions, Callable[[int], object]], None]


def run_locally(
    job: PartJob, parts: Sequence[Part], options: PredictOptions, on_images: Callable[[int], object]
) -> None:
    """Predicts the parts on this machine."""
    if job.model.device_type == "cpu":
        processes = options.processes or max(1, count_cores() // (options.threads or 1))
        CpuPool(job, parts, processes, on_images).run()
    else:
        predict_in_stream(job, parts, options.workers or max(1, count_cores() - 1), on_images)


def resolve_engine(options: PredictOptions) -> Engine:
    """Returns the engine of the options; raises `UsageError` if it is not installed."""
    if options.engine == "local":
        return run_locally
    from vitrail.prediction.ray import make_ray_engine

    return make_ray_engine(options.ray_address)
