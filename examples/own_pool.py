"""Trains with a pool of your own: python examples/own_pool.py DATA.

The command line has it too: vitrail train DATA --plugin examples/own_pool.py --pool gem:p=4.
"""

import sys

import torch
from torch import nn

import vitrail


@vitrail.register("pool", "gem")
class GeM(nn.Module):
    """Generalized mean of the patches (Radenovic et al. 2018); the exponent p is learned."""

    def __init__(self, config, p=3.0):
        super().__init__()
        self.prefix_tokens = config.prefix_tokens
        self.p = nn.Parameter(torch.tensor(float(p)))

    def forward(self, x_BTD):
        return x_BTD[:, self.prefix_tokens :].clamp(min=1e-3).pow(self.p).mean(dim=1).pow(1 / self.p)


if __name__ == "__main__":
    run = vitrail.train(sys.argv[1], pool="gem:p=4", out="runs/own-pool", epochs=3, width=48, depth=2, report=False)
    print(f"test accuracy {run.result['test']['accuracy']:.3f}, p {run.classifier.vit.pool.p.item():.3f}")
