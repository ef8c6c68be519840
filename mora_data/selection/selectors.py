"""The selectors. Each takes a Batch and gives a score to every ordered pair of each prompt, -inf
where it is not allowed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..statistics import Floats
from .batch import Batch

TEMPERATURE = 0.1
LEAST_REWARD = 0.01
LEAST_GAP = 0.1


def dominance_hv(batch: Batch) -> Floats:
    """Volume of the box between the two points over the binding dimensions; no dimension may lose.

    prod_d m_d over binding d with m_d >= delta_d (and > 0), m_d >= 0 elsewhere (docs/method.md,
    Selection). With no binding dimension: the total margin, if one margin is
    above its noise.
    """
    scores = [_dominance_hv(block) for block in batch.blocks()]
    return scores[0] if len(scores) == 1 else np.concatenate(scores)


def weighted_sum(batch: Batch) -> Floats:
    """sum_d w_d m_d, if it is positive; a dimension may lose by less than its noise, no more."""
    return _constrained(batch, (batch.margins_P_N_N_D * _weights(batch)).sum(-1))


def maxmin(batch: Batch) -> Floats:
    """min_d w_d m_d over the binding dimensions (all, when none is), above noise there; no other
    dimension may lose.

    With the binding form: over all dimensions a saturated one would leave no pair at
    all.
    """
    m = batch.margins_P_N_N_D
    plain = ~np.any(batch.binding_P_D, axis=-1, keepdims=True)
    binding = (batch.binding_P_D | plain)[:, None, None, :]
    with np.errstate(invalid="ignore"):
        above = (m >= batch.delta_D) & (m > 0)
        allowed_here = batch.allowed_P_N_N() & np.all(np.where(binding, above, m >= 0), axis=-1)
    return np.where(allowed_here, np.where(binding, m * _weights(batch), np.inf).min(-1), -np.inf)


def lsc(batch: Batch) -> Floats:
    """U_i - U_j with U = sum_d w_d log sigma((r_d - ref_d) / T): high only where every dimension is
    good; T = 0.1.

    Log-sigmoid combination of Wang et al. 2024 (arXiv 2402.00742). Its reference is
    `batch.reference_P_D`, else the prompt's median rollout, so without a given one a better rollout
    also moves the reference of the others.
    """
    reference = _median_rollout(batch) if batch.reference_P_D is None else batch.reference_P_D
    with np.errstate(invalid="ignore"):
        good = -np.logaddexp(0.0, (reference[:, None, :] - batch.rewards_P_N_D) / TEMPERATURE)
    return _of_utility(batch, good @ _weights(batch))


def nash(batch: Batch) -> Floats:
    """U_i - U_j with U = sum_d w_d log max(r_d, 0.01): the log Nash product of the two answers'
    rewards above 0.

    Nash's bargaining solution (1950) with the worst reward as the point of disagreement.
    """
    return _of_utility(
        batch, np.log(np.maximum(batch.rewards_P_N_D, LEAST_REWARD)) @ _weights(batch)
    )


def lexi(batch: Batch) -> Floats:
    """Margin of one target dimension, the guarded ones not made worse by more than noise
    (sequential stages)."""
    m = batch.margins_P_N_N_D
    target = m[..., batch.target]
    others = tuple(d for d in range(m.shape[-1]) if d != batch.target)
    with np.errstate(invalid="ignore"):
        allowed_here = (
            batch.allowed_P_N_N() & (target >= batch.delta_D[batch.target]) & (target > 0)
        )
        for d in others if batch.guarded is None else batch.guarded:
            allowed_here &= m[..., d] >= -batch.delta_D[d]
    return np.where(allowed_here, target, -np.inf)


def rs_gap(batch: Batch) -> Floats:
    """U_i - U_j with U = sum_d w_d r_d, where it exceeds 0.1: RS-DPO's pairs, which may lose a
    dimension (baseline).

    Khaki et al. 2024 (arXiv 2402.10038): every pair with a gap above eta. Largest gap first; ask
    for more pairs per prompt to have more of them.
    """
    gap = batch.margins_P_N_N_D @ _weights(batch)
    with np.errstate(invalid="ignore"):
        return np.where(batch.allowed_P_N_N() & (gap > LEAST_GAP), gap, -np.inf)


def best_vs_mu2s(batch: Batch) -> Floats:
    """U_i - |U_j - (mean - 2 sd)|: the best answer against the one nearest two standard deviations
    under the mean.

    After arXiv 2502.16825; mean and sd of U over the prompt's scored rollouts.
    Same limits as weighted_sum. Improving a rollout shifts mean and sd, so it may change which
    rejected answer is nearest.
    """
    utility = batch.rewards_P_N_D @ _weights(batch)
    n = np.maximum((~np.isnan(utility)).sum(1, keepdims=True), 1)
    mean = np.nansum(utility, axis=1, keepdims=True) / n
    point = mean - 2 * np.sqrt(np.nansum((utility - mean) ** 2, axis=1, keepdims=True) / n)
    gap = _of_utility(batch, utility)
    return np.where(
        np.isfinite(gap), utility[:, :, None] - np.abs(utility - point)[:, None, :], -np.inf
    )


def random(batch: Batch) -> Floats:
    """A random pair among those that weighted_sum would allow, drawn by the hash of the two texts
    alone (ablation).

    Raises:
        ValueError: the batch has no text hashes.
    """
    if batch.text_hash_P_N is None:
        raise ValueError("the selector random draws by text: give the batch text_hash_P_N")
    h = batch.text_hash_P_N.astype(np.uint64)
    draw = _mixed(_mixed(h)[:, :, None] + h[:, None, :])
    return np.where(np.isfinite(weighted_sum(batch)), (draw >> np.uint64(11)) * 2.0**-53, -np.inf)


def _dominance_hv(batch: Batch) -> Floats:
    """One dimension at a time: planes of P x N x N are several times as fast as reductions over a
    last axis of D."""
    allowed_here, some = batch.allowed_P_N_N(), np.zeros(1, bool)
    volume, total = np.ones(1), np.zeros(1)
    with np.errstate(invalid="ignore"):
        for d, least in enumerate(batch.delta_D):
            m, binding = batch.margin_P_N_N(d), batch.binding_P_D[:, d, None, None]
            above = (m >= least) & (m > 0)
            allowed_here &= (m >= 0) & (above | ~binding)
            some = some | above
            volume, total = volume * np.where(binding, m, 1.0), total + m
    plain = ~np.any(batch.binding_P_D, axis=-1)[:, None, None]
    return np.where(allowed_here & some, np.where(plain, total, volume), -np.inf)


def _of_utility(batch: Batch, utility_P_N: Floats) -> Floats:
    return _constrained(batch, utility_P_N[:, :, None] - utility_P_N[:, None, :])


def _constrained(batch: Batch, gap_P_N_N: Floats) -> Floats:
    """The gap where it is positive, no margin is below minus its noise and one reaches its
    noise."""
    m = batch.margins_P_N_N_D
    with np.errstate(invalid="ignore"):
        allowed_here = (
            batch.allowed_P_N_N() & np.all(m >= -batch.delta_D, axis=-1) & (gap_P_N_N > 1e-12)
        )
        allowed_here &= np.any(m >= batch.delta_D, axis=-1)
    return np.where(allowed_here, gap_P_N_N, -np.inf)


def _weights(batch: Batch) -> Floats:
    return (
        batch.weights_D if batch.weights_D is not None else np.ones(batch.rewards_P_N_D.shape[-1])
    )


def _median_rollout(batch: Batch) -> Floats:
    """Per dimension, the (lower) median over the rollouts that have all their scores; P x D, 0
    where there is none."""
    r = batch.rewards_P_N_D
    whole = ~np.any(np.isnan(r), axis=-1)
    ordered = np.sort(np.where(whole[..., None], r, np.inf), axis=1)
    middle = np.maximum(whole.sum(1) - 1, 0) // 2
    median = np.take_along_axis(ordered, middle[:, None, None], 1)[:, 0]
    return np.where(np.isfinite(median), median, 0.0)


def _mixed(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: each bit of the result depends on all of `h`."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(h ^ (h >> np.uint64(31)))
