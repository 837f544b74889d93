"""pyarrow, which only parquet needs."""

from typing import Any

from vitrail.errors import UsageError
from vitrail.installation import install_hint


def import_pyarrow() -> tuple[Any, Any]:
    """Returns `pyarrow` and `pyarrow.parquet`; raises `UsageError` if they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError("parquet needs pyarrow", f"{install_hint('parquet')}, or use --format csv") from None
    return pyarrow, pyarrow.parquet
