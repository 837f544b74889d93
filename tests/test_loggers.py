"""TensorBoard, Weights & Biases and MLflow: what they log offline, read back by their own libraries."""

import json
import socket
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import vitrail
from conftest import fill
from vitrail.callbacks import MLflow, TensorBoard, WandB
from vitrail.callbacks.base import CallbackError
from vitrail.callbacks.metric_logger import final_scores
from vitrail.cli.main import main
from vitrail.errors import UsageError
from vitrail.runs.folder import RunFolder

TINY = {
    "epochs": 3, "batch_size": 16, "width": 16, "depth": 1, "heads": 2, "mlp_width": 16, "workers": 0,
    "report": False, "check": False,
}  # fmt: skip
LIBRARIES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(
        tmp_path_factory.mktemp("data") / "photos", {"train": 16, "val": 4, "test": 4}, ("red", "blue"), (16, 16)
    )


def fail_in_epoch_3():
    return SimpleNamespace(on_epoch_start=lambda state: 1 / (3 - state.epoch))


def train_with_a_break(data: Path, out: Path, make_logger) -> vitrail.Run:
    """Trains with the logger until an error in epoch 3, then resumes the run with a new one."""
    with pytest.raises(CallbackError, match="SimpleNamespace failed in on_epoch_start"):
        vitrail.train(data, out=out, logger=make_logger(), callbacks=[fail_in_epoch_3()], **TINY)
    return vitrail.train(data, out=out, resume=True, logger=make_logger(), report=False, check=False)


def expected_values(run: vitrail.Run) -> dict[str, list[tuple[int, float]]]:
    """Returns the values by name, each with its step: the metrics of every epoch and the final scores."""
    values: dict[str, list[tuple[int, float]]] = {}
    for row in RunFolder(run.folder).load_metrics():
        for name in sorted(set(row) - {"epoch", "step"}):
            values.setdefault(name, []).append((row["step"], row[name]))
    return values | {name: [(6, value)] for name, value in final_scores("test", run.result["test"]).items()}


def test_final_scores_have_the_ends_of_their_intervals():
    scores = {
        "accuracy": 0.5,
        "accuracy_interval": [0.25, 0.75],
        "images": 8,
        "top5_interval": None,
    }
    assert final_scores("test", scores) == {
        "final_test_accuracy": 0.5, "final_test_accuracy_low": 0.25, "final_test_accuracy_high": 0.75,
        "final_test_images": 8.0,
    }  # fmt: skip


def test_tensorboard_has_every_value_once_after_a_resume(data: Path, tmp_path: Path, pictures):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train_with_a_break(data, tmp_path / "run", TensorBoard)
    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    logged = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    expected = expected_values(run)
    assert logged.keys() == expected.keys()
    for name, values in expected.items():
        assert logged[name] == [(step, pytest.approx(value)) for step, value in values], name
    assert set(events.Tags()["images"]) == {"curves", "confusion", "attention"}
    (text,) = {event.tensor_proto.string_val[0].decode() for event in events.Tensors("recipe/text_summary")}
    assert "| epochs | 3 |" in text and "| data | photos |" in text and str(tmp_path) not in text


def test_tensorboard_with_a_recipe_on_features_has_the_final_scores(data: Path, tmp_path: Path, run: vitrail.Run):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    linear = vitrail.train(
        data,
        model=run.classifier,
        recipe="linear",
        out=tmp_path / "run",
        logger="tensorboard",
        report=False,
        check=False,
    )
    events = EventAccumulator(str(linear.folder / "tensorboard")).Reload()
    (accuracy,) = events.Scalars("final_test_accuracy")
    assert accuracy.value == pytest.approx(linear.result["test"]["accuracy"])


def test_wandb_offline_writes_its_folder_with_every_value(data: Path, tmp_path: Path, pictures):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    run = train_with_a_break(data, tmp_path / "run", lambda: WandB(mode="offline"))
    wandb.teardown()  # ends its service process
    parts = sorted((run.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(parts) == 2 and len({part.name for part in parts}) == 1  # one ID
    history, config, pictures = read_wandb(parts)
    logged: dict[str, list[tuple[int, float]]] = {}
    for row in history:
        for name in row.keys() & expected_values(run).keys():
            logged.setdefault(name, []).append((row["_step"], row[name]))
    for name, values in expected_values(run).items():
        assert logged[name] == [(step, pytest.approx(value)) for step, value in values], name
    assert config["epochs"] == 3 and config["data"] == "photos"
    assert pictures == {"curves", "confusion", "attention"}
    for part in parts:
        content = part.read_bytes()
        for private in (str(tmp_path), str(data), sys.executable, socket.gethostname()):
            assert private.encode() not in content, private


def read_wandb(parts: list[Path]):
    """Returns the rows, the config and the names of the pictures in the files of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    history, config, pictures = [], {}, set()
    for part in parts:
        for content in read_log(part.read_bytes()):
            record = Record.FromString(content)
            config |= {update.key: json.loads(update.value_json) for update in record.run.config.update}
            if record.history.item:
                history.append({item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
                pictures |= {item.nested_key[0] for item in record.history.item if "path" in item.nested_key}
                pictures |= {name for name, value in history[-1].items() if isinstance(value, dict)}
    return history, config, pictures


def read_log(content: bytes):
    """Yields the records of a file in LevelDB's log format: blocks of 32 KiB, with parts of records in them."""
    position, parts = 7, []  # after wandb's own header
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        _, length, kind = struct.unpack_from("<IHB", content, position) if left >= 7 else (0, 0, 0)
        if kind == 0:  # the rest of the block is empty
            position += left
            continue
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield b"".join(parts)
            parts = []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, about MLflow's tables
def test_mlflow_is_read_back_by_its_client(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.chdir(tmp_path)  # pictures go to the folder mlruns
    address = "sqlite:///mlflow.db"
    run = train_with_a_break(data, tmp_path / "run", lambda: MLflow("pets", tracking_uri=address))
    client = mlflow.MlflowClient(tracking_uri=address)
    (logged,) = client.search_runs([client.get_experiment_by_name("pets").experiment_id])
    assert logged.info.status == "FINISHED" and logged.info.run_name == "run"
    assert logged.data.params["epochs"] == "3" and logged.data.params["data"] == "photos"
    for name, values in expected_values(run).items():
        history = [(each.step, each.value) for each in client.get_metric_history(logged.info.run_id, name)]
        assert history == [(step, pytest.approx(value)) for step, value in values], name
    assert {file.path for file in client.list_artifacts(logged.info.run_id)} == {
        "attention.png", "confusion.png", "curves.png",
    }  # fmt: skip
    sent = json.dumps([logged.data.params, logged.data.tags])
    assert str(tmp_path) not in sent and "mlflow.source.name" not in sent


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_one_sentence_with_its_extra_before_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)  # importing it fails
    assert main(["train", "nowhere", "--logger", name, "--out", str(tmp_path / "run")]) == 2
    error, hint = capsys.readouterr().err.strip().splitlines()
    assert error.endswith(" is not installed") and hint.startswith("hint: pip install") and f"[{name}]" in hint
    assert not (tmp_path / "run").exists()


def test_an_unknown_logger_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="there is no logger 'wanbd'.*did you mean wandb"):
        vitrail.train(tmp_path / "nowhere", logger="wanbd")
