"""Other people's files -> our names and back, and our own artefact."""

from vitrail.weights.artifact import read_artifact, write_artifact

__all__ = ["read_artifact", "write_artifact"]
