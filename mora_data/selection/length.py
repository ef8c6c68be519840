"""Length balancing over the whole dataset: chosen must not be the longer answer on average."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def balance(score_P_K: NDArray[np.float64], log_gap_P_K: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which of each prompt's K candidates to take, so that the mean log length gap comes as near to
    0 as they allow.

    Maximises score - mu * gap with one mu for all, found by bisection (METHOD (e), length control
    3). Absent candidates have score -inf; a prompt without any gets -1.
    """
    there = np.isfinite(score_P_K)
    have = there.any(1)
    gap = np.where(there, log_gap_P_K, 0.0)
    scale = score_P_K[there].std() if there.any() else 1.0

    def choice(mu: float) -> NDArray[np.int64]:
        return np.asarray(np.where(there, score_P_K - mu * gap, -np.inf).argmax(1))

    def mean_gap(mu: float) -> float:
        return (
            float(np.take_along_axis(gap, choice(mu)[:, None], 1)[have, 0].mean())
            if have.any()
            else 0.0
        )

    low, high = -1e3 * max(scale, 1e-6), 1e3 * max(scale, 1e-6)
    if mean_gap(0.0) > 0:
        low = 0.0
    else:
        high = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_gap(middle) > 0 else (low, middle)
    best = min((0.0, low, high), key=lambda mu: (abs(mean_gap(mu)), abs(mu)))
    return np.where(have, choice(best), -1)
