"""One pass over the partitions: the sums that the figures need. Nothing is kept by prompt but what
the clusters need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..statistics import Bools, Floats, Ints
from ..statistics import rollouts as st
from ..statistics.inference import CONTROLS, Sums, gains_by_prompt
from .measure import (
    BEFORE,
    PRIMARY,
    Added,
    ArmBlock,
    Block,
    Clusters,
    Scale,
    in_sample,
    measure,
    metric_names,
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
    """What the partitions say. A value of a prompt is added to its cluster (`Clusters`); metrics
    as in `metric_names`.

    Attributes:
        n: prompts.
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
    clusters: Clusters
    n: int = 0
    kind: Counter[str] = field(default_factory=Counter)
    carried: Counter[str] = field(default_factory=Counter)
    category: Counter[str] = field(default_factory=Counter)
    n_arm: Counter[str] = field(default_factory=Counter)
    values: dict[str, Added] = field(default_factory=dict)
    differences: dict[tuple[str, str], Added] = field(default_factory=dict)
    gains: tuple[Added, Added] = field(default_factory=lambda: (Added(_GAINS), Added(_GAINS)))
    words: dict[str, tuple[float, int]] = field(default_factory=dict)
    gaps: dict[str, Added] = field(default_factory=dict)
    profile: dict[tuple[str, str], Added] = field(default_factory=dict)
    levels: dict[str, tuple[Floats, int]] = field(default_factory=dict)
    planes: dict[str, Floats] = field(default_factory=dict)
    moments: dict[str, Added] = field(default_factory=dict)
    coverage: Added = field(default_factory=lambda: Added(2))
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

    def sums(self, added: Added, group: str = "") -> Sums:
        """What was added, by the clusters of a group."""
        return added.sums(self.clusters, group)


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
    out = Gathered(scale, Clusters(n_prompts))
    for block in blocks:
        ids = [p.prompt_id for p in block.prompts]
        at_P = out.clusters.labels("", ids)
        out.n += len(ids)
        out.kind.update(block.kind_P)
        out.carried.update(c or "none" for c in block.carried_P)
        out.category.update(p.category or "none" for p in block.prompts)
        taken = in_sample(ids, scale.every)
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
    into: dict[Any, Added],
    key: Any,
    at_P: NDArray[np.int64],
    values_P_M: Floats,
    whole: bool = False,
) -> None:
    into.setdefault(key, Added(values_P_M.shape[1], whole)).add(at_P, values_P_M)


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
        c: out.clusters.labels(c, [ids[i] for i in rows.tolist()]) if c else at_P[rows]
        for c, rows in rows_of.items()
    }
    for name, arm in block.arms.items():
        values = _by_prompt(len(ids), arm.rows_P, _profile(arm, out.scale, ks))
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


def _profile(arm: ArmBlock, s: Scale, ks: Sequence[int]) -> Floats:
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
