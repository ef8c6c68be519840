"""Weights that reach a target: MAP's dual, per prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 200.0  # a larger weight tells rollouts apart that differ by less than 0.005
LEAST_ESS = 4.0
NEAR = 1e-3


@dataclass(frozen=True, slots=True)
class Weights:
    """The answer to a target.

    Attributes:
        feasible: some re-weighting of each prompt's rollouts reaches the target, to 0.001 and with
            weights up to 200.
        weights_D: the lambda of `nearest_D`: weights for weighted_sum.
        nearest_D: the target, or where it is not feasible the last feasible point on the way to it
            from the present mean.
        reached_D: mean rewards under the weights; in a dimension of weight 0 it may lie above the
            target.
        ess: mean over prompts of 1 / sum_i w_i^2, the number of rollouts that still count.
        trusted: ess is at least 4; below that the weights rest on a few rollouts (METHOD: refuse).
        n: prompts with a rollout that has all its scores.
    """

    feasible: bool
    weights_D: NDArray[np.float64]
    nearest_D: NDArray[np.float64]
    reached_D: NDArray[np.float64]
    ess: float
    trusted: bool
    n: int


def weights(rewards_P_N_D: NDArray[np.float64], target_D: NDArray[np.float64]) -> Weights:
    """Least change of the policy, per prompt, whose mean rewards reach `target_D`.

    Maximises g(lambda) = lambda . c - mean_x log mean_i exp(lambda . r_i(x)) over lambda >= 0
    (MAP's dual in its per-prompt form, METHOD section 2): concave, by projected Newton steps.
    Rollouts without all their scores are left out.

    Raises:
        ValueError: no rollout has all its scores.
    """
    whole = ~np.any(np.isnan(rewards_P_N_D), axis=-1)
    kept = whole.any(1)
    if not kept.any():
        raise ValueError("no rollout has all its scores: there is nothing to weight")
    rewards, whole = np.where(whole[..., None], rewards_P_N_D, 0.0)[kept], whole[kept]
    target = np.asarray(target_D, float)
    start, _, _, _ = _moments(rewards, whole, np.zeros(len(target)))
    found, feasible, near = _solve(rewards, whole, target), True, target
    if not _reaches(rewards, whole, found, target):
        feasible, low, high = False, 0.0, 1.0
        base = np.minimum(start, target)
        for _ in range(12):
            middle = (low + high) / 2
            point = base + middle * (target - base)
            lam = _solve(rewards, whole, point)
            low, high = (middle, high) if _reaches(rewards, whole, lam, point) else (low, middle)
        near = base + low * (target - base)
        found = _solve(rewards, whole, near)
    reached, _, share, _ = _moments(rewards, whole, found)
    ess = float((1 / (share**2).sum(1)).mean())
    return Weights(feasible, found, near, reached, ess, ess >= LEAST_ESS, len(rewards))


def _moments(
    rewards_P_N_D: NDArray[np.float64], whole_P_N: NDArray[np.bool_], lam_D: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Mean reward, its mean covariance within prompts, each rollout's share, and mean_x log mean_i
    exp(lambda . r_i)."""
    score = np.where(whole_P_N, rewards_P_N_D @ lam_D, -np.inf)
    top = score.max(1, keepdims=True)
    share = np.exp(score - top)
    total = share.sum(1, keepdims=True)
    log_mean = float((top + np.log(total / whole_P_N.sum(1, keepdims=True))).mean())
    share /= total
    mean = np.einsum("pn,pnd->pd", share, rewards_P_N_D)
    centred = rewards_P_N_D - mean[:, None, :]
    spread = np.einsum("pn,pni,pnj->ij", share, centred, centred, optimize=True) / len(share)
    return mean.mean(0), spread, share, log_mean


def _solve(
    rewards_P_N_D: NDArray[np.float64], whole_P_N: NDArray[np.bool_], target_D: NDArray[np.float64]
) -> NDArray[np.float64]:
    lam = np.zeros(len(target_D))
    mean, spread, _, log_mean = _moments(rewards_P_N_D, whole_P_N, lam)
    value = -log_mean
    for _ in range(60):
        gradient = target_D - mean
        free = ~((lam <= 0) & (gradient <= 0)) & ~((lam >= MOST) & (gradient >= 0))
        if not free.any() or np.abs(gradient[free]).max() < NEAR / 10:
            break
        step = np.zeros(len(lam))
        step[free] = np.linalg.solve(
            spread[np.ix_(free, free)] + 1e-6 * np.eye(int(free.sum())), gradient[free]
        )
        size = 1.0
        while size > 1e-6:
            trial = np.clip(lam + size * step, 0.0, MOST)
            moments = _moments(rewards_P_N_D, whole_P_N, trial)
            if (gain := float(trial @ target_D) - moments[3] - value) > 1e-12:
                break
            size /= 2
        else:
            break
        lam, mean, spread, value = trial, moments[0], moments[1], value + gain
    return lam


def _reaches(
    rewards_P_N_D: NDArray[np.float64],
    whole_P_N: NDArray[np.bool_],
    lam_D: NDArray[np.float64],
    target_D: NDArray[np.float64],
) -> bool:
    return bool(np.all(_moments(rewards_P_N_D, whole_P_N, lam_D)[0] >= target_D - NEAR))
