"""Images that cannot be read, workers that die, losses that are no numbers: said, counted, never hidden."""

import json
import os
import signal
from pathlib import Path

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
from vitrail.exporting.verify import load_probes
from vitrail.runs import epochs
from vitrail.training.checkpoint import find_newest_checkpoint
from vitrail.training.loop import TrainingDiverged

SMALL = {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:70])


def test_training_without_unreadable_images_counts_them_exactly(make_folder, capsys):
    folder = make_folder("torn", {"train": 10, "test": 6})
    cut(folder / "train" / "red" / "3.png")
    cut(folder / "test" / "blue" / "1.png")
    (folder / "test" / "blue" / "2.png").write_text("no image")
    with pytest.raises(VitrailError, match=r"test/blue/1\.png.*2 more errors") as caught:
        vitrail.train(folder, out=folder.parent / "run", epochs=1, **SMALL)
    assert "--skip-unreadable" in str(caught.value.hint)
    assert not (folder.parent / "run").exists()
    run = vitrail.train(folder, out=folder.parent / "run", epochs=2, skip_unreadable=True, **SMALL)
    assert "3 images cannot be read and are left out" in capsys.readouterr().err
    assert (run.result["test"]["images"], run.result["test"]["unreadable"]) == (10, 2)
    assert run.result["unreadable"] == {"train": 1, "test": 2}
    data = run.classifier.origin["data"]
    assert data["images"] == {"train": 17, "validation": 2, "test": 10}  # of 19 readable ones 2 choose
    assert data["unreadable"] == {"train": 1, "test": 2}
    again = vitrail.train(folder, out=run.folder, resume=True)
    assert again.result["test"] == run.result["test"]


def test_evaluate_counts_what_it_cannot_read(run: vitrail.Run, make_folder, capsys):
    folder = make_folder("some", 6, ("red", "green", "blue"))
    cut(folder / "red" / "0.png")
    (folder / "green" / "5.png").write_bytes(b"")
    assert main(["evaluate", str(run.folder), str(folder), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)["error"]
    assert "green/5.png" in said
    assert main(["evaluate", str(run.folder), str(folder), "--skip-unreadable", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["unreadable"]) == (16, 2)
    assert {Path(each["path"]).name for each in document["unreadable_files"]} == {"5.png", "0.png"}
    assert len(document["predictions"]) == 16
    for row in document["predictions"]:  # nobody got a neighbour's answer or label
        assert Path(row["path"]).parent.name == row["true"]
        assert run.classifier.predict(row["path"], top=1)[0].label == row["label"]
    assert sum(map(sum, document["confusion"]["matrix"])) == 16
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    assert main(["evaluate", str(run.folder), str(folder), "--skip-unreadable", "--json"]) == 1
    assert "not one of 18 images" in json.loads(capsys.readouterr().out)["error"]


def test_a_table_with_missing_files_is_refused_or_counted(run: vitrail.Run, colours: Path, tmp_path: Path, capsys):
    rows = [f"{colours}/test/{label}/{i}.png,{label}" for label in ("red", "blue") for i in range(4)]
    table = tmp_path / "list.csv"
    table.write_text("path,label\n" + "\n".join([*rows, "gone.png,red", "lost.png,blue"]) + "\n")
    assert main(["evaluate", str(run.folder), str(table), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)["error"]
    assert "line 10: there is no file" in said and "1 more" in said
    assert main(["evaluate", str(run.folder), str(table), "--skip-unreadable", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["unreadable"]) == (8, 2)
    assert main(["check", str(table), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["unreadable"] == ["gone.png", "lost.png"]


@pytest.fixture
def torn(make_folder) -> Path:
    """Three classes, every split there; two training images and a test image of it cannot be read."""
    folder = make_folder("torn", {"train": 8, "val": 4, "test": 6}, ("red", "green", "blue"))
    for name in ("train/red/0.png", "train/blue/5.png", "test/green/2.png"):
        cut(folder / name)
    return folder


def test_probes_count_what_they_cannot_read(run: vitrail.Run, torn: Path, monkeypatch, capsys):
    monkeypatch.setattr("vitrail.evaluation.features.CHUNK", 8)  # some chunks are whole, and kept
    words = ["probe", str(run.folder), str(torn), "--batch", "4", "--json"]
    assert main(words) == 1
    assert "train/blue/5.png" in json.loads(capsys.readouterr().out)["error"]
    found = []
    for _ in range(2):
        assert main([*words, "--skip-unreadable"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    for document in found:
        assert (document["train_images"], document["unreadable"]) == (22, {"train": 2, "test": 1})
        assert document["knn"]["images"] == document["linear"]["images"] == 17
    probe = vitrail.probe(run.classifier, torn, skip_unreadable=True)
    for name in ("train/red/0.png", "train/blue/5.png", "test/green/2.png"):
        (torn / name).unlink()
    whole = vitrail.probe(run.classifier, torn)
    assert probe.knn.outcome.paths == whole.knn.outcome.paths  # nobody got a neighbour's features or label
    np.testing.assert_array_equal(probe.knn.outcome.labels, whole.knn.outcome.labels)
    np.testing.assert_allclose(probe.knn.outcome.logits, whole.knn.outcome.logits, atol=1e-3)
    for file in (torn / "test").rglob("*.png"):
        cut(file)
    with pytest.raises(NoReadableImages, match="not one of 17 images"):
        vitrail.probe(run.classifier, torn, skip_unreadable=True)


def test_training_from_weights_probes_without_what_it_cannot_read(run: vitrail.Run, torn: Path):
    options = {"model": run.folder, "recipe": "linear", "check": False, "workers": 0, "report": False}
    with pytest.raises(ImageError, match=r"(red/0|blue/5|green/2)\.png"):
        vitrail.train(torn, out=torn.parent / "run", **options)
    found = vitrail.train(torn, out=torn.parent / "run", skip_unreadable=True, **options)
    assert found.result["probe"]["unreadable"] == {"train": 2, "test": 1}
    assert (found.result["test"]["images"], found.result["test"]["unreadable"]) == (17, 1)
    assert vitrail.evaluate(found.classifier, torn, skip_unreadable=True).images == 17


def test_explanations_are_scored_without_what_cannot_be_read(run: vitrail.Run, torn: Path, capsys):
    words = ["faithfulness", str(run.folder), str(torn), "--methods", "attention", "--images", "18", "--steps", "2"]
    assert main([*words, "--json"]) == 1
    assert "green/2.png" in json.loads(capsys.readouterr().out)["error"]
    assert main([*words, "--skip-unreadable", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["unreadable"]) == (17, 1)


def test_exports_are_compared_without_what_cannot_be_read(run: vitrail.Run, torn: Path):
    check = load_probes(run.classifier, torn, skip_unreadable=True)
    assert check.description == "the 18 test images of torn, less 1 that cannot be read"
    assert sum(len(labels) for _, labels in check.batches(run.classifier)) == 17
    for file in (torn / "test").rglob("*.png"):
        cut(file)
    with pytest.raises(ImageError, match=r"test/blue/0\.png"):
        load_probes(run.classifier, torn, skip_unreadable=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_disappears_during_the_run_stops_it_or_is_counted(make_folder, monkeypatch, workers, capsys):
    folder = make_folder("fading", {"train": 12, "val": 4})
    victim, kept = folder / "train" / "red" / "5.png", (folder / "train" / "red" / "5.png").read_bytes()
    options = {"epochs": 3, "batch_size": 8, "image_cache_gib": 0.0, "workers": workers, **SMALL}
    whole = vitrail.train(folder, out=folder.parent / "whole", **options)
    real = epochs.validate

    def fade(training):
        victim.unlink(missing_ok=True)
        return real(training)

    monkeypatch.setattr(epochs, "validate", fade)
    with pytest.raises(ImageError, match=r"red/5\.png: there is no such file") as caught:
        vitrail.train(folder, out=folder.parent / "run", **options)
    assert "vitrail train" in str(caught.value.hint) and "--resume" in str(caught.value.hint)
    saved = find_newest_checkpoint(folder.parent / "run" / "checkpoint")
    assert saved is not None and 3 <= int(saved.name[5:13]) < 6
    victim.write_bytes(kept)  # brought back: the run goes on to the same bits
    monkeypatch.setattr(epochs, "validate", real)
    again = vitrail.train(folder, out=folder.parent / "run", resume=True)
    assert (
        again.folder.joinpath("classifier.safetensors").read_bytes()
        == whole.folder.joinpath("classifier.safetensors").read_bytes()
    )
    monkeypatch.setattr(epochs, "validate", fade)
    capsys.readouterr()
    run = vitrail.train(folder, out=folder.parent / "skipped", skip_unreadable=True, **options)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("unreadable", 0) for row in rows] == [0, 1, 1]
    assert "left out of epoch 2" in capsys.readouterr().err


@pytest.mark.parametrize("memory", [1.0, 0.0], ids=["in memory", "from files"])
def test_without_a_check_unreadable_images_are_left_out_too(make_folder, memory: float):
    folder = make_folder("torn", {"train": 10, "test": 4})
    for name in ("train/blue/0.png", "train/red/9.png"):  # the first and the last
        cut(folder / name)
    (folder / "test/blue/1.png").write_text("no image")
    options = {"epochs": 1, "check": False, "image_cache_gib": memory, "workers": 0, "report": False, **SMALL}
    with pytest.raises(ImageError, match=r"(blue/[01]|red/9)\.png"):
        vitrail.train(folder, out=folder.parent / "run", **options)
    run = vitrail.train(folder, out=folder.parent / "run", skip_unreadable=True, **options)
    assert (run.result["test"]["images"], run.result["test"]["unreadable"]) == (7, 1)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["unreadable"] == 2
    for path in folder.rglob("*.png"):
        cut(path)
    with pytest.raises(VitrailError, match="not one of .* training images can be read"):
        vitrail.train(folder, out=folder.parent / "none", skip_unreadable=True, **options)
    assert not (folder.parent / "none").exists()


def test_a_disk_that_goes_while_the_run_is_measured_leaves_a_run_that_goes_on(make_folder, monkeypatch):
    folder = make_folder("fading", {"train": 8, "val": 2})
    away = folder.parent / "val"
    real = epochs.validate

    def unmount(training):
        (folder / "val").rename(away)
        return real(training)

    monkeypatch.setattr(epochs, "validate", unmount)
    options = {"epochs": 1, "batch_size": 8, "image_cache_gib": 0.0, "workers": 0, "skip_unreadable": True, **SMALL}
    with pytest.raises(NoReadableImages, match="not one of 4 images") as caught:
        vitrail.train(folder, out=folder.parent / "run", **options)
    assert "saved at step 2, go on with: vitrail train" in str(caught.value.hint)
    away.rename(folder / "val")
    monkeypatch.setattr(epochs, "validate", real)
    again = vitrail.train(folder, out=folder.parent / "run", resume=True, report=False)
    assert again.result["validation"]["images"] == 4


def test_a_test_image_that_disappears_is_left_out_of_scores_and_pictures(make_folder):
    folder = make_folder("fading", {"train": 8, "val": 4, "test": 4})
    victim = folder / "test" / "red" / "0.png"
    run = vitrail.train(
        folder,
        out=folder.parent / "run",
        epochs=1,
        batch_size=8,
        image_cache_gib=0.0,
        skip_unreadable=True,
        epoch_callbacks=[lambda *row: victim.unlink(missing_ok=True)],
        **SMALL,
    )
    assert (run.result["test"]["images"], run.result["test"]["unreadable"]) == (7, 1)
    assert {"attention.png", "confusion.png", "report.html"} <= {path.name for path in run.folder.iterdir()}


def test_a_worker_that_is_killed_is_named_and_the_run_goes_on_from_there(make_folder, monkeypatch, capsys):
    folder = make_folder("busy", 20)
    options = {"epochs": 2, "batch_size": 8, "image_cache_gib": 0.0, "workers": 1, **SMALL}
    whole = vitrail.train(folder, out=folder.parent / "whole", **options)
    real = Image.open
    victim = str(sorted((folder / "red").iterdir())[3])
    mother = os.getpid()

    def deadly(file, *rest, **more):
        if str(file) == victim and os.getpid() != mother:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(file, *rest, **more)

    monkeypatch.setattr(Image, "open", deadly)
    with pytest.raises(WorkerDied, match="data-loading worker died: killed by SIGKILL") as caught:
        vitrail.train(folder, out=folder.parent / "run", **options)
    assert "--workers" in str(caught.value.hint) and "saved at step" in str(caught.value.hint)
    again = vitrail.train(folder, out=folder.parent / "run", resume=True, workers=0)
    assert (
        again.folder.joinpath("classifier.safetensors").read_bytes()
        == whole.folder.joinpath("classifier.safetensors").read_bytes()
    )


def test_with_no_workers_nobody_else_reads_images_up_to_the_end_of_the_run(make_folder, monkeypatch):
    folder = make_folder("busy", {"train": 10, "test": 4})
    real, mother = Image.open, os.getpid()

    def deadly(*rest, **more):
        if os.getpid() != mother:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*rest, **more)

    monkeypatch.setattr(Image, "open", deadly)
    options = {"epochs": 1, "batch_size": 8, "image_cache_gib": 0.0, "workers": 0, "report": False, **SMALL}
    assert vitrail.train(folder, out=folder.parent / "run", **options).result["test"]["images"] == 8


def test_a_class_without_a_readable_training_image_is_said_before_the_run(make_folder):
    folder = make_folder("torn", {"train": 6, "test": 2})
    for path in (folder / "train" / "blue").iterdir():
        cut(path)
    with pytest.raises(VitrailError, match="only the class 'red' has a training image that can be read"):
        vitrail.train(folder, out=folder.parent / "run", epochs=1, skip_unreadable=True, **SMALL)
    for path in (folder / "train" / "red").iterdir():
        cut(path)
    with pytest.raises(VitrailError, match="there is not one training image that can be read"):
        vitrail.train(folder, out=folder.parent / "run", epochs=1, skip_unreadable=True, **SMALL)
    assert not (folder.parent / "run").exists()


def test_a_loss_that_is_no_number_names_the_step_the_rate_the_gradient_and_the_files(make_folder, monkeypatch):
    folder = make_folder("poison", 12)
    real = epochs.train_steps

    def poisoned(learner, batches, *rest, **more):
        def spoil():
            for batch in batches:
                if learner.step == 4:
                    with torch.no_grad():
                        learner.vit.head.weight.fill_(float("nan"))
                yield batch

        return real(learner, spoil(), *rest, **more)

    monkeypatch.setattr(epochs, "train_steps", poisoned)
    with pytest.raises(
        TrainingDiverged, match=r"at step 5: loss nan, gradient nan, learning rate [\d.e-]+; the batch was"
    ) as e:
        vitrail.train(folder, out=folder.parent / "run", epochs=9, batch_size=8, **SMALL)
    document = json.loads((folder.parent / "run" / "diverged.json").read_text())
    assert document["step"] == 5
    assert all(Path(file).is_file() for file in document["files"])
    assert document["files"][0] in e.value.sentence
    saved = find_newest_checkpoint(folder.parent / "run" / "checkpoint")
    assert saved is not None and int(saved.name[5:13]) < 5  # no checkpoint of broken weights
    from vitrail.data import open_data
    from vitrail.data.loader import TrainLoader

    train = open_data(folder).train
    per_epoch = -(-len(train) // 8)
    loader = TrainLoader(train, Augmentation(lambda image: image), batch_size=8, seed=0)
    pixels, _ = list(loader.epoch(4 // per_epoch))[4 % per_epoch]
    there = torch.stack([train[train.paths.index(file)] for file in document["files"]])
    assert torch.equal(pixels, there)  # they are the images of that batch


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 1e-12, "optimizer": "sgd", "epochs": 80}, "nothing is learnt by step"),
        (
            {
                "lr": 3.0,
                "optimizer": "sgd",
                "epochs": 20,
                "max_grad_norm": None,
                "warmup_fraction": 0.5,
                "ema_decay": None,
            },
            "the loss climbs",
        ),
        ({"epochs": 20}, None),
    ],
    ids=["dead", "diverging", "sound"],
)
def test_a_dead_or_diverging_run_is_said_early_and_once(make_folder, capsys, options, said):
    folder = make_folder("slow", 16)
    if said == "nothing is learnt by step":  # nothing is there to be learnt
        for i, path in enumerate(sorted(folder.rglob("*.png"))):
            picture((128, 128, 128), i).save(path)
    try:
        vitrail.train(folder, out=folder.parent / "run", batch_size=8, precision="fp32", **{**SMALL, **options})
    except TrainingDiverged:
        assert said == "the loss climbs"
    talk = capsys.readouterr().err
    assert talk.count("the loss climbs") + talk.count("nothing is learnt") == (1 if said else 0)
    assert said is None or said in talk
