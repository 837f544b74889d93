"""Whether a classifier made fast still says the same."""

from typing import Any

import torch

from vitrail.classifier import Classifier
from vitrail.data import Images


def compare_fast_path(classifier: Classifier, images: Images, *, max_images: int, batch: int = 8) -> dict[str, Any]:
    """The fast path beside the plain one on the first `most` images of a fixed order.

    `same` is the part of images with the same first label, or of features with the same nearest other image; `apart`
    the largest difference of a logit or feature, in parts of the largest one.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:max_images].numpy()
    quick = classifier.fast()
    plain, fast = [], []
    for at in range(0, len(order), batch):
        pixels = images.load_batch(classifier.preprocess, order[at : at + batch])
        plain.append(classifier.logits(pixels).cpu())
        fast.append(quick.logits(pixels).cpu())
    a, b = torch.cat(plain), torch.cat(fast)
    answers = [answer(each, named=bool(classifier.classes)) for each in (a, b)]
    return {
        "images": len(a),
        "same": float((answers[0] == answers[1]).float().mean()),
        "apart": float((a - b).abs().max() / a.abs().max()),
        "of": "labels" if classifier.classes else "nearest images",
    }


def answer(given: torch.Tensor, *, named: bool) -> torch.Tensor:
    """The first label of each image; of features, the image whose features are the nearest by their angle."""
    if named:
        return given.argmax(1)
    unit = torch.nn.functional.normalize(given, dim=1)
    return (unit @ unit.mT).fill_diagonal_(-2).argmax(1)
