"""What a list shows, whole and in the order of its files, as CSV or as JSON lines.

    for block in exported(passing_pairs(pairs, query), "csv"): ...

JSON lines hold every value as it is. CSV is for spreadsheets: lists are JSON in a cell, hidden
characters are shown by their code, and what a spreadsheet would take for a formula, also where it
splits at other separators than ours, stands behind an apostrophe.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import orjson

from ..report.svg import escape_json
from ..run.files import readable
from ..run.partitions import lean_arrow
from ..secrets import visible
from .folder import CHANGED, Query
from .index import decode_rows
from .search import PairSearch, parse_query

ROWS = 1000  # of a block
KINDS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
_FORMULA = re.compile(r"^(?=[\t\r])|(?:^|(?<=[;\t\r\n])) *(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")
Exported = dict[str, Any]


def passing_pairs(pairs: PairSearch, query: Query) -> Iterator[Exported]:
    """Every column of the pairs that pass the filters.

    Raises:
        SettingsError: a filter that there is not.
        RunFolderError: a file has changed since it was indexed.
    """
    passing = pairs.passing(parse_query(query, pairs.index))
    return _pair_rows(pairs, passing)


def _pair_rows(pairs: PairSearch, passing: Any) -> Iterator[Exported]:
    lean_arrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    at = 0
    for path in pairs.index.files:
        with readable(path, CHANGED), pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(ROWS, use_threads=False):
                mask = pa.array(passing[at : at + len(batch)])
                at += len(batch)
                yield from decode_rows(pa.Table.from_batches([batch]).filter(mask))


def exported(rows: Iterable[Exported], kind: str) -> Iterator[bytes]:
    """The rows as a file of this kind, in blocks."""
    left, first = iter(rows), True
    while block := list(islice(left, ROWS)):
        yield _csv(block, first) if kind == "csv" else b"".join(map(_json_line, block))
        first = False


def _json_line(row: Exported) -> bytes:
    return escape_json(orjson.dumps(row, default=str).decode()).encode() + b"\n"


def _csv(rows: list[Exported], with_head: bool) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    if with_head:
        writer.writerow(map(_cell, rows[0]))
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return out.getvalue().encode("utf-8", "replace")


def _cell(value: object) -> object:
    if isinstance(value, (list, dict)):
        value = orjson.dumps(value, default=str).decode()
    if not isinstance(value, str):
        return value
    return _FORMULA.sub(lambda m: f"{m[0]}'", visible(value))
