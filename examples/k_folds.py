"""Cross-validation on a folder with one folder per class: python examples/k_folds.py FOLDER [FOLDS]."""

import statistics
import sys
from pathlib import Path

from sklearn.model_selection import StratifiedKFold

import vitrail

if __name__ == "__main__":
    files = sorted(each for each in Path(sys.argv[1]).rglob("*") if each.suffix.lower() in (".jpg", ".jpeg", ".png"))
    labels = [each.parent.name for each in files]
    folds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    small = dict(epochs=3, width=48, depth=2, report=False)
    scores = []
    for fold, (train, test) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=0).split(files, labels), 1):
        parts = {"train": train, "test": test}  # validation images are taken from those of training
        data = {name: ([files[i] for i in rows], [labels[i] for i in rows]) for name, rows in parts.items()}
        run = vitrail.train(data, out=f"runs/fold-{fold}", **small)
        scores.append(run.result["test"]["accuracy"])
    print(f"{folds} folds: mean accuracy {statistics.mean(scores):.3f}, sd {statistics.stdev(scores):.3f}")
