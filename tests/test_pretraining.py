"""Masked autoencoders: the loss and the forward pass of the paper, and whole pre-trainings."""

import os
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from conftest import fill
from test_distributed import process_environment
from vitrail.cli import pretrain as pretrain_verb
from vitrail.cli import train as train_verb
from vitrail.cli.answer import ANSWER_FILE, Answer
from vitrail.errors import UsageError, VitrailError
from vitrail.model.config import Rotary, ViTConfig
from vitrail.model.vit import ViT
from vitrail.pretraining import pretrain as pretraining
from vitrail.pretraining.masked_autoencoder import (
    MaskedAutoencoder,
    draw_visible,
    patchify,
    reconstruction_loss,
    unpatchify,
)
from vitrail.pretraining.picture import reconstruct
from vitrail.pretraining.settings import MAE_RECIPE, MaskSettings
from vitrail.training.distributed import SINGLE_PROCESS, PeerLost
from vitrail.training.step_stats import TrainingDiverged

CONFIG = ViTConfig(width=16, depth=2, heads=2, mlp_width=32, patch=4, image_size=(16, 24), prefix_tokens=2)
TINY = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 32, "patch": 4, "precision": "fp32", "workers": 0}
SETTINGS = MaskSettings(decoder_width=16, decoder_depth=1, decoder_heads=2, probe_every=2)
OPTIONS = {**TINY, "epochs": 3, "batch_size": 8, "settings": SETTINGS}


def make_autoencoder(config: ViTConfig = CONFIG) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(ViT(config), width=8, depth=1, heads=2)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 3, 16, 24)


def test_the_loss_is_that_of_the_paper(images: torch.Tensor):
    """Written out pixel by pixel, in float64."""
    visible = draw_visible(np.arange(3), 24, 0.75, "test")
    predicted = torch.randn(3, 24, 48)
    total, masked = 0.0, 0
    for b in range(3):
        for patch in range(24):
            if patch in visible[b].tolist():
                continue
            row, column = divmod(patch, 6)
            block = images[b, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].double().numpy()
            target = block.transpose(1, 2, 0).reshape(-1)
            target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            total += ((predicted[b, patch].double().numpy() - target) ** 2).mean()
            masked += 1
    assert masked == 3 * 18
    assert reconstruction_loss(predicted, images, visible, 4).item() == pytest.approx(total / masked, abs=1e-6)


def test_patches_are_put_together_again(images: torch.Tensor):
    assert torch.equal(unpatchify(patchify(images, 4), 4, (4, 6)), images)


@pytest.mark.parametrize("config", [CONFIG, ViTConfig(**{**vars(CONFIG), "position": Rotary()})])
def test_the_encoder_sees_visible_patches_alone(config: ViTConfig, images: torch.Tensor):
    model, visible = make_autoencoder(config).eval(), draw_visible(np.arange(3), 24, 0.75, "test")
    lengths = []
    for block in model.encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    predicted = model(images, visible)
    assert predicted.shape == (3, 24, 48) and lengths == [2 + 6, 2 + 6]
    patches = patchify(images, 4)
    is_visible = torch.zeros(3, 24, 1).scatter(1, visible[..., None], 1.0).bool()
    changed = unpatchify(torch.where(is_visible, patches, torch.randn_like(patches)), 4, (4, 6))
    torch.testing.assert_close(model(changed, visible), predicted)
    torch.testing.assert_close(model(images, visible.flip(1)), predicted, atol=1e-5, rtol=1e-4)  # a set of patches


def test_without_a_mask_the_encoder_is_the_ordinary_vit(images: torch.Tensor):
    model = make_autoencoder().eval()
    seen = []
    model.decoder.embed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(images, torch.arange(24).expand(3, -1))
    torch.testing.assert_close(seen[0], model.encoder.tokens(images))


def test_a_mask_depends_on_the_image_and_the_key_alone():
    together, alone = draw_visible(np.array([5, 2, 9]), 16, 0.75, "a", 1), draw_visible(np.array([2]), 16, 0.75, "a", 1)
    assert torch.equal(together[1], alone[0]) and together.shape == (3, 4)
    assert not torch.equal(alone, draw_visible(np.array([2]), 16, 0.75, "a", 2))
    many = draw_visible(np.arange(2000), 16, 0.75, "b")
    counts = torch.bincount(many.flatten(), minlength=16) / 2000
    assert counts.sub(0.25).abs().max() < 0.05 and all(len(set(row)) == 4 for row in many.tolist())


def test_reconstructions_keep_visible_patches(images: torch.Tensor):
    preprocess = vitrail.Preprocess(image_size=(16, 24), mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    shown, gray, rebuilt = reconstruct(make_autoencoder(), pixels, preprocess, 0.5, np.arange(2))
    torch.testing.assert_close(shown, pixels / 255, atol=1e-5, rtol=1e-5)
    is_kept = (gray - shown).abs() < 1e-5
    assert 0.4 < is_kept.float().mean() < 0.6
    torch.testing.assert_close(rebuilt[is_kept], shown[is_kept], atol=1e-5, rtol=1e-5)


# whole pre-trainings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("mae") / "photos", {"train": 12, "test": 4}, ("red", "green"), (16, 16))


@pytest.fixture(scope="module")
def whole(data: Path) -> pretraining.Pretraining:
    return pretraining.pretrain(data / "train", out=data.parent / "mae", probe_data=data, **OPTIONS)


def read_results(folder: Path) -> tuple[bytes, list[dict]]:
    rows = pretraining.load_rows(folder)
    for row in rows:
        del row["seconds"]
    return (folder / "classifier.safetensors").read_bytes(), rows


def test_a_pretraining_writes_an_encoder_that_training_starts_from(whole, data: Path, tmp_path: Path):
    rows = pretraining.load_rows(whole.folder)
    assert [row["step"] for row in rows] == [3, 6, 9] and rows[2]["loss"] < rows[0]["loss"]
    assert [row["epoch"] for row in rows if "linear_accuracy" in row] == [2, 3]
    assert (whole.folder / "reconstructions.png").read_bytes().startswith(b"\x89PNG")
    assert whole.classifier.classes == () and whole.classifier.origin["pretraining"]["mask"] == 0.75
    run = vitrail.train(data, model=whole.folder, epochs=1, out=tmp_path / "run", report=False, check=False)
    assert run.classifier.classes == ("green", "red") and run.classifier.vit.config.width == 16


def test_a_killed_pretraining_resumes_to_the_same_bits(whole, data: Path, tmp_path: Path):
    out = tmp_path / "killed"
    for last_step in (2, 4):  # within the first and the second epoch
        child = os.fork()
        if not child:
            steps, take_step = 0, pretraining.take_step

            def count_and_die(*arguments, last_step=last_step, take_step=take_step):
                nonlocal steps
                if steps == last_step:
                    os.kill(os.getpid(), signal.SIGKILL)
                steps += 1
                return take_step(*arguments)

            pretraining.CHECKPOINT_INTERVAL_S, pretraining.take_step = 0.0, count_and_die
            try:
                pretraining.pretrain(data / "train", out=out, probe_data=data, resume=True, **OPTIONS)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    pretraining.pretrain(data / "train", out=out, resume=True)
    assert read_results(out) == read_results(whole.folder)
    pretraining.pretrain(data / "train", out=out, resume=True)  # it is finished
    assert read_results(out) == read_results(whole.folder)


def test_a_step_that_is_not_finite_is_never_saved(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    take_step = pretraining.take_step

    def break_step_3(training, batch):  # the last one of the first epoch
        if training.state.step == 2:
            with torch.no_grad():
                training.model.encoder.blocks[0].norm1.weight.fill_(torch.nan)
        return take_step(training, batch)

    monkeypatch.setattr(pretraining, "take_step", break_step_3)
    monkeypatch.setattr(pretraining, "CHECKPOINT_INTERVAL_S", -1.0)  # a checkpoint after each step within an epoch
    with pytest.raises(TrainingDiverged, match="at step 3: loss nan"):
        pretraining.pretrain(data / "train", out=tmp_path / "run", **OPTIONS)
    assert max(path.name[5:13] for path in (tmp_path / "run" / "checkpoint").iterdir()) == "00000002"


@pytest.mark.scale
@pytest.mark.timeout(300)
def test_two_processes_train_as_one(whole, data: Path, tmp_path: Path):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, **vars(SETTINGS)}.items()]
    options += ["--epochs=3", "--batch-size=8", "--processes=2", f"--out={tmp_path / 'two'}"]
    command = [sys.executable, "-m", "vitrail", "pretrain", str(data / "train"), *options]
    done = subprocess.run(command, env=process_environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    two, one = pretraining.load_rows(tmp_path / "two"), pretraining.load_rows(whole.folder)
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], abs=2e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_get_the_channels_of_the_weights(channels: int, data: Path, tmp_path: Path):
    gray = fill(tmp_path / "gray", 8, ("light", "dark"), (16, 16))
    for path in gray.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    config = ViTConfig(width=16, depth=1, heads=2, mlp_width=32, patch=4, image_size=16, channels=channels)
    preprocess = vitrail.Preprocess(image_size=(16, 16), mean=(0.5,) * channels, std=(0.5,) * channels)
    weights = vitrail.Classifier(ViT(config), tuple(map(str, range(config.classes))), preprocess)
    weights.save(tmp_path / "weights.safetensors")
    options = {"epochs": 1, "batch_size": 8, "precision": "fp32", "workers": 0, "settings": SETTINGS}
    for i, images in enumerate((data / "train", gray)):
        done = pretraining.pretrain(images, out=tmp_path / str(i), model=tmp_path / "weights.safetensors", **options)
        assert done.classifier.vit.config.channels == channels


@pytest.mark.parametrize("train", ["train", "Training"])
def test_test_images_are_left_out(train: str, data: Path, tmp_path: Path):
    shutil.copytree(data / "train", tmp_path / "photos" / train)
    shutil.copytree(data / "test", tmp_path / "photos" / "Testing")
    splits = pretraining.open_images(tmp_path / "photos", MAE_RECIPE, SINGLE_PROCESS)
    assert len(splits.train) == 22  # and two for validation


def test_wrong_requests_give_one_sentence(whole, data: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="has a pre-training already"):
        pretraining.pretrain(data / "train", out=whole.folder)
    with pytest.raises(UsageError, match="started with other settings"):
        pretraining.pretrain(data / "train", out=whole.folder, resume=True, epochs=9)
    with pytest.raises(UsageError, match="started with other settings"):
        pretraining.pretrain(data / "train", out=whole.folder, resume=True, model=whole.folder)
    with pytest.raises(UsageError, match="started with other settings"):
        pretraining.pretrain(data / "train", out=whole.folder, resume=True, probe_data=data / "train")
    with pytest.raises(VitrailError, match="the images are not those"):
        pretraining.pretrain(data / "test", out=whole.folder, resume=True)
    with pytest.raises(UsageError, match="pool 'map' has weights"):
        pretraining.pretrain(data / "train", out=tmp_path / "new", pool="map", prefix_tokens=0, **OPTIONS)
    with pytest.raises(UsageError, match="mask"):
        MaskSettings(mask=1.0)
    assert not (tmp_path / "new").exists()


VERBS = [(train_verb, "train_and_describe"), (pretrain_verb, "pretrain_and_describe")]
VERB_OPTIONS = ("processes", "folds", "final", "engine", "ray_address", "min_processes", "restarts")


@pytest.mark.parametrize(("verb", "work"), VERBS)
def test_of_the_processes_of_torchrun_only_the_first_answers(monkeypatch: pytest.MonkeyPatch, verb: Any, work: str):
    monkeypatch.setattr(verb, work, lambda _: Answer({}, []))
    for rank, answers in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert (verb.run(Namespace(**dict.fromkeys(VERB_OPTIONS))) is not None) == answers


@pytest.mark.parametrize(("verb", "work"), VERBS)
def test_a_process_that_lost_another_leaves_no_answer(
    monkeypatch: pytest.MonkeyPatch, verb: Any, work: str, tmp_path: Path
):
    def lose(_: Namespace) -> Answer:
        raise PeerLost("another process of the group has ended")

    monkeypatch.setattr(verb, work, lose)
    monkeypatch.setattr("ctypes.CDLL", MagicMock())  # else the tests would end with their parent
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(ANSWER_FILE, str(tmp_path / "answer.json"))
    with pytest.raises(SystemExit, match="1"):
        verb.run(Namespace(**dict.fromkeys(VERB_OPTIONS)))
    assert not (tmp_path / "answer.json").exists(), "the launcher restarts the group"
