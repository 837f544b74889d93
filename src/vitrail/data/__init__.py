"""From files to batches: sources, decoding, preprocessing, augmentation, loading."""

from vitrail.data.images import Images
from vitrail.data.open import Splits, open_data
from vitrail.data.preprocess import Preprocess

__all__ = ["Images", "Preprocess", "Splits", "open_data"]
