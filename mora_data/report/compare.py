"""Two runs, arms or releases against each other: which numbers differ, by how much, and what else
differs.

    tree = compared(side_of("runs/a"), side_of("runs/b"))       tree["arms"][0]["difference"]["low"]

A and B are numbers of the two report.json, each over its own prompts. Their difference, B minus A,
is taken on the prompts that both have, which are resampled for both at once: a paired interval.
Where none is shared it is over all prompts, and each side is resampled by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from .. import statistics as st
from ..errors import RunFolderError
from ..run.partitions import write_whole
from .arms import DRAWS, in_order
from .differ import doubts, settings_that_differ
from .gather import HEADLINE
from .measure import names
from .numbers import number
from .sides import Side

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
LEVEL = 0.05  # of the adjusted p under which a number counts as another one
OF_K = ("joint_pass", "hypervolume")  # not comparable at different k


def compared(a: Side, b: Side) -> dict[str, Any]:
    """report-compare.json: who is compared, the doubts, the settings that differ, the numbers with
    their differences."""
    dims = [
        d for d in a.report["settings"]["dimensions"] if d in b.report["settings"]["dimensions"]
    ]
    whole = a.arm is None and b.arm is None
    rows = [*_arms(a, b, dims), *(_pairs(a, b, dims) if whole else [])]
    _judge(rows)
    out = {
        "format": FORMAT,
        "a": _about(a),
        "b": _about(b),
        "doubts": [],
        "dimensions": dims,
        "settings": settings_that_differ(a.settings, b.settings),
        "prompts": _shared(a, b),
        "differ": sum(bool(r["differs"]) for r in rows),
        "tested": sum(r["p_holm"] is not None for r in rows),
        "arms": [r for r in rows if r["arm"]],
        "pairs": [r for r in rows if not r["arm"]],
    }
    out["doubts"] = doubts(out)
    return out


def write_comparison(folder: Path, tree: Mapping[str, Any]) -> list[Path]:
    """Write report-compare.json and report-compare.html; returns the paths.

    Raises:
        RunFolderError: they can't be written.
    """
    from .compare_page import page

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise RunFolderError(
            f"can't make the folder {folder}: {e.strerror}; give another --out"
        ) from e
    paths = [folder / "report-compare.json", folder / "report-compare.html"]
    write_whole(paths[0], orjson.dumps(tree, option=orjson.OPT_INDENT_2) + b"\n")
    write_whole(paths[1], page(tree).encode())
    return paths


def _about(s: Side) -> dict[str, Any]:
    r = s.report
    return {
        "where": s.where,
        "arm": s.arm,
        "kind": "run" if s.ids else "dataset",
        **r["run"],
        "pairs": r["pairs"]["n"],
        "verdict": r["verdict"],
        "doubts": r["doubts"],
        **{k: r["settings"][k] for k in ("floors", "k")},
        "sigma": {d: v["sigma"] for d, v in r["judge"]["dimensions"].items()},
        "reliability": {d: v["reliability"] for d, v in r["judge"]["dimensions"].items()},
    }


def _shared(a: Side, b: Side) -> dict[str, int]:
    """Prompts of each side, by what is known of them: those of the partitions, of a release those
    with a pair."""
    whole = bool(a.ids and b.ids)
    one, two = (set(s.ids if whole else s.pairs.prompts_Q.tolist()) for s in (a, b))
    return {"a": len(one), "b": len(two), "shared": len(one & two)}


def _arms(a: Side, b: Side, dims: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The arms that are compared, metric by metric."""
    both = in_order(x for x in a.report["arms"] if x in b.report["arms"])
    matched = [(x, x) for x in both]
    if a.arm or b.arm:
        matched = [(a.arm or str(b.arm), b.arm or str(a.arm))]
    metrics = [
        *HEADLINE,
        "scored",
        "refusal",
        "tokens",
        *(f"{m}_{d}" for d in dims for m in ("reward", "pass")),
    ]
    same_k = a.report["settings"]["k"] == b.report["settings"]["k"]
    for one, two in matched:
        cells = [
            (s.report["arms"].get(x) or {"metrics": {}})["metrics"] for s, x in ((a, one), (b, two))
        ]
        kept = [m for m in metrics if m in cells[0] and m in cells[1] and (same_k or m not in OF_K)]
        found: list[dict[str, Any] | None] = [None] * len(kept)
        if one in a.values and two in b.values:
            columns = [_columns(s, x, kept) for s, x in ((a, one), (b, two))]
            found = _differences(columns[0], a.ids, columns[1], b.ids, a.report["settings"]["seed"])
        for m, difference in zip(kept, found, strict=True):
            yield _row(
                one if one == two else f"{two} − {one}", m, cells[0][m], cells[1][m], difference
            )


def _columns(s: Side, arm: str, metrics: Sequence[str]) -> NDArray[np.float64]:
    at = {m: i for i, m in enumerate(names(s.report["settings"]["dimensions"]))}
    return s.values[arm][:, [at[m] for m in metrics]]


def _pairs(a: Side, b: Side, dims: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the published pairs say, over source prompts."""
    if not (a.report["pairs"]["n"] and b.report["pairs"]["n"]):
        return
    one, two = (_of_pairs(s, dims) for s in (a, b))
    columns = [np.stack([c for _, c in x.values()], axis=1) for x in (one, two)]
    found = _differences(
        columns[0], a.pairs.prompts_Q, columns[1], b.pairs.prompts_Q, a.report["settings"]["seed"]
    )
    for (m, (cell, _)), (other, _), difference in zip(
        one.items(), two.values(), found, strict=True
    ):
        yield _row("", m, cell, other, difference)


def _of_pairs(s: Side, dims: Sequence[str]) -> dict[str, tuple[Any, NDArray[np.float64]]]:
    """Metric -> its cell of report.json, and the values that it is the mean of."""
    r, p = s.report["pairs"], s.pairs
    at = {d: i for i, d in enumerate(s.report["settings"]["dimensions"])}
    ratio = np.log(np.maximum(p.lengths_Q_2[:, 0], 1) / np.maximum(p.lengths_Q_2[:, 1], 1))
    return {
        **{f"margin_{d}": (r["margins"][d]["mean"], p.margins_Q_D[:, at[d]]) for d in dims},
        **{
            f"margin_confirmed_{d}": (r["margins"][d]["confirmed"], p.confirmed_Q_D[:, at[d]])
            for d in dims
        },
        "log_length_ratio": (r["length"]["log_ratio"], ratio),
        "chosen_longer": (r["length"]["chosen_longer"], (ratio > 0).astype(float)),
        "refusal_chosen": (r["refusal"]["chosen"], p.refused_Q_2[:, 0].astype(float)),
        "refusal_rejected": (r["refusal"]["rejected"], p.refused_Q_2[:, 1].astype(float)),
    }


def _row(arm: str, metric: str, a: Any, b: Any, found: dict[str, Any] | None) -> dict[str, Any]:
    known = a is not None and b is not None and a["value"] is not None and b["value"] is not None
    bare = dict.fromkeys(("low", "high", "n", "p", "paired")) | {
        "value": number(b["value"] - a["value"]) if known else None
    }
    return {
        "arm": arm,
        "metric": metric,
        "a": a,
        "b": b,
        "difference": found or bare,
        "p_holm": None,
        "differs": None,
    }


def _judge(rows: list[dict[str, Any]]) -> None:
    """Holm's adjustment over all numbers that have an interval."""
    tested = [r for r in rows if r["difference"]["p"] is not None]
    for r, p in zip(tested, st.holm(np.array([r["difference"]["p"] for r in tested])), strict=True):
        r["p_holm"], r["differs"] = number(p), bool(p < LEVEL)


def _differences(
    a_P_M: NDArray[np.float64],
    a_ids: Sequence[str] | NDArray[Any],
    b_P_M: NDArray[np.float64],
    b_ids: Sequence[str] | NDArray[Any],
    seed: int,
) -> list[dict[str, Any] | None]:
    """B minus A of each column, on the prompts that have a value on both sides; on all, unpaired,
    where they share none."""
    labels, at = np.unique(
        np.concatenate([np.asarray(a_ids), np.asarray(b_ids)]), return_inverse=True
    )
    a_at, b_at = at[: len(a_ids)], at[len(a_ids) :]
    both_C_M = _there(a_P_M, a_at, len(labels)) & _there(b_P_M, b_at, len(labels))
    shared = bool(np.isin(a_at, b_at).any())
    if shared:
        a_P_M, b_P_M = (
            np.where(both_C_M[a_at], a_P_M, np.nan),
            np.where(both_C_M[b_at], b_P_M, np.nan),
        )
    return [{**cell, "paired": shared} for cell in _bootstrapped(a_P_M, b_P_M, at, seed)]


def _there(values_P_M: NDArray[np.float64], at_P: NDArray[np.intp], n: int) -> NDArray[np.bool_]:
    """Which of n prompts has a value in each column."""
    out = np.zeros((n, values_P_M.shape[1]), bool)
    np.logical_or.at(out, at_P, ~np.isnan(values_P_M))
    return out


def _bootstrapped(
    a_P_M: NDArray[np.float64], b_P_M: NDArray[np.float64], clusters_P: NDArray[np.intp], seed: int
) -> list[dict[str, Any]]:
    m = a_P_M.shape[1]
    stacked = np.full((len(clusters_P), 2 * m), np.nan)
    stacked[: len(a_P_M), :m], stacked[len(a_P_M) :, m:] = a_P_M, b_P_M
    boot = st.cluster_bootstrap(stacked, clusters_P, DRAWS, seed)
    value = boot.estimate_M[m:] - boot.estimate_M[:m]
    n_M = np.minimum(boot.n_M[:m], boot.n_M[m:])
    none = np.zeros(m)  # a difference is no rate
    paired = st.Bootstrap(
        value, boot.draws_B_M[:, m:] - boot.draws_B_M[:, :m], none, n_M, n_M, none, none.astype(int)
    )
    low, high = paired.percentile()
    return [
        {
            "value": number(value[i]),
            "low": number(low[i]),
            "high": number(high[i]),
            "n": int(paired.n_M[i]),
            "p": _p(value[i], paired.draws_B_M[:, i]) if number(low[i]) is not None else None,
        }
        for i in range(m)
    ]


def _p(value: float, draws: NDArray[np.float64]) -> float:
    """Two-sided, the bootstrap's spread taken as normal: Holm over many numbers needs p far below 1
    / draws."""
    spread = float(np.nanstd(draws))
    if spread < 1e-12:
        return 1.0 if abs(value) < 1e-12 else 0.0
    return math.erfc(abs(float(value)) / spread / math.sqrt(2))
