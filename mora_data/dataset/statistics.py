"""Numbers of the card that come from the written rows, read back from `preference` one column at a
time.

Memory: one column of numbers (8 bytes a row) is held at most; texts are counted batch by batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXAMPLE_CHARS = 600
_EXAMPLE_ROWS = 1000
_BATCH_ROWS = 1 << 16


def of_pairs(folder: Path, dims: tuple[str, ...]) -> dict[str, Any]:
    """Margins per dimension, lengths and composition of `preference`, all splits together; {}
    without pairs."""
    files = sorted((folder / "preference").glob("*.parquet"))
    if not files:
        return {}
    n = sum(pq.read_metadata(f).num_rows for f in files)
    longer, chosen, rejected = _lengths(files)
    return {
        "pairs": n,
        "prompts": _distinct(files, "prompt_id"),
        "margins": {
            d: _spread(_numbers(files, f"margin_{d}"), _numbers(files, f"margin_confirmed_{d}"))
            for d in dims
        },
        "margin_total": _spread(_numbers(files, "margin_total"), None),
        "chosen_longer": _round(longer / n),
        "length": {"chosen": _round(chosen / n), "rejected": _round(rejected / n)},
        **{name: _tally(files, name) for name in ("kind", "arm", "category")},
    }


def example_pair(
    folder: Path, dims: tuple[str, ...], floors: Mapping[str, float]
) -> dict[str, Any] | None:
    """The shortest early training pair whose two answers pass the `harmless` floor; None if none is
    known to."""
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
    batch = next(
        pq.ParquetFile(files[0]).iter_batches(batch_size=_EXAMPLE_ROWS, columns=names), None
    )
    floor = floors["harmless"]
    safe = [
        r
        for r in (batch.to_pylist() if batch is not None else [])
        if min(_number(r["chosen_reward_harmless"]), _number(r["rejected_reward_harmless"]))
        >= floor
    ]
    return min(
        safe,
        key=lambda r: sum(
            len(m["content"]) for k in ("prompt", "chosen", "rejected") for m in r[k]
        ),
        default=None,
    )


def _number(value: float | None) -> float:
    return -1.0 if value is None else value


def _batches(files: list[Path], *columns: str) -> Iterator[pa.RecordBatch]:
    """The columns, some row groups at a time."""
    for path in files:
        yield from pq.ParquetFile(path).iter_batches(batch_size=_BATCH_ROWS, columns=list(columns))


def _numbers(files: list[Path], column: str) -> NDArray[np.float64]:
    """The numbers of a column that are there."""
    parts = [batch[column].drop_null().to_numpy() for batch in _batches(files, column)]
    return np.concatenate(parts) if parts else np.empty(0)


def _lengths(files: list[Path]) -> tuple[int, int, int]:
    """How often `chosen` is the longer one, and the sums of both lengths."""
    total = np.zeros(3, np.int64)
    for batch in _batches(files, "len_chosen", "len_rejected"):
        chosen, rejected = batch["len_chosen"].to_numpy(), batch["len_rejected"].to_numpy()
        total += ((chosen > rejected).sum(), chosen.sum(), rejected.sum())
    return int(total[0]), int(total[1]), int(total[2])


def _distinct(files: list[Path], column: str) -> int:
    """How many different values a column of texts has; a hash of 8 bytes is held for each."""
    hashes = [
        b"".join(
            blake2b(v.encode(), digest_size=8).digest() for v in batch[column].unique().to_pylist()
        )
        for batch in _batches(files, column)
    ]
    return len(np.unique(np.frombuffer(b"".join(hashes), np.uint64)))


def _spread(known: NDArray[np.float64], again: NDArray[np.float64] | None) -> dict[str, Any]:
    out: dict[str, Any] = {"n": len(known)}
    if len(known):
        p10, p50, p90 = np.percentile(known, (10, 50, 90)).tolist()
        out |= {
            "p10": _round(p10),
            "p50": _round(p50),
            "p90": _round(p90),
            "positive": _round(float((known > 0).mean())),
        }
    if again is not None and again.size:
        out |= {"n_confirmed": len(again), "confirmed_p50": _round(float(np.median(again)))}
    return out


def _tally(files: list[Path], column: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for batch in _batches(files, column):
        found = pc.value_counts(batch[column]).to_pylist()
        counts.update({str(v["values"]): v["counts"] for v in found if v["values"] is not None})
    return dict(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
