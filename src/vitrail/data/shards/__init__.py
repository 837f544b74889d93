"""Tar shards in the WebDataset layout: many images in few files, each found by its place, wherever the files lie."""

from vitrail.data.shards.address import is_shards
from vitrail.data.shards.images import list_shards

__all__ = ["is_shards", "list_shards"]
