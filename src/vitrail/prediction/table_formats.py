"""Rows -> the bytes of a table. Parquet and CSV have the same columns.

They are path, label, probability, label_2, probability_2, ..., error; with several labels per image path, labels
("cat;dog"), probabilities ("0.91;0.62"), error; of numbers path, a column for each number, error. Before `error` there
is `unlike`, if the classifier has it.
"""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vitrail.image_predictions import JOINED_COLUMNS, join_predictions, number_columns
from vitrail.prediction.arrow import import_pyarrow
from vitrail.prediction.rows import Rows


def column_names(rows: Rows, classes: Sequence[str], top: int) -> list[str]:
    """Returns the names of the columns of a CSV file, as the docstring of the module has them."""
    if rows.found is not None:
        answers = list(JOINED_COLUMNS)
    elif rows.numbers is not None:
        answers = list(number_columns(classes))
    else:
        others = [name for k in range(2, top + 1) for name in (f"label_{k}", f"probability_{k}")]
        answers = ["label", "probability", *others]
    return ["path", *answers, *["unlike"] * (rows.unlike is not None), "error"]


def encode_parquet(rows: Rows, classes: Sequence[str], top: int, embedding_width: int | None) -> bytes:
    """Returns a parquet file; it has a column `embedding` unless `embedding_width` is None."""
    pa, pq = import_pyarrow()
    is_missing = np.array([error is not None for error in rows.errors], bool)
    all_missing = np.ones(len(rows), bool)
    columns: dict[str, Any] = {"path": pa.array(rows.paths, pa.string())}
    if rows.found is not None:
        top = 0
        texts = list(zip(*map(join_predictions, rows.found), strict=True)) or [(), ()]
        for name, values in zip(JOINED_COLUMNS, texts, strict=True):
            columns[name] = pa.array(values, pa.string(), mask=is_missing)
    if rows.numbers is not None:
        top = 0
        for k, name in enumerate(number_columns(classes)):
            columns[name] = pa.array(rows.numbers[:, k], pa.float32(), mask=is_missing)
    dictionary = pa.array(list(classes), pa.string())
    for k in range(top):
        suffix = "" if k == 0 else f"_{k + 1}"
        has_values = k < rows.labels.shape[1]
        labels = rows.labels[:, k] if has_values else np.zeros(len(rows), np.int64)
        probabilities = rows.probabilities[:, k] if has_values else np.zeros(len(rows), np.float32)
        mask = is_missing if has_values else all_missing
        indices = pa.array(labels.astype(np.int32), pa.int32(), mask=mask)
        columns[f"label{suffix}"] = pa.DictionaryArray.from_arrays(indices, dictionary).cast(pa.string())
        columns[f"probability{suffix}"] = pa.array(probabilities, pa.float32(), mask=mask)
    if rows.unlike is not None:
        columns["unlike"] = pa.array(rows.unlike, pa.float64(), mask=is_missing)
    columns["error"] = pa.array(rows.errors, pa.string())
    if embedding_width is not None:
        vectors = np.zeros((len(rows), embedding_width), np.float32) if rows.features is None else rows.features
        # No list of fixed size: with a missing one, pyarrow before 26 writes a file that it cannot read, or refuses.
        present = [None if missing else vector for vector, missing in zip(vectors, is_missing, strict=True)]
        columns["embedding"] = pa.array(present, pa.list_(pa.float32()))
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def encode_csv(rows: Rows, classes: Sequence[str], top: int, embedding_width: int | None) -> bytes:
    """Returns a CSV file in UTF-8 with a header; an embedding is a JSON list."""
    buffer = io.StringIO(newline="")
    table = csv.writer(buffer)  # lines end in CR LF (RFC 4180): with LF alone a CR in a name would not be quoted
    names = column_names(rows, classes, top)
    table.writerow(names + ["embedding"] * (embedding_width is not None))
    for i, (path, error) in enumerate(zip(rows.paths, rows.errors, strict=True)):
        cells: list[Any] = []
        if rows.found is not None:
            cells = list(join_predictions(rows.found[i])) if error is None else ["", ""]
        if rows.numbers is not None:
            cells = list(map(str, rows.numbers[i])) if error is None else [""] * len(classes)
        for k in range(top if rows.found is None and rows.numbers is None else 0):
            has_values = error is None and k < rows.labels.shape[1]
            cells += [classes[rows.labels[i, k]], str(rows.probabilities[i, k])] if has_values else ["", ""]
        if rows.unlike is not None:
            cells.append(f"{rows.unlike[i]:.6g}" if error is None else "")
        line = [path, *cells, error or ""]
        if embedding_width is not None:
            has_features = error is None and rows.features is not None
            line.append(f"[{','.join(map(str, rows.features[i]))}]" if has_features else "")  # type: ignore[index]
        table.writerow(line)
    return buffer.getvalue().encode()


Encoder = Callable[[Rows, Sequence[str], int, int | None], bytes]
TABLE_FORMATS: dict[str, Encoder] = {"parquet": encode_parquet, "csv": encode_csv}
