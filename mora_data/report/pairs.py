"""What the pairs are worth: margins and how they held, length, refusals, wording. From `preference`
and its candidates."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import statistics as st
from ..rewards.rules import is_refusal
from ..run.partitions import lean_arrow
from ..text import digest
from .clusters import MOST, batch_of
from .numbers import number, share
from .texts import auc, probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROBED = 1000  # pairs whose wording is looked at
SHOWN = 6
QUANTILES = np.linspace(0, 1, 41)
DRAWS = 1000
SIDES = ("chosen", "rejected")
TALLIED = {
    "arm": "arm",
    "kind": "kind",
    "category": "category",
    "source_dataset": "source",
    "carried_dim": "carried",
}


@dataclass
class Pairs:
    """Numbers of `preference`, all splits together, in columns: 75 bytes a pair. Texts only of the
    pairs that the probe reads.

    Attributes:
        ids_Q, prompts_Q: the 16 hex digits of pair_id and prompt_id as numbers.
        margins_Q_D, confirmed_Q_D: of each pair, NaN where not scored again.
        lengths_Q_2: chosen, rejected, in word and punctuation tokens.
        refused_Q_2: whether each side opens by declining.
        tallies: column -> pairs by value, "none" for null.
        composition: pairs by (category, kind).
        by_class: carried dimension -> pairs whose chosen, whose rejected answer declines, and all
            of them.
        first: ids that come first by their hash.
        probed: positions of the pairs that the probe reads; `chosen` and `rejected` are their
            texts.
    """

    ids_Q: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    prompts_Q: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    margins_Q_D: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    confirmed_Q_D: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    lengths_Q_2: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    refused_Q_2: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 2), bool))
    tallies: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in TALLIED}
    )
    composition: Counter[tuple[str, str]] = field(default_factory=Counter)
    by_class: dict[str, NDArray[np.int_]] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    probed: list[int] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids_Q)


def read_pairs(dataset: Path, dims: Sequence[str]) -> Pairs:
    """The rows of `preference`; none where it was not written."""
    import pyarrow.parquet as pq

    lean_arrow()
    files = sorted((dataset / "preference").glob("*.parquet"))
    n = sum(pq.read_metadata(f).num_rows for f in files)
    every = max(1, -(-n // PROBED))
    wanted = [
        "pair_id",
        "prompt_id",
        *TALLIED,
        *(f"len_{side}" for side in SIDES),
        *SIDES,
        *(f"{m}_{d}" for m in ("margin", "margin_confirmed") for d in dims),
    ]
    shape = (n, len(dims))
    out = Pairs(
        np.zeros(n, np.uint64),
        np.zeros(n, np.uint64),
        np.zeros(shape),
        np.zeros(shape),
        np.zeros((n, 2), np.int32),
        np.zeros((n, 2), bool),
    )
    at = 0
    for f in files:
        for batch in pq.ParquetFile(f).iter_batches(1000, columns=wanted, use_threads=False):
            _add(out, at, {name: batch.column(name) for name in batch.schema.names}, dims, every)
            at += len(batch)
    return out


def _add(out: Pairs, at: int, column: Mapping[str, Any], dims: Sequence[str], every: int) -> None:
    ids, n = column["pair_id"].to_pylist(), len(column["pair_id"])
    here = slice(at, at + n)
    out.ids_Q[here] = [int(i, 16) for i in ids]
    out.prompts_Q[here] = [int(i, 16) for i in column["prompt_id"].to_pylist()]
    values = {name: [v or "none" for v in column[name].to_pylist()] for name in TALLIED}
    for name, held in values.items():
        out.tallies[name].update(held)
    out.composition.update(zip(values["category"], values["kind"], strict=True))
    out.first = heapq.nsmallest(SHOWN, [*out.first, *ids], key=lambda i: digest("example", i))
    sides = [_text_of(column[s]) for s in SIDES]
    for i, pair_id in enumerate(ids):
        if int(pair_id[:12], 16) % every == 0:
            out.probed.append(at + i)
            out.chosen.append(sides[0][i])
            out.rejected.append(sides[1][i])
    for k, side in enumerate(SIDES):
        out.refused_Q_2[here, k] = [is_refusal(t) for t in sides[k]]
        out.lengths_Q_2[here, k] = column[f"len_{side}"].to_numpy(zero_copy_only=False)
    for j, d in enumerate(dims):
        out.margins_Q_D[here, j] = column[f"margin_{d}"].to_numpy(zero_copy_only=False)
        out.confirmed_Q_D[here, j] = column[f"margin_confirmed_{d}"].to_numpy(zero_copy_only=False)
    carried = np.array(values["carried_dim"], dtype=object)
    for c in set(values["carried_dim"]):
        rows = out.refused_Q_2[here][carried == c]
        out.by_class[c] = out.by_class.get(c, np.zeros(3, int)) + np.array(
            [*rows.sum(0), len(rows)]
        )


def _text_of(messages: Any) -> list[str]:
    import pyarrow.compute as pc

    # one assistant turn each
    return [str(t) for t in pc.list_flatten(messages).field("content").to_pylist()]


def pairs_of_run(
    p: Pairs, dims: Sequence[str], sigma: Sequence[float], seed: int
) -> dict[str, Any]:
    """`pairs` of report.json; {"n": 0} without pairs."""
    n = len(p)
    if not n:
        return {"n": 0}
    prompts, clusters = np.unique(p.prompts_Q, return_inverse=True)
    if len(prompts) > MOST:
        clusters = batch_of(p.prompts_Q)
    gap = np.log(np.maximum(p.lengths_Q_2[:, 0], 1) / np.maximum(p.lengths_Q_2[:, 1], 1))
    low, value, high = _mean(gap, clusters, seed)
    longer = int((gap > 0).sum())
    total = p.margins_Q_D.sum(1)
    by_rule = p.refused_Q_2[:, 0].astype(int) - p.refused_Q_2[:, 1]
    return {
        "n": n,
        "prompts": len(prompts),
        **{name: _tally(p.tallies[column]) for column, name in TALLIED.items()},
        "margins": {
            d: _margin(p.margins_Q_D[:, j], p.confirmed_Q_D[:, j], sigma[j], clusters, seed)
            for j, d in enumerate(dims)
        },
        "neg_dim_rate": share(int((p.margins_Q_D < -1e-9).any(1).sum()), n),
        "neg_dim_rate_confirmed": share(
            int((p.confirmed_Q_D < -1e-9).any(1).sum()),
            int((~np.isnan(p.confirmed_Q_D)).all(1).sum()),
        ),
        "length": {
            "log_ratio": {"value": value, "low": low, "high": high, "n": n},
            "chosen_longer": share(longer, n),
            "equal": share(int((gap == 0).sum()), n),
            "auc": number(auc(*p.lengths_Q_2.T.astype(float))),
            "margin_correlation": _spearman(gap, total),
        },
        "refusal": {
            "chosen": share(int(p.refused_Q_2[:, 0].sum()), n),
            "rejected": share(int(p.refused_Q_2[:, 1].sum()), n),
            "one_side_refuses": share(int((by_rule != 0).sum()), n),
            "rejected_where_one_refuses": share(
                int((by_rule < 0).sum()), int((by_rule != 0).sum())
            ),
            "by_class": _refusal_by_class(p),
        },
        "wording": probe(
            p.chosen, p.rejected, np.unique(p.prompts_Q[p.probed], return_inverse=True)[1]
        ),
        "wording_pairs": len(p.probed),
    }


def examples(p: Pairs) -> dict[str, list[str]]:
    """Ids of pairs to read: six by the hash of their ids; three that held least, three of the
    largest length gap."""
    if not len(p):
        return {"random": [], "worst": []}
    confirmed = np.where(np.isnan(p.confirmed_Q_D).any(1), np.inf, p.confirmed_Q_D.sum(1))
    gap = np.abs(np.log(np.maximum(p.lengths_Q_2[:, 0], 1) / np.maximum(p.lengths_Q_2[:, 1], 1)))
    held = np.lexsort((p.ids_Q, confirmed))[: SHOWN // 2].tolist()
    far = [i for i in np.lexsort((p.ids_Q, -gap))[: 2 * SHOWN].tolist() if i not in held][
        : SHOWN - len(held)
    ]
    return {"random": p.first, "worst": [f"{int(p.ids_Q[i]):016x}" for i in (*held, *far)]}


def rows_of(
    dataset: Path, pair_ids: Sequence[str], dims: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The pairs of these ids with their texts, in the order given."""
    import pyarrow.parquet as pq

    names = [
        "pair_id",
        "arm",
        "kind",
        "category",
        "source_prompt",
        "prompt",
        "chosen",
        "rejected",
        "len_chosen",
        "len_rejected",
        *(
            f"{m}_{d}"
            for d in dims
            for m in ("chosen_reward", "rejected_reward", "margin", "margin_confirmed")
        ),
    ]
    found = {}
    for f in sorted((dataset / "preference").glob("*.parquet")):
        for row in (
            pq.read_table(f, columns=names, filters=[("pair_id", "in", list(pair_ids))]).to_pylist()
            if pair_ids
            else []
        ):
            found[row["pair_id"]] = row
    yield from (found[i] for i in pair_ids if i in found)


def _margin(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    sigma: float,
    clusters: NDArray[np.int_],
    seed: int,
) -> dict[str, Any]:
    known, again = first[~np.isnan(first)], second[~np.isnan(second)]
    low, value, high = _mean(first, clusters, seed)
    out = {
        "mean": {"value": value, "low": low, "high": high, "n": len(known)},
        "quantiles": [number(q) for q in np.quantile(known, QUANTILES)] if len(known) else [],
        "above_noise": share(int((known > 2 * sigma).sum()), len(known)),
        "confirmed": None,
        "quantiles_confirmed": [],
    }
    if len(again):
        low, value, high = _mean(second, clusters, seed)
        out |= {
            "confirmed": {"value": value, "low": low, "high": high, "n": len(again)},
            "quantiles_confirmed": [number(q) for q in np.quantile(again, QUANTILES)],
        }
    return out


def _mean(
    values: NDArray[np.float64], clusters: NDArray[np.int_], seed: int
) -> tuple[float | None, float | None, float | None]:
    boot = st.cluster_bootstrap(values[:, None], clusters, DRAWS, seed)
    low, high = boot.percentile()
    return number(low[0]), number(boot.estimate_M[0]), number(high[0])


def _refusal_by_class(p: Pairs) -> dict[str, Any]:
    return {
        c: {
            side: share(int(p.by_class[c][k]), int(p.by_class[c][2]))
            for k, side in enumerate(SIDES)
        }
        for c in sorted(p.by_class)
    }


def _tally(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    ok = ~np.isnan(a) & ~np.isnan(b)
    ranks = [_ranks(v[ok]) for v in (a, b)]
    if ok.sum() < 3 or any(r.std() == 0 for r in ranks):
        return None
    return number(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, at, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[at])
