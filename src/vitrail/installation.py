"""How vitrail was installed, and so how its optional libraries are installed."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any


def install_hint(extra: str) -> str:
    """Returns the command that installs an extra of vitrail, from where vitrail itself came.

    A clone installs it from its own folder, in which the command runs. Only a package from an index is named by its
    name: elsewhere, that name may belong to another package.
    """
    origin = read_origin()
    if origin is None:
        return f"pip install 'vitrail[{extra}]'"
    if "dir_info" in origin:
        return f"pip install {'-e ' * bool(origin['dir_info'].get('editable'))}'.[{extra}]'"
    version_control = origin.get("vcs_info", {}).get("vcs")
    prefix = f"{version_control}+" if version_control else ""
    return f"pip install 'vitrail[{extra}] @ {prefix}{origin['url']}'"


def read_origin() -> dict[str, Any] | None:
    """Returns where vitrail was installed from (`direct_url.json` of PEP 610); None if from a package index.

    Code that runs from a clone without being installed is as if installed in editable mode.
    """
    try:
        text = distribution("vitrail").read_text("direct_url.json")
    except PackageNotFoundError:
        return {"dir_info": {"editable": True}}
    origin: dict[str, Any] | None = json.loads(text) if text else None
    return origin
