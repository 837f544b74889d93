"""Other people's files -> our names and back, and our own artefact."""

from vitrail.weights.artefact import read_artefact, write_artefact

__all__ = ["read_artefact", "write_artefact"]
