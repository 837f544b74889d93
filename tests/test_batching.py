"""Batches that do not fit into memory are halved, and evaluation batches follow the batch size of training."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import vitrail
from vitrail.batching import BatchHalver
from vitrail.classifier import BaseClassifier
from vitrail.data.images import Images
from vitrail.data.preprocess import Preprocess
from vitrail.errors import VitrailError
from vitrail.evaluation import compute_outcome
from vitrail.prediction import part_job
from vitrail.prediction.entry import Entry
from vitrail.prediction.folder import Plan, PredictionFolder
from vitrail.prediction.listing import Part
from vitrail.prediction.model_spec import ModelSpec
from vitrail.prediction.part_job import PartJob
from vitrail.prediction.rows import ImageBatch, predict_rows
from vitrail.training.recipe import Recipe


@dataclass
class ShortOfMemory(BaseClassifier):
    """A classifier whose memory holds `limit` images; its logits are the mean color. `sizes` are the batches it saw."""

    limit: int
    sizes: list[int] = field(default_factory=list)
    classes = ("red", "green", "blue")
    preprocess = Preprocess(image_size=(4, 4))
    temperature = 1.0
    task = "single_label"
    thresholds = ()

    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        self.sizes.append(len(pixels_BCHW))
        if len(pixels_BCHW) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return pixels_BCHW.float().mean(dim=(2, 3))


def make_images(n: int) -> Images:
    pixels = torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(pixels, [f"{i}.png" for i in range(n)], np.arange(n) % 3, ShortOfMemory.classes)


@pytest.mark.parametrize("limit", [1, 3, 5, 100])
def test_an_evaluation_short_of_memory_has_the_same_outcome(limit: int):
    images, classifier = make_images(50), ShortOfMemory(limit)
    outcome = compute_outcome(classifier, images, batch_size=20)
    assert np.array_equal(outcome.logits, compute_outcome(ShortOfMemory(50), images, batch_size=20).logits)
    failures = [size for size in classifier.sizes if size > limit]
    assert len(failures) == len(set(failures))  # a size that was too large is not tried again


def test_a_prediction_short_of_memory_has_the_same_rows():
    images = make_images(20)
    entries = [Entry(name, 0, 0) for name in images.names]
    batch = ImageBatch(images.pixels, [None] * 20)
    rows = [predict_rows(ShortOfMemory(limit), entries, batch, 2, False) for limit in (3, 20)]
    assert np.array_equal(rows[0].labels, rows[1].labels)
    assert np.array_equal(rows[0].probabilities, rows[1].probabilities)
    with pytest.raises(VitrailError, match="not enough memory for a batch of 1"):
        predict_rows(ShortOfMemory(0), entries, batch, 2, False)


def test_a_part_does_not_try_a_size_again_that_was_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = make_images(40)
    entries = [Entry(name, 0, 0) for name in images.names]
    starts = range(0, 40, 20)
    monkeypatch.setattr(PartJob, "batches", lambda job, part: [entries[start : start + 20] for start in starts])
    monkeypatch.setattr(PartJob, "write_part", lambda job, classifier, part, batches: list(batches))
    monkeypatch.setattr(part_job, "read_batch", lambda each, _: ImageBatch(images.pixels[: len(each)], [None] * 20))
    classifier = ShortOfMemory(6)
    plan = Plan("", 40, "", 40, "csv", 2, False, "fp32")
    job = PartJob(ModelSpec(""), plan, PredictionFolder(tmp_path), tmp_path, 20, None)
    job.predict_part(classifier, Part(0, 40, 0, 0))
    assert [size for size in classifier.sizes if size > 6] == [20, 10]


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def fail(batch: Tensor) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        BatchHalver()(fail, torch.zeros(4))
    assert BatchHalver()(len, torch.zeros(0)) == [0]


def test_evaluation_batches_follow_the_recipe(make_folder, monkeypatch: pytest.MonkeyPatch):
    assert Recipe(batch_size=4).evaluation_batch_size() == 16
    assert Recipe(batch_size=64, accumulation_steps=8).evaluation_batch_size(processes=2) == 16
    assert Recipe(batch_size=512).evaluation_batch_size() == Recipe().evaluation_batch_size() == 256
    sizes: list[int] = []
    real = vitrail.Classifier.logits

    def record(self: vitrail.Classifier, pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(vitrail.Classifier, "logits", record)
    folder = make_folder("photos", {"train": 6, "val": 10, "test": 10})
    vitrail.train(
        folder, out=folder.parent / "run", epochs=1, batch_size=2, width=16, depth=1, heads=2, mlp_width=16,
        report=False, check=False,
    )  # fmt: skip
    assert len(sizes) == 6 and max(sizes) == 8
