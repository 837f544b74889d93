"""Data from Python: arrays, Datasets, DataLoaders, Hugging Face data sets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import vitrail
from shard_files import SMALL
from vitrail.data.loader import TrainLoader
from vitrail.data.open import absolute_address, open_data, open_source
from vitrail.errors import UsageError, VitrailError
from vitrail.interrupts import Interrupted
from vitrail.runs.folder import RunFolder

OPTIONS: dict[str, Any] = {"epochs": 2, "report": False, "check": False, "workers": 0, **SMALL}


class Pictures(Dataset[tuple[Image.Image, int]]):
    """An own data set: the images of a folder of class folders, as a user would write it."""

    def __init__(self, root: Path):
        self.classes = sorted(path.name for path in root.iterdir())
        self.files = sorted(root.glob("*/*.png"))
        self.names = [file.relative_to(root).as_posix() for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.open(self.files[i]).convert("RGB"), self.classes.index(self.files[i].parent.name)


class Stream(IterableDataset[tuple[np.ndarray, str]]):
    def __init__(self, folder: Pictures):
        self.folder = folder

    def __iter__(self) -> Iterator[tuple[np.ndarray, str]]:
        return (
            (np.array(image), self.folder.classes[label])
            for image, label in map(self.folder.__getitem__, range(len(self.folder)))
        )


def load_arrays(pictures: Pictures) -> tuple[np.ndarray, list[str]]:
    items = [pictures[i] for i in range(len(pictures))]
    return np.stack([np.array(image) for image, _ in items]), [pictures.classes[label] for _, label in items]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import fill

    return fill(tmp_path_factory.mktemp("data") / "pictures", 14, ("red", "blue"), (16, 16))


def weights_and_losses(run: vitrail.Run) -> tuple[dict[str, bytes], list[tuple[float, float]]]:
    tensors = {name: tensor.numpy().tobytes() for name, tensor in run.classifier.vit.state_dict().items()}
    rows = RunFolder(run.folder).load_metrics()
    return tensors, [(row["train_loss"], row["validation_loss"]) for row in rows]


def test_every_kind_of_data_gives_the_batches_and_the_model_of_the_folder(folder: Path, tmp_path: Path):
    pictures = Pictures(folder)
    images, labels = load_arrays(pictures)
    expected = open_data(folder).as_dict()
    reference = vitrail.train(folder, out=tmp_path / "folder", **OPTIONS)
    kinds: dict[str, Any] = {
        "dataset": pictures,
        "loader": DataLoader(pictures, batch_size=3, shuffle=True),
        "files": (pictures.files, labels),
    }
    for kind, data in kinds.items():
        for split, theirs in open_data(data).as_dict().items():
            assert list(theirs.names) == list(expected[split].names), (kind, split)
            assert theirs.labels.tolist() == expected[split].labels.tolist()
            assert all(torch.equal(theirs[i], expected[split][i]) for i in range(len(theirs)))
    batches = [
        list(TrainLoader(open_data(data).train, augmentation(), batch_size=5, seed=3, workers=workers).epoch(1))
        for data in (folder, pictures)
        for workers in (0, 2)
    ]
    for others in batches[1:]:
        for ours, theirs in zip(batches[0], others, strict=True):
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    ours = vitrail.train(pictures, out=tmp_path / "dataset", **OPTIONS)
    assert weights_and_losses(ours) == weights_and_losses(reference)
    assert ours.classifier.preprocess == reference.classifier.preprocess
    assert ours.classifier.classes == reference.classifier.classes == ("blue", "red")
    files = vitrail.train((pictures.files, labels), out=tmp_path / "files", **OPTIONS)
    name = "classifier.safetensors"
    assert (files.folder / name).read_bytes() == (reference.folder / name).read_bytes()
    assert vitrail.evaluate(ours.classifier, pictures).accuracy == ours.result["test"]["accuracy"]
    assert vitrail.evaluate(ours.classifier, (images, labels)).images == 28


def test_files_of_several_splits_are_identified_as_those_of_a_folder(photos: Path):
    def list_files(split: str) -> tuple[list[Path], list[str]]:
        files = sorted((photos / split).glob("*/*.png"))
        return files, [file.parent.name for file in files]

    ours = open_source({"train": list_files("train"), "test": list_files("test")})
    assert ours.digest == ""  # so the fingerprint has only names, labels and sizes, as that of a folder
    assert {split: len(listing) for split, listing in ours.splits.items()} == {"train": 24, "test": 12}


def test_a_subset_has_the_class_names_of_its_data_set(folder: Path):
    subset = Subset(Subset(Pictures(folder), range(20)), range(4, 20))
    source = open_source(subset)
    assert set(source.splits["all"].labels) == {"blue", "red"}
    assert open_data(subset).classes == ("blue", "red")


def augmentation() -> Any:
    from vitrail.data.augment import build_augmentation
    from vitrail.data.preprocess import Preprocess
    from vitrail.training.recipe import Recipe

    return build_augmentation(Recipe().augment, Preprocess(image_size=(16, 16)))


def test_arrays_tensors_streams_and_splits_have_the_same_pixels(folder: Path):
    pictures = Pictures(folder)
    images, labels = load_arrays(pictures)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    kinds: tuple[Any, ...] = (
        (images, labels),
        (tensor, np.array(labels)),
        (tensor / 255, labels),
        ([Image.fromarray(image) for image in images], labels),
        Stream(pictures),
        DataLoader(Stream(pictures)),
        {"train": (images, labels)},
    )
    for data in kinds:
        source = open_source(data)
        listing = next(iter(source.splits.values()))
        assert list(listing.labels) == labels and source.channels == 3
        assert all(torch.equal(listing.pixels[i], tensor[i]) for i in range(28))
    splits = open_data({"train": pictures, "val": (images[:4], labels[:4]), "test": Stream(pictures)})
    assert [len(images) for images in splits.as_dict().values()] == [28, 4, 28]
    gray = open_source((images[..., 0], [label == "red" for label in labels]))
    assert (gray.channels, gray.splits["all"].pixels[0].shape, set(gray.splits["all"].labels)) == (
        1,
        (1, 16, 16),
        {"0", "1"},
    )
    with_numbers = TensorDataset(tensor, torch.arange(28) % 12)
    assert set(open_data(with_numbers, test=0, validation=0).classes) == {str(i) for i in range(12)}


def test_a_hugging_face_data_set_is_read_as_from_its_address(folder: Path, tmp_path: Path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    tables = datasets.load_dataset("imagefolder", data_dir=str(folder))
    ours, theirs = open_source(tables), open_source(f"hf:{folder}")
    assert list(ours.splits["train"].labels) == list(theirs.splits["all"].labels)
    assert torch.equal(open_source(tables["train"]).splits["all"].pixels[3], theirs.splits["all"].pixels[3])
    with pytest.raises(UsageError, match="without streaming"):
        open_source(tables["train"].to_iterable_dataset())


def test_a_run_on_python_data_resumes_to_the_same_bits_and_refuses_other_data(folder: Path, tmp_path: Path):
    pictures = Pictures(folder)
    images, labels = load_arrays(pictures)
    whole = vitrail.train((images, labels), out=tmp_path / "whole", **OPTIONS)

    class Stop:
        def on_epoch_end(self, state: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        vitrail.train((images, labels), out=tmp_path / "cut", callbacks=[Stop()], **OPTIONS)
    assert "vitrail.train(data, resume=True, out=" in stopped.value.hint
    with pytest.raises(VitrailError, match="the data are not those"):
        vitrail.train((255 - images, labels), out=tmp_path / "cut", resume=True, **OPTIONS)
    resumed = vitrail.train((images, labels), out=tmp_path / "cut", resume=True, **OPTIONS)
    assert weights_and_losses(resumed) == weights_and_losses(whole)
    assert open_source((images, labels)).fingerprint == whole.classifier.origin["data"]["fingerprint"]


def test_a_random_transform_in_the_data_set_is_named(folder: Path):
    class Noisy(Pictures):
        def __getitem__(self, i: int) -> Any:
            return torch.rand(3, 16, 16), super().__getitem__(i)[1]

    assert any("a resumed run is not exact" in note for note in open_source(Noisy(folder)).notes)
    notes = open_source(DataLoader(Pictures(folder), collate_fn=list)).notes
    assert any("its collate function is not called" in note for note in notes)
    assert any("read once into memory" in note for note in open_source(Stream(Pictures(folder))).notes)


class Broken(Dataset[Any]):
    def __init__(self, item: Any):
        self.item = item

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        if isinstance(self.item, Exception):
            raise self.item
        return self.item


PIXELS = np.zeros((4, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "data cannot be a int"),
        ((PIXELS, ["a", "b"]), "4 images and 2 labels"),
        ((PIXELS, [[[0, 1]]] * 4), r"a label is \[0, 1\]"),
        ((PIXELS.astype(np.float32) + 7, list("abab")), "floats must be from 0 to 1"),
        ((PIXELS.reshape(4, -1), list("abab")), "the shape"),
        ((PIXELS[:0], []), "data has no images"),
        ({"trian": (PIXELS, list("abab"))}, "no split 'trian'"),
        ({}, "data has no images"),
        (Broken(PIXELS[0]), r"not a pair \(image, label\)"),
        (Broken({"image": PIXELS[0], "label": 1}), r"is a dict of 2, not a pair"),
        (Broken(KeyError("x")), "item 0 of all: the data set raised KeyError"),
        (Broken((PIXELS[0], None)), "a label is None"),
        (Broken((object(), 1)), "item 0 of all cannot be a object"),
    ],
)
def test_data_that_cannot_be_used_is_refused_in_a_sentence(data: Any, message: str):
    with pytest.raises(VitrailError, match=message):
        open_source(data)


def test_an_index_outside_of_the_classes_and_other_processes_are_refused(folder: Path):
    pictures = Pictures(folder)
    pictures.targets = [0] * 27 + [5]  # type: ignore[attr-defined]
    with pytest.raises(VitrailError, match="the label 5 of all is not an index of the 2 classes"):
        open_source(pictures)
    with pytest.raises(UsageError, match="other processes must open the data"):
        absolute_address(pictures)
    with pytest.raises(UsageError, match="other processes must open the data"):
        vitrail.sweep(pictures, vary=["lr=1e-4..1e-2"])  # type: ignore[arg-type]


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    text = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    example = text.split("```python\n", 1)[1].split("```", 1)[0]
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert capsys.readouterr().out == "('cat', 'dog')\n"
