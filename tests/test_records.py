"""The records of docs/records.md: their files, their table, and the figures that the benchmarks report."""

import json
import re
import sys
from pathlib import Path

import pytest
from benchmarks import records

DOCS = Path(__file__).parent.parent / "docs"
LOG = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
GOOD = json.loads((records.RECORDS / "speedrun-75.json").read_text())


def test_the_table_is_that_of_the_files():
    text = (DOCS / "records.md").read_text(encoding="utf-8")
    table = text.split("<!-- records -->\n")[1].split("\n<!-- /records -->")[0]
    assert table == records.format_records(records.load_records())
    assert table.count("open: not measured") == 4


def test_the_figures_are_those_of_the_benchmarks():
    for record in records.load_records():
        section = LOG.split(f"**`{record['recipe']}`**")[1].split("\n**`")[0]
        for run in record["runs"]:
            row = f"| {run['seed']} | {run['accuracy']:.2%} | {run['training']} s |"
            sentence = f"**{run['accuracy']:.2%}** ({{}}) after {run['training']:,} s of training"
            pattern = re.escape(sentence).replace(r"\{\}", "[^)]*")
            assert row in section or re.search(pattern, section), (record["recipe"], run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 0.77}, "no such target"),
        ({"target": 0.9}, "below the target"),
        ({"runs": GOOD["runs"][1:]}, "the seeds must be"),
        ({"runs": []}, "the seeds must be"),
        ({"teacher": "none"}, "the fields must be"),
        ({"processes": "2"}, "processes has the wrong type"),
        ({"recipe": "missing.toml"}, "put the recipe beside the record"),
    ],
)
def test_a_record_outside_the_rules_is_refused(change: dict[str, object], message: str, tmp_path: Path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ValueError, match=message):
        records.read_record(path)


def test_results_of_the_benchmark_become_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    document = {
        "recipe": "runs/mine.toml",
        "processes": 1,
        "machine": {"cpu": "a CPU", "torch": "2.15"},
        "runs": [{"ours": {"seed": seed, "accuracy": 0.76, "training": 99.5, "epochs": 4}} for seed in range(5)],
    }
    (tmp_path / "measured.json").write_text(json.dumps(document))
    folder = tmp_path / "records"
    folder.mkdir()
    monkeypatch.setattr(records, "RECORDS", folder)

    def add(target: str) -> None:
        command = ["records", "--add", str(tmp_path / "measured.json"), "--name", "mine", "--target", target]
        monkeypatch.setattr(sys, "argv", [*command, "--hardware", "two CPU cores"])
        records.main()

    with pytest.raises(ValueError, match="put the recipe beside the record"):
        add("0.755")
    (folder / "mine.toml").write_text("width = 16\ndepth = 1\nheads = 2\n")
    with pytest.raises(ValueError, match="below the target"):
        add("0.9")
    assert not list(folder.glob("*.json"))  # a refused record is not written
    add("0.755")
    record = records.read_record(folder / "mine.json")
    assert records.find_means(record) == (0.76, 99.5) and record["recipe"] == "mine.toml"
