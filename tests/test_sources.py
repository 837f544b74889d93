"""Opening DATA: existing splits are kept, missing ones are drawn, errors name the cause."""

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

from vitrail.data import builtin, table
from vitrail.data import open as open_module
from vitrail.data.builtin import BUILTIN_DATASETS, TorchvisionImages
from vitrail.data.formats import is_image_name
from vitrail.data.images import Images
from vitrail.data.labels import categorize
from vitrail.data.open import absolute_address, open_data, open_source
from vitrail.data.scoring import open_images_to_score
from vitrail.data.source import Listing, Source, encode_labels
from vitrail.data.split import Splits, split_listing
from vitrail.errors import UsageError, VitrailError
from vitrail.installation import install_hint


def paint(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".webp": "WEBP"}
    Image.new("RGB", (4, 4), (value, 0, 0)).save(path, formats.get(path.suffix.lower(), "PNG"))
    return path


def paint_classes(root: Path, classes: dict[str, int]) -> Path:
    for name, n in classes.items():
        for i in range(n):
            paint(root / name / f"{i:03d}.png", i)
    return root


def names(*splits: Images | None) -> list[str]:
    return [name for images in splits if images is not None for name in images.names]


def labels_of(images: Images) -> list[str]:
    return [images.classes[i] for i in images.labels]


def error_text(address: object, **options: object) -> str:
    with pytest.raises(VitrailError) as caught:
        open_data(address, **options)  # type: ignore[arg-type]
    assert "\n" not in caught.value.sentence
    return str(caught.value)


# folders with splits


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev", "VAL"])
@pytest.mark.parametrize("test", ["test", "testing", "Test"])
def test_split_folders_are_recognized_in_any_usual_spelling(train: str, validation: str, test: str, tmp_path: Path):
    for split, n in ((train, 3), (validation, 2), (test, 1)):
        paint_classes(tmp_path / split, {"cat": n, "dog": n})
    splits = open_data(tmp_path)
    assert splits.validation is not None and splits.test is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 4, 2)
    assert all(name.startswith(f"{train}/") for name in splits.train.names)
    assert all(name.startswith(f"{validation}/") for name in splits.validation.names)
    assert all(name.startswith(f"{test}/") for name in splits.test.names)


def test_a_missing_validation_split_is_drawn_from_training_and_leaves_test_unchanged(tmp_path: Path):
    paint_classes(tmp_path / "train", {"cat": 20, "dog": 10})
    paint_classes(tmp_path / "test", {"cat": 2, "dog": 2})
    splits = open_data(tmp_path)
    assert splits.validation is not None and splits.test is not None
    assert splits.validation.count_by_class() == {"cat": 2, "dog": 1}
    assert splits.train.count_by_class() == {"cat": 18, "dog": 9}
    assert len(splits.test) == 4
    assert not set(splits.train.names) & set(splits.validation.names)
    assert any("3 images (10% of each class) are held out as validation images" in note for note in splits.notes)


def test_two_folders_for_one_split_are_refused(tmp_path: Path):
    for split in ("train", "val", "valid"):
        paint_classes(tmp_path / split, {"cat": 1, "dog": 1})
    assert "two folders for validation" in error_text(tmp_path)


def test_folders_beside_the_splits_are_noted(tmp_path: Path):
    for split in ("train", "test"):
        paint_classes(tmp_path / split, {"cat": 3, "dog": 3})
    paint(tmp_path / "raw" / "a.png")
    assert any("raw" in note for note in open_data(tmp_path).notes)


def test_splits_without_training_images_are_refused(tmp_path: Path):
    paint_classes(tmp_path / "val", {"cat": 1, "dog": 1})
    paint_classes(tmp_path / "test", {"cat": 1, "dog": 1})
    assert "no training images" in error_text(tmp_path)


# class order


def test_classes_are_those_of_training_in_alphabetical_order(tmp_path: Path):
    paint_classes(tmp_path / "train", {"zebra": 3, "ant": 3, "Bee": 3})
    paint_classes(tmp_path / "test", {"zebra": 1, "ant": 1, "Bee": 1})
    splits = open_data(tmp_path)
    assert splits.classes == tuple(sorted(["zebra", "ant", "Bee"]))
    assert splits.test is not None and splits.test.classes == splits.classes


def test_a_class_missing_from_validation_keeps_its_index(tmp_path: Path):
    paint_classes(tmp_path / "train", {"a": 3, "b": 3, "c": 3})
    paint_classes(tmp_path / "val", {"b": 2, "c": 1})
    splits = open_data(tmp_path)
    assert splits.validation is not None
    assert splits.validation.labels.tolist() == [1, 1, 2]
    assert labels_of(splits.validation) == [Path(name).parts[1] for name in splits.validation.names]
    assert splits.validation.count_by_class() == {"a": 0, "b": 2, "c": 1}
    assert any("no image of a" in note for note in splits.notes)


def test_a_class_that_only_validation_has_is_an_error(tmp_path: Path):
    paint_classes(tmp_path / "train", {"cat": 3, "dog": 3})
    paint_classes(tmp_path / "val", {"cat": 1, "yak": 1})
    message = error_text(tmp_path)
    assert "'yak'" in message and "validation" in message and "'dog'" in message and "'cat' is not" not in message


# a folder without splits


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return paint_classes(tmp_path / "pets", {"cat": 30, "dog": 10, "eel": 3, "fox": 2, "gnu": 1})


def split_names(splits: Splits) -> tuple[list[str], list[str], list[str]]:
    return names(splits.train), names(splits.validation), names(splits.test)


def test_splits_are_disjoint_and_complete(pets: Path):
    train, validation, test = split_names(open_data(pets))
    all_names = train + validation + test
    assert len(all_names) == len(set(all_names)) == 46
    assert set(all_names) == {path.relative_to(pets).as_posix() for path in pets.rglob("*.png")}


def test_splits_have_the_documented_fraction_of_each_class(pets: Path):
    splits = open_data(pets, test=0.2, validation=0.1)
    assert splits.test is not None and splits.validation is not None
    assert splits.test.count_by_class() == {"cat": 6, "dog": 2, "eel": 1, "fox": 0, "gnu": 0}
    # a tenth of the rest; none of a class of two, and never the last image of a class
    assert splits.validation.count_by_class() == {"cat": 2, "dog": 1, "eel": 0, "fox": 0, "gnu": 0}
    assert min(splits.train.count_by_class().values()) == 1
    assert any("9 images (20% of each class)" in note for note in splits.notes)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_a_class_of_three_is_always_in_both_splits(fraction: float):
    listing = Listing(torch.arange(3.0).view(3, 1, 1, 1), ["x", "y", "z"], categorize("aaa"))
    rest, part = split_listing(listing, fraction, 0)
    assert len(rest) >= 1 and len(part) >= 1


def test_splits_depend_only_on_the_seed(pets: Path):
    assert split_names(open_data(pets, split_seed=3)) == split_names(open_data(pets, split_seed=3))
    assert names(open_data(pets, split_seed=3).test) != names(open_data(pets, split_seed=4).test)


def test_splits_do_not_depend_on_the_order_of_the_listing():
    labels = [f"class {i % 3}" for i in range(60)]
    listing = Listing(torch.arange(60).view(60, 1, 1, 1), [f"image {i}" for i in range(60)], categorize(labels))
    shuffled = listing.subset([int(i) for i in np.random.default_rng(1).permutation(60)])
    assert shuffled.names != listing.names
    _, part = split_listing(listing, 0.2, 5)
    _, again = split_listing(shuffled, 0.2, 5)
    assert set(part.names) == set(again.names)
    for subset in (part, again):  # pixels and labels still belong to the names
        numbers = [int(name.split()[1]) for name in subset.names]
        assert torch.as_tensor(subset.pixels).flatten().tolist() == numbers
        assert list(subset.labels) == [f"class {i % 3}" for i in numbers]


def test_one_new_image_moves_at_most_one_other_between_splits(pets: Path):
    before = set(names(open_data(pets).test))
    paint(pets / "cat" / "new.png")
    after = set(names(open_data(pets).test))
    assert len(before ^ after) <= 2


def test_pixels_and_labels_belong_to_the_names(pets: Path):
    splits = open_data(pets)
    for images in (splits.train, splits.validation, splits.test):
        assert images is not None
        assert labels_of(images) == [Path(name).parts[0] for name in images.names]
        assert [int(images[i][0, 0, 0]) for i in range(len(images))] == [int(Path(n).stem) for n in images.names]


def test_splits_without_images_are_none(pets: Path):
    splits = open_data(pets, test=0, validation=0)
    assert splits.test is None and splits.validation is None
    assert len(splits.train) == 46


# invalid folders


def test_an_empty_class_folder_is_named(tmp_path: Path):
    paint_classes(tmp_path, {"cat": 3})
    (tmp_path / "dog").mkdir()
    assert str(tmp_path / "dog") in error_text(tmp_path)


def test_an_empty_class_folder_inside_a_split_is_named(tmp_path: Path):
    paint_classes(tmp_path / "train", {"cat": 3, "dog": 3})
    (tmp_path / "val" / "cat").mkdir(parents=True)
    assert str(tmp_path / "val" / "cat") in error_text(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path):
    message = error_text(tmp_path)
    assert str(tmp_path) in message and "no images" in message


def test_images_without_class_folders_are_refused_with_a_hint(tmp_path: Path):
    paint(tmp_path / "a.png")
    message = error_text(tmp_path)
    assert str(tmp_path) in message and "no class folders" in message and "make a folder for each class" in message


def test_a_single_class_is_refused(tmp_path: Path):
    paint_classes(tmp_path, {"cat": 5})
    message = error_text(tmp_path)
    assert str(tmp_path) in message and "training images of 1 class;" in message


@pytest.mark.parametrize(
    ("typed", "suggested"), [("cifar01", "cifar10"), ("digit", "digits"), ("fashion_mnist", "fashion-mnist")]
)
def test_a_misspelled_name_suggests_the_nearest_one(typed: str, suggested: str):
    with pytest.raises(UsageError, match=f"'{typed}'.*did you mean.*{suggested}"):
        open_data(typed)


def test_a_missing_folder_is_named_without_a_suggestion(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        open_data(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in caught.value.sentence and caught.value.hint is None


def test_a_very_long_address_is_refused_like_any_other():
    with pytest.raises(UsageError, match="there is no folder"):
        open_data("x" * 5000)


def test_a_file_that_is_not_a_table_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"a\.png is not a folder"):
        open_data(paint(tmp_path / "a.png"))


# names and other files


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
    assert splits.test[0].shape == (3, 4, 4)  # the file can still be opened


def test_hidden_and_system_files_are_ignored_silently(tmp_path: Path):
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


def test_other_files_are_counted_and_ignored(tmp_path: Path):
    paint_classes(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / "notes.md").write_text("x")
    splits = open_data(tmp_path, test=0, validation=0)
    assert len(splits.train) == 4
    assert [note for note in splits.notes if "2 files not named like an image" in note and "cat/notes.md" in note]


def test_images_in_nested_folders_belong_to_the_top_level_class(tmp_path: Path):
    paint_classes(tmp_path, {"dog": 2})
    paint(tmp_path / "cat" / "2024" / "may" / "a.png")
    paint(tmp_path / "cat" / "b.png")
    splits = open_data(tmp_path, test=0, validation=0)
    assert splits.train.count_by_class() == {"cat": 2, "dog": 2}
    assert "cat/2024/may/a.png" in splits.train.names


@pytest.mark.parametrize("extension", [".PNG", ".JPG", ".Jpeg", ".TIF", ".WEBP", ".Bmp", ".GIF"])
def test_extensions_may_be_in_capitals(extension: str, tmp_path: Path):
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


def test_image_files_are_recognized_by_extension():
    assert is_image_name("a.JPG") and is_image_name("a.b.tiff") and is_image_name("a.heic")
    assert not any(map(is_image_name, ("a.txt", ".a.png", "png", "a.png.bak")))


# fingerprint and evaluation


def test_the_fingerprint_survives_a_move_and_changes_with_the_data(pets: Path, tmp_path: Path):
    before = open_source(pets).fingerprint
    pets.rename(tmp_path / "moved")
    assert open_source(tmp_path / "moved").fingerprint == before
    paint(tmp_path / "moved" / "cat" / "zzz.png")
    added = open_source(tmp_path / "moved").fingerprint
    (tmp_path / "moved" / "cat" / "zzz.png").rename(tmp_path / "moved" / "dog" / "zzz.png")
    relabeled = open_source(tmp_path / "moved").fingerprint
    Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / "moved" / "dog" / "zzz.png")
    resized = open_source(tmp_path / "moved").fingerprint
    assert len({before, added, relabeled, resized}) == 4


def trained_on(address: Path, test: float = 0.2, seed: int = 0) -> tuple[Splits, dict]:
    splits = open_data(address, test=test, split_seed=seed)
    return splits, {
        "name": splits.name,
        "fingerprint": splits.fingerprint,
        "split": {"test": test, "validation": 0.1, "seed": seed},
    }


@pytest.mark.parametrize(("test", "seed"), [(0.2, 0), (0.4, 7)])
def test_the_training_folder_is_scored_on_exactly_the_held_out_images(pets: Path, test: float, seed: int):
    splits, origin = trained_on(pets, test, seed)
    scored = open_images_to_score(pets, splits.classes, 3, origin)
    assert splits.test is not None
    assert scored.images.names == splits.test.names
    assert scored.images.labels.tolist() == splits.test.labels.tolist()
    assert scored.description == f"the {len(splits.test)} held-out test images of pets" and not scored.optimistic


def test_all_images_of_another_folder_are_scored(pets: Path, tmp_path: Path):
    splits, origin = trained_on(pets)
    other = paint_classes(tmp_path / "other", {"cat": 4, "dog": 3})
    scored = open_images_to_score(other, splits.classes, 3, origin)
    assert len(scored.images) == 7 and scored.images.classes == splits.classes
    assert scored.description == "all 7 images of other"


def test_a_folder_with_splits_is_scored_on_its_test_then_its_validation(tmp_path: Path):
    for split, n in (("train", 3), ("val", 2), ("test", 1)):
        paint_classes(tmp_path / split, {"cat": n, "dog": n})
    scored = open_images_to_score(tmp_path, ("cat", "dog"), 3, {})
    assert len(scored.images) == 2 and "test" in scored.description
    for path in sorted((tmp_path / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "test").rmdir()
    scored = open_images_to_score(tmp_path, ("cat", "dog"), 3, {})
    assert len(scored.images) == 4 and "validation" in scored.description
    assert not scored.optimistic  # these are not the training data


def test_evaluation_names_a_class_that_the_classifier_does_not_have(tmp_path: Path):
    paint_classes(tmp_path, {"cat": 2, "yak": 2})
    with pytest.raises(VitrailError, match="'yak' is not among the training classes"):
        open_images_to_score(tmp_path, ("cat", "dog"), 3, {})


def test_evaluation_uses_the_channels_and_labels_of_the_classifier(tmp_path: Path):
    paint_classes(tmp_path, {"dog": 2})
    images = open_images_to_score(tmp_path, ("ant", "cat", "dog"), 1, {}).images
    assert images.labels.tolist() == [2, 2] and images[0].shape == (1, 4, 4)


def test_digits_are_scored_on_the_held_out_images():
    splits = open_data("digits")
    origin = {"fingerprint": splits.fingerprint, "split": {"test": 0.2, "validation": 0.1, "seed": 0}}
    images = open_images_to_score("digits", splits.classes, 1, origin).images
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


def test_paths_in_a_csv_are_relative_to_it(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir("/")
    splits = open_data(write(photos / "list.csv", ROWS), test=0, validation=0)
    assert splits.classes == ("cat", "dog") and splits.name == "list"
    assert labels_of(splits.train) == ["cat", "dog", "cat", "dog"]
    assert [int(splits.train[i][0, 0, 0]) for i in range(4)] == [ord(c) for c in "abcd"]


def test_a_csv_with_absolute_paths(photos: Path, tmp_path: Path):
    lines = ["path,label", f"{photos}/img/a.png,cat", f"{photos}/img/b.png,dog"]
    (tmp_path / "elsewhere").mkdir()
    splits = open_data(write(tmp_path / "elsewhere" / "list.csv", lines), test=0, validation=0)
    assert len(splits.train) == 2 and splits.train[0].shape == (3, 4, 4)


@pytest.mark.parametrize("path_column", ["path", "File", "filename", " image "])
@pytest.mark.parametrize("label_column", ["label", "Class", "category"])
def test_columns_may_have_any_usual_name(path_column: str, label_column: str, photos: Path):
    file = write(photos / "list.csv", [f"id,{label_column},{path_column}", "1,cat,img/a.png", "2,dog,img/b.png"])
    assert open_data(file, test=0, validation=0).train.names == ["img/a.png", "img/b.png"]


def test_a_split_column_is_used(photos: Path):
    lines = [
        "path,label,split",
        "img/a.png,cat,Train",
        "img/b.png,dog,train",
        "img/c.png,cat,val",
        "img/d.png,dog,test",
    ]
    splits = open_data(write(photos / "list.csv", lines))
    assert split_names(splits) == (["img/a.png", "img/b.png"], ["img/c.png"], ["img/d.png"])


def test_an_unknown_split_names_the_line(photos: Path):
    lines = ["path,label,split", "img/a.png,cat,train", "img/b.png,dog,holdout"]
    assert "line 3: 'holdout' is not a split" in error_text(write(photos / "list.csv", lines))


def test_a_byte_order_mark_is_not_part_of_the_first_column(photos: Path):
    assert len(open_data(write(photos / "list.csv", ROWS, "utf-8-sig"), test=0, validation=0).train) == 4


def test_tabs_quotes_and_capitals_of_the_extension(photos: Path):
    paint(photos / "img" / "x, y.png")
    lines = ["path\tlabel", "img/a.png\tcat", "img/x, y.png\tdog"]
    assert len(open_data(write(photos / "list.TSV", lines), test=0, validation=0).train) == 2
    lines = ["path,label", "img/a.png,cat", '"img/x, y.png","dog, small"']
    assert open_data(write(photos / "list.csv", lines), test=0, validation=0).classes == ("cat", "dog, small")


def test_a_missing_file_names_the_line(photos: Path):
    message = error_text(write(photos / "list.csv", [*ROWS, "img/none.png,cat"]))
    assert "line 6" in message and str(photos / "img" / "none.png") in message


def test_blank_lines_count_for_line_numbers(photos: Path):
    message = error_text(write(photos / "list.csv", [*ROWS[:3], "", "", "img/none.png,cat"]))
    assert "line 6" in message


@pytest.mark.parametrize(("row", "column"), [("img/a.png,", "label"), ("img/a.png,  ", "label"), (",cat", "path")])
def test_an_empty_field_names_the_line_and_the_column(row: str, column: str, photos: Path):
    message = error_text(write(photos / "list.csv", [*ROWS, row]))
    assert "line 6" in message and f"{column!r} is empty" in message


def test_a_row_that_is_too_short_names_the_line(photos: Path):
    assert "line 6: the column 'label' is empty" in error_text(write(photos / "list.csv", [*ROWS, "img/a.png"]))


def test_fields_beyond_the_header_name_the_line_unless_they_are_empty(photos: Path):
    lines = ["path,label", "img/a.png,cat,", "img/b.png,dog,, "]
    assert len(open_data(write(photos / "list.csv", lines), test=0, validation=0).train) == 2
    message = error_text(write(photos / "list.csv", [*lines, "img/c.png,cat, tabby"]))
    assert "line 4: 3 values for 2 columns" in message and "quotes" in message


@pytest.mark.parametrize(("header", "missing"), [("path,color", "label"), ("photo,label", "path")])
def test_a_missing_column_is_named_with_the_existing_ones(header: str, missing: str, photos: Path):
    message = error_text(write(photos / "list.csv", [header, "img/a.png,cat"]))
    assert f"no column {missing!r}" in message and header.replace(",", ", ") in message


@pytest.mark.parametrize("lines", [["path,label"], [""]], ids=["header alone", "nothing"])
def test_a_table_without_rows_is_refused(lines: list[str], photos: Path):
    assert "has no rows" in error_text(write(photos / "list.csv", lines))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_refused_by_name(encoding: str, photos: Path):
    message = error_text(write(photos / "list.csv", [*ROWS, "img/a.png,été"], encoding))
    assert "list.csv is not a table in UTF-8" in message


def test_labels_are_stripped_and_composed(photos: Path):
    decomposed = unicodedata.normalize("NFD", "été")
    lines = ["path,label", "img/a.png, été ", f"img/b.png,{decomposed}", "img/c.png,hiver"]
    assert open_data(write(photos / "list.csv", lines), test=0, validation=0).classes == ("hiver", "été")


def test_numbers_are_labels_even_zero(photos: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [("row 1", {"path": "img/a.png", "label": 0}), ("row 2", {"path": "img/b.png", "label": 1})]
    monkeypatch.setattr(table, "iter_rows", lambda file: rows)
    monkeypatch.setattr(open_module, "has_image_bytes", lambda file: None)
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
    assert "broken.parquet is not a parquet file" in error_text(photos / "broken.parquet")


def test_parquet_without_pyarrow_says_what_to_install(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (photos / "list.parquet").touch()
    assert install_hint("parquet") in error_text(photos / "list.parquet")


# built-in data sets


def test_digits_are_complete_and_gray():
    splits = open_data("digits")
    assert splits.validation is not None and splits.test is not None
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 1797
    assert splits.classes == tuple("0123456789")
    assert splits.channels == 1 and not splits.can_flip
    pixels = torch.as_tensor(splits.train.pixels)
    assert pixels.shape[1:] == (1, 8, 8) and pixels.dtype == torch.uint8 and int(pixels.max()) == 255
    assert not set(splits.train.names) & (set(splits.test.names) | set(splits.validation.names))
    assert min(splits.test.count_by_class().values()) >= 34


def test_digits_in_color_have_three_equal_channels():
    splits = open_data("digits", channels=3)
    image = splits.train[0]
    assert splits.channels == 3 and image.shape == (3, 8, 8)
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


@pytest.mark.parametrize("name", sorted(set(BUILTIN_DATASETS) - {"digits"}))
def test_without_a_network_the_error_names_the_download_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_network(*args: object, **options: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "store"))
    message = error_text(name)
    assert message.startswith(f"{name} is not in {tmp_path / 'store'} and could not be downloaded")
    assert "VITRAIL_DATA" in message


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """CIFAR-10 in its own layout with ten images a file, with checksums patched into torchvision."""
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
    meta = {"labels_of": [f"kind {i}" for i in range(10)]}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", test)
    monkeypatch.setattr(
        datasets.CIFAR10,
        "meta",
        {"filename": "batches.meta", "key": "labels_of", "md5": save("batches.meta", meta)},
    )
    return rows.reshape(20, 3, 32, 32)


def test_existing_cifar_files_are_read_without_a_network(small_cifar: np.ndarray):
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
    assert "could not be downloaded" in error_text("cifar10")


class Album:
    """A torchvision data set that decodes files on access and records which ones."""

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
def test_a_data_set_decoded_on_access_is_split_without_reading_images(channels: int, monkeypatch: pytest.MonkeyPatch):
    album = Album(40)
    listing = builtin._list_dataset(album, "train")
    assert isinstance(listing.pixels, TorchvisionImages)
    monkeypatch.setattr("vitrail.data.open.read_builtin_dataset", lambda name: Source(name, {"train": listing}))
    splits = open_data("pets", channels=channels, validation=0.25)
    assert album.opened == []
    assert splits.validation is not None and len(splits.validation) == 10 and not splits.train.is_in_memory
    for images in (splits.train, splits.validation):
        for i in range(len(images)):
            assert images[i].shape == (channels, 4, 4)
            number = int(images.names[i].removeprefix("train-"))
            assert number - int(images[i][0, 0, 0]) in ((0, 1) if channels == 1 else (0,))  # gray is rounded down


def test_labels_are_encoded_by_name_in_any_order():
    listing = Listing(torch.zeros(3, 1, 1, 1), ["x", "y", "z"], categorize("bab"))
    assert encode_labels(listing, ("a", "b"), "here").labels.tolist() == [1, 0, 1]
    with pytest.raises(VitrailError, match=r"here: the classes 'a', 'b' are not among"):
        encode_labels(listing, ("c",), "here")


def test_duplicates_are_never_in_two_splits(tmp_path: Path):
    """Files with the same bytes stay in one split, whatever their names; so do equal pixels in memory."""
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
    assert splits.test is not None and len(splits.test) == 12  # 20% of 36 is 7, of which complete triples make 6
    pixels = torch.arange(8, dtype=torch.uint8).repeat(5).view(40, 1, 1, 1)
    rest, part = split_listing(Listing(pixels, [f"{i:02d}" for i in range(40)], categorize(["a"] * 40)), 0.25, 0)
    assert len(part) == 10
    assert not set(rest.pixels.flatten().tolist()) & set(part.pixels.flatten().tolist())


def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path):
    paint_classes(tmp_path / "pets", {"cat": 3, "dog": 3})
    strange = os.fsencode(tmp_path / "pets") + b"/caf\xe9"
    os.rename(os.fsencode(tmp_path / "pets" / "cat"), strange)
    with pytest.raises(VitrailError, match="not UTF-8"):
        open_source(tmp_path / "pets")


def test_data_changed_since_training_are_scored_with_a_note(pets: Path):
    splits, origin = trained_on(pets, 0.2, 0)
    extra = next((pets / splits.classes[0]).iterdir())
    extra.with_name("new.png").write_bytes(extra.read_bytes())
    assert "changed since training" in open_images_to_score(pets, splits.classes, 3, origin).description
    origin["split"] = {"test": 0.0, "validation": 0.0, "seed": 0}
    extra.with_name("new.png").unlink()
    scored = open_images_to_score(pets, splits.classes, 3, origin)
    assert scored.description.endswith("which the model was trained on")


def test_an_absolute_address_means_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "digits"):
        (tmp_path / name).mkdir()
    assert absolute_address("photos") == absolute_address(Path("photos")) == str(tmp_path / "photos")
    assert absolute_address("shards/train-{000..009}.tar") == str(tmp_path / "shards/train-{000..009}.tar")
    assert absolute_address("../*.tar") == str(tmp_path.parent / "*.tar")
    assert absolute_address("hf:photos") == f"hf:{tmp_path / 'photos'}"
    for name in ("digits", "hf:cifar10", "s3://x/y-{0..9}.tar", "nowhere"):
        assert absolute_address(name) == name
