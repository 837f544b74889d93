"""Verifies, before it is written, that an exported program gives the classifier's outputs on real images.

Shapes: B batch, C channels, H W pixels, N images, Y classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.comparison import EXACT, Comparison, Tolerance, compare
from vitrail.errors import VitrailError
from vitrail.explanation.api import explain_with_padding
from vitrail.explanation.recording import recording
from vitrail.export_documents import DifferenceKey, VerificationDocument
from vitrail.exporting.probes import Probes
from vitrail.exporting.program import ATTENTION, DISTANCE, LOGITS, MAP, UNLIKE, ProgramOptions, RunProgram
from vitrail.intervals import paired_difference_interval
from vitrail.tasks import MULTI_LABEL, REGRESSION, exceeds

SINGLE_IMAGES = 8  # images that are also run one by one, and images on which attention and maps are compared
QUANTILES = Tolerance(1e-2)  # distances may lie close together, so that a small difference passes several
DIFFERENCE_KEYS: dict[str, DifferenceKey] = {
    ATTENTION: "attention_difference", MAP: "map_difference",
    UNLIKE: "unlike_difference", DISTANCE: "unlike_distance_difference",
}  # fmt: skip
MAX_ACCURACY_DROP = 0.005  # of an int8 program


@dataclass(frozen=True)
class Limits:
    """The differences that a program may show; None is no limit."""

    batch: Tolerance  # of the logits of an image alone and of the same image in a batch
    attention: Tolerance
    logits: Tolerance | None = None
    rms_ratio: float | None = None
    accuracy_drop: float | None = None


FLOAT32_LIMITS = Limits(batch=EXACT, attention=EXACT, logits=EXACT)
INT8_LIMITS = Limits(
    batch=Tolerance(1e-2), attention=Tolerance(0.1), rms_ratio=0.1, accuracy_drop=MAX_ACCURACY_DROP
)  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """The differences between a program and its classifier; accuracies only if the images are labeled."""

    description: str  # of the images
    images: int
    max_difference: float  # of the logits
    agreement: float  # fraction of the images with the same most probable class
    batch_difference: float  # largest difference of an image's logits alone and in a batch
    rms_ratio: float  # root mean square of the difference, relative to the standard deviation of the logits
    largest: float  # largest absolute logit of the classifier
    has_classes: bool = True  # False for numbers, whose largest one means nothing
    accuracy: float | None = None
    exported_accuracy: float | None = None
    accuracy_drop: float | None = None
    accuracy_drop_interval: tuple[float, float] | None = None  # 95%, paired over the images
    other_differences: dict[str, float] = field(default_factory=dict)  # of the outputs beside the logits

    def to_json(self) -> VerificationDocument:
        document: VerificationDocument = {
            "compared_on": self.description,
            "images": self.images,
            "max_difference": self.max_difference,
            "batch_difference": self.batch_difference,
        }
        if self.has_classes:
            document["agreement"] = self.agreement
        for name, difference in self.other_differences.items():
            document[DIFFERENCE_KEYS[name]] = difference
        if self.accuracy is not None and self.exported_accuracy is not None and self.accuracy_drop is not None:
            document["accuracy"] = self.accuracy
            document["exported_accuracy"] = self.exported_accuracy
            document["accuracy_drop"] = self.accuracy_drop
            document["accuracy_drop_interval"] = list(self.accuracy_drop_interval or ())
        return document


def verify_program(
    classifier: Classifier,
    run: RunProgram,
    probes: Probes,
    options: ProgramOptions,
    on_batch: Callable[[int], object] = lambda images: None,
) -> Verification:
    """Compares all outputs of a program; raises `VitrailError` with the numbers if one differs by more than allowed.

    `on_batch` is called with the number of images after each batch.
    """
    limits = INT8_LIMITS if options.int8 else FLOAT32_LIMITS
    verification = compare_logits(classifier, lambda pixels: run(pixels, LOGITS), probes, on_batch)
    check_tolerance(verification, limits)
    pixels = probes.first_pixels(classifier)[:SINGLE_IMAGES]
    differences: dict[str, float] = {}
    if options.attention:
        attention = compare_attention(classifier, run, pixels, limits.attention)
        require_agreement(ATTENTION, attention)
        differences[ATTENTION] = attention.max_difference
    if options.unlike:
        for output, comparison in compare_unlike(classifier, run, pixels).items():
            require_agreement(output, comparison)
            differences[output] = comparison.max_difference
    if options.map:
        maps = [compare_maps(classifier, run, pixels, *target) for target in probe_targets(classifier)]
        for comparison in maps:
            require_agreement(MAP, comparison)
        differences[MAP] = max(comparison.max_difference for comparison in maps)
    return replace(verification, other_differences=differences)


@torch.inference_mode()
def compare_logits(
    classifier: Classifier,
    logits: Callable[[Tensor], Tensor],
    probes: Probes,
    on_batch: Callable[[int], object] = lambda images: None,
) -> Verification:
    """Compares a program's logits, (B, C, H, W) -> (B, Y) divided by the temperature, with the classifier's."""
    first: list[Tensor] = []
    labels: list[Tensor] = []

    def pixels_of_batches() -> Iterator[Tensor]:
        for pixels, labels_B in probes.batches(classifier):
            labels.append(labels_B)
            if not first:
                first.append(pixels)
            yield pixels

    comparison = compare(
        lambda pixels: classifier.logits(pixels).double(), lambda pixels: logits(pixels).double(),
        pixels_of_batches(), name="the exported program", on_batch=on_batch,
    )  # fmt: skip
    has_accuracy = probes.is_labeled and classifier.task != REGRESSION
    single = torch.cat([logits(pixels).cpu().double() for pixels in torch.split(first[0][:SINGLE_IMAGES], 1)])
    return Verification(
        probes.description,
        comparison.images,
        max_difference=comparison.max_difference,
        agreement=comparison.agreement,
        batch_difference=(single - comparison.candidate[: len(single)]).abs().max().item(),
        rms_ratio=comparison.rms_ratio,
        largest=comparison.largest,
        has_classes=classifier.task != REGRESSION,
        **(compare_accuracy(comparison, torch.cat(labels), classifier) if has_accuracy else {}),
    )


def compare_accuracy(comparison: Comparison, labels_N: Tensor, classifier: Classifier) -> dict[str, Any]:
    """Returns both accuracies, their difference, and its 95% interval, paired over the images.

    An answer with several labels is right if all of them are.
    """
    correct_N = find_correct(comparison.reference, labels_N, classifier)
    exported_correct_N = find_correct(comparison.candidate, labels_N, classifier)
    n, lost = len(labels_N), int((correct_N & ~exported_correct_N).sum())
    gained = int((exported_correct_N & ~correct_N).sum())
    return {
        "accuracy": correct_N.double().mean().item(),
        "exported_accuracy": exported_correct_N.double().mean().item(),
        "accuracy_drop": (lost - gained) / n,
        "accuracy_drop_interval": paired_difference_interval(lost, gained, n),
    }


def find_correct(logits_NY: Tensor, labels_N: Tensor, classifier: Classifier) -> Tensor:
    """Returns whether the answer to each image is right, (N,)."""
    if classifier.task != MULTI_LABEL:
        return logits_NY.argmax(1) == labels_N
    predicted_NY = exceeds(logits_NY.sigmoid().numpy(), classifier.thresholds)
    return torch.from_numpy((predicted_NY == labels_N.numpy()).all(axis=1))


def check_tolerance(verification: Verification, limits: Limits) -> None:
    """Raises `VitrailError` with the numbers if a difference of the logits is larger than allowed.

    A drop in accuracy counts only if its interval excludes zero. NaN is never allowed.
    """
    hint = f"compared on {verification.description}; nothing was written"
    agreement = ""
    if verification.has_classes:
        agreement = f", the class is the same for {verification.agreement:.1%} of the images"
    if not verification.batch_difference <= limits.batch.allowed(verification.largest):
        raise VitrailError(
            f"the logits of an image depend on the other images of its batch, by {verification.batch_difference:.2e}",
            hint,
        )
    if limits.logits and not verification.max_difference <= limits.logits.allowed(verification.largest):
        raise VitrailError(
            f"the exported program does not agree: its logits differ by {verification.max_difference:.2e} where "
            f"{limits.logits.allowed(verification.largest):.0e} is allowed{agreement}", hint,
        )  # fmt: skip
    drop, interval = verification.accuracy_drop, verification.accuracy_drop_interval or (1, 1)
    if limits.accuracy_drop is not None and drop is not None and drop > limits.accuracy_drop and interval[0] > 0:
        raise VitrailError(
            f"int8 loses {100 * drop:.2f} points of accuracy ({verification.accuracy:.4f} to "
            f"{verification.exported_accuracy:.4f}) where {100 * limits.accuracy_drop} are allowed", hint,
        )  # fmt: skip
    if limits.rms_ratio is not None and not verification.rms_ratio <= limits.rms_ratio:
        raise VitrailError(
            f"int8 does not agree: the root mean square of the differences is {verification.rms_ratio:.1%} of the "
            f"logits' standard deviation where {limits.rms_ratio:.0%} is allowed{agreement}", hint,
        )  # fmt: skip


def require_agreement(output: str, comparison: Comparison) -> None:
    """Raises `VitrailError` with the number if an output differs by more than allowed."""
    if not comparison.is_within_tolerance:
        raise VitrailError(
            f"the output {output!r} does not agree: it differs by {comparison.max_difference:.2e}",
            "nothing was written",
        )


def compare_attention(classifier: Classifier, run: RunProgram, pixels: Tensor, tolerance: Tolerance) -> Comparison:
    """Compares the attention of all blocks, (B, L, N, T, T)."""
    with recording(classifier.vit) as record:
        classifier.logits(pixels)
    attention = torch.stack([record.attention(layer) for layer in range(record.depth)], dim=1).cpu()
    return Comparison(attention, run(pixels, ATTENTION), tolerance)


def compare_unlike(classifier: Classifier, run: RunProgram, pixels: Tensor) -> dict[str, Comparison]:
    """Compares the distances from the validation images and their quantiles, (B, 1) each, by name of the output."""
    _, distances_B = classifier.logits_and_distances(pixels)
    assert distances_B is not None and classifier.unlike_facts is not None
    quantiles_B = classifier.unlike_facts.find_quantiles(distances_B.cpu().double().numpy())
    return {
        DISTANCE: Comparison(distances_B.cpu().unsqueeze(1), run(pixels, DISTANCE), EXACT),
        UNLIKE: Comparison(torch.from_numpy(quantiles_B).float().unsqueeze(1), run(pixels, UNLIKE), QUANTILES),
    }


def probe_targets(classifier: Classifier) -> list[tuple[int, int | None]]:
    """Returns the classes to explain: the first, the last, and the last compared with the first."""
    last = classifier.vit.config.classes - 1
    return [(0, None), (last, None), (last, 0)] if last else [(0, None)]


def compare_maps(
    classifier: Classifier, run: RunProgram, pixels: Tensor, label: int, other: int | None = None
) -> Comparison:
    """Compares the maps (B, h, w) of a class index, alone or compared with another, with `explain_with_padding`."""
    indexed = replace(classifier, classes=tuple(map(str, range(classifier.vit.config.classes))))
    target = str(label) if other is None else (str(label), str(other))
    maps = np.stack([explanation.map for explanation in explain_with_padding(indexed, pixels, target=target)])
    target_BY = torch.zeros(len(pixels), len(indexed.classes))
    target_BY[:, label] = 1
    if other is not None:
        target_BY[:, other] = -1
    return Comparison(torch.from_numpy(maps), run(pixels, MAP, target_BY), EXACT)
