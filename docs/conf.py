"""The documentation site: `make docs` builds it into build/docs/html."""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS / "_ext"), str(ROOT / "src")]

from vitrail.version import __version__  # noqa: E402


def hash_package() -> str:
    """Returns a hash of the package's files. Executed chapters are cached under it: they show and run this code."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src").rglob("*")):
        if path.suffix in {".py", ".jsonl", ".safetensors"}:
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def make_kernel_settings() -> str:
    """Returns a folder with IPython's settings: an error of an exercise shows as one line."""
    folder = Path(tempfile.mkdtemp(prefix="vitrail-docs-"))
    (folder / "profile_default").mkdir()
    settings = 'c.InteractiveShell.xmode = "Minimal"\nc.HistoryManager.enabled = False\nc.IPKernelApp.log_level = 40\n'
    (folder / "profile_default" / "ipython_kernel_config.py").write_text(settings, encoding="utf-8")
    return str(folder)


project, author, release = "vitrail", "the vitrail authors", __version__
copyright = "the vitrail authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "pages"]
exclude_patterns = ["conf.py", "_ext", "_build", "_templates", "adr/README.md"]
source_suffix = {".md": "myst-nb", ".py": "myst-nb"}
nitpicky = False
default_role = "code"  # docstrings write `name` for code
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "docs" / "cache" / hash_package())
nb_execution_timeout = 1200  # of a cell; on a busy machine
nb_execution_show_tb = True
nb_merge_streams = True
os.environ.setdefault("IPYTHONDIR", make_kernel_settings())
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

html_theme = "furo"
html_title = "vitrail"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_favicon = "_static/icon.svg"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = html_show_sourcelink = False
html_use_index = False
pygments_style = "a11y-high-contrast-light"
html_theme_options = {"navigation_with_keys": False}
