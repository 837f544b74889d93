"""Files -> batches: sources, decoding, the preprocessing shared by every verb, augmentation, loading."""

from vitrail.data.images import Images
from vitrail.data.preprocess import Preprocess
from vitrail.data.sources import Splits, open_data

__all__ = ["Images", "Preprocess", "Splits", "open_data"]
