"""How long batches and explanations take: predicted from measurements at the start, corrected by what they really take.

Admission and deadlines depend on these predictions (`scheduler.py`, `worker_pool.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from vitrail.explanation.methods import find_method

DEFAULT_SECONDS_PER_IMAGE = 0.05  # before anything is measured
LEARNING_RATE = 0.2  # weight of the newest measurement in the moving averages
MAX_JUMP = 4.0  # a batch counts as at most this multiple of its expected time
DEVIATIONS = 2.0  # mean deviations that a cautious prediction adds


class ServiceTime(Protocol):
    """Predicts the time to compute a batch beyond the known times of its images (`Item.seconds`)."""

    def expected(self, size: int) -> float:
        """Returns the expected seconds of a batch of this size."""

    @property
    def caution(self) -> float:
        """The factor from an expected to a cautious prediction."""

    def observe(self, requests: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Learns from the duration of a batch with these requests."""

    def relax(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Trusts the measurements a little more, after requests were refused because of this prediction.

        Otherwise a prediction that is too long would refuse everything, and would never be corrected.
        """


@lru_cache(maxsize=4096)  # every request that arrives is checked several times, also those that are refused
def interpolate(seconds_by_size: tuple[tuple[int, float], ...], size: int) -> float:
    """Returns the time of a batch: linear between the measured sizes, proportional beyond them."""
    if not seconds_by_size:
        return size * DEFAULT_SECONDS_PER_IMAGE
    times = dict(seconds_by_size)
    smaller = max((each for each in times if each <= size), default=None)
    larger = min((each for each in times if each >= size), default=None)
    if smaller is None or larger is None or smaller == larger:
        nearest = larger if smaller is None else smaller
        assert nearest is not None
        return times[nearest] * size / nearest
    share = (size - smaller) / (larger - smaller)
    return (1 - share) * times[smaller] + share * times[larger]


@dataclass
class BatchTime:
    """The time of a batch of predictions by its size: the measured time, times a factor that follows the real one.

    The factor covers other work on the same cores. Between measured sizes the time is linear, beyond them proportional.
    """

    seconds_by_size: dict[int, float] = field(default_factory=dict)
    factor: float | None = None  # real / measured time, a moving average; None before the first batch
    deviation: float = 0.1  # relative error of the prediction, a moving average

    def expected(self, size: int) -> float:
        return self.measured(size) * (1.0 if self.factor is None else self.factor)

    def measured(self, size: int) -> float:
        """Returns the time according to the measurements alone."""
        return interpolate(tuple(self.seconds_by_size.items()), size)

    @property
    def caution(self) -> float:
        return 1 + DEVIATIONS * self.deviation

    def observe(self, requests: Sequence[Mapping[str, Any]], seconds: float) -> None:
        ratio = seconds / max(self.measured(len(requests)), 1e-9)
        if self.factor is None:
            self.factor = min(ratio, MAX_JUMP) if self.seconds_by_size else ratio
            return
        ratio = min(ratio, MAX_JUMP * self.factor)  # one batch that hung says little about the next
        error = min(abs(ratio / self.factor - 1), 1.0)
        self.deviation += LEARNING_RATE * (error - self.deviation)
        self.factor += LEARNING_RATE * (ratio - self.factor)

    def relax(self, requests: Sequence[Mapping[str, Any]]) -> None:
        self.deviation -= LEARNING_RATE * self.deviation
        if self.factor is not None and self.factor > 1:
            self.factor += LEARNING_RATE * (1 - self.factor)


@dataclass
class ArrivalTime:
    """The time from the headers of a request until its images are known: for the body, and in the event loop.

    It is long if the event loop has more to do than one core allows. A moving average, halved in each second without a
    measurement, because a value that refuses every request would never be corrected.
    """

    seconds: float = 0.0
    measured_at: float = 0.0

    def expected(self, now: float) -> float:
        return float(self.seconds * 0.5 ** (now - self.measured_at))

    def observe(self, seconds: float, now: float) -> None:
        before = self.expected(now)
        self.seconds, self.measured_at = before + LEARNING_RATE * (seconds - before), now


@dataclass(frozen=True)
class PassTimes:
    """Measured seconds of the parts of an explanation, for one image."""

    forward: float
    backward: float
    batched_forward: float  # per image of a batch
    picture: float


@dataclass
class ExplanationTime:
    """The time of an explanation: the passes of its method times their measured time, with a correction per method."""

    patches: int
    passes: PassTimes | None = None  # None until a worker has measured them
    corrections: dict[str, float] = field(default_factory=dict)  # real / known time by method, moving averages
    caution: float = 1.0

    def expected(self, size: int) -> float:
        """Returns 0: the time of each image is known (`Item.seconds`)."""
        return 0.0

    def known_seconds(self, method_name: str, has_picture: bool) -> float:
        """Returns the time of an explanation without the correction; 0 before the passes are measured."""
        if self.passes is None:
            return 0.0
        method = find_method(method_name)
        return (
            method.forwards * self.passes.forward
            + method.backwards * self.passes.backward
            + method.count_batched_forwards(self.patches) * self.passes.batched_forward
            + has_picture * self.passes.picture
        )

    def seconds(self, method_name: str, has_picture: bool) -> float:
        """Returns the expected time of an explanation."""
        correction = self.corrections.get(find_method(method_name).name, 1.0)
        return self.known_seconds(method_name, has_picture) * correction

    def observe(self, requests: Sequence[Mapping[str, Any]], seconds: float) -> None:
        for request in requests:
            method = find_method(request["options"]["method"]).name
            if known := self.known_seconds(method, request["picture"] is not None):
                before = self.corrections.get(method, 1.0)
                ratio = min(seconds / len(requests) / known, MAX_JUMP * before)  # one that hung says little
                self.corrections[method] = before + LEARNING_RATE * (ratio - before)

    def relax(self, requests: Sequence[Mapping[str, Any]]) -> None:
        for request in requests:
            method = find_method(request["options"]["method"]).name
            if self.corrections.get(method, 1.0) > 1:
                self.corrections[method] += LEARNING_RATE * (1 - self.corrections[method])
