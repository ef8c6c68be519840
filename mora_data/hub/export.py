"""One config of a dataset folder -> files anywhere: `mora-data export RUN_DIR --config NAME --to DIR`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from ..config import nearest
from ..errors import PublishError
from . import lint


def export_config(folder: Path, config: str, to: Path, fmt: Literal["parquet", "jsonl"] = "parquet") -> list[Path]:
    """The files written into `to`: `<config>-<split>.parquet`, with shards joined, or `.jsonl` with one row a line.

    Raises:
        PublishError: the folder has no such config (those that exist are named), or `to` can't be written.
    """
    header = lint.read_header((folder / "README.md").read_text("utf-8")) if (folder / "README.md").is_file() else None
    configs = lint.declared(header or {})
    if config not in configs:
        raise PublishError(
            f"no config {config!r} in {folder.name}/: {nearest(config, configs) if configs else 'it holds no dataset'}"
        )
    written = []
    try:
        to.mkdir(parents=True, exist_ok=True)
        for split, files in configs[config].items():
            out = to / f"{config}-{split}.{fmt}"
            part = out.with_name(f".{out.name}.part")
            (_copy_parquet if fmt == "parquet" else _copy_jsonl)([folder / f for f in files], part)
            part.replace(out)
            written.append(out)
    except OSError as e:
        raise PublishError(f"can't export {config} to {to}: {e.strerror or e}") from e
    return written


def _copy_parquet(files: list[Path], out: Path) -> None:
    with pq.ParquetWriter(out, pq.read_schema(files[0]), compression="zstd", write_page_index=True) as writer:
        for path in files:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
                writer.write_batch(batch)


def _copy_jsonl(files: list[Path], out: Path) -> None:
    with out.open("w", encoding="utf-8") as f:
        for path in files:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
                f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
