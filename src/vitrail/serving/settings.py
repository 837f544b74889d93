"""The limits and the worker processes of a server, as a value. The command line's options are these fields."""

from dataclasses import dataclass
from typing import Literal

from vitrail.options import check_fields, option

Backend = Literal["auto", "torch", "onnxruntime"]
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that hold for every model of a server."""

    backend: Backend = option("auto", "library that runs the model; auto: the faster one, measured at the start")
    processes: int | None = option(None, "worker processes per model (default: one per core, at most 4)", ge=1, le=64)
    threads: int | None = option(
        None, "threads per worker process (default: the cores, divided among the workers)", ge=1, le=1024
    )
    max_batch_size: int | None = option(
        None, "maximum number of images per batch (default: measured at the start)", ge=1, le=1024
    )
    max_delay_ms: float = option(0.0, "time to wait for a batch to fill, in milliseconds", ge=0, le=1000)
    queue_size: int = option(256, "images that may wait for each model, if they can be answered in time", ge=1)
    timeout_s: float = option(10.0, "time limit of a request in seconds; after it, the request gets 504", gt=0)
    max_body_mib: int = option(16, "maximum size of a request's body, also after unpacking, in MiB", ge=1, le=1024)
    max_megapixels: int = option(50, "maximum size of an image in millions of pixels", ge=1, le=100)
    max_images_per_request: int = option(64, "maximum number of images per request", ge=1, le=4096)
    decode_processes: int = option(2, "processes that decode images", ge=1, le=64)
    max_connections: int = option(
        2048, "connections that may be open; beyond them idle ones are closed, then new ones get 503", ge=1
    )
    shutdown_delay_s: float = option(
        1.0, "time from SIGTERM until the server stops accepting connections, in seconds", ge=0
    )
    explain: bool = option(True, "answer /explain, in separate processes")
    page: bool = option(True, "offer a page at /, which is prepared at the start")

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def images_per_request(self) -> int:
        """The effective maximum: a request with more images than the queue holds could never be accepted."""
        return min(self.max_images_per_request, self.queue_size)
