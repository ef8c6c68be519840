"""Prompts side by side, as arrays; the selectors, which score every ordered pair of each prompt,
-inf where it is not allowed; and the best pairs under such scores.

Ties are settled by rules that know nothing of the order of the rollouts: larger smallest margin,
then smaller difference of log length, then a hash of the two texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..rewards.judge_stats import JudgeStats
from ..settings import BuildSettings
from ..statistics import Bools, Floats

BLOCK_PAIRS = 1 << 17
_PER_PROMPT = (
    "rewards_P_N_D usable_P_N passing_P_N binding_P_D length_P_N text_hash_P_N reference_P_D"
).split()

# (prompt, chosen, rejected) -> any integer that depends on the texts alone
TieHash = Callable[[int, int, int], int]


@dataclass(frozen=True, slots=True)
class Batch:
    """P prompts with N rollouts in D dimensions.

    Attributes:
        rewards_P_N_D: calibrated rewards in [0, 1]; NaN where a score is missing.
        usable_P_N: neither degenerate nor a duplicate: may stand on either side.
        passing_P_N: reaches every pass threshold: may be chosen.
        binding_P_D: dimensions in which chosen must win; none set = plain mode.
        delta_D: smallest margin that is more than noise.
        length_P_N: length in tokens.
        weights_D: weight per dimension.
        target: index of the dimension that `lexi` maximises.
        guarded: indices of the dimensions that `lexi` must not worsen; None: all but the target.
        max_length_ratio: longest over shortest answer of a pair.
        text_hash_P_N: hash of each rollout's text: what `random` draws by; equal ones never make a
            pair.
        reference_P_D: rewards that `lsc` measures from; None: the median of the prompt's scored
            rollouts.
        uncertainty_P_N_D: kappa times the disagreement about each reward; None: none.
    """

    rewards_P_N_D: Floats
    usable_P_N: Bools
    passing_P_N: Bools
    binding_P_D: Bools
    delta_D: Floats
    length_P_N: Floats
    weights_D: Floats | None = None
    target: int = 0
    guarded: tuple[int, ...] | None = None
    max_length_ratio: float = np.inf
    text_hash_P_N: NDArray[np.uint64] | None = None
    reference_P_D: Floats | None = None
    uncertainty_P_N_D: Floats | None = None
    _margins: list[Floats] = field(default_factory=list, repr=False)

    @property
    def margins_P_N_N_D(self) -> Floats:
        """m[p, i, j, d] = r[p, i, d] - r[p, j, d]."""
        if not self._margins:
            r = self.rewards_P_N_D
            self._margins.append(r[:, :, None, :] - r[:, None, :, :])
        return self._margins[0]

    @property
    def log_length_gap_P_N_N(self) -> Floats:
        """log(length of i / length of j)."""
        log = np.log(np.maximum(self.length_P_N, 1.0))
        return log[:, :, None] - log[:, None, :]

    def least_margin(self, p: NDArray[np.intp], i: NDArray[np.intp], j: NDArray[np.intp]) -> Floats:
        """Smallest margin over the dimensions of each pair (i, j) of prompt p."""
        return np.asarray((self.rewards_P_N_D[p, i] - self.rewards_P_N_D[p, j]).min(-1))

    def length_gap(self, p: NDArray[np.intp], i: NDArray[np.intp], j: NDArray[np.intp]) -> Floats:
        """|log(length of i / length of j)| of each pair."""
        log = np.log(np.maximum(self.length_P_N, 1.0))
        return np.asarray(np.abs(log[p, i] - log[p, j]))

    def blocks(self) -> Iterator[Batch]:
        """The prompts in order, as batches so small that arrays over all pairs stay in the
        processor's cache."""
        p, n, _ = self.rewards_P_N_D.shape
        size = max(1, BLOCK_PAIRS // max(n * n, 1))
        if p <= size:
            yield self
            return
        for first in range(0, p, size):
            some = slice(first, first + size)
            rows = {f: value[some] for f in _PER_PROMPT if (value := getattr(self, f)) is not None}
            yield replace(self, **rows, _margins=[])

    def allowed_P_N_N(self) -> Bools:
        """Pairs that any selector may take: both usable and scored, chosen passes the thresholds,
        lengths comparable."""
        scored = ~np.any(np.isnan(self.rewards_P_N_D), axis=-1)
        usable = self.usable_P_N & scored
        chosen = usable & self.passing_P_N
        allowed = chosen[:, :, None] & usable[:, None, :]
        allowed &= np.abs(self.log_length_gap_P_N_N) <= np.log(self.max_length_ratio) + 1e-12
        if self.text_hash_P_N is not None:
            allowed &= self.text_hash_P_N[:, :, None] != self.text_hash_P_N[:, None, :]
        if self.uncertainty_P_N_D is not None:
            allowed &= self._certain_P_N_N(self.uncertainty_P_N_D)
        n = allowed.shape[1]
        allowed[:, np.arange(n), np.arange(n)] = False
        return np.asarray(allowed)

    def _certain_P_N_N(self, uncertainty_P_N_D: Floats) -> Bools:
        """Pairs whose pessimistic chosen still beats the optimistic rejected: in every binding
        dimension, or in one at least where none is binding (docs/method.md,
        Selection)."""
        with np.errstate(invalid="ignore"):
            wins = (
                self.margins_P_N_N_D
                > uncertainty_P_N_D[:, :, None, :] + uncertainty_P_N_D[:, None, :, :]
            )
        binding = self.binding_P_D[:, None, None, :]
        plain = ~np.any(self.binding_P_D, axis=-1)[:, None, None]
        return np.asarray(np.where(plain, np.any(wins, axis=-1), np.all(wins | ~binding, axis=-1)))


def batch_of(
    settings: BuildSettings,
    stats: JudgeStats,
    steps: Mapping[str, float],
    rewards_P_N_D: Floats,
    certain_P_N_D: Floats,
    usable_P_N: Bools,
    length_P_N: Floats,
    binding_P_D: Bools,
    text_hash_P_N: NDArray[np.uint64] | None = None,
    uncertainty_P_N_D: Floats | None = None,
    target: int | None = None,
    guarded: tuple[int, ...] | None = None,
) -> Batch:
    """Prompts of a build as a batch; `steps`: resolution of each dimension's scale. `certain_P_N_D`
    is the absolute reward less its uncertainty: a chosen answer reaches every pass threshold by it,
    with a `target` only the target's."""
    dims, select = settings.dimensions, settings.select
    thresholds_D = np.array([stats.pass_thresholds[d] for d in dims]) - 1e-9
    with np.errstate(invalid="ignore"):
        reached = certain_P_N_D >= thresholds_D
    return Batch(
        rewards_P_N_D=rewards_P_N_D,
        usable_P_N=usable_P_N,
        passing_P_N=np.asarray(reached.all(-1) if target is None else reached[..., target]),
        binding_P_D=binding_P_D,
        delta_D=np.array(stats.least_margins(dims, steps)),
        length_P_N=length_P_N,
        weights_D=np.array([select.weights.get(d, 1.0) for d in dims]),
        target=target or 0,
        guarded=guarded,
        max_length_ratio=select.max_length_ratio,
        text_hash_P_N=text_hash_P_N,
        uncertainty_P_N_D=uncertainty_P_N_D,
    )


def are_confirmed(confirmed_Q_D: Floats, binding_Q_D: Bools) -> Bools:
    """Whether the fresh margins confirm a pair: no binding one turns negative, and the total stays
    positive; a missing one (NaN) confirms nothing."""
    with np.errstate(invalid="ignore"):
        return np.asarray(((confirmed_Q_D >= 0) | ~binding_Q_D).all(1) & (confirmed_Q_D.sum(1) > 0))


class Picks(NamedTuple):
    """The best pairs of each prompt, best first; -1 where there are fewer."""

    chosen_P_K: NDArray[np.int64]
    rejected_P_K: NDArray[np.int64]
    score_P_K: Floats


def top_pairs(batch: Batch, scores_P_N_N: Floats, k: int, tie_hash: TieHash | None = None) -> Picks:
    """The `k` best pairs of each prompt."""
    p, n, _ = scores_P_N_N.shape
    chosen, rejected = np.full((p, k), -1), np.full((p, k), -1)
    score = np.full((p, k), -np.inf)
    first = 0
    for block in batch.blocks():
        here = slice(first, first + len(block.rewards_P_N_D))
        flat = scores_P_N_N[here].reshape(-1, n * n).copy()
        rows = np.arange(len(flat))
        for rank in range(min(k, n * n)):
            best = _best(flat, block, first, tie_hash)
            value = flat[rows, best]
            there = np.isfinite(value)
            if not there.any():
                break
            chosen[here, rank] = np.where(there, best // n, -1)
            rejected[here, rank] = np.where(there, best % n, -1)
            score[here, rank] = np.where(there, value, -np.inf)
            flat[rows, best] = -np.inf
        first = here.stop
    return Picks(chosen, rejected, score)


def _best(flat: Floats, batch: Batch, first: int, tie_hash: TieHash | None) -> NDArray[np.intp]:
    """Position of each prompt's best pair; `first` is the number of the batch's first prompt."""
    best: NDArray[np.intp] = flat.argmax(1)
    top = np.take_along_axis(flat, best[:, None], 1)
    tied = flat >= np.where(np.isfinite(top), top - 1e-9, np.inf)
    unsettled = np.flatnonzero(np.count_nonzero(tied, axis=1) > 1)
    if not unsettled.size:
        return best
    n = batch.rewards_P_N_D.shape[1]
    row, at = np.nonzero(tied[unsettled])
    for preferred in (batch.least_margin, lambda p, i, j: -batch.length_gap(p, i, j)):
        value = preferred(unsettled[row], at // n, at % n)
        most = np.maximum.reduceat(value, np.searchsorted(row, np.arange(len(unsettled))))
        keep = value >= most[row] - 1e-9
        row, at = row[keep], at[keep]
    starts = np.searchsorted(row, np.arange(len(unsettled) + 1))
    best[unsettled] = at[starts[:-1]]
    if tie_hash is not None:
        for u in np.flatnonzero(np.diff(starts) > 1).tolist():
            p = int(unsettled[u])
            best[p] = min(
                at[starts[u] : starts[u + 1]].tolist(),
                key=lambda f: tie_hash(first + p, f // n, f % n),
            )
    return best


# selectors

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
            r, binding = batch.rewards_P_N_D[..., d], batch.binding_P_D[:, d, None, None]
            m = r[:, :, None] - r[:, None, :]
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
