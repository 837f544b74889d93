"""Compares the graphs of a page, run by ONNX Runtime, with the classifier before the page is written.

Shapes: L layers, N heads, T tokens, P patches, K kept patches, Y classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.comparison import Comparison, Tolerance
from vitrail.errors import VitrailError
from vitrail.explanation.api import explain_with_padding
from vitrail.explanation.inputs import embed_images
from vitrail.explanation.recording import recording
from vitrail.exporting.web.graphs import Graphs, RunGraph
from vitrail.tasks import MULTI_LABEL, exceeds

TOLERANCE = Tolerance(1e-4, floor=1e-6)
HALF_TOLERANCE = Tolerance(2e-2, floor=1e-6)  # for weights stored in float16
NOISE_IMAGES = 4  # compared in addition to the examples


def verify_graphs(classifier: Classifier, graphs: Graphs, examples: Sequence[Tensor]) -> dict[str, Any]:
    """Returns the differences over the examples and noise.

    Logits are compared with all patches and with half of them, maps for one class and for one class against another.
    Raises `VitrailError` if an output differs by more than the tolerance, or if an image gets another class, or other
    labels.
    """
    tolerance = HALF_TOLERANCE if graphs.half else TOLERANCE
    pixels_BCHW = torch.cat([torch.stack(list(examples)), make_noise(classifier)])
    sessions = graphs.sessions()
    relative: dict[str, list[float]] = {}
    differences: list[float] = []
    same_answer = 0
    for pixels_1CHW in torch.split(pixels_BCHW, 1):
        comparisons = compare_outputs(classifier, sessions, pixels_1CHW, tolerance)
        for name, comparison in comparisons.items():
            relative.setdefault(name, []).append(comparison.relative_difference)
        differences.append(comparisons["logits"].max_difference)
        same_answer += int(has_same_answer(classifier, comparisons["logits"]))
    worst = {name: float(np.max(values)) for name, values in relative.items()}
    name = max(worst, key=worst.__getitem__)
    if not all(value <= tolerance.relative for value in worst.values()) or same_answer < len(pixels_BCHW):
        answer = "labels" if classifier.task == MULTI_LABEL else "class"
        raise VitrailError(
            f"the page does not agree with the classifier: {name} differs by {worst[name]:.1e} of its largest value, "
            f"{same_answer} of {len(pixels_BCHW)} images get the same {answer}",
            "nothing was written" + ("; leave out --precision fp16" if graphs.half else ""),
        )
    return {
        "max_difference": max(differences),
        "agreement": same_answer / len(pixels_BCHW),
        "images": len(pixels_BCHW),
        "relative": worst,
    }


def compare_outputs(
    classifier: Classifier, sessions: dict[str, RunGraph], pixels_1CHW: Tensor, tolerance: Tolerance
) -> dict[str, Comparison]:
    """Compares every output of the graphs for one image; maps explain its most probable class."""
    pixels, classes = pixels_1CHW.numpy(), len(classifier.classes)
    logits, attention, lens, _, readout = sessions["inspect"](pixels)
    reference_logits, reference_attention = logits_and_attention(classifier, pixels_1CHW)
    best, *others = reference_logits[0].argsort(descending=True)[:2].tolist()
    keep_1K = draw_half(attention.shape[-1] - classifier.vit.config.prefix_tokens)
    outputs = {
        "logits": (reference_logits, logits),
        "attention": (reference_attention, attention),
        "subset": (logits_of_patches(classifier, pixels_1CHW, keep_1K), sessions["subset"](pixels, keep_1K.numpy())[0]),
        "map": (explain(classifier, pixels_1CHW, best), sessions["map"](pixels, make_target(classes, best))[0]),
        "attention map": (explain_attention(classifier, pixels_1CHW), read_attention(classifier, attention, readout)),
        "lens": (mean_lens(classifier, pixels_1CHW), lens[-1].mean(axis=0)),
    }
    for other in others:
        target = make_target(classes, best, other)
        outputs["map against"] = (explain(classifier, pixels_1CHW, best, other), sessions["map"](pixels, target)[0])
    return {
        name: Comparison(reference.reshape(1, -1), torch.from_numpy(candidate).reshape(1, -1), tolerance)
        for name, (reference, candidate) in outputs.items()
    }


def has_same_answer(classifier: Classifier, logits: Comparison) -> bool:
    """Returns whether both give an image the same class, or the same labels; logits (1, Y)."""
    if classifier.task != MULTI_LABEL:
        return logits.agreement == 1
    first, second = (
        exceeds((each.double() / classifier.temperature).sigmoid().numpy(), classifier.thresholds)
        for each in (logits.reference, logits.candidate)
    )
    return bool((first == second).all())


def make_noise(classifier: Classifier) -> Tensor:
    """Fixed images of noise, uint8 (B, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    shape = (NOISE_IMAGES, classifier.preprocess.channels, *classifier.preprocess.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def draw_half(patches: int) -> Tensor:
    """Returns the indices of a random half of the patches, (1, K), unsorted."""
    return torch.randperm(patches, generator=torch.Generator().manual_seed(1))[: max(1, patches // 2)].unsqueeze(0)


def make_target(classes: int, label: int, against: int | None = None) -> np.ndarray:
    """Returns the weights of the logits in the explained score, float32 (1, Y)."""
    target_1Y = np.zeros((1, classes), dtype=np.float32)
    target_1Y[0, label] = 1
    if against is not None:
        target_1Y[0, against] = -1
    return target_1Y


@torch.no_grad()
def logits_and_attention(classifier: Classifier, pixels_1CHW: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the classifier's logits, not divided by the temperature, and its attention (L, N, T, T)."""
    with recording(classifier.vit) as record:
        logits_1Y = classifier.vit(classifier.normalize(pixels_1CHW)).float().cpu()
    layers = [record.attention(layer)[0].float().cpu() for layer in range(record.depth)]
    return logits_1Y, torch.stack(layers)


@torch.no_grad()
def logits_of_patches(classifier: Classifier, pixels_1CHW: Tensor, keep_1K: Tensor) -> Tensor:
    """Returns the classifier's logits with only these patches, (1, Y)."""
    inputs = embed_images(classifier, pixels_1CHW, [None])
    return inputs.logits_of_patches(keep_1K.to(classifier.device)).cpu()


def explain(classifier: Classifier, pixels_1CHW: Tensor, label: int, against: int | None = None) -> Tensor:
    """Returns the classifier's map (h, w)."""
    names = classifier.classes
    target = names[label] if against is None else (names[label], names[against])
    return torch.from_numpy(explain_with_padding(classifier, pixels_1CHW, target=target)[0].map)


def explain_attention(classifier: Classifier, pixels_1CHW: Tensor) -> Tensor:
    """Returns the classifier's attention of the prediction in the last layer (h, w)."""
    return torch.from_numpy(explain_with_padding(classifier, pixels_1CHW, method="attention")[0].map)


def read_attention(classifier: Classifier, attention_LNTT: np.ndarray, readout_T: np.ndarray) -> np.ndarray:
    """Returns what the page shows for the same, (P,): the pooled tokens' rows, as the mean over the heads."""
    prefix = classifier.vit.config.prefix_tokens
    weights_T: np.ndarray = np.einsum("q,nqt->t", readout_T, attention_LNTT[-1]) / attention_LNTT.shape[1]
    return weights_T[prefix:]


@torch.no_grad()
def mean_lens(classifier: Classifier, pixels_1CHW: Tensor) -> Tensor:
    """Returns the logits that the head gives for each patch's last token alone, as the mean over the patches, (Y,)."""
    vit, prefix = classifier.vit, classifier.vit.config.prefix_tokens
    z_1TD = vit.tokens(classifier.normalize(pixels_1CHW))
    copies_PTD = z_1TD[0, prefix:, None].expand(-1, prefix + 1, -1)
    lens_Y: Tensor = vit.head(vit.pool(copies_PTD)).float().mean(dim=0).cpu()
    return lens_Y
