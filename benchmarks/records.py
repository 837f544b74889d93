"""Records for plain ViTs trained from nothing on CIFAR-10: docs/records/NAME.json, and their table in docs/records.md.

    python -m benchmarks.records --write                                        # writes the table again
    python -m benchmarks.records --add time_to_accuracy.json --target 0.755 --hardware "two CPU cores" --name NAME

`--add` makes a record of the results of `python -m benchmarks.time_to_accuracy`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.document import replace_table
from vitrail.files import write_json
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.training.recipes import RECIPES, find_recipe

DOCS = Path(__file__).parent.parent / "docs"
RECORDS = DOCS / "records"
TARGETS = (0.755, 0.9, 0.94)
HARDWARE = ("two CPU cores", "one GPU")
MIN_SEEDS = 5  # with fewer, a record is unconfirmed
FIELDS = {"target": float, "hardware": str, "date": str, "recipe": str, "processes": int, "machine": str, "runs": list}
RUN_FIELDS = {"seed": int, "accuracy": float, "training": int | float}


def load_records() -> list[dict[str, Any]]:
    """Returns the records, checked, by hardware, target and time."""
    records = [read_record(path) for path in sorted(RECORDS.glob("*.json"))]
    return sorted(records, key=lambda each: (each["hardware"], each["target"], find_means(each)[1]))


def read_record(path: Path) -> dict[str, Any]:
    """Returns a checked record; raises `ValueError`."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    check_record(record, path.name)
    return record


def check_record(record: dict[str, Any], name: str) -> None:
    """Raises `ValueError` if this is no record, its recipe is missing, or its mean accuracy is below its target."""
    check_fields(record, FIELDS, name)
    for run in record["runs"]:
        check_fields(run, RUN_FIELDS, name)
    if record["target"] not in TARGETS or record["hardware"] not in HARDWARE:
        raise ValueError(f"{name}: there is no such target or hardware")
    if record["recipe"] not in RECIPES and not (RECORDS / record["recipe"]).is_file():
        raise ValueError(f"{name}: there is no recipe {record['recipe']}; put the recipe beside the record")
    if [run["seed"] for run in record["runs"]] != list(range(len(record["runs"]))) or not record["runs"]:
        raise ValueError(f"{name}: the seeds must be 0, 1, 2, ..., all of them")
    if find_means(record)[0] < record["target"]:
        raise ValueError(f"{name}: the mean accuracy is below the target")


def check_fields(values: Any, fields: dict[str, Any], name: str) -> None:
    """Raises `ValueError` unless a value is a dict of exactly these fields and types."""
    if not isinstance(values, dict) or set(values) != set(fields):
        raise ValueError(f"{name}: the fields must be {', '.join(fields)}")
    for field, kind in fields.items():
        if not isinstance(values[field], kind):
            raise ValueError(f"{name}: {field} has the wrong type")


def find_means(record: dict[str, Any]) -> tuple[float, float]:
    """Returns the mean accuracy and the mean training time in seconds."""
    return tuple(statistics.mean(run[field] for run in record["runs"]) for field in ("accuracy", "training"))  # type: ignore[return-value]


def count_parameters(record: dict[str, Any]) -> int:
    """Returns the number of weights of the recipe's model."""
    recipe = find_recipe(record["recipe"] if record["recipe"] in RECIPES else str(RECORDS / record["recipe"]))
    vit = ViT(ViTConfig(**{**recipe.model, "classes": 10}))
    return sum(parameter.numel() for parameter in vit.parameters())


def format_records(records: list[dict[str, Any]]) -> str:
    """Returns the table of the records."""
    lines = ["| goal | hardware | recipe | parameters | seeds | mean test accuracy | training | state |"]
    lines += ["| --- | --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for hardware in HARDWARE:
        for target in TARGETS:
            chosen = [each for each in records if (each["hardware"], each["target"]) == (hardware, target)]
            lines += [format_record(each) for each in chosen]
            if not chosen:
                lines.append(f"| {target:.1%} | {hardware} | - | - | - | - | - | open: not measured |")
    return "\n".join(lines)


def format_record(record: dict[str, Any]) -> str:
    """Returns the row of a record."""
    accuracy, training = find_means(record)
    runs, processes = record["runs"], record["processes"]
    recipe = f"`{record['recipe']}`" + (f", {processes} processes" if processes > 1 else "")
    spread = ["", ""]
    if len(runs) > 1:
        accuracy_sd, training_sd = (statistics.stdev(run[field] for run in runs) for field in ("accuracy", "training"))
        spread = [f" ± {100 * accuracy_sd:.2f}", f" ± {training_sd:.0f}"]
    state = "all seeds" if len(runs) >= MIN_SEEDS else f"unconfirmed: fewer than {MIN_SEEDS} seeds"
    return (
        f"| {record['target']:.1%} | {record['hardware']} | {recipe} | {count_parameters(record):,} | {len(runs)} "
        f"| {accuracy:.2%}{spread[0]} | {training:,.0f} s{spread[1]} | {state} |"
    )


def make_record(document: dict[str, Any], target: float, hardware: str) -> dict[str, Any]:
    """Returns the record of a document that benchmarks.time_to_accuracy wrote."""
    runs = [{field: pair["ours"][field] for field in RUN_FIELDS} for pair in document["runs"]]
    return {
        "target": target,
        "hardware": hardware,
        "date": time.strftime("%Y-%m-%d"),
        "recipe": Path(document["recipe"]).name,
        "processes": document["processes"],
        "machine": ", ".join(f"{key} {value}" for key, value in document["machine"].items()),
        "runs": runs,
    }


def main() -> None:
    """Adds a record, or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table in docs/records.md")
    parser.add_argument("--add", type=Path, metavar="FILE", help="results of benchmarks.time_to_accuracy")
    parser.add_argument("--target", type=float, choices=TARGETS)
    parser.add_argument("--hardware", choices=HARDWARE)
    parser.add_argument("--name", help="the record's name")
    arguments = parser.parse_args()
    if arguments.add:
        if not (arguments.target and arguments.hardware and arguments.name):
            parser.error("--add needs --target, --hardware and --name")
        record = make_record(json.loads(arguments.add.read_text()), arguments.target, arguments.hardware)
        check_record(record, arguments.name)
        write_json(RECORDS / f"{arguments.name}.json", record)
    if arguments.write:
        replace_table(format_records(load_records()), "records", DOCS / "records.md")
    print(format_records(load_records()))


if __name__ == "__main__":
    main()
