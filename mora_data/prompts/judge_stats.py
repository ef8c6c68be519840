"""Phase 0: calibration, noise and floors, measured on the first prompts and frozen in
reference.json before any is judged by them.

    raw scores of the first presamples, a share of them twice -> charts -> noise of the calibrated
    values -> canaries

They are not measured again while the settings they rest on stand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..engines.cached_client import CachedClient
from ..errors import PendingRetry
from ..rewards.combine import (
    ANCHORED,
    Anchors,
    RewardSources,
    anchor,
    calibrated,
    described,
    fitted,
    steps_of,
)
from ..rewards.combine import combine as combine_sources
from ..run.partitions import Partition
from ..types import Prompt, Rollout, Score
from .budget import Mined
from .flow import JudgeStats, PromptContext, is_usable, presample, repeated, sample_and_score, score
from .result import PromptResult

PROVISIONAL_UNDER = 1000
LEAST_RELIABILITY = 0.3
LEAST_TWICE = 30  # answers scored twice, under which a reliability refuses nothing
Z95 = 1.6448536269514722  # one-sided 95 %


@dataclass(slots=True)
class Measured:
    """One reference prompt: its rollouts with their scores, and the scores of those that were
    scored again."""

    prompt: Prompt
    rollouts: list[Rollout]
    first: list[tuple[int, Score]]
    again: list[tuple[int, Score]]
    repeated: list[int]


@dataclass(slots=True)
class Measurements:
    """What phase 0 collects: some 256 prompts, whatever the size of the run."""

    prompts: dict[str, Measured] = field(default_factory=dict)
    owed: int = 0

    def in_order(self) -> list[Measured]:
        """By prompt id: the order in which prompts finish must not show."""
        return [self.prompts[k] for k in sorted(self.prompts)]


class Noise:
    """Two scores of one rollout, and all scores of one prompt.

    sigma_d^2 = mean (s1 - s2)^2 / 2; reliability rho_d = 1 - sigma_d^2 / Var_within (METHOD (a) 5).
    """

    def __init__(self, dims: Sequence[str]) -> None:
        self._dims = dims
        self._squares: dict[str, list[float]] = {d: [] for d in dims}
        self._within: dict[str, list[tuple[float, int]]] = {d: [] for d in dims}
        self.n_rollouts = 0

    def add(self, dim: str, first: float | None, second: float | None) -> None:
        """Two scores of one rollout."""
        if first is not None and second is not None:
            self._squares[dim].append((first - second) ** 2)

    def add_prompt(self, dim: str, values: Sequence[float | None]) -> None:
        """A prompt's scores, for the variance within prompts."""
        there = [v for v in values if v is not None]
        if len(there) > 1:
            mean = math.fsum(there) / len(there)
            self._within[dim].append((math.fsum((v - mean) ** 2 for v in there), len(there) - 1))

    def result(
        self, pass_thresholds: Mapping[str, float], steps: Mapping[str, float]
    ) -> dict[str, Any]:
        """reference.json, without its basis. A dimension that nobody scored twice gets half a step
        of its scale."""
        noise = {}
        for d in self._dims:
            n = len(self._squares[d])  # exact sums: the order in which prompts finish must not show
            sigma = math.sqrt(math.fsum(self._squares[d]) / n / 2) if n else None
            freedom = sum(f for _, f in self._within[d])
            variance = math.fsum(s for s, _ in self._within[d]) / freedom if freedom else None
            known = sigma is not None and variance
            noise[d] = {
                "sigma": sigma if sigma is not None else steps[d] / 2,
                "n": n,
                "measured": sigma is not None,
                "reliability": 1 - sigma**2 / variance
                if known and sigma is not None and variance
                else None,
                "reliability_upper": self._upper(d) if known else None,
            }
        return {
            "n_rollouts": self.n_rollouts,
            "provisional": self.n_rollouts < PROVISIONAL_UNDER,
            "noise": noise,
            "floors": dict(pass_thresholds),
        }

    def _upper(self, d: str) -> float:
        """Upper end of the one-sided 95 % interval of rho, by the delta method on log(sigma^2 /
        Var), prompts as clusters.

        No normal scores are assumed: both variances of the log come from the spread of the squares
        themselves.
        """
        squares, within = self._squares[d], self._within[d]
        mean = math.fsum(squares) / len(squares)
        if mean == 0:
            return 1.0
        relative = (
            math.fsum((s - mean) ** 2 for s in squares)
            / max(len(squares) - 1, 1)
            / len(squares)
            / mean**2
        )
        total, freedom = math.fsum(s for s, _ in within), sum(f for _, f in within)
        ratio = total / freedom
        relative += (
            len(within)
            / max(len(within) - 1, 1)
            * math.fsum((s - ratio * f) ** 2 for s, f in within)
            / total**2
        )
        return 1 - mean / 2 / ratio * math.exp(-Z95 * math.sqrt(relative))


class Rates:
    """Collects the passes of the deciding presamples: how pass rates spread over prompts."""

    def __init__(self, pass_thresholds: Mapping[str, float], split: bool) -> None:
        self._floors, self._split = pass_thresholds, split
        self._passes: dict[str, list[tuple[int, int]]] = {d: [] for d in pass_thresholds}

    def add_prompt(self, dim: str, values: Sequence[float | None]) -> None:
        """A prompt's scores in one dimension, in the order of the samples."""
        there = [v for v in (values[::2] if self._split else values) if v is not None]
        self._passes[dim].append((sum(v >= self._floors[dim] - 1e-9 for v in there), len(there)))

    def result(self) -> dict[str, list[float]]:
        """`rate_prior` per dimension, whatever the order in which the prompts came."""
        import numpy as np

        from ..statistics.adaptive import rate_prior

        counts = {d: np.array(sorted(p), dtype=int).reshape(-1, 2) for d, p in self._passes.items()}
        return {
            d: [round(float(x), 9) for x in rate_prior(c[:, 0], c[:, 1])] for d, c in counts.items()
        }


def mining_flow(
    work_for: Callable[[CachedClient], PromptContext], found: list[Mined], owed: list[str]
) -> Callable[[CachedClient, Prompt], Any]:
    """The flow of phase 0 where there is a budget: the reference prompts presampled in full. Their
    answers serve again later."""

    async def flow(ask: CachedClient, prompt: Prompt) -> PromptResult:
        try:
            profile, _, _ = await presample(work_for(ask), prompt)
            found.append(Mined(prompt.prompt_id, prompt.stratum or "all", profile))
        except PendingRetry:
            owed.append(prompt.prompt_id)
        return PromptResult(prompt)

    return flow


def strata_of(parts: Sequence[Partition]) -> dict[str, int]:
    """Mined prompts per stratum."""
    counts = Counter(p.stratum or "all" for part in parts for p in part.prompts())
    return dict(sorted(counts.items()))


def reference_flow(
    work_for: Callable[[CachedClient], PromptContext], found: Measurements
) -> Callable[[CachedClient, Prompt], Any]:
    """The flow of phase 0: first presamples, scored, a share of them scored again; raw scores where
    no chart is there yet."""

    async def flow(ask: CachedClient, prompt: Prompt) -> PromptResult:
        try:
            found.prompts[prompt.prompt_id] = await measure(work_for(ask), prompt)
        except PendingRetry:  # left out for now
            found.owed += 1
        return PromptResult(prompt)

    async def measure(work: PromptContext, prompt: Prompt) -> Measured:
        anchors: Anchors = {}
        rollouts, first = await sample_and_score(
            work, prompt, 0, work.settings.presample.n[0], anchors
        )
        again = [
            i
            for i, r in enumerate(rollouts)
            if repeated(prompt.prompt_id, r.index, work.settings.presample.repeat_share)
        ]
        fresh = await score(work, prompt.messages, [rollouts[i] for i in again], "repeat", anchors)
        return Measured(prompt, rollouts, first, [(again[k], s) for k, s in fresh], again)

    return flow


def conclude(
    found: Measurements,
    sources: RewardSources,
    pass_thresholds: Mapping[str, float],
    kappa: float | None,
    rates: Rates | None = None,
) -> tuple[dict[str, Any], RewardSources]:
    """reference.json, without its basis, and the sources with their charts fitted; pass rates go to
    `rates`.

    Raises:
        SettingsError: the scores can't carry the charts that the settings ask for.
    """
    dims = list(sources)
    ready: RewardSources = sources
    if any(s.needs_fit for group in sources.values() for s in group):
        ready = fitted(sources, _raw(found, sources))
    noise = Noise(dims)
    for m in found.in_order():
        anchors: Anchors = {}
        noise.n_rollouts += len(m.rollouts)
        first, again = (_by_rollout(side, ready, sources, anchors) for side in (m.first, m.again))
        for d in dims:
            values = [_reward(ready, d, first.get(i, {}), kappa) for i in range(len(m.rollouts))]
            noise.add_prompt(d, values)
            if rates is not None:
                rates.add_prompt(d, values)
            for i in m.repeated:
                noise.add(d, values[i], _reward(ready, d, again.get(i, {}), kappa))
    reference = noise.result(pass_thresholds, steps_of(ready))
    calibration_maps = {
        d: [{**c, "provisional": c["n"] < PROVISIONAL_UNDER} if "n" in c else c for c in group]
        for d, group in described(ready).items()
    }
    return {**reference, "calibration": calibration_maps}, ready


def _raw(
    found: Measurements, sources: RewardSources
) -> dict[tuple[str, int], list[list[float | None]]]:
    """Raw scores of each source, one list per prompt."""
    out: dict[tuple[str, int], list[list[float | None]]] = {}
    for m in found.in_order():
        columns = columns_of(m.first, sources)
        for key, column in columns.items():
            out.setdefault(key, []).append([s.raw for _, s in column])
    return out


def columns_of(
    scores: Sequence[tuple[int, Score]], sources: RewardSources
) -> dict[tuple[str, int], list[tuple[int, Score]]]:
    """Scores by source: they come source by source, each over the same rollouts."""
    keys = [(d, s.number) for d, group in sources.items() for s in group]
    n = len(scores) // max(len(keys), 1)
    return {key: list(scores[k * n : (k + 1) * n]) for k, key in enumerate(keys)}


def _by_rollout(
    scores: Sequence[tuple[int, Score]],
    ready: RewardSources,
    before: RewardSources,
    anchors: Anchors,
) -> dict[int, dict[str, list[Score]]]:
    """rollout -> dimension -> scores with their values; those of a chart that was fitted only now
    are mapped here."""
    out: dict[int, dict[str, list[Score]]] = {}
    for (d, number), column in columns_of(scores, ready).items():
        source = ready[d][number]
        plain = [s for _, s in column]
        if before[d][number].needs_fit:
            if source.kind == ANCHORED and (d, number) not in anchors:
                anchors[d, number] = anchor(source, [s.raw for s in plain])
            plain = calibrated(source, plain, len(plain), anchors)
        for (i, _), s in zip(column, plain, strict=True):
            out.setdefault(i, {}).setdefault(d, []).append(s)
    return out


def _reward(
    sources: RewardSources, d: str, scores: Mapping[str, Sequence[Score]], kappa: float | None
) -> float | None:
    value = combine_sources(sources[d], scores.get(d, []), kappa)
    return None if value is None else value.reward


def unreliable(reference: Mapping[str, Any], gamma: float) -> dict[str, dict[str, Any]]:
    """Dimensions whose scores are surely mostly noise: dimension -> reliability, its upper bound,
    n, sigma.

    Surely: rho is under 0.3 at the upper end of its 95 % interval, over LEAST_TWICE answers or
    more, and the noise is large enough to matter: two answers of equal worth would differ by gamma.
    A dimension where nothing varies and nothing is noisy is saturated, not unreliable.
    """
    out = {}
    for d, v in (reference.get("noise") or {}).items():
        upper = v.get("reliability_upper")
        apart = 2 * v["sigma"] / math.sqrt(math.pi)
        if (
            upper is not None
            and upper < LEAST_RELIABILITY
            and v["n"] >= LEAST_TWICE
            and apart >= gamma
        ):
            out[d] = {k: v[k] for k in ("reliability", "reliability_upper", "n", "sigma")}
    return out


def first_prompts(parts: Sequence[Partition], n: int) -> tuple[frozenset[str], list[Partition]]:
    """Ids of the first `n` mined prompts, and the partitions that hold them."""
    ids: list[str] = []
    used: list[Partition] = []
    for part in parts:
        if len(ids) >= n:
            break
        used.append(part)
        ids += [p.prompt_id for p in part.prompts()]
    return frozenset(ids[:n]), used


def judge_stats_of(tree: Mapping[str, Any]) -> JudgeStats:
    """The Reference of a reference.json."""
    return JudgeStats(
        {d: v["sigma"] for d, v in tree["noise"].items()},
        tree["floors"],
        tree.get("prior") or {},
        tree.get("mining") or {},
    )


def unmeasured(sources: RewardSources, pass_thresholds: Mapping[str, float]) -> dict[str, Any]:
    """The reference of a build without presamples: nothing was scored twice."""
    plain = Noise(list(sources)).result(pass_thresholds, dict.fromkeys(sources, 0.0))
    return {**plain, "calibration": described(sources)}


def usable_of(m: Measured) -> list[Rollout]:
    """The rollouts of a reference prompt that were scored."""
    return [r for r in m.rollouts if is_usable(r)]
