"""Whole runs on real folders: what they write, what they refuse, how they go on."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vitrail
from vitrail.errors import UsageError, VitrailError
from vitrail.runs.folder import RunFolder, create_run
from vitrail.training import Recipe
from vitrail.training.checkpoint import find_newest_checkpoint, list_checkpoints
from vitrail.training.loop import TrainingDiverged

SMALL = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 64}


def test_a_run_writes_everything_it_promises(run: vitrail.Run):
    written = {path.name for path in run.folder.iterdir()}
    assert written == {
        "classifier.safetensors", "checkpoint", "metrics.jsonl", "recipe.json", "result.json",
        "curves.png", "confusion.png", "attention.png", "classes.png", "check.json", "report.html", "report.json",
    }  # fmt: skip
    for name in ("curves", "confusion", "attention"):
        with Image.open(run.folder / f"{name}.png") as image:
            assert min(image.size) > 100
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 5  # something is drawn
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert run.result["test"]["accuracy"] > 0.9
    assert run.result["test"]["images"] == 24
    assert json.loads((run.folder / "result.json").read_text()) == run.result


def test_the_kept_weights_are_those_of_the_best_validation_epoch(run: vitrail.Run):
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    from vitrail.data import open_data
    from vitrail.evaluation import compute_outcome

    split = run.classifier.origin["data"]["split"]
    address = json.loads((run.folder / "recipe.json").read_text())["data"]
    splits = open_data(address, validation=split["validation"], test=split["test"], split_seed=split["seed"])
    outcome = compute_outcome(run.classifier, splits.validation)
    assert outcome.accuracy == best["validation_accuracy"]
    assert outcome.loss == pytest.approx(best["validation_loss"], abs=1e-5)


def test_twelve_images_of_two_classes_train(make_folder):
    folder = make_folder("twelve", 6)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=4, **SMALL)
    checkpoint = find_newest_checkpoint(run.folder / "checkpoint")
    assert json.loads((checkpoint / "state.json").read_text())["step"] >= 4  # never an epoch without a step
    assert run.classifier.classes == ("blue", "red")
    assert run.result["test"]["images"] == 2


def test_every_kind_of_picture_in_one_folder_trains(tmp_path: Path):
    rng = np.random.default_rng(0)
    kinds = {
        "grey.png": Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)),
        "rgba.png": Image.fromarray(rng.integers(0, 255, (18, 24, 4), dtype=np.uint8)),
        "deep.png": Image.fromarray(rng.integers(0, 65535, (20, 20), dtype=np.uint16)),
        "palette.png": Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).convert("P"),
        "photo.JPG": Image.fromarray(rng.integers(0, 255, (30, 20, 3), dtype=np.uint8)),
        "one bit.png": Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).convert("1"),
    }
    for label in ("chat noir", "été à la mer"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for name, image in kinds.items():
            image.save(tmp_path / "photos" / label / name)
    run = vitrail.train(tmp_path / "photos", out=tmp_path / "run", epochs=2, **SMALL)
    assert run.classifier.classes == ("chat noir", "été à la mer")
    assert vitrail.load(run.folder).classes == run.classifier.classes


def test_a_validation_folder_without_a_class_keeps_the_numbers_of_the_others(make_folder):
    folder = make_folder("gap", {"train": 12, "val": 4, "test": 4}, ("blue", "green", "red"))
    for path in (folder / "val" / "blue").iterdir():
        path.unlink()
    (folder / "val" / "blue").rmdir()
    run = vitrail.train(folder, out=folder.parent / "run", epochs=12, **SMALL)
    assert run.classifier.classes == ("blue", "green", "red")
    assert vitrail.evaluate(run.classifier, folder / "val").accuracy > 0.9  # labels did not shift


def test_a_set_that_is_not_square_gets_a_model_that_is_not(make_folder):
    folder = make_folder("wide", 8, size=(12, 20))
    run = vitrail.train(folder, out=folder.parent / "run", epochs=2, **SMALL)
    assert run.classifier.vit.config.image_size == (12, 20)
    assert vitrail.explain(run.classifier, folder / "red" / "0.png").map.shape == (6, 10)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(make_folder):
    folder = make_folder("twice", 10)
    runs = [
        vitrail.train(
            folder, out=folder.parent / f"run{i}", epochs=2, seed=seed, workers=workers, image_cache_gib=memory, **SMALL
        )
        for i, (seed, workers, memory) in enumerate([(0, 0, 1.0), (0, 2, 0.0), (1, 0, 1.0)])
    ]
    first, again, other = (load_file(run.folder / "classifier.safetensors") for run in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)  # also with workers and without memory
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_out_that_is_not_empty_is_left_alone(make_folder, tmp_path: Path):
    folder = make_folder("few", 6)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        vitrail.train(folder, out=mine, epochs=1, **SMALL)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_without_out_each_run_gets_a_folder_of_its_own(make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_folder("photos", 6)
    monkeypatch.chdir(tmp_path)
    runs = [vitrail.train(folder, epochs=1, **SMALL).folder for _ in range(3)]
    assert [str(path) for path in runs] == ["runs/photos", "runs/photos-2", "runs/photos-3"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / "red" / "0.png").write_bytes((root / "red" / "0.png").read_bytes()[:60]), r"red/0\.png"),
        (lambda root: (root / "red" / "0.png").write_text("not an image"), r"red/0\.png"),
        (lambda root: (root / "green").mkdir(), "green"),
        (lambda root: Image.new("RGB", (1, 1)).save(root / "red" / "dot.png"), r"red/dot\.png"),
    ],
    ids=["cut short", "not an image", "empty class", "smaller than a patch"],
)
@pytest.mark.parametrize("memory", [1.0, 0.0], ids=["in memory", "from files"])
def test_bad_data_ends_in_a_sentence_that_names_it_and_leaves_no_classifier(make_folder, damage, said, memory):
    folder = make_folder("bad", 8)
    damage(folder)
    out = folder.parent / "run"
    with pytest.raises(VitrailError, match=said) as caught:
        vitrail.train(folder, out=out, epochs=1, image_cache_gib=memory, workers=0, **SMALL)
    assert caught.value.hint
    assert not (out / "classifier.safetensors").exists()
    assert not out.exists(), "nothing half-written"


def test_a_run_that_diverges_stops_and_says_where(make_folder):
    folder = make_folder("wild", 8)
    with pytest.raises(
        TrainingDiverged, match=r"diverged at step \d+: (loss .*learning rate|a weight is not finite)|not finite"
    ):
        vitrail.train(
            folder,
            out=folder.parent / "run",
            epochs=30,
            optimizer="sgd",
            lr=1e9,
            max_grad_norm=None,
            warmup_fraction=0.0,
            **SMALL,
        )


def test_validation_never_sees_test_and_tutorial_trains_on_everything(make_folder):
    folder = make_folder("all", {"train": 10, "test": 4}, size=(32, 32))
    run = vitrail.train(folder, recipe="tutorial", out=folder.parent / "run", epochs=2)
    assert run.classifier.origin["data"]["images"] == {"train": 20, "test": 8}
    row = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert "test_accuracy" in row
    assert "validation_accuracy" not in row
    assert row["test_accuracy"] == run.result["test"]["accuracy"]  # the last weights are kept, not the best


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "vitrail", *map(str, words)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(make_folder, number: signal.Signals):
    folder = make_folder("long", 30)
    options = (
        "--epochs",
        12,
        "--batch-size",
        8,
        "--width",
        32,
        "--depth",
        2,
        "--heads",
        2,
        "--mlp-width",
        64,
        "--ema-decay",
        0.9,
    )
    options += ("--dropout", 0.1, "--mixup", 0.2, "--quiet")
    whole, broken = folder.parent / "whole", folder.parent / "broken"
    subprocess.run(command("train", folder, "--out", whole, *options), check=True)
    process = subprocess.Popen(command("train", folder, "--out", broken, *options), stderr=subprocess.PIPE, text=True)
    while not list(broken.glob("checkpoint/step-*")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number != signal.SIGKILL else -9)
    if number != signal.SIGKILL:
        assert f"--resume --out {broken}" in errors
    subprocess.run(command("train", folder, "--out", broken, "--resume", "--quiet"), check=True)
    for name in ("classifier.safetensors", "result.json"):
        ours, theirs = (whole / name).read_bytes(), (broken / name).read_bytes()
        if name == "result.json":
            assert json.loads(ours)["test"] == json.loads(theirs)["test"]
        else:
            assert ours == theirs
    assert len((broken / "metrics.jsonl").read_text().splitlines()) == 12


def test_resume_refuses_another_recipe_and_a_folder_that_is_no_run(run: vitrail.Run, colours: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="another recipe"):
        vitrail.train(colours, out=run.folder, resume=True, lr=0.5)
    with pytest.raises(UsageError, match="another recipe"):
        vitrail.train(colours, out=run.folder, resume=True, recipe=Recipe(name="small", epochs=8))
    with pytest.raises(UsageError, match="not a run"):
        vitrail.train(colours, out=tmp_path / "nothing", resume=True)


def test_resume_refuses_a_recipe_file_that_was_edited(make_folder):
    folder = make_folder("own", 6)
    file = folder.parent / "mine.toml"
    file.write_text("epochs = 1\nwidth = 16\ndepth = 1\nheads = 2\nmlp_width = 16\n")
    run = vitrail.train(folder, recipe=file, out=file.parent / "run", lr=0.002)
    vitrail.train(folder, recipe=file, out=run.folder, resume=True, lr=0.002, workers=0)
    file.write_text(file.read_text().replace("epochs = 1", "epochs = 2"))
    with pytest.raises(UsageError, match="another recipe"):
        vitrail.train(folder, recipe=file, out=run.folder, resume=True, lr=0.002)
    vitrail.train(folder, out=run.folder, resume=True)


def test_a_run_without_very_many_images_can_be_resumed(tmp_path: Path):
    names = [f"train/a class with a long name/{number:012}.jpeg" for number in range(30_000)]
    create_run("photos", tmp_path / "run", "", Recipe(epochs=3), unreadable={"train": names})
    again = RunFolder(tmp_path / "run")
    assert again.load_recipe() == Recipe(epochs=3)
    assert again.load_unreadable() == {"train": names}
    document = json.loads((again.path / "recipe.json").read_text())
    (again.path / "recipe.json").write_text(json.dumps({**document, "unreadable": names}))  # as older runs noted it
    assert again.load_unreadable() == dict.fromkeys(("all", "train", "validation", "test"), names)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_links_holds_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "link", unsupported(number))
    assert create_run("photos", tmp_path / "run", "", Recipe(), unreadable={}).load_recipe() == Recipe()
    with pytest.raises(UsageError, match="is not empty"):
        create_run("photos", tmp_path / "run", "", Recipe(), unreadable={})


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_holds_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import fcntl

    folder = create_run("photos", tmp_path / "run", "", Recipe(), unreadable={})
    monkeypatch.setattr(fcntl, "flock", unsupported(number))
    with folder.lock():
        assert folder.load_recipe() == Recipe()


def unsupported(number: int) -> Callable[..., object]:
    """What a file system says to an operation that it does not have."""

    def refuse(*arguments: object) -> object:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_damaged_checkpoint_is_never_loaded_and_the_one_before_goes_on_to_the_same_bits(make_folder, capsys):
    folder = make_folder("flip", 8)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=3, **SMALL)
    whole = run.folder.joinpath("classifier.safetensors").read_bytes()
    newest, before = list_checkpoints(run.folder / "checkpoint")
    for damaged in (newest, before):
        flip(damaged / "model.safetensors")
        capsys.readouterr()
        vitrail.train(folder, out=run.folder, resume=True)
        said = capsys.readouterr().err
        assert f"warning: the checkpoint {newest} is damaged and not used: model.safetensors is not what" in said
        assert ("going on after step 2" if damaged == newest else "starts from the beginning") in said
        assert run.folder.joinpath("classifier.safetensors").read_bytes() == whole
        assert find_newest_checkpoint(run.folder / "checkpoint") == newest
        if damaged == newest:
            flip(newest / "model.safetensors")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 600 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk]).returncode:
        pytest.skip("this machine may not mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_too_small_is_said_before_the_run(make_folder, small_disk: Path):
    with pytest.raises(VitrailError, match=r"has 0\.\d MB left and the run needs 5\.\d"):
        vitrail.train(make_folder("few", 6), out=small_disk / "run", epochs=1, **SMALL)
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_during_the_run_leaves_the_checkpoint_before(
    make_folder, small_disk: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vitrail.runs.train.room_for", lambda vit, recipe: 0)
    data = make_folder("few", 6)
    options = {"epochs": 3, "width": 48, "depth": 2, "heads": 2, "mlp_width": 96, "ema_decay": None, "optimizer": "sgd"}
    with pytest.raises(VitrailError, match="cannot be written: No space left on device"):
        vitrail.train(data, out=small_disk / "run", **options)
    for file in small_disk.rglob("*.safetensors"):  # what is there is whole
        load_file(file)
    assert find_newest_checkpoint(small_disk / "run" / "checkpoint") is not None
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    again = vitrail.train(data, out=small_disk / "run", resume=True)
    whole = vitrail.train(data, out=data.parent / "whole", **options)
    assert (again.folder / "classifier.safetensors").read_bytes() == whole.folder.joinpath(
        "classifier.safetensors"
    ).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_place_that_cannot_be_written_is_said_before_the_data_are_read(make_folder, small_disk: Path):
    data = make_folder("few", 6)
    (small_disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    (data / "red" / "0.png").write_text("would be found when the data are read")
    for out in (small_disk / "run", small_disk / "new" / "run"):
        with pytest.raises(VitrailError, match="cannot be written: Read-only file system"):
            vitrail.train(data, out=out, epochs=1, **SMALL)


def test_a_run_folder_that_vanishes_is_said(make_folder, monkeypatch: pytest.MonkeyPatch):
    import shutil

    from vitrail.runs import epochs

    data = make_folder("few", 6)
    out = data.parent / "run"
    real = epochs.validate

    def vanish(training):
        shutil.rmtree(out)
        return real(training)

    monkeypatch.setattr(epochs, "validate", vanish)
    with pytest.raises(VitrailError, match="has vanished"):
        vitrail.train(data, out=out, epochs=2, **SMALL)
    assert not out.exists()


def test_a_resume_may_read_with_other_workers_and_says_which_conditions_changed(make_folder, capsys):
    folder = make_folder("moved", 8)
    whole = vitrail.train(folder, out=folder.parent / "whole", epochs=3, **SMALL)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=3, **SMALL)
    for path in list_checkpoints(run.folder / "checkpoint")[:1]:  # the last epoch is still to be trained
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    threads = torch.get_num_threads()
    capsys.readouterr()
    try:
        torch.set_num_threads(threads + 1)
        vitrail.train(folder, out=run.folder, resume=True, workers=1, image_cache_gib=0.0)
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().err
    assert f"the number of threads was {threads}, is {threads + 1}" in said
    assert "not the same to the last bit" in said
    again = json.loads((run.folder / "result.json").read_text())
    assert again["test"]["images"] == whole.result["test"]["images"]


def test_tensorboard_on_request(make_folder):
    pytest.importorskip("tensorboard")
    folder = make_folder("board", 6)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=1, tensorboard=True, **SMALL)
    assert list((run.folder / "tensorboard").glob("events*"))


def test_a_stop_on_the_last_step_of_an_epoch_can_be_resumed(make_folder, monkeypatch: pytest.MonkeyPatch):
    """With one step an epoch every stop is on a last step."""
    from vitrail.interrupts import Interrupted
    from vitrail.runs import epochs

    folder = make_folder("short", 8)
    whole = vitrail.train(folder, out=folder.parent / "whole", epochs=4, batch_size=100, **SMALL)
    real = epochs.train_steps

    def stop_at_two(learner, *rest, **options):
        for step in real(learner, *rest, **options):
            if step.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    monkeypatch.setattr(epochs, "train_steps", stop_at_two)
    with pytest.raises(Interrupted, match="stopped at step 2"):
        vitrail.train(folder, out=folder.parent / "broken", epochs=4, batch_size=100, **SMALL)
    monkeypatch.setattr(epochs, "train_steps", real)
    again = vitrail.train(folder, out=folder.parent / "broken", resume=True)
    first, second = ((r.folder / "classifier.safetensors").read_bytes() for r in (whole, again))
    assert first == second
    assert len((again.folder / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_stop_while_the_last_epoch_is_measured_is_kept_to(make_folder, monkeypatch: pytest.MonkeyPatch):
    from vitrail.interrupts import Interrupted
    from vitrail.runs import epochs

    folder = make_folder("short", 8)
    real = epochs.validate

    def stop(training):
        os.kill(os.getpid(), signal.SIGINT)
        return real(training)

    monkeypatch.setattr(epochs, "validate", stop)
    with pytest.raises(Interrupted, match="stopped at step 1 and saved"):
        vitrail.train(folder, out=folder.parent / "run", epochs=1, batch_size=100, **SMALL)
    assert not (folder.parent / "run" / "result.json").exists()
    again = vitrail.train(folder, out=folder.parent / "run", resume=True, report=False)  # nothing is left to train
    assert again.result["test"]["images"]


def test_a_signal_that_comes_while_the_processes_agree_is_kept(make_folder, monkeypatch: pytest.MonkeyPatch):
    from vitrail.interrupts import Interrupted
    from vitrail.training.distributed import World

    folder = make_folder("short", 8)
    real, sent = World.any, []

    def interrupted(self, *flags):
        if not sent:
            sent.append(flags)
            signal.raise_signal(signal.SIGTERM)
        return real(self, *flags)

    monkeypatch.setattr(World, "any", interrupted)
    with pytest.raises(Interrupted, match="stopped at step 1 and saved"):
        vitrail.train(folder, out=folder.parent / "run", epochs=3, batch_size=100, **SMALL)
    assert sent == [(False, False)]


def test_a_finished_run_without_its_checkpoints_keeps_what_it_has_and_an_unfinished_one_begins_again(make_folder):
    import shutil

    folder = make_folder("few", 6)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=2, report=False, **SMALL)
    there = ("classifier.safetensors", "metrics.jsonl", "result.json")
    before = [(run.folder / name).read_bytes() for name in there]
    for emptied in (True, False):
        shutil.rmtree(run.folder / "checkpoint")
        if emptied:
            (run.folder / "checkpoint").mkdir()
        with pytest.raises(UsageError, match="is finished and its checkpoints are gone"):
            vitrail.train(folder, out=run.folder, resume=True)
        assert [(run.folder / name).read_bytes() for name in there] == before
    (run.folder / "result.json").unlink()
    vitrail.train(folder, out=run.folder, resume=True, report=False)
    assert (run.folder / "classifier.safetensors").read_bytes() == before[0]
    assert find_newest_checkpoint(run.folder / "checkpoint") is not None


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux says which file a handle is of")
def test_a_row_of_metrics_is_on_the_disk_before_the_checkpoint_that_follows(make_folder, monkeypatch):
    """A kill keeps what the kernel has, so that only the order can prove this."""
    folder = make_folder("few", 6)
    real, synced = os.fsync, []

    def seen(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", seen)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=1, batch_size=100, report=False, **SMALL)
    names = [Path(path).relative_to(run.folder).as_posix() for path in synced if Path(path).is_relative_to(run.folder)]
    row, saved = names.index("metrics.jsonl"), names.index("checkpoint")
    assert row < saved and "." in names[row:saved]  # the file, the name of the file, then the checkpoint's own name


def test_the_command_that_goes_on_says_how_the_run_was_started(tmp_path: Path):
    from vitrail.runs.train import resume_options
    from vitrail.training.distributed import World

    alone, two, spread = World(), World(size=2, local_size=2, is_sharded=True), World(size=4, local_size=2)
    assert resume_options(alone, torch_files=False) == resume_options(spread, torch_files=False) == []
    options = resume_options(two, torch_files=True)
    run = create_run("my photos", tmp_path / "run", "", Recipe(), unreadable={}, options=options)
    assert run.resume_command() == (
        f"vitrail train 'my photos' --resume --out {tmp_path / 'run'} --torch-files --processes 2 --fsdp"
    )
    document = json.loads((run.path / "recipe.json").read_text())
    del document["options"]  # an older run noted none
    (run.path / "recipe.json").write_text(json.dumps(document))
    assert run.resume_command() == f"vitrail train 'my photos' --resume --out {tmp_path / 'run'}"


def test_one_process_has_nobody_to_shard_with(make_folder):
    folder = make_folder("few", 6)
    with pytest.raises(UsageError, match=r"--fsdp shards over several processes.*--processes N"):
        vitrail.train(folder, out=folder.parent / "run", epochs=1, fsdp=True, **SMALL)
    assert not (folder.parent / "run").exists()


def test_resume_refuses_data_that_have_changed(make_folder):
    folder = make_folder("grows", 8)
    out = folder.parent / "run"
    vitrail.train(folder, out=out, epochs=1, **SMALL)
    (folder / "red" / "new.png").write_bytes((folder / "red" / "0.png").read_bytes())
    before = (out / "classifier.safetensors").read_bytes()
    with pytest.raises(VitrailError, match="not those that .* was started on"):
        vitrail.train(folder, out=out, resume=True)
    assert (out / "classifier.safetensors").read_bytes() == before


def test_runs_started_together_get_folders_of_their_own(make_folder, tmp_path: Path):
    folder = make_folder("photos", 6)
    words = [
        *command("train", folder, "--epochs", 1, "--quiet", "--json"),
        "--width",
        "32",
        "--depth",
        "1",
        "--heads",
        "2",
    ]
    started = [subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {json.loads(process.communicate(timeout=120)[0])["run"] for process in started}
    assert said == {"runs/photos", "runs/photos-2", "runs/photos-3"}


def test_a_run_that_is_training_is_not_resumed_by_another_process(make_folder):
    from vitrail.runs.folder import RunFolder

    folder = make_folder("busy", 6)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=1, **SMALL)
    with RunFolder(run.folder).lock(), pytest.raises(UsageError, match="another process is training"):
        vitrail.train(folder, out=run.folder, resume=True)


def test_resume_knows_positions_and_sizes_again(make_folder):
    from vitrail.model import Rotary

    folder = make_folder("turned", 8)
    options = {"epochs": 1, "position": Rotary(base=10.0), "image_size": (16, 20), **SMALL}
    run = vitrail.train(folder, out=folder.parent / "run", **options)
    again = vitrail.train(folder, out=run.folder, resume=True, **options)
    assert again.classifier.vit.config.position == Rotary(base=10.0)
    with pytest.raises(UsageError, match="another recipe"):
        vitrail.train(folder, out=run.folder, resume=True, recipe="tutorial")


def test_half_a_line_of_metrics_is_forgotten(make_folder):
    folder = make_folder("torn", 8)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=2, **SMALL)
    lines = (run.folder / "metrics.jsonl").read_text()
    (run.folder / "metrics.jsonl").write_text(lines + '{"epoch": 3, "tra')
    vitrail.train(folder, out=run.folder, resume=True)
    assert (run.folder / "metrics.jsonl").read_text() == lines


def test_what_a_run_killed_in_its_first_moment_left_is_in_nobodys_way(make_folder, tmp_path: Path):
    folder = make_folder("photos", 10)
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / ".recipe-4711.json").write_text("{")
    run = vitrail.train(folder, out=tmp_path / "run", epochs=1, width=16, depth=1, heads=2, mlp_width=16)
    assert run.result["test"]["images"]
    (tmp_path / "other" / "checkpoint").mkdir(parents=True)
    (tmp_path / "other" / "checkpoint" / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="is not empty"):
        vitrail.train(folder, out=tmp_path / "other", epochs=1)
