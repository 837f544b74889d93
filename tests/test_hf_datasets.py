"""Hugging Face data sets as sources."""

import hashlib
from pathlib import Path

import pytest

import vitrail
from shard_files import SMALL, count_read_and_refused, digests_and_labels, find_unreadable, png_bytes
from vitrail.cli.main import main
from vitrail.data.check import check_data
from vitrail.data.open import open_source
from vitrail.errors import UsageError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return datasets


def test_a_folder_a_parquet_set_and_a_saved_data_set_are_read(photos: Path, tmp_path: Path, hub):
    tables = hub.load_dataset("imagefolder", data_dir=str(photos))
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    for split in tables:
        tables[split].to_parquet(str(data / f"{split}-00000-of-00001.parquet"))
    tables.save_to_disk(str(tmp_path / "saved"))
    for address in (f"hf:{photos}", f"hf:{tmp_path}/set", f"hf:{tmp_path}/saved"):
        source = open_source(address)
        for split, listing in source.splits.items():
            digests = [hashlib.sha256(listing.pixels.read_bytes(i)).hexdigest() for i in range(len(listing))]
            assert sorted(zip(digests, listing.labels, strict=True)) == digests_and_labels(photos, split)
            assert len(set(listing.names)) == len(listing)
        assert check_data(address).errors == []
        assert open_source(address, channels=1).splits["train"].pixels[0].shape == (1, 16, 16)
    assert open_source(f"hf:{photos}").fingerprint == open_source(photos).fingerprint
    single = open_source(f"hf:{data}/train-00000-of-00001.parquet")
    assert single.splits.keys() == {"all"} and len(single.splits["all"]) == 24
    options = {"epochs": 1, "report": False, "image_cache_gib": 0.0, **SMALL}
    artifacts = {
        vitrail.train(address, out=tmp_path / f"run{i}", workers=i % 2, **options)
        .folder.joinpath("classifier.safetensors")
        .read_bytes()
        for i, address in enumerate((photos, f"hf:{photos}"))
    }
    assert len(artifacts) == 1
    assert main(["shard", f"hf:{tmp_path}/set", "--out", str(tmp_path / "out"), "--quiet"]) == 0


@pytest.mark.parametrize("change", ["shuffle", "select", "filter", "train_test_split"])
def test_a_data_set_with_other_rows_or_another_order_keeps_labels_and_images_together(change: str, hub):
    n = 12
    columns = {
        "image": [{"bytes": png_bytes(i), "path": None} for i in range(n)],
        "label": [None if i == 5 else f"class {i % 3}" for i in range(n)],
        "group": [f"group {i // 2}" for i in range(n)],
    }
    features = hub.Features({"image": hub.Image(), "label": hub.Value("string"), "group": hub.Value("string")})
    table = hub.Dataset.from_dict(columns, features=features)
    changed = {
        "shuffle": lambda: table.shuffle(seed=1),
        "select": lambda: table.select([7, 5, 2, 2]),
        "filter": lambda: table.filter(lambda row: row["label"] == "class 1"),
        "train_test_split": lambda: table.train_test_split(test_size=4, seed=0)["test"],
    }[change]()
    assert changed._indices is not None
    (listing,) = open_source(changed).splits.values()
    rows = [(each["label"], each["group"]) for each in changed if each["label"] is not None]
    assert list(zip(listing.labels, listing.groups, strict=True)) == rows
    images = changed.cast_column("image", hub.Image(decode=False))
    contents = [each["image"]["bytes"] for each in images if each["label"] is not None]
    assert [listing.pixels.read_bytes(i) for i in range(len(listing))] == contents
    assert listing.pixels.byte_sizes().tolist() == list(map(len, contents))


def test_columns_splits_and_labels_of_many_kinds(tmp_path: Path, hub, capsys):
    def rows(n: int, **columns) -> dict:
        return {"picture": [{"bytes": png_bytes(i), "path": None} for i in range(n)], **columns}

    features = {"picture": hub.Image()}
    folder = tmp_path / "set"
    folder.mkdir()

    def save(split: str, data: dict, kinds: dict) -> None:
        hub.Dataset.from_dict(data, features=hub.Features({**features, **kinds})).to_parquet(
            f"{folder}/{split}.parquet"
        )

    kinds = {"coarse": hub.ClassLabel(names=["x", "y"]), "fine_label": hub.ClassLabel(names=["d", "c", "b", "a"])}
    save("train", rows(8, coarse=[0] * 8, fine_label=[3, 2, 1, 0] * 2), kinds)
    save("validation", rows(4, coarse=[0] * 4, fine_label=[0, -1, 1, None]), kinds)
    source = open_source(f"hf:{folder}")
    assert list(source.splits["train"].labels) == ["a", "b", "c", "d"] * 2
    assert list(source.splits["validation"].labels) == ["d", "c"]
    assert list(source.splits["train"].names[:2]) == ["train-0000000", "train-0000001"]
    assert list(source.splits["validation"].names) == ["validation-0000000", "validation-0000002"]
    assert any("2 images of validation without a label" in each.sentence for each in source.left_out)
    assert any("from column fine_label, not coarse" in note for note in source.notes)
    text_labels = tmp_path / "text.parquet"
    hub.Dataset.from_dict(
        rows(3, label=["cat", "dog", "cat"]), features=hub.Features({**features, "label": hub.Value("string")})
    ).to_parquet(str(text_labels))
    assert list(open_source(f"hf:{text_labels}").splits["all"].labels) == ["cat", "dog", "cat"]
    hub.Dataset.from_dict({"label": [1, 2]}).to_parquet(str(tmp_path / "bare.parquet"))
    with pytest.raises(UsageError, match="no column of images"):
        open_source(f"hf:{tmp_path}/bare.parquet")
    hub.Dataset.from_dict(rows(2), features=hub.Features(features)).to_parquet(str(tmp_path / "mute.parquet"))
    with pytest.raises(UsageError, match="no column of classes"):
        open_source(f"hf:{tmp_path}/mute.parquet")


def test_a_damaged_row_is_an_unreadable_image(tmp_path: Path, hub, capsys):
    pictures = [{"bytes": png_bytes(i), "path": f"{i}.png"} for i in range(24)]
    pictures[3]["bytes"] = pictures[3]["bytes"][:70]
    pictures[5] = None
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["a", "b"])})
    table = hub.Dataset.from_dict({"image": pictures, "label": [0, 1] * 12}, features=features)
    table.save_to_disk(str(tmp_path / "saved"))
    address = f"hf:{tmp_path}/saved"
    sentences = find_unreadable(address)
    assert len(sentences) == 2 and any("the row has no image" in sentence for sentence in sentences.values())
    assert count_read_and_refused(address) == (22, 2)


def test_an_unreachable_hub_is_an_error_of_one_sentence(hub, capsys, monkeypatch, tmp_path: Path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["train", "hf:unknown/unknown", "--out", str(tmp_path / "run")]) == 1
    message = capsys.readouterr().err
    assert (
        "hf:unknown/unknown is not in the cache and the hub cannot be reached" in message and "Traceback" not in message
    )
    assert main(["check", "hf:./nowhere"]) == 2
    (tmp_path / "notes.txt").write_text("x")
    assert main(["check", f"hf:{tmp_path}/notes.txt"]) == 2
