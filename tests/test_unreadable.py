"""Unreadable images, dead workers and losses that are not finite are reported and counted."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from conftest import picture
from vitrail.cli.main import main
from vitrail.data.augment import Augmentation
from vitrail.data.decode import ImageError
from vitrail.data.loader import WorkerDied
from vitrail.errors import VitrailError
from vitrail.evaluation.outcome import NoReadableImages
from vitrail.exporting.probes import load_probes
from vitrail.runs import epochs
from vitrail.training.checkpoint import find_newest_checkpoint
from vitrail.training.step_stats import TrainingDiverged

DIVERGING = "the loss diverges"
NOT_LEARNING = "has learned nothing by step"
SMALL = {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:70])


def test_training_skips_and_counts_unreadable_images(make_folder, capsys):
    folder = make_folder("damaged", {"train": 10, "test": 6})
    truncate(folder / "train" / "red" / "3.png")
    truncate(folder / "test" / "blue" / "1.png")
    (folder / "test" / "blue" / "2.png").write_text("no image")
    with pytest.raises(VitrailError, match=r"test/blue/1\.png.*2 more errors") as caught:
        vitrail.train(folder, out=folder.parent / "run", epochs=1, **SMALL)
    assert "--skip-unreadable" in str(caught.value.hint)
    assert not (folder.parent / "run").exists()
    run = vitrail.train(folder, out=folder.parent / "run", epochs=2, skip_unreadable=True, **SMALL)
    assert "3 unreadable images are skipped (--skip-unreadable)" in capsys.readouterr().err
    assert (run.result["test"]["images"], run.result["test"]["unreadable"]) == (10, 2)
    assert run.result["unreadable"] == {"train": 1, "test": 2}
    data = run.classifier.origin["data"]
    assert data["images"] == {"train": 17, "validation": 2, "test": 10}  # 2 of 19 readable images are for validation
    assert data["unreadable"] == {"train": 1, "test": 2}
    again = vitrail.train(folder, out=run.folder, resume=True)
    assert again.result["test"] == run.result["test"]


def test_evaluate_counts_unreadable_images(run: vitrail.Run, make_folder, capsys):
    folder = make_folder("some", 6, ("red", "green", "blue"))
    truncate(folder / "red" / "0.png")
    (folder / "green" / "5.png").write_bytes(b"")
    assert main(["evaluate", str(run.folder), str(folder), "--json"]) == 1
    message = json.loads(capsys.readouterr().out)["error"]
    assert "green/5.png" in message
    assert main(["evaluate", str(run.folder), str(folder), "--skip-unreadable", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["unreadable"]) == (16, 2)
    assert {Path(each["path"]).name for each in document["unreadable_files"]} == {"5.png", "0.png"}
    assert len(document["predictions"]) == 16
    for row in document["predictions"]:  # each image has its own prediction and label
        assert Path(row["path"]).parent.name == row["true"]
        assert run.classifier.predict(row["path"], top=1)[0].label == row["label"]
    assert sum(map(sum, document["confusion"]["matrix"])) == 16
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    assert main(["evaluate", str(run.folder), str(folder), "--skip-unreadable", "--json"]) == 1
    assert "none of 18 images" in json.loads(capsys.readouterr().out)["error"]


def test_a_table_with_missing_files_is_refused_or_they_are_counted(
    run: vitrail.Run, colors: Path, tmp_path: Path, capsys
):
    rows = [f"{colors}/test/{label}/{i}.png,{label}" for label in ("red", "blue") for i in range(4)]
    table = tmp_path / "list.csv"
    table.write_text("path,label\n" + "\n".join([*rows, "gone.png,red", "lost.png,blue"]) + "\n")
    assert main(["evaluate", str(run.folder), str(table), "--json"]) == 1
    message = json.loads(capsys.readouterr().out)["error"]
    assert "line 10: there is no file" in message and "1 more" in message
    assert main(["evaluate", str(run.folder), str(table), "--skip-unreadable", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["unreadable"]) == (8, 2)
    assert main(["check", str(table), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["unreadable"] == ["gone.png", "lost.png"]


@pytest.fixture
def damaged(make_folder) -> Path:
    """Three classes and three splits, with two unreadable training images and one unreadable test image."""
    folder = make_folder("damaged", {"train": 8, "val": 4, "test": 6}, ("red", "green", "blue"))
    for name in ("train/red/0.png", "train/blue/5.png", "test/green/2.png"):
        truncate(folder / name)
    return folder


def test_probes_count_unreadable_images(run: vitrail.Run, damaged: Path, monkeypatch, capsys):
    monkeypatch.setattr("vitrail.evaluation.features.CHUNK", 8)  # chunks without an unreadable image are cached
    command = ["probe", str(run.folder), str(damaged), "--batch-size", "4", "--json"]
    assert main(command) == 1
    assert "train/blue/5.png" in json.loads(capsys.readouterr().out)["error"]
    documents = []
    for _ in range(2):
        assert main([*command, "--skip-unreadable"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    for document in documents:
        assert (document["train_images"], document["unreadable"]) == (22, {"train": 2, "test": 1})
        assert document["knn"]["images"] == document["linear"]["images"] == 17
    probe = vitrail.probe(run.classifier, damaged, skip_unreadable=True)
    for name in ("train/red/0.png", "train/blue/5.png", "test/green/2.png"):
        (damaged / name).unlink()
    readable = vitrail.probe(run.classifier, damaged)
    assert probe.knn.outcome.paths == readable.knn.outcome.paths  # each image has its own features and label
    np.testing.assert_array_equal(probe.knn.outcome.labels, readable.knn.outcome.labels)
    np.testing.assert_allclose(probe.knn.outcome.logits, readable.knn.outcome.logits, atol=1e-3)
    for file in (damaged / "test").rglob("*.png"):
        truncate(file)
    with pytest.raises(NoReadableImages, match="none of 17 images"):
        vitrail.probe(run.classifier, damaged, skip_unreadable=True)


def test_fine_tuning_probes_without_unreadable_images(run: vitrail.Run, damaged: Path):
    options = {"model": run.folder, "recipe": "linear", "check": False, "workers": 0, "report": False}
    with pytest.raises(ImageError, match=r"(red/0|blue/5|green/2)\.png"):
        vitrail.train(damaged, out=damaged.parent / "run", **options)
    run = vitrail.train(damaged, out=damaged.parent / "run", skip_unreadable=True, **options)
    assert run.result["probe"]["unreadable"] == {"train": 2, "test": 1}
    assert (run.result["test"]["images"], run.result["test"]["unreadable"]) == (17, 1)
    assert vitrail.evaluate(run.classifier, damaged, skip_unreadable=True).images == 17


def test_explanations_are_scored_without_unreadable_images(run: vitrail.Run, damaged: Path, capsys):
    command = [
        "faithfulness",
        str(run.folder),
        str(damaged),
        "--methods",
        "attention",
        "--max-images",
        "18",
        "--steps",
        "2",
    ]
    assert main([*command, "--json"]) == 1
    assert "green/2.png" in json.loads(capsys.readouterr().out)["error"]
    assert main([*command, "--skip-unreadable", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["unreadable"]) == (17, 1)


def test_exports_are_compared_without_unreadable_images(run: vitrail.Run, damaged: Path):
    check = load_probes(run.classifier, damaged, skip_unreadable=True)
    assert check.description == "the 18 test images of damaged, without 1 unreadable"
    assert sum(len(labels) for _, labels in check.batches(run.classifier)) == 17
    for file in (damaged / "test").rglob("*.png"):
        truncate(file)
    with pytest.raises(ImageError, match=r"test/blue/0\.png"):
        load_probes(run.classifier, damaged, skip_unreadable=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_deleted_during_the_run_stops_it_or_is_counted(make_folder, monkeypatch, workers, capsys):
    folder = make_folder("fading", {"train": 12, "val": 4})
    victim = folder / "train" / "red" / "5.png"
    content = victim.read_bytes()
    options = {"epochs": 3, "batch_size": 8, "image_cache_gib": 0.0, "workers": workers, **SMALL}
    uninterrupted = vitrail.train(folder, out=folder.parent / "uninterrupted", **options)
    original = epochs.validate

    def delete_and_validate(training):
        victim.unlink(missing_ok=True)
        return original(training)

    monkeypatch.setattr(epochs, "validate", delete_and_validate)
    with pytest.raises(ImageError, match=r"red/5\.png: there is no such file") as caught:
        vitrail.train(folder, out=folder.parent / "run", **options)
    assert "vitrail train" in str(caught.value.hint) and "--resume" in str(caught.value.hint)
    saved = find_newest_checkpoint(folder.parent / "run" / "checkpoint")
    assert saved is not None and 3 <= int(saved.name[5:13]) < 6
    victim.write_bytes(content)  # restored: the resumed run has the same bits
    monkeypatch.setattr(epochs, "validate", original)
    again = vitrail.train(folder, out=folder.parent / "run", resume=True)
    assert (
        again.folder.joinpath("classifier.safetensors").read_bytes()
        == uninterrupted.folder.joinpath("classifier.safetensors").read_bytes()
    )
    monkeypatch.setattr(epochs, "validate", delete_and_validate)
    capsys.readouterr()
    run = vitrail.train(folder, out=folder.parent / "skipped", skip_unreadable=True, **options)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("unreadable", 0) for row in rows] == [0, 1, 1]
    assert "skipped in epoch 2" in capsys.readouterr().err


@pytest.mark.parametrize("memory", [1.0, 0.0], ids=["in memory", "from files"])
def test_without_a_check_unreadable_images_are_skipped_too(make_folder, memory: float):
    folder = make_folder("damaged", {"train": 10, "test": 4})
    for name in ("train/blue/0.png", "train/red/9.png"):  # the first and the last
        truncate(folder / name)
    (folder / "test/blue/1.png").write_text("no image")
    options = {"epochs": 1, "check": False, "image_cache_gib": memory, "workers": 0, "report": False, **SMALL}
    with pytest.raises(ImageError, match=r"(blue/[01]|red/9)\.png"):
        vitrail.train(folder, out=folder.parent / "run", **options)
    run = vitrail.train(folder, out=folder.parent / "run", skip_unreadable=True, **options)
    assert (run.result["test"]["images"], run.result["test"]["unreadable"]) == (7, 1)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["unreadable"] == 2
    for path in folder.rglob("*.png"):
        truncate(path)
    with pytest.raises(VitrailError, match="none of .* training images can be read"):
        vitrail.train(folder, out=folder.parent / "none", skip_unreadable=True, **options)
    assert not (folder.parent / "none").exists()


def test_a_disk_unmounted_during_validation_leaves_a_run_that_can_resume(make_folder, monkeypatch):
    folder = make_folder("fading", {"train": 8, "val": 2})
    away = folder.parent / "val"
    original = epochs.validate

    def unmount_and_validate(training):
        (folder / "val").rename(away)
        return original(training)

    monkeypatch.setattr(epochs, "validate", unmount_and_validate)
    options = {"epochs": 1, "batch_size": 8, "image_cache_gib": 0.0, "workers": 0, "skip_unreadable": True, **SMALL}
    with pytest.raises(NoReadableImages, match="none of 4 images") as caught:
        vitrail.train(folder, out=folder.parent / "run", **options)
    assert "saved at step 2, continue with: vitrail train" in str(caught.value.hint)
    away.rename(folder / "val")
    monkeypatch.setattr(epochs, "validate", original)
    again = vitrail.train(folder, out=folder.parent / "run", resume=True, report=False)
    assert again.result["validation"]["images"] == 4


@pytest.mark.usefixtures("pictures")
def test_a_deleted_test_image_is_left_out_of_scores_and_pictures(make_folder):
    folder = make_folder("fading", {"train": 8, "val": 4, "test": 4})
    victim = folder / "test" / "red" / "0.png"
    run = vitrail.train(
        folder,
        out=folder.parent / "run",
        epochs=1,
        batch_size=8,
        image_cache_gib=0.0,
        skip_unreadable=True,
        callbacks=[SimpleNamespace(on_epoch_end=lambda state: victim.unlink(missing_ok=True))],
        **SMALL,
    )
    assert (run.result["test"]["images"], run.result["test"]["unreadable"]) == (7, 1)
    assert {"attention.png", "confusion.png", "report.html"} <= {path.name for path in run.folder.iterdir()}


def test_a_killed_worker_is_reported_and_the_run_can_resume(make_folder, monkeypatch, capsys):
    folder = make_folder("busy", 20)
    options = {"epochs": 2, "batch_size": 8, "image_cache_gib": 0.0, "workers": 1, **SMALL}
    uninterrupted = vitrail.train(folder, out=folder.parent / "uninterrupted", **options)
    original = Image.open
    victim = str(sorted((folder / "red").iterdir())[3])
    main_process = os.getpid()

    def die_in_worker(file, *rest, **more):
        if str(file) == victim and os.getpid() != main_process:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(file, *rest, **more)

    monkeypatch.setattr(Image, "open", die_in_worker)
    with pytest.raises(WorkerDied, match="data-loading worker died: killed by SIGKILL") as caught:
        vitrail.train(folder, out=folder.parent / "run", **options)
    assert "--workers" in str(caught.value.hint) and "saved at step" in str(caught.value.hint)
    again = vitrail.train(folder, out=folder.parent / "run", resume=True, workers=0)
    assert (
        again.folder.joinpath("classifier.safetensors").read_bytes()
        == uninterrupted.folder.joinpath("classifier.safetensors").read_bytes()
    )


def test_without_workers_only_the_main_process_reads_images(make_folder, monkeypatch):
    folder = make_folder("busy", {"train": 10, "test": 4})
    original, main_process = Image.open, os.getpid()

    def die_in_worker(*rest, **more):
        if os.getpid() != main_process:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*rest, **more)

    monkeypatch.setattr(Image, "open", die_in_worker)
    options = {"epochs": 1, "batch_size": 8, "image_cache_gib": 0.0, "workers": 0, "report": False, **SMALL}
    assert vitrail.train(folder, out=folder.parent / "run", **options).result["test"]["images"] == 8


def test_a_class_without_a_readable_training_image_is_an_error_before_the_run(make_folder):
    folder = make_folder("damaged", {"train": 6, "test": 2})
    for path in (folder / "train" / "blue").iterdir():
        truncate(path)
    with pytest.raises(VitrailError, match="only the class 'red' has a readable training image"):
        vitrail.train(folder, out=folder.parent / "run", epochs=1, skip_unreadable=True, **SMALL)
    for path in (folder / "train" / "red").iterdir():
        truncate(path)
    with pytest.raises(VitrailError, match="there is no readable training image"):
        vitrail.train(folder, out=folder.parent / "run", epochs=1, skip_unreadable=True, **SMALL)
    assert not (folder.parent / "run").exists()


def test_a_loss_that_is_not_finite_is_reported_with_step_rate_gradient_and_files(make_folder, monkeypatch):
    folder = make_folder("nan", 12)
    original = epochs.train_steps

    def train_with_nan(learner, batches, *rest, **more):
        def break_step_5():
            for batch in batches:
                if learner.step == 4:
                    with torch.no_grad():
                        learner.vit.head.weight.fill_(float("nan"))
                yield batch

        return original(learner, break_step_5(), *rest, **more)

    monkeypatch.setattr(epochs, "train_steps", train_with_nan)
    with pytest.raises(
        TrainingDiverged, match=r"at step 5: loss nan, gradient norm nan, learning rate [\d.e-]+; the batch was"
    ) as caught:
        vitrail.train(folder, out=folder.parent / "run", epochs=9, batch_size=8, **SMALL)
    document = json.loads((folder.parent / "run" / "diverged.json").read_text())
    assert document["step"] == 5
    assert all(Path(file).is_file() for file in document["files"])
    assert document["files"][0] in caught.value.sentence
    saved = find_newest_checkpoint(folder.parent / "run" / "checkpoint")
    assert saved is not None and int(saved.name[5:13]) < 5  # no checkpoint has weights that are not finite
    from vitrail.data.loader import TrainLoader
    from vitrail.data.open import open_data

    train = open_data(folder).train
    per_epoch = -(-len(train) // 8)
    loader = TrainLoader(train, Augmentation(lambda image: image), batch_size=8, seed=0)
    pixels, _ = list(loader.epoch(4 // per_epoch))[4 % per_epoch]
    expected = torch.stack([train[train.paths.index(file)] for file in document["files"]])
    assert torch.equal(pixels, expected)  # the files are the images of that batch


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"lr": 1e-12, "optimizer": "sgd", "epochs": 80}, NOT_LEARNING),
        (
            {
                "lr": 3.0,
                "optimizer": "sgd",
                "epochs": 20,
                "max_grad_norm": None,
                "warmup_fraction": 0.5,
                "ema_decay": None,
            },
            DIVERGING,
        ),
        ({"epochs": 20}, None),
    ],
    ids=["not learning", "diverging", "normal"],
)
def test_a_diverging_or_stagnant_run_is_reported_early_and_once(make_folder, capsys, options, warning):
    folder = make_folder("slow", 16)
    if warning == NOT_LEARNING:  # the images have no class information
        for i, path in enumerate(sorted(folder.rglob("*.png"))):
            picture((128, 128, 128), i).save(path)
    try:
        vitrail.train(folder, out=folder.parent / "run", batch_size=8, precision="fp32", **{**SMALL, **options})
    except TrainingDiverged:
        assert warning == DIVERGING
    output = capsys.readouterr().err
    assert output.count(DIVERGING) + output.count(NOT_LEARNING) == (1 if warning else 0)
    assert warning is None or warning in output
