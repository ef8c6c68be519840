"""Whether training helped: docs/method.md, "Training".

Axes: S training seeds x P prompts x M metrics; NaN where a prompt has no value. The unit is the
source prompt: intervals of differences are paired by prompt, and cover the seeds where there is
more than one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import Floats, Ints
from .inference import cluster_bootstrap, resampled_counts


@dataclass(frozen=True, slots=True)
class Resampled:
    """Means of M metrics of one model over its seeds and prompts, with B resamplings.

    Attributes:
        estimate_M: mean over seeds of the means over prompts.
        draws_B_M: the same of each resampling. Models of one call share the draws of prompts.
        n_seeds: seeds; with one, the draws hold no training noise.
    """

    estimate_M: Floats
    draws_B_M: Floats
    n_seeds: int


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
        out.append(Resampled(mean_over(estimate, 0), mean_over(picked, 1), n_seeds))
        first += width
    return out


def interval(draws_B: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of draws; None where they are not numbers."""
    there = draws_B[np.isfinite(draws_B)]
    if len(there) < 0.9 * len(draws_B) or not len(there):
        return None
    low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2])
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


def length_controlled_win_rate(
    wins_P: Floats,
    length_gap_P: Floats,
    draws: int = 400,
    seed: int = 0,
    clusters_P: Ints | None = None,
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
    for first in range(0, draws, step):
        size = min(step, draws - first)
        counts = resampled_counts(rng, n, size)
        rates += list(_rate_at_zero(x, *_in_bins(counts, labels, y, starts)))
    return float(rates[0]), interval(np.array(rates[1:]))


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
        None if draws_B_K is None else interval(v)
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


def mean_over(values: Floats, axis: int) -> Floats:
    """Mean over what is there; NaN where nothing is."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(
            np.where(there, values, 0).sum(axis)
            / np.where(there.any(axis), there.sum(axis), np.nan)
        )
