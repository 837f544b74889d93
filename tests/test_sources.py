"""DATA -> splits: what is there is taken as it is, what is missing is divided off, what is wrong is named."""

import hashlib
import os
import pickle
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from vitrail.data import builtin, folder, table
from vitrail.data.builtin import BUILTIN_DATASETS, TorchvisionImages
from vitrail.data.images import Images
from vitrail.data.open import (
    Splits,
    absolute_address,
    compute_fingerprint,
    encode_labels,
    open_data,
    open_evaluation_images,
    open_source,
    split_listing,
)
from vitrail.data.source import Listing, Source
from vitrail.errors import UsageError, VitrailError


def paint(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".webp": "WEBP"}
    Image.new("RGB", (4, 4), (value, 0, 0)).save(path, kinds.get(path.suffix.lower(), "PNG"))
    return path


def paint_classes(root: Path, classes: dict[str, int]) -> Path:
    for name, n in classes.items():
        for i in range(n):
            paint(root / name / f"{i:03d}.png", i)
    return root


def names(*parts: Images | None) -> list[str]:
    return [name for part in parts if part is not None for name in part.names]


def label_names(images: Images) -> list[str]:
    return [images.classes[i] for i in images.labels]


def sentence_of(address: object, **options: object) -> str:
    with pytest.raises(VitrailError) as caught:
        open_data(address, **options)  # type: ignore[arg-type]
    assert "\n" not in caught.value.sentence
    return str(caught.value)


# folders that are divided already


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev", "VAL"])
@pytest.mark.parametrize("test", ["test", "testing", "Test"])
def test_split_folders_are_taken_in_any_usual_spelling(train: str, validation: str, test: str, tmp_path: Path):
    for split, n in ((train, 3), (validation, 2), (test, 1)):
        paint_classes(tmp_path / split, {"cat": n, "dog": n})
    splits = open_data(tmp_path)
    assert splits.validation is not None and splits.test is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 4, 2)
    assert all(name.startswith(f"{train}/") for name in splits.train.names)
    assert all(name.startswith(f"{validation}/") for name in splits.validation.names)
    assert all(name.startswith(f"{test}/") for name in splits.test.names)


def test_a_missing_validation_comes_off_training_and_leaves_the_test_alone(tmp_path: Path):
    paint_classes(tmp_path / "train", {"cat": 20, "dog": 10})
    paint_classes(tmp_path / "test", {"cat": 2, "dog": 2})
    splits = open_data(tmp_path)
    assert splits.validation is not None and splits.test is not None
    assert splits.validation.count_by_class() == {"cat": 2, "dog": 1}
    assert splits.train.count_by_class() == {"cat": 18, "dog": 9}
    assert len(splits.test) == 4
    assert not set(splits.train.names) & set(splits.validation.names)
    assert any("3 images (10% of each class) choose the weights" in note for note in splits.notes)


def test_two_folders_for_one_split_are_refused(tmp_path: Path):
    for split in ("train", "val", "valid"):
        paint_classes(tmp_path / split, {"cat": 1, "dog": 1})
    assert "two folders for validation" in sentence_of(tmp_path)


def test_folders_beside_the_splits_are_mentioned(tmp_path: Path):
    for split in ("train", "test"):
        paint_classes(tmp_path / split, {"cat": 3, "dog": 3})
    paint(tmp_path / "raw" / "a.png")
    assert any("raw" in note for note in open_data(tmp_path).notes)


def test_splits_without_training_images_are_refused(tmp_path: Path):
    paint_classes(tmp_path / "val", {"cat": 1, "dog": 1})
    paint_classes(tmp_path / "test", {"cat": 1, "dog": 1})
    assert "no training images" in sentence_of(tmp_path)


# class order


def test_the_class_order_comes_from_training_and_is_alphabetical(tmp_path: Path):
    paint_classes(tmp_path / "train", {"zebra": 3, "ant": 3, "Bee": 3})
    paint_classes(tmp_path / "test", {"zebra": 1, "ant": 1, "Bee": 1})
    splits = open_data(tmp_path)
    assert splits.classes == tuple(sorted(["zebra", "ant", "Bee"]))
    assert splits.test is not None and splits.test.classes == splits.classes


def test_a_class_missing_from_validation_keeps_every_label_in_its_place(tmp_path: Path):
    paint_classes(tmp_path / "train", {"a": 3, "b": 3, "c": 3})
    paint_classes(tmp_path / "val", {"b": 2, "c": 1})
    splits = open_data(tmp_path)
    assert splits.validation is not None
    assert splits.validation.labels.tolist() == [1, 1, 2]
    assert label_names(splits.validation) == [Path(name).parts[1] for name in splits.validation.names]
    assert splits.validation.count_by_class() == {"a": 0, "b": 2, "c": 1}
    assert any("no image of a" in note for note in splits.notes)


def test_a_class_that_only_validation_has_is_named(tmp_path: Path):
    paint_classes(tmp_path / "train", {"cat": 3, "dog": 3})
    paint_classes(tmp_path / "val", {"cat": 1, "yak": 1})
    said = sentence_of(tmp_path)
    assert "'yak'" in said and "validation" in said and "'dog'" in said and "'cat' is not" not in said


# a folder that is not divided


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return paint_classes(tmp_path / "pets", {"cat": 30, "dog": 10, "eel": 3, "fox": 2, "gnu": 1})


def parts_of(splits: Splits) -> tuple[list[str], list[str], list[str]]:
    return names(splits.train), names(splits.validation), names(splits.test)


def test_the_division_loses_nothing_and_shares_nothing(pets: Path):
    train, validation, test = parts_of(open_data(pets))
    everything = train + validation + test
    assert len(everything) == len(set(everything)) == 46
    assert set(everything) == {path.relative_to(pets).as_posix() for path in pets.rglob("*.png")}


def test_the_division_takes_the_documented_share_of_each_class(pets: Path):
    splits = open_data(pets, test=0.2, validation=0.1)
    assert splits.test is not None and splits.validation is not None
    assert splits.test.count_by_class() == {"cat": 6, "dog": 2, "eel": 1, "fox": 0, "gnu": 0}
    # a tenth of what the test left; a class of two gives none, nor is the last image of a class taken
    assert splits.validation.count_by_class() == {"cat": 2, "dog": 1, "eel": 0, "fox": 0, "gnu": 0}
    assert min(splits.train.count_by_class().values()) == 1
    assert any("9 images (20% of each class)" in note for note in splits.notes)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_a_class_of_three_is_always_on_both_sides(fraction: float):
    listing = Listing(torch.arange(3.0).view(3, 1, 1, 1), ["x", "y", "z"], ["a", "a", "a"])
    rest, part = split_listing(listing, fraction, 0)
    assert len(rest) >= 1 and len(part) >= 1


def test_the_division_is_the_same_again_and_another_with_another_seed(pets: Path):
    assert parts_of(open_data(pets, split_seed=3)) == parts_of(open_data(pets, split_seed=3))
    assert names(open_data(pets, split_seed=3).test) != names(open_data(pets, split_seed=4).test)


def test_the_division_does_not_depend_on_the_order_of_listing():
    labels = [f"class {i % 3}" for i in range(60)]
    listing = Listing(torch.arange(60).view(60, 1, 1, 1), [f"image {i}" for i in range(60)], labels)
    shuffled = listing.subset([int(i) for i in np.random.default_rng(1).permutation(60)])
    assert shuffled.names != listing.names
    _, part = split_listing(listing, 0.2, 5)
    _, again = split_listing(shuffled, 0.2, 5)
    assert set(part.names) == set(again.names)
    for kept in (part, again):  # pixels and labels went along with the names
        numbers = [int(name.split()[1]) for name in kept.names]
        assert torch.as_tensor(kept.pixels).flatten().tolist() == numbers
        assert kept.labels == [f"class {i % 3}" for i in numbers]


def test_one_new_image_moves_no_other_between_the_parts_but_at_the_edge(pets: Path):
    before = set(names(open_data(pets).test))
    paint(pets / "cat" / "new.png")
    after = set(names(open_data(pets).test))
    assert len(before ^ after) <= 2


def test_pixels_and_labels_belong_to_the_names(pets: Path):
    splits = open_data(pets)
    for images in (splits.train, splits.validation, splits.test):
        assert images is not None
        assert label_names(images) == [Path(name).parts[0] for name in images.names]
        assert [int(images[i][0, 0, 0]) for i in range(len(images))] == [int(Path(n).stem) for n in images.names]


def test_parts_of_no_images_are_none(pets: Path):
    splits = open_data(pets, test=0, validation=0)
    assert splits.test is None and splits.validation is None
    assert len(splits.train) == 46


# folders that make no sense


def test_an_empty_class_folder_is_named(tmp_path: Path):
    paint_classes(tmp_path, {"cat": 3})
    (tmp_path / "dog").mkdir()
    assert str(tmp_path / "dog") in sentence_of(tmp_path)


def test_an_empty_class_folder_inside_a_split_is_named(tmp_path: Path):
    paint_classes(tmp_path / "train", {"cat": 3, "dog": 3})
    (tmp_path / "val" / "cat").mkdir(parents=True)
    assert str(tmp_path / "val" / "cat") in sentence_of(tmp_path)


def test_a_folder_without_anything_is_named(tmp_path: Path):
    said = sentence_of(tmp_path)
    assert str(tmp_path) in said and "no images" in said


def test_images_without_class_folders_are_refused_with_advice(tmp_path: Path):
    paint(tmp_path / "a.png")
    said = sentence_of(tmp_path)
    assert str(tmp_path) in said and "no class folders" in said and "make a folder for each class" in said


def test_a_single_class_is_refused(tmp_path: Path):
    paint_classes(tmp_path, {"cat": 5})
    said = sentence_of(tmp_path)
    assert str(tmp_path) in said and "1 class to train on" in said


@pytest.mark.parametrize(
    ("typed", "meant"), [("cifar01", "cifar10"), ("digit", "digits"), ("fashion_mnist", "fashion-mnist")]
)
def test_a_misspelt_name_gets_the_nearest_one(typed: str, meant: str):
    with pytest.raises(UsageError, match=f"'{typed}'.*did you mean.*{meant}"):
        open_data(typed)


def test_a_missing_folder_is_named_without_a_guess(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        open_data(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in caught.value.sentence and caught.value.hint is None


def test_an_endless_address_is_refused_like_any_other():
    with pytest.raises(UsageError, match="there is no folder"):
        open_data("x" * 5000)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"a\.png is not a folder"):
        open_data(paint(tmp_path / "a.png"))


# names and neighbours


def test_spaces_and_accents_in_names_are_kept(tmp_path: Path):
    paint_classes(tmp_path / "my photos", {"guépard d'été": 3, "猫 (1)": 3})
    splits = open_data(tmp_path / "my photos", test=0, validation=0)
    assert splits.classes == ("guépard d'été", "猫 (1)")
    assert splits.train[0].shape == (3, 4, 4)


def test_an_accent_is_one_class_however_it_is_composed(tmp_path: Path):
    composed, decomposed = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
    assert composed != decomposed
    paint_classes(tmp_path / "train", {composed: 3, "hiver": 3})
    paint_classes(tmp_path / "test", {decomposed: 2, "hiver": 1})
    splits = open_data(tmp_path)
    assert splits.classes == ("hiver", composed)
    assert splits.test is not None and sorted(splits.test.labels.tolist()) == [0, 1, 1]
    assert splits.test[0].shape == (3, 4, 4)  # and its file is still found


def test_hidden_and_system_files_are_no_images_and_not_worth_a_word(tmp_path: Path):
    paint_classes(tmp_path, {"cat": 2, "dog": 2})
    paint(tmp_path / "cat" / "._000.png")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"x")
    paint(tmp_path / ".cache" / "x.png")
    paint(tmp_path / "__MACOSX" / "x.png")
    paint(tmp_path / "cat" / ".ipynb_checkpoints" / "000-checkpoint.png")
    paint(tmp_path / "cat" / "__MACOSX" / "000.png")
    splits = open_data(tmp_path, test=0, validation=0)
    assert splits.train.names == ["cat/000.png", "cat/001.png", "dog/000.png", "dog/001.png"]
    assert splits.notes == []


def test_other_files_are_counted_not_taken(tmp_path: Path):
    paint_classes(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / "notes.md").write_text("x")
    splits = open_data(tmp_path, test=0, validation=0)
    assert len(splits.train) == 4
    assert [note for note in splits.notes if "cat" in note and "2 files are not an image" in note]


def test_images_in_nested_folders_belong_to_the_class_on_top(tmp_path: Path):
    paint_classes(tmp_path, {"dog": 2})
    paint(tmp_path / "cat" / "2024" / "may" / "a.png")
    paint(tmp_path / "cat" / "b.png")
    splits = open_data(tmp_path, test=0, validation=0)
    assert splits.train.count_by_class() == {"cat": 2, "dog": 2}
    assert "cat/2024/may/a.png" in splits.train.names


@pytest.mark.parametrize("extension", [".PNG", ".JPG", ".Jpeg", ".TIF", ".WEBP", ".Bmp", ".GIF"])
def test_extensions_in_capitals_are_extensions(extension: str, tmp_path: Path):
    paint(tmp_path / "cat" / f"a{extension}")
    paint(tmp_path / "dog" / f"a{extension}")
    assert len(open_data(tmp_path, test=0, validation=0).train) == 2


def test_a_loop_of_links_ends_and_counts_every_image_once(tmp_path: Path):
    paint_classes(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat", target_is_directory=True)
    (tmp_path / "cat" / "self").symlink_to("self")
    (tmp_path / "dog" / "up").symlink_to(tmp_path / "dog", target_is_directory=True)
    assert open_data(tmp_path, test=0, validation=0).train.count_by_class() == {"cat": 2, "dog": 2}


def test_linked_classes_and_images_are_followed(tmp_path: Path):
    paint_classes(tmp_path / "store", {"x": 2, "y": 2})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "store" / "x", target_is_directory=True)
    paint(tmp_path / "data" / "dog" / "a.png")
    (tmp_path / "data" / "dog" / "b.png").symlink_to(tmp_path / "store" / "y" / "000.png")
    assert open_data(tmp_path / "data", test=0, validation=0).train.count_by_class() == {"cat": 2, "dog": 2}


def test_what_counts_as_an_image_goes_by_the_name():
    assert folder.has_image_extension(Path("a.JPG")) and folder.has_image_extension(Path("a.b.tiff"))
    assert not any(folder.has_image_extension(Path(name)) for name in ("a.txt", ".a.png", "png", "a.png.bak"))


# fingerprint and evaluation


def test_the_fingerprint_survives_a_move_and_sees_every_change(pets: Path, tmp_path: Path):
    before = compute_fingerprint(open_source(pets))
    pets.rename(tmp_path / "moved")
    assert compute_fingerprint(open_source(tmp_path / "moved")) == before
    paint(tmp_path / "moved" / "cat" / "zzz.png")
    added = compute_fingerprint(open_source(tmp_path / "moved"))
    (tmp_path / "moved" / "cat" / "zzz.png").rename(tmp_path / "moved" / "dog" / "zzz.png")
    relabelled = compute_fingerprint(open_source(tmp_path / "moved"))
    Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / "moved" / "dog" / "zzz.png")
    resized = compute_fingerprint(open_source(tmp_path / "moved"))
    assert len({before, added, relabelled, resized}) == 4


def trained_on(address: Path, test: float = 0.2, seed: int = 0) -> tuple[Splits, dict]:
    splits = open_data(address, test=test, split_seed=seed)
    return splits, {
        "name": splits.name,
        "fingerprint": splits.fingerprint,
        "split": {"test": test, "validation": 0.1, "seed": seed},
    }


@pytest.mark.parametrize(("test", "seed"), [(0.2, 0), (0.4, 7)])
def test_the_folder_that_was_trained_on_is_scored_on_exactly_what_training_kept_back(
    pets: Path, test: float, seed: int
):
    splits, origin = trained_on(pets, test, seed)
    images, said = open_evaluation_images(pets, splits.classes, 3, origin)
    assert splits.test is not None
    assert images.names == splits.test.names
    assert images.labels.tolist() == splits.test.labels.tolist()
    assert f"{len(splits.test)} test images that training kept back" in said


def test_another_folder_is_scored_whole(pets: Path, tmp_path: Path):
    splits, origin = trained_on(pets)
    other = paint_classes(tmp_path / "other", {"cat": 4, "dog": 3})
    images, said = open_evaluation_images(other, splits.classes, 3, origin)
    assert len(images) == 7 and images.classes == splits.classes and "all 7" in said


def test_a_folder_with_splits_is_scored_on_its_test_then_its_validation(tmp_path: Path):
    for split, n in (("train", 3), ("val", 2), ("test", 1)):
        paint_classes(tmp_path / split, {"cat": n, "dog": n})
    images, said = open_evaluation_images(tmp_path, ("cat", "dog"), 3, {})
    assert len(images) == 2 and "test" in said
    for path in sorted((tmp_path / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "test").rmdir()
    images, said = open_evaluation_images(tmp_path, ("cat", "dog"), 3, {})
    assert len(images) == 4 and "validation" in said


def test_evaluation_names_a_class_the_classifier_does_not_know(tmp_path: Path):
    paint_classes(tmp_path, {"cat": 2, "yak": 2})
    with pytest.raises(VitrailError, match="'yak' is not among the classes trained on"):
        open_evaluation_images(tmp_path, ("cat", "dog"), 3, {})


def test_evaluation_uses_the_channels_and_labels_of_the_classifier(tmp_path: Path):
    paint_classes(tmp_path, {"dog": 2})
    images, _ = open_evaluation_images(tmp_path, ("ant", "cat", "dog"), 1, {})
    assert images.labels.tolist() == [2, 2] and images[0].shape == (1, 4, 4)


def test_digits_are_scored_on_what_training_kept_back():
    splits = open_data("digits")
    origin = {"fingerprint": splits.fingerprint, "split": {"test": 0.2, "validation": 0.1, "seed": 0}}
    images, _ = open_evaluation_images("digits", splits.classes, 1, origin)
    assert splits.test is not None and images.names == splits.test.names
    assert torch.equal(torch.as_tensor(images.pixels), torch.as_tensor(splits.test.pixels))


# tables


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a", "b", "c", "d"):
        paint(tmp_path / "img" / f"{name}.png", ord(name))
    return tmp_path


def write(path: Path, lines: Iterable[str], encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


ROWS = ["path,label", "img/a.png,cat", "img/b.png,dog", "img/c.png,cat", "img/d.png,dog"]


def test_a_csv_of_paths_relative_to_it(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir("/")
    splits = open_data(write(photos / "list.csv", ROWS), test=0, validation=0)
    assert splits.classes == ("cat", "dog") and splits.name == "list"
    assert label_names(splits.train) == ["cat", "dog", "cat", "dog"]
    assert [int(splits.train[i][0, 0, 0]) for i in range(4)] == [ord(c) for c in "abcd"]


def test_a_csv_with_absolute_paths(photos: Path, tmp_path: Path):
    lines = ["path,label", f"{photos}/img/a.png,cat", f"{photos}/img/b.png,dog"]
    (tmp_path / "elsewhere").mkdir()
    splits = open_data(write(tmp_path / "elsewhere" / "list.csv", lines), test=0, validation=0)
    assert len(splits.train) == 2 and splits.train[0].shape == (3, 4, 4)


@pytest.mark.parametrize("path_column", ["path", "File", "filename", " image "])
@pytest.mark.parametrize("label_column", ["label", "Class", "category"])
def test_columns_have_their_usual_names(path_column: str, label_column: str, photos: Path):
    file = write(photos / "list.csv", [f"id,{label_column},{path_column}", "1,cat,img/a.png", "2,dog,img/b.png"])
    assert open_data(file, test=0, validation=0).train.names == ["img/a.png", "img/b.png"]


def test_a_split_column_is_followed(photos: Path):
    lines = [
        "path,label,split",
        "img/a.png,cat,Train",
        "img/b.png,dog,train",
        "img/c.png,cat,val",
        "img/d.png,dog,test",
    ]
    splits = open_data(write(photos / "list.csv", lines))
    assert parts_of(splits) == (["img/a.png", "img/b.png"], ["img/c.png"], ["img/d.png"])


def test_an_unknown_split_names_the_line(photos: Path):
    lines = ["path,label,split", "img/a.png,cat,train", "img/b.png,dog,holdout"]
    assert "line 3: 'holdout' is not a split" in sentence_of(write(photos / "list.csv", lines))


def test_a_byte_order_mark_is_not_part_of_the_first_column(photos: Path):
    assert len(open_data(write(photos / "list.csv", ROWS, "utf-8-sig"), test=0, validation=0).train) == 4


def test_tabs_quotes_and_capitals_of_the_extension(photos: Path):
    paint(photos / "img" / "x, y.png")
    lines = ["path\tlabel", "img/a.png\tcat", "img/x, y.png\tdog"]
    assert len(open_data(write(photos / "list.TSV", lines), test=0, validation=0).train) == 2
    lines = ["path,label", "img/a.png,cat", '"img/x, y.png","dog, small"']
    assert open_data(write(photos / "list.csv", lines), test=0, validation=0).classes == ("cat", "dog, small")


def test_a_missing_file_names_the_line(photos: Path):
    said = sentence_of(write(photos / "list.csv", [*ROWS, "img/none.png,cat"]))
    assert "line 6" in said and str(photos / "img" / "none.png") in said


def test_blank_lines_do_not_shift_the_line_that_is_named(photos: Path):
    said = sentence_of(write(photos / "list.csv", [*ROWS[:3], "", "", "img/none.png,cat"]))
    assert "line 6" in said


@pytest.mark.parametrize(("row", "column"), [("img/a.png,", "label"), ("img/a.png,  ", "label"), (",cat", "path")])
def test_an_empty_field_names_the_line_and_the_column(row: str, column: str, photos: Path):
    said = sentence_of(write(photos / "list.csv", [*ROWS, row]))
    assert "line 6" in said and f"{column!r} is empty" in said


def test_a_row_that_is_too_short_names_the_line(photos: Path):
    assert "line 6: the column 'label' is empty" in sentence_of(write(photos / "list.csv", [*ROWS, "img/a.png"]))


def test_fields_beyond_the_header_are_left_alone(photos: Path):
    lines = ["path,label", "img/a.png,cat,extra", "img/b.png,dog,more,still more"]
    assert len(open_data(write(photos / "list.csv", lines), test=0, validation=0).train) == 2


@pytest.mark.parametrize(("header", "missing"), [("path,colour", "label"), ("photo,label", "path")])
def test_a_missing_column_is_named_beside_those_that_are_there(header: str, missing: str, photos: Path):
    said = sentence_of(write(photos / "list.csv", [header, "img/a.png,cat"]))
    assert f"no column {missing!r}" in said and header.replace(",", ", ") in said


@pytest.mark.parametrize("lines", [["path,label"], [""]], ids=["header alone", "nothing"])
def test_a_table_without_rows_is_refused(lines: list[str], photos: Path):
    assert "has no rows" in sentence_of(write(photos / "list.csv", lines))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_refused_by_name(encoding: str, photos: Path):
    said = sentence_of(write(photos / "list.csv", [*ROWS, "img/a.png,été"], encoding))
    assert "list.csv is not a table in UTF-8" in said


def test_labels_are_stripped_and_composed(photos: Path):
    decomposed = unicodedata.normalize("NFD", "été")
    lines = ["path,label", "img/a.png, été ", f"img/b.png,{decomposed}", "img/c.png,hiver"]
    assert open_data(write(photos / "list.csv", lines), test=0, validation=0).classes == ("hiver", "été")


def test_numbers_are_labels_even_zero(photos: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [("row 1", {"path": "img/a.png", "label": 0}), ("row 2", {"path": "img/b.png", "label": 1})]
    monkeypatch.setattr(table, "read_parquet", lambda file: rows)
    (photos / "list.parquet").touch()
    assert open_data(photos / "list.parquet", test=0, validation=0).classes == ("0", "1")


def test_a_parquet_file_of_paths_and_labels(photos: Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"path": ["img/a.png", "img/b.png", "img/c.png"], "label": [0, 1, 1]}
    parquet.write_table(pyarrow.table(columns), photos / "list.parquet")
    splits = open_data(photos / "list.parquet", test=0, validation=0)
    assert splits.train.names == columns["path"] and splits.train.labels.tolist() == [0, 1, 1]
    (photos / "broken.parquet").write_bytes(b"not parquet")
    assert "broken.parquet is not a parquet file" in sentence_of(photos / "broken.parquet")


def test_parquet_without_pyarrow_says_what_to_install(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (photos / "list.parquet").touch()
    assert "pip install 'vitrail[parquet]'" in sentence_of(photos / "list.parquet")


# sets by name


def test_digits_are_all_there_in_grey():
    splits = open_data("digits")
    assert splits.validation is not None and splits.test is not None
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 1797
    assert splits.classes == tuple("0123456789")
    assert splits.channels == 1 and not splits.can_flip
    pixels = torch.as_tensor(splits.train.pixels)
    assert pixels.shape[1:] == (1, 8, 8) and pixels.dtype == torch.uint8 and int(pixels.max()) == 255
    assert not set(splits.train.names) & (set(splits.test.names) | set(splits.validation.names))
    assert min(splits.test.count_by_class().values()) >= 34


def test_digits_in_colour_have_three_equal_planes():
    splits = open_data("digits", channels=3)
    image = splits.train[0]
    assert splits.channels == 3 and image.shape == (3, 8, 8)
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


@pytest.mark.parametrize("name", sorted(set(BUILTIN_DATASETS) - {"digits"}))
def test_without_a_network_one_sentence_says_where_it_looked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_network(*args: object, **options: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "store"))
    said = sentence_of(name)
    assert said.startswith(f"{name} is not in {tmp_path / 'store'} and could not be downloaded")
    assert "VITRAIL_DATA" in said


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """CIFAR-10 in its own layout with ten images a file, of which torchvision is told the checksums."""
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path))
    base = tmp_path / datasets.CIFAR10.base_folder
    base.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)

    def save(name: str, document: dict) -> str:
        (base / name).write_bytes(pickle.dumps(document))
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    labels = list(range(10))
    train = [["data_batch_1", save("data_batch_1", {"data": rows[:10], "labels": labels})]]
    test = [["test_batch", save("test_batch", {"data": rows[10:], "labels": labels[::-1]})]]
    meta = {"label_names": [f"kind {i}" for i in range(10)]}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", test)
    monkeypatch.setattr(
        datasets.CIFAR10,
        "meta",
        {"filename": "batches.meta", "key": "label_names", "md5": save("batches.meta", meta)},
    )
    return rows.reshape(20, 3, 32, 32)


def test_cifar_files_that_are_there_are_read_without_a_network(small_cifar: np.ndarray):
    splits = open_data("cifar10", validation=0)
    assert splits.classes == tuple(f"kind {i}" for i in range(10)) and splits.can_flip and splits.channels == 3
    assert splits.test is not None
    assert np.array_equal(torch.as_tensor(splits.train.pixels).numpy(), small_cifar[:10])
    assert np.array_equal(torch.as_tensor(splits.test.pixels).numpy(), small_cifar[10:])
    assert splits.train.labels.tolist() == list(range(10)) and splits.test.labels.tolist() == list(range(10))[::-1]


def test_a_damaged_cifar_file_is_not_read(small_cifar: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_network(*args: object, **options: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    (tmp_path / datasets.CIFAR10.base_folder / "test_batch").write_bytes(b"cut")
    assert "could not be downloaded" in sentence_of("cifar10")


class Album:
    """A torchvision set that decodes a file whenever it is asked, and remembers what it was asked for."""

    def __init__(self, n: int):
        self.opened: list[int] = []
        self._labels = [i % 2 for i in range(n)]
        self.classes = ["even", "odd"]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        self.opened.append(i)
        return Image.new("RGB", (4, 4), (i, i, i)), self._labels[i]


@pytest.mark.parametrize("channels", [3, 1])
def test_a_large_set_is_divided_without_reading_its_images(channels: int, monkeypatch: pytest.MonkeyPatch):
    album = Album(40)
    listing = builtin._listing(album, "train")
    assert isinstance(listing.pixels, TorchvisionImages)
    monkeypatch.setattr("vitrail.data.open.read_builtin", lambda name: Source(name, {"train": listing}))
    splits = open_data("pets", channels=channels, validation=0.25)
    assert album.opened == []
    assert splits.validation is not None and len(splits.validation) == 10 and not splits.train.is_in_memory
    for images in (splits.train, splits.validation):
        for i in range(len(images)):
            assert images[i].shape == (channels, 4, 4)
            number = int(images.names[i].removeprefix("train-"))
            assert number - int(images[i][0, 0, 0]) in ((0, 1) if channels == 1 else (0,))  # grey is rounded down


def test_index_takes_labels_by_name_whatever_their_order():
    listing = Listing(torch.zeros(3, 1, 1, 1), ["x", "y", "z"], ["b", "a", "b"])
    assert encode_labels(listing, ("a", "b"), "here").labels.tolist() == [1, 0, 1]
    with pytest.raises(VitrailError, match=r"here: the classes 'a', 'b' are not among"):
        encode_labels(listing, ("c",), "here")


def test_copies_of_an_image_are_never_on_both_sides(tmp_path: Path):
    """Files that hold the same bytes, under whatever name, stay together; so do equal pixels in memory."""
    paint_classes(tmp_path / "once", {"cat": 12, "dog": 12})
    for path in (tmp_path / "once").rglob("*.png"):
        folder = tmp_path / "thrice" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(3):
            (folder / f"{i}-{path.name}").write_bytes(path.read_bytes())
    splits = open_data(tmp_path / "thrice")
    contents = [
        {(Path(file).parent.name, Path(file).read_bytes()) for file in images.paths}
        for images in splits.as_dict().values()
    ]
    for i, some in enumerate(contents):
        for others in contents[i + 1 :]:
            assert not some & others
    assert splits.test is not None and len(splits.test) == 12  # 20 % of 36 is 7, and whole triples fit 6
    pixels = torch.arange(8, dtype=torch.uint8).repeat(5).view(40, 1, 1, 1)
    rest, part = split_listing(Listing(pixels, [f"{i:02d}" for i in range(40)], ["a"] * 40), 0.25, 0)
    assert len(part) == 10
    assert not set(rest.pixels.flatten().tolist()) & set(part.pixels.flatten().tolist())


def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path):
    paint_classes(tmp_path / "pets", {"cat": 3, "dog": 3})
    strange = os.fsencode(tmp_path / "pets") + b"/caf\xe9"
    os.rename(os.fsencode(tmp_path / "pets" / "cat"), strange)
    with pytest.raises(VitrailError, match="not UTF-8"):
        open_source(tmp_path / "pets")


def test_data_that_changed_since_training_are_scored_with_a_warning(pets: Path):
    splits, origin = trained_on(pets, 0.2, 0)
    extra = next((pets / splits.classes[0]).iterdir())
    extra.with_name("new.png").write_bytes(extra.read_bytes())
    _, said = open_evaluation_images(pets, splits.classes, 3, origin)
    assert "changed since training" in said
    origin["split"] = {"test": 0.0, "validation": 0.0, "seed": 0}
    extra.with_name("new.png").unlink()
    _, said = open_evaluation_images(pets, splits.classes, 3, origin)
    assert said.endswith("which the model was trained on")


def test_an_address_in_full_means_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "digits"):
        (tmp_path / name).mkdir()
    assert absolute_address("photos") == absolute_address(Path("photos")) == str(tmp_path / "photos")
    assert absolute_address("shards/train-{000..009}.tar") == str(tmp_path / "shards/train-{000..009}.tar")
    assert absolute_address("../*.tar") == str(tmp_path.parent / "*.tar")
    assert absolute_address("hf:photos") == f"hf:{tmp_path / 'photos'}"
    for name in ("digits", "hf:cifar10", "s3://x/y-{0..9}.tar", "nowhere"):
        assert absolute_address(name) == name
