"""Whether fused prompts expand what the policy reaches: METHOD 3.1's verdict line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .inference import Sums, bootstrap_of, by_cluster, holm, sign_flip_test

if TYPE_CHECKING:
    from numpy.typing import NDArray

Line = Literal["supports expansion", "not supported", "inconclusive"]
CONTROLS = ("identity", "single", "generic")
LEAST_GAIN = 0.02
# (1 - 0.02)^n <= 0.025: with fewer, a gain of 0.02 that sits in few prompts can be missed
# altogether
LEAST_PROMPTS = 183
MOST_LENGTH_GAP = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """Fused against one control in one primary metric.

    Attributes:
        n: prompts that have the metric in both arms.
        gain: mean paired difference, fused minus control; None without prompts.
        low: lower end of its 95 % percentile interval.
        high: upper end.
        p: two-sided sign-flip p, adjusted by Holm over all comparisons.
    """

    metric: str
    control: str
    n: int
    gain: float | None
    low: float | None
    high: float | None
    p: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The line, why, and the comparisons that it rests on.

    Attributes:
        over_best: per metric, ends of the 95 % interval of fused minus best control (see
            `_over_best`); None where it can't be had.
    """

    line: Line
    reason: str
    comparisons: tuple[Comparison, ...]
    over_best: dict[str, tuple[float, float] | None]


def verdict(
    arms: Mapping[str, NDArray[np.float64]],
    metrics: Sequence[str],
    length_gaps: Mapping[str, float],
    *,
    draws: int = 2000,
    flips: int = 10_000,
    seed: int = 0,
) -> Verdict:
    """The verdict on the primary metrics (dominance rate and joint pass A_k).

    "supports expansion": fused beats identity, single and generic in every metric with
    Holm-adjusted p < 0.05, and the length-matched arms are matched. "not supported": in some metric
    the interval of fused minus best control ends below 0.02 and rests on at least 183 prompts (this
    goes first: a gain that small is no expansion, however sure). Else "inconclusive".

    Args:
        arms: "fused" and each control: values_P_M, one row per source prompt, the same prompts in
            every arm, NaN for none.
        metrics: names of the M columns.
        length_gaps: per control but identity, mean of log(length of its prompt / of the fused
            prompt) over paired prompts.
    """
    missing = [a for a in ("fused", *CONTROLS) if a not in arms]
    if missing:
        return Verdict(
            "inconclusive", f"no values of {', '.join(missing)}", (), dict.fromkeys(metrics)
        )
    return verdict_of(Gains.of(arms), metrics, length_gaps, draws=draws, flips=flips, seed=seed)


@dataclass(frozen=True, slots=True)
class Gains:
    """Fused minus each control, in the order of CONTROLS, metrics side by side: by cluster of
    prompts (one or a batch of them).

    Attributes:
        paired: over the prompts that have both arms.
        common: over the prompts that have all of them.
    """

    paired: Sums
    common: Sums

    @classmethod
    def of(cls, arms: Mapping[str, NDArray[np.float64]]) -> Gains:
        """A cluster for each prompt."""
        return cls(*(Sums(*by_cluster(d)) for d in differences(arms)))


def differences(
    arms: Mapping[str, NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(paired, common) of `Gains`, one row per prompt, NaN where an arm that counts is missing."""
    stacked = np.stack([arms[a] for a in ("fused", *CONTROLS)])
    common = np.where(np.isnan(stacked).any(0), np.nan, stacked)
    return np.hstack(list(stacked[0] - stacked[1:])), np.hstack(list(common[0] - common[1:]))


def verdict_of(
    gains: Gains,
    metrics: Sequence[str],
    length_gaps: Mapping[str, float],
    *,
    draws: int = 2000,
    flips: int = 10_000,
    seed: int = 0,
) -> Verdict:
    """`verdict` from gains that are added up already."""
    comparisons = _comparisons(gains.paired, metrics, draws, flips, seed)
    over_best = _over_best(gains.common, metrics, draws, seed)
    small = [m for m in metrics if (ends := over_best[m]) is not None and ends[1] < LEAST_GAIN]
    unmatched = [c for c in CONTROLS[1:] if not abs(length_gaps.get(c, np.nan)) <= MOST_LENGTH_GAP]
    weak = [
        f"{_said(c.metric)} over {c.control}"
        for c in comparisons
        if not (c.p < 0.05 and c.gain is not None and c.gain > 0)
    ]
    n = min(c.n for c in comparisons)
    if small and n >= LEAST_PROMPTS:
        return Verdict(
            "not supported",
            f"the gain over the best control is below {LEAST_GAIN} in {_all(small)}",
            comparisons,
            over_best,
        )
    if weak or small:
        few = f" ({n} prompts, too few to tell whether there is none)" if n < LEAST_PROMPTS else ""
        return Verdict(
            "inconclusive",
            f"there is no sure gain in {', '.join(weak) or _all(small)}{few}",
            comparisons,
            over_best,
        )
    if unmatched:
        return Verdict(
            "inconclusive",
            f"the prompts of {' and '.join(unmatched)} do not match the fused ones in length",
            comparisons,
            over_best,
        )
    return Verdict(
        "supports expansion",
        "fused beats every control in every primary metric",
        comparisons,
        over_best,
    )


def _all(metrics: Sequence[str]) -> str:
    return " and ".join(map(_said, metrics))


def _said(metric: str) -> str:
    return metric.replace("_", " ")


def _comparisons(
    gains: Sums, metrics: Sequence[str], draws: int, flips: int, seed: int
) -> tuple[Comparison, ...]:
    boot = bootstrap_of(gains, draws, seed)
    low, high = boot.percentile()
    p = holm(sign_flip_test(gains.sums_C_M, flips, seed))
    n_M = gains.numbers_C_M.sum(0)
    names = [(m, c) for c in CONTROLS for m in metrics]
    return tuple(
        Comparison(
            m,
            c,
            int(n_M[i]),
            _number(boot.estimate_M[i]),
            _number(low[i]),
            _number(high[i]),
            float(p[i]),
        )
        for i, (m, c) in enumerate(names)
    )


def _over_best(
    gains: Sums, metrics: Sequence[str], draws: int, seed: int
) -> dict[str, tuple[float, float] | None]:
    """Interval of fused minus the best control, that is of the smallest of its gains, over prompts
    that all arms have.

    The lower end is the smallest of the gains' BCa lower ends (2.5 %). The upper end is the
    smallest of their upper ends, each at 2.5 % shared among the controls (Bonferroni): the smallest
    of several estimates lies too low, and an interval round it ended below a true gain of 0.02 in
    up to 17 % of simulations (tests/unit/test_verdict_errors.py).
    """
    boot = bootstrap_of(gains, draws, seed)
    low, _ = boot.bca(0.95)
    _, high = boot.bca(1 - 0.05 / len(CONTROLS))
    out: dict[str, tuple[float, float] | None] = {}
    for j, m in enumerate(metrics):
        ends = low[j :: len(metrics)].min(), high[j :: len(metrics)].min()
        out[m] = (float(ends[0]), float(ends[1])) if np.all(np.isfinite(ends)) else None
    return out


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
