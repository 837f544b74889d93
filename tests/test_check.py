"""What a check finds, its messages and codes, its cache, and the clean list that it writes."""

import csv
import io
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitrail
from test_near_duplicates import jpeg, noisy, scenes
from vitrail.cli.main import main
from vitrail.data import facts
from vitrail.data.check import CheckReport, check_data
from vitrail.data.clean import write_clean_list
from vitrail.data.findings import TEMPLATES, Code
from vitrail.data.open import open_data
from vitrail.errors import UsageError

SCENES = scenes(72, 40)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 pictures of each of two classes in train and 6 in test, all different."""
    root = tmp_path / "photos"
    numbers = iter(range(72))
    for split, n in (("train", 24), ("test", 6)):
        for label in ("barn", "lake"):
            (root / split / label).mkdir(parents=True)
            for i in range(n):
                SCENES[next(numbers)].save(root / split / label / f"{i:02}.png")
    return root


def by_code(report: CheckReport) -> dict[str, str]:
    return {finding.code: str(finding) for finding in report.findings}


def test_valid_data_have_no_findings(photos: Path):
    report = check_data(photos)
    assert report.findings == []
    assert (report.images, report.splits) == (60, {"train": 48, "test": 12})
    assert report.color_types == {"color": 60}


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


NEW = SCENES[60:]
TRAIN = "train/barn/"
CASES: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    # change of the folder; code of the finding; text in its message; text in its consequence
    "same file, two splits": (
        lambda root: save(SCENES[0], root / "test/barn/copy.png"),
        "duplicates-across-splits", "test/barn/copy.png", "--fix leaves the training copy out",
    ),
    "same file, two classes": (
        lambda root: save(SCENES[0], root / "train/lake/copy.png"),
        "duplicates-across-classes", "train/lake/copy.png", "--fix leaves all of these",
    ),
    "same file, one split": (
        lambda root: save(SCENES[0], root / "train/barn/copy.png"),
        "duplicates", "train/barn/copy.png", "--fix keeps one",
    ),
    "nearly the same, two splits": (
        lambda root: save(jpeg(SCENES[3].resize((60, 60)), 60), root / "test/barn/again.jpg"),
        "near-duplicates-across-splits",
        "test/barn/again.jpg ~ train/barn/03.png", "--fix leaves",
    ),
    "nearly the same, two classes": (
        lambda root: save(noisy(SCENES[3]), root / "train/lake/again.png"),
        "near-duplicates-across-classes", "train/lake/again.png", "both are used as labeled",
    ),
    "nearly the same, one split": (
        lambda root: save(SCENES[3].convert("L").convert("RGB"), root / "train/barn/again.png"),
        "near-duplicates", "train/barn/again.png", "all are kept",
    ),
    "a class in test only": (
        lambda root: save(NEW[0], root / "test/moor/0.png"),
        "unknown-classes", "test has classes that training lacks: moor", "training stops",
    ),
    "a class in training only": (
        lambda root: save(NEW[0], root / "train/moor/0.png"),
        "missing-classes", "test has no image of moor", "indices stay the same",
    ),
    "a small class": (
        lambda root: save(NEW[0], root / "train/moor/0.png"), "small-classes", "moor (1)", "unreliable",
    ),
    "imbalance": (
        lambda root: save(NEW[0], root / "train/moor/0.png"), "class-imbalance", "'moor' only 1", "count alike",
    ),
    "case": (
        lambda root: save(NEW[0], root / "train/Barn/0.png"),
        "similar-class-names", "'Barn' and 'barn'", "remain separate",
    ),
    "accents": (
        lambda root: save(NEW[0], root / "train/bärn/0.png"), "similar-class-names", "'barn' and 'bärn'", "rename one",
    ),
    "a trailing space": (
        lambda root: save(NEW[0], root / "train/barn /0.png"),
        "similar-class-names", "'barn' and 'barn '", "rename one",
    ),
    "another format": (
        lambda root: (save(NEW[0], root / "x.jpg"), (root / "x.jpg").rename(root / TRAIN / "x.png")),
        "wrong-extension", "train/barn/x.png, which is a JPEG", "read by their content",
    ),
    "truncated": (
        lambda root: (root / TRAIN / "00.png").write_bytes((root / TRAIN / "00.png").read_bytes()[:900]),
        "unreadable-image", "train/barn/00.png: damaged", "--skip-unreadable",
    ),
    "gray among color": (
        lambda root: save(NEW[0].convert("L"), root / TRAIN / "g.png"),
        "mixed-color", "(1 of 61 are gray)", "shortcut",
    ),
    "16 bits": (
        lambda root: save(Image.fromarray(np.asarray(NEW[0])[..., 0].astype(np.uint16) * 257), root / TRAIN / "d.png"),
        "high-bit-depth", "train/barn/d.png", "bit depth gives black and white",
    ),
    "transparency": (
        lambda root: save(NEW[0].convert("RGBA"), root / TRAIN / "t.png"), "transparent", "t.png", "becomes white",
    ),
    "rotated": (
        lambda root: save(NEW[0], root / TRAIN / "l.jpg", exif=exif_with(6)), "rotated", "l.jpg", "turned upright",
    ),
    "animated": (
        lambda root: save(NEW[0], root / TRAIN / "a.gif", save_all=True, append_images=[NEW[1]]),
        "animated", "a.gif", "first frame",
    ),
    "far smaller": (
        lambda root: save(NEW[0].resize((4, 4)), root / TRAIN / "s.png"),
        "small-images", "s.png with 4x4", "patch",
    ),
    "long": (
        lambda root: save(NEW[0].resize((400, 30)), root / TRAIN / "w.png"),
        "elongated-images", "w.png with 400x30", "padded",
    ),
    "one color": (
        lambda root: save(Image.new("RGB", (40, 40), "red"), root / TRAIN / "r.png"),
        "constant-images", "r.png", "like the others",
    ),
    "beside the classes": (
        lambda root: save(NEW[0], root / "train/loose.png"), "ignored", "beside the class folders", "not used",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_finding_names_the_problem_and_its_consequence(photos: Path, case: str):
    change, code, message, consequence = CASES[case]
    change(photos)
    report = check_data(photos)
    texts = by_code(report)
    assert code in texts, texts
    assert message in texts[code] and consequence in texts[code]
    assert bool(report.errors) == (code in ("unreadable-image", "unknown-classes"))
    document = json.loads(json.dumps(report.to_json()))
    assert set(document["errors"]) | set(document["warnings"]) == {str(finding) for finding in report.findings}
    assert code in {finding["code"] for finding in document["findings"]}


def test_every_code_has_texts():
    assert set(TEMPLATES) == set(Code)


def test_the_loss_of_a_crop_is_reported_only_for_a_crop(photos: Path):
    save(NEW[0].resize((100, 50)), photos / TRAIN / "w.png")
    assert "crop-loss" not in by_code(check_data(photos))
    assert "50% of train/barn/w.png" in by_code(check_data(photos, fit="crop"))["crop-loss"]


def test_fewer_images_than_a_batch_are_reported_and_can_train(make_folder, capsys):
    folder = make_folder("twelve", 6)
    assert (
        "12 training images are fewer than a batch of 128"
        in by_code(check_data(folder, batch_size=128))["fewer-than-a-batch"]
    )
    run = vitrail.train(
        folder, out=folder.parent / "run", epochs=3, batch_size=128, width=16, depth=1, heads=2, mlp_width=16
    )
    assert "fewer than a batch of 128; each epoch is one step" in capsys.readouterr().err
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_repeated_and_missing_rows_of_a_table(photos: Path, tmp_path: Path):
    rows = [f"photos/train/{label}/{i:02}.png,{label}" for label in ("barn", "lake") for i in range(12)]
    table = tmp_path / "list.csv"
    table.write_text("path,label\n" + "\n".join([*rows, rows[0], "photos/train/lake/00.png,barn", "lost.png,barn"]))
    report = check_data(table)
    texts = by_code(report)
    assert "2 images are listed more than once (1 with different classes)" in texts["listed-twice"]
    assert "lost.png: there is no such file" in texts["unreadable-image"]
    assert report.unreadable == ["lost.png"]


def test_errors_stop_training_before_anything_is_written_and_warnings_are_printed(photos: Path, tmp_path: Path, capsys):
    options = {"epochs": 1, "width": 16, "depth": 1, "heads": 2, "mlp_width": 16}
    save(SCENES[0], photos / "test/barn/copy.png")
    run = vitrail.train(photos, out=tmp_path / "run", **options)
    assert "warning: the same image in different splits, 1 time" in capsys.readouterr().err
    assert json.loads((run.folder / "check.json").read_text())["warnings"]
    (photos / TRAIN / "00.png").write_bytes(b"")
    (photos / TRAIN / "01.png").write_bytes(b"")
    with pytest.raises(vitrail.VitrailError, match=r"00\.png.*and 1 more errors"):
        vitrail.train(photos, out=tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()


def test_only_changed_images_are_read_again(photos: Path, monkeypatch: pytest.MonkeyPatch):
    first = check_data(photos)
    read: list[str] = []
    original = facts.read_file_facts
    monkeypatch.setattr(
        facts, "read_file_facts", lambda images, i: (read.append(images.location(i)), original(images, i))[1]
    )
    assert check_data(photos).to_json() == first.to_json()
    assert read == []
    save(NEW[0], photos / TRAIN / "05.png")
    save(NEW[1], photos / TRAIN / "new.png")
    check_data(photos)
    assert sorted(Path(location).name for location in read) == ["05.png", "new.png"]
    read.clear()
    assert check_data(photos, fresh=True).images == 61
    assert len(read) == 61


@pytest.mark.parametrize("damage", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_cache_is_created_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    first = check_data(photos).to_json()
    file = next((tmp_path / "cache").iterdir())
    file.write_bytes(damage)
    assert check_data(photos).to_json() == first
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT count(*) FROM facts").fetchone() == (60,)


def test_a_check_works_without_a_cache_folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "file" / "cache"))
    assert check_data(photos).findings == []


def test_the_cache_of_the_version_before_is_imported(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    first = check_data(photos).to_json()
    new, old = tmp_path / "cache" / facts.CACHE_NAME, tmp_path / "cache" / facts.OLD_CACHE_NAME
    with closing(sqlite3.connect(new)) as connection, connection:
        (n_png,) = connection.execute("SELECT count(*) FROM facts WHERE format = 'PNG'").fetchone()
        connection.execute("UPDATE facts SET format = 'JPEG' WHERE key LIKE '%00.png'")
        (n_jpeg,) = connection.execute("SELECT count(*) FROM facts WHERE format = 'JPEG'").fetchone()
    new.rename(old)
    read = []
    read_file_facts = facts.read_file_facts
    monkeypatch.setattr(facts, "read_file_facts", lambda images, i: read.append(i) or read_file_facts(images, i))
    again = check_data(photos).to_json()
    assert {**again, "findings": [], "warnings": []} == {**first, "findings": [], "warnings": []}
    assert n_jpeg > 0 and len(read) == n_png - n_jpeg  # formats whose decoding has changed are read again
    assert not old.exists()


def test_a_check_does_not_change_the_data_folder(photos: Path, tmp_path: Path):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in photos.rglob("*")}
    assert main(["check", str(photos), "--out", str(tmp_path / "out"), "--fix", str(tmp_path / "clean.csv")]) == 0
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in photos.rglob("*")} == before


def test_a_clean_list_leaves_out_bad_images_keeps_the_rest_and_can_be_trained_on(photos: Path, tmp_path: Path, capsys):
    save(SCENES[0], photos / "test/barn/leak.png")  # = train/barn/00: the training copy is left out
    save(SCENES[1], photos / "train/barn/again.png")  # = train/barn/01: the second is left out
    save(SCENES[2], photos / "train/lake/conflict.png")  # = train/barn/02 in another class: both are left out
    save(jpeg(SCENES[3], 60), photos / "test/barn/near.jpg")  # ~ train/barn/03: the training copy is left out
    save(noisy(SCENES[4]), photos / "train/barn/similar.png")  # ~ train/barn/04, in one split: both are kept
    (photos / "train/lake/00.png").write_bytes(b"no image")
    (photos / 'train/lake/a, "quoted" name.png').write_bytes((photos / "train/lake/01.png").read_bytes())
    (photos / "train/lake/01.png").unlink()
    file = tmp_path / "lists" / "clean.csv"
    assert main(["check", str(photos), "--fix", str(file), "--json"]) == 1
    clean = json.loads(capsys.readouterr().out)["clean"]
    assert clean["left_out"] == {
        "unreadable": 1, "duplicates": 2, "duplicates with different labels": 2, "near-duplicates of held-out images": 1
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline="")))
    assert len(rows) == clean["images"] == 65 - 6
    names = {f"{Path(row['path']).parent.name}/{Path(row['path']).name}" for row in rows if row["split"] == "train"}
    left_out = {"barn/00.png", "barn/again.png", "lake/conflict.png", "barn/02.png", "barn/03.png", "lake/00.png"}
    assert not names & left_out
    assert {"barn/01.png", "barn/similar.png", "barn/04.png", 'lake/a, "quoted" name.png'} <= names
    report = check_data(file)
    assert report.errors == []
    assert set(by_code(report)) == {"near-duplicates"}
    splits = open_data(file)
    assert (len(splits.train), len(splits.test or ())) == (59 - 14 - 4, 14)  # four of them are validation images
    with pytest.raises(UsageError, match="exists already"):
        write_clean_list(check_data(photos), file)
    moved = tmp_path / "clean.csv"
    write_clean_list(check_data(photos), moved)
    assert "photos/test/barn/00.png,barn,test" in moved.read_text()  # relative to the list, because it is below it


@pytest.mark.parametrize("names", [("0 again.png", "1 near.png"), ("1 again.png", "0 near.png")])
def test_a_near_duplicate_of_an_image_in_both_splits_is_left_out(photos: Path, tmp_path: Path, names):
    again, near = names
    save(SCENES[60], photos / "train/barn" / again)
    save(SCENES[60], photos / "test/barn/there.png")  # identical
    save(noisy(SCENES[60]), photos / "train/barn" / near)
    report = check_data(photos)
    text = by_code(report)["near-duplicates-across-splits"]
    assert f"train/barn/{near}" in text and "test/barn/there.png" in text
    assert write_clean_list(report, tmp_path / "clean.csv") == {
        "duplicates": 1,
        "near-duplicates of held-out images": 1,
    }
    text = (tmp_path / "clean.csv").read_text()
    assert again not in text and near not in text and "there.png" in text


def test_a_clean_list_is_for_files(tmp_path: Path):
    with pytest.raises(UsageError, match="not files of their own"):
        write_clean_list(check_data("digits"), tmp_path / "clean.csv")


def test_contact_sheets_of_classes_and_near_duplicates(photos: Path, tmp_path: Path):
    save(jpeg(SCENES[3], 60), photos / "test/barn/near.jpg")
    save(NEW[0], photos / "train/$x^2$ <b>/0.png")
    assert main(["check", str(photos), "--out", str(tmp_path / "out")]) == 0
    for name in ("classes.png", "near-duplicates.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 100
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 20
    document = json.loads((tmp_path / "out" / "check.json").read_text())
    assert document["near_duplicates"][0]["a"]["name"] == "test/barn/near.jpg"


def test_a_built_in_data_set_can_be_checked(capsys):
    assert main(["check", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["near_duplicates"] == []  # images of 8x8 pixels are not compared


def test_a_class_missing_in_validation_keeps_the_indices_of_the_others(make_folder):
    folder = make_folder("gap", {"train": 12, "val": 6}, ("blue", "green", "red"))
    run = vitrail.train(folder, out=folder.parent / "run", epochs=6, width=32, depth=1, heads=2, mlp_width=32)
    for path in (folder / "val" / "blue").iterdir():
        path.unlink()
    (folder / "val" / "blue").rmdir()
    scored = vitrail.evaluate(run.classifier, folder / "val")
    by_hand = [run.classifier.predict(path, top=1)[0].label == path.parent.name for path in folder.glob("val/*/*")]
    assert scored.images == len(by_hand) == 12
    assert scored.accuracy == sum(by_hand) / len(by_hand)


@pytest.mark.newest
def test_facts_from_the_cache_are_the_same_at_every_reading(make_folder, own_cache: Path):
    """Since Python 3.13, threads that shared a connection read rows with NULL in them, in a tenth of the checks."""
    folder = make_folder("many", 200)
    first = check_data(folder).to_json()
    for _ in range(15):
        assert check_data(folder).to_json() == first
