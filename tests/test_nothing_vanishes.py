"""Images of a source = images that are read + images that are named as left out, for every kind of source."""

import io
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from shard_files import png_bytes, write_tar
from vitrail.cli.images import list_input_images
from vitrail.data.augment import Augmentation
from vitrail.data.check import check_data
from vitrail.data.decode import ImageError, ImageUnreachable
from vitrail.data.formats import EXTENSIONS, UNREAD_EXTENSIONS, is_hidden, is_image_name
from vitrail.data.labels import categorize
from vitrail.data.loader import TrainLoader
from vitrail.data.open import open_data, open_source
from vitrail.data.shards.cache import exclusive_lock, remove_abandoned_parts
from vitrail.data.shards.index import INDEX_FILE
from vitrail.data.shards.listing import READER_VERSION
from vitrail.data.shards.writer import write_shards
from vitrail.data.source import Listing, Source
from vitrail.data.stratification import first_duplicates
from vitrail.data.walk import Omissions
from vitrail.errors import VitrailError
from vitrail.files import write_atomically, write_folder_atomically, write_text
from vitrail.prediction.sources import list_source

SOURCES = 150  # of folders, of tables, and of archives
SHARD_SOURCES, PARQUET_SOURCES = 60, 60
HUB_SOURCES, HUB_FOLDERS = 24, 12  # each costs a tenth of a second


def encoded(kind: str, value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 9, 90)).save(file, kind)
    return file.getvalue()


CONTENTS = {
    ".png": encoded("PNG", 1),
    ".JPG": encoded("JPEG", 2),
    ".avif": encoded("AVIF", 3),
    ".jp2": encoded("JPEG2000", 4),
    ".mpo": encoded("JPEG", 5),
    ".heic": Path(__file__).with_name("two-colors.heic").read_bytes(),
    ".hif": b"\0\0\0\x18ftypheic" + bytes(40),  # damaged
    ".gif": b"no image",
    ".dng": b"raw",
    ".psd": b"8BPS",
    "": encoded("PNG", 6),
    ".txt": b"text",
}
STEMS = ("a", "b", "IMG_2024.06.01", "IMG_2024.06.02", "x.y.z", "__c", "é 1", "train", "._a", ".b")
FOLDERS = ("cat", "dog", "__background__", "train", "test", "val", ".hidden", "__MACOSX", "v1.0", "sub")


def draw_paths(draw: random.Random) -> dict[str, bytes]:
    """Draws relative paths of files and their contents."""
    roots = draw.choice([[""], ["train/", "test/"], ["train/", "val/", "raw/"]])
    inner = draw.choice([[""], [""], ["sub/", "v1.0/", ""], ["train/", "test/"]])
    classes = draw.sample(FOLDERS, draw.randint(1, 4))
    files = {}
    for _ in range(draw.randint(2, 12)):
        extension = draw.choice([*CONTENTS, ".png", ".png", ".JPG"])
        path = f"{draw.choice(roots)}{draw.choice(classes)}/{draw.choice(inner)}{draw.choice(STEMS)}{extension}"
        files[path] = CONTENTS[extension]
    if draw.random() < 0.2:
        files[f"{draw.choice(STEMS[:6])}.png"] = CONTENTS[".png"]
    return {path: files[path] for path in files if not any(f"{path}/" == other[: len(path) + 1] for other in files)}


def write_files(root: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def visible(files: dict[str, bytes]) -> list[str]:
    return [path for path in files if not any(map(is_hidden, path.split("/")))]


def count_read(source: Source) -> tuple[int, int]:
    """Returns the number of images that are decoded, and of those that are refused by name."""
    read = refused = 0
    for listing in source.splits.values():
        for i in range(len(listing)):
            try:
                assert listing.pixels[i].dtype == torch.uint8
                read += 1
            except ImageError as error:
                assert error.name and error.reason
                refused += 1
    return read, refused


def check_source(address: Path, files: list[str]) -> bool:
    """Checks the rule for the verbs that read labeled images; returns whether the source can be read at all."""
    try:
        source = open_source(address, missing_ok=True)
    except VitrailError as error:  # the whole source is refused, in a sentence that names it
        assert str(address) in error.sentence and "\n" not in error.sentence
        return False
    read, refused = count_read(source)
    named = sum(each.files for each in source.left_out) + len(source.damaged)
    assert read + refused + named == len(files), (files, source.left_out, source.damaged)
    assert sum(len(listing) for listing in source.splits.values()) == read + refused
    return True


def folders(root: Path, n: int = SOURCES) -> Iterator[tuple[Path, dict[str, bytes]]]:
    for seed in range(n):
        files = draw_paths(random.Random(seed))
        write_files(root / f"{seed}", files)
        yield root / f"{seed}", files


def test_the_files_of_folders_are_read_or_named(tmp_path: Path, capsys):
    n_readable = 0
    for folder, files in folders(tmp_path):
        names = visible(files)
        n_readable += check_source(folder, names)
        omissions = Omissions()
        try:
            entries = list(list_source(str(folder), tmp_path, omissions))  # predict --out
        except VitrailError:
            continue
        assert len(entries) + omissions.counts.total() == len(names)
        if entries:
            assert sorted(entry.path for entry in entries) == sorted(i.path for i in list_input_images([str(folder)]))
    assert n_readable > SOURCES / 4
    assert "not used" in capsys.readouterr().err


def test_the_rows_of_tables_are_read_or_named(tmp_path: Path):
    n_readable = 0
    (tmp_path / "img").mkdir()
    for extension, content in CONTENTS.items():
        (tmp_path / "img" / f"a{extension}").write_bytes(content)
    values = ["cat", "dog", '"cat, tabby"', "cat, tabby", '"cat', "ants|insect", '"a ""b"""']
    for seed in range(SOURCES):
        draw = random.Random(seed)
        rows = []
        for _ in range(draw.randint(2, 8)):
            name = draw.choice([f"a{extension}" for extension in CONTENTS] + ["none.png"])
            rows.append(f"img/{name},{draw.choice(values[:2] if draw.random() < 0.8 else values)},3")
        file = tmp_path / f"{seed}.csv"
        file.write_text("\n".join(["path,label,weight", *rows]) + "\n")
        try:
            source = open_source(file, missing_ok=True)
        except VitrailError as error:
            assert f"{file}, line " in error.sentence and "\n" not in error.sentence
            continue
        n_readable += 1
        read, refused = count_read(source)
        assert read + refused == len(rows)
        assert ["weight" in each.sentence for each in source.left_out] == [True]
        assert len(list(list_source(str(file), tmp_path, Omissions()))) == len(rows)
    assert n_readable > SOURCES / 4


def test_the_members_of_archives_are_read_or_named(tmp_path: Path, own_cache: Path):
    n_readable = 0
    for seed in range(SOURCES):
        draw = random.Random(seed)
        files = draw_paths(draw)
        for path in list(files):
            if draw.random() < 0.2:  # a label by the name up to the last dot, or up to the first
                stem = path.rpartition(".")[0] if draw.random() < 0.5 else path.partition(".")[0]
                files[f"{stem or path}.cls"] = b"owl"
        members = sorted(files) if draw.random() < 0.7 else draw.sample(sorted(files), len(files))
        tar = write_tar(tmp_path / f"{seed}.tar", *((f"./{name}", files[name]) for name in members))
        images = [name for name in visible(files) if not name.endswith(".cls")]
        try:
            source = open_source(tar, missing_ok=True)
        except VitrailError as error:
            assert "has no images" in error.sentence
            continue
        n_readable += 1
        read, refused = count_read(source)
        is_count_of_images = [each for each in source.left_out if "without an image" not in each.sentence]
        named = sum(each.files for each in is_count_of_images) + len(source.damaged)
        assert read + refused + named == len(images), (members, source.left_out, source.damaged)
        assert not source.damaged or "has no label" in source.damaged[0]
    assert n_readable > SOURCES / 2


def test_the_images_of_shard_folders_are_read_or_named(tmp_path: Path, own_cache: Path):
    n_readable = 0
    for seed, (folder, files) in enumerate(folders(tmp_path / "folders", SHARD_SOURCES)):
        draw = random.Random(f"shards {seed}")
        try:
            source = open_source(folder, missing_ok=True)
            out = tmp_path / f"shards-{seed}"
            written = write_shards(source, out, images_per_shard=draw.randint(1, 4), skip_unreadable=True)
        except VitrailError:  # a layout that is refused, or no image that can be read
            continue
        n_readable += 1
        named = sum(each.files for each in source.left_out) + len(source.damaged)
        assert written.images + len(written.unreadable) + named == len(visible(files))
        tars = sorted(out.glob("*.tar"))
        n_images = written.images
        if len(tars) > 1 and draw.random() < 0.5:  # the index still says how many images a lost shard had
            draw.choice(tars).unlink()
        if draw.random() < 0.5:
            (out / "beside.png").write_bytes(CONTENTS[".png"])
            n_images += 1
        n_foreign = draw.randint(0, 2)
        for i in range(n_foreign):
            write_tar(out / f"foreign-{i}.tar", ("red/0.png", CONTENTS[".png"]))
        if draw.random() < 0.2:  # then every shard is read, and a lost one is not known
            (out / INDEX_FILE).unlink()
            n_images += n_foreign - (written.images - sum(count_images(tar) for tar in tars if tar.exists()))
        try:
            source = open_source(out, missing_ok=True)
        except VitrailError as error:
            assert "and shards without a split" in error.sentence
            continue
        sentences = " ".join(each.sentence for each in source.left_out)
        named = sum(each.files for each in source.left_out if "not in its index" not in each.sentence)
        read, refused = count_read(source)
        assert read + refused + named == n_images, (sentences, source.missing)
        assert (out / INDEX_FILE).exists() == (f"{n_foreign} tar file" in sentences) or not n_foreign
    assert n_readable > SHARD_SOURCES / 4


def count_images(tar: Path) -> int:
    with tarfile.open(tar) as file:
        return sum(is_image_name(name) for name in file.getnames())


def test_the_rows_of_parquet_tables_are_read_or_named(tmp_path: Path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    n_readable = 0
    (tmp_path / "img").mkdir()
    for extension, content in CONTENTS.items():
        (tmp_path / "img" / f"a{extension}").write_bytes(content)
    for seed in range(PARQUET_SOURCES):
        draw = random.Random(seed)
        n_rows = draw.randint(1, 8)
        names = [f"img/{draw.choice([f'a{each}' for each in CONTENTS] + ['none.png'])}" for _ in range(n_rows)]
        labels = [draw.choice(["cat", "dog", "cat, tabby", "ants|insect"]) for _ in range(n_rows)]
        columns = {"path": names, "label": labels, "weight": [3] * n_rows}
        if is_empty := draw.random() < 0.2:
            columns[draw.choice(["path", "label"])][draw.randrange(n_rows)] = draw.choice([None, " "])
        file = tmp_path / f"{seed}.parquet"
        parquet.write_table(pyarrow.table(columns), file)
        try:
            source = open_source(file, missing_ok=True)
        except VitrailError as error:
            assert is_empty and f"{file}, row " in error.sentence
            continue
        n_readable += 1
        read, refused = count_read(source)
        assert not is_empty and read + refused == n_rows
        assert ["weight" in each.sentence for each in source.left_out] == [True]
        assert len(list(list_source(str(file), tmp_path, Omissions()))) == n_rows
    assert n_readable > PARQUET_SOURCES / 2


def draw_hub_rows(draw: random.Random, folder: Path) -> tuple[dict[str, list], int]:
    """Draws the columns of a table of images in the way of Hugging Face, and the number of rows without a label."""
    n_rows = draw.randint(1, 6)
    images: list[dict | None] = []
    for i in range(n_rows):
        content = draw.choice(list(CONTENTS.values()))
        file = folder / f"{i}.png"
        images.append(
            draw.choice([{"bytes": content, "path": None}, {"bytes": content, "path": f"{i}.png"}])
            if draw.random() < 0.7
            else draw.choice([{"bytes": None, "path": str(file)}, None])
        )
        file.write_bytes(content)
    labels = [draw.choice(["cat", "dog", None]) if draw.random() < 0.5 else "owl" for _ in range(n_rows)]
    return {"image": images, "label": labels, "note": ["x"] * n_rows}, labels.count(None)


def test_the_rows_of_hub_tables_are_read_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.Value("string"), "note": datasets.Value("string")}
    )
    n_readable = 0
    for seed in range(HUB_SOURCES):
        draw = random.Random(seed)
        tables, n_rows, n_unlabeled = {}, 0, 0
        for split in draw.choice([["train"], ["train", "test"], ["train", "validation", "extra"]]):
            rows, unlabeled = draw_hub_rows(draw, tmp_path)
            tables[split] = datasets.Dataset.from_dict(rows, features)
            n_rows, n_unlabeled = n_rows + len(rows["label"]), n_unlabeled + unlabeled * (split != "extra")
        if set(tables) == {"train"}:  # one parquet file, also without hf:
            address = f"{draw.choice(['', 'hf:'])}{tmp_path}/{seed}.parquet"
            parquet.write_table(tables["train"].data.table, address.removeprefix("hf:"))
        else:
            address = f"hf:{tmp_path}/{seed}"
            datasets.DatasetDict(tables).save_to_disk(address.removeprefix("hf:"))
        for file in tmp_path.glob("*.png"):  # some of the images that rows name are lost
            if draw.random() < 0.5:
                file.unlink()
        try:
            source = open_source(address, missing_ok=True)
        except VitrailError as error:
            assert "has no labeled images" in error.sentence
            continue
        n_readable += 1
        read, refused = count_read(source)
        named = sum(each.files for each in source.left_out)
        assert read + refused + named == n_rows, (seed, source.left_out)
        assert named == n_unlabeled + len(tables.get("extra", ()))
        assert any("the column note" in each.sentence for each in source.left_out)
    assert n_readable > HUB_SOURCES / 2


def test_the_files_of_folders_that_datasets_reads_are_read_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    n_readable = 0
    for folder, files in folders(tmp_path, HUB_FOLDERS):
        images = [path for path in visible(files) if PurePath(path).suffix.lower() in EXTENSIONS | UNREAD_EXTENSIONS]
        try:
            source = open_source(f"hf:{folder}", missing_ok=True)
        except VitrailError as error:
            assert str(folder) in error.sentence and "\n" not in error.sentence
            continue
        n_readable += 1
        count_read(source)
        # datasets lists a file below both words, such as train/cat/test/0.png, in both splits
        listed = {name for listing in source.splits.values() for name in listing.names}
        assert len(listed) + sum(each.files for each in source.left_out) == len(images), (images, source.left_out)
    assert n_readable > HUB_FOLDERS / 8


# single cases


def make(root: Path, *paths: str) -> Path:
    write_files(root, {path: png_bytes(i) for i, path in enumerate(paths)})
    return root


def labels(address: Path) -> dict[str, list[str]]:
    return {split: list(listing.labels) for split, listing in open_source(address).splits.items()}


def test_a_class_may_be_called_train_and_the_source_says_so(tmp_path: Path):
    source = open_source(make(tmp_path, "bus/0.png", "plane/0.png", "train/0.png"))
    assert list(source.splits["all"].labels) == ["bus", "plane", "train"]
    assert "train is read as a class" in source.notes[0]


def test_a_class_may_begin_with_two_underscores(tmp_path: Path):
    assert labels(make(tmp_path, "__background__/0.png", "cat/__0.png")) == {"all": ["__background__", "cat"]}


def test_folders_named_after_splits_in_each_class_are_splits(tmp_path: Path):
    paths = [f"{name}/{split}/{i}.png" for name in ("cat", "dog") for split in ("train", "test") for i in range(2)]
    source = open_source(make(tmp_path, *paths))
    assert {split: len(listing) for split, listing in source.splits.items()} == {"train": 4, "test": 4}
    assert all("/test/" in name for name in source.splits["test"].names) and "read as splits" in source.notes[0]


@pytest.mark.parametrize(
    "paths",
    [
        ("cat/train/0.png", "cat/1.png", "dog/train/0.png"),
        ("cat/test/0.png", "dog/0.png"),
        ("train/cat/test/0.png", "train/dog/0.png"),
        ("train/cat/0.png", "bus/cat/0.png"),
        ("cat/0.png", "dog/0.png", "test/cat/0.png"),
        ("train/0.png", "test/0.png", "bus/0.png"),
        ("train/0.png", "test/0.png"),
    ],
)
def test_a_layout_whose_splits_are_not_clear_is_refused(tmp_path: Path, paths: tuple[str, ...]):
    with pytest.raises(VitrailError) as caught:
        open_source(make(tmp_path / "data", *paths))
    assert str(tmp_path / "data") in caught.value.sentence and caught.value.hint


def test_links_to_nothing_and_folders_that_cannot_be_listed_are_named(tmp_path: Path, monkeypatch):
    make(tmp_path / "data", "cat/0.png", "dog/0.png", "owl/0.png")
    (tmp_path / "data" / "emu").symlink_to(tmp_path / "nowhere")
    (tmp_path / "data" / "cat" / "1.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(tmp_path / "data")
    assert ["1 link to nothing" in each.sentence and "emu" in each.sentence for each in source.left_out] == [True]
    assert count_read(source) == (3, 1)
    scandir = os.scandir

    def refuse(path: object) -> object:
        if str(path).endswith("owl"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(VitrailError, match="owl cannot be listed: Permission denied"):
        open_source(tmp_path / "data")
    assert labels_without(tmp_path / "data") == ["cat", "cat", "dog"]
    with pytest.raises(VitrailError, match="owl cannot be listed"):
        list_input_images([str(tmp_path / "data")])


def labels_without(address: Path) -> list[str]:
    return list(open_source(address, missing_ok=True).splits["all"].labels)


def test_members_with_dots_several_images_and_hidden_ones(tmp_path: Path, own_cache: Path):
    members = [
        *((f"red/IMG_2024.06.{i:02}.png", png_bytes(i)) for i in range(12)),
        ("0001.left.png", png_bytes(1)), ("0001.right.png", png_bytes(2)), ("0001.cls", b"pair"),
        ("0002.mask.png", png_bytes(3)), ("0002.png", png_bytes(4)), ("0002.json", b'{"label": "cat"}'),
        ("v1.0.png", png_bytes(5)), ("v1.0.cls", b"dog"), ("v1.1.png", png_bytes(6)), ("v1.1.cls", b"owl"),
        ("./._red0.png", b"AppleDouble"), ("__MACOSX/red/0.png", b"x"),
    ]  # fmt: skip
    source = open_source(write_tar(tmp_path / "dots.tar", *members))
    listing = source.splits["all"]
    by_name = {name.removeprefix("dots/"): label for name, label in zip(listing.names, listing.labels, strict=True)}
    assert [by_name.pop(f"red/IMG_2024.06.{i:02}.png") for i in range(12)] == ["red"] * 12
    assert by_name == {"0001.left.png": "pair", "0002.png": "cat", "v1.0.png": "dog", "v1.1.png": "owl"}
    assert [each.files for each in source.left_out] == [2] and "0001.right.png" in source.left_out[0].sentence


def test_an_index_of_the_reader_before_is_not_used(tmp_path: Path, own_cache: Path):
    tar = write_tar(tmp_path / "a.tar", *((f"red/x.{i}.png", png_bytes(i)) for i in range(4)))
    open_source(tar)
    (cached,) = (own_cache / "shards").glob("*.safetensors")
    assert cached.stem.endswith(f"-{READER_VERSION}")  # the files of the versions before have another number, or none


def test_a_swallowed_row_is_named_by_its_line(tmp_path: Path):
    make(tmp_path, "a.png", "b.png", "c.png")
    file = tmp_path / "list.csv"
    for text, reason in (
        ('path,label\na.png,"cat\nb.png,cat\nc.png,dog"\n', "line 2: the value of 'label' goes over 3 lines"),
        ('path,label\na.png,cat\nb.png,"dog\n', "line 3: the row cannot be read"),
        ('path,label,note\na.png,cat,"x\nb.png,cat,y\nc.png,dog,z"\n', "line 2: the value of 'note' goes over 3"),
        ("path,label\na.png,cat, tabby\n", "line 2: 3 values for 2 columns"),
        ("path,label,label\na.png,cat,dog\n", "two columns named 'label'"),
    ):
        file.write_text(text)
        with pytest.raises(VitrailError, match=reason):
            open_source(file)
        if "label,label" not in text:
            with pytest.raises(VitrailError, match=reason):
                list(list_source(str(file), tmp_path, Omissions()))
    file.write_text('path,label,note\na.png,cat,"a text\nof two lines"\nb.png,ants|insect,\n')
    report = check_data(file)
    texts = [str(finding) for finding in report.findings]
    assert any("1 labels look like several classes" in text and "ants|insect" in text for text in texts)
    assert any("the column note; not used" in text for text in texts)


def test_a_parquet_file_with_the_bytes_of_images(tmp_path: Path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    rows = [{"bytes": png_bytes(i), "path": f"{i}.png"} for i in range(4)]
    parquet.write_table(pyarrow.table({"image": rows, "label": ["cat", "dog"] * 2}), tmp_path / "hub.parquet")
    source = open_source(tmp_path / "hub.parquet")
    assert list(source.splits["all"].labels) == ["cat", "dog"] * 2 and count_read(source) == (4, 0)
    with pytest.raises(VitrailError, match="bytes of images") as caught:
        list(list_source(str(tmp_path / "hub.parquet"), tmp_path, Omissions()))
    assert "PNG" not in str(caught.value) and "vitrail shard hf:" in str(caught.value)


def test_an_image_of_a_failing_disk_is_not_left_out_of_the_run(tmp_path: Path, monkeypatch):
    make(tmp_path, "cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    (tmp_path / "dog" / "2.png").write_bytes(b"no image")

    def read(images: object, i: int) -> object:
        path = str(images.paths[i])  # type: ignore[attr-defined]
        raise ImageUnreachable(path, "Input/output error") if "1.png" in path else ImageError(path, "damaged")

    monkeypatch.setattr("vitrail.data.facts.read_file_facts", read)
    report = check_data(tmp_path, fresh=True)
    assert {finding.code: finding.is_skippable for finding in report.errors} == {
        "unreadable-image": True, "unreachable-image": False,
    }  # fmt: skip
    assert report.skippable == {"all": ["cat/0.png", "dog/0.png", "dog/2.png"]}


def test_an_error_in_a_transform_is_not_blamed_on_the_image(tmp_path: Path):
    class Broken(Augmentation):
        is_random = False
        identity_shape = None

        def __init__(self) -> None:
            pass

        def augment_image(self, image: torch.Tensor) -> torch.Tensor:
            raise ValueError("a bug in a transform")

    images = open_data(make(tmp_path, "cat/0.png", "dog/0.png"), test=0, validation=0).train
    skipped: list[ImageError] = []
    loader = TrainLoader(images, Broken(), 2, seed=0, workers=0, on_error=skipped.append)
    with pytest.raises(ValueError, match="a bug in a transform"):
        list(loader.epoch(0))
    assert not skipped


def test_the_division_reads_only_files_of_one_class_and_size(tmp_path: Path, monkeypatch):
    make(tmp_path, "cat/0.png", "dog/0.png", "cat/1.png")
    for path in ("cat/1.png", "dog/1.png", "cat/2.png"):
        (tmp_path / path).write_bytes((tmp_path / "cat/0.png").read_bytes())
    listing = open_source(tmp_path).splits["all"]
    read: list[int] = []
    sha256 = type(listing.pixels).sha256
    monkeypatch.setattr(type(listing.pixels), "sha256", lambda self, i: read.extend(i.tolist()) or sha256(self, i))
    first = first_duplicates(listing)
    groups = {listing.names[i]: listing.names[k] for i, k in enumerate(first.tolist())}
    assert groups["cat/1.png"] == groups["cat/2.png"] == "cat/0.png"
    assert groups["dog/1.png"].startswith("dog/") and {listing.labels[i] for i in read} <= {"cat", "dog"}
    pixels = torch.zeros(4, 1, 1, 1, dtype=torch.uint8)
    listing = Listing(pixels, list("abcd"), categorize("xyxy"))
    assert first_duplicates(listing).tolist() == [0, 1, 0, 1]


def test_writing_files_does_not_touch_the_umask_of_the_process(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "file.txt", "x")
    write_atomically(tmp_path / "x.safetensors", lambda path: save_file({"x": torch.zeros(2)}, path))
    with write_folder_atomically(tmp_path / "folder"):
        pass
    (tmp_path / "other").mkdir()
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["file.txt"] == modes["x.safetensors"] == modes["plain"]
    assert modes["folder"] == modes["other"]


def test_parts_of_copies_that_killed_processes_left_are_removed(tmp_path: Path):
    key, live = "0" * 32, "1" * 32
    for name in (f"{key}.123.part", f"{live}.123.part"):
        (tmp_path / name).write_bytes(b"half")
    with exclusive_lock(tmp_path / f"{live}.lock"):
        remove_abandoned_parts(tmp_path)
        assert [path.name for path in tmp_path.glob("*.part")] == [f"{live}.123.part"]
    remove_abandoned_parts(tmp_path)
    assert not list(tmp_path.iterdir())
