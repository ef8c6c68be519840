"""Intervals and tests over prompts, and the verdict (docs/method.md, "Comparing arms", "Verdict").

The unit is the source prompt. `values_P_M` holds one row per prompt and one column per metric (and
arm), NaN where a prompt has no value; a metric is the mean of its column. Rows of one cluster are
drawn together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, TypedDict

import numpy as np

from . import Bools, Floats, Ints

CHUNK = 1 << 20  # numbers per block of draws


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Cluster bootstrap of M metrics.

    Attributes:
        estimate_M: the means.
        draws_B_M: the means of each resampled set of clusters.
        acceleration_M: BCa's skewness correction, from the jackknife over clusters.
        n_M: clusters that have a value.
        cases_M: the same, or the cases in them where clusters are but batches.
        variance_M: of one case, linearised for cases of unequal size.
        mixed_M: cases whose mean is not 0, or those whose mean is not 1, whichever are fewer.
    """

    estimate_M: Floats
    draws_B_M: Floats
    acceleration_M: Floats
    n_M: Ints
    cases_M: Ints
    variance_M: Floats
    mixed_M: Ints

    def percentile(self) -> tuple[Floats, Floats]:
        """Ends of the percentile interval; NaN with fewer than two clusters."""
        return percentile_ends(self.draws_B_M, self.n_M)

    def bca(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """Ends of the bias-corrected and accelerated interval (Efron 1987, eq. 2.3), for rare
        rates; NaN as above.

        Draws that equal the estimate count half, so that a metric of few values is not shifted.
        """
        normal = NormalDist()
        b = len(self.draws_B_M)
        over = self.draws_B_M - self.estimate_M
        there = np.maximum((~np.isnan(over)).sum(0), 1)
        below = ((over < -1e-12).sum(0) + 0.5 * (np.abs(over) <= 1e-12).sum(0)) / there
        z0 = np.array([normal.inv_cdf(float(q)) for q in np.clip(below, 0.5 / b, 1 - 0.5 / b)])
        ends = []
        for q in ((1 - level) / 2, (1 + level) / 2):
            z = z0 + normal.inv_cdf(q)
            shifted = z0 + z / np.maximum(1 - self.acceleration_M * z, 1e-9)
            ends.append(np.array([normal.cdf(float(s)) for s in shifted]))
        return _quantiles(self.draws_B_M, ends, self.n_M)

    def rate(self, of_M: Bools | slice = slice(None)) -> tuple[Floats, Floats]:
        """Ends for the columns `of_M`, means of values in [0, 1] and rare ones too: `rate_interval`
        of the effective cases.

        There are n p (1 - p) / variance of them (Korn and Graubard 1998). The variance of a rate
        that sits in few clusters is known from those few, so it is drawn towards its largest value
        p (1 - p), with the weight of 1.5 clusters. NaN as above.
        """
        n, mixed = self.cases_M[of_M], self.mixed_M[of_M]
        p = np.clip(np.nan_to_num(self.estimate_M[of_M]), 0, 1)
        most = p * (1 - p)
        design = np.where(most > 0, self.variance_M[of_M] / np.where(most > 0, most, 1.0), 1.0)
        design = (mixed * design + 1.5) / (mixed + 1.5)
        low, high = rate_interval(p * n / design, n / design)
        return np.where(n > 1, low, np.nan), np.where(n > 1, high, np.nan)


def cluster_bootstrap(
    values_P_M: Floats, clusters_P: Ints | None = None, draws: int = 2000, seed: int = 0
) -> Bootstrap:
    """Means of the columns over `draws` resamplings of the clusters (rows, when `clusters_P` is
    None) with replacement.

    A draw is its multinomial counts, so B draws of M metrics are two matrix products: counts x sums
    over counts x numbers. The counts are shared by all metrics: differences of columns of
    `draws_B_M` are paired differences.
    """
    return bootstrap_of(by_cluster(values_P_M, clusters_P), draws, seed)


@dataclass(slots=True)
class Sums:
    """What a bootstrap needs of values that stream by: sum and number of the values of each
    cluster, both C x M.

    `mixed_2_M`: where a cluster is but a random batch of cases, independent of each other and put
    together to save room: how many cases are not 0, and how many not 1. None where the clusters are
    the cases.
    """

    sums_C_M: Floats
    numbers_C_M: Floats
    mixed_2_M: Ints | None = None

    @classmethod
    def empty(cls, m: int, whole: bool = False) -> Sums:
        """To add to. `whole`: a row has all of its values or counts as having none; then the number
        is kept once for all columns."""
        return cls(np.zeros((0, m)), np.zeros((0, 1 if whole else m)), np.zeros((2, m), int))

    def add(self, labels_P: Ints, values_P_M: Floats) -> None:
        """Rows of values, NaN for none, to their clusters."""
        there = ~np.isnan(values_P_M)
        if self.numbers_C_M.shape[1] < there.shape[1]:
            there = np.asarray(there.all(1, keepdims=True))
        if self.mixed_2_M is not None:
            off = values_P_M > 1e-12, values_P_M < 1 - 1e-12
            self.mixed_2_M += [(there & o).sum(0) for o in off]
        self._grow(int(labels_P.max(initial=-1)) + 1)
        np.add.at(self.sums_C_M, labels_P, np.where(there, values_P_M, 0.0))
        np.add.at(self.numbers_C_M, labels_P, there.astype(float))

    def of(self, n_clusters: int) -> Sums:
        """The sums of so many clusters; those that had no value have 0 of 0."""
        self._grow(n_clusters)
        sums, numbers = self.sums_C_M[:n_clusters], self.numbers_C_M[:n_clusters]
        return Sums(sums, np.broadcast_to(numbers, sums.shape), self.mixed_2_M)

    def _grow(self, n: int) -> None:
        if (more := n - len(self.sums_C_M)) > 0:
            rows = (0, max(more, len(self.sums_C_M) // 4)), (0, 0)
            self.sums_C_M, self.numbers_C_M = (
                np.pad(a, rows) for a in (self.sums_C_M, self.numbers_C_M)
            )

    @classmethod
    def beside(cls, parts: Sequence[Sums]) -> Sums:
        """Columns of several, over the same clusters."""
        mixed = [p.mixed_2_M for p in parts if p.mixed_2_M is not None]
        return cls(
            np.hstack([p.sums_C_M for p in parts]),
            np.hstack([p.numbers_C_M for p in parts]),
            np.hstack(mixed) if mixed else None,
        )


def bootstrap_of(by: Sums, draws: int = 2000, seed: int = 0) -> Bootstrap:
    """`cluster_bootstrap` of values that are added up already."""
    sums, numbers = by.sums_C_M, by.numbers_C_M
    n = len(sums)
    rng = np.random.default_rng(seed)
    both = np.hstack([sums, numbers])
    out = np.empty((draws, both.shape[1]))
    step = max(1, CHUNK // max(n, 1))
    for first in range(0, draws, step):
        size = min(step, draws - first)
        out[first : first + size] = resampled_counts(rng, n, size) @ both
    m = sums.shape[1]
    total, number = sums.sum(0), numbers.sum(0)
    left = (total - sums) / np.maximum(number - numbers, 1)
    deviation = np.where(numbers > 0, left.mean(0) - left, 0.0)
    cube, square = (deviation**3).sum(0), (deviation**2).sum(0)
    acceleration = cube / np.where(square > 0, 6 * square**1.5, 1.0)
    there = (numbers > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / number
        residual = np.where(numbers > 0, sums - mean * numbers, 0.0) * there / number
        variance = (residual**2).sum(0) / np.maximum(there - 1, 1)
        mixed, cases = np.minimum((sums > 1e-12).sum(0), (sums < numbers - 1e-12).sum(0)), there
        if by.mixed_2_M is not None:
            mixed, cases = by.mixed_2_M.min(0), number.astype(int)
            variance = variance * (cases / np.maximum(there, 1))
        return Bootstrap(
            mean,
            out[:, :m] / out[:, m:],
            acceleration,
            there,
            cases,
            np.nan_to_num(variance),
            mixed,
        )


def by_cluster(values_P_M: Floats, clusters_P: Ints | None = None) -> Sums:
    """Sum and number of the values of each cluster, both C x M, clusters in the order of their
    labels."""
    there = ~np.isnan(values_P_M)
    values, there = np.where(there, values_P_M, 0.0), there.astype(float)
    if clusters_P is None:
        return Sums(values, there)
    labels, index = np.unique(clusters_P, return_inverse=True)
    sums, numbers = np.zeros((2, len(labels), values.shape[1]))
    np.add.at(sums, index, values)
    np.add.at(numbers, index, there)
    return Sums(sums, numbers)


def sign_flip_test(differences_P_M: Floats, draws: int = 10_000, seed: int = 0) -> Floats:
    """Two-sided p of each column's mean being 0 when the signs of whole prompts are exchangeable;
    shape M.

    A row may be the sum over a batch of prompts: signs of batches are exchangeable where those of
    prompts are.

    Monte-Carlo permutation test: (1 + draws at least as extreme) / (1 + draws), which keeps its
    level at any number of draws (Phipson and Smyth 2010). Rows with NaN have no part in their
    column; a column without a difference has p = 1.
    """
    values = np.nan_to_num(differences_P_M)
    rows = np.any(values != 0, axis=1)
    values = values[rows]
    seen = np.abs(values.sum(0))
    rng = np.random.default_rng(seed)
    extreme = np.zeros(values.shape[1], int)
    step = max(1, CHUNK // max(len(values), 1))
    for first in range(0, draws, step):
        size = min(step, draws - first)
        bits = np.unpackbits(
            np.frombuffer(rng.bytes(size * (-(-len(values) // 8))), np.uint8).reshape(size, -1),
            axis=1,
            count=len(values),
        )
        flipped = 2 * (bits.astype(float) @ values) - values.sum(0)
        extreme += (np.abs(flipped) >= seen * (1 - 1e-9) - 1e-12).sum(0)
    return (1 + extreme) / (1 + draws)


def holm(p_values: Floats) -> Floats:
    """Adjusted p, max over smaller ones of (m - rank) p, at most 1, in the order given (Holm
    1979)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty(len(p))
    out[order] = np.minimum(adjusted, 1.0)
    return out


def mean_over(values: Floats, axis: int) -> Floats:
    """Mean over what is there; NaN where nothing is."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(
            np.where(there, values, 0).sum(axis)
            / np.where(there.any(axis), there.sum(axis), np.nan)
        )


def resampled_counts(rng: np.random.Generator, n: int, size: int) -> Floats:
    """`size` x n multinomial counts of n draws among n."""
    flat = rng.integers(0, n, (size, n), dtype=np.int32) + n * np.arange(size)[:, None]
    return np.bincount(flat.ravel(), minlength=size * n).reshape(size, n).astype(float)


def percentile_ends(draws_B_M: Floats, n_M: Ints) -> tuple[Floats, Floats]:
    """Ends of the 95 % percentile interval of draws (Efron and Tibshirani 1993, 13.3); NaN where
    `n_M`, the clusters, are fewer than two."""
    return _quantiles(draws_B_M, [np.full(len(n_M), q) for q in (0.025, 0.975)], n_M)


def _quantiles(draws_B_M: Floats, levels: list[Floats], n_M: Ints) -> tuple[Floats, Floats]:
    """Two quantiles per column over the draws that held a value of that column; NaN where the
    clusters are fewer than two."""
    ordered = np.sort(draws_B_M, axis=0)  # NaN comes last
    last = np.maximum((~np.isnan(ordered)).sum(0) - 1, 0)
    columns = np.arange(ordered.shape[1])
    out = []
    for q in levels:
        at = q * last
        under = np.floor(at).astype(int)
        share = at - under
        over = np.minimum(under + 1, last)
        found = ordered[under, columns] * (1 - share) + ordered[over, columns] * share
        out.append(np.where(n_M > 1, found, np.nan))
    return out[0], out[1]


Line = Literal["supports expansion", "not supported", "inconclusive"]
CONTROLS = ("identity", "single", "generic")
LEAST_GAIN = 0.02
# (1 - 0.02)^n <= 0.025: with fewer, a gain of 0.02 that sits in few prompts can be missed
# altogether
LEAST_PROMPTS = 183
MOST_LENGTH_GAP = 0.05


class Comparison(TypedDict):
    """Fused against one control in one primary metric.

    `n`: prompts that have the metric in both arms; `gain`: mean paired difference, fused minus
    control, None without prompts, with its 95 % percentile interval; `p_holm`: two-sided sign-flip
    p, adjusted by Holm over all comparisons.
    """

    metric: str
    control: str
    n: int
    gain: float | None
    low: float | None
    high: float | None
    p_holm: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The line, why, and the comparisons that it rests on.

    Attributes:
        over_best: per metric, ends of the 95 % interval of fused minus best control (see
            `_over_best`); None where it can't be had.
    """

    line: Line
    reason: str
    comparisons: Sequence[Comparison]
    over_best: dict[str, tuple[float, float] | None]


def gains_by_prompt(arms: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    """Fused minus each control, in the order of CONTROLS, metrics side by side: over the prompts
    that have both arms, and over those that have all of them. One row per prompt, NaN elsewhere."""
    stacked = np.stack([arms[a] for a in ("fused", *CONTROLS)])
    common = np.where(np.isnan(stacked).any(0), np.nan, stacked)
    return np.hstack(list(stacked[0] - stacked[1:])), np.hstack(list(common[0] - common[1:]))


def verdict_of(
    gains: tuple[Sums, Sums],
    metrics: Sequence[str],
    length_gaps: Mapping[str, float],
    *,
    draws: int = 2000,
    flips: int = 10_000,
    seed: int = 0,
) -> Verdict:
    """The verdict on the primary metrics (dominance rate and joint pass A_k).

    "supports expansion": fused beats identity, single and generic in every metric with
    Holm-adjusted p < 0.05, and the length-matched arms are matched. "not supported": in some metric
    the interval of fused minus best control ends below 0.02 and rests on at least 183 prompts (this
    goes first: a gain that small is no expansion, however sure). Else "inconclusive".

    Args:
        gains: both of `gains_by_prompt`, by cluster of prompts (one or a batch of them).
        metrics: names of the M columns.
        length_gaps: per control but identity, mean of log(length of its prompt / of the fused
            prompt) over paired prompts.
    """
    comparisons = _comparisons(gains[0], metrics, draws, flips, seed)
    over_best = _over_best(gains[1], metrics, draws, seed)
    small = [m for m in metrics if (ends := over_best[m]) is not None and ends[1] < LEAST_GAIN]
    unmatched = [c for c in CONTROLS[1:] if not abs(length_gaps.get(c, np.nan)) <= MOST_LENGTH_GAP]
    weak = [
        f"{c['metric'].replace('_', ' ')} over {c['control']}"
        for c in comparisons
        if not (c["p_holm"] < 0.05 and (c["gain"] or 0) > 0)
    ]
    all_small = " and ".join(small).replace("_", " ")
    n = min(c["n"] for c in comparisons)
    line: Line = "inconclusive"
    if small and n >= LEAST_PROMPTS:
        line = "not supported"
        reason = f"the gain over the best control is below {LEAST_GAIN} in {all_small}"
    elif weak or small:
        few = f" ({n} prompts, too few to tell whether there is none)" if n < LEAST_PROMPTS else ""
        reason = f"there is no sure gain in {', '.join(weak) or all_small}{few}"
    elif unmatched:
        names = " and ".join(unmatched)
        reason = f"the prompts of {names} do not match the fused ones in length"
    else:
        line, reason = "supports expansion", "fused beats every control in every primary metric"
    return Verdict(line, reason, comparisons, over_best)


def _comparisons(
    gains: Sums, metrics: Sequence[str], draws: int, flips: int, seed: int
) -> list[Comparison]:
    boot = bootstrap_of(gains, draws, seed)
    low, high = boot.percentile()
    p = holm(sign_flip_test(gains.sums_C_M, flips, seed))
    n_M = gains.numbers_C_M.sum(0)
    names = [(m, c) for c in CONTROLS for m in metrics]
    return [
        {
            "metric": m,
            "control": c,
            "n": int(n_M[i]),
            "gain": _number(boot.estimate_M[i]),
            "low": _number(low[i]),
            "high": _number(high[i]),
            "p_holm": float(p[i]),
        }
        for i, (m, c) in enumerate(names)
    ]


def _over_best(
    gains: Sums, metrics: Sequence[str], draws: int, seed: int
) -> dict[str, tuple[float, float] | None]:
    """Interval of fused minus the best control, that is of the smallest of its gains, over prompts
    that all arms have.

    The lower end is the smallest of the gains' BCa lower ends (2.5 %). The upper end is the
    smallest of their upper ends, each at 2.5 % shared among the controls (Bonferroni): the smallest
    of several estimates lies too low, and an interval round it ended below a true gain of 0.02 in
    up to 17 % of simulations (tests/unit/test_verdict_errors.py).
    """
    boot = bootstrap_of(gains, draws, seed)
    low, _ = boot.bca(0.95)
    _, high = boot.bca(1 - 0.05 / len(CONTROLS))
    out: dict[str, tuple[float, float] | None] = {}
    for j, m in enumerate(metrics):
        ends = low[j :: len(metrics)].min(), high[j :: len(metrics)].min()
        out[m] = (float(ends[0]), float(ends[1])) if np.all(np.isfinite(ends)) else None
    return out


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# beta distributions in numpy: tails, quantiles, the interval of a share, priors


def beta_tail(a: Floats, b: Floats, x: float) -> Floats:
    """P(p >= x) for p ~ Beta(a, b), by the continued fraction of the incomplete beta function
    (Lentz's method)."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    return _beta_tail(a, b, np.full(a.shape, x), _log_beta(a, b))


def beta_quantile(a: Floats, b: Floats, q: Floats | float) -> Floats:
    """The x with P(p <= x) = q for p ~ Beta(a, b), to 1e-12: Newton's steps, halving what holds x
    where a step would leave it."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    low, high = np.full(a.shape, np.finfo(float).tiny), np.full(a.shape, 1 - np.finfo(float).epsneg)
    x, log_beta = a / (a + b), _log_beta(a, b)
    for _ in range(60):
        above = (1 - q) - _beta_tail(a, b, x, log_beta)  # P(p <= x) - q
        low, high = np.where(above < 0, x, low), np.where(above < 0, high, x)
        with np.errstate(all="ignore"):  # a density of 0 gives a step that leaves
            step = x - above / np.exp((a - 1) * np.log(x) + (b - 1) * np.log1p(-x) - log_beta)
        last, x = x, np.where((low <= step) & (step <= high), step, (low + high) / 2)
        if np.all(np.abs(x - last) < 1e-12):
            break
    return np.asarray(x)


def rate_interval(
    c: Floats | float, n: Floats | float, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Confidence interval of a share c / n, also where both are effective numbers and not whole;
    (0, 1) where n = 0.

    The lower end is the quantile of Beta(c + t, n - c + 1 - t), the upper that of Beta(c + 1 - t, n
    - c + t), 0 where c = 0 and 1 where c = n. t = 0 is Clopper and Pearson's interval, which covers
    too much, t = 1/2 Jeffreys', which covers a rate of 0.05 in 88 % at n = 50; t = 1/3 covers 94 %
    or more (tests/unit/test_coverage.py, docs/numbers.md).
    """
    c, n = np.broadcast_arrays(np.asarray(c, float), np.asarray(n, float))
    rest, t = np.maximum(n - c, 0.0), 1 / 3
    q = np.stack([np.full(c.shape, (1 - level) / 2), np.full(c.shape, (1 + level) / 2)])
    low, high = beta_quantile(np.stack([c + t, c + 1 - t]), np.stack([rest + 1 - t, rest + t]), q)
    return np.where((n > 0) & (c > 0), low, 0.0), np.where((n > 0) & (rest > 1e-9), high, 1.0)


MOST_WEIGHT = 64.0  # of a prior, in rollouts


def moment_prior(c_P: Ints, n_P: Ints) -> tuple[float, float]:
    """Beta prior (a, b) of the pass rates of one dataset and dimension, by the method of moments
    (docs/method.md, "Budget").

    E[c/n] = E[p] and E[c(c-1) / n(n-1)] = E[p^2] hold for every n >= 2; prompts with fewer scores
    are left out. a and b are at least 0.5 and weigh together at most MOST_WEIGHT, also where
    the rates differ by no more than chance. Jeffreys' prior with fewer than two prompts.
    """
    enough = n_P >= 2
    c, n = c_P[enough].astype(float), n_P[enough].astype(float)
    if len(c) < 2:
        return 0.5, 0.5
    mean, square = float(np.mean(c / n)), float(np.mean(c * (c - 1) / (n * (n - 1))))
    variance = square - mean**2
    strength = min((mean - square) / variance, MOST_WEIGHT) if variance > 0 else MOST_WEIGHT
    return max(mean * strength, 0.5), max((1 - mean) * strength, 0.5)


def _beta_tail(a: Floats, b: Floats, x: Floats, log_beta: Floats) -> Floats:
    swap = x > (a + 1) / (a + b + 2)
    p, q = np.where(swap, b, a), np.where(swap, a, b)
    y = np.where(swap, 1 - x, x)
    lower = np.exp(p * np.log(y) + q * np.log1p(-y) - log_beta) * _beta_fraction(p, q, y) / p
    return np.asarray(np.where(swap, lower, 1 - lower))


def _log_beta(a: Floats, b: Floats) -> Floats:
    return _log_gamma(a) + _log_gamma(b) - _log_gamma(a + b)


def _log_gamma(x: Floats) -> Floats:
    """Stirling's series after shifting the argument above 7; relative error under 1e-10."""
    shift = np.zeros_like(x)
    y = x.astype(float).copy()
    for _ in range(7):
        low = y < 7
        shift = np.where(low, shift + np.log(np.where(low, y, 1.0)), shift)
        y = np.where(low, y + 1, y)
    series = 1 / (12 * y) - 1 / (360 * y**3) + 1 / (1260 * y**5) - 1 / (1680 * y**7)
    return np.asarray((y - 0.5) * np.log(y) - y + 0.5 * np.log(2 * np.pi) + series - shift)


def _beta_fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    if a.size > 16:
        return np.asarray(_lentz(a, b, x))
    # one by one: on few numbers the overhead of an array operation is most of its time
    each = zip(a.ravel().tolist(), b.ravel().tolist(), x.ravel().tolist(), strict=True)
    return np.array([_lentz(*one) for one in each]).reshape(a.shape)


def _lentz(a: Any, b: Any, x: Any) -> Any:
    """The continued fraction of numbers or of arrays."""
    tiny = 1e-300  # added where a zero would be divided by; no other number changes
    c = 1.0
    value = d = 1 / (1 - (a + b) * x / (a + 1) + tiny)
    for m in range(1, 200):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d + tiny)
            c = 1 + term / c + tiny
            step = c * d
            value = value * step
        if np.all(abs(step - 1) < 1e-12):
            break
    return value
