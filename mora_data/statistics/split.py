"""The presamples in two halves: one decides a prompt's kind, the other gives the numbers "before"
fusion.

Prompts picked for low rewards score higher the next time by chance alone, so a number from the
samples that picked them is biased (METHOD (b), split-sample: +0.069 of joint pass where nothing
changed). The halves are two types, and each function takes one of them: `profiles` what decides,
`before` what does not.

    deciding, rest = split(rewards_P_N_D)
    kinds, numbers = profiles(deciding, ...), before(rest, ...)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .atk import joint_pass_at_k
from .spread import dominance_rate_everywhere, effective_dimensionality, gini_mean_difference

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class DecidingHalf:
    """Presamples that decide; P x N x D, NaN where a score is missing. Floors are compared with
    `levels_P_N_D`."""

    rewards_P_N_D: NDArray[np.float64]
    levels_P_N_D: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BeforeHalf:
    """Presamples that no decision has seen; P x N x D, NaN where a score is missing."""

    rewards_P_N_D: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Before:
    """Numbers of the bare prompts, per prompt.

    Attributes:
        joint_P: A_k, the chance that one of k answers reaches every floor; NaN with fewer than k
            scored ones.
        dominance_P: DR, share of pairs in which one answer beats the other by more than noise in
            every dimension.
        gini_P_D: expected difference of two answers, per dimension.
        erd_P: effective reward dimensionality.
    """

    joint_P: NDArray[np.float64]
    dominance_P: NDArray[np.float64]
    gini_P_D: NDArray[np.float64]
    erd_P: NDArray[np.float64]


def split(
    rewards_P_N_D: NDArray[np.float64], levels_P_N_D: NDArray[np.float64] | None = None
) -> tuple[DecidingHalf, BeforeHalf]:
    """Samples of even index decide, those of odd index are before; axis 1 is in the order of the
    sample index.

    Levels are the rewards where none are given.
    """
    levels = rewards_P_N_D if levels_P_N_D is None else levels_P_N_D
    return DecidingHalf(rewards_P_N_D[:, ::2], levels[:, ::2]), BeforeHalf(rewards_P_N_D[:, 1::2])


def undivided(
    rewards_P_N_D: NDArray[np.float64], levels_P_N_D: NDArray[np.float64] | None = None
) -> DecidingHalf:
    """All presamples decide, and none is left for numbers before [`presample.split: false`]."""
    return DecidingHalf(rewards_P_N_D, rewards_P_N_D if levels_P_N_D is None else levels_P_N_D)


def before(
    half: BeforeHalf, floors_D: NDArray[np.float64], sigma_D: NDArray[np.float64], k: int = 1
) -> Before:
    """The numbers of the bare prompts from samples that decided nothing.

    Raises:
        TypeError: anything but a BeforeHalf: numbers from deciding samples would be biased.
    """
    if not isinstance(half, BeforeHalf):
        raise TypeError(
            f"numbers before fusion need the half that decided nothing, got {type(half).__name__}:"
            " use split()[1]"
        )
    r = half.rewards_P_N_D
    return Before(
        joint_pass_at_k(r, floors_D, k),
        dominance_rate_everywhere(r, 2 * sigma_D)[0],
        gini_mean_difference(r)[0],
        effective_dimensionality(r, sigma_D),
    )
