"""Trains a model that is not a ViT: python examples/own_model.py DATA.

The command line has it too: vitrail train DATA --plugin examples/own_model.py --architecture shufflenet:stride=2.
"""

import sys

import torchvision
from torch import nn

import vitrail


@vitrail.register("model", "shufflenet")
def build_shufflenet(config, stride=1):
    """A small convolutional network (Ma et al. 2018); a stride of 1 is for small images. It could load weights, too."""
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=config.classes)
    network.conv1[0] = nn.Conv2d(config.channels, 24, 3, stride, padding=1, bias=False)
    return network


if __name__ == "__main__":
    options = dict(epochs=2, freeze="conv1", report=False)
    run = vitrail.train(sys.argv[1], architecture="shufflenet:stride=2", out="runs/own-model", **options)
    again = vitrail.load_any(run.folder)  # a fresh process needs the builder, by --plugin or an import
    print(f"{again!r}: test accuracy {vitrail.evaluate(again, sys.argv[1]).accuracy:.3f}")
