"""Numbers of the card that come from the written rows, read back from single columns of `preference`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

EXAMPLE_CHARS = 600
_EXAMPLE_ROWS = 1000


def of_pairs(folder: Path, dims: tuple[str, ...]) -> dict[str, Any]:
    """Margins per dimension, lengths and composition of `preference`, all splits together; {} without pairs."""
    files = sorted((folder / "preference").glob("*.parquet"))
    if not files:
        return {}
    names = [
        *(f"margin_{d}" for d in dims),
        *(f"margin_confirmed_{d}" for d in dims),
        "margin_total",
        "len_chosen",
        "len_rejected",
        "kind",
        "arm",
        "category",
        "prompt_id",
    ]
    table = pa.concat_tables([pq.read_table(f, columns=names, partitioning=None) for f in files])
    longer = pc.mean(pc.greater(table["len_chosen"], table["len_rejected"]).cast(pa.float64())).as_py()
    return {
        "pairs": table.num_rows,
        "prompts": pc.count_distinct(table["prompt_id"]).as_py(),
        "margins": {d: _spread(table[f"margin_{d}"], table[f"margin_confirmed_{d}"]) for d in dims},
        "margin_total": _spread(table["margin_total"], None),
        "chosen_longer": _round(longer),
        "length": {side: _round(pc.mean(table[f"len_{side}"]).as_py()) for side in ("chosen", "rejected")},
        "kind": _tally(table["kind"]),
        "arm": _tally(table["arm"]),
        "category": _tally(table["category"]),
    }


def example_pair(folder: Path, dims: tuple[str, ...], floors: Mapping[str, float]) -> dict[str, Any] | None:
    """The shortest early training pair whose two answers pass the `harmless` floor; None if none is known to."""
    files = sorted((folder / "preference").glob("train-*.parquet"))
    if not files or "harmless" not in dims or "harmless" not in floors:
        return None
    names = [
        "prompt",
        "chosen",
        "rejected",
        *(f"margin_{d}" for d in dims),
        "chosen_reward_harmless",
        "rejected_reward_harmless",
    ]
    batch = next(pq.ParquetFile(files[0]).iter_batches(batch_size=_EXAMPLE_ROWS, columns=names), None)
    floor = floors["harmless"]
    safe = [
        r
        for r in (batch.to_pylist() if batch is not None else [])
        if min(_number(r["chosen_reward_harmless"]), _number(r["rejected_reward_harmless"])) >= floor
    ]
    return min(
        safe, key=lambda r: sum(len(m["content"]) for k in ("prompt", "chosen", "rejected") for m in r[k]), default=None
    )


def _number(value: float | None) -> float:
    return -1.0 if value is None else value


def _spread(column: pa.ChunkedArray, confirmed: pa.ChunkedArray | None) -> dict[str, Any]:
    known = column.drop_null().to_numpy()
    out: dict[str, Any] = {"n": len(known)}
    if len(known):
        out |= {f"p{q}": _round(float(np.percentile(known, q))) for q in (10, 50, 90)}
        out["positive"] = _round(float((known > 0).mean()))
    if confirmed is not None and (again := confirmed.drop_null().to_numpy()).size:
        out |= {"n_confirmed": len(again), "confirmed_p50": _round(float(np.median(again)))}
    return out


def _tally(column: pa.ChunkedArray) -> dict[str, int]:
    counts = {
        str(v["values"]): int(v["counts"]) for v in pc.value_counts(column).to_pylist() if v["values"] is not None
    }
    return dict(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
