"""What one arm's answers to one prompt say, as numbers (a column per metric, a row per source
prompt), and how they are added up while partitions stream by.

Every metric is a mean over prompts, so that the cluster bootstrap resamples prompts and nothing
else (docs/method.md, "Comparing arms").

    clusters = Clusters(n_prompts)
    at = clusters.labels("", prompt_ids)            # of one partition
    added = Added(n_metrics); added.add(at, measure(arm, scale, sampled))
    bootstrap_of(added.sums(clusters, ""))

Up to MOST prompts a cluster is one prompt. Beyond, it is one of BATCHES batches, by a hash of the
prompt's id, so that memory and time of the bootstrap stop growing. Prompts fall into batches at
random, so a batch's residual (its sum minus its number times the mean) has on average the sum of
its prompts' variances, and the variance over batches is that over prompts: the interval is the same
but for a relative error of 1 / sqrt(2 BATCHES) = 0.5 % of its width, under the 1.6 % that 2,000
draws have themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..statistics import Bools, Floats
from ..statistics import rollouts as st
from ..statistics.inference import Sums
from ..statistics.training import mean_over
from .read import ArmBlock

MOST = 50_000
BATCHES = 20_000
PRIMARY = ("dominance_rate", "joint_pass")
HYPERVOLUME_PROMPTS = 4000  # exact HV costs N^D cells a prompt; a subset drawn by id says enough


@dataclass(frozen=True, slots=True)
class Scale:
    """What the metrics are measured against.

    Attributes:
        k: of joint pass and hypervolume, the same for every arm: 8, or half of an arm's rollouts
            where that is less, so that an answer or two may fail without losing the prompt.
        every: hypervolume and coverage are taken for one prompt in so many.
    """

    dims: tuple[str, ...]
    floors_D: Floats
    sigma_D: Floats
    k: int
    every: int


def metric_names(dims: Sequence[str]) -> list[str]:
    """The metrics of an arm, in the order of their columns."""
    return [
        *("dominance_rate", "pareto_rate", "joint_pass", "joint_pass_1", "hypervolume"),
        *("erd", "eigen_entropy", "scored", "refusal", "repeats", "tokens"),
        *(f"{m}_{d}" for d in dims for m in ("reward", "pass", "variance", "gini", "range")),
    ]


def is_rate(name: str) -> bool:
    """Whether a metric is a share in [0, 1], which has an interval of its own."""
    rates = ("dominance_rate", "pareto_rate", "joint_pass", "joint_pass_1", "hypervolume")
    return name in (*rates, "scored", "refusal", "repeats") or name.startswith("pass_")


def measure(arm: ArmBlock, s: Scale, sampled_P: Bools) -> Floats:
    """values_P_M of one arm of a partition; NaN where a prompt has too few scores for a metric."""
    r = arm.rewards_P_N_D
    whole = ~np.isnan(r).any(-1)
    two = whole.sum(1) >= 2
    rate, _ = st.dominance_rate_everywhere(r, 2 * s.sigma_D)
    cov, _ = st.noise_corrected_covariance(r, s.sigma_D)
    eigen = np.clip(np.linalg.eigvalsh(cov), 0, None)
    columns = [
        np.where(two, rate, np.nan),
        np.where(two, st.pareto_rate(r, 2 * s.sigma_D), np.nan),
        st.joint_pass_at_k(r, s.floors_D, s.k),
        st.joint_pass_at_k(r, s.floors_D, 1),
        _hypervolume(r, s, sampled_P),
        np.where(two, st.effective_dimensionality(r, s.sigma_D), np.nan),
        np.where(two, _entropy(eigen), np.nan),
        whole.sum(1) / arm.asked_P,
        mean_over(arm.refusal_P_N, 1),
        mean_over(arm.repeats_P_N, 1),
        mean_over(arm.tokens_P_N, 1),
    ]
    gini, _ = st.gini_mean_difference(r)
    at_k = st.range_at_k(r, s.k)
    for j in range(len(s.dims)):
        there = ~np.isnan(r[..., j])
        n = there.sum(1)
        columns += [
            mean_over(r[..., j], 1),
            mean_over(np.where(there, r[..., j] >= s.floors_D[j], np.nan), 1),
            np.where(two, cov[:, j, j], np.nan),
            np.where(n >= 2, gini[:, j], np.nan),
            at_k[:, j],
        ]
    return np.stack(columns, axis=1)


def in_sample(prompt_ids: Sequence[str], every: int) -> Bools:
    """The prompts whose hypervolume is taken, by their ids."""
    return np.array([int(p[:12], 16) % every == 0 for p in prompt_ids], dtype=bool)


def _hypervolume(r: Floats, s: Scale, sampled_P: Bools) -> Floats:
    out = np.full(len(r), np.nan)
    if len(s.dims) <= 3 and r.shape[1] <= 32 and sampled_P.any():
        out[sampled_P] = st.hypervolume_at_k(r[sampled_P], s.k)
    return out


def _entropy(eigen_P_D: Floats) -> Floats:
    """exp(H) of the normalised eigenvalues of the noise-corrected covariance; 0 where nothing is
    left after the noise."""
    total = eigen_P_D.sum(1)
    share = eigen_P_D / np.where(total > 1e-12, total, 1.0)[:, None]
    h = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
    return np.where(total > 1e-12, np.exp(h), 0.0)


class Clusters:
    """The cluster of each prompt, by group of prompts that are looked at by themselves ("" for all
    of them)."""

    def __init__(self, n_prompts: int) -> None:
        self.batched = n_prompts > MOST
        self._n: Counter[str] = Counter()

    def labels(self, group: str, prompt_ids: Sequence[str]) -> NDArray[np.int64]:
        """Clusters of the group's next prompts."""
        first = self._n[group]
        self._n[group] += len(prompt_ids)
        if self.batched:
            return cluster_batch(np.array([int(i, 16) for i in prompt_ids], np.uint64))
        return np.arange(first, first + len(prompt_ids))

    def size(self, group: str) -> int:
        """How many clusters the group has."""
        return BATCHES if self.batched else self._n[group]


class Added:
    """Sum and number of the values of each cluster, M columns of them.

    `whole`: a row has all of its values or counts as having none; then the number is kept once for
    all columns.
    """

    def __init__(self, m: int, whole: bool = False) -> None:
        self._sums, self._numbers = np.zeros((0, m)), np.zeros((0, 1 if whole else m))
        self._whole = whole
        self._not_0_or_1 = np.zeros((2, m), int)  # rows whose value is not 0, not 1
        self.n = 0  # rows with a value

    def add(self, labels_P: NDArray[np.int64], values_P_M: Floats) -> None:
        """Rows of values, NaN for none."""
        there = ~np.isnan(values_P_M)
        if self._whole:
            there = np.asarray(there.all(1, keepdims=True))
        self.n += int(there.any(1).sum())
        self._not_0_or_1 += (
            (there & (values_P_M > 1e-12)).sum(0),
            (there & (values_P_M < 1 - 1e-12)).sum(0),
        )
        self._grow(int(labels_P.max(initial=-1)) + 1)
        np.add.at(self._sums, labels_P, np.where(there, values_P_M, 0.0))
        np.add.at(self._numbers, labels_P, there.astype(float))

    def sums(self, clusters: Clusters, group: str) -> Sums:
        """The sums of a group's clusters; those that had no value have 0 of 0."""
        n = clusters.size(group)
        self._grow(n)
        numbers = (
            np.repeat(self._numbers[:n], self._sums.shape[1], axis=1)
            if self._whole
            else self._numbers[:n]
        )
        return Sums(self._sums[:n], numbers, self._not_0_or_1.min(0) if clusters.batched else None)

    def _grow(self, n: int) -> None:
        if n > len(self._sums):
            more = max(n - len(self._sums), len(self._sums) // 4)
            self._sums, self._numbers = (
                np.concatenate([a, np.zeros((more, a.shape[1]))])
                for a in (self._sums, self._numbers)
            )


def cluster_batch(ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The batch of each id (16 hex digits as a number)."""
    return np.asarray(ids % np.uint64(BATCHES), np.int64)
