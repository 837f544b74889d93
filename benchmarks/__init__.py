"""Comparisons of vitrail with other libraries, in one run."""
