"""Files of format 1, which an earlier version wrote, still load, answer the same and can be resumed."""

import json
import os
import shutil
from pathlib import Path

import pytest

import vitrail
from vitrail.cli.main import main
from vitrail.training.recipes import Recipe
from vitrail.weights.artifact import FORMAT, read_safetensors

pytestmark = pytest.mark.newest

OLD = Path(__file__).parent / "format1"
DIGITS = Path(__file__).parent.parent / "examples" / "digits"
PREDICTIONS = json.loads((OLD / "predictions.json").read_text())


@pytest.mark.parametrize("name", PREDICTIONS)
def test_old_models_return_the_same_probabilities(name: str):
    classifier = vitrail.load_any(OLD / name)
    for file, expected in PREDICTIONS[name].items():
        predictions = {each.label: each.probability for each in classifier.predict(DIGITS / file, top=10)}
        assert predictions == pytest.approx(expected, abs=1e-6)


def test_an_old_artifact_is_written_again_in_todays_format(tmp_path: Path):
    old = vitrail.load(OLD / "run")
    document, _ = read_safetensors(OLD / "run" / "classifier.safetensors")
    assert document is not None and document["format"] == 1
    assert document["origin"]["recipe"]["batch"] == old.origin["recipe"]["batch_size"]
    assert document["origin"]["recipe"]["clip"] == old.origin["recipe"]["max_grad_norm"]
    old.save(tmp_path / "new.safetensors")
    document, _ = read_safetensors(tmp_path / "new.safetensors")
    assert document is not None and document["format"] == FORMAT
    assert vitrail.load(tmp_path / "new.safetensors").origin == old.origin


def test_an_old_runs_recipe_is_read():
    recipe = vitrail.load(OLD / "run").origin["recipe"]
    assert set(recipe) <= set(Recipe().to_json()), "every old field has a name of today"


def test_an_old_run_is_scored_on_the_images_it_kept_back(capsys):
    assert main(["evaluate", str(OLD / "run"), "digits", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    before = json.loads((OLD / "run" / "result.json").read_text())["test"]
    assert scores["images"] == before["images"]
    assert scores["accuracy"] == pytest.approx(before["accuracy"], abs=1e-9)


def test_an_old_run_is_resumed(tmp_path: Path):
    shutil.copytree(OLD / "stopped", tmp_path / "run")
    run = vitrail.train("digits", out=tmp_path / "run", resume=True, report=False)
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3]
    assert run.result["test"]["images"] == 359


def test_an_old_sweep_is_resumed(tmp_path: Path):
    shutil.copytree(OLD / "sweep", tmp_path / "sweep")
    sweep = vitrail.sweep("digits", out=tmp_path / "sweep", resume=True, trials=3)
    assert sweep.result["trials"] == 3


def test_an_old_prediction_folder_is_finished(tmp_path: Path, monkeypatch, capsys):
    """The part is missing, as after a kill; its plan allows only the same model, images and options."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DIGITS, "digits")
    for image in Path("digits").iterdir():
        os.utime(image, (1_700_000_000, 1_700_000_000))  # the plan records modification times
    shutil.copytree(OLD / "predicted", "predicted")
    for name in ("part-000000.csv", "_vitrail/part-000000.json", "_vitrail/slice-1-of-1", "_summary.json"):
        Path("predicted", name).unlink()
    model = str(OLD / "run" / "classifier.safetensors")
    assert main(["predict", model, "digits", "--out", "predicted", "--format", "csv", "--resume", "--json"]) == 0
    rows = [line.split(",") for line in Path("predicted/part-000000.csv").read_text().splitlines()]
    expected = [line.split(",") for line in (OLD / "predicted" / "part-000000.csv").read_text().splitlines()]
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
