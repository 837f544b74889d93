"""Weights -> other runtimes and libraries, each proven to agree before it is written."""
