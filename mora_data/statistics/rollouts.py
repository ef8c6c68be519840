"""What the rollouts of one prompt say: how they differ, what k of them bring, what they reach
together; the kind of the prompt, and when to stop presampling: as soon as what the schedule would
decide is known.

`rewards_P_N_D` holds P prompts x N rollouts x D dimensions, values in [0, 1], NaN where a score is
missing. Formulas: docs/method.md, "Kinds of prompts" and "What k samples bring".

The schedule tries the decision rule at growing numbers of samples, the last of them N, and takes
the first that decides. At any look, the answers still to come are drawn from their posterior, the
schedule is run on each completed sample, and sampling stops when one kind comes out with
probability 1 - error or more:

    P(kind = k | first n) = mean over draws of 1[schedule(first n, N - n answers drawn) = k]
    `foreseen`
    decision: P(kind = k | first n, the schedule decides);  label: `undecided` is a kind like the
        others    `likeliest`

The bound holds however often one looks: whenever sampling stops, the chance that the schedule
would have said something else is at most `error` given the data, so over many prompts at most that
share of the kinds differs in expectation, as far as the model of the answers holds. Whether N
samples would fall short of a decision is the hardest thing to foresee, since it hangs on one answer
more or less, and is nothing about the prompt: hence `decision` by default.

The model: the answers to come are like those seen, with weights of the Bayesian bootstrap (Rubin
1981) and one further answer of a sort not seen yet. In a dimension whose answers so far all pass,
or all fail, the pass rate is drawn from its posterior, and an answer that differs lies at the other
end of the scale. Pass rates have the prior that the dataset's prompts show (`rate_prior`): the
empirical Bayes step of docs/method.md, "Adaptive sampling", with a free form instead of a Beta,
since such rates pile up at both ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..settings import Foresee, PresampleSettings
from ..types import Kind
from . import Bools, Floats, Ints
from .inference import beta_tail

BLOCK = 512  # prompts at a time, so that the gaps of a pass over the pairs stay in the cache
GRID_CELLS = 1 << 22  # per block of prompts, for the hypervolume


def gini_mean_difference(rewards_P_N_D: Floats) -> tuple[Floats, Floats]:
    """Expected absolute difference of two rollouts, G_d, with its jackknife standard error; both P
    x D.

    A U-statistic of order two: mean of |r_i - r_j| over unordered pairs, pairs with a missing score
    left out. In sorted order sum_j |r_(i) - r_j| = r_(i) (2i - n) + total - 2 prefix_i, so no pair
    is formed.
    """
    ordered = np.sort(rewards_P_N_D, axis=1)  # NaN last
    there = ~np.isnan(ordered)
    n = there.sum(1, keepdims=True)
    values = np.where(there, ordered, 0.0)
    prefix = np.cumsum(values, axis=1)
    rank = np.arange(1, values.shape[1] + 1)[None, :, None]
    by_rollout = np.where(there, values * (2 * rank - n) + prefix[:, -1:] - 2 * prefix, 0.0)
    return _jackknife(np.maximum(by_rollout, 0.0), np.where(there, n - 1, 0))


def dominance_rate(
    rewards_P_N_D: Floats, strict_P_D: Bools, delta_D: Floats
) -> tuple[Floats, Floats]:
    """Share of unordered pairs in which one rollout beats the other, with its jackknife standard
    error; both of shape P.

    To beat: by at least delta_d (and by more than 0) in each dimension that is strict, and not to
    lose in any other. 0 where no dimension is strict.
    """
    scored = ~np.any(np.isnan(rewards_P_N_D), axis=-1)
    wins = np.zeros(scored.shape)
    for first in range(0, len(wins), BLOCK):
        block = slice(first, first + BLOCK)
        wins[block] = _wins(rewards_P_N_D[block], scored[block], strict_P_D[block], delta_D)
    pairs = np.where(scored, scored.sum(1, keepdims=True) - 1.0, 0.0)
    value, error = _jackknife(wins[..., None], pairs[..., None])
    return value[:, 0], error[:, 0]


def dominance_rate_everywhere(rewards_P_N_D: Floats, delta_D: Floats) -> tuple[Floats, Floats]:
    """DR: share of pairs in which one rollout beats the other by delta_d in every dimension, with
    its error.

    0 for every prompt that has a saturated dimension, which is why mining uses `dominance_rate`
    over the informative ones.
    """
    return dominance_rate(
        rewards_P_N_D, np.ones((len(rewards_P_N_D), rewards_P_N_D.shape[2]), bool), delta_D
    )


def pareto_rate(rewards_P_N_D: Floats, delta_D: Floats) -> Floats:
    """Share of pairs in which one rollout beats the other by delta_d (and by more than 0) in some
    dimension and loses in none; of shape P.

    Unlike `dominance_rate_everywhere` it can be 1 where a dimension is saturated: it says how often
    a prompt's answers can be ranked at all, not in how many dimensions.
    """
    scored = ~np.any(np.isnan(rewards_P_N_D), axis=-1)
    least_D = np.maximum(delta_D, np.nextafter(0, 1))
    wins = np.zeros(len(scored))
    for i in range(scored.shape[1] - 1):
        gap = rewards_P_N_D[:, i + 1 :] - rewards_P_N_D[:, i, None]
        with np.errstate(invalid="ignore"):
            better = (gap >= 0).all(-1) & (gap >= least_D).any(-1)
            worse = (gap <= 0).all(-1) & (gap <= -least_D).any(-1)
        wins += ((better | worse) & scored[:, i + 1 :] & scored[:, i, None]).sum(1)
    n = scored.sum(1)
    return np.asarray(wins / np.maximum(n * (n - 1) // 2, 1))


def noise_corrected_covariance(rewards_P_N_D: Floats, sigma_D: Floats) -> tuple[Floats, Ints]:
    """C = S - diag(sigma^2), P x D x D, and the n of each prompt.

    S is the unbiased covariance over the rollouts that have all their scores. C has no bias and may
    have negative eigenvalues; with n < 2, S is 0.
    """
    whole = ~np.any(np.isnan(rewards_P_N_D), axis=-1)
    n_P = whole.sum(1)
    centred = np.where(whole[..., None], rewards_P_N_D, 0.0)
    centred = np.where(
        whole[..., None], centred - (centred.sum(1) / np.maximum(n_P, 1)[:, None])[:, None, :], 0.0
    )
    cov = np.einsum("pni,pnj->pij", centred, centred) / np.maximum(n_P - 1, 1)[:, None, None]
    return cov - np.diag(sigma_D**2), n_P


def effective_dimensionality(rewards_P_N_D: Floats, sigma_D: Floats) -> Floats:
    """Effective reward dimensionality ERD, in [0, D]: participation ratio of the noise-corrected
    covariance's eigenvalues.

    (tr C)^2 / tr(C^2) with C = S - diag(sigma^2), eigenvalues clipped at 0; 0 where the corrected
    variance is within the null bound 2 tr(Sigma) sqrt(2 / (n - 1)).
    """
    cov, n_P = noise_corrected_covariance(rewards_P_N_D, sigma_D)
    eigen = np.clip(np.linalg.eigvalsh(cov), 0.0, None)
    total, square = eigen.sum(-1), (eigen**2).sum(-1)
    bound = 2 * (sigma_D**2).sum() * np.sqrt(2 / np.maximum(n_P - 1, 1))
    return np.where(
        (total > np.maximum(bound, 1e-12)) & (n_P > 1),
        total**2 / np.where(square > 0, square, 1.0),
        0.0,
    )


def _wins(
    rewards_P_N_D: Floats, scored_P_N: Bools, strict_P_D: Bools, delta_D: Floats
) -> NDArray[np.int32]:
    """In how many pairs of each rollout one beats the other; P x N. Pairs are taken by their
    distance in the list."""
    columns = np.ascontiguousarray(rewards_P_N_D.transpose(2, 1, 0))
    least_D_P = np.where(strict_P_D.T, np.maximum(delta_D, np.nextafter(0, 1))[:, None], 0.0)
    able = np.ascontiguousarray((scored_P_N & np.any(strict_P_D, axis=-1)[:, None]).T)
    wins = np.zeros(able.shape, np.int32)
    for step in range(1, len(wins)):
        up = able[step:] & able[:-step]
        down = up.copy()
        for column, least in zip(columns, least_D_P, strict=True):
            gap = column[step:] - column[:-step]
            up &= gap >= least
            down &= gap <= -least
        up |= down
        wins[step:] += up
        wins[:-step] += up
    return np.asarray(wins.T)


def _jackknife(by_rollout_P_N_D: Floats, pairs_by_rollout_P_N_D: Floats) -> tuple[Floats, Floats]:
    """Mean over unordered pairs and its jackknife standard error, from each rollout's sum over its
    pairs and their number."""
    total, pairs = by_rollout_P_N_D.sum(1), pairs_by_rollout_P_N_D.sum(1)
    value = total / np.maximum(pairs, 1)
    without = (total[:, None] - 2 * by_rollout_P_N_D) / np.maximum(
        pairs[:, None] - 2 * pairs_by_rollout_P_N_D, 1
    )
    present = pairs_by_rollout_P_N_D > 0
    m = present.sum(1)
    deviation = np.where(present, without - value[:, None], 0.0)
    spread = (m - 1) / np.maximum(m, 1) * (deviation**2).sum(1)
    return value, np.where(m > 2, np.sqrt(spread), np.inf)


def all_pass_at_k(c: Ints, n: Ints, k: int) -> Floats:
    """Probability that k rollouts all pass, pass^k = C(c, k) / C(n, k).

    `c` passes of `n` scored rollouts, shapes that broadcast.
    """
    c, n = np.broadcast_arrays(np.asarray(c, float), np.asarray(n, float))
    share = np.ones(c.shape)
    for i in range(_at_least_one(k)):
        share *= np.maximum(c - i, 0) / np.maximum(n - i, 1)
    return np.where(n >= k, share, np.nan)


def any_pass_at_k(c: Ints, n: Ints, k: int) -> Floats:
    """Probability that one of k rollouts passes, pass@k = 1 - C(n - c, k) / C(n, k)
    (Chen et al. 2021, eq. 1)."""
    c, n = np.asarray(c), np.asarray(n)
    return 1 - all_pass_at_k(n - c, n, k)


def joint_pass_at_k(rewards_P_N_D: Floats, floors_D: Floats, k: int) -> Floats:
    """A_k: probability that one of k rollouts reaches every floor at once; shape
    P.

    Rollouts without all their scores are left out.
    """
    whole = ~np.any(np.isnan(rewards_P_N_D), axis=-1)
    passing = whole & np.all(rewards_P_N_D >= floors_D, axis=-1)
    return any_pass_at_k(passing.sum(1), whole.sum(1), k)


def range_at_k(rewards_P_N_D: Floats, k: int) -> Floats:
    """Expected best minus worst of k rollouts, E[max_k r] + E[max_k(-r)]; P x D, in [0, 1]."""
    ordered, n = np.sort(rewards_P_N_D, axis=1), _scored(rewards_P_N_D)
    top = _order_weights(ordered.shape[1], k)
    bottom = np.zeros_like(top)
    for m in range(len(top)):
        bottom[m, :m] = top[m, :m][::-1]
    return _weighted(ordered, n, top - bottom)


def best_of_k_distribution(rewards_P_N_D: Floats, k: int, points_V: Floats) -> Floats:
    """P(best of k <= v) = C(n_{<=v}, k) / C(n, k) for each v; P x V x D."""
    n = _scored(rewards_P_N_D)
    return np.stack([all_pass_at_k((rewards_P_N_D <= v).sum(1), n, k) for v in points_V], axis=1)


def _scored(rewards_P_N_D: Floats) -> Ints:
    return np.asarray((~np.isnan(rewards_P_N_D)).sum(1))


def _order_weights(n: int, k: int) -> Floats:
    """Weight of the i-th smallest of m scores in E[max_k], for every m <= n: (n + 1) x n, NaN where
    m < k."""
    _at_least_one(k)
    weights = np.zeros((n + 1, n))
    weights[: min(k, n + 1)] = np.nan
    for m in range(k, n + 1):
        w = k / m
        for i in range(m, k - 1, -1):  # C(i-1, k-1) = C(i, k-1) (i-k+1) / i, from the largest down
            weights[m, i - 1] = w
            w *= (i - k) / (i - 1) if i > 1 else 0.0
    return weights


def _weighted(ordered_P_N_D: Floats, n_P_D: Ints, weights_M_N: Floats) -> Floats:
    n = ordered_P_N_D.shape[1]
    if n_P_D.size and n_P_D.min() == n:
        return np.asarray(np.einsum("pnd,n->pd", ordered_P_N_D, weights_M_N[n]))
    return np.asarray(
        (np.nan_to_num(ordered_P_N_D) * np.moveaxis(weights_M_N[n_P_D], -1, 1)).sum(1)
    )


def _at_least_one(k: int) -> int:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return k


def hypervolume_at_k(rewards_P_N_D: Floats, k: int = 8) -> Floats:
    """HV_k = E[vol(union over a k-subset of [0, r_i])]; shape P, in [0, 1].

    Exact over all C(n, k) subsets: on the grid of the points' coordinates a cell that c of n points
    dominate lies under a k-subset with probability 1 - C(n - c, k) / C(n, k). At most three
    dimensions and 64 rollouts; work grows with N^D. Grows with k, so only equal k compare. NaN with
    fewer than k scored rollouts.
    """
    p, n, d = rewards_P_N_D.shape
    if not 1 <= d <= 3 or n > 64:
        raise ValueError(
            f"hypervolume takes 1 to 3 dimensions and up to 64 rollouts, got {d} and {n}"
        )
    step = max(1, GRID_CELLS // n**d)
    blocks = [_hypervolume(rewards_P_N_D[i : i + step], k) for i in range(0, p, step)]
    return np.concatenate(blocks) if blocks else np.zeros(0)


def coverage(ours_P_N_D: Floats, theirs_P_M_D: Floats) -> Floats:
    """C(A, B): share of B's points that a point of A dominates, i.e. equals or exceeds everywhere
    and exceeds somewhere; shape P.

    Zitzler and Thiele (1999) let an equal point cover; here it does not, so that C(A, A) of tied
    judge levels is not 1. Points without all their scores are left out; NaN where B has none.
    """
    ours, theirs = ours_P_N_D[:, :, None, :], theirs_P_M_D[:, None, :, :]
    dominated = np.any(np.all(ours >= theirs, axis=-1) & np.any(ours > theirs, axis=-1), axis=1)
    there = ~np.any(np.isnan(theirs_P_M_D), axis=-1)
    number = there.sum(1)
    return np.where(number > 0, (dominated & there).sum(1) / np.maximum(number, 1), np.nan)


def _hypervolume(rewards_P_N_D: Floats, k: int) -> Floats:
    p, n, d = rewards_P_N_D.shape
    whole = ~np.any(np.isnan(rewards_P_N_D), axis=-1)
    points = np.where(whole[..., None], np.clip(rewards_P_N_D, 0.0, 1.0), 0.0)
    order = np.argsort(points, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(n)[None, :, None], axis=1)
    width = np.diff(np.take_along_axis(points, order, 1), axis=1, prepend=0.0)
    count = np.zeros((p, *[n] * d), np.uint8)
    at = np.arange(p)[:, None], *(rank[..., j] for j in range(d))
    count[at] = whole
    for axis in range(1, d + 1):
        count = np.flip(np.cumsum(np.flip(count, axis), axis, dtype=np.uint8), axis)
    scored = whole.sum(1)
    chance = any_pass_at_k(np.minimum(np.arange(n + 1), scored[:, None]), scored[:, None], k)
    volume = np.take_along_axis(chance, count.reshape(p, -1).astype(np.intp), 1).reshape(
        count.shape
    )
    for j in reversed(range(d)):
        volume = np.einsum("p...n,pn->p...", volume, width[..., j])
    return np.asarray(volume)


# the kind of a prompt

KINDS: tuple[Kind, ...] = ("flat", "one_dim", "conflict", "multi", "undecided")
UNDECIDED = KINDS.index("undecided")
STATES = ("informative", "saturated", "starved", "static", "undecided")
Z95 = 1.6448536269514722  # one-sided 95 %


@dataclass(frozen=True, slots=True)
class PromptStats:
    """What the presamples of one prompt say.

    Attributes:
        state: per dimension: informative, saturated, starved, static or undecided.
        passed: per dimension, share of rollouts at or above the floor.
        gini: per dimension, expected absolute difference of two rollouts.
        dominance: rate of usable dominance among pairs.
        erd: effective reward dimensionality.
        joint: share of rollouts at or above every floor.
    """

    kind: Kind
    n: int
    carried_dim: str | None
    missing_dims: tuple[str, ...]
    state: tuple[str, ...]
    passed: tuple[float, ...]
    gini: tuple[float, ...]
    dominance: float
    erd: float
    joint: float


def profiles(
    rewards_P_N_D: Floats,
    dims: Sequence[str],
    floors_D: Floats,
    sigma_D: Floats,
    settings: PresampleSettings,
    levels_P_N_D: Floats | None = None,
) -> list[PromptStats]:
    """The kind of each prompt from its presamples, as in `decisions`.

    A dimension is informative when its expected difference exceeds noise by gamma (one-sided 95 %);
    else saturated or starved when the posterior of its pass rate says so; else static when the
    difference is surely below gamma; else undecided. `static` keeps such a dimension from
    being undecided for ever.
    """
    found = decisions(rewards_P_N_D, floors_D, sigma_D, settings, levels_P_N_D)
    n, c = found.n_P_D, found.passes_P_D
    a, b = c + 0.5, n - c + 0.5
    p_low = (a / (a + b)) - Z95 * np.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))
    names = np.array(STATES)[found.state_P_D]
    out = []
    for i, code in enumerate(found.kind_P.tolist()):
        carried = int(np.argmax(p_low[i]))
        missing = tuple(d for j, d in enumerate(dims) if j != carried)
        passed = tuple((c[i] / np.maximum(n[i], 1)).tolist())
        out.append(
            PromptStats(
                KINDS[code],
                int(n[i].max(initial=0)),
                dims[carried],
                missing,
                tuple(names[i].tolist()),
                passed,
                tuple(found.gini_P_D[i].tolist()),
                float(found.dominance_P[i]),
                float(found.erd_P[i]),
                float(found.joint_P[i]),
            )
        )
    return out


@dataclass(frozen=True, slots=True)
class Decisions:
    """The decisions about P prompts, as arrays.

    Attributes:
        kind_P: index into KINDS.
        state_P_D: index into STATES.
    """

    kind_P: Ints
    state_P_D: Ints
    n_P_D: Ints
    passes_P_D: Ints
    gini_P_D: Floats
    dominance_P: Floats
    erd_P: Floats
    joint_P: Floats


def decisions(
    rewards_P_N_D: Floats,
    floors_D: Floats,
    sigma_D: Floats,
    settings: PresampleSettings,
    levels_P_N_D: Floats | None = None,
    *,
    kinds_only: bool = False,
) -> Decisions:
    """The rule of docs/method.md, "Kinds of prompts"; NaN where a score is missing. Thresholds are
    compared with the levels, by default the rewards. `kinds_only`: dominance and dimensionality are
    0 where the kind does not rest on them, which is most of the time that this takes."""
    n = (~np.isnan(rewards_P_N_D)).sum(1)
    levels = rewards_P_N_D if levels_P_N_D is None else levels_P_N_D
    passes = np.where(np.isnan(levels), False, levels >= floors_D)
    c = passes.sum(1)
    gini, se = gini_mean_difference(rewards_P_N_D)
    above = gini - 2 * sigma_D / np.sqrt(np.pi)
    informative = above - Z95 * se >= settings.gamma
    above_eps = _tail_tables(int(n.max(initial=0)), settings.eps)
    high, low = (table[n, c] for table in above_eps)
    tests = [informative, high >= 0.95, low <= 0.05, (above + Z95 * se < settings.gamma) & (n >= 8)]
    state = np.select(tests, [0, 1, 2, 3], 4)
    some = np.sum(informative, axis=-1)
    at = some >= (2 if kinds_only else 0)
    rate, rate_se, erd = np.zeros((3, len(some)))
    rate[at], rate_se[at] = dominance_rate(rewards_P_N_D[at], informative[at], 2 * sigma_D)
    erd[at] = effective_dimensionality(rewards_P_N_D[at], sigma_D)
    at_odds = (erd <= 1 + settings.delta_e) | (rate + Z95 * rate_se < settings.q_min)
    settled = np.all(state < 4, axis=-1)
    kind = np.select([(some >= 2) & at_odds, some >= 2, ~settled, some == 1], [2, 3, 4, 1], 0)
    return Decisions(kind, state, n, c, gini, rate, erd, np.mean(np.all(passes, axis=-1), axis=1))


@lru_cache(maxsize=64)
def _tail_tables(most: int, eps: float) -> tuple[Floats, Floats]:
    """P(p >= 1 - eps) and P(p >= eps) under Jeffreys' prior, for every n <= `most` and c <= n: each
    is solved once."""
    n, c = np.arange(most + 1)[:, None], np.arange(most + 1)[None, :]
    a, b = np.broadcast_arrays(c + 0.5, np.maximum(n - c, 0) + 0.5)
    return beta_tail(a, b, 1 - eps), beta_tail(a, b, eps)


# fmt: off
BINS = np.array([
    0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15,
    0.25, 0.4, 0.6, 0.75, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0,
])
# fmt: on
DRAWS = 128


def rate_prior(c_P: Ints, n_P: Ints) -> Floats:
    """How pass rates of one dimension spread over prompts: mass in each of BINS' intervals, against
    Jeffreys' prior.

    Nonparametric maximum likelihood by EM (Kiefer and Wolfowitz 1956; Laird 1978) over interval
    masses with Jeffreys' density inside. One prompt's worth of Jeffreys' prior is mixed in, so that
    no interval is impossible. All ones without data.
    """
    jeffreys = _jeffreys(0, 0)
    seen = n_P > 0
    if not seen.any():
        return np.ones(len(jeffreys))
    likelihood = (
        _masses(np.asarray(c_P[seen] + 0.5, float), np.asarray((n_P - c_P)[seen] + 0.5, float))
        / jeffreys
    )
    mass = jeffreys.copy()
    for _ in range(200):
        share = likelihood * mass
        mass = (share / share.sum(1, keepdims=True)).sum(0) + jeffreys
        mass /= mass.sum()
    return np.asarray(mass / jeffreys)


def foreseen(
    seen_N_D: Floats,
    counts: Sequence[int],
    floors_D: Floats,
    sigma_D: Floats,
    settings: PresampleSettings,
    prior_D_B: Floats | None = None,
    *,
    seed: int = 0,
) -> Floats:
    """Probability of each of KINDS that the schedule gives to one prompt, given the samples seen;
    sums to 1.

    Args:
        counts: samples at which the schedule tries a decision, rising; a kind takes the
            first that decides.
        prior_D_B: `rate_prior` per dimension; None: Jeffreys'.
        seed: of the draws.
    """
    prior = np.ones((seen_N_D.shape[1], len(BINS) - 1)) if prior_D_B is None else prior_D_B
    rng = np.random.default_rng(seed)
    completed, weight = _completions(seen_N_D, counts[-1], floors_D, prior, rng)
    kinds = np.full(DRAWS, UNDECIDED)
    for n in counts:
        left = np.flatnonzero(kinds == UNDECIDED)
        if left.size:
            some = completed[left, :n]
            found = decisions(some, floors_D, sigma_D, settings, kinds_only=True)
            kinds[left] = found.kind_P
    votes = np.bincount(kinds, weight, minlength=len(KINDS))
    return np.asarray(votes / votes.sum())


def likeliest(
    chance_K: Floats, foresee: Foresee, accept: Sequence[Kind] = KINDS
) -> tuple[Kind, float]:
    """The kind to be expected from `foreseen`, and how sure it is: in [0, 1].

    `decision`: among the kinds other than undecided, given that one of them comes out, one draw
    being counted against it, so that few draws with a decision settle nothing. One that drops the
    prompt, not in `accept`, has to be as sure as a label: undecided, the prompt might have gone on.
    """
    if foresee == "label":
        best = int(chance_K.argmax())
        return KINDS[best], float(chance_K[best])
    decided = np.where(np.array(KINDS) == "undecided", 0.0, chance_K)
    best = int(decided.argmax())
    if KINDS[best] not in accept:
        return likeliest(chance_K, "label")
    return KINDS[best], float(decided[best] / (decided.sum() + 1 / DRAWS))


def _completions(
    seen_N_D: Floats, last: int, floors_D: Floats, prior_D_B: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """DRAWS completed samples, DRAWS x last x D, and their weights."""
    n, dims = seen_N_D.shape
    there = ~np.isnan(seen_N_D)
    with np.errstate(invalid="ignore"):
        passed = there & (seen_N_D >= floors_D)
    c, scored = passed.sum(0), there.sum(0)
    # an answer of a sort not seen yet, with the weight of one
    unlike = rng.integers(0, 2, (DRAWS, dims))
    mass = rng.standard_exponential((DRAWS, n + 1))
    mass /= mass.sum(1, keepdims=True)
    which = (rng.random((DRAWS, last - n))[..., None] > np.cumsum(mass, axis=1)[:, None, :-1]).sum(
        -1
    )
    future = np.where(
        (which < n)[..., None], seen_N_D[np.minimum(which, n - 1)], unlike[:, None, :]
    )
    weight = np.ones(DRAWS)
    for d in range(dims):
        if 0 < c[d] < scored[d]:
            rate = (mass[:, :n] @ passed[:, d] + mass[:, n] * unlike[:, d]) / (
                mass[:, :n] @ there[:, d] + mass[:, n]
            )
            weight *= prior_D_B[
                d, np.clip(np.searchsorted(BINS, rate, side="right") - 1, 0, len(BINS) - 2)
            ]
        else:
            rate = _rates(c[d], scored[d], prior_D_B[d], rng)
            flipped = rng.random((DRAWS, last - n)) < (rate if c[d] == 0 else 1 - rate)[:, None]
            same = np.where(which < n, future[..., d], float(c[d] > 0))
            future[..., d] = np.where(flipped, float(c[d] == 0), same)
    return np.concatenate([np.broadcast_to(seen_N_D, (DRAWS, n, dims)), future], axis=1), weight


def _rates(c: int, n: int, prior_B: Floats, rng: np.random.Generator) -> Floats:
    """Pass rates from their posterior, uniform within an interval."""
    posterior = prior_B * _jeffreys(int(c), int(n))
    at = rng.choice(len(posterior), DRAWS, p=posterior / posterior.sum())
    return BINS[at] + rng.random(DRAWS) * np.diff(BINS)[at]


@lru_cache(maxsize=4096)
def _jeffreys(c: int, n: int) -> Floats:
    """Mass in each interval after c passes of n, with Jeffreys' prior."""
    return np.asarray(_masses(np.array([c + 0.5]), np.array([n - c + 0.5]))[0])


def _masses(a_P: Floats, b_P: Floats) -> Floats:
    """Mass of Beta(a, b) in each interval; P x bins."""
    above = np.stack([beta_tail(a_P, b_P, float(x)) for x in BINS[1:-1]], axis=1)
    ends = np.concatenate([np.ones((len(a_P), 1)), above, np.zeros((len(a_P), 1))], axis=1)
    return np.maximum(-np.diff(ends, axis=1), 1e-300)
