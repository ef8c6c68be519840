"""Rows of one config and split -> Parquet shards, in batches, with one explicit schema.

A batch is 1,000 rows (fewer when they are large) and one row group. The bytes depend on the rows
and on pyarrow's version, on nothing else.
"""

from __future__ import annotations

import contextlib
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 1000
BATCH_BYTES = 32 << 20
SHARD_BYTES = 500 << 20
FREE_TEXT = frozenset({"chosen", "rejected", "completion", "response", "completions", "pair_id"})


class ShardWriter:
    """Writes `<split>-<k>.part` files into a config's folder; `seal` gives them their final
    names."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema) -> None:
        self._folder, self._split, self._schema = folder, split, schema
        self._held: list[pa.RecordBatch] = []
        self._n_held = 0
        self._parts: list[Path] = []
        self._sink: Any = None
        self._writer: Any = None
        self.n_rows = 0

    def add(self, rows: pa.RecordBatch) -> None:
        """Take rows in the writer's schema."""
        if not rows.num_rows:
            return
        self._held.append(rows)
        self._n_held += rows.num_rows
        self.n_rows += rows.num_rows
        if self._n_held >= BATCH_ROWS or sum(b.nbytes for b in self._held) >= BATCH_BYTES:
            self._flush(last=False)

    def close(self) -> None:
        """Write what is left."""
        self._flush(last=True)
        self._finish()

    def discard(self) -> None:
        """Let go of a file that could not be finished: its writer would try again, and complain,
        when it is collected."""
        if self._writer is not None:
            self._writer.is_open = False
            with contextlib.suppress(OSError):
                self._sink.close()
            self._writer = self._sink = None

    def seal(self) -> list[Path]:
        """Give the parts their final names, once all is written."""
        final = [
            p.with_name(f"{self._split}-{k:05d}-of-{len(self._parts):05d}.parquet")
            for k, p in enumerate(self._parts)
        ]
        for part, name in zip(self._parts, final, strict=True):
            part.rename(name)
        return final

    def _flush(self, last: bool) -> None:
        """Write whole row groups; what is left waits for more rows, unless these are the `last`
        ones."""
        table = pa.Table.from_batches(self._held, self._schema)
        mean = max(table.nbytes // max(table.num_rows, 1), 1)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // mean))
        stop = table.num_rows if last else table.num_rows - table.num_rows % rows
        for at in range(0, stop, rows):
            self._write(table.slice(at, min(rows, stop - at)))
        self._n_held = table.num_rows - stop
        # a copy: a slice would keep all the rows alive
        left = table.take(pa.array(range(stop, table.num_rows), pa.int64()))
        self._held = left.to_batches() if self._n_held else []

    def _write(self, group: pa.Table) -> None:
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
                write_statistics=_paths(
                    self._schema, FREE_TEXT | {"prompt", "source_prompt"}, numbers=True
                ),
            )
        self._writer.write_table(group.combine_chunks(), row_group_size=BATCH_ROWS)
        if self._sink.tell() >= SHARD_BYTES:
            self._finish()

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            self._writer = self._sink = None


def _paths(schema: pa.Schema, without: frozenset[str], numbers: bool = False) -> list[str]:
    """Parquet paths of the columns not named in `without`; fractions and booleans only with
    `numbers`."""
    return list(
        chain.from_iterable(
            _leaves(f.name, f.type, numbers) for f in schema if f.name not in without
        )
    )


def _leaves(path: str, kind: pa.DataType, numbers: bool) -> list[str]:
    if pa.types.is_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type, numbers)
    if pa.types.is_struct(kind):
        return list(chain.from_iterable(_leaves(f"{path}.{f.name}", f.type, numbers) for f in kind))
    return (
        [path] if numbers or not (pa.types.is_boolean(kind) or pa.types.is_floating(kind)) else []
    )
