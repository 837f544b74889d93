"""Trains with and without class weights and prints the recall of each class: python examples/class_weights.py DATA.

With weights all classes count alike in the loss, however many images they have. The epoch is then chosen by balanced
accuracy on validation. `balance="sampler"` and `balance="logits"` are other ways.
"""

import sys

import vitrail


def recalls(run, data):
    """Returns the recall of each class on the test images."""
    scores = vitrail.evaluate(run.classifier, data).to_json()["per_class"]
    return ", ".join(f"{name} {row['recall']:.3f}" for name, row in scores.items())


if __name__ == "__main__":
    data = sys.argv[1]
    small = dict(epochs=3, width=48, depth=2, report=False)
    plain = vitrail.train(data, out="runs/plain", **small)
    weighted = vitrail.train(data, balance="weights", out="runs/weighted", **small)
    print("without weights:", recalls(plain, data))
    print("with weights:", recalls(weighted, data))
