"""The arms against each other: each metric with its interval, the paired differences, the verdict,
and the figures of their answers. Before that, at the end of a build, whether controls are as long
as fused prompts (`arms_audit`)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import combinations, groupby
from typing import TypedDict, cast

import numpy as np

from ..run.partitions import Partition, row_tuples
from ..statistics import Ints
from ..statistics.inference import (
    CONTROLS,
    MOST_LENGTH_GAP,
    Sums,
    Verdict,
    bootstrap_of,
    verdict_of,
)
from ..text import commonest_first, n_tokens
from .gather import CELLS, GRADES, LEVELS, Gathered, compared_metrics, ks_of, plane_pairs
from .measure import PRIMARY, Added, is_rate, metric_names
from .texts import diversity, entropy
from .values import (
    AnswerFigures,
    ArmDifference,
    ArmNumbers,
    ControlGain,
    DimensionPair,
    Estimate,
    MinedPrompts,
    Plane,
    Profile,
    ProfilePoint,
    PromptLength,
    Repeats,
    RewardLevels,
    Rewrites,
    Shrinkage,
    cell,
    estimates,
    rounded,
    share,
)

ORDER = ("before", "identity", "concat", "single", "generic", "random", "fused")
DRAWS = 2000
FLIPS = 10_000


class LengthAudit(TypedDict):
    """Of one control: over `n` prompts that have both, mean and largest log(tokens / tokens of the
    fused prompt); None where there is nothing to compare."""

    n: int
    mean_log_gap: float | None
    worst: float | None
    matched: bool | None


def arms_audit(parts: Iterable[Partition], arms: Sequence[str]) -> dict[str, LengthAudit]:
    """Whether the prompts of each control match the fused ones in length, prompt by prompt."""
    gaps: dict[str, list[float]] = {arm: [] for arm in arms}
    for part in parts:
        table = part.table("fusions", ["prompt_id", "arm", "accepted", "text"])
        table = table.filter(table.column("accepted"))
        for _, tries in groupby(row_tuples(table, "prompt_id", "arm", "text"), lambda r: r[0]):
            length = {arm: n_tokens(text) for _, arm, text in tries}
            for arm in arms:
                if arm in length and "fused" in length:
                    gaps[arm].append(math.log(length[arm] / length["fused"]))
    return {arm: _length_audit(g) for arm, g in gaps.items()}


def _length_audit(gaps: Sequence[float]) -> LengthAudit:
    if not gaps:
        return {"n": 0, "mean_log_gap": None, "worst": None, "matched": None}
    mean = math.fsum(gaps) / len(gaps)
    return {
        "n": len(gaps),
        "mean_log_gap": mean,
        "worst": max(map(abs, gaps)),
        "matched": abs(mean) <= MOST_LENGTH_GAP,
    }


def in_arm_order(arms: Iterable[str]) -> list[str]:
    """Arms as they are shown: what was there before, controls, then fused."""
    return sorted(arms, key=lambda a: (ORDER.index(a) if a in ORDER else len(ORDER) - 1.5, a))


def arms_of(
    g: Gathered, seed: int
) -> tuple[dict[str, ArmNumbers], list[ArmDifference], dict[str, Estimate] | None]:
    """Every arm's metrics, their paired differences, and the coverage of fused and identity."""
    found, metrics = in_arm_order(g.values), metric_names(g.scale.dims)
    pairs, shown = _subtracted(g, found), compared_metrics(g.scale.dims)
    none = Added(len(shown))
    stacked = Sums.beside(
        [
            *(g.sums(g.values[a]) for a in found),
            *(g.sums(g.differences.get(p, none)) for p in pairs),
            g.sums(g.coverage),
        ]
    )
    at, n_M = len(found) * len(metrics), stacked.numbers_C_M.sum(0)
    rates = np.tile([is_rate(m) for m in metrics], len(found))
    rates = np.concatenate([rates, np.zeros(len(n_M) - at, bool)])
    cells = estimates(bootstrap_of(stacked, DRAWS, seed), rates, n_M)
    of_arms = iter(cells[:at])
    arms: dict[str, ArmNumbers] = {
        arm: {
            "n": g.n_arm[arm],
            "metrics": {m: next(of_arms) for m in metrics},
            "prompt_length": _prompt_length(g, arm, seed),
        }
        for arm in found
    }
    names = [(a, b, m) for a, b in pairs for m in shown]
    differences: list[ArmDifference] = [
        {"arm": a, "minus": b, "metric": m, **c}
        for (a, b, m), c in zip(names, cells[at:], strict=False)
    ]
    coverage = {"fused_over_identity": cells[-2], "identity_over_fused": cells[-1]}
    return arms, differences, coverage if cells[-2]["n"] else None


def _subtracted(g: Gathered, found: list[str]) -> list[tuple[str, str]]:
    """Which arms are subtracted: each from what was before, and from fused each control."""
    base = g.before
    pairs = [(a, base) for a in found if base and a != base]
    return pairs + [("fused", a) for a in found if "fused" in found and a not in ("fused", base)]


def _prompt_length(g: Gathered, arm: str, seed: int) -> PromptLength:
    gaps = g.sums(g.gaps.get(arm, Added(1)))
    boot = bootstrap_of(gaps, DRAWS, seed)
    low, high = boot.percentile()
    total, n = g.words[arm]
    return {
        "words": rounded(total / n),
        "log_ratio_to_fused": rounded(boot.estimate_M[0]),
        "low": rounded(low[0]),
        "high": rounded(high[0]),
        "n": int(gaps.numbers_C_M.sum()),
    }


def verdict_on(g: Gathered, seed: int) -> Verdict:
    """Whether fusion helped; `inconclusive`, without comparisons, where arms are missing."""
    missing = [a for a in ("fused", *CONTROLS) if a not in g.values]
    if missing:
        none = "fused" in g.values and len(missing) == len(CONTROLS)
        lacks = "control arms" if none else f"arm {', '.join(missing)}"
        reason = f"not tested, this run has no {lacks}: build with --arms all"
        return Verdict("inconclusive", reason, (), {})
    gains = g.sums(g.gains[0]), g.sums(g.gains[1])
    return verdict_of(gains, list(PRIMARY), _length_gaps(g), draws=DRAWS, flips=FLIPS, seed=seed)


def control_gains(verdict: Verdict) -> list[ControlGain]:
    """`comparisons` of report.json."""
    found = (asdict(c).items() for c in verdict.comparisons)
    rows = [{k: rounded(v) if isinstance(v, float) else v for k, v in row} for row in found]
    return cast(list[ControlGain], rows)


def _length_gaps(g: Gathered) -> dict[str, float]:
    """Mean log(length of a control's prompt / of the fused one) over prompts that have both."""
    gaps = {a: g.sums(g.gaps[a]) for a in CONTROLS[1:] if a in g.gaps}
    return {
        a: float(s.sums_C_M.sum() / s.numbers_C_M.sum())
        for a, s in gaps.items()
        if s.numbers_C_M.any()
    }


def mined_prompts(g: Gathered) -> MinedPrompts:
    """Kinds, classes, categories, diversity of each arm's prompts, values of the checks."""
    arms = ["source", *in_arm_order(a for a in g.texts if a != "source")]
    return {
        "n": g.n,
        "kinds": commonest_first(g.kind),
        "carried": commonest_first(g.carried),
        "categories": commonest_first(g.category),
        "category_entropy": entropy(list(g.category.values())),
        "diversity": {a: diversity(g.texts[a]) for a in arms},
        "checks": {
            arm: {
                check: {"mean": rounded(total / n), "n": n}
                for (a, check), (total, n) in sorted(g.checks.items())
                if a == arm
            }
            for arm in in_arm_order({a for a, _ in g.checks})
        },
    }


def answer_figures(g: Gathered, n_each: int, seed: int) -> AnswerFigures:
    """Best-of-k profile, reward distributions, the plane of two rewards, the funnel of the
    rewrites, first against second scores, what margins keep."""
    return {
        "profile": _profile(g, n_each, seed),
        "rewards": _rewards(g),
        "planes": {
            "pairs": [_plane(g, p, i, j) for p, (i, j) in enumerate(plane_pairs(g.scale.dims))]
        },
        "correlations": _correlations(g, seed),
        "funnel": _funnel(g),
        "repeats": {d: _repeats(c) for d, c in g.repeats.items() if c.sum()},
        "margins": {"shrinkage": _shrinkage(g)},
    }


def _shrinkage(g: Gathered) -> Shrinkage | None:
    """Mean margin of each prompt's best pair as selected and as scored once more, before any was
    dropped for it."""
    total, n = g.candidates
    if not n:
        return None
    first, second = total / n
    return {
        "n": n,
        "ratio": rounded(second.sum() / first.sum()) if first.sum() else None,
        "by_dimension": {
            d: {"selected": rounded(first[j]), "confirmed": rounded(second[j])}
            for j, d in enumerate(g.scale.dims)
        },
    }


def _profile(g: Gathered, n_each: int, seed: int) -> Profile:
    """Per class of prompts and arm, best-of-k grades of the first dimension and pass rates of the
    others.

    A class is the dimension that a prompt carries. Only prompts with enough scored answers for the
    largest k count.
    """
    arms = [a for a in (g.before, "fused") if a in g.values] or in_arm_order(g.values)[:1]
    ks, others = ks_of(n_each), g.scale.dims[1:]
    width = len(GRADES) + 2 * len(others)
    profile: Profile = {"graded": g.scale.dims[0], "passed": list(others), "panels": []}
    for group in [d for d in g.scale.dims if g.carried[d]] or [""]:
        for arm in arms:
            added = g.profile.get((group, arm))
            if added is None or not added.n:
                continue
            sums = g.sums(added, group)
            n_M = sums.numbers_C_M.sum(0)
            cells = estimates(bootstrap_of(sums, 500, seed), np.ones(len(n_M), bool), n_M)
            points: list[ProfilePoint] = []
            for i, k in enumerate(ks):
                at_k = cells[i * width : (i + 1) * width]
                passes = at_k[len(GRADES) :]
                points.append(
                    {
                        "k": k,
                        "n": at_k[0]["n"],
                        "grades": _grade_shares([c["value"] for c in at_k[: len(GRADES)]]),
                        "any_pass": dict(zip(others, passes[::2], strict=True)),
                        "all_pass": dict(zip(others, passes[1::2], strict=True)),
                    }
                )
            profile["panels"].append(
                {"class": group or "all prompts", "arm": arm, "points": points}
            )
    return profile


def _grade_shares(cumulative: Sequence[float | None]) -> list[float] | None:
    """Shares of the grades from P(best <= grade)."""
    known = [c for c in cumulative if c is not None]
    if len(known) < len(cumulative):
        return None
    return [rounded(max(s, 0.0)) or 0.0 for s in np.diff([0.0, *known, 1.0])]


def _rewards(g: Gathered) -> RewardLevels:
    """Share of answers per reward level, mean over prompts; with the distance of each arm from what
    was before."""
    arms: dict[str, dict[str, list[float | None]]] = {}
    for arm in in_arm_order(g.levels):
        total, _ = g.levels[arm]
        share_L_D = total / np.maximum(total.sum(0), 1e-9)
        arms[arm] = {d: [rounded(v) for v in share_L_D[:, j]] for j, d in enumerate(g.scale.dims)}
    base = arms.get(g.before or "")
    moved = (
        {}
        if base is None
        else {
            arm: {d: _wasserstein(levels[d], base[d]) for d in g.scale.dims}
            for arm, levels in arms.items()
            if arm != g.before
        }
    )
    return {
        "levels": [rounded(i / (LEVELS - 1)) for i in range(LEVELS)],
        "arms": arms,
        "wasserstein_to_before": moved,
    }


def _wasserstein(a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
    gap = np.array(a, float) - np.array(b, float)
    return rounded(np.abs(np.cumsum(gap))[:-1].sum() / (LEVELS - 1))


def _plane(g: Gathered, p: int, i: int, j: int) -> Plane:
    """Share of answers per cell of two rewards, and the staircase that one answer in four
    reaches."""
    plane: Plane = {"x": g.scale.dims[i], "y": g.scale.dims[j], "cells": CELLS, "arms": {}}
    for arm in in_arm_order(g.planes):
        cells = g.planes[arm][p] / max(g.planes[arm][p].sum(), 1e-9)
        # share with both rewards at least those of the cell
        reach = np.flip(np.flip(cells).cumsum(0).cumsum(1))
        plane["arms"][arm] = {
            "cells": [[rounded(v) for v in row] for row in cells],
            "staircase": [
                int(at.max()) if (at := np.flatnonzero(row >= 0.25)).size else -1 for row in reach
            ],
        }
    return plane


def _correlations(g: Gathered, seed: int) -> list[DimensionPair]:
    """How far the rewards of two dimensions go together over the answers to one prompt, for each
    pair and arm; the same for the margins of all pairs of a prompt's answers."""
    found: list[DimensionPair] = []
    for arm in in_arm_order(g.moments):
        sums = g.sums(g.moments[arm])
        boot = bootstrap_of(sums, 1000, seed)
        means_B_M = np.vstack([boot.estimate_M, boot.draws_B_M])
        for p, (x, y) in enumerate(combinations(g.scale.dims, 2)):
            xy, xx, yy = means_B_M[:, 3 * p : 3 * p + 3].T
            r = xy / np.sqrt(np.where(xx * yy > 1e-18, xx * yy, np.nan))
            low, high = np.nanquantile(r, (0.025, 0.975)) if np.isfinite(r[0]) else (None, None)
            n = sums.numbers_C_M[:, 3 * p].sum()
            found.append({"x": x, "y": y, "arm": arm, **cell(r[0], low, high, n)})
    return found


def _funnel(g: Gathered) -> Rewrites:
    """Rewrites per arm: accepted, or the first check that the last try failed; and the accepted
    share per category."""
    total = {arm: sum(by.values(), Counter()) for arm, by in g.rewrites.items()}
    return {
        "arms": {
            a: {
                "tried": total[a].total(),
                "accepted": share(total[a][""], total[a].total()),
                "failed": commonest_first({k: n for k, n in total[a].items() if k}),
                "tries": {str(k): n for k, n in sorted(g.tries.get(a, Counter()).items())},
            }
            for a in in_arm_order(total)
        },
        "by_category": {
            a: {
                c: {
                    "accepted": share(n[""], n.total()),
                    "refused": share(n["rewriter_refusal"], n.total()),
                }
                for c, n in sorted(by.items(), key=lambda kv: (-kv[1].total(), kv[0]))
            }
            for a, by in sorted(g.rewrites.items())
        },
    }


def _repeats(counts: Ints) -> Repeats:
    """First against second scores, with weighted kappa (squared distance)."""
    n = int(counts.sum())
    levels = np.arange(len(counts))
    weight = (levels[:, None] - levels) ** 2
    chance = (weight * np.outer(counts.sum(1), counts.sum(0)) / n).sum()
    return {
        "counts": counts.tolist(),
        "n": n,
        "same": share(int(np.trace(counts)), n),
        "kappa": rounded(1 - (weight * counts).sum() / chance) if chance else None,
    }
