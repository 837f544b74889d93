"""Early stopping."""

from vitrail.callbacks.base import Callback, CallbackState
from vitrail.errors import UsageError


class EarlyStopping(Callback):
    """Stops training after `patience` epochs without a better validation score.

    Better is what selects the weights of a run: higher accuracy (balanced accuracy if the recipe balances the classes),
    then lower loss. It needs no state of its own: the best epoch is in the checkpoint, so a resumed run stops at the
    same epoch.
    """

    def __init__(self, patience: int):
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise UsageError(f"patience is {patience!r}; it must be a whole number, at least 1")
        self.patience = patience

    def on_epoch_end(self, state: CallbackState) -> None:
        if state.best_epoch is not None and state.epoch - state.best_epoch >= self.patience:
            state.stop(f"no better validation score for {count_epochs(state.epoch - state.best_epoch)}")


def count_epochs(epochs: int) -> str:
    return f"{epochs} epoch{'' if epochs == 1 else 's'}"
