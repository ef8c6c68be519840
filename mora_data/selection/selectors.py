"""The selectors. Each takes a Batch and gives a score to every ordered pair of each prompt, -inf where it is not allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .batch import Batch


def dominance_hv(batch: Batch) -> NDArray[np.float64]:
    """Volume of the box between the two points over the binding dimensions; no dimension may lose.

    prod_d m_d over binding d with m_d >= delta_d (and > 0), m_d >= 0 elsewhere (METHOD (e), with the binding form of the
    product). With no binding dimension: the total margin, if one margin is above its noise.
    """
    m = batch.margins_P_N_N_D
    binding = batch.binding_P_D[:, None, None, :]
    above = (m >= batch.delta_D) & (m > 0)
    with np.errstate(invalid="ignore"):
        holds = batch.allowed_P_N_N() & np.all(m >= 0, axis=-1) & np.all(above | ~binding, axis=-1) & np.any(above, axis=-1)
        volume = np.prod(np.where(binding, m, 1.0), axis=-1)
    plain = ~np.any(batch.binding_P_D, axis=-1)[:, None, None]
    return np.where(holds, np.where(plain, m.sum(-1), volume), -np.inf)


def weighted_sum(batch: Batch) -> NDArray[np.float64]:
    """sum_d w_d m_d, if it is positive; a dimension may lose by less than its noise, no more."""
    m = batch.margins_P_N_N_D
    weights = batch.weights_D if batch.weights_D is not None else np.ones(m.shape[-1])
    total = (m * weights).sum(-1)
    with np.errstate(invalid="ignore"):
        holds = batch.allowed_P_N_N() & np.all(m >= -batch.delta_D, axis=-1) & (total > 1e-12) & np.any(m >= batch.delta_D, axis=-1)
    return np.where(holds, total, -np.inf)


def lexi(batch: Batch) -> NDArray[np.float64]:
    """Margin of one target dimension, the guarded ones not made worse by more than noise (sequential stages)."""
    m = batch.margins_P_N_N_D
    target = m[..., batch.target]
    with np.errstate(invalid="ignore"):
        holds = batch.allowed_P_N_N() & (target >= batch.delta_D[batch.target]) & (target > 0)
        for d in batch.guarded:
            holds &= m[..., d] >= -batch.delta_D[d]
    return np.where(holds, target, -np.inf)
