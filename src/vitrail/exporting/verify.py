"""Whether an exported program answers as the classifier does, on real images, before it is written.

Shapes: B batch, C channels, H W pixels, Y classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.data.decode import ImageError
from vitrail.data.encoded import EncodedImages
from vitrail.data.images import Images
from vitrail.data.loader import EvaluationLoader
from vitrail.data.open import open_source
from vitrail.data.scoring import SCORING_ORDER, open_images_to_score
from vitrail.errors import VitrailError
from vitrail.explanation import explain_batch
from vitrail.explanation.recording import recording
from vitrail.exporting.program import ATTENTION, MAP, ProgramOptions
from vitrail.intervals import normal_interval

TOLERANCE = 1e-4  # of the largest logit, for a program of the same numbers
LOOSE = 0.1  # for one of fewer bits: the difference's root mean square as a part of the logits' standard deviation
LOOSE_ALONE = 1e-2  # of the largest logit, for one of fewer bits: an image alone and the same one among others
MAX_ACCURACY_DROP = 0.005  # of the accuracy, for one of fewer bits, where the images are enough to say that any is lost
DEFAULT_DATA = "digits"  # real images that come with scikit-learn
DEFAULT_IMAGES = 64
SINGLE_IMAGES = 8  # images that are also asked about one by one
BATCH_SIZE = 64
Answer = Callable[[Tensor], Tensor]  # uint8 pixels (B, C, H, W) -> logits (B, Y), divided by the temperature
Run = Callable[..., Tensor]  # pixels, an output's name, and for a map how each logit counts (B, Y) -> that output


@dataclass(frozen=True)
class Probes:
    """Real images to compare on; `labelled` where their labels are the classifier's classes."""

    images: Images
    description: str
    is_labeled: bool

    def batches(self, classifier: BaseClassifier) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels as the model takes them, and labels."""
        return iter(EvaluationLoader(self.images, classifier.preprocess, BATCH_SIZE, workers=0))


@dataclass(frozen=True)
class Verification:
    """How far the answers are apart; the accuracies and their difference only where the images are labelled."""

    description: str
    images: int
    max_difference: float
    agreement: float  # part of the images with the same most probable class
    batch_difference: float  # of one image's answer, alone and among others
    rms_ratio: float  # the difference's root mean square, as a part of the logits' standard deviation
    largest: float  # of the classifier's logits
    accuracy: float | None = None
    exported_accuracy: float | None = None
    accuracy_drop: float | None = None
    accuracy_drop_interval: tuple[float, float] | None = None  # 95 %, of paired answers
    other_differences: dict[str, float] = field(
        default_factory=dict
    )  # largest differences of attention and maps, where given

    def to_json(self) -> dict[str, Any]:
        """As the command line says it and the file keeps it."""
        plain = {"compared_on": self.description, "images": self.images, "max_difference": self.max_difference,
                 "agreement": self.agreement, "alone_difference": self.batch_difference,
                 **{f"{name}_difference": apart for name, apart in self.other_differences.items()}}  # fmt: skip
        if self.accuracy_drop is None:
            return plain
        scores = {"accuracy": self.accuracy, "exported_accuracy": self.exported_accuracy, "lost": self.accuracy_drop}
        return {**plain, **scores, "lost_interval": list(self.accuracy_drop_interval or ())}


def load_probes(classifier: Classifier, data: str | Path | None, skip_unreadable: bool = False) -> Probes:
    """The images at an address, those that would be scored; without one, some of the built-in digits.

    With `skip_unreadable` those that cannot be read are counted and left out. Raises `VitrailError` for classes that
    the classifier does not know, and where no image can be read.
    """
    check = list_probes(classifier, data, skip_unreadable)
    if not skip_unreadable:
        return check
    refused: list[ImageError] = []
    for _ in EvaluationLoader(check.images, classifier.preprocess, batch_size=BATCH_SIZE, on_error=refused.append):
        pass
    if not refused:
        return check
    images = check.images.exclude(refused)
    if not len(images):
        raise refused[0]
    return replace(check, images=images, description=f"{check.description}, less {len(refused)} that cannot be read")


def list_probes(classifier: Classifier, data: str | Path | None, missing_ok: bool) -> Probes:
    """The same with all that are listed."""
    channels, trained_on = classifier.preprocess.channels, classifier.origin.get("data", {})
    known_here = trained_on.get("name") == DEFAULT_DATA and classifier.classes
    if classifier.classes and (data is not None or known_here):
        scored = open_images_to_score(data or DEFAULT_DATA, classifier.classes, channels, trained_on, missing_ok)
        return Probes(scored.images, scored.description, is_labeled=True)
    found = open_source(data or DEFAULT_DATA, channels, missing_ok)
    listing = next(found.splits[name] for name in SCORING_ORDER if len(found.splits.get(name, ())))
    listing = listing if data else listing.subset(range(min(DEFAULT_IMAGES, len(listing))))
    unlabelled = np.zeros(len(listing), dtype=np.int64)
    files = listing.pixels.locations() if isinstance(listing.pixels, EncodedImages) else None
    images = Images(listing.pixels, listing.names, unlabelled, ("",), files)
    return Probes(images, f"{len(images)} images of {found.name}", is_labeled=False)


@torch.inference_mode()
def compare_program(
    classifier: Classifier, answer: Answer, check: Probes, on_batch: Callable[[int], object] = lambda n: None
) -> Verification:
    """How far `answer` is from the classifier's own; `tick` is called with the images done in each batch.

    Raises `VitrailError` where it gives something of another shape.
    """
    ours, theirs, labels = [], [], []
    alone = 0.0
    for pixels, labels_B in check.batches(classifier):
        ours.append(classifier.logits(pixels).cpu().double())
        theirs.append(answer(pixels).cpu().double())
        labels.append(labels_B)
        if theirs[-1].shape != ours[-1].shape:
            raise VitrailError(
                f"what was exported answers {tuple(theirs[-1].shape)} where the classifier says {tuple(ours[-1].shape)}"
            )
        if len(ours) == 1:
            singly = torch.cat(
                [answer(pixels[i : i + 1]).cpu().double() for i in range(min(SINGLE_IMAGES, len(pixels)))]
            )
            alone = (singly - theirs[0][: len(singly)]).abs().max().item()
        on_batch(len(pixels))
    ours_NY, theirs_NY, labels_N = torch.cat(ours), torch.cat(theirs), torch.cat(labels)
    apart = theirs_NY - ours_NY
    return Verification(
        check.description,
        len(ours_NY),
        max_difference=apart.abs().max().item(),
        agreement=(ours_NY.argmax(1) == theirs_NY.argmax(1)).double().mean().item(),
        batch_difference=alone,
        rms_ratio=(apart.square().mean().sqrt() / ours_NY.std().clamp_min(1e-12)).item(),
        largest=ours_NY.abs().max().item(),
        **(paired_accuracy(ours_NY.argmax(1) == labels_N, theirs_NY.argmax(1) == labels_N) if check.is_labeled else {}),
    )


def paired_accuracy(right_N: Tensor, theirs_right_N: Tensor) -> dict[str, Any]:
    """Both accuracies, what was lost, and the 95 % interval of that from answers to the same images."""
    lost_N = right_N.double() - theirs_right_N.double()
    lost = lost_N.mean().item()
    return {
        "accuracy": right_N.double().mean().item(),
        "exported_accuracy": theirs_right_N.double().mean().item(),
        "accuracy_drop": lost,
        "accuracy_drop_interval": normal_interval(lost, lost_N.std(correction=0).item(), len(lost_N)),
    }


def check_tolerance(verification: Verification, *, exact: bool) -> None:
    """Raises `VitrailError` with the figures where the answers are too far apart; `exact`: of the same numbers."""
    largest = max(1.0, verification.largest)
    on = f"on {verification.description}; nothing was written"
    if not verification.batch_difference <= (TOLERANCE if exact else LOOSE_ALONE) * largest:
        raise VitrailError(
            f"an image's answer depends on the images beside it, by {verification.batch_difference:.2e}", on
        )
    if exact and not verification.max_difference <= TOLERANCE * largest:
        raise VitrailError(
            f"what was exported does not agree: its logits differ by {verification.max_difference:.2e} where "
            f"{TOLERANCE * largest:.0e} is allowed, the class is the same for {verification.agreement:.1%}", on
        )  # fmt: skip
    if (
        not exact
        and verification.accuracy_drop is not None
        and verification.accuracy_drop > MAX_ACCURACY_DROP
        and (verification.accuracy_drop_interval or (1, 1))[0] > 0
    ):
        raise VitrailError(
            f"int8 costs {100 * verification.accuracy_drop:.2f} points of accuracy ({verification.accuracy:.4f} to "
            f"{verification.exported_accuracy:.4f}) where {100 * MAX_ACCURACY_DROP} are allowed", on
        )  # fmt: skip
    if not exact and not verification.rms_ratio <= LOOSE:
        raise VitrailError(
            f"int8 does not agree: its logits are off by {verification.rms_ratio:.1%} of their spread where {LOOSE:.0%} is "
            f"allowed, the class is the same for {verification.agreement:.1%}", on
        )  # fmt: skip


def verify_extra_outputs(classifier: Classifier, run: Run, check: Probes, extras: ProgramOptions) -> dict[str, float]:
    """How far attention and maps are from the classifier's; raises `VitrailError` with the figure if too far."""
    differences: dict[str, float] = {}
    pixels, _ = next(check.batches(classifier))
    pixels = pixels[:SINGLE_IMAGES]
    if extras.attention:
        with recording(classifier.vit) as record:
            classifier.logits(pixels)
        ours = torch.stack([record.attention(layer) for layer in range(record.depth)], dim=1)
        allowed = LOOSE if extras.int8 else TOLERANCE
        apart = (run(pixels, ATTENTION) - ours.cpu()).abs().max().item()
        if not apart <= allowed:
            raise VitrailError(f"attention does not agree: it differs by {apart:.2e}", "nothing was written")
        differences[ATTENTION] = apart
    if extras.map:
        for target in probe_targets(classifier.vit.config.classes):
            apart, largest = map_difference(classifier, run, pixels, *target)
            if not apart <= TOLERANCE * max(1.0, largest):
                raise VitrailError(f"the maps do not agree: they differ by {apart:.2e}", "nothing was written")
            differences[MAP] = max(apart, differences.get(MAP, 0.0))
    return differences


def probe_targets(classes: int) -> list[tuple[int, int | None]]:
    """Classes to ask for: the first, the last, and the one rather than the other."""
    last = classes - 1
    return [(0, None), (last, None), (last, 0)] if last else [(0, None)]


def map_difference(
    classifier: Classifier, run: Run, pixels: Tensor, this: int, that: int | None
) -> tuple[float, float]:
    """How far the program's maps are from `explain`'s, and the largest value in those."""
    named = replace(classifier, classes=tuple(map(str, range(classifier.vit.config.classes))))
    target = str(this) if that is None else (str(this), str(that))
    ours = np.stack([each.map for each in explain_batch(named, pixels, target=target)])
    target_BY = torch.zeros(len(pixels), len(named.classes))
    target_BY[:, this] = 1
    if that is not None:
        target_BY[:, that] = -1
    return float(np.abs(run(pixels, MAP, target_BY).numpy() - ours).max()), float(np.abs(ours).max())
