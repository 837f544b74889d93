"""Trains on a Dataset of your own: python examples/own_dataset.py FOLDER.

Here the class is the part of a file name before the last underscore, as in Oxford's pets: great_dane_12.jpg.
"""

import sys
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

import vitrail


class NamedFiles(Dataset):
    """The images of one folder, labeled by their file names."""

    def __init__(self, folder):
        self.files = sorted(each for each in Path(folder).iterdir() if each.suffix.lower() in (".jpg", ".jpeg", ".png"))
        names = [each.stem.rsplit("_", 1)[0] for each in self.files]
        self.classes = sorted(set(names))
        self.targets = [self.classes.index(name) for name in names]  # so that no image is read to learn its label

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return Image.open(self.files[i]), self.targets[i]  # any size; without augmentation and normalization


if __name__ == "__main__":
    run = vitrail.train(NamedFiles(sys.argv[1]), out="runs/own-dataset", epochs=3, width=48, depth=2, report=False)
    print(f"test accuracy {run.result['test']['accuracy']:.3f} for {', '.join(run.classifier.classes)}")
