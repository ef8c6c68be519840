"""How good the scores of a build are: noise, reliability, calibration maps and pass thresholds,
measured on the first prompts and frozen in reference.json before anything is judged by them.

    stats, sources = conclude(measured, sources, pass_thresholds, kappa)    of the first prompts
    stats.noise["helpful"].sigma            standard deviation of one score, in [0, 1]
    JudgeStats.from_json(stats.to_json())   as it stands in reference.json
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from ..run import JudgeNumbers
from ..text import seed_of
from ..types import Prompt, Rollout, Score
from .combine import (
    ANCHORED,
    Anchors,
    RewardSources,
    anchor,
    calibrated,
    combine,
    fit_maps,
    maps_as_json,
    stated_noise,
    steps_of,
)

PROVISIONAL_UNDER = 1000
REPEAT_UNIT = 10_000
LEAST_RELIABILITY = 0.3
LEAST_TWICE = 30  # answers scored twice, under which a reliability refuses nothing
MANY_TIES = 0.75  # share of equal scores from which a user is told
Z95 = 1.6448536269514722  # one-sided 95 %

CalibrationMaps = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one dimension's scores.

    Attributes:
        sigma: standard deviation of one score, in [0, 1]; half a step of the scale where nobody
            was scored twice, and what the settings state where that is larger.
        n: answers scored twice.
        measured: whether any was.
        reliability: rho = 1 - sigma^2 / Var_within; None where unknown.
        reliability_upper: upper end of its one-sided 95 % interval.
        ties: share of the pairs of answers to one prompt that got one score; None where unknown.
        pairs: of which it is the share.
    """

    sigma: float
    n: int
    measured: bool
    reliability: float | None
    reliability_upper: float | None
    ties: float | None = None
    pairs: int = 0


@dataclass(frozen=True, slots=True)
class JudgeStats:
    """Dataset-wide quantities, frozen before the first partition (reference.json).

    Attributes:
        noise: per dimension.
        pass_thresholds: per dimension, in [0, 1].
        calibration: calibration maps per dimension, one per reward source.
        n_rollouts: answers that they rest on; `provisional` under 1,000.
        prior: per dimension, how pass rates spread over prompts (`statistics.rollouts`); empty:
            not measured.
        mining: threshold per stratum (`prompts.budget`); empty: no budget.
        before_share: of the prompts, those asked for the numbers before fusion.
        harm_guard: what the harm check did to worked examples (`rewriting.guard_trial`); empty: not
            tried.
        cache_key: of the settings that they rest on; None: something was missing, so the next run
            measures again.
    """

    noise: Mapping[str, Noise]
    pass_thresholds: Mapping[str, float]
    calibration: CalibrationMaps
    n_rollouts: int = 0
    provisional: bool = True
    prior: Mapping[str, Sequence[float]] = field(default_factory=dict)
    mining: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    before_share: float = 1.0
    harm_guard: Mapping[str, Any] = field(default_factory=dict)
    cache_key: str | None = None

    def sigma(self, dimension: str) -> float:
        """Noise of a dimension; 0 where it is not known."""
        return self.noise[dimension].sigma if dimension in self.noise else 0.0

    def least_margins(self, dims: Sequence[str], steps: Mapping[str, float]) -> list[float]:
        """Smallest margin per dimension that is more than noise: 2 sqrt(2) sigma, and half a step
        of the scale."""
        return [max(2 * 2**0.5 * self.sigma(d), steps[d] / 2) for d in dims]

    def unreliable(self, gamma: float) -> dict[str, dict[str, Any]]:
        """Dimensions whose scores are surely mostly noise, with what was measured of them.

        Surely: rho is under 0.3 at the upper end of its 95 % interval, over LEAST_TWICE answers or
        more, and the noise is large enough to matter: two answers of equal worth would differ by
        gamma. A dimension where nothing varies and nothing is noisy is saturated, not unreliable.
        """
        return {
            d: {
                "reliability": v.reliability,
                "reliability_upper": v.reliability_upper,
                "n": v.n,
                "sigma": v.sigma,
            }
            for d, v in self.noise.items()
            if v.reliability_upper is not None
            and v.reliability_upper < LEAST_RELIABILITY
            and v.n >= LEAST_TWICE
            and 2 * v.sigma / math.sqrt(math.pi) >= gamma
        }

    def doubts(self) -> list[str]:
        """What a user should know before more is paid for: sentences, each with what to do."""
        level = [
            f"The scores of {d} tell little apart: {v.ties:.0%} of {v.pairs} pairs of answers to"
            " one prompt got the same score, so few preference pairs can come of it. Take a"
            " stronger judge, another rubric or scores by probabilities"
            f" (rewards.{d}[].expected), or leave {d} out of dimensions."
            for d, v in self.noise.items()
            if v.ties is not None and v.ties >= MANY_TIES and v.pairs >= LEAST_TWICE
        ]
        level += [
            f"The scores of {d} never change: {v.n} answers that were scored twice got the same"
            " score, so that the smallest difference counts as one. Say how far they can be trusted"
            f" (rewards.{d}[].noise, as 0.05 on the scale of 0 to 1)."
            for d, v in self.noise.items()
            if v.sigma == 0 and v.reliability is not None and v.n >= LEAST_TWICE
        ]
        doubt = self.harm_guard.get("doubt")
        return [*level, doubt] if doubt else level

    def to_json(self) -> dict[str, Any]:
        """The tree of reference.json."""
        tree: dict[str, Any] = {
            "basis": self.cache_key,
            "n_rollouts": self.n_rollouts,
            "provisional": self.provisional,
            "noise": {d: asdict(v) for d, v in self.noise.items()},
            "floors": dict(self.pass_thresholds),
            "calibration": {d: [dict(m) for m in maps] for d, maps in self.calibration.items()},
        }
        more = {"prior": self.prior, "mining": self.mining, "harm_guard": self.harm_guard}
        drawn = {"before_share": self.before_share} if self.before_share < 1 else {}
        doubts = {"doubts": found} if (found := self.doubts()) else {}
        return {**tree, **{k: dict(v) for k, v in more.items() if v}, **drawn, **doubts}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> JudgeStats:
        """The value of a reference.json."""
        return cls(
            {d: Noise(**v) for d, v in tree["noise"].items()},
            tree["floors"],
            tree["calibration"],
            tree["n_rollouts"],
            tree["provisional"],
            tree.get("prior") or {},
            tree.get("mining") or {},
            tree.get("before_share", 1.0),
            tree.get("harm_guard") or {},
            tree.get("basis"),
        )

    def published(self) -> JudgeNumbers:
        """As the manifest has it: one mapping by dimension for each quantity."""
        if not self.noise:
            return {}
        tree = self.to_json()
        columns = (
            ("noise", "sigma"),
            ("reliability", "reliability"),
            ("reliability_upper", "reliability_upper"),
            ("scored_twice", "n"),
            ("noise_measured", "measured"),
        )
        by = {name: {d: getattr(v, key) for d, v in self.noise.items()} for name, key in columns}
        kept = ["floors", "n_rollouts", "provisional", "mining", "before_share", "calibration"]
        kept += ["harm_guard", "doubts"]
        return cast(JudgeNumbers, {**by, **{k: tree[k] for k in kept if k in tree}})


@dataclass(slots=True)
class Measured:
    """One reference prompt: its rollouts with their scores, and the scores of those that were
    scored again."""

    prompt: Prompt
    rollouts: list[Rollout]
    first: list[tuple[int, Score]]
    again: list[tuple[int, Score]]
    repeated: list[int]

    @property
    def usable(self) -> list[Rollout]:
        """The rollouts that can be scored, each text once."""
        return [r for r in self.rollouts if r.is_usable]


def is_repeated(prompt_id: str, index: int, share: float) -> bool:
    """Whether a reference rollout is scored twice: a fixed draw by its name."""
    return seed_of("repeat", prompt_id, index) % REPEAT_UNIT < share * REPEAT_UNIT


def retest_noise(squares: Sequence[float]) -> float | None:
    """sigma_d from squared differences of two scores of one answer; None without any."""
    return math.sqrt(math.fsum(squares) / len(squares) / 2) if squares else None


def noise_of(
    by_prompt: Sequence[Sequence[float | None]],
    twice: Sequence[tuple[float | None, float | None]],
    step: float,
    stated: float = 0.0,
) -> Noise:
    """The noise of one dimension, `stated` at least: the scores of each prompt's answers, both
    scores of those that were scored twice, and the resolution of the scale.

    sigma_d^2 = mean (s1 - s2)^2 / 2; rho_d = 1 - sigma_d^2 / Var_within (docs/method.md, Noise and
    reliability). Exact sums, as the order in which prompts finish must not show.
    """
    squares = [(a - b) ** 2 for a, b in twice if a is not None and b is not None]
    within: list[tuple[float, int]] = []  # sum of squares and degrees of freedom of each prompt
    n_pairs = n_ties = 0
    for values in by_prompt:
        there = [v for v in values if v is not None]
        if len(there) > 1:
            mean = math.fsum(there) / len(there)
            within.append((math.fsum((v - mean) ** 2 for v in there), len(there) - 1))
        n_pairs += math.comb(len(there), 2)
        n_ties += sum(math.comb(n, 2) for n in Counter(there).values())
    measured = retest_noise(squares)
    sigma = max(step / 2 if measured is None else measured, stated)
    freedom = sum(f for _, f in within)
    variance = math.fsum(s for s, _ in within) / freedom if freedom else None
    known = measured is not None and bool(variance)
    return Noise(
        sigma,
        len(squares),
        measured is not None,
        1 - sigma**2 / variance if measured is not None and variance else None,
        _upper(squares, within) if known else None,
        n_ties / n_pairs if n_pairs else None,
        n_pairs,
    )


def _upper(squares: Sequence[float], within: Sequence[tuple[float, int]]) -> float:
    """Upper end of the one-sided 95 % interval of rho, by the delta method on log(sigma^2 /
    Var), prompts as clusters.

    No normal scores are assumed: both variances of the log come from the spread of the squares
    themselves.
    """
    mean = math.fsum(squares) / len(squares)
    if mean == 0:
        return 1.0
    spread = math.fsum((s - mean) ** 2 for s in squares) / max(len(squares) - 1, 1)
    relative = spread / len(squares) / mean**2
    total, freedom = math.fsum(s for s, _ in within), sum(f for _, f in within)
    ratio = total / freedom
    deviations = math.fsum((s - ratio * f) ** 2 for s, f in within)
    relative += len(within) / max(len(within) - 1, 1) * deviations / total**2
    return 1 - mean / 2 / ratio * math.exp(-Z95 * math.sqrt(relative))


def spread_of_pass_rates(
    by_prompt: Sequence[Sequence[float | None]], pass_threshold: float
) -> list[float]:
    """`rate_prior` of one dimension, whatever the order in which the prompts came."""
    import numpy as np

    from ..statistics.rollouts import rate_prior

    scored = [[v for v in values if v is not None] for values in by_prompt]
    passes = sorted(
        (sum(v >= pass_threshold - 1e-9 for v in there), len(there)) for there in scored
    )
    counts = np.array(passes, dtype=int).reshape(-1, 2)
    return [round(float(x), 9) for x in rate_prior(counts[:, 0], counts[:, 1])]


def conclude(
    measured: Sequence[Measured],
    sources: RewardSources,
    pass_thresholds: Mapping[str, float],
    kappa: float | None,
    with_prior: bool = False,
) -> tuple[JudgeStats, RewardSources]:
    """What the reference prompts show, and the sources with their calibration maps fitted;
    `with_prior`: also how pass rates spread over prompts.

    Raises:
        SettingsError: the scores can't carry the maps that the settings ask for.
    """
    dims = list(sources)
    ready: RewardSources = sources
    if any(s.needs_fit for group in sources.values() for s in group):
        ready = fit_maps(sources, _raw_scores(measured, sources))
    by_prompt: dict[str, list[list[float | None]]] = {d: [] for d in dims}
    twice: dict[str, list[tuple[float | None, float | None]]] = {d: [] for d in dims}
    n_rollouts = 0
    for m in measured:
        anchors: Anchors = {}
        n_rollouts += len({i for i, _ in m.first})
        first, again = (_by_rollout(side, ready, sources, anchors) for side in (m.first, m.again))
        for d in dims:
            values = [_reward(ready, d, first.get(i, {}), kappa) for i in range(len(m.rollouts))]
            by_prompt[d].append(values)
            twice[d] += [
                (values[i], _reward(ready, d, again.get(i, {}), kappa)) for i in m.repeated
            ]
    steps, stated = steps_of(ready), stated_noise(ready)
    maps = {
        d: [{**c, "provisional": c["n"] < PROVISIONAL_UNDER} if "n" in c else c for c in group]
        for d, group in maps_as_json(ready).items()
    }
    stats = JudgeStats(
        {d: noise_of(by_prompt[d], twice[d], steps[d], stated[d]) for d in dims},
        pass_thresholds,
        maps,
        n_rollouts,
        n_rollouts < PROVISIONAL_UNDER,
        {d: spread_of_pass_rates(by_prompt[d], pass_thresholds[d]) for d in dims}
        if with_prior
        else {},
    )
    return stats, ready


def unmeasured(sources: RewardSources, pass_thresholds: Mapping[str, float]) -> JudgeStats:
    """The statistics of a build without presamples: nothing was scored twice."""
    noise = {d: noise_of([], [], 0.0, stated) for d, stated in stated_noise(sources).items()}
    return JudgeStats(noise, pass_thresholds, maps_as_json(sources))


def columns_of(
    scores: Sequence[tuple[int, Score]], sources: RewardSources
) -> dict[tuple[str, int], list[tuple[int, Score]]]:
    """Scores by source: they come source by source, each over the same rollouts."""
    keys = [(d, s.number) for d, group in sources.items() for s in group]
    n = len(scores) // max(len(keys), 1)
    return {key: list(scores[k * n : (k + 1) * n]) for k, key in enumerate(keys)}


def _raw_scores(
    measured: Sequence[Measured], sources: RewardSources
) -> dict[tuple[str, int], list[list[float | None]]]:
    """Raw scores of each source, one list per prompt."""
    out: dict[tuple[str, int], list[list[float | None]]] = {}
    for m in measured:
        for key, column in columns_of(m.first, sources).items():
            out.setdefault(key, []).append([s.raw for _, s in column])
    return out


def _by_rollout(
    scores: Sequence[tuple[int, Score]],
    ready: RewardSources,
    before: RewardSources,
    anchors: Anchors,
) -> dict[int, dict[str, list[Score]]]:
    """rollout -> dimension -> scores with their values; those of a map that was fitted only now are
    mapped here."""
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
    value = combine(sources[d], scores.get(d, []), kappa)
    return None if value is None else value.reward
