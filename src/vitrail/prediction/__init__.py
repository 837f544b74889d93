"""Images -> rows on disk: predictions for more images than anybody would hold in memory.

The work is cut into parts of so many images. A part is read, predicted and written by one process, whole or not at
all, so that killing anything costs a part in work, and doing a part twice changes nothing.
"""

from vitrail.prediction.predict import PredictSummary, predict_all

__all__ = ["PredictSummary", "predict_all"]
