"""The sdist and the wheel: what they contain, and what a package index shows of them."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from email.policy import default
from pathlib import Path

import pytest
from tools.newest_python import newest_python, supported_minors

import vitrail

ROOT = Path(__file__).parent.parent
BUILT = re.compile(r"__pycache__|\.(pyc|pyo)$")
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return {"sdist": next(folder.glob("*.tar.gz")), "wheel": next(folder.glob("*.whl"))}


def sdist_files(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as tar:
        return {member.name.split("/", 1)[1] for member in tar if member.isfile()}


def files_below(*folders: str) -> set[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in paths if not BUILT.search(str(path))}


def test_the_sdist_contains_the_sources_tests_and_documents(built: dict[str, Path]):
    files = sdist_files(built["sdist"])
    assert files >= files_below("src", "tests", "docs", "examples", "benchmarks", "tools")
    top = {name for name in files if "/" not in name}
    assert top >= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "NOTICE", "Makefile", "constraints.txt"}
    assert not {"node_modules", "runs", "dist", "build", ".venv", ".git"} & {name.split("/")[0] for name in files}
    assert [name for name in files if BUILT.search(name)] == []


def test_the_wheel_contains_the_package_and_nothing_else(built: dict[str, Path]):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licenses = {name.split("/licenses/")[1] for name in wheel.namelist() if "/licenses/" in name}
    assert names == {name.removeprefix("src/") for name in files_below("src/vitrail")}
    assert licenses == {"LICENSE", "NOTICE", "src/vitrail/exporting/web/vendor/LICENSE"}


def test_links_and_pictures_work_on_a_package_index(built: dict[str, Path]):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = BytesParser(policy=default).parsebytes(wheel.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    shown, written = LINK.findall(metadata.get_content()), LINK.findall((ROOT / "README.md").read_text())
    assert len(shown) == len(written) > 10
    repository = "vitrail/vitrail"
    for link, original in zip(shown, written, strict=True):
        if original.startswith(("https://", "#")):
            assert link == original
            continue
        assert (ROOT / original.split("#")[0]).exists(), original
        is_picture = original.endswith((".png", ".webp"))
        start = f"raw.githubusercontent.com/{repository}" if is_picture else f"github.com/{repository}/blob"
        assert link == f"https://{start}/v{vitrail.__version__}/{original}"


def test_a_package_index_accepts_both(built: dict[str, Path]):
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.values())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_the_container_is_given_every_file_that_it_copies():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert f"!{source}" in ignored and (ROOT / source).exists(), source


def test_the_newest_python_is_a_newer_supported_one_that_runs():
    assert supported_minors() == sorted(supported_minors(), reverse=True) and supported_minors()[-1] == 11
    newest = newest_python()
    if newest is not None:
        code = "import sys; print(*sys.version_info[:2])"
        major, minor = subprocess.run([newest, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert int(major) == 3 and int(minor) > sys.version_info.minor and int(minor) in supported_minors()
