"""One config of a dataset folder -> files anywhere: `mora-data export RUN_DIR --config NAME`.

Each format is a function from a row to a row, in `FORMATS`; docs/publish.md says which document of
the reading project each follows. The files are written row by row, never all in memory.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import PublishError
from ..run.files import check_inside, replacing
from ..settings import nearest
from ..text import transcript
from . import lint, schemas
from .schemas import Row, row_batches

_FROM = {"user": "human", "assistant": "gpt", "system": "system"}
_REWARDS = ("chosen_reward_", "rejected_reward_")


class Format(NamedTuple):
    """How a config is written.

    Attributes:
        suffix: of the files; `.json` is one list, `.jsonl` a row a line.
        row: a published row as the reader wants it.
        info: LLaMA-Factory's entry for a file, but for its name.
        pairs: whether the rows must have a chosen and a rejected side.
    """

    suffix: str
    row: Callable[[Row], Row]
    info: Mapping[str, object] | None = None
    pairs: bool = True


def export_config(folder: Path, config: str, to: Path, fmt: str = "parquet") -> list[Path]:
    """The files written into `to`: `<config>-<split>` with the format's suffix, shards joined;
    `mahdpo` writes `<dimension>-<split>.json`, llamafactory a dataset_info.json beside them.

    Raises:
        PublishError: the folder has no such config (those that exist are named), the format has no
            place for it, or `to` can't be written or is in the dataset.
    """
    card = lint.read_card(folder) if (folder / "README.md").exists() else ""
    header = lint.read_header(card)
    configs = lint.declared_files(header or {})
    if config not in configs:
        raise PublishError(
            f"no config {config!r} in {folder.name}/:"
            f" {nearest(config, configs) if configs else 'it holds no dataset'}"
        )
    if to.resolve().is_relative_to(folder.resolve()):
        raise PublishError(
            f"{to} is in the dataset itself, which would not be whole any more: give another folder"
        )
    by_split = {
        split: [check_inside(folder, folder / f) for f in files]
        for split, files in configs[config].items()
    }
    schemas.check_fingerprint(folder, lint.fingerprint_in(folder))
    try:
        to.mkdir(parents=True, exist_ok=True)
        if fmt == "mahdpo":
            return _mahdpo(config, by_split, to)
        return _write_config(config, by_split, to, fmt)
    except (OSError, TypeError, ValueError, LookupError) as e:  # rows of another schema, too
        why = (isinstance(e, OSError) and e.strerror) or " ".join(str(e).split())[:100]
        raise PublishError(f"can't export {config} to {to}: {why}") from e


# rows as their readers want them


def _sharegpt(row: Row) -> Row:
    return {
        "conversations": [_turn(m) for m in row["prompt"]],
        "chosen": _turn(row["chosen"][0]),
        "rejected": _turn(row["rejected"][0]),
    }


def _alpaca(row: Row) -> Row:
    """The last user turn is the instruction, the turns before it are the history in pairs."""
    turns = [m["content"] for m in row["prompt"] if m["role"] != "system"]
    return {
        "instruction": turns[-1],
        "input": "",
        "system": "\n\n".join(m["content"] for m in row["prompt"] if m["role"] == "system"),
        "history": [[turns[i], turns[i + 1]] for i in range(0, len(turns) - 1, 2)],
        "chosen": row["chosen"][0]["content"],
        "rejected": row["rejected"][0]["content"],
    }


def _openrlhf(row: Row) -> Row:
    """Whole conversations on both sides: the prompt is what stands before the last turn."""
    whole = _binarized(row)
    names = ("prompt_id", "chosen", "rejected", "score_chosen", "score_rejected")
    return {**{name: whole[name] for name in names}, "margin": row.get("margin_total")}


def _binarized(row: Row) -> Row:
    """The columns of the binarized UltraFeedback."""
    prompt, scores = row["prompt"], [_mean(row, prefix) for prefix in _REWARDS]
    return {
        "prompt": next(m["content"] for m in reversed(prompt) if m["role"] == "user"),
        "prompt_id": row["prompt_id"],
        "chosen": [*prompt, *row["chosen"]],
        "rejected": [*prompt, *row["rejected"]],
        "messages": [*prompt, *row["chosen"]],
        "score_chosen": scores[0],
        "score_rejected": scores[1],
    }


def _axolotl(row: Row) -> Row:
    return {"messages": row["prompt"], "chosen": row["chosen"][0], "rejected": row["rejected"][0]}


def _openai(row: Row) -> Row:
    return {
        "input": {"messages": row["prompt"], "tools": [], "parallel_tool_calls": True},
        "preferred_output": row["chosen"],
        "non_preferred_output": row["rejected"],
    }


def _csv(row: Row) -> Row:
    """Text where a cell holds one turn, JSON where it holds a list."""
    return {name: _cell(value) for name, value in row.items()}


_SIDES = {"chosen": "chosen", "rejected": "rejected"}
_CHAT = {"messages": "conversations", **_SIDES}
_INSTRUCTION = {"prompt": "instruction", "query": "input", "system": "system", **_SIDES}
FORMATS = {
    "parquet": Format(".parquet", dict, pairs=False),
    "jsonl": Format(".jsonl", dict, pairs=False),
    "csv": Format(".csv", _csv, pairs=False),
    "binarized": Format(".jsonl", _binarized),
    "llamafactory": Format(".json", _sharegpt, {"formatting": "sharegpt", "columns": _CHAT}),
    "llamafactory-alpaca": Format(
        ".json",
        _alpaca,
        {"formatting": "alpaca", "columns": {**_INSTRUCTION, "history": "history"}},
    ),
    "openrlhf": Format(".jsonl", _openrlhf),
    "axolotl": Format(".jsonl", _axolotl),
    "openai": Format(".jsonl", _openai),
    "mahdpo": Format(".json", dict),
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


def _turn(message: dict[str, str]) -> dict[str, str]:
    return {"from": _FROM[message["role"]], "value": message["content"]}


def _mean(row: Row, prefix: str) -> float | None:
    """The mean of the rewards of one side that are known."""
    found = [v for name, v in row.items() if name.startswith(prefix) and v is not None]
    return sum(found) / len(found) if found else None


def _cell(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) == 1 and isinstance(value[0], dict) and value[0].keys() == {"role", "content"}:
        return value[0]["content"]
    return orjson.dumps(value).decode()


# files


def _write_config(config: str, by_split: dict[str, list[Path]], to: Path, fmt: str) -> list[Path]:
    form = FORMATS[fmt]
    names = _schema(next(iter(by_split.values()))[0]).names
    if form.pairs and "chosen" not in names:
        raise PublishError(f"{fmt} wants pairs, and {config} has none: --config preference")
    out = {split: to / f"{config}-{split}{form.suffix}" for split in by_split}
    for split, files in by_split.items():
        if fmt == "parquet":
            _write_parquet(out[split], files)
        else:
            _write_rows(out[split], map(form.row, _rows(files)))
    if form.info is None:
        return [*out.values()]
    info = {p.stem: {"file_name": p.name, "ranking": True, **form.info} for p in out.values()}
    with replacing(to / "dataset_info.json", durable=False) as part:
        part.write_text(json.dumps(info, indent=2) + "\n", "utf-8")
    return [*out.values(), to / "dataset_info.json"]


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
            rows = _rows([f for f in files if f.parent.name == name])
            written.append(to / f"{dim}-{split}.json")
            _write_rows(written[-1], (_mahdpo_row(row, dims) for row in rows))
    return written


def _rows(files: Iterable[Path]) -> Iterator[Row]:
    return chain.from_iterable(row_batches(files))


def _schema(path: Path) -> pa.Schema:
    return schemas.footer_of(path).schema.to_arrow_schema()


def _write_rows(out: Path, rows: Iterable[Row]) -> None:
    """A file is there whole or not at all."""
    with replacing(out, durable=False) as part:
        if out.suffix == ".csv":
            _write_csv(part, rows)
            return
        before, between, after = (
            (b"[\n", b",\n", b"\n]\n") if out.suffix == ".json" else (b"", b"\n", b"\n")
        )
        with part.open("wb") as f:
            mark = before
            for row in rows:
                f.write(mark + orjson.dumps(row))
                mark = between
            f.write(after if mark == between else before + after.lstrip())


def _write_csv(part: Path, rows: Iterable[Row]) -> None:
    with part.open("w", encoding="utf-8", newline="") as f:
        writer = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(f, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)


def _write_parquet(out: Path, files: list[Path]) -> None:
    with (
        replacing(out, durable=False) as part,
        pq.ParquetWriter(
            part, _schema(files[0]), compression="zstd", write_page_index=True
        ) as writer,
    ):
        for path in files:
            for batch in schemas.record_batches(path):
                writer.write_batch(batch)
