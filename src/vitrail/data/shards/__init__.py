"""Tar shards in the WebDataset layout: many images in few files, on a disk or at a URL.

An index has the offset of every image, so that each is read by itself, in any order.
"""

from vitrail.data.shards.address import is_shards
from vitrail.data.shards.listing import list_shards

__all__ = ["is_shards", "list_shards"]
