"""Trains with positions of your own: python examples/own_position.py DATA.

The command line has it too: vitrail train DATA --plugin examples/own_position.py --position conditional.
"""

import sys

from torch import nn

import vitrail
from vitrail.model.position import PositionEmbedding


@vitrail.register("position", "conditional")
class Conditional(PositionEmbedding):
    """Positions from a depthwise convolution of the patches (Chu et al. 2021), for a grid of any size."""

    def __init__(self, config, kernel=3):
        super().__init__()
        self.conv = nn.Conv2d(config.width, config.width, kernel, padding=kernel // 2, groups=config.width)

    def add(self, x_BhwD):
        return x_BhwD + self.conv(x_BhwD.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


if __name__ == "__main__":
    small = dict(epochs=3, width=48, depth=2, report=False)
    run = vitrail.train(sys.argv[1], position="conditional", out="runs/own-position", **small)
    print(f"test accuracy {run.result['test']['accuracy']:.3f}, position {run.classifier.vit.config.position}")
