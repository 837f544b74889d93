"""What a server allows and how it works, as a value."""

from dataclasses import dataclass
from typing import Literal

from vitrail.options import check_fields, option

Backend = Literal["auto", "torch", "onnxruntime"]
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The same for every model of a server; the command line's options are made of these fields."""

    backend: Backend = option("auto", "what runs the model: torch, onnxruntime, or the faster of them here (auto)")
    workers: int | None = option(None, "processes that predict, for each model (one a core, up to 4)", ge=1, le=64)
    threads: int | None = option(None, "threads of each of them (the cores, shared out)", ge=1, le=1024)
    batch: int | None = option(None, "images that are run at once, at most (measured at the start)", ge=1, le=1024)
    wait: float = option(0.0, "milliseconds that the first image of a batch waits for more (0)", ge=0, le=1000)
    queue: int = option(256, "images that may wait for each model; more are refused with 503 (256)", ge=1)
    deadline: float = option(10.0, "seconds in which a request is answered or given up with 504 (10)", gt=0)
    body: int = option(16, "MiB of a request's body, unpacked too (16)", ge=1, le=1024)
    pixels: int = option(50, "millions of pixels of an image, as its header says (50)", ge=1, le=100)
    images: int = option(64, "images in a request, never more than may wait (64)", ge=1, le=4096)
    readers: int = option(2, "threads that decode images (2)", ge=1, le=256)
    drain: float = option(1.0, "seconds from SIGTERM until no new connection is taken (1)", ge=0)
    explain: bool = option(True, "answer /explain, from a process of its own (yes)")

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def at_once(self) -> int:
        """Images that a request may have: no more than may wait, or it could never be taken."""
        return min(self.images, self.queue)
