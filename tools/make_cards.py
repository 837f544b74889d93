"""Writes cards.jsonl and architectures.jsonl in src/vitrail/weights from the metadata of timm, torchvision, open_clip.

    python -m tools.make_cards

The accuracies come from reported.csv: the rows for plain ViTs of timm's results-imagenet.csv, measured by timm on
ImageNet-1k's validation set. A checkpoint with tensors that no layout has, by name and shape, gets no card.
"""

import csv
import json
from pathlib import Path

from tools.card_rows import Row
from tools.hub_cards import make_hub_cards, make_openai_cards, make_torchvision_cards
from tools.timm_cards import make_timm_architectures, make_timm_cards

OUT = Path(__file__).parent.parent / "src/vitrail/weights"
REPORTED = Path(__file__).parent / "reported.csv"
REQUIRED = ("config", "preprocess")  # written even if empty


def read_reported(path: Path) -> dict[str, dict[str, float]]:
    """Returns the reported accuracies by checkpoint."""
    with path.open(newline="") as file:
        return {row["model"]: {"top1": float(row["top1"]), "top5": float(row["top5"])} for row in csv.DictReader(file)}


def write_rows(path: Path, rows: list[Row]) -> None:
    """Writes a row a line; of rows with the same name, the first."""
    cards: dict[str, Row] = {}
    for row in rows:
        cards.setdefault(row["name"], {key: value for key, value in row.items() if value or key in REQUIRED})
    path.write_text("".join(json.dumps(card) + "\n" for card in cards.values()), encoding="utf-8")
    print(f"{path}: {len(cards)} rows")


def main(folder: Path = OUT) -> None:
    timm_rows = make_timm_cards(read_reported(REPORTED))
    rows = [*make_torchvision_cards(), *timm_rows, *make_hub_cards(), *make_openai_cards()]
    write_rows(folder / "cards.jsonl", rows)
    published = {row["name"].partition("/")[2].rpartition(".")[0] for row in timm_rows}
    write_rows(folder / "architectures.jsonl", make_timm_architectures(published))


if __name__ == "__main__":
    main()
