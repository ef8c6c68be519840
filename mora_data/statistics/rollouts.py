"""What the rollouts of one prompt say: how they differ, what k of them bring, what they reach
together.

`rewards_P_N_D` holds P prompts x N rollouts x D dimensions, values in [0, 1], NaN where a score is
missing. Formulas: docs/method.md, "Kinds of prompts" and "What k samples bring".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import Bools, Floats, Ints

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
