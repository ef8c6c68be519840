"""The kind of a prompt, from its presamples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..types import Kind
from .beta import beta_tail
from .spread import dominance_rate, effective_dimensionality, gini_mean_difference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..settings import PresampleSettings
    from .split import DecidingHalf

KINDS: tuple[Kind, ...] = ("flat", "one_dim", "conflict", "multi", "undecided")
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
    deciding: DecidingHalf,
    dims: Sequence[str],
    floors_D: NDArray[np.float64],
    sigma_D: NDArray[np.float64],
    settings: PresampleSettings,
) -> list[PromptStats]:
    """The kind of each prompt from the presamples that decide.

    A dimension is informative when its expected difference exceeds noise by gamma (one-sided 95 %);
    else saturated or starved when the posterior of its pass rate says so; else static when the
    difference is surely below gamma; else undecided. `static` is ours: METHOD leaves such a
    dimension undecided for ever.
    """
    rewards_P_N_D = deciding.rewards_P_N_D
    found = decisions(rewards_P_N_D, floors_D, sigma_D, settings, deciding.levels_P_N_D)
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

    kind_P: NDArray[np.int_]
    state_P_D: NDArray[np.int_]
    n_P_D: NDArray[np.int_]
    passes_P_D: NDArray[np.int_]
    gini_P_D: NDArray[np.float64]
    dominance_P: NDArray[np.float64]
    erd_P: NDArray[np.float64]
    joint_P: NDArray[np.float64]


def decisions(
    rewards_P_N_D: NDArray[np.float64],
    floors_D: NDArray[np.float64],
    sigma_D: NDArray[np.float64],
    settings: PresampleSettings,
    levels_P_N_D: NDArray[np.float64] | None = None,
) -> Decisions:
    """METHOD (b)'s decision rule, see `profiles`. Floors are compared with the levels, by default
    the rewards."""
    n = (~np.isnan(rewards_P_N_D)).sum(1)
    levels = rewards_P_N_D if levels_P_N_D is None else levels_P_N_D
    passes = np.where(np.isnan(levels), False, levels >= floors_D)
    c = passes.sum(1)
    gini, se = gini_mean_difference(rewards_P_N_D)
    above = gini - 2 * sigma_D / np.sqrt(np.pi)
    informative = above - Z95 * se >= settings.gamma
    high, low = _tails(c, n, settings.eps)
    tests = [informative, high >= 0.95, low <= 0.05, (above + Z95 * se < settings.gamma) & (n >= 8)]
    state = np.select(tests, [0, 1, 2, 3], 4)
    rate, rate_se = dominance_rate(rewards_P_N_D, informative, 2 * sigma_D)
    erd = effective_dimensionality(rewards_P_N_D, sigma_D)
    some = np.sum(informative, axis=-1)
    at_odds = (erd <= 1 + settings.delta_e) | (rate + Z95 * rate_se < settings.q_min)
    settled = np.all(state < 4, axis=-1)
    kind = np.select([(some >= 2) & at_odds, some >= 2, ~settled, some == 1], [2, 3, 4, 1], 0)
    return Decisions(kind, state, n, c, gini, rate, erd, np.mean(np.all(passes, axis=-1), axis=1))


def _tails(
    c_P_D: NDArray[np.int_], n_P_D: NDArray[np.int_], eps: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(p >= 1 - eps) and P(p >= eps) under Jeffreys' prior."""
    high, low = _tail_tables(int(n_P_D.max(initial=0)), eps)
    return high[n_P_D, c_P_D], low[n_P_D, c_P_D]


@lru_cache(maxsize=64)
def _tail_tables(most: int, eps: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same for every n <= `most` and c <= n: each is solved once."""
    n, c = np.arange(most + 1)[:, None], np.arange(most + 1)[None, :]
    a, b = np.broadcast_arrays(c + 0.5, np.maximum(n - c, 0) + 0.5)
    return beta_tail(a, b, 1 - eps), beta_tail(a, b, eps)
