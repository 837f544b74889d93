"""Sweeps of several labels, numbers and grades: each is compared by the metric of its task, errors by the lowest."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrail
from document_types import check_document
from test_sweep import TINY, make_config
from vitrail import documents
from vitrail.cli.sweep import describe_result
from vitrail.evaluation.outcomes import VALIDATION_SCORES
from vitrail.runs.folder import RunFolder
from vitrail.sweeps.config import config_from_json
from vitrail.sweeps.folder import SweepFolder
from vitrail.sweeps.metrics import TASK_METRICS, TITLES, choose_metric, choose_shown_score
from vitrail.sweeps.plots import draw_parallel, draw_slices
from vitrail.sweeps.results import count_indistinguishable, score_key
from vitrail.sweeps.study import open_study
from vitrail.tasks import REGRESSION, SINGLE_LABEL


def test_every_task_has_metrics_that_each_validation_measures():
    assert TASK_METRICS.keys() == VALIDATION_SCORES.keys()
    for task, row in TASK_METRICS.items():
        assert set(row.metrics) == set(VALIDATION_SCORES[task])
        assert {choose_shown_score(task, metric) for metric in row.metrics} <= set(row.scores)
        assert set(row.metrics) <= set(TITLES)
    assert {choose_metric(REGRESSION, None, count) for count in (1, 2)} == {"mae", "r2"}


def test_errors_are_minimized(tmp_path: Path):
    """The trial with the lowest error is the best, and the others are told from it by the upper end of its interval."""
    config = make_config(tmp_path, {"lr": "1e-3..1e-1"}, task=REGRESSION, metric="mae")
    assert config.direction == "minimize" and config.shown_score == "mae"
    rows = [
        {"state": "complete", "mae": mae, "mae_interval": [mae - 0.2, mae + 0.2], "loss": 1.0, "trial": i}
        for i, mae in enumerate((0.5, 0.3, 0.45, 0.6))
    ]
    rows.sort(key=lambda row: score_key(config, row))
    assert [row["mae"] for row in rows] == [0.3, 0.45, 0.5, 0.6]
    assert count_indistinguishable(rows, "mae") == 2
    again = config_from_json(json.loads(json.dumps(config.to_json())))
    assert again == config


def test_a_sweep_of_format_2_has_one_class_per_image(tmp_path: Path):
    document = make_config(tmp_path, {"lr": "1e-3..1e-1"}).to_json()
    del document["task"]
    assert config_from_json({**document, "format": 2}).task == SINGLE_LABEL
    with pytest.raises(ValueError, match="format 4 is not known"):
        config_from_json({**document, "format": 4})


def test_the_rows_and_the_study_of_a_sweep_of_numbers_agree(tmp_path: Path):
    """A pruned trial has the error of its best epoch, without an interval."""
    random = np.random.default_rng(0)
    lines = ["path,level"]
    for i in range(40):
        level = float(random.uniform(0, 200))
        Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(tmp_path / f"{i:02}.png")
        lines.append(f"{i:02}.png,{level:.2f}")
    (tmp_path / "levels.csv").write_text("\n".join(lines))
    out = tmp_path / "sweep"
    options = {**TINY, "epochs": 4, "validation_fraction": 0.25}
    values = {"lr": [3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-8, 1e-9]}
    sweep = vitrail.sweep(tmp_path / "levels.csv", vary=values, out=out, check=False, pictures=False, **options)
    assert sweep.result["metric"] == "validation mae" and sweep.result["score"] == "mae"
    rows: list[dict[str, Any]] = [{**row} for row in sweep.result["rows"]]
    complete = [row for row in rows if row["state"] == "complete"]
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned and [row["mae"] for row in complete] == sorted(row["mae"] for row in complete)
    for row in complete:
        validation = json.loads(RunFolder(out / row["run"]).result_file.read_text())["validation"]
        assert all(row[name] == validation[name] for name in ("mae", "mae_interval", "rmse", "r2", "loss"))
    for row in pruned:
        epochs = RunFolder(out / row["run"]).load_metrics()
        assert row["mae"] in [each["validation_mae"] for each in epochs] and row["mae_interval"] is None
    with (out / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["mae"]) for line in table] == [row["mae"] for row in rows]
    config = SweepFolder(out).load_config()
    with open_study(SweepFolder(out), config) as study:
        best = study.optuna_study.best_trial
    assert best.number == rows[0]["trial"] and best.value == rows[0]["mae"]
    shown = "\n".join(describe_result(sweep.result, out))
    assert f"best on validation: trial {best.number}, mean absolute error" in shown
    for draw in (draw_slices, draw_parallel):
        draw(config.space, rows, "mae", tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 5000
    check_document(sweep.to_json(), documents.SweepResult)
