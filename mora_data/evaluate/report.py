"""Rows to figures, a table and a sentence that states what they support, never more.

result(rows, models, "sft", floors,
about)["sets"]["plain"]["models"]["mora"]["metrics"]["reward_helpful"]["points"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..statistics.beta import rate_interval
from ..statistics.inference import holm, sign_flip_test
from ..statistics.training import (
    Difference,
    Resampled,
    bootstrap_p,
    hierarchical_bootstrap,
    interval,
    length_controlled_win_rate,
    mean_over,
    relative_improvement,
    statement,
)
from .benchmarks import BENCHMARKS
from .curves import curve_of, sequence_of
from .inputs import PLAIN, Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWS = 2000
RATES = ("joint_pass", "harmful", "refusal", "degenerate")
PAPER = (
    "The paper that this method follows reports 5 to 12.4 % for single preferences (sequential) and"
    " 4.6 % overall (simultaneous). Its models, metrics and baselines differ from these, so the"
    " figures can't be compared."
)


def result(
    rows: Sequence[Mapping[str, Any]],
    models: Sequence[Model],
    reference: str,
    floors: Mapping[str, float],
    about: Mapping[str, Any],
    sequences: Sequence[Sequence[tuple[str, str]]] = (),
    scalings: Sequence[tuple[str, Sequence[tuple[str, int]]]] = (),
) -> dict[str, Any]:
    """What evaluation.json holds.

    Args:
        rows: one per model, prompt and sample.
        floors: pass mark per dimension.
        about: what else it says (judge, simulated, seed, skipped).
        sequences: each (model, dimension trained in its stage or "") in order, the start first.
        scalings: each a name and its (model, number of pairs).
    """
    seeds = {
        name: [m.seed for m in models if m.name == name]
        for name in dict.fromkeys(m.name for m in models)
    }
    sets = {
        part: _set([r for r in rows if r["set"] == part], seeds, reference, floors, about)
        for part in dict.fromkeys(r["set"] for r in rows)
    }
    found = {
        **about,
        "reference": reference,
        "sets": sets,
        "notes": _notes(rows, about),
        "paper": PAPER,
    }
    main = PLAIN if PLAIN in sets else next(iter(sets))
    if sequences or scalings:
        _, names, clusters, means = _table([r for r in rows if r["set"] == main], seeds, floors)
        drawn = dict(
            zip(
                means,
                hierarchical_bootstrap(list(means.values()), clusters, DRAWS, about["seed"]),
                strict=True,
            )
        )
        found["sequences"] = [sequence_of(drawn, list(floors), order) for order in sequences]
        found["scaling"] = [
            curve_of(name, means, drawn, names[: len(floors)], points) for name, points in scalings
        ]
    return found


def _notes(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> list[str]:
    notes = []
    if about["simulated"]:
        notes.append(
            "Simulated: the answers or the verdicts come from the built-in simulator; no model was"
            " evaluated."
        )
    if about["judge"] and about["judge"] == about.get("judge_of_the_dataset"):
        notes.append(
            f"The judge {about['judge']} also chose the training pairs, so it favours what it"
            " chose: take another one."
        )
    if about["skipped"]:
        notes.append(
            "Rows without a prompt of their own: "
            + ", ".join(f"{n} {why}" for why, n in about["skipped"].items())
            + "."
        )
    failed = sum(r["error"] is not None for r in rows)
    unscored = sum(
        r["error"] is None and any(r[k] is None for k in r if k.startswith(("reward_", "mc")))
        for r in rows
    )
    unread = sum("win" in r and r["win"] is None for r in rows)
    if failed or unscored or unread:
        notes.append(
            f"Left out of their figures: {failed} of {len(rows)} answers failed, {unscored} lack a"
            f" score, {unread} comparisons could not be read."
        )
    return notes


def metrics_of(row: Mapping[str, Any], floors: Mapping[str, float]) -> dict[str, float]:
    """The row's metrics; NaN where one is missing. `harmful`: the harmless reward misses its
    floor."""
    rewards = {
        d: math.nan if row.get(f"reward_{d}") is None else float(row[f"reward_{d}"]) for d in floors
    }
    complete = all(not math.isnan(v) for v in rewards.values())
    out = {f"reward_{d}": v for d, v in rewards.items()}
    out["joint_pass"] = (
        float(all(v >= floors[d] for d, v in rewards.items())) if complete else math.nan
    )
    if "harmless" in rewards:
        out["harmful"] = (
            math.nan
            if math.isnan(rewards["harmless"])
            else float(rewards["harmless"] < floors["harmless"])
        )
    others = ("refusal", "degenerate", "length", "kl", "mc1", "mc2", "win", "length_gap")
    return out | {k: math.nan if row.get(k) is None else float(row[k]) for k in others}


def _table(
    rows: Sequence[Mapping[str, Any]],
    seeds: Mapping[str, Sequence[str]],
    floors: Mapping[str, float],
) -> tuple[list[str], list[str], NDArray[np.int_], dict[str, NDArray[np.float64]]]:
    """Prompts, metric names, clusters, and per model S x P x M means over samples."""
    prompts = list(dict.fromkeys(r["prompt_id"] for r in rows))
    group = {r["prompt_id"]: r["group"] for r in rows}
    labels = {g: i for i, g in enumerate(dict.fromkeys(group.values()))}
    at = {p: i for i, p in enumerate(prompts)}
    names = list(metrics_of(rows[0], floors))
    found: dict[str, tuple[list[int], list[list[float]]]] = {m: ([], []) for m in seeds}
    for r in rows:
        places, values = found[r["model"]]
        places.append(seeds[r["model"]].index(r["seed"]) * len(prompts) + at[r["prompt_id"]])
        values.append(list(metrics_of(r, floors).values()))
    means = {m: _means(*found[m], len(s), len(prompts), len(names)) for m, s in seeds.items()}
    return prompts, names, np.array([labels[group[p]] for p in prompts]), means


def _means(
    places: Sequence[int],
    values: Sequence[Sequence[float]],
    n_seeds: int,
    n_prompts: int,
    n_metrics: int,
) -> NDArray[np.float64]:
    """Means of the rows that share a place; S x P x M, NaN where none has a value."""
    out = np.full((n_seeds * n_prompts, n_metrics), np.nan)
    table = np.asarray(values, float).reshape(len(places), n_metrics)
    there = ~np.isnan(table)
    for k in range(n_metrics):
        at = np.asarray(places, np.int64)[there[:, k]]
        n = np.bincount(at, minlength=len(out))
        total = np.bincount(at, table[there[:, k], k], len(out))
        out[:, k] = np.where(n > 0, total / np.maximum(n, 1), np.nan)
    return out.reshape(n_seeds, n_prompts, n_metrics)


def _set(
    rows: Sequence[Mapping[str, Any]],
    seeds: Mapping[str, Sequence[str]],
    reference: str,
    floors: Mapping[str, float],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    prompts, names, clusters, means = _table(rows, seeds, floors)
    drawn = dict(
        zip(
            means,
            hierarchical_bootstrap(list(means.values()), clusters, DRAWS, about["seed"]),
            strict=True,
        )
    )
    benchmark = BENCHMARKS.get(str(rows[0]["set"]))
    tested = (
        dict(benchmark.metrics)
        if benchmark and benchmark.metrics
        else {f"reward_{d}": (d, 1) for d in floors}
    )
    columns = [names.index(name) for name in tested if name in names]
    tests = {
        m: _p(means[m], means[reference], drawn[m], drawn[reference], columns, about["seed"])
        for m in means
        if m != reference
    }
    p = {
        (m, k): value
        for m, values in tests.items()
        for k, value in zip(columns, values, strict=True)
    }
    adjusted = dict(zip(p, holm(np.array(list(p.values()))).tolist(), strict=True)) if p else {}
    found: dict[str, Any] = {}
    for m in means:
        entries = {
            name: _entry(
                name,
                k,
                drawn[m],
                drawn[reference] if m != reference else None,
                adjusted.get((m, k)),
                len(prompts),
            )
            for k, name in enumerate(names)
            if name not in ("win", "length_gap")
        }
        found[m] = {
            "seeds": len(seeds[m]),
            "metrics": {n: e for n, e in entries.items() if e["mean"] is not None},
        }
        if m != reference:
            found[m]["win_rate"] = _win_rate(means[m], names, clusters, drawn[m], about["seed"])
            against = (
                reference if len(seeds[reference]) > 1 else f"the one checkpoint of {reference}"
            )
            found[m]["statement"] = statement(
                m,
                against,
                _differences(entries, tested, names, means[m], means[reference]),
                about["simulated"],
            )
    groups = len(np.unique(clusters)) if "mc1" in tested else len(prompts)
    methods = {
        m: sorted({r["method"] for r in rows if r["model"] == m and "method" in r}) for m in means
    }
    return {"prompts": groups, "models": found} | (
        {"read_by": methods} if any(methods.values()) else {}
    )


def _p(
    after: NDArray[np.float64],
    before: NDArray[np.float64],
    a: Resampled,
    b: Resampled,
    columns: Sequence[int],
    seed: int,
) -> list[float]:
    """Of some metrics the larger of two p: sign flips of whole prompts, and the bootstrap over
    seeds and prompts."""
    # NaN: no part in the test
    gap_P_K = mean_over(after[:, :, columns], 0) - mean_over(before[:, :, columns], 0)
    flipped = sign_flip_test(gap_P_K, seed=seed)
    return [
        max(float(q), bootstrap_p(a.draws_B_M[:, k] - b.draws_B_M[:, k]))
        for q, k in zip(flipped, columns, strict=True)
    ]


def _entry(
    name: str, k: int, own: Resampled, reference: Resampled | None, p: float | None, n_prompts: int
) -> dict[str, Any]:
    mean = float(own.estimate_M[k])
    ends = interval(own.draws_B_M[:, k])
    # all alike: resampling can't tell 0 of 10 from 0 of 1000
    if ends and ends[0] == ends[1] and name in RATES:
        low, high = rate_interval(np.array([round(mean * n_prompts)]), np.array([n_prompts]))
        ends = (float(low[0]), float(high[0]))
    entry: dict[str, Any] = {"mean": None if math.isnan(mean) else mean, "interval": ends}
    if reference is not None and not math.isnan(mean) and not math.isnan(reference.estimate_M[k]):
        before = float(reference.estimate_M[k])
        entry |= {
            "points": mean - before,
            "points_interval": interval(own.draws_B_M[:, k] - reference.draws_B_M[:, k]),
        }
        if name not in ("length", "kl"):  # relative figures only of bounded metrics
            entry["relative_percent"] = relative_improvement(mean, before)
        if p is not None:
            entry["p_holm"] = p
    return entry


def _win_rate(
    values: NDArray[np.float64],
    names: Sequence[str],
    clusters: NDArray[np.int_],
    own: Resampled,
    seed: int,
) -> dict[str, Any] | None:
    k, g = names.index("win"), names.index("length_gap")
    if math.isnan(own.estimate_M[k]):
        return None
    wins, gaps = values[:, :, k].ravel(), values[:, :, g].ravel()
    rate, ends = length_controlled_win_rate(
        wins, gaps, seed=seed, clusters_P=np.tile(clusters, len(values))
    )
    return {
        "rate": float(own.estimate_M[k]),
        "interval": interval(own.draws_B_M[:, k]),
        "length_controlled": rate,
        "length_controlled_interval": ends,
        "n": int(np.isfinite(wins).sum()),
    }


def _differences(
    entries: Mapping[str, Mapping[str, Any]],
    tested: Mapping[str, tuple[str, int]],
    names: Sequence[str],
    after: NDArray[np.float64],
    before: NDArray[np.float64],
) -> dict[str, Difference]:
    """Of each tested metric, signed so that more is better."""
    out = {}
    for name, (said, sign) in tested.items():
        e, k = entries.get(name, {}), names.index(name) if name in names else 0
        if "points" in e:
            n = int(
                (np.isfinite(after[:, :, k]).any(0) & np.isfinite(before[:, :, k]).any(0)).sum()
            )
            ends = e["points_interval"] and tuple(
                sorted(sign * end for end in e["points_interval"])
            )
            out[said] = Difference(said, sign * e["points"], ends, e.get("p_holm"), n, len(after))
    return out
