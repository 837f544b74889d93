"""Data sets by name: `digits`, which comes with scikit-learn, and those that torchvision downloads."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.data.labels import categorize
from vitrail.data.source import Listing, Source
from vitrail.errors import VitrailError


@dataclass(frozen=True)
class BuiltinDataset:
    """A data set by name: how to load it, and how it is described."""

    description: str
    load: Callable[[], dict[str, Listing]]
    can_flip: bool = True
    channels: int = 3


class TorchvisionImages(Sequence[Tensor]):
    """The images of a torchvision data set that decodes files on access."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(np.array(self.dataset[i][0].convert("RGB"))).permute(2, 0, 1).contiguous()


def data_home() -> Path:
    """Returns the folder of downloads: $VITRAIL_DATA, or ~/.cache/vitrail/data."""
    return Path(os.environ.get("VITRAIL_DATA") or Path.home() / ".cache" / "vitrail" / "data")


def load_digits() -> dict[str, Listing]:
    """Loads 1,797 handwritten digits of 8x8 pixels in 16 gray levels (Alpaydin & Kaynak 1998) from scikit-learn."""
    from sklearn import datasets

    data = datasets.load_digits()
    pixels = torch.from_numpy((data.images * 255 / 16).round().astype(np.uint8)).unsqueeze(1)
    names = [f"digit-{i:04d}" for i in range(len(pixels))]
    return {"all": Listing(pixels, names, categorize(data.target))}


def _torchvision(name: str, make: Callable[[Any, str], dict[str, Any]]) -> Callable[[], dict[str, Listing]]:
    """Returns a function that loads the data sets that `make(torchvision.datasets, folder)` constructs."""

    def load() -> dict[str, Listing]:
        from torchvision import datasets

        home = data_home()
        try:
            by_split = make(datasets, str(home))
        except (RuntimeError, OSError) as error:
            raise VitrailError(
                f"{name} is not in {home} and could not be downloaded ({type(error).__name__})",
                "put the files there, or set VITRAIL_DATA to the folder that has them",
            ) from None
        return {split: _list_dataset(dataset, split) for split, dataset in by_split.items()}

    return load


def _list_dataset(dataset: Any, split: str) -> Listing:
    data = getattr(dataset, "data", None)
    pixels: Tensor | TorchvisionImages
    if isinstance(data, np.ndarray):  # CIFAR: (N, H, W, C)
        pixels = torch.from_numpy(data).permute(0, 3, 1, 2).contiguous()
    elif isinstance(data, Tensor):  # MNIST: (N, H, W)
        pixels = data.unsqueeze(1)
    else:
        pixels = TorchvisionImages(dataset)
    targets = next(getattr(dataset, name) for name in ("targets", "_labels") if hasattr(dataset, name))
    classes = getattr(dataset, "classes", None) or [f"{i:03d}" for i in range(int(max(targets)) + 1)]
    return Listing(
        pixels, [f"{split}-{i:05d}" for i in range(len(targets))], categorize(classes[int(t)] for t in targets)
    )


def _train_and_test(name: str, **options: Any) -> Callable[[Any, str], dict[str, Any]]:
    def make(datasets: Any, home: str) -> dict[str, Any]:
        make_dataset = getattr(datasets, name)
        return {
            "train": make_dataset(home, train=True, download=True, **options),
            "test": make_dataset(home, train=False, download=True, **options),
        }

    return make


def _by_split(name: str, **splits: str) -> Callable[[Any, str], dict[str, Any]]:
    def make(datasets: Any, home: str) -> dict[str, Any]:
        make_dataset = getattr(datasets, name)
        return {ours: make_dataset(home, split=theirs, download=True) for ours, theirs in splits.items()}

    return make


BUILTIN_DATASETS: dict[str, BuiltinDataset] = {
    "digits": BuiltinDataset("1,797 digits, 8x8, gray; always available", load_digits, can_flip=False, channels=1),
    "cifar10": BuiltinDataset("60,000 photos, 32x32", _torchvision("cifar10", _train_and_test("CIFAR10"))),
    "cifar100": BuiltinDataset(
        "60,000 photos, 32x32, 100 classes", _torchvision("cifar100", _train_and_test("CIFAR100"))
    ),
    "mnist": BuiltinDataset(
        "70,000 digits, 28x28, gray", _torchvision("mnist", _train_and_test("MNIST")), can_flip=False, channels=1
    ),
    "fashion-mnist": BuiltinDataset(
        "70,000 clothes, 28x28, gray", _torchvision("fashion-mnist", _train_and_test("FashionMNIST")), channels=1
    ),
    "flowers102": BuiltinDataset(
        "8,189 photos of 102 flowers",
        _torchvision("flowers102", _by_split("Flowers102", train="train", validation="val", test="test")),
    ),
    "pets": BuiltinDataset(
        "7,349 photos of 37 breeds",
        _torchvision("pets", _by_split("OxfordIIITPet", train="trainval", test="test")),
    ),
    "food101": BuiltinDataset(
        "101,000 photos of 101 dishes",
        _torchvision("food101", _by_split("Food101", train="train", test="test")),
    ),
}


def read_builtin_dataset(name: str) -> Source:
    """Lists the images of a built-in data set; raises `VitrailError` if it cannot be downloaded."""
    dataset = BUILTIN_DATASETS[name]
    return Source(name, dataset.load(), can_flip=dataset.can_flip, channels=dataset.channels)
