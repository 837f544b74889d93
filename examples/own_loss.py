"""Trains with a loss of your own: python examples/own_loss.py DATA."""

import sys

from torch.nn.functional import cross_entropy

import vitrail


def poly_loss(logits, targets):
    """Poly-1 loss (Leng et al. 2022): cross-entropy plus 1 - p, where p is the probability of the true class."""
    errors = cross_entropy(logits, targets, reduction="none")
    return (errors + 1 - (-errors).exp()).mean()


if __name__ == "__main__":
    # To resume the run, pass the loss again. A class gets a LossContext, with the number of images of each class.
    run = vitrail.train(sys.argv[1], loss=poly_loss, out="runs/own-loss", epochs=3, width=48, depth=2, report=False)
    print(f"test accuracy {run.result['test']['accuracy']:.3f}")
    print(f"loss {run.classifier.origin['recipe']['loss']}")
