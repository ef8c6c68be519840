"""The verdicts on the predictions: differences with intervals over topics and seeds, adjusted by
Holm within a prediction.

    data_level(rows)                    P1: fused minus each other arm, fresh answers
    training_level(scores, "fused")     P2: fused minus each other arm, plain test questions
    transfer(scores, names)             P4: what training did to each dimension
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mora_data.statistics.inference import cluster_bootstrap, holm, sign_flip_test
from mora_data.statistics.training import bootstrap_p, hierarchical_bootstrap, interval, mean_over

from .building import LEVEL
from .training import METRICS, Scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWS = 4000


def data_level(rows: Sequence[Mapping[str, Any]], against: Sequence[str]) -> dict[str, Any]:
    """Means of every arm, and fused minus each of `against` in dominance rate and joint pass;
    topics are drawn.

    Rows of several seeds stand side by side: a prompt counts in each seed in which it was mined.
    """
    rows = [r for r in rows if r["arm"] != "presample"]
    keys = {k: i for i, k in enumerate(dict.fromkeys((r["seed"], r["prompt_id"]) for r in rows))}
    arms = list(dict.fromkeys(r["arm"] for r in rows))
    values = {a: np.full((len(keys), len(LEVEL)), np.nan) for a in arms}
    topic_of = [""] * len(keys)
    for r in rows:
        at = keys[r["seed"], r["prompt_id"]]
        values[r["arm"]][at] = [r[m] for m in LEVEL]
        topic_of[at] = r["topic"]
    clusters = np.unique(topic_of, return_inverse=True)[1]
    pairs = [(a, m) for a in against if a in values for m in ("dominance_rate", "joint_pass")]
    gaps = np.stack(
        [values["fused"][:, LEVEL.index(m)] - values[a][:, LEVEL.index(m)] for a, m in pairs],
        axis=1,
    )
    boot = cluster_bootstrap(np.hstack([*values.values(), gaps]), clusters, DRAWS)
    low, high = boot.percentile()
    cells = [
        {"value": float(v), "low": float(a), "high": float(b)}
        for v, a, b in zip(boot.estimate_M, low, high, strict=True)
    ]
    per_topic = np.stack([_by_topic(gaps[:, k], clusters) for k in range(len(pairs))], axis=1)
    p = holm(sign_flip_test(per_topic))
    at = len(arms) * len(LEVEL)
    return {
        "prompts": len(keys),
        "topics": int(clusters.max()) + 1,
        "arms": {
            a: dict(zip(LEVEL, cells[i * len(LEVEL) : (i + 1) * len(LEVEL)], strict=True))
            for i, a in enumerate(arms)
        },
        "differences": [
            {"minus": a, "metric": m, **c, "p_holm": float(q)}
            for (a, m), c, q in zip(pairs, cells[at:], p, strict=True)
        ],
    }


def _by_topic(gap_P: NDArray[np.float64], clusters_P: NDArray[np.int_]) -> NDArray[np.float64]:
    """Sum of each topic's gaps, NaN left out: what a sign flip of the topic turns round."""
    return np.bincount(clusters_P, np.nan_to_num(gap_P))


def training_level(scores: Scores, compared: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Means of every method, and for each (method, minus, metric) of `compared` the difference;
    Holm over these."""
    names = list(scores.methods)
    drawn = dict(
        zip(
            names,
            hierarchical_bootstrap([scores.methods[n] for n in names], scores.clusters_P, DRAWS),
            strict=True,
        )
    )
    means = {
        n: {
            m: _cell(drawn[n].estimate_M[k], drawn[n].draws_B_M[:, k])
            for k, m in enumerate(METRICS)
        }
        for n in names
    }
    rows, p = [], []
    for a, b, metric in compared:
        k = METRICS.index(metric)
        gap_P = mean_over(scores.methods[a][:, :, k], 0) - mean_over(scores.methods[b][:, :, k], 0)
        draws = drawn[a].draws_B_M[:, k] - drawn[b].draws_B_M[:, k]
        flips = float(sign_flip_test(_by_topic(gap_P, scores.clusters_P)[:, None])[0])
        p.append(max(flips, bootstrap_p(draws)))
        rows.append(
            {
                "method": a,
                "minus": b,
                "metric": metric,
                **_cell(drawn[a].estimate_M[k] - drawn[b].estimate_M[k], draws),
            }
        )
    adjusted = holm(np.array(p)) if p else []
    return {
        "prompts": len(scores.topics_P),
        "topics": len(set(scores.topics_P)),
        "seeds": {n: len(v) for n, v in scores.methods.items()},
        "means": means,
        "differences": [{**r, "p_holm": float(q)} for r, q in zip(rows, adjusted, strict=True)],
    }


def _cell(value: float, draws_B: NDArray[np.float64]) -> dict[str, float | None]:
    ends = interval(draws_B)
    return {
        "value": float(value),
        "low": ends[0] if ends else None,
        "high": ends[1] if ends else None,
    }


def verdict_1(found: Mapping[str, Any]) -> str:
    """P1: falsified where the interval of a difference lies at or under 0; held where all lie above
    it."""
    return _all_above(found["differences"])


def verdict_2(found: Mapping[str, Any]) -> str:
    """P2, over the joint pass differences of fused."""
    return _all_above(
        [d for d in found["differences"] if d["metric"] == "joint_pass" and d["method"] == "fused"]
    )


def _all_above(differences: Sequence[Mapping[str, Any]]) -> str:
    def named(some: Sequence[Mapping[str, Any]]) -> str:
        return ", ".join(f"{d['metric']} against {d['minus']}" for d in some).replace("_", " ")

    above = [d for d in differences if d["low"] is not None and d["low"] > 0 and d["p_holm"] < 0.05]
    under = [d for d in differences if d["high"] is not None and d["high"] <= 0]
    if under:
        return f"falsified: {named(under)} at or under 0" + (
            f"; above 0: {named(above)}" if above else ""
        )
    if len(above) == len(differences):
        return "held: every interval above 0"
    return "not shown: " + (
        f"above 0 only for {named(above)}" if above else "no interval lies above 0"
    )


def verdict_4(found: Mapping[str, Any], summed: str, dominance: str) -> str:
    """P4: does a dimension fall under the sum, and does none fall under dominance? Against the base
    policy."""
    falls = {
        m: [
            d["metric"].removeprefix("reward_")
            for d in found["differences"]
            if d["method"] == m
            and d["minus"] == "base"
            and d["metric"].startswith("reward_")
            and d["high"] is not None
            and d["high"] < 0
            and d["p_holm"] < 0.05
        ]
        for m in (summed, dominance)
    }
    if not falls[summed]:
        more = (
            f", and {', '.join(falls[dominance])} falls under dominance" if falls[dominance] else ""
        )
        return f"falsified: no dimension falls under the sum{more}"
    if falls[dominance]:
        return (
            f"not held: {', '.join(falls[summed])} under the sum, but {', '.join(falls[dominance])}"
            " under dominance, too"
        )
    return f"held: {', '.join(falls[summed])} under the sum, none under dominance"
