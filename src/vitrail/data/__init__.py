"""From files to batches: sources, decoding, preprocessing, augmentation, loading."""

from vitrail.data.images import Images
from vitrail.data.open import open_data
from vitrail.data.preprocess import Preprocess
from vitrail.data.split import Splits

__all__ = ["Images", "Preprocess", "Splits", "open_data"]
