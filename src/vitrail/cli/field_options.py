"""Makes command-line options from the fields of a dataclass."""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitrail.options import literal_values, option_parser

METAVARS = {  # where the type and the bounds do not say it
    "seed": "SEED",
    "split_seed": "SEED",
    "lr": "RATE",
    "muon_lr": "RATE",
    "image_cache_gib": "GIB",
    "max_body_mib": "MIB",
    "max_delay_ms": "MS",
    "timeout_s": "SECONDS",
    "shutdown_delay_s": "SECONDS",
    "image_size": "PIXELS",
    "patch": "PIXELS",
    "freeze": "COUNT|backbone|PATTERNS",
    "group_pattern": "REGEX",
    "shown_channels": "NUMBERS",
    "max_megapixels": "MEGAPIXELS",
}


def add_field_options(
    group: Any,
    dataclass_type: type,
    names: Iterable[str],
    defaults: Mapping[str, str] | None = None,
    choices: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Adds an option for each of these fields; only options that the user gave appear in the namespace.

    `defaults` describes the defaults (name -> text); a field that it lacks shows the dataclass's own default, unless
    its help text names it. `choices` gives the allowed words of fields whose type does not list them.
    """
    hints = get_type_hints(dataclass_type)
    selected = set(names)
    for each in fields(dataclass_type):
        if each.name not in selected:
            continue
        text = str(each.metadata.get("help", ""))
        if "default:" not in text:
            default = (defaults or {}).get(each.name)
            if default is None and each.default is not MISSING:
                default = format_default(each.default)
            text = f"{text} (default: {default})"
        flag = "--" + each.name.replace("_", "-")
        options: dict[str, Any] = {"dest": each.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        hint = hints[each.name]
        if hint is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif get_origin(hint) is Literal:
            group.add_argument(flag, choices=get_args(hint), **options)
        elif choices and each.name in choices:
            group.add_argument(flag, choices=list(choices[each.name]), **options)
        else:
            metavar = find_metavar(each.name, hint, each.metadata)
            group.add_argument(flag, type=option_parser(hint), metavar=metavar, **options)


def format_default(value: Any) -> str:
    """Returns a default as the user would type it: on and off for booleans."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def find_metavar(name: str, hint: Any, limits: Mapping[str, Any]) -> str:
    """Returns COUNT for whole numbers, FRACTION for 0 to 1, NUMBER for others, and the words that are allowed."""
    types = (hint, *get_args(hint))
    if name in METAVARS:
        number = [METAVARS[name]]
    elif float in types:
        number = ["FRACTION" if 1 in (limits.get("le"), limits.get("lt")) else "NUMBER"]
    else:
        number = ["COUNT"] if int in types else []
    if tuple[int, int] in types:
        number.append("HEIGHTxWIDTH")
    none = ["none"] if type(None) in types else []
    other = ["NAME"] if "part" in limits else []
    return "|".join([*number, *literal_values(hint), *other, *none])
