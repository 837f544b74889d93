"""The options of `predict_all`, which are also those of the command line."""

from dataclasses import dataclass
from typing import Literal

from vitrail.errors import UsageError
from vitrail.options import check_fields, option
from vitrail.prediction.listing import LISTING_STRIDE

MAX_DEFAULT_PART_IMAGES = 31 * LISTING_STRIDE  # 1,984: the most work that a killed process loses by default
MIN_DEFAULT_PART_IMAGES = 8 * LISTING_STRIDE  # 512: a small source is one file
DEFAULT_PART_COUNT = 256  # smaller sources are cut into this many parts, so that every core gets several

TableFormat = Literal["parquet", "csv"]
EngineName = Literal["local", "ray"]
PredictPrecision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How predictions are made and written."""

    format: TableFormat = option("parquet", "file format of the parts")
    top: int = option(1, "classes per image, most probable first", ge=1)
    embedding: bool = option(False, "add the model's features of each image as a column")
    part_images: int | None = option(None, f"images per part, rounded up to a multiple of {LISTING_STRIDE}", ge=1)
    slice: tuple[int, int] = option((1, 1), "(i, n): predict the i-th of n equal shares of the parts")
    resume: bool = option(False, "continue predictions that were stopped")
    engine: EngineName = option("local", "what runs the parts")
    ray_address: str | None = option(None, "address of a Ray cluster (default: start one on this machine)")
    processes: int | None = option(None, "model processes on the CPU or on Ray (default: one per core)", ge=1)
    workers: int | None = option(None, "data-loading workers for a GPU (default: cores - 1)", ge=1)
    batch_size: int = option(64, "images per batch", ge=1)
    threads: int | None = option(None, "threads per process (default: 1)", ge=1)
    device: str | None = option(None, "cpu, cuda or mps (default: the fastest one available)")
    torch_files: bool = option(False, "also read tensors from PyTorch's own files")
    precision: PredictPrecision = option("fp32", "number format of the model")

    def __post_init__(self) -> None:
        check_fields(self)
        number, count = self.slice
        if not 1 <= number <= count:
            raise UsageError(f"slice is {number}/{count}", "the second of four machines takes 2/4")
        if self.ray_address is not None and self.engine != "ray":
            raise UsageError("--ray-address needs --engine ray", "add --engine ray")
        if self.workers is not None and self.engine == "ray":
            raise UsageError("--workers is for a GPU of this machine, not for Ray", "use --processes")

    def check_device(self, device_type: str) -> None:
        """Raises `UsageError` for `processes` on a GPU, which has one, or `workers` on the CPU, which has none."""
        if self.engine != "local":
            return
        if device_type == "cpu" and self.workers is not None:
            raise UsageError("--workers is for a GPU; on the CPU every process reads its own images", "use --processes")
        if device_type != "cpu" and self.processes is not None:
            raise UsageError(f"--processes is for the CPU; {device_type} has one model process", "use --workers")

    def images_per_part(self, images: int) -> int:
        """Returns the size of a part for a source of `images`, a multiple of `LISTING_STRIDE`."""
        default = min(max(MIN_DEFAULT_PART_IMAGES, -(-images // DEFAULT_PART_COUNT)), MAX_DEFAULT_PART_IMAGES)
        size = self.part_images or default
        return -(-size // LISTING_STRIDE) * LISTING_STRIDE
