"""The arms against each other. One pass over the partitions gathers the sums that the figures need;
nothing is kept by prompt but what the clusters need. From them: each metric with its interval, the
paired differences, the verdict, and the figures of the answers. Before that, at the end of a build,
whether controls are as long as fused prompts (`arms_audit`)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..run import LengthAudit
from ..run.partitions import Partition, row_tuples
from ..statistics import Bools, Floats, Ints
from ..statistics import rollouts as st
from ..statistics.inference import (
    CONTROLS,
    MOST_LENGTH_GAP,
    Comparison,
    Sums,
    Verdict,
    bootstrap_of,
    gains_by_prompt,
    verdict_of,
)
from ..text import commonest_first, n_tokens
from .measure import (
    BATCHES,
    BEFORE,
    MOST,
    PRIMARY,
    ArmBlock,
    Block,
    Scale,
    cluster_batch,
    is_rate,
    measure,
    metric_names,
)
from .pairs import diversity, entropy
from .values import (
    AnswerFigures,
    ArmDifference,
    ArmNumbers,
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

LEVELS = 21  # bins of a reward in [0, 1], centred on 0, 0.05, ..., 1
CELLS = 9  # bins of each side of a reward plane
GRADES = np.array([0.125, 0.375, 0.625, 0.875])  # between the judge's five levels
TEXTS = 5000  # prompts whose wording is looked at
HEADLINE = ("dominance_rate", "joint_pass", "hypervolume", "erd")
BASES = ("identity", BEFORE)  # arms that others are compared with, the first that a run has
# ids and, by arm, P x metrics of a partition
Keep = Callable[[list[str], Mapping[str, "Floats"]], None]
_GAINS = len(CONTROLS) * len(PRIMARY)


@dataclass
class Gathered:
    """What the partitions say. A value of a prompt is added to its cluster; metrics as in
    `metric_names`.

    Attributes:
        batched: a cluster is a batch of prompts, not one prompt.
        n: prompts by group of them that is looked at by itself: a class, or "" for all.
        kind, carried, category: prompts by each.
        n_arm: arm -> prompts that have a metric of it.
        values: arm -> metrics.
        differences: (arm, other) -> `compared_metrics` of the first minus those of the other, over
            prompts that have both.
        gains: fused minus the controls in the primary metrics, paired and over the prompts common
            to all (`gains_by_prompt`).
        words: arm -> summed length of the prompt as asked, and prompts.
        gaps: arm -> log(length of its prompt / of the fused one).
        profile: (class, arm) -> for each k, best-of-k grades of the first dimension, then any- and
            all-pass of the others.
        levels: arm -> summed share of answers per reward level, LEVELS x D, and the number of
            prompts.
        planes: arm -> summed share per cell, pairs of dimensions x CELLS x CELLS.
        coverage: C(fused, before), C(before, fused).
        texts: arm -> last user turns of the sampled prompts ("source" as mined).
        repeats: dimension -> counts of (first, second) score on a 5 x 5 grid.
        rewrites: arm -> category -> counts of "" (accepted) or the failed check; `tries`: arm ->
            accepted prompts by the number of tries.
        candidates: summed selected and confirmed margins of the best pairs, 2 x D, and their
            number.
    """

    scale: Scale
    batched: bool
    n: Counter[str] = field(default_factory=Counter)
    kind: Counter[str] = field(default_factory=Counter)
    carried: Counter[str] = field(default_factory=Counter)
    category: Counter[str] = field(default_factory=Counter)
    n_arm: Counter[str] = field(default_factory=Counter)
    values: dict[str, Sums] = field(default_factory=dict)
    differences: dict[tuple[str, str], Sums] = field(default_factory=dict)
    gains: tuple[Sums, Sums] = field(
        default_factory=lambda: (Sums.empty(_GAINS), Sums.empty(_GAINS))
    )
    words: dict[str, tuple[float, int]] = field(default_factory=dict)
    gaps: dict[str, Sums] = field(default_factory=dict)
    profile: dict[tuple[str, str], Sums] = field(default_factory=dict)
    levels: dict[str, tuple[Floats, int]] = field(default_factory=dict)
    planes: dict[str, Floats] = field(default_factory=dict)
    moments: dict[str, Sums] = field(default_factory=dict)
    coverage: Sums = field(default_factory=lambda: Sums.empty(2))
    texts: dict[str, list[str]] = field(default_factory=dict)
    repeats: dict[str, Ints] = field(default_factory=dict)
    rewrites: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    tries: dict[str, Counter[int]] = field(default_factory=dict)
    checks: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    candidates: tuple[Floats, int] = field(default_factory=lambda: (np.zeros((2, 1)), 0))

    @property
    def before(self) -> str | None:
        """The arm of "before" numbers: fresh answers to the bare prompt."""
        return next((a for a in BASES if a in self.values), None)

    def labels(self, group: str, prompt_ids: Sequence[str]) -> NDArray[np.int64]:
        """Clusters of the group's next prompts."""
        first = self.n[group]
        self.n[group] += len(prompt_ids)
        if self.batched:
            return cluster_batch(np.array([int(i, 16) for i in prompt_ids], np.uint64))
        return np.arange(first, self.n[group])

    def sums(self, added: Sums, group: str = "") -> Sums:
        """What was added, by all clusters of a group."""
        return added.of(BATCHES if self.batched else self.n[group])


def ks_of(n: int) -> list[int]:
    """The numbers of samples that the profile shows, up to three quarters of n: an answer or more
    may go unscored."""
    return [
        k for k in ((1, 4, 8, 16, 32, 64) if n >= 32 else (1, 2, 4, 8)) if k <= max(1, 3 * n // 4)
    ]


def plane_pairs(dims: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of dimensions, in order; the first three."""
    return [(i, j) for i in range(len(dims)) for j in range(i + 1, len(dims))][:3]


def compared_metrics(dims: Sequence[str]) -> list[str]:
    """The metrics that arms are compared in."""
    return [*HEADLINE, *(f"reward_{d}" for d in dims)]


def gather(
    blocks: Iterable[Block], scale: Scale, n_each: int, n_prompts: int, keep: Keep | None = None
) -> Gathered:
    """All partitions in one pass; `n_prompts`: how many they hold, for the clusters. `keep` is
    shown every prompt's values."""
    out = Gathered(scale, n_prompts > MOST)
    for block in blocks:
        ids = [p.prompt_id for p in block.prompts]
        at_P = out.labels("", ids)
        out.kind.update(block.kind_P)
        out.carried.update(c or "none" for c in block.carried_P)
        out.category.update(p.category or "none" for p in block.prompts)
        taken = np.array([int(i[:12], 16) % scale.every == 0 for i in ids], bool)
        values = {
            name: _by_prompt(len(ids), arm.rows_P, measure(arm, scale, taken[arm.rows_P]))
            for name, arm in block.arms.items()
        }
        if keep is not None:
            keep(ids, values)
        for name, arm in block.arms.items():
            out.n_arm[name] += int((~np.isnan(values[name])).any(1).sum())
            _add_values(out.values, name, at_P, values[name])
            moments = _by_prompt(len(ids), arm.rows_P, _moments(arm.rewards_P_N_D))
            if moments.size:
                _add_values(out.moments, name, at_P, moments)
            _add_pictures(out, name, arm)
        _add_differences(out, at_P, values)
        _add_profiles(out, block, at_P, ids, ks_of(n_each))
        _add_lengths(out, block, at_P)
        out.coverage.add(at_P, _coverage(block, taken))
        margins = block.candidates_Q_2_D[~np.isnan(block.candidates_Q_2_D).any((1, 2))]
        out.candidates = (out.candidates[0] + margins.sum(0), out.candidates[1] + len(margins))
        _add_texts(out, block)
        _add_rewrites(out, block)
        _add_repeats(out, block)
    return out


def _add_values(
    into: dict[Any, Sums],
    key: Any,
    at_P: NDArray[np.int64],
    values_P_M: Floats,
    whole: bool = False,
) -> None:
    into.setdefault(key, Sums.empty(values_P_M.shape[1], whole)).add(at_P, values_P_M)


def _by_prompt(n: int, rows: NDArray[np.intp], values: Floats) -> Floats:
    whole = np.full((n, values.shape[1]), np.nan)
    whole[rows] = values
    return whole


def _add_differences(out: Gathered, at_P: NDArray[np.int64], values: Mapping[str, Floats]) -> None:
    order = metric_names(out.scale.dims)
    columns = [order.index(m) for m in compared_metrics(out.scale.dims)]
    pairs = dict.fromkeys(
        [(a, b) for a in values for b in BASES if b in values] + [("fused", a) for a in values]
    )
    for a, b in pairs:
        if a != b and a in values:
            _add_values(
                out.differences, (a, b), at_P, values[a][:, columns] - values[b][:, columns]
            )
    if "fused" in values:
        primary = [order.index(m) for m in PRIMARY]
        none = np.full((len(at_P), len(primary)), np.nan)
        arms = {a: values[a][:, primary] if a in values else none for a in ("fused", *CONTROLS)}
        for added, gains in zip(out.gains, gains_by_prompt(arms), strict=True):
            added.add(at_P, gains)


def _add_profiles(
    out: Gathered, block: Block, at_P: NDArray[np.int64], ids: Sequence[str], ks: Sequence[int]
) -> None:
    """By class of prompts, which is the dimension that they carry; prompts of no class are of the
    class ""."""
    classes = np.array([c if c in out.scale.dims else "" for c in block.carried_P], dtype=object)
    rows_of = {c: np.flatnonzero(classes == c) for c in ("", *out.scale.dims)}
    at_of = {
        c: out.labels(c, [ids[i] for i in rows.tolist()]) if c else at_P[rows]
        for c, rows in rows_of.items()
    }
    for name, arm in block.arms.items():
        values = _by_prompt(len(ids), arm.rows_P, _best_of_k(arm, out.scale, ks))
        for c, rows in rows_of.items():
            if len(rows):
                _add_values(out.profile, (c, name), at_of[c], values[rows], whole=True)


def _add_lengths(out: Gathered, block: Block, at_P: NDArray[np.int64]) -> None:
    words = {
        name: _by_prompt(len(at_P), arm.rows_P, arm.words_P[:, None])
        for name, arm in block.arms.items()
    }
    for name, w in words.items():
        total, n = out.words.get(name, (0.0, 0))
        out.words[name] = (total + float(np.nansum(w)), n + int((~np.isnan(w)).sum()))
        if "fused" in words:
            _add_values(out.gaps, name, at_P, np.log(w) - np.log(words["fused"]))


def _best_of_k(arm: ArmBlock, s: Scale, ks: Sequence[int]) -> Floats:
    """Per prompt and k: P(best of k in the first dimension <= grade) for four grades, then any- and
    all-pass of the others."""
    r = arm.rewards_P_N_D
    n = (~np.isnan(r)).sum(1)
    c = (r >= s.floors_D).sum(1)
    columns = []
    for k in ks:
        columns += list(st.best_of_k_distribution(r[..., :1], k, GRADES)[..., 0].T)
        for j in range(1, len(s.dims)):
            columns += [
                st.any_pass_at_k(c[:, j], n[:, j], k),
                st.all_pass_at_k(c[:, j], n[:, j], k),
            ]
    return np.stack(columns, axis=1)


def _add_pictures(out: Gathered, name: str, arm: ArmBlock) -> None:
    r, dims = arm.rewards_P_N_D, out.scale.dims
    there = ~np.isnan(r)
    total, n = out.levels.get(name, (np.zeros((LEVELS, len(dims))), 0))
    share = there / np.maximum(there.sum(1, keepdims=True), 1)
    for j in range(len(dims)):
        bins = np.rint(np.where(there[..., j], r[..., j], 0) * (LEVELS - 1)).astype(int)
        total[:, j] += np.bincount(bins.ravel(), share[..., j].ravel(), LEVELS)
    out.levels[name] = (total, n + int(np.all(np.any(there, axis=1), axis=1).sum()))
    whole = np.all(there, axis=-1)
    weight = whole / np.maximum(whole.sum(1, keepdims=True), 1)
    cell = np.rint(np.where(whole[..., None], r, 0) * (CELLS - 1)).astype(int)
    plane = out.planes.setdefault(name, np.zeros((len(plane_pairs(dims)), CELLS, CELLS)))
    for p, (i, j) in enumerate(plane_pairs(dims)):
        plane[p] += np.bincount(
            (cell[..., i] * CELLS + cell[..., j]).ravel(), weight.ravel(), CELLS**2
        ).reshape(CELLS, CELLS)


def _moments(rewards_P_N_D: Floats) -> Floats:
    """For each pair of dimensions, a prompt's sums of products about its own means: of both, of the
    first with itself, of the second; over the answers that have both."""
    columns = []
    for i, j in combinations(range(rewards_P_N_D.shape[-1]), 2):
        both = rewards_P_N_D[..., [i, j]]
        there = ~np.isnan(both[..., 0] + both[..., 1])
        n = np.where(there.sum(1) > 1, there.sum(1), np.nan)
        both = np.where(there[..., None], both, 0.0)
        mean = both.sum(1) / n[:, None]
        x, y = (np.where(there, both[..., k] - mean[:, k, None], 0.0) for k in (0, 1))
        columns += [np.where(n > 1, (a * b).sum(1), np.nan) for a, b in ((x, y), (x, x), (y, y))]
    return np.stack(columns, 1) if columns else np.zeros((len(rewards_P_N_D), 0))


def _coverage(block: Block, taken_P: Bools) -> Floats:
    out = np.full((len(block.prompts), 2), np.nan)
    before = block.arms.get("identity")
    fused = block.arms.get("fused")
    if before is None or fused is None:
        return out
    rows = np.intersect1d(before.rows_P, fused.rows_P)
    rows = rows[taken_P[rows]]
    if len(rows):
        a, b = (x.rewards_P_N_D[np.searchsorted(x.rows_P, rows)] for x in (fused, before))
        out[rows] = np.stack([st.coverage(a, b), st.coverage(b, a)], axis=1)
    return out


def _add_texts(out: Gathered, block: Block) -> None:
    room = TEXTS - len(out.texts.setdefault("source", []))
    out.texts["source"] += [p.text for p in block.prompts[: max(room, 0)]]
    for name, arm in block.arms.items():
        if name not in ("identity", BEFORE):
            texts = out.texts.setdefault(name, [])
            texts += arm.texts[: max(TEXTS - len(texts), 0)]


def _add_rewrites(out: Gathered, block: Block) -> None:
    for arm, by_row in block.rewrites.items():
        by_category = out.rewrites.setdefault(arm, {})
        for row, (failed, tries) in by_row.items():
            by_category.setdefault(block.prompts[row].category or "none", Counter())[failed] += 1
            if not failed:
                out.tries.setdefault(arm, Counter())[tries] += 1
    for key, (total, n) in block.checks.items():
        before = out.checks.get(key, (0.0, 0))
        out.checks[key] = (before[0] + total, before[1] + n)


def _add_repeats(out: Gathered, block: Block) -> None:
    for d, (first, second) in block.confirms.items():
        counts = out.repeats.setdefault(d, np.zeros((5, 5), int))
        np.add.at(counts, (np.rint(first * 4).astype(int), np.rint(second * 4).astype(int)), 1)


# the numbers

ORDER = ("before", "identity", "concat", "single", "generic", "random", "fused")
DRAWS = 2000
FLIPS = 10_000


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
    none = Sums.empty(len(shown))
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
    gaps = g.sums(g.gaps.get(arm, Sums.empty(1)))
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


def control_gains(verdict: Verdict) -> list[Comparison]:
    """`comparisons` of report.json."""
    rows = [
        {k: rounded(v) if isinstance(v, float) else v for k, v in c.items()}
        for c in verdict.comparisons
    ]
    return cast(list[Comparison], rows)


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
        "n": g.n[""],
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
            if added is None or not added.numbers_C_M.any():
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
