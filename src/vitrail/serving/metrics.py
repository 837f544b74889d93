"""What a server counts: for Prometheus, and for the protocol's statistics."""

import time
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        by_model: dict[str, Any] = {"labelnames": ("model", "task"), "namespace": "vitrail", "registry": registry}
        self.queue = Histogram("queue_seconds", "an image's wait for its batch", buckets=SHORT, **by_model)
        self.compute = Histogram("compute_seconds", "a batch in the model", buckets=SHORT, **by_model)
        self.batch = Histogram("batch_size", "images run at once", buckets=SIZES, **by_model)
        self.waiting = Gauge("waiting_images", "images that wait for a batch", **by_model)
        self.restarts = Counter("worker_restarts", "processes started again after one ended", **by_model)
        self.decode = Histogram(
            "decode_seconds", "an image file becoming pixels", buckets=SHORT, namespace="vitrail", registry=registry
        )
        self.rejected = Counter(
            "rejected", "requests that got no answer, by reason", ("reason",), namespace="vitrail", registry=registry
        )
        self.requests = Histogram(
            "request_seconds", "a request from its first byte to its answer's last",
            ("route", "status"), buckets=SHORT, namespace="vitrail", registry=registry,
        )  # fmt: skip

    def render(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self.registry)


@dataclass
class Span:
    """How often something happened and how long it took."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """It happened again."""
        self.count += times
        self.seconds += seconds * times

    def to_json(self) -> dict[str, int]:
        """As the protocol writes it."""
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


SPANS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class Statistics:
    """The protocol's statistics of one model: `inference_count` counts images, `execution_count` runs of the model."""

    spans: dict[str, Span] = field(default_factory=lambda: {name: Span() for name in SPANS})
    images: int = 0
    runs: int = 0
    last: int = 0  # milliseconds since 1970
    sizes: dict[int, Span] = field(default_factory=dict)

    def ran(self, images: int, seconds: float) -> None:
        """The model answered a batch."""
        self.images += images
        self.runs += 1
        self.last = round(time.time() * 1000)
        self.spans["compute_infer"].add(seconds)
        self.sizes.setdefault(images, Span()).add(seconds)

    def to_json(self, name: str, version: str) -> dict[str, Any]:
        """As the protocol writes it."""
        nothing = Span().to_json()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last,
            "inference_count": self.images,
            "execution_count": self.runs,
            "inference_stats": {name: span.to_json() for name, span in self.spans.items()},
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": nothing,
                    "compute_infer": span.to_json(),
                    "compute_output": nothing,
                }
                for size, span in sorted(self.sizes.items())
            ],
        }
