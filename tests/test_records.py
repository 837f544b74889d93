"""The records of docs/records.md: their files, their table, and the figures that the benchmarks report."""

import json
import re
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
    ],
)
def test_a_record_outside_the_rules_is_refused(change: dict[str, object], message: str, tmp_path: Path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ValueError, match=message):
        records.read_record(path)


def test_results_of_the_benchmark_become_a_record(tmp_path: Path):
    document = {
        "recipe": "runs/mine.toml",
        "processes": 1,
        "machine": {"cpu": "a CPU", "torch": "2.15"},
        "runs": [{"ours": {"seed": seed, "accuracy": 0.76, "training": 99.5, "epochs": 4}} for seed in range(5)],
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(records.make_record(document, 0.755, "two CPU cores")))
    assert records.find_means(records.read_record(path)) == (0.76, 99.5)
    assert records.read_record(path)["recipe"] == "mine.toml"
