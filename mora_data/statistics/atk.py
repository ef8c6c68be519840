"""What k samples of a prompt would bring, estimated without bias from its n >= k rollouts.

All are U-statistics: the mean over every subset of k rollouts, in closed form. NaN where a prompt
has fewer than k scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def all_pass_at_k(c: NDArray[np.int_], n: NDArray[np.int_], k: int) -> NDArray[np.float64]:
    """Probability that k rollouts all pass, pass^k = C(c, k) / C(n, k) (METHOD (b)).

    `c` passes of `n` scored rollouts, shapes that broadcast.
    """
    c, n = np.broadcast_arrays(np.asarray(c, float), np.asarray(n, float))
    share = np.ones(c.shape)
    for i in range(_at_least_one(k)):
        share *= np.maximum(c - i, 0) / np.maximum(n - i, 1)
    return np.where(n >= k, share, np.nan)


def any_pass_at_k(c: NDArray[np.int_], n: NDArray[np.int_], k: int) -> NDArray[np.float64]:
    """Probability that one of k rollouts passes, pass@k = 1 - C(n - c, k) / C(n, k) (METHOD (b);
    Chen et al. 2021, eq. 1)."""
    c, n = np.asarray(c), np.asarray(n)
    return 1 - all_pass_at_k(n - c, n, k)


def joint_pass_at_k(
    rewards_P_N_D: NDArray[np.float64], floors_D: NDArray[np.float64], k: int
) -> NDArray[np.float64]:
    """A_k: probability that one of k rollouts reaches every floor at once; shape P (METHOD (b),
    joint pass).

    Rollouts without all their scores are left out.
    """
    whole = ~np.any(np.isnan(rewards_P_N_D), axis=-1)
    passing = whole & np.all(rewards_P_N_D >= floors_D, axis=-1)
    return any_pass_at_k(passing.sum(1), whole.sum(1), k)


def best_of_k_mean(rewards_P_N_D: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Expected best of k rollouts, E[max_k r] = sum_{i>=k} r_(i) C(i - 1, k - 1) / C(n, k); P x D
    (METHOD (b))."""
    ordered = np.sort(rewards_P_N_D, axis=1)  # NaN last
    return _weighted(ordered, _scored(rewards_P_N_D), _order_weights(ordered.shape[1], k))


def range_at_k(rewards_P_N_D: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Expected best minus worst of k rollouts, E[max_k r] + E[max_k(-r)]; P x D, in [0, 1] (METHOD
    (b))."""
    ordered, n = np.sort(rewards_P_N_D, axis=1), _scored(rewards_P_N_D)
    top = _order_weights(ordered.shape[1], k)
    bottom = np.zeros_like(top)
    for m in range(len(top)):
        bottom[m, :m] = top[m, :m][::-1]
    return _weighted(ordered, n, top - bottom)


def best_of_k_distribution(
    rewards_P_N_D: NDArray[np.float64], k: int, points_V: NDArray[np.float64]
) -> NDArray[np.float64]:
    """P(best of k <= v) = C(n_{<=v}, k) / C(n, k) for each v; P x V x D (METHOD (b): the bars of
    the paper's Fig. 2)."""
    n = _scored(rewards_P_N_D)
    return np.stack([all_pass_at_k((rewards_P_N_D <= v).sum(1), n, k) for v in points_V], axis=1)


def scaling_slope(
    rewards_P_N_D: NDArray[np.float64], low: int = 16, high: int = 64
) -> NDArray[np.float64]:
    """Gain of the expected best per doubling of the samples; P x D: (E[max_64] - E[max_16]) / 2 by
    default (METHOD (b))."""
    if not 0 < low < high:
        raise ValueError(f"low must be below high and above 0, got {low} and {high}")
    ordered, n = np.sort(rewards_P_N_D, axis=1), _scored(rewards_P_N_D)
    weights = _order_weights(ordered.shape[1], high) - _order_weights(ordered.shape[1], low)
    return np.asarray(_weighted(ordered, n, weights) / np.log2(high / low))


def _scored(rewards_P_N_D: NDArray[np.float64]) -> NDArray[np.int_]:
    return np.asarray((~np.isnan(rewards_P_N_D)).sum(1))


def _order_weights(n: int, k: int) -> NDArray[np.float64]:
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


def _weighted(
    ordered_P_N_D: NDArray[np.float64], n_P_D: NDArray[np.int_], weights_M_N: NDArray[np.float64]
) -> NDArray[np.float64]:
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
