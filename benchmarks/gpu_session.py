"""What the parts of `python -m benchmarks.gpu` share: the session, how results are recorded, and its images."""

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.data.preprocess import Preprocess
from vitrail.errors import first_line
from vitrail.files import write_json
from vitrail.machine import pick_device
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.weights.sizes import SIZES

COLORS = {"red": (210, 50, 40), "green": (40, 190, 70), "blue": (50, 60, 220)}


@dataclass(frozen=True)
class Session:
    """The device, the folder of the results, the data for the accuracy, whether sizes are tiny, and the time limit."""

    device_name: str
    out: Path
    data: str = "cifar10"
    tiny: bool = False
    limit_s: float = 60.0  # of the part that runs

    @property
    def device(self) -> torch.device:
        """The device. Call it only in a part: the process that forks must not use a GPU."""
        return pick_device(self.device_name)

    def folder(self, name: str) -> Path:
        """Returns a new empty folder for the files of a part."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.out))

    def config(self, classes: int = 3) -> ViTConfig:
        """The model of the checks: ViT-Ti/16 at 224 pixels."""
        tiny = dict(width=32, depth=2, heads=2, mlp_width=64, patch=4, image_size=16)
        return ViTConfig(**{**(tiny if self.tiny else SIZES["Ti"]), "classes": classes})  # type: ignore[arg-type]

    def classifier(self, seed: int = 0) -> Classifier:
        """A classifier with random weights on the CPU, large enough that its logits differ between images."""
        torch.manual_seed(seed)
        vit = ViT(self.config()).eval()
        with torch.no_grad():
            for name, parameter in vit.named_parameters():
                if name == "head.weight":
                    parameter.normal_(0, 0.5)
        size = vit.config.image_size
        height = size if isinstance(size, int) else size[0]
        return Classifier(vit.requires_grad_(False), tuple(COLORS), Preprocess(image_size=(height, height)))

    def pixels(self, count: int) -> Tensor:
        """Random uint8 images (B, C, H, W) of the size of the checks' model."""
        config = self.config()
        assert isinstance(config.image_size, int)
        generator = torch.Generator().manual_seed(0)
        size = (count, config.channels, config.image_size, config.image_size)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)

    def write_images(self, folder: Path, per_class: int) -> Path:
        """Writes noisy images of three colors with train and test; returns their folder."""
        generator = np.random.default_rng(0)
        for split, count in (("train", per_class), ("test", max(per_class // 3, 2))):
            for label, color in COLORS.items():
                (folder / split / label).mkdir(parents=True)
                for number in range(count):
                    noise = generator.normal(0, 30, (16, 16, 3))
                    pixels = (np.array(color) + noise).clip(0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
        return folder


@dataclass
class Recorder:
    """Writes each result to a file as soon as it is there."""

    path: Path
    results: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, **values: Any) -> None:
        """Adds a measurement."""
        self.results.append({"name": name, **values})
        write_json(self.path, {"results": self.results})

    def check(self, name: str, passed: bool, **values: Any) -> None:
        """Adds a check; one that has not passed does not end the part."""
        self.add(name, passed=bool(passed), **values)

    def compare(self, name: str, actual: Any, expected: Any, bound: float) -> None:
        """Adds a check that two arrays differ by at most `bound` times the largest expected value."""
        ours, theirs = to_array(actual), to_array(expected)
        if ours.shape != theirs.shape:
            self.check(name, False, shape=str(ours.shape), expected=str(theirs.shape))
            return
        difference = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12))
        shown = difference if math.isfinite(difference) else str(difference)
        self.check(name, difference <= bound, difference=shown, bound=bound)

    def fail(self, message: str) -> None:
        """Writes the error that ended the part, with the results before it."""
        write_json(self.path, {"results": self.results, "error": message})


def to_array(values: Any) -> np.ndarray:
    """A tensor of any device and float type, or an array, as float64."""
    if isinstance(values, Tensor):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def explain_error(error: BaseException) -> str:
    """The error's type and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error) if isinstance(error, Exception) else error}"
