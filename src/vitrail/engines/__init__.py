"""Engines past one machine: the same functions, started, placed and repeated by somebody else's scheduler."""
