"""What a prompt's sampled rewards say: estimators, and the kind of the prompt.

Arrays carry their axes: `rewards_P_N_D` holds P prompts x N rollouts x D dimensions, values in [0, 1], NaN where a score
is missing. Formulas: METHOD "spec v1" section (b), which is this project's specification and not the paper's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .types import Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .config import PresampleSettings

Z95 = 1.6448536269514722  # one-sided 95 %


def gini_mean_difference(rewards_P_N_D: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expected absolute difference of two rollouts, G_d, with its jackknife standard error; both P x D.

    A U-statistic of order two: mean of |r_i - r_j| over unordered pairs, pairs with a missing score left out.
    """
    gap = np.abs(rewards_P_N_D[:, :, None, :] - rewards_P_N_D[:, None, :, :])
    return _pair_statistic(gap)


def dominance_rate(rewards_P_N_D: NDArray[np.float64], strict_P_D: NDArray[np.bool_],
                   delta_D: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of unordered pairs in which one rollout beats the other, with its jackknife standard error; both of shape P.

    To beat: by at least delta_d (and by more than 0) in each dimension that is strict, and not to lose in any other.
    """
    gap = rewards_P_N_D[:, :, None, :] - rewards_P_N_D[:, None, :, :]
    strict = strict_P_D[:, None, None, :]
    beats = np.where(strict, (gap >= delta_D) & (gap > 0), gap >= 0)
    wins = np.all(beats, axis=-1) & np.any(strict, axis=-1)
    unscored = np.any(np.isnan(gap), axis=-1)
    either = np.where(unscored, np.nan, (wins | np.swapaxes(wins, 1, 2)).astype(np.float64))
    value, error = _pair_statistic(either[..., None])
    return value[:, 0], error[:, 0]


def effective_dimensionality(rewards_P_N_D: NDArray[np.float64], sigma_D: NDArray[np.float64]) -> NDArray[np.float64]:
    """Effective reward dimensionality ERD, in [0, D]: participation ratio of the noise-corrected covariance's eigenvalues.

    (tr C)^2 / tr(C^2) with C = S - diag(sigma^2), eigenvalues clipped at 0; 0 where the corrected variance is within the
    null bound 2 tr(Sigma) sqrt(2 / (n - 1)).
    """
    whole = ~np.any(np.isnan(rewards_P_N_D), axis=-1)
    n_P = whole.sum(1)
    centred = np.where(whole[..., None], rewards_P_N_D, 0.0)
    centred = np.where(whole[..., None], centred - (centred.sum(1) / np.maximum(n_P, 1)[:, None])[:, None, :], 0.0)
    cov = np.einsum("pni,pnj->pij", centred, centred) / np.maximum(n_P - 1, 1)[:, None, None]
    cov -= np.diag(sigma_D**2)
    eigen = np.clip(np.linalg.eigvalsh(cov), 0.0, None)
    total, square = eigen.sum(-1), (eigen**2).sum(-1)
    bound = 2 * (sigma_D**2).sum() * np.sqrt(2 / np.maximum(n_P - 1, 1))
    return np.asarray(np.where((total > np.maximum(bound, 1e-12)) & (n_P > 1), total**2 / np.where(square > 0, square, 1.0), 0.0))


def beta_tail(a: NDArray[np.float64], b: NDArray[np.float64], x: float) -> NDArray[np.float64]:
    """P(p >= x) for p ~ Beta(a, b), by the continued fraction of the incomplete beta function (Lentz's method)."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    swap = x > (a + 1) / (a + b + 2)
    p, q = np.where(swap, b, a), np.where(swap, a, b)
    y = np.where(swap, 1 - x, x)
    lower = np.exp(p * np.log(y) + q * np.log1p(-y) - _log_beta(p, q)) * _beta_fraction(p, q, y) / p
    return np.asarray(np.where(swap, lower, 1 - lower))


@dataclass(frozen=True, slots=True)
class Profile:
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


def profiles(rewards_P_N_D: NDArray[np.float64], dims: Sequence[str], floors_D: NDArray[np.float64],
             sigma_D: NDArray[np.float64], settings: PresampleSettings) -> list[Profile]:
    """The kind of each prompt from its presamples.

    A dimension is informative when its expected difference exceeds noise by gamma (one-sided 95 %); else saturated or
    starved when the posterior of its pass rate says so; else static when the difference is surely below gamma; else
    undecided. `static` is ours: METHOD leaves such a dimension undecided for ever.
    """
    n = (~np.isnan(rewards_P_N_D)).sum(1)
    passes = np.where(np.isnan(rewards_P_N_D), False, rewards_P_N_D >= floors_D)
    c = passes.sum(1)
    a, b = c + 0.5, n - c + 0.5
    gini, se = gini_mean_difference(rewards_P_N_D)
    above = gini - 2 * sigma_D / np.sqrt(np.pi)
    informative = above - Z95 * se >= settings.gamma
    saturated = ~informative & (beta_tail(a, b, 1 - settings.eps) >= 0.95)
    starved = ~informative & ~saturated & (beta_tail(a, b, settings.eps) <= 0.05)
    static = ~informative & ~saturated & ~starved & (above + Z95 * se < settings.gamma) & (n >= 8)
    decided = informative | saturated | starved | static
    rate, rate_se = dominance_rate(rewards_P_N_D, informative, 2 * sigma_D)
    erd = effective_dimensionality(rewards_P_N_D, sigma_D)
    kinds = _kinds(informative, decided, rate + Z95 * rate_se, erd, settings)
    joint = np.mean(np.all(passes, axis=-1), axis=1)
    p_low = (a / (a + b)) - Z95 * np.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))
    names = np.select([informative, saturated, starved, static], ["informative", "saturated", "starved", "static"], "undecided")
    out = []
    for i, kind in enumerate(kinds):
        carried = int(np.argmax(p_low[i]))
        out.append(Profile(kind, int(n[i].max(initial=0)), dims[carried], tuple(d for j, d in enumerate(dims) if j != carried),
                           tuple(names[i].tolist()), tuple((c[i] / np.maximum(n[i], 1)).tolist()), tuple(gini[i].tolist()),
                           float(rate[i]), float(erd[i]), float(joint[i])))
    return out


def _kinds(informative: NDArray[np.bool_], decided: NDArray[np.bool_], rate_high: NDArray[np.float64],
           erd: NDArray[np.float64], settings: PresampleSettings) -> list[Kind]:
    out: list[Kind] = []
    settled = np.all(decided, axis=-1)
    for some, all_decided, high, dimensionality in zip(np.sum(informative, axis=-1), settled, rate_high, erd, strict=True):
        if some >= 2:
            out.append("conflict" if dimensionality <= 1 + settings.delta_e or high < settings.q_min else "multi")
        elif not all_decided:
            out.append("undecided")
        else:
            out.append("one_dim" if some == 1 else "flat")
    return out


def _pair_statistic(gap_P_N_N_D: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over unordered pairs of distinct rollouts and its jackknife standard error, missing pairs left out."""
    n = gap_P_N_N_D.shape[1]
    there = ~np.isnan(gap_P_N_N_D)
    there[:, np.arange(n), np.arange(n)] = False
    by_rollout = np.where(there, gap_P_N_N_D, 0.0).sum(2)
    pairs_by_rollout = there.sum(2)
    total, pairs = by_rollout.sum(1), pairs_by_rollout.sum(1)
    value = total / np.maximum(pairs, 1)
    without = (total[:, None] - 2 * by_rollout) / np.maximum(pairs[:, None] - 2 * pairs_by_rollout, 1)
    present = pairs_by_rollout > 0
    m = present.sum(1)
    deviation = np.where(present, without - value[:, None], 0.0)
    spread = (m - 1) / np.maximum(m, 1) * (deviation**2).sum(1)
    return value, np.where(m > 2, np.sqrt(spread), np.inf)


def _log_beta(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return _log_gamma(a) + _log_gamma(b) - _log_gamma(a + b)


def _log_gamma(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stirling's series after shifting the argument above 7; relative error under 1e-10."""
    shift = np.zeros_like(x)
    y = x.astype(float).copy()
    for _ in range(7):
        low = y < 7
        shift = np.where(low, shift + np.log(np.where(low, y, 1.0)), shift)
        y = np.where(low, y + 1, y)
    series = 1 / (12 * y) - 1 / (360 * y**3) + 1 / (1260 * y**5) - 1 / (1680 * y**7)
    return np.asarray((y - 0.5) * np.log(y) - y + 0.5 * np.log(2 * np.pi) + series - shift)


def _beta_fraction(a: NDArray[np.float64], b: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    tiny = 1e-300
    c = np.ones_like(a)
    d = 1 - (a + b) * x / (a + 1)
    d = 1 / np.where(np.abs(d) < tiny, tiny, d)
    value = d.copy()
    for m in range(1, 200):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 + term * d
            d = 1 / np.where(np.abs(d) < tiny, tiny, d)
            c = 1 + term / c
            c = np.where(np.abs(c) < tiny, tiny, c)
            step = c * d
            value = value * step
        if np.all(np.abs(step - 1) < 1e-12):
            break
    return value
