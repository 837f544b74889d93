"""Files -> batches: sources, decoding, the preprocessing shared by every verb, augmentation, loading."""

from vitrail.data.images import Images
from vitrail.data.open import Splits, open_data
from vitrail.data.preprocess import Preprocess

__all__ = ["Images", "Preprocess", "Splits", "open_data"]
