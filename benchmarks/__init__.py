"""Comparisons that print ratios: vitrail beside its peers, in one run."""
