"""The arms against each other: each metric with its interval, the paired differences, the
verdict."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import statistics as st
from ..statistics import Sums
from ..statistics.expansion import CONTROLS
from .clusters import Added
from .gather import GRADES, Gathered, compared, ks_of
from .measure import PRIMARY, is_rate, names
from .numbers import interval_of, number, shares

ORDER = ("before", "identity", "concat", "single", "generic", "random", "fused")
DRAWS = 2000
FLIPS = 10_000


def in_order(arms: Any) -> list[str]:
    """Arms as they are shown: what was there before, controls, then fused."""
    return sorted(arms, key=lambda a: (ORDER.index(a) if a in ORDER else len(ORDER) - 1.5, a))


def arms_of(g: Gathered, seed: int) -> dict[str, Any]:
    """`arms`, `differences`, `coverage` and the verdict's keys of report.json."""
    found, metrics = in_order(g.values), names(g.scale.dims)
    pairs, shown = _pairs(g, found), compared(g.scale.dims)
    none = Added(len(shown))
    stacked = Sums.beside(
        [
            *(g.sums(g.values[a]) for a in found),
            *(g.sums(g.differences.get(p, none)) for p in pairs),
            g.sums(g.coverage),
        ]
    )
    boot = st.bootstrap_of(stacked, DRAWS, seed)
    at, n_M = len(found) * len(metrics), stacked.numbers_C_M.sum(0)
    rare = np.tile([is_rate(m) for m in metrics], len(found))
    ends = interval_of(boot, np.concatenate([rare, np.zeros(len(n_M) - at, bool)]))
    cells = [
        {
            "value": number(boot.estimate_M[i]),
            "low": number(ends[0][i]),
            "high": number(ends[1][i]),
            "n": int(n_M[i]),
        }
        for i in range(len(n_M))
    ]
    out: dict[str, Any] = {"arms": {}, "differences": []}
    for i, arm in enumerate(found):
        out["arms"][arm] = {
            "n": g.n_arm[arm],
            "metrics": dict(
                zip(metrics, cells[i * len(metrics) : (i + 1) * len(metrics)], strict=True)
            ),
            "prompt_length": _length(g, arm, seed),
        }
    for (a, b, m), cell in zip(
        ((a, b, m) for a, b in pairs for m in shown), cells[at:], strict=False
    ):
        out["differences"].append({"arm": a, "minus": b, "metric": m, **cell})
    out["coverage"] = None
    if cells[-2]["n"]:
        out["coverage"] = {"fused_over_identity": cells[-2], "identity_over_fused": cells[-1]}
    return out | _verdict(g, seed)


def _pairs(g: Gathered, found: list[str]) -> list[tuple[str, str]]:
    """Which arms are subtracted: each from what was before, and from fused each control."""
    base = g.before
    pairs = [(a, base) for a in found if base and a != base]
    return pairs + [("fused", a) for a in found if "fused" in found and a not in ("fused", base)]


def _length(g: Gathered, arm: str, seed: int) -> dict[str, Any]:
    """Mean length of the prompt in words, and mean log ratio to the fused one over paired
    prompts."""
    gaps = g.sums(g.gaps.get(arm, Added(1)))
    boot = st.bootstrap_of(gaps, DRAWS, seed)
    low, high = boot.percentile()
    total, n = g.words[arm]
    return {
        "words": number(total / n),
        "log_ratio_to_fused": number(boot.estimate_M[0]),
        "low": number(low[0]),
        "high": number(high[0]),
        "n": int(gaps.numbers_C_M.sum()),
    }


def length_gaps(g: Gathered) -> dict[str, float]:
    """Mean log(length of a control's prompt / of the fused one) over prompts that have both."""
    gaps = {a: g.sums(g.gaps[a]) for a in CONTROLS[1:] if a in g.gaps}
    return {
        a: float(s.sums_C_M.sum() / s.numbers_C_M.sum())
        for a, s in gaps.items()
        if s.numbers_C_M.any()
    }


def _verdict(g: Gathered, seed: int) -> dict[str, Any]:
    missing = [a for a in ("fused", *CONTROLS) if a not in g.values]
    if missing:
        few = "no control arms: " if "fused" in g.values and len(missing) == len(CONTROLS) else ""
        reasons = [
            f"{few}this run has no arm {', '.join(missing)} (a build with fuse.arms:"
            f" [{', '.join((*CONTROLS, 'fused'))}] has)"
        ]
        return {"verdict": "inconclusive", "reasons": reasons, "comparisons": [], "over_best": {}}
    gains = st.Gains(*(g.sums(added) for added in g.gains))
    v = st.verdict_of(gains, list(PRIMARY), length_gaps(g), draws=DRAWS, flips=FLIPS, seed=seed)
    comparisons = [
        {
            "metric": c.metric,
            "control": c.control,
            "n": c.n,
            "gain": number(c.gain),
            "low": number(c.low),
            "high": number(c.high),
            "p_holm": number(c.p),
        }
        for c in v.comparisons
    ]
    return {
        "verdict": v.line,
        "reasons": [v.reason],
        "comparisons": comparisons,
        "over_best": {
            m: None if e is None else {"low": number(e[0]), "high": number(e[1])}
            for m, e in v.over_best.items()
        },
    }


def profile_of(g: Gathered, n_each: int, seed: int) -> dict[str, Any]:
    """The first figure: per class of prompts and arm, best-of-k grades of the first dimension and
    pass rates of the others.

    A class is the dimension that a prompt carries. Only prompts with enough scored answers for the
    largest k count.
    """
    shown = [a for a in (g.before, "fused") if a in g.values] or in_order(g.values)[:1]
    ks, others = ks_of(n_each), g.scale.dims[1:]
    panels = []
    for group in [d for d in g.scale.dims if g.carried[d]] or [""]:
        for arm in shown:
            added = g.profile.get((group, arm))
            if added is None or not added.n:
                continue
            sums = g.sums(added, group)
            boot = st.bootstrap_of(sums, 500, seed)
            n_M = sums.numbers_C_M.sum(0)
            low, high = interval_of(boot, np.ones(len(n_M), bool))
            width = len(GRADES) + 2 * len(others)
            points = []
            for i, k in enumerate(ks):
                at = i * width
                cell = [
                    {
                        "value": number(boot.estimate_M[c]),
                        "low": number(low[c]),
                        "high": number(high[c]),
                        "n": int(n_M[c]),
                    }
                    for c in range(at, at + width)
                ]
                points.append(
                    {
                        "k": k,
                        "n": cell[0]["n"],
                        "grades": shares([c["value"] for c in cell[: len(GRADES)]]),
                        "any_pass": {d: cell[len(GRADES) + 2 * j] for j, d in enumerate(others)},
                        "all_pass": {
                            d: cell[len(GRADES) + 2 * j + 1] for j, d in enumerate(others)
                        },
                    }
                )
            panels.append({"class": group or "all prompts", "arm": arm, "points": points})
    return {"graded": g.scale.dims[0], "passed": list(others), "panels": panels}
