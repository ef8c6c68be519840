"""How many prompts go on: a threshold per stratum, frozen with the judges' statistics, so that a
prompt is judged without the others.

The method ranks the prompts that pass the rule by J = posterior mean of (dominance rate, then A_16)
and takes the lowest up to the budget. Ranking needs all prompts before the first is fused; so the
reference prompts are presampled in full first, the quantile of their J that meets the budget in
expectation is written to reference.json, and a prompt goes on if its own J is at most that. Where
several have the same J, a fixed draw by the prompt's id lets the right share through.

    "mining": {"pku": {"n": 200, "mined": 4000, "expected": 3100.0, "dominance_prior": [0.5, 9.1],
                       "joint_prior": [0.5, 2.0], "dominance": 0.0127, "joint": 0.31, "share": 0.4}}
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import SettingsError
from ..text import seed_of

if TYPE_CHECKING:
    from ..statistics.rollouts import PromptStats

UNITS = 1 << 31
K = 16

Score = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Mined:
    """A reference prompt with its decision."""

    prompt_id: str
    stratum: str
    stats: PromptStats


def joint_score(stats: PromptStats, dominance_prior: Score, joint_prior: Score) -> Score:
    """J = (posterior mean of the dominance rate, posterior mean of A_16), both in [0, 1]; low =
    little to be had at once.

    n answers make n / 2 pairs that share none, which is what the dominance rate is taken to rest
    on. A_16 under p ~ Beta(a, b) is 1 - prod_{i<16} (b + i) / (a + b + i).
    """
    pairs, (a, b) = stats.n // 2, dominance_prior
    dominance = (a + stats.dominance * pairs) / (a + b + pairs)
    a = joint_prior[0] + stats.joint * stats.n
    b = joint_prior[1] + (1 - stats.joint) * stats.n
    none = 1.0
    for i in range(K):
        none *= (b + i) / (a + b + i)
    return round(dominance, 12), round(1 - none, 12)


def fit_thresholds(
    reference: Sequence[Mined],
    n_mined: Mapping[str, int],
    budget: int | Mapping[str, int],
    accept: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Threshold per stratum from the reference prompts; only strata whose prompts don't all fit are
    in it.

    Args:
        n_mined: mined prompts per stratum.
        budget: prompts in all, shared in proportion to those that pass the rule; or prompts per
            stratum.
        accept: kinds that pass the rule.

    Raises:
        SettingsError: the budget names a stratum that was not mined.
    """
    if not isinstance(budget, int) and (unknown := sorted(set(budget) - set(n_mined))):
        raise SettingsError(
            f"presample.budget names stratum {unknown[0]!r}; the strata of the mined prompts are"
            f" {', '.join(sorted(n_mined))}"
        )
    groups = {s: [m for m in reference if m.stratum == s] for s in sorted(n_mined)}
    everywhere = _share(reference, accept)
    expected = {
        s: n * (_share(groups[s], accept) if groups[s] else everywhere) for s, n in n_mined.items()
    }
    whole = sum(expected.values())
    out: dict[str, dict[str, Any]] = {}
    for s, group in groups.items():
        n = whole if isinstance(budget, int) else expected[s]
        most = budget if isinstance(budget, int) else budget.get(s, n)
        wanted = most / n if n else 1.0
        if wanted < 1:
            out[s] = {
                "n": len(group),
                "mined": n_mined[s],
                "expected": round(expected[s], 3),
                **_threshold(group or reference, wanted, accept),
            }
    return out


def goes_on(
    mining: Mapping[str, Mapping[str, Any]], stratum: str, prompt_id: str, stats: PromptStats
) -> bool:
    """Whether a prompt that passes the rule is within its stratum's budget."""
    limit = mining.get(stratum)
    if limit is None:
        return True
    own = joint_score(stats, tuple(limit["dominance_prior"]), tuple(limit["joint_prior"]))
    most = (limit["dominance"], limit["joint"])
    return own < most or (own == most and is_drawn("budget", prompt_id, limit["share"]))


def is_drawn(what: str, prompt_id: str, share: float) -> bool:
    """A fixed draw of a share of the prompts."""
    return seed_of(what, prompt_id) < share * UNITS


def _share(group: Sequence[Mined], accept: Sequence[str]) -> float:
    return sum(m.stats.kind in accept for m in group) / len(group) if group else 0.0


def _threshold(group: Sequence[Mined], wanted: float, accept: Sequence[str]) -> dict[str, Any]:
    """The `wanted` quantile of J among those of the group that pass the rule."""
    import numpy as np

    from ..statistics.inference import moment_prior

    n = np.array([m.stats.n for m in group])
    dominance = np.array([m.stats.dominance for m in group])
    joint = np.array([m.stats.joint for m in group])
    priors = (
        moment_prior(np.rint(dominance * (n // 2)).astype(int), n // 2),
        moment_prior(np.rint(joint * n).astype(int), n),
    )
    scores = sorted(joint_score(m.stats, *priors) for m in group if m.stats.kind in accept)
    most, share = (1.0, 1.0), 1.0
    if scores:
        target = wanted * len(scores)
        most = scores[min(int(target), len(scores) - 1)]
        below, upto = bisect_left(scores, most), bisect_right(scores, most)
        share = (target - below) / (upto - below)
    return {
        "dominance_prior": list(priors[0]),
        "joint_prior": list(priors[1]),
        "dominance": most[0],
        "joint": most[1],
        "share": share,
    }
