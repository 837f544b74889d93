"""Prefixes of the addresses of data. This module imports nothing, so that the command line starts quickly."""

HF_PREFIX = "hf:"  # a data set of the Hugging Face hub
PYTHON_PREFIX = "python:"  # data that are Python objects, not files
