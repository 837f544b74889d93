"""What every table of paths or predictions needs: pyarrow, and what no cell of a CSV file may begin with."""

from typing import Any

from vitrail.errors import UsageError

FORMULA = tuple("=+-@\t\r")  # how a cell begins that a spreadsheet computes


def import_pyarrow() -> tuple[Any, Any]:
    """pyarrow and its parquet; raises `UsageError` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError("parquet needs pyarrow", "pip install 'vitrail[parquet]', or take --format csv") from None
    return pyarrow, pyarrow.parquet
