"""Rows to figures, and a sentence that states what they support, never more: whether training
helped (docs/method.md, "Training").

    found = result(rows, models, "sft", thresholds, about)
    found["sets"]["plain"]["models"]["mora"]["metrics"]["reward_helpful"]["points"]

With --sequence the matrix of a sequence of stages, with --scaling the curve over the number of
pairs.

Axes: S training seeds x P prompts x M metrics; NaN where a prompt has no value. The unit is the
source prompt: intervals of differences are paired by prompt, and cover the seeds where there is
more than one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..statistics import Floats, Ints
from ..statistics.inference import (
    cluster_bootstrap,
    holm,
    mean_over,
    rate_interval,
    resampled_counts,
    sign_flip_test,
)
from .asking import EvalModel
from .prompts import BENCHMARKS, PLAIN, EvalRow


@dataclass(frozen=True, slots=True)
class Resampled:
    """Means of M metrics of one model over its seeds and prompts, with B resamplings.

    Attributes:
        estimate_M: mean over seeds of the means over prompts.
        draws_B_M: the same of each resampling. Models of one call share the draws of prompts.
    """

    estimate_M: Floats
    draws_B_M: Floats


def hierarchical_bootstrap(
    models: Sequence[Floats], clusters_P: Ints | None = None, draws: int = 2000, seed: int = 0
) -> list[Resampled]:
    """One `Resampled` per model; each of `models` is S x P x M, S its own.

    Prompts (or clusters of them) and, within each model, seeds are drawn with replacement, crossed,
    as every seed answers the same prompts. A handful of seeds understates their variance by (S - 1)
    / S, as any bootstrap does.
    """
    shape = [m.shape for m in models]
    flat = np.hstack([m.transpose(1, 0, 2).reshape(m.shape[1], -1) for m in models])
    boot = cluster_bootstrap(flat, clusters_P, draws, seed)
    out, first = [], 0
    for k, (n_seeds, _, n_metrics) in enumerate(shape):
        width = n_seeds * n_metrics
        estimate = boot.estimate_M[first : first + width].reshape(n_seeds, n_metrics)
        means = boot.draws_B_M[:, first : first + width].reshape(draws, n_seeds, n_metrics)
        drawn = np.random.default_rng([seed, k]).integers(0, n_seeds, (draws, n_seeds))
        picked = np.take_along_axis(means, drawn[:, :, None], axis=1)
        out.append(Resampled(mean_over(estimate, 0), mean_over(picked, 1)))
        first += width
    return out


def draws_interval(draws_B: Floats) -> tuple[float, float] | None:
    """95 % percentile interval of draws; None where they are not numbers."""
    there = draws_B[np.isfinite(draws_B)]
    if len(there) < 0.9 * len(draws_B) or not len(there):
        return None
    low, high = np.quantile(there, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_p(draws_B: Floats) -> float:
    """Two-sided p of a difference being 0, by the share of draws on the far side, never under 2 /
    (B + 1)."""
    b = len(draws_B)
    return float(min(1.0, 2 * (1 + min((draws_B <= 0).sum(), (draws_B >= 0).sum())) / (b + 1)))


def relative_improvement(after: float, reference: float) -> float | None:
    """RI = 100 (after - reference) / reference in percent, for bounded metrics >= 0;
    None where reference is 0."""
    return 100 * (after - reference) / reference if reference > 0 else None


WIN_RATE_DRAWS = 400


def length_controlled_win_rate(
    wins_P: Floats, length_gap_P: Floats, seed: int = 0, clusters_P: Ints | None = None
) -> tuple[float, tuple[float, float] | None]:
    """Win rate at equal length, with its percentile interval over rows, or over clusters of them.

    Logistic model of the win (1, 0.5 a tie, 0) in tanh(gap / sd of gap), read at gap 0: the length
    term of AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475), without its terms for models and
    instructions. A weak ridge (0.01) keeps the fit finite where one side always wins. NaN rows have
    no part. Rows of one gap share a bin, all that the fit needs of them; over 1,000 different gaps,
    tanh is rounded to 1/500.
    """
    there = np.isfinite(wins_P) & np.isfinite(length_gap_P)
    y, gap = wins_P[there], length_gap_P[there]
    if len(y) < 2:
        return float("nan"), None
    x, bin_P = np.unique(np.tanh(gap / (gap.std() or 1.0)), return_inverse=True)
    if len(x) > 1000:
        x, bin_P = np.unique(np.round(x[bin_P] * 500) / 500, return_inverse=True)
    labels = np.arange(len(y))
    if clusters_P is not None:
        labels = np.unique(clusters_P[there], return_inverse=True)[1]
    order = np.argsort(bin_P, kind="stable")
    y, labels = y[order], labels[order]
    starts = np.flatnonzero(np.diff(bin_P[order], prepend=-1))
    n, rng = int(labels.max()) + 1, np.random.default_rng(seed)
    rates = [_rate_at_zero(x, *_in_bins(np.ones((1, n)), labels, y, starts))[0]]
    step = max(1, (1 << 21) // len(y))
    for first in range(0, WIN_RATE_DRAWS, step):
        size = min(step, WIN_RATE_DRAWS - first)
        counts = resampled_counts(rng, n, size)
        rates += list(_rate_at_zero(x, *_in_bins(counts, labels, y, starts)))
    return float(rates[0]), draws_interval(np.array(rates[1:]))


def _in_bins(
    counts_B_C: Floats, labels_P: Ints, y_P: Floats, starts_U: Ints
) -> tuple[Floats, Floats]:
    """Weight and weighted wins of each bin, both B x U; rows are in the order of their bins."""
    weights = counts_B_C[:, labels_P]
    return np.add.reduceat(weights, starts_U, axis=1), np.add.reduceat(
        weights * y_P, starts_U, axis=1
    )


def _rate_at_zero(x_U: Floats, weight_B_U: Floats, wins_B_U: Floats) -> Floats:
    """sigmoid(intercept) of B logistic fits over U bins, by Newton's method."""
    a, b = np.zeros((2, len(weight_B_U)))
    for _ in range(12):
        p = 1 / (1 + np.exp(-(a[:, None] + b[:, None] * x_U)))
        residual, curve = wins_B_U - weight_B_U * p, weight_B_U * p * (1 - p)
        ga, gb = residual.sum(1) - 0.01 * a, residual @ x_U - 0.01 * b
        haa, hab, hbb = curve.sum(1) + 0.01, curve @ x_U, curve @ x_U**2 + 0.01
        det = haa * hbb - hab**2
        a, b = (
            a + np.clip((hbb * ga - hab * gb) / det, -2, 2),
            b + np.clip((haa * gb - hab * ga) / det, -2, 2),
        )
    return 1 / (1 + np.exp(-a))


def backward_transfer(scores_T_D: Floats, trained_at_D: Sequence[int | None]) -> Floats:
    """BWT_d = a_{T,d} - a_{t(d),d}: what later stages did to dimension d after its own stage t(d);
    shape D.

    Row t is the model after stage t, row 0 the start. NaN where d was never trained; 0 for the last
    stage's dimension.
    """
    return np.array(
        [
            np.nan if t is None else scores_T_D[-1, d] - scores_T_D[t, d]
            for d, t in enumerate(trained_at_D)
        ]
    )


@dataclass(frozen=True, slots=True)
class Scaling:
    """a + b (1 - exp(-n / n0)), fitted to the means at K data sizes.

    Attributes:
        a, b, n0: value without data; gain at saturation; size at which 63 % of it is there.
        saturation: a + b.
        b_interval, saturation_interval, n0_interval: percentile intervals over the draws; None
        without draws.
        at_edge: n0 lies at the end of what was searched: the curve is a line (or a step) as far as
            these sizes show.
    """

    a: float
    b: float
    n0: float
    saturation: float
    b_interval: tuple[float, float] | None
    saturation_interval: tuple[float, float] | None
    n0_interval: tuple[float, float] | None
    at_edge: bool


def scaling_fit(
    n_K: Sequence[float], y_K: Floats, draws_B_K: Floats | None = None
) -> Scaling | None:
    """Least squares over a grid of n0 from a tenth of the smallest size to ten times the largest;
    None under 3 sizes."""
    n = np.asarray(n_K, float)
    if len(np.unique(n)) < 3:
        return None
    grid = np.geomspace(n[n > 0].min() / 10, n.max() * 10, 120)
    sets = y_K[None] if draws_B_K is None else np.vstack([y_K[None], draws_B_K])
    best = np.full(len(sets), np.inf)
    found = np.zeros((len(sets), 3))
    for n0 in grid:
        design = np.stack([np.ones_like(n), 1 - np.exp(-n / n0)], 1)
        coefficients = sets @ np.linalg.pinv(design).T
        error = ((sets - coefficients @ design.T) ** 2).sum(1)
        better = error < best
        best = np.where(better, error, best)
        found[better] = np.column_stack([coefficients, np.full(len(sets), n0)])[better]
    a, b, n0 = found[0]
    edge = bool(n0 in (grid[0], grid[-1]))
    of_b, of_both, of_n0 = (
        None if draws_B_K is None else draws_interval(v)
        for v in (found[1:, 1], found[1:, 0] + found[1:, 1], found[1:, 2])
    )
    return Scaling(float(a), float(b), float(n0), float(a + b), of_b, of_both, of_n0, edge)


@dataclass(frozen=True, slots=True)
class Difference:
    """A model against the reference in one metric, paired by prompt.

    Attributes:
        points: absolute difference of the means, in the metric's own unit.
        interval: of `points`; over seeds and prompts. None: too few values.
        p_holm: adjusted over the family of the table; None: not tested.
        n_prompts, n_seeds: what it rests on; training seeds of the model.
    """

    metric: str
    points: float
    interval: tuple[float, float] | None
    p_holm: float | None
    n_prompts: int
    n_seeds: int

    @property
    def clear(self) -> bool:
        """The interval excludes 0 and the adjusted p is under 0.05."""
        return (
            self.interval is not None
            and not self.interval[0] <= 0 <= self.interval[1]
            and (self.p_holm or 1) < 0.05
        )


MIN_SEEDS = 3


def statement(
    model: str, reference: str, differences: Mapping[str, Difference], simulated: bool
) -> str:
    """One sentence on what the data supports, never more; `improves` only with 3 seeds and an
    interval that excludes 0."""
    if simulated:
        return (
            f"{model} against {reference}: the answers or verdicts are simulated, so nothing is"
            " shown about any model."
        )
    up = [d.metric for d in differences.values() if d.clear and d.points > 0]
    down = [d.metric for d in differences.values() if d.clear and d.points < 0]
    open_ = [d.metric for d in differences.values() if not d.clear]
    seeds = min((d.n_seeds for d in differences.values()), default=0)
    n = max((d.n_prompts for d in differences.values()), default=0)
    verbs = ("improves on", "is worse than")
    if seeds < MIN_SEEDS:
        verbs = ("scores above", "scores below")
    parts = [
        f"{verb} {reference} in {_and(names)}"
        for verb, names in zip(verbs, (up, down), strict=True)
        if names
    ]
    if open_:
        parts.append(f"shows no clear difference from {reference} in {_and(open_)}")
    how = f"{seeds} training seed{'s' if seeds > 1 else ''}"
    if seeds < MIN_SEEDS:
        how += ": this is about these checkpoints, not about the training method"
    return (
        f"On {n} held-out prompts, {model}"
        f" {'; '.join(parts) or f'has no value to compare with {reference}'} ({how})."
    )


def _and(names: Sequence[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), names[-1]])


# rows to figures

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
        base = drawn[reference] if m != reference else None
        entries = {
            name: _entry(name, k, drawn[m], base, adjusted.get((m, k)), measured.n_prompts)
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
    ends = draws_interval(own.draws_B_M[:, k])
    # all alike: resampling can't tell 0 of 10 from 0 of 1000
    if ends and ends[0] == ends[1] and name in RATES:
        low, high = rate_interval(round(mean * n_prompts), n_prompts)
        ends = (float(low), float(high))
    entry: dict[str, Any] = {"mean": None if math.isnan(mean) else mean, "interval": ends}
    if reference is not None and not math.isnan(mean) and not math.isnan(reference.estimate_M[k]):
        before = float(reference.estimate_M[k])
        entry |= {
            "points": mean - before,
            "points_interval": draws_interval(own.draws_B_M[:, k] - reference.draws_B_M[:, k]),
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
        "interval": draws_interval(own.draws_B_M[:, k]),
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
        f"{name}_interval": {d: draws_interval(draws_B_D[:, k]) for k, d in enumerate(dims)},
        f"mean_{name}": mean,
        f"mean_{name}_interval": draws_interval(draws_B_D[:, list(trained)].mean(1))
        if trained
        else None,
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
