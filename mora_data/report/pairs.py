"""What the published pairs are worth: margins, confirmed or not, length, refusals, and what wording
alone gives away; and how varied prompts are by their words.

Of words: own numpy, no model, no extra dependency. The probe is a logistic regression on hashed
words (TF-IDF, 2,048 columns), tested on prompts that it has not seen.
"""

from __future__ import annotations

import heapq
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import UNREADABLE
from ..rewards.rules import is_refusal
from ..run.files import readable
from ..run.partitions import lean_arrow
from ..statistics import Floats, Ints
from ..statistics.inference import cluster_bootstrap
from ..statistics.judges import AgreementSums
from ..text import commonest_first, digest
from .measure import MOST, cluster_batch
from .values import (
    Composition,
    Diversity,
    Estimate,
    LengthFigure,
    MarginNumbers,
    PairNumbers,
    ReviewNumbers,
    Wording,
    cell,
    rounded,
    share,
)

PROBED = 1000  # pairs whose wording is looked at
SHOWN = 6
QUANTILES = np.linspace(0, 1, 41)
DRAWS = 1000
SIDES = ("chosen", "rejected")
PER_DIMENSION = ("chosen_reward", "rejected_reward", "margin", "margin_confirmed")
GRID = 24  # cells of a side of the length x margin figure
TALLIED = ("arm", "kind", "category", "source_dataset", "carried_dim")


class PairTable:
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

    def __init__(self, n: int = 0, n_dims: int = 0) -> None:
        self.ids_Q, self.prompts_Q = np.zeros((2, n), np.uint64)
        self.margins_Q_D, self.confirmed_Q_D = np.zeros((2, n, n_dims))
        self.lengths_Q_2 = np.zeros((n, 2), np.int32)
        self.refused_Q_2 = np.zeros((n, 2), bool)
        self.tallies = {name: Counter[str]() for name in TALLIED}
        self.composition: Counter[tuple[str, str]] = Counter()
        self.by_class: dict[str, Ints] = {}
        self.first: list[str] = []
        self.probed: list[int] = []
        self.chosen: list[str] = []
        self.rejected: list[str] = []

    def __len__(self) -> int:
        return len(self.ids_Q)

    def length_ratio_Q(self) -> Floats:
        """The chosen answer's length over the rejected one's."""
        lengths = np.maximum(self.lengths_Q_2, 1)
        return lengths[:, 0] / lengths[:, 1]


def read_pairs(dataset: Path, dims: Sequence[str]) -> PairTable:
    """The rows of `preference`; none where it was not written.

    Raises:
        DamagedFile: a file of them can't be read.
    """
    lean_arrow()
    from ..dataset.schemas import AGAIN, footer_of, record_batches

    files = sorted((dataset / "preference").glob("*.parquet"))
    n = sum(footer_of(f).num_rows for f in files)
    every = max(1, -(-n // PROBED))
    wanted = [
        "pair_id",
        "prompt_id",
        *TALLIED,
        *(f"len_{side}" for side in SIDES),
        *SIDES,
        *(f"{m}_{d}" for m in ("margin", "margin_confirmed") for d in dims),
    ]
    out = PairTable(n, len(dims))
    at = 0
    for f in files:
        for batch in record_batches(f, wanted):
            with readable(f, AGAIN):
                column = {name: batch.column(name) for name in wanted}
                _add(out, at, column, dims, every)
            at += len(batch)
    return out


def _add(
    out: PairTable, at: int, column: Mapping[str, Any], dims: Sequence[str], every: int
) -> None:
    ids, n = column["pair_id"].to_pylist(), len(column["pair_id"])
    here = slice(at, at + n)
    out.ids_Q[here] = [int(i, 16) for i in ids]
    out.prompts_Q[here] = [int(i, 16) for i in column["prompt_id"].to_pylist()]
    values = {name: [v or "none" for v in column[name].to_pylist()] for name in TALLIED}
    for name, labels in values.items():
        out.tallies[name].update(labels)
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


def pair_numbers(
    p: PairTable, dims: Sequence[str], sigma: Sequence[float], seed: int
) -> PairNumbers:
    """`pairs` of report.json; {"n": 0} without pairs."""
    n = len(p)
    if not n:
        return cast(PairNumbers, {"n": 0})
    prompts, clusters = np.unique(p.prompts_Q, return_inverse=True)
    if len(prompts) > MOST:
        clusters = cluster_batch(p.prompts_Q)
    gap = np.log(p.length_ratio_Q())
    by_rule = p.refused_Q_2[:, 0].astype(int) - p.refused_Q_2[:, 1]
    return {
        "n": n,
        "prompts": len(prompts),
        "arm": commonest_first(p.tallies["arm"]),
        "kind": commonest_first(p.tallies["kind"]),
        "category": commonest_first(p.tallies["category"]),
        "source": commonest_first(p.tallies["source_dataset"]),
        "carried": commonest_first(p.tallies["carried_dim"]),
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
            "log_ratio": _mean(gap, clusters, seed),
            "chosen_longer": share(int((gap > 0).sum()), n),
            "equal": share(int((gap == 0).sum()), n),
            "auc": rounded(auc(*p.lengths_Q_2.T.astype(float))),
            "margin_correlation": _spearman(gap, p.margins_Q_D.sum(1)),
        },
        "refusal": {
            "chosen": share(int(p.refused_Q_2[:, 0].sum()), n),
            "rejected": share(int(p.refused_Q_2[:, 1].sum()), n),
            "one_side_refuses": share(int((by_rule != 0).sum()), n),
            "rejected_where_one_refuses": share(
                int((by_rule < 0).sum()), int((by_rule != 0).sum())
            ),
            "by_class": {
                c: {s: share(int(n_3[k]), int(n_3[2])) for k, s in enumerate(SIDES)}
                for c, n_3 in sorted(p.by_class.items())
            },
        },
        "wording": wording_probe(
            p.chosen, p.rejected, np.unique(p.prompts_Q[p.probed], return_inverse=True)[1]
        ),
        "wording_pairs": len(p.probed),
    }


def length_figure(p: PairTable) -> LengthFigure | None:
    """Pairs by length ratio and total margin."""
    if not len(p):
        return None
    gap = np.log2(p.length_ratio_Q())
    total = np.nansum(p.margins_Q_D, axis=1)
    most = max(1.0, float(np.ceil(total.max())))
    x = np.clip(((gap + 2) / 4 * GRID).astype(int), 0, GRID - 1)
    y = np.clip((total / most * GRID).astype(int), 0, GRID - 1)
    cells = np.bincount(x * GRID + y, minlength=GRID**2).reshape(GRID, GRID)
    return {
        "x": "log2 length ratio, -2 to 2",
        "y": f"total margin, 0 to {most:g}",
        "y_max": most,
        "counts": cells.tolist(),
    }


def composition_figure(p: PairTable) -> Composition | None:
    """Pairs by category, the twelve largest, and kind."""
    if not len(p):
        return None
    categories, kinds = (list(commonest_first(p.tallies[t])) for t in ("category", "kind"))
    return {
        "rows": categories[:12],
        "columns": kinds,
        "counts": [[p.composition[c, k] for k in kinds] for c in categories[:12]],
        "left_out": max(0, len(categories) - 12),
    }


def examples(p: PairTable) -> dict[str, list[str]]:
    """Ids of pairs to read: six by the hash of their ids; three of the smallest confirmed margin,
    three of the largest length gap."""
    if not len(p):
        return {"random": [], "worst": []}
    confirmed = np.where(np.isnan(p.confirmed_Q_D).any(1), np.inf, p.confirmed_Q_D.sum(1))
    gap = np.abs(np.log(p.length_ratio_Q()))
    least = np.lexsort((p.ids_Q, confirmed))[: SHOWN // 2].tolist()
    far = [i for i in np.lexsort((p.ids_Q, -gap))[: 2 * SHOWN].tolist() if i not in least]
    worst = [*least, *far[: SHOWN - len(least)]]
    return {"random": p.first, "worst": [f"{int(p.ids_Q[i]):016x}" for i in worst]}


def example_rows(dataset: Path, ids: Sequence[str], dims: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs of these ids with their texts, in the order given."""
    import pyarrow.parquet as pq

    from ..dataset.schemas import AGAIN

    names = ["pair_id", "arm", "kind", "category", "prompt", *SIDES, "len_chosen", "len_rejected"]
    names += [f"{m}_{d}" for d in dims for m in PER_DIMENSION]
    files = sorted((dataset / "preference").glob("*.parquet")) if ids else []
    wanted = [("pair_id", "in", list(ids))]
    found: dict[str, dict[str, Any]] = {}
    for f in files:
        with readable(f, AGAIN):
            rows = pq.read_table(f, columns=names, filters=wanted).to_pylist()
            found |= {row["pair_id"]: row for row in rows}
    return [found[i] for i in ids if i in found]


def _margin(
    first: Floats, second: Floats, sigma: float, clusters: Ints, seed: int
) -> MarginNumbers:
    known, again = first[~np.isnan(first)], second[~np.isnan(second)]
    return {
        "mean": _mean(first, clusters, seed),
        "quantiles": _quantiles(known),
        "above_noise": share(int((known > 2 * sigma).sum()), len(known)),
        "confirmed": _mean(second, clusters, seed) if len(again) else None,
        "quantiles_confirmed": _quantiles(again),
    }


def _mean(values: Floats, clusters: Ints, seed: int) -> Estimate:
    boot = cluster_bootstrap(values[:, None], clusters, DRAWS, seed)
    low, high = boot.percentile()
    return cell(boot.estimate_M[0], low[0], high[0], (~np.isnan(values)).sum())


def _quantiles(values: Floats) -> list[float | None]:
    return [rounded(q) for q in np.quantile(values, QUANTILES)] if len(values) else []


def _spearman(a: Floats, b: Floats) -> float | None:
    ok = ~np.isnan(a) & ~np.isnan(b)
    by_rank = [ranks(v[ok]) for v in (a, b)]
    if ok.sum() < 3 or any(r.std() == 0 for r in by_rank):
        return None
    return rounded(np.corrcoef(by_rank[0], by_rank[1])[0, 1])


# what people think of pairs, blindly, and whether the scores agree with them

FILE = "reviews.jsonl"
VOTES = ("first", "second", "equal", "neither")
REVIEW_DRAWS = 2000


class Vote(TypedDict):
    """A line of reviews.jsonl."""

    pair_id: str
    reviewer: str
    first: str
    vote: str
    at: str


def read_reviews(run_dir: Path) -> list[Vote]:
    """The votes that count, in the order of their pairs' last votes; damaged lines are left out."""
    found: dict[tuple[str, str], Vote] = {}
    try:
        lines = (run_dir / FILE).read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = orjson.loads(line)
            key = str(row["reviewer"]), str(row["pair_id"])
            good = row["vote"] in VOTES and row["first"] in ("chosen", "rejected")
        except UNREADABLE:
            continue
        if good:
            found.pop(key, None)
            found[key] = row
    return list(found.values())


def prefers(row: Vote) -> str | None:
    """The side that a vote is for; None for equal and neither."""
    if row["vote"] not in ("first", "second"):
        return None
    other = {"chosen": "rejected", "rejected": "chosen"}
    return str(row["first"]) if row["vote"] == "first" else other[row["first"]]


def agreement(run_dir: Path, p: PairTable, seed: int) -> ReviewNumbers | None:
    """`reviews` of report.json: people against scores; None without a vote on a pair that is in the
    dataset."""
    votes = read_reviews(run_dir)
    ids = zip(p.ids_Q.tolist(), p.prompts_Q.tolist(), strict=True) if votes else ()
    prompt_of = {f"{pair:016x}": prompt for pair, prompt in ids}
    rows = [r for r in votes if r["pair_id"] in prompt_of]
    if not rows:
        return None
    decided = [r for r in rows if prefers(r) is not None]
    agree = sum(prefers(r) == "chosen" for r in decided)
    return {
        "votes": len(rows),
        "pairs": len({r["pair_id"] for r in rows}),
        "reviewers": len({r["reviewer"] for r in rows}),
        "equal": sum(r["vote"] == "equal" for r in rows),
        "neither": sum(r["vote"] == "neither" for r in rows),
        "agree": share(agree, len(decided)),
        "kappa": _kappa(decided, [prompt_of[r["pair_id"]] for r in decided], seed),
        "first": share(sum(r["vote"] == "first" for r in decided), len(decided)),
        "between_people": _between(decided),
    }


def _kappa(rows: Sequence[Vote], prompts: Sequence[str], seed: int) -> Estimate | None:
    """Cohen's kappa (1960) of the side that people took and the side that the scores chose;
    interval over prompts."""
    if not rows:
        return None
    human = np.array([r["vote"] == "first" for r in rows])
    judge = np.array([r["first"] == "chosen" for r in rows])
    cells_V_4 = np.stack(
        [human & judge, human & ~judge, ~human & judge, ~human & ~judge], axis=1
    ).astype(float)
    boot = cluster_bootstrap(
        cells_V_4, np.unique(np.array(prompts), return_inverse=True)[1], REVIEW_DRAWS, seed
    )
    value, draws = _of_cells(boot.estimate_M[None])[0], _of_cells(boot.draws_B_M)
    known = draws[~np.isnan(draws)]
    low, high = (
        np.quantile(known, [0.025, 0.975]) if len(known) and boot.n_M[0] > 1 else (np.nan, np.nan)
    )
    return cell(value, low, high, len(rows))


def _of_cells(shares_B_4: Floats) -> Floats:
    both, human, judge, none = shares_B_4.T
    agree = both + none
    chance = (both + human) * (both + judge) + (judge + none) * (human + none)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1 - 1e-12, (agree - chance) / (1 - chance), np.nan)


def _between(rows: Sequence[Vote]) -> dict[str, float | int | None] | None:
    """Krippendorff's alpha of the people among themselves, over pairs that two of them decided."""
    by_pair: dict[str, list[float]] = {}
    for r in rows:
        by_pair.setdefault(r["pair_id"], []).append(float(prefers(r) == "chosen"))
    twice = sum(len(votes) > 1 for votes in by_pair.values())
    if not twice:
        return None
    sums = AgreementSums()
    for votes in by_pair.values():
        sums.add(votes)
    return {"alpha": rounded(sums.alpha()), "pairs": twice}


# words

COLUMNS = 2048
FOLDS = 5
STEPS = 200
RIDGE = 1e-4
_SEEDS = 64  # hash functions of the near-duplicate sketch: 8 bands of 8
_BANDS = 8
VENDI = 500  # texts of the Vendi score: its eigenvalues cost the cube


def wording_probe(chosen: Sequence[str], rejected: Sequence[str], groups: Ints) -> Wording | None:
    """Can wording alone tell chosen from rejected? AUC on held-out prompts, and the share of pairs
    ranked right.

    `groups`: the prompt of each pair; a prompt is in one fold. None with fewer than 50 prompts.
    """
    labels, at = np.unique(groups, return_inverse=True)
    if len(labels) < 50:
        return None
    x = np.concatenate([_hashed(chosen), _hashed(rejected)])
    y = np.r_[np.ones(len(chosen)), np.zeros(len(rejected))]
    fold = np.tile(at % FOLDS, 2)
    scores = np.zeros(len(y))
    for f in range(FOLDS):
        train = fold != f
        idf = np.log((1 + train.sum()) / (1 + (x[train] > 0).sum(0))).astype(np.float32) + 1
        rows = x * idf
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        w, b = _logistic(rows[train], y[train])
        scores[~train] = rows[~train] @ w + b
    aucs = [
        auc(scores[(fold == f) & (y == 1)], scores[(fold == f) & (y == 0)]) for f in range(FOLDS)
    ]
    n = len(chosen)
    right = int((scores[:n] > scores[n:]).sum())
    return {
        "auc": rounded(float(np.mean(aucs))),
        "auc_low": rounded(min(aucs)),
        "auc_high": rounded(max(aucs)),
        "pairs_right": share(right, n),
        "prompts": len(labels),
    }


def auc(positive: Floats, negative: Floats) -> float:
    """P(a positive scores higher than a negative), ties half."""
    rank, n, m = ranks(np.concatenate([positive, negative])), len(positive), len(negative)
    return float((rank[:n].sum() - n * (n + 1) / 2) / (n * m)) if n and m else math.nan


def ranks(values: Floats) -> Floats:
    """Rank of each value from 1 up; equal ones share the mean of theirs."""
    _, at, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[at]


def diversity(texts: Sequence[str]) -> Diversity:
    """Of a list of prompts: distinct-1, distinct-2 (share of n-grams that are new), zlib ratio,
    near-duplicate share.

    Compression: bytes before over after, 1 = nothing repeats. Near-duplicate: another prompt shares
    one of 8 bands of 8 MinHash values of its word 3-grams, which at a Jaccard similarity of 0.8 has
    a chance of 0.77. Vendi: see `vendi`.
    """
    words = [t.lower().split() for t in texts]
    once = Counter(w for ws in words for w in ws)
    twice = Counter(p for ws in words for p in pairwise(ws))
    data = "\n".join(texts).encode("utf-8", "replace")
    return {
        "n": len(texts),
        "distinct_1": _new(once),
        "distinct_2": _new(twice),
        "compression": rounded(len(data) / len(zlib.compress(data, 6))) if data else None,
        "near_duplicates": share(_near_duplicates(words), len(texts)),
        "vendi": rounded(vendi(texts)),
        "vendi_n": len(texts[:: max(1, -(-len(texts) // VENDI))]),
    }


def vendi(texts: Sequence[str]) -> float | None:
    """Effective number of different texts among 500 of them, evenly spaced: exp of the entropy of
    the eigenvalues of the cosines of their hashed words, over n (Friedman and Dieng 2023, eq. 2). 1
    = all say the same, n = no two share a word.
    """
    every = max(1, -(-len(texts) // VENDI))
    x = _hashed(texts[::every])
    x = x[x.any(1)]
    if not len(x):
        return None
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    eigen = np.linalg.eigvalsh((x @ x.T).astype(np.float64) / len(x))
    eigen = eigen[eigen > 1e-12]
    return float(np.exp(-(eigen * np.log(eigen)).sum()))


def entropy(counts: Sequence[int]) -> float | None:
    """Effective number of categories, exp(H)."""
    total = sum(counts)
    return (
        rounded(math.exp(-sum(c / total * math.log(c / total) for c in counts if c)))
        if total
        else None
    )


def _new(counts: Counter[Any]) -> float | None:
    return rounded(len(counts) / counts.total()) if counts else None


def _near_duplicates(words: Sequence[Sequence[str]]) -> int:
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 1 << 31, (2, _SEEDS), dtype=np.uint64)
    sketch = np.zeros((len(words), _SEEDS), np.uint64)
    for i, ws in enumerate(words):
        grams = {" ".join(ws[j : j + 3]) for j in range(max(len(ws) - 2, 1))}
        hashed = np.array(
            [zlib.crc32(g.encode("utf-8", "replace")) for g in sorted(grams)], np.uint64
        )
        sketch[i] = ((hashed[:, None] * a + b) % np.uint64(4294967291)).min(0)
    double = np.zeros(len(words), bool)
    width = _SEEDS // _BANDS
    for band in range(_BANDS):
        rows = np.ascontiguousarray(sketch[:, band * width : (band + 1) * width]).view(
            f"V{8 * width}"
        )[:, 0]
        _, at, count = np.unique(rows, return_inverse=True, return_counts=True)
        double |= count[at] > 1
    return int(double.sum())


def _hashed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Log word counts in hashed columns."""
    out = np.zeros((len(texts), COLUMNS), np.float32)
    for i, t in enumerate(texts):
        columns = [
            zlib.crc32(w.encode("utf-8", "replace")) % COLUMNS for w in t.lower().split()[:400]
        ]
        np.add.at(out[i], columns, 1)
    return np.log1p(out)


def _logistic(x: NDArray[np.float32], y: Floats) -> tuple[NDArray[np.float32], float]:
    """Ridge logistic regression by accelerated gradient steps; rows of x have norm 1, so 1/L is
    known."""
    target = y.astype(np.float32)
    w, b = np.zeros(x.shape[1], np.float32), np.float32(0)
    ahead_w, ahead_b = w, b
    step = np.float32(4.0 / 2.0)
    for t in range(STEPS):
        p = 1 / (1 + np.exp(-(x @ ahead_w + ahead_b)))
        error = (p - target) / len(target)
        new_w = ahead_w - step * (x.T @ error + RIDGE * ahead_w)
        new_b = ahead_b - step * error.sum()
        pull = np.float32(t / (t + 3))
        ahead_w, ahead_b = new_w + pull * (new_w - w), new_b + pull * (new_b - b)
        w, b = new_w, new_b
    return w, float(b)
