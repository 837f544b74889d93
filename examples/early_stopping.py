"""Stops a training early: python examples/early_stopping.py DATA."""

import sys

import vitrail


class StopAtAccuracy:
    """Stops once the validation accuracy is high enough. Any object with a hook is a callback."""

    def __init__(self, accuracy):
        self.accuracy = accuracy

    def on_evaluation_end(self, state):
        if state.evaluation.scores["accuracy"] >= self.accuracy:
            state.stop(f"the {state.evaluation.split} accuracy reached {self.accuracy:.0%}")


if __name__ == "__main__":
    # After 5 epochs without a better score, or once the accuracy is reached: whichever comes first.
    callbacks = [vitrail.EarlyStopping(patience=5), StopAtAccuracy(0.9)]
    small = dict(epochs=40, schedule="constant", width=48, depth=2, report=False)
    run = vitrail.train(sys.argv[1], callbacks=callbacks, out="runs/early-stopping", **small)
    print(f"stopped early: {run.result.get('stopped_early')}")
    print(f"epoch {run.result['best_epoch']} is kept: test accuracy {run.result['test']['accuracy']:.3f}")
