"""Metrics for Prometheus, and the statistics of the inference protocol."""

import time
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        by_model: dict[str, Any] = {"labelnames": ("model", "task"), "namespace": "vitrail", "registry": registry}
        self.queue = Histogram("queue_seconds", "wait of an image for its batch", buckets=SECONDS_BUCKETS, **by_model)
        self.compute = Histogram("compute_seconds", "computation of a batch", buckets=SECONDS_BUCKETS, **by_model)
        self.batch = Histogram("batch_size", "images per batch", buckets=BATCH_SIZE_BUCKETS, **by_model)
        self.waiting = Gauge("waiting_images", "images in the queue", **by_model)
        self.restarts = Counter("worker_restarts", "worker processes that ended and were replaced", **by_model)
        self.decode = Histogram(
            "decode_seconds",
            "time to decode an image file",
            buckets=SECONDS_BUCKETS,
            namespace="vitrail",
            registry=registry,
        )
        self.rejected = Counter(
            "rejected",
            "requests that failed, by reason",
            ("reason",),
            namespace="vitrail",
            registry=registry,
        )
        self.requests = Histogram(
            "request_seconds", "duration of a request, from its first byte to the last byte of the response",
            ("route", "status"), buckets=SECONDS_BUCKETS, namespace="vitrail", registry=registry,
        )  # fmt: skip

    def render(self) -> bytes:
        """Returns the metrics in Prometheus's text format."""
        return generate_latest(self.registry)


@dataclass
class Duration:
    """Count and total duration of an event."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def to_json(self) -> dict[str, int]:
        """Returns the duration in the protocol's format."""
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


DURATION_NAMES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class Statistics:
    """The protocol's statistics of one model: `inference_count` counts images, `execution_count` counts batches."""

    durations: dict[str, Duration] = field(default_factory=lambda: {name: Duration() for name in DURATION_NAMES})
    image_count: int = 0
    batch_count: int = 0
    last_inference_ms: int = 0  # since 1970
    durations_by_batch_size: dict[int, Duration] = field(default_factory=dict)

    def add_batch(self, batch_size: int, seconds: float) -> None:
        """Counts a batch that the model has computed."""
        self.image_count += batch_size
        self.batch_count += 1
        self.last_inference_ms = round(time.time() * 1000)
        self.durations["compute_infer"].add(seconds)
        self.durations_by_batch_size.setdefault(batch_size, Duration()).add(seconds)

    def to_json(self, name: str, version: str) -> dict[str, Any]:
        """Returns the statistics in the protocol's format."""
        zero = Duration().to_json()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.image_count,
            "execution_count": self.batch_count,
            "inference_stats": {name: duration.to_json() for name, duration in self.durations.items()},
            "batch_stats": [
                {
                    "batch_size": batch_size,
                    "compute_input": zero,
                    "compute_infer": duration.to_json(),
                    "compute_output": zero,
                }
                for batch_size, duration in sorted(self.durations_by_batch_size.items())
            ],
        }
