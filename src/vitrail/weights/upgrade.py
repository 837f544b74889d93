"""Upgrades documents that an earlier version wrote: keys of artifacts, recipes and preprocessing that have new names.

Each reader calls its function before it checks the document. A table maps an old key to the new one.
"""

from typing import Any

RECIPE_KEYS: dict[str, str] = {}
PREPROCESS_KEYS: dict[str, str] = {}


def rename_keys(document: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    """Returns the document with old keys replaced; keys that the table does not list are kept."""
    return {keys.get(name, name): value for name, value in document.items()}


def upgrade_recipe(document: dict[str, Any]) -> dict[str, Any]:
    """Returns a recipe's JSON document with today's field names."""
    return rename_keys(document, RECIPE_KEYS)
