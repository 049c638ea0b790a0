"""Parquet files as columns and rows; the one place that imports pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rebus.errors import RebusError


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """`{column: values}` of one file. Raises RebusError if it cannot be read or lacks a column."""
    pq = _parquet()
    try:
        return pq.read_table(path, columns=list(columns)).to_pydict()
    except (OSError, KeyError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise RebusError(f"{path} is not a Parquet file with the columns {', '.join(columns)}: {error}") from error


def column_names(path: Path) -> list[str]:
    """The names of a file's columns."""
    return _file(path).schema_arrow.names


def count_rows(path: Path) -> int:
    """How many rows a file has."""
    return _file(path).metadata.num_rows


def open_table(path: Path, columns: Sequence[str]) -> Callable[[int], dict[str, Any]]:
    """Reads the columns into memory (as they are stored) and gives back what finds one row of them."""
    table = _parquet().read_table(path, columns=list(columns))
    return lambda index: table.slice(index, 1).to_pylist()[0]


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a file, whole or not at all."""
    pq = _parquet()
    import pyarrow

    scratch = path.with_suffix(".writing")
    pq.write_table(pyarrow.Table.from_pylist(rows), scratch, compression="zstd")
    scratch.replace(path)


def _file(path: Path) -> Any:
    try:
        return _parquet().ParquetFile(path)
    except (OSError, ValueError) as error:
        raise RebusError(f"{path} is not a Parquet file that can be read: {error}") from error


def _parquet() -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise RebusError(
            "Parquet files are read with pyarrow, which is not installed. Install it with `pip install 'rebus-lm[train]'`."
        ) from None
    return pq
