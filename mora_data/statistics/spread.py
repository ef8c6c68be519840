"""How a prompt's rollouts differ: expected difference, covariance, effective dimensions,
dominance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 512  # prompts at a time, so that the gaps of a pass over the pairs stay in the cache


def gini_mean_difference(
    rewards_P_N_D: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expected absolute difference of two rollouts, G_d, with its jackknife standard error; both P
    x D (METHOD (b)).

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
    rewards_P_N_D: NDArray[np.float64], strict_P_D: NDArray[np.bool_], delta_D: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of unordered pairs in which one rollout beats the other, with its jackknife standard
    error; both of shape P.

    To beat: by at least delta_d (and by more than 0) in each dimension that is strict, and not to
    lose in any other: the usable form of METHOD (b)'s dominance rate. 0 where no dimension is
    strict.
    """
    scored = ~np.any(np.isnan(rewards_P_N_D), axis=-1)
    wins = np.zeros(scored.shape)
    for first in range(0, len(wins), BLOCK):
        block = slice(first, first + BLOCK)
        wins[block] = _wins(rewards_P_N_D[block], scored[block], strict_P_D[block], delta_D)
    pairs = np.where(scored, scored.sum(1, keepdims=True) - 1.0, 0.0)
    value, error = _jackknife(wins[..., None], pairs[..., None])
    return value[:, 0], error[:, 0]


def dominance_rate_everywhere(
    rewards_P_N_D: NDArray[np.float64], delta_D: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """DR: share of pairs in which one rollout beats the other by delta_d in every dimension, with
    its error (METHOD (b)).

    0 for every prompt that has a saturated dimension, which is why mining uses `dominance_rate`
    over the informative ones.
    """
    return dominance_rate(
        rewards_P_N_D, np.ones((len(rewards_P_N_D), rewards_P_N_D.shape[2]), bool), delta_D
    )


def noise_corrected_covariance(
    rewards_P_N_D: NDArray[np.float64], sigma_D: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int_]]:
    """C = S - diag(sigma^2), P x D x D, and the n of each prompt (METHOD (b)).

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


def effective_dimensionality(
    rewards_P_N_D: NDArray[np.float64], sigma_D: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Effective reward dimensionality ERD, in [0, D]: participation ratio of the noise-corrected
    covariance's eigenvalues.

    (tr C)^2 / tr(C^2) with C = S - diag(sigma^2), eigenvalues clipped at 0; 0 where the corrected
    variance is within the null bound 2 tr(Sigma) sqrt(2 / (n - 1)) (METHOD (b)).
    """
    cov, n_P = noise_corrected_covariance(rewards_P_N_D, sigma_D)
    eigen = np.clip(np.linalg.eigvalsh(cov), 0.0, None)
    total, square = eigen.sum(-1), (eigen**2).sum(-1)
    bound = 2 * (sigma_D**2).sum() * np.sqrt(2 / np.maximum(n_P - 1, 1))
    return np.asarray(
        np.where(
            (total > np.maximum(bound, 1e-12)) & (n_P > 1),
            total**2 / np.where(square > 0, square, 1.0),
            0.0,
        )
    )


def _wins(
    rewards_P_N_D: NDArray[np.float64],
    scored_P_N: NDArray[np.bool_],
    strict_P_D: NDArray[np.bool_],
    delta_D: NDArray[np.float64],
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
    return wins.T


def _jackknife(
    by_rollout_P_N_D: NDArray[np.float64], pairs_by_rollout_P_N_D: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
