"""Data sets by name: `digits`, which scikit-learn carries, and those that torchvision downloads."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.data.source import Listing, Source
from vitrail.errors import VitrailError


@dataclass(frozen=True)
class BuiltinDataset:
    """A row of the table: where it comes from, how it is described."""

    description: str
    read: Callable[[], dict[str, Listing]]
    can_flip: bool = True
    channels: int = 3


class TorchvisionImages(Sequence[Tensor]):
    """The images of a torchvision set that decodes files when asked."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(np.array(self.dataset[i][0].convert("RGB"))).permute(2, 0, 1).contiguous()


def data_home() -> Path:
    """Where downloads lie: $VITRAIL_DATA, or ~/.cache/vitrail/data."""
    return Path(os.environ.get("VITRAIL_DATA") or Path.home() / ".cache" / "vitrail" / "data")


def digits() -> dict[str, Listing]:
    """1,797 handwritten digits of 8x8 pixels in 16 greys (Alpaydin & Kaynak 1998), as scikit-learn ships them."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy((data.images * 255 / 16).round().astype(np.uint8)).unsqueeze(1)
    names = [f"digit-{i:04d}" for i in range(len(pixels))]
    return {"all": Listing(pixels, names, [str(label) for label in data.target])}


def _torchvision(name: str, make: Callable[[Any, str], dict[str, Any]]) -> Callable[[], dict[str, Listing]]:
    def read() -> dict[str, Listing]:
        from torchvision import datasets

        home = data_home()
        try:
            found = make(datasets, str(home))
        except (RuntimeError, OSError) as error:
            raise VitrailError(
                f"{name} is not in {home} and could not be downloaded ({type(error).__name__})",
                "put the files there, or set VITRAIL_DATA to the folder that has them",
            ) from None
        return {split: _listing(dataset, split) for split, dataset in found.items()}

    return read


def _listing(dataset: Any, split: str) -> Listing:
    raw = getattr(dataset, "data", None)
    pixels: Tensor | TorchvisionImages
    if isinstance(raw, np.ndarray):  # CIFAR: (N, H, W, C)
        pixels = torch.from_numpy(raw).permute(0, 3, 1, 2).contiguous()
    elif isinstance(raw, Tensor):  # MNIST: (N, H, W)
        pixels = raw.unsqueeze(1)
    else:
        pixels = TorchvisionImages(dataset)
    targets = next(getattr(dataset, name) for name in ("targets", "_labels") if hasattr(dataset, name))
    classes = getattr(dataset, "classes", None) or [f"{i:03d}" for i in range(int(max(targets)) + 1)]
    return Listing(pixels, [f"{split}-{i:05d}" for i in range(len(targets))], [classes[int(t)] for t in targets])


def _two_parts(name: str, **options: Any) -> Callable[[Any, str], dict[str, Any]]:
    def make(datasets: Any, home: str) -> dict[str, Any]:
        make_set = getattr(datasets, name)
        return {
            "train": make_set(home, train=True, download=True, **options),
            "test": make_set(home, train=False, download=True, **options),
        }

    return make


def _by_split(name: str, **splits: str) -> Callable[[Any, str], dict[str, Any]]:
    def make(datasets: Any, home: str) -> dict[str, Any]:
        make_set = getattr(datasets, name)
        return {ours: make_set(home, split=theirs, download=True) for ours, theirs in splits.items()}

    return make


BUILTIN_DATASETS: dict[str, BuiltinDataset] = {
    "digits": BuiltinDataset("1,797 digits, 8x8, grey; always there", digits, can_flip=False, channels=1),
    "cifar10": BuiltinDataset("60,000 photos, 32x32", _torchvision("cifar10", _two_parts("CIFAR10"))),
    "cifar100": BuiltinDataset("60,000 photos, 32x32, 100 classes", _torchvision("cifar100", _two_parts("CIFAR100"))),
    "mnist": BuiltinDataset(
        "70,000 digits, 28x28, grey", _torchvision("mnist", _two_parts("MNIST")), can_flip=False, channels=1
    ),
    "fashion-mnist": BuiltinDataset(
        "70,000 clothes, 28x28, grey", _torchvision("fashion-mnist", _two_parts("FashionMNIST")), channels=1
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
    """The set of this name; raises `VitrailError` where it cannot be had."""
    row = BUILTIN_DATASETS[name]
    return Source(name, row.read(), can_flip=row.can_flip, channels=row.channels)
