"""Hints that install an optional library: right for a clone, an index, a wheel and a repository."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from vitrail.installation import install_hint

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'vitrail[export]'"),
        ({"url": "file:///home/a/vitrail", "dir_info": {"editable": True}}, "pip install -e '.[export]'"),
        ({"url": "file:///home/a/vitrail", "dir_info": {}}, "pip install '.[export]'"),
        (
            {"url": "file:///home/a/vitrail-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'vitrail[export] @ file:///home/a/vitrail-0.1.0-py3-none-any.whl'",
        ),
        (
            {"url": "https://github.com/vitrail/vitrail", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}},
            "pip install 'vitrail[export] @ git+https://github.com/vitrail/vitrail'",
        ),
    ],
)
def test_a_hint_installs_from_where_vitrail_came(
    origin: dict | None, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    info = tmp_path / "vitrail-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: vitrail\nVersion: 0.1.0\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(tmp_path)
    assert install_hint("export") == command


def test_code_in_a_clone_that_is_not_installed_installs_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert install_hint("export") == "pip install -e '.[export]'"


def test_hints_name_extras_that_exist_and_no_message_spells_the_command_itself():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = {path: path.read_text() for path in (ROOT / "src").rglob("*.py")}
    named = {name for text in sources.values() for name in re.findall(r"install_hint\([\"'](\w+)", text)}
    assert {"export", "hub", "serve"} <= named <= set(extras)
    spelled = [str(path) for path, text in sources.items() if "pip install 'vitrail[" in text]
    assert spelled == [str(ROOT / "src" / "vitrail" / "installation.py")]
