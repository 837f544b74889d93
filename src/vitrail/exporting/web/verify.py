"""Whether the graphs of a page answer as the classifier does: asked of ONNX Runtime before the page is written."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.errors import VitrailError
from vitrail.explanation import explain_batch, recording
from vitrail.explanation.inputs import embed_images
from vitrail.exporting.web.graphs import Graphs

TOLERANCE = 1e-4  # of the largest value that is compared
HALF_TOLERANCE = 2e-2  # where weights are stored in float16
NOISE = 4  # images of noise that are compared besides the examples


def verify_graphs(classifier: Classifier, graphs: Graphs, examples: Sequence[Tensor]) -> dict[str, Any]:
    """The largest differences of logits, attention and maps, as parts of the largest value, over examples and noise.

    Logits are compared with all patches and with half of them, maps for a class and for one rather than another.
    Raises `VitrailError` where one is beyond the tolerance, or where an image gets another class.
    """
    tolerance = HALF_TOLERANCE if graphs.half else TOLERANCE
    pixels_BCHW = torch.cat([torch.stack(list(examples)), noise(classifier)])
    ask = graphs.sessions()
    worst: dict[str, float] = {}
    difference, same = 0.0, 0
    for pixels_1CHW in torch.split(pixels_BCHW, 1):
        given = pixels_1CHW.numpy()
        logits, attention, lens, _ = ask["look"](given)
        ours = reference(classifier, pixels_1CHW)
        this, that = ours["logits"][0].argsort(descending=True)[:2].tolist() if len(classifier.classes) > 1 else (0, 0)
        keep_1K = halved(attention.shape[-1] - classifier.vit.config.prefix_tokens)
        pairs = {
            "logits": (logits, ours["logits"]),
            "attention": (attention, ours["attention"]),
            "kept": (ask["keep"](given, keep_1K.numpy())[0], kept(classifier, pixels_1CHW, keep_1K)),
            "map": (ask["map"](given, target(len(classifier.classes), this))[0], mapped(classifier, pixels_1CHW, this)),
            "lens": (lens[-1].mean(axis=0), lens_of(classifier, pixels_1CHW)),
        }
        if this != that:
            pairs["rather"] = (
                ask["map"](given, target(len(classifier.classes), this, that))[0],
                mapped(classifier, pixels_1CHW, this, that),
            )
        for name, (theirs, mine) in pairs.items():
            away = np.abs(theirs.reshape(-1) - mine.numpy().reshape(-1)).max()
            worst[name] = max(worst.get(name, 0.0), float(away / max(1e-6, mine.abs().max().item())))
        difference = max(difference, float(np.abs(logits - ours["logits"].numpy()).max()))
        same += int(logits.argmax() == ours["logits"].argmax())
    name = max(worst, key=worst.__getitem__)
    if not worst[name] <= tolerance or same < len(pixels_BCHW):
        raise VitrailError(
            f"the page does not agree with the classifier: {name} differs by {worst[name]:.1e} of its largest value, "
            f"{same} of {len(pixels_BCHW)} images get the same class",
            "nothing was written" + ("; leave out --precision fp16" if graphs.half else ""),
        )
    return {"max_difference": difference, "agreement": same / len(pixels_BCHW), "images": len(pixels_BCHW),
            "relative": worst}  # fmt: skip


def noise(classifier: Classifier) -> Tensor:
    """Images of noise, the same each time, uint8 (B, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    shape = (NOISE, classifier.preprocess.channels, *classifier.preprocess.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def halved(patches: int) -> Tensor:
    """Half of the patches, (1, K), in no order."""
    return torch.randperm(patches, generator=torch.Generator().manual_seed(1))[: max(1, patches // 2)].unsqueeze(0)


def target(classes: int, this: int, that: int | None = None) -> np.ndarray:
    """1 at this class and -1 at that one, float32 (1, Y)."""
    weights_1Y = np.zeros((1, classes), dtype=np.float32)
    weights_1Y[0, this] = 1
    if that is not None:
        weights_1Y[0, that] = -1
    return weights_1Y


@torch.no_grad()
def reference(classifier: Classifier, pixels_1CHW: Tensor) -> dict[str, Tensor]:
    """The classifier's own logits, not divided by the temperature, and attention (L, N, T, T)."""
    with recording(classifier.vit) as record:
        logits_1Y = classifier.vit(classifier.normalize(pixels_1CHW)).float().cpu()
    layers = [record.attention(layer)[0].float().cpu() for layer in range(record.depth)]
    return {"logits": logits_1Y, "attention": torch.stack(layers)}


@torch.no_grad()
def kept(classifier: Classifier, pixels_1CHW: Tensor, keep_1K: Tensor) -> Tensor:
    """Its logits where only some patches are there."""
    scene = embed_images(classifier, pixels_1CHW, [None])
    return scene.logits_of_patches(keep_1K.to(classifier.device)).cpu()


def mapped(classifier: Classifier, pixels_1CHW: Tensor, this: int, that: int | None = None) -> Tensor:
    """Its own map."""
    names = classifier.classes
    wanted = names[this] if that is None else (names[this], names[that])
    return torch.from_numpy(explain_batch(classifier, pixels_1CHW, target=wanted)[0].map)


def lens_of(classifier: Classifier, pixels_1CHW: Tensor) -> Tensor:
    """What its patches answer after the last layer, each alone: the mean over patches, (Y,)."""
    vit, prefix = classifier.vit, classifier.vit.config.prefix_tokens
    with torch.no_grad():
        z_1TD = vit.tokens(classifier.normalize(pixels_1CHW))
        copies_PTD = z_1TD[0, prefix:, None].expand(-1, prefix + 1, -1)
        lens_Y: Tensor = vit.head(vit.pool(copies_PTD)).float().mean(dim=0).cpu()
        return lens_Y
