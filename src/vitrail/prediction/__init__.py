"""Images -> rows on disk, for more images than fit into memory.

The work is cut into parts. One process reads, predicts and writes a part. A part is written completely or not at all:
whatever is killed, at most the work on unfinished parts is lost, and predicting a part twice changes nothing.
"""

from vitrail.prediction.predict import predict_all
from vitrail.prediction.summary import PredictSummary

__all__ = ["PredictSummary", "predict_all"]
