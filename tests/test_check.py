"""What a check finds, what it says will be done, what it keeps, and the clean list it writes."""

import csv
import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitrail
from test_copies import jpeg, noisy, scenes
from vitrail.cli.main import main
from vitrail.data import facts as looking
from vitrail.data import open_data
from vitrail.data.check import CheckReport, check_data
from vitrail.data.clean import write_clean
from vitrail.errors import UsageError

SCENES = scenes(72, 40)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 pictures of each of two classes in train, 6 in test, no two alike."""
    root = tmp_path / "photos"
    numbers = iter(range(72))
    for split, n in (("train", 24), ("test", 6)):
        for label in ("barn", "lake"):
            (root / split / label).mkdir(parents=True)
            for i in range(n):
                SCENES[next(numbers)].save(root / split / label / f"{i:02}.png")
    return root


def kinds(report: CheckReport) -> dict[str, str]:
    return {finding.kind: str(finding) for finding in report.findings}


def test_sound_data_have_no_findings(photos: Path):
    report = check_data(photos)
    assert report.findings == []
    assert (report.images, report.splits) == (60, {"train": 48, "test": 12})
    assert report.color_types == {"colour": 60}


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


NEW = SCENES[60:]
TRAIN = "train/barn/"
CASES: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    # what is done to the folder; kind of finding; in its sentence; what will be done
    "same file, two splits": (
        lambda root: save(SCENES[0], root / "test/barn/copy.png"),
        "the same image in different splits", "test/barn/copy.png", "--fix leaves the training copy out",
    ),
    "same file, two classes": (
        lambda root: save(SCENES[0], root / "train/lake/copy.png"),
        "the same image under different classes", "train/lake/copy.png", "--fix leaves all of them out",
    ),
    "same file, one split": (
        lambda root: save(SCENES[0], root / "train/barn/copy.png"),
        "the same image more than once", "train/barn/copy.png", "--fix keeps one",
    ),
    "nearly the same, two splits": (
        lambda root: save(jpeg(SCENES[3].resize((60, 60)), 60), root / "test/barn/again.jpg"),
        "nearly the same image in different splits", "test/barn/again.jpg ~ train/barn/03.png", "--fix leaves",
    ),
    "nearly the same, two classes": (
        lambda root: save(noisy(SCENES[3]), root / "train/lake/again.png"),
        "nearly the same image under different classes", "train/lake/again.png", "both are trained on",
    ),
    "nearly the same, one split": (
        lambda root: save(SCENES[3].convert("L").convert("RGB"), root / "train/barn/again.png"),
        "nearly the same image more than once", "train/barn/again.png", "all are kept",
    ),
    "a class in test only": (
        lambda root: save(NEW[0], root / "test/moor/0.png"),
        "unknown classes", "test has classes that training lacks: moor", "training stops",
    ),
    "a class in training only": (
        lambda root: save(NEW[0], root / "train/moor/0.png"),
        "missing classes", "test has no image of moor", "keep their numbers",
    ),
    "a tiny class": (
        lambda root: save(NEW[0], root / "train/moor/0.png"), "tiny classes", "moor (1)", "say little",
    ),
    "imbalance": (
        lambda root: save(NEW[0], root / "train/moor/0.png"), "imbalance", "'moor' only 1", "nothing is weighted",
    ),
    "case": (lambda root: save(NEW[0], root / "train/Barn/0.png"), "alike names", "'Barn' and 'barn'", "stay classes"),
    "accents": (
        lambda root: save(NEW[0], root / "train/bärn/0.png"), "alike names", "'barn' and 'bärn'", "rename one",
    ),
    "a trailing space": (
        lambda root: save(NEW[0], root / "train/barn /0.png"), "alike names", "'barn' and 'barn '", "rename one",
    ),
    "another format": (
        lambda root: (save(NEW[0], root / "x.jpg"), (root / "x.jpg").rename(root / TRAIN / "x.png")),
        "extension", "train/barn/x.png, which is a JPEG", "read as what they are",
    ),
    "cut short": (
        lambda root: (root / TRAIN / "00.png").write_bytes((root / TRAIN / "00.png").read_bytes()[:900]),
        "unreadable", "train/barn/00.png: damaged", "--skip-unreadable",
    ),
    "grey among colour": (
        lambda root: save(NEW[0].convert("L"), root / TRAIN / "g.png"),
        "mixed kinds", "1 of 61 images are grey", "colour",
    ),
    "16 bits": (
        lambda root: save(Image.fromarray(np.asarray(NEW[0])[..., 0].astype(np.uint16) * 257), root / TRAIN / "d.png"),
        "16 bits", "train/barn/d.png", "scaled to 8 bits",
    ),
    "transparency": (
        lambda root: save(NEW[0].convert("RGBA"), root / TRAIN / "t.png"), "transparency", "t.png", "white shows",
    ),
    "lying down": (
        lambda root: save(NEW[0], root / TRAIN / "l.jpg", exif=turned(6)), "orientation", "l.jpg", "put upright",
    ),
    "animated": (
        lambda root: save(NEW[0], root / TRAIN / "a.gif", save_all=True, append_images=[NEW[1]]),
        "animation", "a.gif", "first frame",
    ),
    "far smaller": (
        lambda root: save(NEW[0].resize((4, 4)), root / TRAIN / "s.png"), "small", "s.png with 4x4", "patch",
    ),
    "long": (
        lambda root: save(NEW[0].resize((400, 30)), root / TRAIN / "w.png"), "long", "w.png with 400x30", "border",
    ),
    "one colour": (
        lambda root: save(Image.new("RGB", (40, 40), "red"), root / TRAIN / "r.png"),
        "constant", "r.png", "like the others",
    ),
    "beside the classes": (
        lambda root: save(NEW[0], root / "train/loose.png"), "left out", "beside the class folders", "nothing is done",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_finding_names_what_it_found_and_says_what_will_be_done(photos: Path, case: str):
    harm, kind, said, then = CASES[case]
    harm(photos)
    report = check_data(photos)
    found = kinds(report)
    assert kind in found, found
    assert said in found[kind] and then in found[kind]
    assert bool(report.errors) == (kind in ("unreadable", "unknown classes"))
    document = json.loads(json.dumps(report.to_json()))
    assert set(document["errors"]) | set(document["warnings"]) == {str(finding) for finding in report.findings}


def test_what_a_crop_cuts_away_is_said_where_a_crop_is_asked_for(photos: Path):
    save(NEW[0].resize((100, 50)), photos / TRAIN / "w.png")
    assert "crop" not in kinds(check_data(photos))
    assert "50% of train/barn/w.png" in kinds(check_data(photos, fit="crop"))["crop"]


def test_fewer_images_than_a_batch_are_said_and_train(make_folder, capsys):
    folder = make_folder("twelve", 6)
    assert (
        "12 training images are fewer than a batch of 128"
        in kinds(check_data(folder, batch_size=128))["fewer than a batch"]
    )
    run = vitrail.train(
        folder, out=folder.parent / "run", epochs=3, batch_size=128, width=16, depth=1, heads=2, mlp_width=16
    )
    assert "fewer than a batch of 128; each epoch is one step" in capsys.readouterr().err
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_the_rows_of_a_table(photos: Path, tmp_path: Path):
    rows = [f"photos/train/{label}/{i:02}.png,{label}" for label in ("barn", "lake") for i in range(12)]
    table = tmp_path / "list.csv"
    table.write_text("path,label\n" + "\n".join([*rows, rows[0], "photos/train/lake/00.png,barn", "lost.png,barn"]))
    report = check_data(table)
    found = kinds(report)
    assert "2 images are listed more than once" in found["listed twice"]
    assert "1 of them under different classes" in found["listed twice"]
    assert "lost.png: there is no such file" in found["unreadable"]
    assert report.unreadable == ["lost.png"]


def test_errors_stop_training_before_anything_is_written_and_warnings_are_said(photos: Path, tmp_path: Path, capsys):
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


def test_what_has_not_changed_is_not_read_again_and_what_has_is(photos: Path, monkeypatch: pytest.MonkeyPatch):
    first = check_data(photos)
    read: list[str] = []
    real = looking.read_file_facts
    monkeypatch.setattr(looking, "look_at_file", lambda images, i: (read.append(images.place(i)), real(images, i))[1])
    assert check_data(photos).to_json() == first.to_json()
    assert read == []
    save(NEW[0], photos / TRAIN / "05.png")
    save(NEW[1], photos / TRAIN / "new.png")
    check_data(photos)
    assert sorted(Path(place).name for place in read) == ["05.png", "new.png"]
    read.clear()
    assert check_data(photos, fresh=True).images == 61
    assert len(read) == 61


@pytest.mark.parametrize("damage", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_cache_is_made_anew(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    first = check_data(photos).to_json()
    file = next((tmp_path / "cache").iterdir())
    file.write_bytes(damage)
    assert check_data(photos).to_json() == first
    assert sqlite3.connect(file).execute("SELECT count(*) FROM looks").fetchone() == (60,)


def test_without_a_place_for_a_cache_a_check_works(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "file" / "cache"))
    assert check_data(photos).findings == []


def test_a_check_leaves_the_data_as_they_are_and_its_cache_elsewhere(photos: Path, tmp_path: Path):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in photos.rglob("*")}
    assert main(["check", str(photos), "--out", str(tmp_path / "out"), "--fix", str(tmp_path / "clean.csv")]) == 0
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in photos.rglob("*")} == before


def test_a_clean_list_lacks_what_is_wrong_keeps_the_rest_and_trains(photos: Path, tmp_path: Path, capsys):
    save(SCENES[0], photos / "test/barn/leak.png")  # = train/barn/00: the training copy goes
    save(SCENES[1], photos / "train/barn/again.png")  # = train/barn/01: the second goes
    save(SCENES[2], photos / "train/lake/torn.png")  # = train/barn/02 under another class: both go
    save(jpeg(SCENES[3], 60), photos / "test/barn/near.jpg")  # ~ train/barn/03: the training copy goes
    save(noisy(SCENES[4]), photos / "train/barn/kept.png")  # ~ train/barn/04, in one split: both stay
    (photos / "train/lake/00.png").write_bytes(b"no image")
    (photos / 'train/lake/a, "quoted" name.png').write_bytes((photos / "train/lake/01.png").read_bytes())
    (photos / "train/lake/01.png").unlink()
    file = tmp_path / "lists" / "clean.csv"
    assert main(["check", str(photos), "--fix", str(file), "--json"]) == 1
    clean = json.loads(capsys.readouterr().out)["clean"]
    assert clean["left_out"] == {
        "unreadable": 1, "copies": 2, "copies under different classes": 2, "nearly the same as an image kept back": 1
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline="")))
    assert len(rows) == clean["images"] == 65 - 6
    names = {f"{Path(row['path']).parent.name}/{Path(row['path']).name}" for row in rows if row["split"] == "train"}
    gone = {"barn/00.png", "barn/again.png", "lake/torn.png", "barn/02.png", "barn/03.png", "lake/00.png"}
    assert not names & gone
    assert {"barn/01.png", "barn/kept.png", "barn/04.png", 'lake/a, "quoted" name.png'} <= names
    report = check_data(file)
    assert report.errors == []
    assert set(kinds(report)) == {"nearly the same image more than once"}
    splits = open_data(file)
    assert (len(splits.train), len(splits.test or ())) == (59 - 14 - 4, 14)  # four of them choose
    with pytest.raises(UsageError, match="is there already"):
        write_clean(check_data(photos), file)
    moved = tmp_path / "clean.csv"
    write_clean(check_data(photos), moved)
    assert "photos/test/barn/00.png,barn,test" in moved.read_text()  # below the list: relative to it


@pytest.mark.parametrize("names", [("0 again.png", "1 near.png"), ("1 again.png", "0 near.png")])
def test_a_near_copy_of_an_image_that_is_in_both_splits_is_left_out(photos: Path, tmp_path: Path, names):
    again, near = names
    save(SCENES[60], photos / "train/barn" / again)
    save(SCENES[60], photos / "test/barn/there.png")  # the very same image
    save(noisy(SCENES[60]), photos / "train/barn" / near)
    report = check_data(photos)
    said = kinds(report)["nearly the same image in different splits"]
    assert f"train/barn/{near}" in said and "test/barn/there.png" in said
    assert write_clean(report, tmp_path / "clean.csv") == {"copies": 1, "nearly the same as an image kept back": 1}
    text = (tmp_path / "clean.csv").read_text()
    assert again not in text and near not in text and "there.png" in text


def test_a_clean_list_is_for_files(tmp_path: Path):
    with pytest.raises(UsageError, match="not files of their own"):
        write_clean(check_data("digits"), tmp_path / "clean.csv")


def test_pictures_of_the_classes_and_the_copies(photos: Path, tmp_path: Path):
    save(jpeg(SCENES[3], 60), photos / "test/barn/near.jpg")
    save(NEW[0], photos / "train/$x^2$ <b>/0.png")
    assert main(["check", str(photos), "--out", str(tmp_path / "out")]) == 0
    for name in ("classes.png", "copies.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 100
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 20
    document = json.loads((tmp_path / "out" / "check.json").read_text())
    assert document["near_copies"][0]["a"]["name"] == "test/barn/near.jpg"


def test_a_built_in_set_is_checked_too(capsys):
    assert main(["check", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["near_copies"] == []  # 8x8 pixels cannot tell


def test_a_class_missing_in_validation_scores_the_same_as_with_the_training_classes(make_folder):
    folder = make_folder("gap", {"train": 12, "val": 6}, ("blue", "green", "red"))
    run = vitrail.train(folder, out=folder.parent / "run", epochs=6, width=32, depth=1, heads=2, mlp_width=32)
    for path in (folder / "val" / "blue").iterdir():
        path.unlink()
    (folder / "val" / "blue").rmdir()
    scored = vitrail.evaluate(run.classifier, folder / "val")
    by_hand = [run.classifier.predict(path, top=1)[0].label == path.parent.name for path in folder.glob("val/*/*")]
    assert scored.images == len(by_hand) == 12
    assert scored.accuracy == sum(by_hand) / len(by_hand)
