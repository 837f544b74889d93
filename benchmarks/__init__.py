"""Measurements beside other libraries, each in one run; docs/benchmarks.md has their tables."""
