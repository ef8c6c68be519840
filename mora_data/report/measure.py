"""What one arm's answers to one prompt say, as numbers: a column per metric, a row per source
prompt.

Every metric is a mean over prompts, so that the cluster bootstrap resamples prompts and nothing
else (METHOD 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import statistics as st

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .read import ArmBlock

PRIMARY = ("dominance_rate", "joint_pass")
HYPERVOLUME_PROMPTS = 4000  # exact HV costs N^D cells a prompt; a subset drawn by id says enough


@dataclass(frozen=True, slots=True)
class Scale:
    """What the metrics are measured against.

    Attributes:
        k: of joint pass and hypervolume, the same for every arm.
        every: hypervolume and coverage are taken for every so-manieth prompt.
    """

    dims: tuple[str, ...]
    floors_D: NDArray[np.float64]
    sigma_D: NDArray[np.float64]
    k: int
    every: int


def scale(
    dims: Sequence[str],
    floors: dict[str, float],
    sigma: dict[str, float],
    n_rollouts: int,
    n_prompts: int,
) -> Scale:
    """k = 8, or half of the rollouts of an arm where that is less: an answer or two may fail
    without losing the prompt."""
    return Scale(
        tuple(dims),
        np.array([floors[d] for d in dims]) - 1e-9,
        np.array([sigma[d] for d in dims]),
        max(1, min(8, n_rollouts // 2)),
        max(1, -(-n_prompts // HYPERVOLUME_PROMPTS)),
    )


def names(dims: Sequence[str]) -> list[str]:
    """The metrics of an arm, in the order of their columns."""
    return [
        "dominance_rate",
        "joint_pass",
        "joint_pass_1",
        "hypervolume",
        "erd",
        "eigen_entropy",
        "scored",
        "refusal",
        "tokens",
        *(f"{m}_{d}" for d in dims for m in ("reward", "pass", "variance", "gini", "range")),
    ]


def is_rate(name: str) -> bool:
    """Whether a metric is a share in [0, 1], which has an interval of its own."""
    return name in (
        "dominance_rate",
        "joint_pass",
        "joint_pass_1",
        "scored",
        "refusal",
        "hypervolume",
    ) or name.startswith("pass_")


def measure(arm: ArmBlock, s: Scale, sampled_P: NDArray[np.bool_]) -> NDArray[np.float64]:
    """values_P_M of one arm of a partition; NaN where a prompt has too few scores for a metric."""
    r = arm.rewards_P_N_D
    whole = ~np.isnan(r).any(-1)
    two = whole.sum(1) >= 2
    rate, _ = st.dominance_rate_everywhere(r, 2 * s.sigma_D)
    cov, _ = st.noise_corrected_covariance(r, s.sigma_D)
    eigen = np.clip(np.linalg.eigvalsh(cov), 0, None)
    columns = [
        np.where(two, rate, np.nan),
        st.joint_pass_at_k(r, s.floors_D, s.k),
        st.joint_pass_at_k(r, s.floors_D, 1),
        _hypervolume(r, s, sampled_P),
        np.where(two, st.effective_dimensionality(r, s.sigma_D), np.nan),
        np.where(two, _entropy(eigen), np.nan),
        whole.sum(1) / arm.asked_P,
        _mean(arm.refusal_P_N),
        _mean(arm.tokens_P_N),
    ]
    gini, _ = st.gini_mean_difference(r)
    at_k = st.range_at_k(r, s.k)
    for j in range(len(s.dims)):
        there = ~np.isnan(r[..., j])
        n = there.sum(1)
        columns += [
            _mean(r[..., j]),
            _mean(np.where(there, r[..., j] >= s.floors_D[j], np.nan)),
            np.where(two, cov[:, j, j], np.nan),
            np.where(n >= 2, gini[:, j], np.nan),
            at_k[:, j],
        ]
    return np.stack(columns, axis=1)


def sampled(prompt_ids: Sequence[str], every: int) -> NDArray[np.bool_]:
    """The prompts whose hypervolume is taken, by their ids."""
    return np.array([int(p[:12], 16) % every == 0 for p in prompt_ids], dtype=bool)


def _hypervolume(
    r: NDArray[np.float64], s: Scale, sampled_P: NDArray[np.bool_]
) -> NDArray[np.float64]:
    out = np.full(len(r), np.nan)
    if len(s.dims) <= 3 and r.shape[1] <= 32 and sampled_P.any():
        out[sampled_P] = st.hypervolume_at_k(r[sampled_P], s.k)
    return out


def _entropy(eigen_P_D: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(H) of the normalised eigenvalues of the noise-corrected covariance; 0 where nothing is
    left after the noise."""
    total = eigen_P_D.sum(1)
    share = eigen_P_D / np.where(total > 1e-12, total, 1.0)[:, None]
    h = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
    return np.asarray(np.where(total > 1e-12, np.exp(h), 0.0))


def _mean(values_P_N: NDArray[np.float64]) -> NDArray[np.float64]:
    there = ~np.isnan(values_P_N)
    n = there.sum(1)
    return np.asarray(
        np.where(n > 0, np.where(there, values_P_N, 0.0).sum(1) / np.maximum(n, 1), np.nan)
    )
