"""Rows -> the bytes of a table: the same columns as parquet and as CSV."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vitrail.errors import UsageError
from vitrail.prediction.arrow import FORMULA, import_pyarrow
from vitrail.prediction.rows import Rows


def columns(top: int) -> list[str]:
    """The names of the columns: path, label, probability, label_2, probability_2, ..., error."""
    more = [name for k in range(2, top + 1) for name in (f"label_{k}", f"probability_{k}")]
    return ["path", "label", "probability", *more, "error"]


def parquet(rows: Rows, classes: Sequence[str], top: int, width: int | None) -> bytes:
    """A parquet file; `width` is that of the column `embedding`, if there is one."""
    pa, pq = import_pyarrow()
    missing = np.array([error is not None for error in rows.errors], bool)
    nothing = np.ones(len(rows), bool)
    names: dict[str, Any] = {"path": pa.array(rows.paths, pa.string())}
    dictionary = pa.array(list(classes), pa.string())
    for k in range(top):
        suffix = "" if k == 0 else f"_{k + 1}"
        known = k < rows.labels.shape[1]
        numbers = rows.labels[:, k] if known else np.zeros(len(rows), np.int64)
        values = rows.probabilities[:, k] if known else np.zeros(len(rows), np.float32)
        indices = pa.array(numbers.astype(np.int32), pa.int32(), mask=missing if known else nothing)
        names[f"label{suffix}"] = pa.DictionaryArray.from_arrays(indices, dictionary).cast(pa.string())
        names[f"probability{suffix}"] = pa.array(values, pa.float32(), mask=missing if known else nothing)
    names["error"] = pa.array(rows.errors, pa.string())
    if width is not None:
        vectors = np.zeros((len(rows), width), np.float32) if rows.features is None else rows.features
        flat = pa.array(vectors.reshape(-1), pa.float32())
        names["embedding"] = pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(missing))
    sink = io.BytesIO()
    pq.write_table(pa.table(names), sink, compression="zstd")
    return sink.getvalue()


def comma_separated(rows: Rows, classes: Sequence[str], top: int, width: int | None) -> bytes:
    """A CSV file in UTF-8 with a header; an embedding is a JSON list."""
    sink = io.StringIO(newline="")
    table = csv.writer(sink)  # lines end in CR LF (RFC 4180); with LF alone a CR in a name would not be quoted
    table.writerow(columns(top) + ["embedding"] * (width is not None))
    for i, (path, error) in enumerate(zip(rows.paths, rows.errors, strict=True)):
        said: list[Any] = []
        for k in range(top):
            known = error is None and k < rows.labels.shape[1]
            said += [classes[rows.labels[i, k]], str(rows.probabilities[i, k])] if known else ["", ""]
        line = [path, *said, error or ""]
        if width is not None:
            known = error is None and rows.features is not None
            line.append(f"[{','.join(map(str, rows.features[i]))}]" if known and rows.features is not None else "")
        table.writerow(line)
    return sink.getvalue().encode()


Form = Callable[[Rows, Sequence[str], int, int | None], bytes]
FORMS: dict[str, Form] = {"parquet": parquet, "csv": comma_separated}


def refuse_formulas(classes: Sequence[str]) -> None:
    """Raises `UsageError` for a class that a spreadsheet would take for a formula: CSV has no way to say it is none."""
    for name in classes:
        if name.startswith(FORMULA):
            raise UsageError(
                f"a spreadsheet would compute the class {json.dumps(name)} in a CSV file", "take --format parquet"
            )
