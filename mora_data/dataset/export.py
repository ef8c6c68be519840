"""One config of a dataset folder -> files anywhere: `mora-data export RUN_DIR --config NAME`.

parquet, jsonl   the rows as they are
llamafactory     LLaMA-Factory's preference JSON and the dataset_info.json that names it
mahdpo           MAH-DPO's JSON: one file per dimension, the same prompts in each
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import PublishError
from ..run.files import check_inside, replacing
from ..settings import nearest
from ..text import transcript
from . import lint, schemas
from .schemas import Row, row_batches

Format = Literal["parquet", "jsonl", "llamafactory", "mahdpo"]
_FROM = {"user": "human", "assistant": "gpt", "system": "system"}


def export_config(folder: Path, config: str, to: Path, fmt: Format = "parquet") -> list[Path]:
    """The files written into `to`: `<config>-<split>.parquet` with shards joined, `.jsonl` with one
    row a line, or `.json`.

    Raises:
        PublishError: the folder has no such config (those that exist are named), the format has no
            place for it, or `to` can't be written.
    """
    card = lint.read_card(folder) if (folder / "README.md").exists() else ""
    header = lint.read_header(card)
    configs = lint.declared_files(header or {})
    if config not in configs:
        raise PublishError(
            f"no config {config!r} in {folder.name}/:"
            f" {nearest(config, configs) if configs else 'it holds no dataset'}"
        )
    by_split = {
        split: [check_inside(folder, folder / f) for f in files]
        for split, files in configs[config].items()
    }
    schemas.check_fingerprint(folder, lint.fingerprint_in(folder))
    try:
        to.mkdir(parents=True, exist_ok=True)
        if fmt == "llamafactory":
            return _llamafactory(config, by_split, to)
        if fmt == "mahdpo":
            return _mahdpo(config, by_split, to)
        copy = _copy_parquet if fmt == "parquet" else _copy_jsonl
        return [
            _whole(to / f"{config}-{split}.{fmt}", partial(copy, files))
            for split, files in by_split.items()
        ]
    except (OSError, TypeError, ValueError, LookupError) as e:  # rows of another schema, too
        why = (isinstance(e, OSError) and e.strerror) or " ".join(str(e).split())[:100]
        raise PublishError(f"can't export {config} to {to}: {why}") from e


def _llamafactory_row(row: Row) -> Row:
    """A pair as LLaMA-Factory reads it: conversations, chosen and rejected, each turn with `from`
    and `value`."""
    return {
        "conversations": [_turn(m) for m in row["prompt"]],
        "chosen": _turn(row["chosen"][0]),
        "rejected": _turn(row["rejected"][0]),
    }


def _mahdpo_row(row: Row, dimensions: list[str]) -> Row:
    """A pair as MAH-DPO reads it; several turns of a prompt are `role: content` lines."""
    return {
        "question": transcript(row["prompt"]),
        "chosen": row["chosen"][0]["content"],
        "rejected": row["rejected"][0]["content"],
        "dimension": row["dimension"],
        "dimension_id": dimensions.index(row["dimension"]),
        "prompt_id": row["prompt_id"],
    }


def _llamafactory(config: str, by_split: dict[str, list[Path]], to: Path) -> list[Path]:
    if "chosen" not in _schema(next(iter(by_split.values()))[0]).names:
        raise PublishError(f"llamafactory wants pairs, and {config} has none: --config preference")
    written = [
        _whole(to / f"{config}-{split}.json", _json_writer(map(_llamafactory_row, _rows(files))))
        for split, files in by_split.items()
    ]
    info = {
        path.stem: {
            "file_name": path.name,
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        }
        for path in written
    }
    text = json.dumps(info, indent=2) + "\n"
    return [*written, _whole(to / "dataset_info.json", lambda part: part.write_text(text, "utf-8"))]


def _mahdpo(config: str, by_split: dict[str, list[Path]], to: Path) -> list[Path]:
    """One file per dimension and split. The configs are aligned, so all files of a split have the
    same size."""
    if config != schemas.BY_DIM_UNION:
        raise PublishError(
            f"mahdpo wants one file per dimension: --config {schemas.BY_DIM_UNION}, not {config}"
        )
    names = list(dict.fromkeys(f.parent.name for files in by_split.values() for f in files))
    dims = [name.removeprefix("preference_") for name in names]
    written = []
    for split, files in by_split.items():
        sizes = {
            n: sum(schemas.footer_of(f).num_rows for f in files if f.parent.name == n)
            for n in names
        }
        if len(set(sizes.values())) > 1:
            raise PublishError(
                f"the dimensions of {split} differ in size ({sizes}), although they are aligned:"
                " build again"
            )
        for name, dim in zip(names, dims, strict=True):
            rows = (
                _mahdpo_row(row, dims) for row in _rows([f for f in files if f.parent.name == name])
            )
            written.append(_whole(to / f"{dim}-{split}.json", _json_writer(rows)))
    return written


def _turn(message: dict[str, str]) -> dict[str, str]:
    return {"from": _FROM[message["role"]], "value": message["content"]}


def _rows(files: Iterable[Path]) -> Iterable[Row]:
    return chain.from_iterable(row_batches(files))


def _schema(path: Path) -> pa.Schema:
    return schemas.footer_of(path).schema.to_arrow_schema()


def _whole(out: Path, write: Callable[[Path], object]) -> Path:
    """A file is there whole or not at all."""
    with replacing(out, durable=False) as part:
        write(part)
    return out


def _json_writer(rows: Iterable[object]) -> Callable[[Path], None]:
    """One JSON list, a row a line, never all in memory."""

    def write(out: Path) -> None:
        with out.open("w", encoding="utf-8") as f:
            mark = "[\n"
            for row in rows:
                f.write(mark + json.dumps(row, ensure_ascii=False))
                mark = ",\n"
            f.write("[]\n" if mark == "[\n" else "\n]\n")

    return write


def _copy_parquet(files: list[Path], out: Path) -> None:
    with pq.ParquetWriter(
        out, _schema(files[0]), compression="zstd", write_page_index=True
    ) as writer:
        for path in files:
            for batch in schemas.record_batches(path):
                writer.write_batch(batch)


def _copy_jsonl(files: list[Path], out: Path) -> None:
    with out.open("w", encoding="utf-8") as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(files))
