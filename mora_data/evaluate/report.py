"""Rows to figures, and a sentence that states what they support, never more.

    found = result(rows, models, "sft", thresholds, about)
    found["sets"]["plain"]["models"]["mora"]["metrics"]["reward_helpful"]["points"]

With --sequence the matrix of a sequence of stages, with --scaling the curve over the number of
pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..statistics import Floats, Ints
from ..statistics.inference import holm, rate_interval, sign_flip_test
from ..statistics.training import (
    Difference,
    Resampled,
    backward_transfer,
    bootstrap_p,
    hierarchical_bootstrap,
    interval,
    length_controlled_win_rate,
    mean_over,
    relative_improvement,
    scaling_fit,
    statement,
)
from .asking import EvalModel
from .prompts import BENCHMARKS, PLAIN, EvalRow

DRAWS = 2000
RATES = ("joint_pass", "harmful", "refusal", "degenerate")
PAPER = (
    "The paper that this method follows reports 5 to 12.4 % for single preferences (sequential) and"
    " 4.6 % overall (simultaneous). Its models, metrics and baselines differ from these, so the"
    " figures can't be compared."
)


@dataclass(frozen=True, slots=True)
class About:
    """What an evaluation says about itself; `skipped`: why rows gave no prompt, and how many."""

    simulated: bool
    judge: str
    judge_of_the_dataset: str | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Measured:
    """The rows of one set as arrays.

    Attributes:
        names: metrics, in the order of the axis M.
        clusters_P: the group of each prompt.
        means: model -> S x P x M means over samples, NaN where there is none.
        drawn: model -> means over seeds and prompts, resampled.
    """

    n_prompts: int
    names: list[str]
    clusters_P: Ints
    means: dict[str, Floats]
    drawn: dict[str, Resampled]


def result(
    rows: Sequence[EvalRow],
    models: Sequence[EvalModel],
    reference: str,
    thresholds: Mapping[str, float],
    about: About,
    sequences: Sequence[Sequence[tuple[str, str]]] = (),
    scalings: Sequence[tuple[str, Sequence[tuple[str, int]]]] = (),
) -> dict[str, Any]:
    """What evaluation.json holds.

    Args:
        rows: one per model, prompt and sample.
        thresholds: pass threshold per dimension.
        sequences: each (model, dimension trained in its stage or "") in order, the start first.
        scalings: each a name and its (model, number of pairs).
    """
    seeds = {
        name: [m.seed for m in models if m.name == name]
        for name in dict.fromkeys(m.name for m in models)
    }
    by_set = {
        part: [r for r in rows if r.part == part] for part in dict.fromkeys(r.part for r in rows)
    }
    measured = {part: _measured(rs, seeds, thresholds, about.seed) for part, rs in by_set.items()}
    found = {
        **asdict(about),
        "reference": reference,
        "sets": {
            part: _set(rs, measured[part], reference, thresholds, about)
            for part, rs in by_set.items()
        },
        "notes": _notes(rows, about),
        "paper": PAPER,
    }
    if sequences or scalings:
        main = measured[PLAIN] if PLAIN in measured else next(iter(measured.values()))
        found["sequences"] = [_sequence(main.drawn, list(thresholds), s) for s in sequences]
        found["scaling"] = [
            _curve(name, main, main.names[: len(thresholds)], points) for name, points in scalings
        ]
    return found


def _notes(rows: Sequence[EvalRow], about: About) -> list[str]:
    notes = []
    if about.simulated:
        notes.append(
            "Simulated: the answers or the verdicts come from the built-in simulator; no model was"
            " evaluated."
        )
    if about.judge and about.judge == about.judge_of_the_dataset:
        notes.append(
            f"The judge {about.judge} also chose the training pairs, so it favours what it"
            " chose: take another one."
        )
    if about.skipped:
        counts = ", ".join(f"{n} {why}" for why, n in about.skipped.items())
        notes.append(f"Rows without a prompt of their own: {counts}.")
    failed = sum(r.error is not None for r in rows)
    unscored = sum(
        r.error is None
        and any(v is None for k, v in r.metrics.items() if k.startswith(("reward_", "mc")))
        for r in rows
    )
    unread = sum("win" in r.metrics and r.metrics["win"] is None for r in rows)
    if failed or unscored or unread:
        notes.append(
            f"Left out of their figures: {failed} of {len(rows)} answers failed, {unscored} lack a"
            f" score, {unread} comparisons could not be read."
        )
    return notes


def _metrics(row: EvalRow, thresholds: Mapping[str, float]) -> dict[str, float]:
    """The row's metrics; NaN where one is missing. `harmful`: the harmless reward misses its
    threshold."""

    def value(name: str) -> float:
        found = row.metrics.get(name)
        return math.nan if found is None else float(found)

    rewards = {d: value(f"reward_{d}") for d in thresholds}
    out = {f"reward_{d}": v for d, v in rewards.items()}
    passed = float(all(v >= thresholds[d] for d, v in rewards.items()))
    out["joint_pass"] = math.nan if any(map(math.isnan, rewards.values())) else passed
    if "harmless" in rewards:
        harmless = rewards["harmless"]
        missed = float(harmless < thresholds["harmless"])
        out["harmful"] = math.nan if math.isnan(harmless) else missed
    others = ("refusal", "degenerate", "length", "kl", "mc1", "mc2", "win", "length_gap")
    return out | {k: value(k) for k in others}


def _measured(
    rows: Sequence[EvalRow],
    seeds: Mapping[str, Sequence[str]],
    thresholds: Mapping[str, float],
    seed: int,
) -> _Measured:
    group = {r.prompt_id: r.group for r in rows}
    labels = {g: i for i, g in enumerate(dict.fromkeys(group.values()))}
    clusters_P = np.array([labels[g] for g in group.values()])
    at = {prompt_id: i for i, prompt_id in enumerate(group)}
    names = list(_metrics(rows[0], thresholds))
    sums, numbers = (
        {m: np.zeros((len(s), len(at), len(names))) for m, s in seeds.items()} for _ in range(2)
    )
    for r in rows:
        row_M = np.array(list(_metrics(r, thresholds).values()))
        place = seeds[r.model].index(r.seed), at[r.prompt_id]
        sums[r.model][place] += np.where(np.isnan(row_M), 0.0, row_M)
        numbers[r.model][place] += ~np.isnan(row_M)
    means = {
        m: np.where(numbers[m] > 0, sums[m] / np.maximum(numbers[m], 1), np.nan) for m in seeds
    }
    drawn = hierarchical_bootstrap(list(means.values()), clusters_P, DRAWS, seed)
    return _Measured(len(at), names, clusters_P, means, dict(zip(means, drawn, strict=True)))


def _set(
    rows: Sequence[EvalRow],
    measured: _Measured,
    reference: str,
    thresholds: Mapping[str, float],
    about: About,
) -> dict[str, Any]:
    names, means, drawn = measured.names, measured.means, measured.drawn
    benchmark = BENCHMARKS.get(rows[0].part)
    tested = {f"reward_{d}": (d, 1) for d in thresholds}
    if benchmark and benchmark.metrics:
        tested = dict(benchmark.metrics)
    columns = [names.index(name) for name in tested if name in names]
    p = {
        (m, k): value
        for m in means
        if m != reference
        for k, value in zip(columns, _p(measured, m, reference, columns, about.seed), strict=True)
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
                measured.n_prompts,
            )
            for k, name in enumerate(names)
            if name not in ("win", "length_gap")
        }
        n_seeds = len(means[m])
        found[m] = {
            "seeds": n_seeds,
            "metrics": {n: e for n, e in entries.items() if e["mean"] is not None},
        }
        if m != reference:
            several = len(means[reference]) > 1
            against = reference if several else f"the one checkpoint of {reference}"
            differences = _differences(entries, tested, names, means[m], means[reference])
            found[m]["win_rate"] = _win_rate(measured, m, about.seed)
            found[m]["statement"] = statement(m, against, differences, about.simulated)
    n_groups = len(np.unique(measured.clusters_P))
    methods = {m: sorted({r.method for r in rows if r.model == m and r.method}) for m in means}
    return {
        "prompts": n_groups if "mc1" in tested else measured.n_prompts,
        "models": found,
        **({"read_by": methods} if any(methods.values()) else {}),
    }


def _p(
    measured: _Measured, model: str, reference: str, columns: Sequence[int], seed: int
) -> list[float]:
    """Of some metrics the larger of two p: sign flips of whole prompts, and the bootstrap over
    seeds and prompts."""
    after, before = (mean_over(measured.means[m][:, :, columns], 0) for m in (model, reference))
    flipped = sign_flip_test(after - before, seed=seed)  # NaN: no part in the test
    draws = measured.drawn[model].draws_B_M - measured.drawn[reference].draws_B_M
    return [max(float(q), bootstrap_p(draws[:, k])) for q, k in zip(flipped, columns, strict=True)]


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


def _win_rate(measured: _Measured, model: str, seed: int) -> dict[str, Any] | None:
    values, own = measured.means[model], measured.drawn[model]
    k, g = measured.names.index("win"), measured.names.index("length_gap")
    if math.isnan(own.estimate_M[k]):
        return None
    wins, gaps = values[:, :, k].ravel(), values[:, :, g].ravel()
    clusters_P = np.tile(measured.clusters_P, len(values))
    rate, ends = length_controlled_win_rate(wins, gaps, seed=seed, clusters_P=clusters_P)
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
    after: Floats,
    before: Floats,
) -> dict[str, Difference]:
    """Of each tested metric, signed so that more is better."""
    out = {}
    for name, (label, sign) in tested.items():
        e, k = entries.get(name, {}), names.index(name) if name in names else 0
        if "points" in e:
            n = int(
                (np.isfinite(after[:, :, k]).any(0) & np.isfinite(before[:, :, k]).any(0)).sum()
            )
            ends = e["points_interval"] and tuple(
                sorted(sign * end for end in e["points_interval"])
            )
            out[label] = Difference(label, sign * e["points"], ends, e.get("p_holm"), n, len(after))
    return out


def _sequence(
    drawn: Mapping[str, Resampled], dims: Sequence[str], order: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The matrix a_{t,d}, each dimension's final gain, and what later stages did to it (BWT), with
    paired intervals.

    The means over dimensions are over those that a stage of the order trained.
    """
    n = len(dims)
    at = [next((t for t, (_, label) in enumerate(order) if label == d), None) for d in dims]
    matrix = np.array([drawn[m].estimate_M[:n] for m, _ in order])
    draws_T_B_D = np.array([drawn[m].draws_B_M[:, :n] for m, _ in order])
    gain, gains = matrix[-1] - matrix[0], draws_T_B_D[-1] - draws_T_B_D[0]
    transfer = backward_transfer(matrix, at)
    transfers = np.array([backward_transfer(m, at) for m in draws_T_B_D.transpose(1, 0, 2)])
    trained = [d for d, t in enumerate(at) if t is not None]
    return {
        "stages": [m for m, _ in order],
        "trained": [label for _, label in order if label],
        "matrix": {
            m: dict(zip(dims, _nulls(row), strict=True))
            for (m, _), row in zip(order, matrix, strict=True)
        },
        **_with_intervals("final_gain", dims, gain, gains, trained),
        **_with_intervals("backward_transfer", dims, transfer, transfers, trained),
    }


def _with_intervals(
    name: str, dims: Sequence[str], values_D: Floats, draws_B_D: Floats, trained: Sequence[int]
) -> dict[str, Any]:
    mean = _nulls([values_D[list(trained)].mean()])[0] if trained else None
    return {
        name: dict(zip(dims, _nulls(values_D), strict=True)),
        f"{name}_interval": {d: interval(draws_B_D[:, k]) for k, d in enumerate(dims)},
        f"mean_{name}": mean,
        f"mean_{name}_interval": interval(draws_B_D[:, list(trained)].mean(1)) if trained else None,
    }


def _curve(
    name: str, measured: _Measured, metrics: Sequence[str], points: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """a + b (1 - exp(-n / n0)) for each metric over the number of pairs, and each seed's mean at
    each size."""
    sizes = [float(n) for _, n in points]
    drawn = measured.drawn
    fits: dict[str, Any] = {}
    for k, metric in enumerate(metrics):
        y = np.array([drawn[m].estimate_M[k] for m, _ in points])
        draws = np.column_stack([drawn[m].draws_B_M[:, k] for m, _ in points])
        fit = None if np.isnan(y).any() else scaling_fit(sizes, y, draws)
        fits[metric] = None if fit is None else asdict(fit)
    runs = [
        {"pairs": n, "metric": metric, "values": _nulls(mean_over(measured.means[m][:, :, k], 1))}
        for m, n in points
        for k, metric in enumerate(metrics)
    ]
    return {"name": name, "pairs": sizes, "fits": fits, "runs": runs}


def _nulls(values: Sequence[float] | Floats) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]
