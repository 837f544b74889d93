"""Fine-tunes with parameters frozen by their names, in a plain loop: python examples/freeze_by_name.py DATA.

vitrail.train freezes the first N blocks (freeze=N) or all but the head (freeze="backbone"). Any other choice is a loop.
"""

import sys
from dataclasses import replace
from fnmatch import fnmatch

import torch
from torch.nn.functional import cross_entropy

import vitrail
from vitrail.data.augment import Augment, build_augmentation
from vitrail.data.loader import TrainLoader
from vitrail.data.open import open_data
from vitrail.training.transfer import transfer_weights

FROZEN = ("patch_embed.*", "position.*", "blocks.*.attn.*")  # names of vit.named_parameters()

if __name__ == "__main__":
    clf = vitrail.load("cifar10-small")
    splits = open_data(sys.argv[1], channels=clf.preprocess.channels)
    config = replace(clf.vit.config, classes=len(splits.classes))
    vit, head = transfer_weights(clf.vit, clf.classes, config, splits.classes)  # with a new head for other classes
    for name, parameter in vit.named_parameters():
        parameter.requires_grad_(not any(fnmatch(name, pattern) for pattern in FROZEN))
    trained = [parameter for parameter in vit.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4)
    loader = TrainLoader(splits.train, build_augmentation(Augment(flip=0), clf.preprocess), batch_size=16, seed=0)
    for epoch in range(3):
        for pixels, labels in loader.epoch(epoch):
            optimizer.zero_grad()
            cross_entropy(vit(clf.preprocess.normalize(pixels)), labels).backward()
            optimizer.step()
    tuned = vitrail.Classifier(vit, splits.classes, clf.preprocess)
    tuned.save("frozen.safetensors")
    print(f"{sum(each.numel() for each in trained):,} of {sum(each.numel() for each in vit.parameters()):,} trained")
    print(f"test accuracy {vitrail.evaluate(tuned, splits).accuracy:.3f}")
