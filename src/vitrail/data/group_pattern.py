"""The pattern that finds the group of an image in its name. Recipes check it, so torch is not imported."""

import re

from vitrail.errors import UsageError

PATTERN_HINT = "give one capture group, for example '(patient[0-9]+)_'"


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Returns the compiled pattern; raises `UsageError` unless it is a regular expression with one capture group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"the group pattern {pattern!r} is not a regular expression: {error}", PATTERN_HINT) from None
    if compiled.groups != 1:
        raise UsageError(f"the group pattern {pattern!r} has {compiled.groups} capture groups, not one", PATTERN_HINT)
    return compiled
