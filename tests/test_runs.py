"""Whole runs on real folders: the files they write, the errors they raise, how they resume."""

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
from conftest import fill
from vitrail.errors import UsageError, VitrailError
from vitrail.runs.claim import create_run
from vitrail.runs.folder import RunConfig, RunFolder
from vitrail.training.checkpoint import find_newest_checkpoint, list_checkpoints
from vitrail.training.recipe import Recipe
from vitrail.training.step_stats import TrainingDiverged

CONFIG = RunConfig("photos", "", Recipe())
SMALL = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 64}


@pytest.mark.newest
def test_a_run_writes_all_its_files(run: vitrail.Run):
    files = {path.name for path in run.folder.iterdir()}
    assert files == {
        "classifier.safetensors", "checkpoint", "metrics.jsonl", "recipe.json", "result.json",
        "curves.png", "confusion.png", "attention.png", "classes.png", "check.json", "report.html", "report.json",
    }  # fmt: skip
    for name in ("curves", "confusion", "attention"):
        with Image.open(run.folder / f"{name}.png") as image:
            assert min(image.size) > 100
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 5  # the picture is not blank
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert run.result["test"]["accuracy"] > 0.9
    assert run.result["test"]["images"] == 24
    assert json.loads((run.folder / "result.json").read_text()) == run.result


def test_the_artifact_has_the_weights_of_the_best_validation_epoch(run: vitrail.Run):
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    from vitrail.data.open import open_data
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


def test_images_of_all_formats_in_one_folder_train(tmp_path: Path):
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


def test_a_validation_folder_without_a_class_keeps_the_labels_of_the_others(make_folder):
    folder = make_folder("gap", {"train": 12, "val": 4, "test": 4}, ("blue", "green", "red"))
    for path in (folder / "val" / "blue").iterdir():
        path.unlink()
    (folder / "val" / "blue").rmdir()
    run = vitrail.train(folder, out=folder.parent / "run", epochs=12, **SMALL)
    assert run.classifier.classes == ("blue", "green", "red")
    assert vitrail.evaluate(run.classifier, folder / "val").accuracy > 0.9  # the labels have not shifted


def test_non_square_images_get_a_non_square_model(make_folder):
    folder = make_folder("wide", 8, size=(12, 20))
    run = vitrail.train(folder, out=folder.parent / "run", epochs=2, **SMALL)
    assert run.classifier.vit.config.image_size == (12, 20)
    assert vitrail.explain(run.classifier, folder / "red" / "0.png").map.shape == (6, 10)


def test_a_seed_determines_every_bit(make_folder):
    folder = make_folder("twice", 10)
    runs = [
        vitrail.train(
            folder, out=folder.parent / f"run{i}", epochs=2, seed=seed, workers=workers, image_cache_gib=memory, **SMALL
        )
        for i, (seed, workers, memory) in enumerate([(0, 0, 1.0), (0, 2, 0.0), (1, 0, 1.0)])
    ]
    first, second, other = (load_file(run.folder / "classifier.safetensors") for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)  # with workers and without a cache too
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_folder_that_is_not_empty_is_not_touched(make_folder, tmp_path: Path):
    folder = make_folder("few", 6)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        vitrail.train(folder, out=mine, epochs=1, **SMALL)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_without_out_each_run_gets_a_new_folder(make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_folder("photos", 6)
    monkeypatch.chdir(tmp_path)
    runs = [vitrail.train(folder, epochs=1, **SMALL).folder for _ in range(3)]
    assert [str(path) for path in runs] == ["runs/photos", "runs/photos-2", "runs/photos-3"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "red" / "0.png").write_bytes((root / "red" / "0.png").read_bytes()[:60]), r"red/0\.png"),
        (lambda root: (root / "red" / "0.png").write_text("not an image"), r"red/0\.png"),
        (lambda root: (root / "green").mkdir(), "green"),
        (lambda root: Image.new("RGB", (1, 1)).save(root / "red" / "dot.png"), r"red/dot\.png"),
    ],
    ids=["cut short", "not an image", "empty class", "smaller than a patch"],
)
@pytest.mark.parametrize("memory", [1.0, 0.0], ids=["cached", "from files"])
def test_an_error_names_the_bad_image_and_nothing_is_written(make_folder, damage, message, memory):
    folder = make_folder("bad", 8)
    damage(folder)
    out = folder.parent / "run"
    with pytest.raises(VitrailError, match=message) as caught:
        vitrail.train(folder, out=out, epochs=1, image_cache_gib=memory, workers=0, **SMALL)
    assert caught.value.hint
    assert not (out / "classifier.safetensors").exists()
    assert not out.exists()


def test_divergence_stops_a_run_and_names_the_step(make_folder):
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


def test_tutorial_holds_out_no_validation_images(make_folder):
    folder = make_folder("all", {"train": 10, "test": 4}, size=(32, 32))
    run = vitrail.train(folder, recipe="tutorial", out=folder.parent / "run", epochs=2)
    assert run.classifier.origin["data"]["images"] == {"train": 20, "test": 8}
    row = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert "test_accuracy" in row
    assert "validation_accuracy" not in row
    assert row["test_accuracy"] == run.result["test"]["accuracy"]  # of the last epoch


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vitrail", *map(str, arguments)]


LONG = {"epochs": 12, "batch_size": 8, "ema_decay": 0.9, "dropout": 0.1, "mixup": 0.2, **SMALL}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> vitrail.Run:
    """A run that was not stopped, beside its data in `long`."""
    folder = fill(tmp_path_factory.mktemp("uninterrupted") / "long", 30, ("red", "blue"), (16, 16))
    return vitrail.train(folder, out=folder.parent / "whole", check=False, report=False, **LONG)


@pytest.mark.newest
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_bits(
    uninterrupted: vitrail.Run, tmp_path: Path, number: signal.Signals, prepared_vitrail: list[str]
):
    folder, stopped = uninterrupted.folder.parent / "long", tmp_path / "stopped"
    options = [argument for name, value in LONG.items() for argument in (f"--{name.replace('_', '-')}", value)]
    command = command_line("train", folder, "--out", stopped, "--no-check", "--no-report", "--quiet", *options)
    if number != signal.SIGKILL:  # a prepared process passes other signals on
        command[:3] = prepared_vitrail
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(stopped.glob("checkpoint/step-*")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=250)
    assert process.returncode == (130 if number != signal.SIGKILL else -9)
    if number != signal.SIGKILL:
        assert f"--resume --out {stopped}" in errors
    run = vitrail.train(folder, out=stopped, resume=True, check=False, report=False)
    ours, theirs = ((each.folder / "classifier.safetensors").read_bytes() for each in (uninterrupted, run))
    assert ours == theirs
    assert run.result["test"] == uninterrupted.result["test"]
    assert len((stopped / "metrics.jsonl").read_text().splitlines()) == 12


def test_resume_rejects_another_recipe_and_a_folder_without_a_run(run: vitrail.Run, colors: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="another recipe"):
        vitrail.train(colors, out=run.folder, resume=True, lr=0.5)
    with pytest.raises(UsageError, match="another recipe"):
        vitrail.train(colors, out=run.folder, resume=True, recipe=Recipe(name="small", epochs=8))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a run"):
        vitrail.train(colors, out=tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_resume_rejects_an_edited_recipe_file(make_folder):
    folder = make_folder("own", 6)
    file = folder.parent / "mine.toml"
    file.write_text("epochs = 1\nwidth = 16\ndepth = 1\nheads = 2\nmlp_width = 16\n")
    run = vitrail.train(folder, recipe=file, out=file.parent / "run", lr=0.002)
    vitrail.train(folder, recipe=file, out=run.folder, resume=True, lr=0.002, workers=0)
    file.write_text(file.read_text().replace("epochs = 1", "epochs = 2"))
    with pytest.raises(UsageError, match="another recipe"):
        vitrail.train(folder, recipe=file, out=run.folder, resume=True, lr=0.002)
    vitrail.train(folder, out=run.folder, resume=True)


def test_a_run_with_many_unreadable_images_can_be_resumed(tmp_path: Path):
    names = [f"train/a class with a long name/{number:012}.jpeg" for number in range(30_000)]
    config = RunConfig("photos", "", Recipe(epochs=3), unreadable={"train": names})
    folder = create_run(config, "photos", tmp_path / "run")
    assert folder.load_config() == config
    document = json.loads(folder.config_file.read_text())
    folder.config_file.write_text(json.dumps({**document, "unreadable": names}))  # the format of the oldest runs
    assert folder.load_config().unreadable == dict.fromkeys(("all", "train", "validation", "test"), names)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_run_on_a_disk_without_hard_links(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "link", unsupported(number))
    assert create_run(CONFIG, "photos", tmp_path / "run").load_config() == CONFIG
    with pytest.raises(UsageError, match="is not empty"):
        create_run(CONFIG, "photos", tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_run_on_a_disk_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import fcntl

    folder = create_run(CONFIG, "photos", tmp_path / "run")
    monkeypatch.setattr(fcntl, "flock", unsupported(number))
    with folder.lock():
        assert folder.load_config() == CONFIG


def unsupported(number: int) -> Callable[..., object]:
    """A function that fails as an operation does that a file system lacks."""

    def fail(*arguments: object) -> object:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_damaged_checkpoint_is_skipped_and_the_one_before_resumes_to_the_same_bits(make_folder, capsys):
    folder = make_folder("flip", 8)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=3, report=False, **SMALL)
    whole = run.folder.joinpath("classifier.safetensors").read_bytes()
    newest, before = list_checkpoints(run.folder / "checkpoint")
    for damaged in (newest, before):
        flip_bit(damaged / "model.safetensors")
        (run.folder / "result.json").unlink()  # else the run is finished
        capsys.readouterr()
        vitrail.train(folder, out=run.folder, resume=True, report=False)
        log = capsys.readouterr().err
        assert f"warning: the checkpoint {newest} is damaged and not used: model.safetensors has changed" in log
        assert ("continuing after step 2" if damaged == newest else "starts from the beginning") in log
        assert run.folder.joinpath("classifier.safetensors").read_bytes() == whole
        assert find_newest_checkpoint(run.folder / "checkpoint") == newest
        if damaged == newest:
            flip_bit(newest / "model.safetensors")


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 600 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk]).returncode:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_too_small_is_reported_before_the_run(make_folder, small_disk: Path):
    with pytest.raises(VitrailError, match=r"run needs 5\.\d MB and .* has 0\.\d MB left"):
        vitrail.train(make_folder("few", 6), out=small_disk / "run", epochs=1, **SMALL)
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_during_the_run_keeps_the_last_checkpoint(
    make_folder, small_disk: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vitrail.runs.train.estimate_run_bytes", lambda vit, recipe: 0)
    data = make_folder("few", 6)
    options = {"epochs": 3, "width": 48, "depth": 2, "heads": 2, "mlp_width": 96, "ema_decay": None, "optimizer": "sgd"}
    with pytest.raises(VitrailError, match="cannot be written: No space left on device"):
        vitrail.train(data, out=small_disk / "run", **options)
    for file in small_disk.rglob("*.safetensors"):  # all files are complete
        load_file(file)
    assert find_newest_checkpoint(small_disk / "run" / "checkpoint") is not None
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    resumed = vitrail.train(data, out=small_disk / "run", resume=True)
    whole = vitrail.train(data, out=data.parent / "whole", **options)
    assert (resumed.folder / "classifier.safetensors").read_bytes() == whole.folder.joinpath(
        "classifier.safetensors"
    ).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_folder_is_reported_before_the_data_are_read(make_folder, small_disk: Path):
    data = make_folder("few", 6)
    (small_disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    (data / "red" / "0.png").write_text("would be found when the data are read")
    for out in (small_disk / "run", small_disk / "new" / "run"):
        with pytest.raises(VitrailError, match="cannot be written: Read-only file system"):
            vitrail.train(data, out=out, epochs=1, **SMALL)


def test_a_run_folder_that_vanishes_is_reported(make_folder, monkeypatch: pytest.MonkeyPatch):
    import shutil

    from vitrail.runs import epochs

    data = make_folder("few", 6)
    out = data.parent / "run"
    real = epochs.validate

    def vanish(run):
        shutil.rmtree(out)
        return real(run)

    monkeypatch.setattr(epochs, "validate", vanish)
    with pytest.raises(VitrailError, match="has vanished"):
        vitrail.train(data, out=out, epochs=2, **SMALL)
    assert not out.exists()


def test_resume_with_other_workers_and_changed_hardware_warns(make_folder, capsys):
    folder = make_folder("moved", 8)
    whole = vitrail.train(folder, out=folder.parent / "whole", epochs=3, **SMALL)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=3, report=False, **SMALL)
    (run.folder / "result.json").unlink()
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
    log = capsys.readouterr().err
    assert f"the number of threads was {threads}, is {threads + 1}" in log
    assert "not the same to the last bit" in log
    result = json.loads((run.folder / "result.json").read_text())
    assert result["test"]["images"] == whole.result["test"]["images"]


def test_a_run_stopped_at_the_last_step_of_an_epoch_can_be_resumed(make_folder, monkeypatch: pytest.MonkeyPatch):
    """With one step per epoch, every step is the last one."""
    from vitrail.interrupts import Interrupted
    from vitrail.runs import epochs

    folder = make_folder("short", 8)
    whole = vitrail.train(folder, out=folder.parent / "whole", epochs=4, batch_size=100, **SMALL)
    real = epochs.train_steps

    def stop_at_two(state, *arguments, **options):
        for step in real(state, *arguments, **options):
            if step.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    monkeypatch.setattr(epochs, "train_steps", stop_at_two)
    with pytest.raises(Interrupted, match="stopped at step 2"):
        vitrail.train(folder, out=folder.parent / "stopped", epochs=4, batch_size=100, **SMALL)
    monkeypatch.setattr(epochs, "train_steps", real)
    resumed = vitrail.train(folder, out=folder.parent / "stopped", resume=True)
    first, second = ((run.folder / "classifier.safetensors").read_bytes() for run in (whole, resumed))
    assert first == second
    assert len((resumed.folder / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.newest
def test_a_signal_during_the_last_validation_stops_the_run(make_folder, monkeypatch: pytest.MonkeyPatch):
    from vitrail.interrupts import Interrupted
    from vitrail.runs import epochs

    folder = make_folder("short", 8)
    real = epochs.validate

    def stop(run):
        os.kill(os.getpid(), signal.SIGINT)
        return real(run)

    monkeypatch.setattr(epochs, "validate", stop)
    with pytest.raises(Interrupted, match="stopped at step 1 and saved"):
        vitrail.train(folder, out=folder.parent / "run", epochs=1, batch_size=100, **SMALL)
    assert not (folder.parent / "run" / "result.json").exists()
    resumed = vitrail.train(folder, out=folder.parent / "run", resume=True, report=False)  # only the final scores
    assert resumed.result["test"]["images"]


def test_a_signal_during_a_collective_stops_at_the_next_step(make_folder, monkeypatch: pytest.MonkeyPatch):
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
    assert sent and not any(sent[0])


def test_without_checkpoints_a_finished_run_is_not_overwritten_and_an_unfinished_one_restarts(make_folder):
    import shutil

    folder = make_folder("few", 6)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=2, report=False, **SMALL)
    names = ("classifier.safetensors", "metrics.jsonl", "result.json")
    before = [(run.folder / name).read_bytes() for name in names]
    shutil.rmtree(run.folder / "checkpoint")
    (run.folder / "checkpoint").mkdir()
    assert vitrail.train(folder, out=run.folder, resume=True, report=False).result == run.result
    assert [(run.folder / name).read_bytes() for name in names] == before
    artifact = (run.folder / "classifier.safetensors").rename(run.folder / "moved.safetensors")
    with pytest.raises(UsageError, match="is finished and its checkpoints are gone"):
        vitrail.train(folder, out=run.folder, resume=True)
    artifact.rename(run.folder / "classifier.safetensors")
    (run.folder / "result.json").unlink()
    vitrail.train(folder, out=run.folder, resume=True, report=False)
    assert (run.folder / "classifier.safetensors").read_bytes() == before[0]
    assert find_newest_checkpoint(run.folder / "checkpoint") is not None


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to find the file of a handle")
def test_metrics_are_synced_before_the_checkpoint(make_folder, monkeypatch):
    """A killed process loses nothing that the kernel has, so a test can only see the order of the calls."""
    folder = make_folder("few", 6)
    real, synced = os.fsync, []

    def record(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", record)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=1, batch_size=100, report=False, **SMALL)
    names = [Path(path).relative_to(run.folder).as_posix() for path in synced if Path(path).is_relative_to(run.folder)]
    row, saved = names.index("metrics.jsonl"), names.index("checkpoint")
    assert row < saved and "." in names[row:saved]  # the file, the name of the file, then the checkpoint's own name


def test_the_resume_command_repeats_options(tmp_path: Path):
    from vitrail.runs.train import resume_options
    from vitrail.training.distributed import World

    single, sharded, two_machines = World(), World(size=2, local_size=2, is_sharded=True), World(size=4, local_size=2)
    assert resume_options(single, False, None) == resume_options(two_machines, False, None) == []
    options = resume_options(sharded, True, None)
    folder = create_run(RunConfig("my photos", "", Recipe(), options=tuple(options)), "photos", tmp_path / "run")
    assert folder.resume_command() == (
        f"vitrail train 'my photos' --resume --out {tmp_path / 'run'} --torch-files --processes 2 --fsdp"
    )
    document = json.loads(folder.config_file.read_text())
    del document["options"]  # as in older runs
    folder.config_file.write_text(json.dumps(document))
    assert folder.resume_command() == f"vitrail train 'my photos' --resume --out {tmp_path / 'run'}"


def test_fsdp_needs_several_processes(make_folder):
    folder = make_folder("few", 6)
    with pytest.raises(UsageError, match=r"--fsdp shards over several processes.*--processes N"):
        vitrail.train(folder, out=folder.parent / "run", epochs=1, fsdp=True, **SMALL)
    assert not (folder.parent / "run").exists()


def test_resume_rejects_changed_data(make_folder):
    folder = make_folder("grows", 8)
    out = folder.parent / "run"
    vitrail.train(folder, out=out, epochs=1, **SMALL)
    (folder / "red" / "new.png").write_bytes((folder / "red" / "0.png").read_bytes())
    before = (out / "classifier.safetensors").read_bytes()
    with pytest.raises(VitrailError, match="not those that .* was started on"):
        vitrail.train(folder, out=out, resume=True)
    assert (out / "classifier.safetensors").read_bytes() == before


@pytest.mark.timeout(600)
def test_runs_started_at_the_same_time_get_different_folders(make_folder, tmp_path: Path, prepared_vitrail: list[str]):
    folder = make_folder("photos", 6)
    model = ["--width", "32", "--depth", "1", "--heads", "2"]
    options = ["--epochs", "1", "--quiet", "--json", "--no-check", "--no-report", *model]
    command = [*prepared_vitrail, "train", str(folder), *options]
    processes = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {json.loads(process.communicate(timeout=500)[0])["run"] for process in processes}
    assert folders == {"runs/photos", "runs/photos-2", "runs/photos-3"}


def test_a_locked_run_cannot_be_resumed(make_folder):
    folder = make_folder("busy", 6)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=1, **SMALL)
    with RunFolder(run.folder).lock(), pytest.raises(UsageError, match="another process is training"):
        vitrail.train(folder, out=run.folder, resume=True)


def test_resume_accepts_the_same_position_and_image_size(make_folder):
    from vitrail.model.config import Rotary

    folder = make_folder("turned", 8)
    options = {"epochs": 1, "position": Rotary(base=10.0), "image_size": (16, 20), **SMALL}
    run = vitrail.train(folder, out=folder.parent / "run", **options)
    resumed = vitrail.train(folder, out=run.folder, resume=True, **options)
    assert resumed.classifier.vit.config.position == Rotary(base=10.0)
    with pytest.raises(UsageError, match="another recipe"):
        vitrail.train(folder, out=run.folder, resume=True, recipe="tutorial")


def test_half_a_line_of_metrics_is_dropped(make_folder):
    folder = make_folder("torn", 8)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=2, report=False, **SMALL)
    (run.folder / "result.json").unlink()
    lines = (run.folder / "metrics.jsonl").read_text()
    (run.folder / "metrics.jsonl").write_text(lines + '{"epoch": 3, "tra')
    vitrail.train(folder, out=run.folder, resume=True, report=False)
    assert (run.folder / "metrics.jsonl").read_text() == lines


def test_traces_of_a_run_killed_at_its_start_do_not_block_the_folder(make_folder, tmp_path: Path):
    folder = make_folder("photos", 10)
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / ".recipe-4711.json").write_text("{")
    run = vitrail.train(folder, out=tmp_path / "run", epochs=1, width=16, depth=1, heads=2, mlp_width=16)
    assert run.result["test"]["images"]
    (tmp_path / "other" / "checkpoint").mkdir(parents=True)
    (tmp_path / "other" / "checkpoint" / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="is not empty"):
        vitrail.train(folder, out=tmp_path / "other", epochs=1)


@pytest.mark.usefixtures("pictures")
def test_training_folds_and_sweeps_without_pictures(colors: Path, tmp_path: Path):
    options = dict(epochs=1, width=8, depth=1, heads=1, mlp_width=8, patch=8, workers=0, pictures=False, device="cpu")
    run = vitrail.train(colors, out=tmp_path / "run", report=False, **options)
    assert RunFolder(run.folder).load_config().options == ("--no-pictures",)  # of the command that resumes it
    vitrail.train(colors, out=tmp_path / "run", resume=True, report=False, pictures=False)
    vitrail.cross_validate(colors, 2, out=tmp_path / "folds", report=False, **options)
    sweep = vitrail.sweep(colors, vary={"lr": [1e-3, 2e-3]}, out=tmp_path / "sweep", processes=1, **options)
    assert [row["state"] for row in sweep.result["rows"]] == ["complete"] * 2
    assert not list(tmp_path.rglob("*.png"))
    vitrail.train(colors, out=tmp_path / "run", resume=True, report=False)
    assert {path.stem for path in run.folder.glob("*.png")} == {"confusion", "attention"}  # those of a finished run
