"""Logs a training to TensorBoard and to a file of your own: python examples/log_metrics.py DATA.

It needs vitrail[tensorboard]. Then: tensorboard --logdir runs/log-metrics
"""

import csv
import sys

import vitrail


class CsvLogger:
    """Appends step and loss of each step to steps.csv in the run folder."""

    def on_run_start(self, state):
        self.path = state.folder / "steps.csv"

    def on_step_end(self, state):
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([state.step, state.metrics["train_loss"]])


if __name__ == "__main__":
    small = dict(epochs=3, width=48, depth=2, report=False)
    run = vitrail.train(sys.argv[1], logger="tensorboard", callbacks=[CsvLogger()], out="runs/log-metrics", **small)
    print(f"logged in {run.folder}: {', '.join(sorted(each.name for each in (run.folder / 'tensorboard').iterdir()))}")
