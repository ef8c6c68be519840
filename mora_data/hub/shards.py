"""Rows of one config and split -> Parquet shards, in batches, with one explicit schema.

A batch is 1,000 rows (fewer when they are large) and one row group. The bytes depend on the rows and on pyarrow's
version, on nothing else.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .configs import Row

BATCH_ROWS = 1000
BATCH_BYTES = 32 << 20
SHARD_BYTES = 500 << 20
_SURROGATE = re.compile("[\ud800-\udfff]")
FREE_TEXT = frozenset({"chosen", "rejected", "completion", "response", "completions", "pair_id"})


class ShardWriter:
    """Writes `<split>-<k>.part` files into a config's folder; `close` gives them their final names.

    `submit` runs a write, on another thread or at once; writes of one writer never overlap.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        schema: pa.Schema,
        submit: Callable[[Callable[[], None]], None],
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self._folder, self._split, self._schema = folder, split, schema
        self._submit = submit
        self._rows: list[Row] = []
        self._bases: list[Row] = []
        self._bytes = 0
        self._parts: list[Path] = []
        self._sink: Any = None
        self._writer: Any = None
        self.n_rows = 0

    def add(self, base: Row, rows: Sequence[Row], n_bytes: int) -> None:
        """Take rows that share the columns of `base` and hold about `n_bytes` of text together."""
        self._rows.extend(rows)
        self._bases.extend([base] * len(rows))
        self._bytes += n_bytes
        self.n_rows += len(rows)
        while len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        """Submit what is left."""
        while self._rows:
            self._flush()
        self._submit(self._finish)

    def discard(self) -> None:
        """Let go of a file that could not be finished: its writer would try again, and complain, when it is collected."""
        if self._writer is not None:
            self._writer.is_open = False
            with contextlib.suppress(OSError):
                self._sink.close()
            self._writer = self._sink = None

    def seal(self) -> list[Path]:
        """Give the parts their final names, once all submitted writes are done."""
        final = [
            p.with_name(f"{self._split}-{k:05d}-of-{len(self._parts):05d}.parquet") for k, p in enumerate(self._parts)
        ]
        for part, name in zip(self._parts, final, strict=True):
            part.rename(name)
        return final

    def _flush(self) -> None:
        batch = to_batch(self._bases[:BATCH_ROWS], self._rows[:BATCH_ROWS], self._schema)
        self._rows, self._bases, self._bytes = self._rows[BATCH_ROWS:], self._bases[BATCH_ROWS:], 0
        self._submit(lambda: self._write(batch))

    def _write(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._parts.append(self._folder / f"{self._split}-{len(self._parts):05d}.part")
            self._sink = pa.OSFile(str(self._parts[-1]), "wb")
            self._writer = pq.ParquetWriter(
                self._sink,
                self._schema,
                compression="zstd",
                write_page_index=True,
                use_dictionary=_paths(self._schema, FREE_TEXT),
                write_statistics=_paths(self._schema, FREE_TEXT | {"prompt", "source_prompt"}, numbers=True),
            )
        self._writer.write_batch(batch, row_group_size=BATCH_ROWS)
        if self._sink.tell() >= SHARD_BYTES:
            self._finish()

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            self._writer = self._sink = None


def to_batch(bases: Sequence[Row], rows: Sequence[Row], schema: pa.Schema) -> pa.RecordBatch:
    """The rows as columns of the schema; `bases[i]` holds the columns that row i shares with its neighbours.

    Lone surrogates, which UTF-8 can't hold, become U+FFFD.
    """
    starts = [i for i, base in enumerate(bases) if i == 0 or base is not bases[i - 1]]
    distinct = [bases[i] for i in starts]
    repeats = None
    if len(starts) < len(rows):
        ends = [*starts[1:], len(rows)]
        repeats = pa.array(
            [k for k, (first, last) in enumerate(zip(starts, ends, strict=True)) for _ in range(last - first)]
        )
    columns = []
    for field in schema:
        if distinct and field.name in distinct[0]:
            column = _array([base[field.name] for base in distinct], field.type)
            columns.append(column if repeats is None else column.take(repeats))
        else:
            columns.append(_array([row[field.name] for row in rows], field.type))
    return pa.record_batch(columns, schema=schema)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return (
            _messages(values)
            if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)
            else pa.array(values, kind)
        )
    except UnicodeEncodeError:
        clean = _clean(values)
        return (
            _messages(clean)
            if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)
            else pa.array(clean, kind)
        )


def _messages(values: Iterable[list[dict[str, str]]]) -> pa.Array:
    """list<struct<role, content>> from its leaves: several times as fast as through dictionaries."""
    offsets, turns = [0], []
    for messages in values:
        turns.extend(messages)
        offsets.append(len(turns))
    leaves = [pa.array([m[key] for m in turns], pa.string()) for key in ("role", "content")]
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(leaves, ["role", "content"])
    )


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items()}
    return [_clean(v) for v in value] if isinstance(value, list) else value


def _paths(schema: pa.Schema, without: frozenset[str], numbers: bool = False) -> list[str]:
    """Parquet paths of the columns not named in `without`; fractions and booleans only with `numbers`."""
    return list(chain.from_iterable(_leaves(f.name, f.type, numbers) for f in schema if f.name not in without))


def _leaves(path: str, kind: pa.DataType, numbers: bool) -> list[str]:
    if pa.types.is_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type, numbers)
    if pa.types.is_struct(kind):
        return list(chain.from_iterable(_leaves(f"{path}.{f.name}", f.type, numbers) for f in kind))
    return [path] if numbers or not (pa.types.is_boolean(kind) or pa.types.is_floating(kind)) else []
