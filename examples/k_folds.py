"""Cross-validation: python examples/k_folds.py DATA [FOLDS].

Images of a group (a patient, a video, a burst) are never divided: give them in a column `group` of a table, or with
`group_pattern="(patient[0-9]+)_"` from file names.
"""

import sys

import vitrail

if __name__ == "__main__":
    folds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    small = dict(epochs=3, width=48, depth=2, report=False)
    result = vitrail.cross_validate(sys.argv[1], folds, out="runs/folds", **small).result
    low, high = result["accuracy_interval"]
    print(f"{folds} folds: mean accuracy {result['fold_mean']['accuracy']:.3f}, sd {result['fold_sd']['accuracy']:.3f}")
    print(f"all {result['images']} out-of-fold predictions: {result['accuracy']:.3f} ({low:.3f} to {high:.3f})")
