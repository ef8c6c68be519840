"""Which pairs become training data: a pure pass over the sealed partitions.

A candidate holds if its fresh scores confirm it. Among a prompt's confirmed candidates the
dataset-wide length balance chooses. A fused prompt that another one repeats is left out. Nothing
here asks a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..rewards.judge_stats import JudgeStats
from ..run import SelectionNumbers
from ..run.partitions import Partition
from ..run.table import Pairs, ScoredTable, scored_tables
from ..settings import BuildSettings
from ..sources.near import NearDuplicates
from ..statistics import Floats
from ..text import context_id, digest, seed_of
from ..types import UNFUSED
from .batch import are_confirmed, batch_of, lexi, top_pairs

CELLS = 2_000_000  # pairs x dimensions looked at together


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen pairs of a run.

    Attributes:
        chosen: per partition, the rows of its table of candidates: in the order of its prompts, a
            prompt's best first.
    """

    chosen: dict[int, NDArray[np.int64]]
    counts: Counter[tuple[str, str]]
    numbers: SelectionNumbers

    @property
    def n_pairs(self) -> int:
        return sum(map(len, self.chosen.values()))


def select(parts: Sequence[Partition], settings: BuildSettings) -> Selection:
    """The run's pairs; the same partitions always give the same ones."""
    counts: Counter[tuple[str, str]] = Counter()
    confirmed: list[list[NDArray[Any]]] = []
    near = settings.mine.near_duplicates if settings.mine.dedup else None
    near_duplicates = NearDuplicates(near) if near is not None else None
    seen: set[int] = set()  # ids as numbers: half the memory of their hex digits
    n_rows = n_confirmed = n_held = 0
    before = after = 0.0
    for part in parts:
        counts.update(_controls(part, settings.published_arms))
        for table in scored_tables(part, settings.dimensions, settings.published_arms, texts=False):
            good = table.pairs
            if settings.select.confirm:
                binding_Q_D = table.binding_P_D[good.row_Q]
                good = good.take(are_confirmed(good.confirmed_Q_D, binding_Q_D))
                n_confirmed += len(table.pairs)
                before += float(table.margins_Q_D(good).sum())
                after += float(np.nansum(good.confirmed_Q_D))
            n_held += len(good)
            repeats = repeats_in(table, seen, near_duplicates)
            counts.update(_count_rows(table, repeats, good))
            confirmed.append(
                _columns_of(part.number, n_rows, table, good.take(repeats[good.row_Q] == ""))
            )
            n_rows += len(table)
    chosen, gap = _choose(confirmed, settings)
    numbers: SelectionNumbers = {
        "candidates_confirmed": n_confirmed,
        "candidates_held": n_held,
        "shrinkage": after / before if before else None,
        "mean_log_length_gap": gap,
    }
    return Selection(chosen, counts, numbers)


def selected(
    parts: Sequence[Partition], selection: Selection, settings: BuildSettings
) -> Iterator[ScoredTable]:
    """Every published arm of every prompt in order, with the pairs that were chosen."""
    thoughts = settings.policy.reasoning == "keep"
    for part in parts:
        chosen = selection.chosen.get(part.number, np.empty(0, np.int64))
        for table in scored_tables(
            part, settings.dimensions, settings.published_arms, thoughts=thoughts
        ):
            first = int(table.pairs.at_Q[0]) if len(table.pairs) else 0
            mine = chosen[(chosen >= first) & (chosen < first + len(table.pairs))]
            yield replace(table, pairs=table.pairs.take(mine - first))


def picker(
    settings: BuildSettings, stats: JudgeStats, steps: Mapping[str, float]
) -> Callable[[ScoredTable, str, tuple[str, ...]], Pairs]:
    """The pair that is best for one dimension while the `aligned` ones do not get worse: `lexi`."""
    dims = settings.dimensions

    def pick(table: ScoredTable, target: str, aligned: tuple[str, ...]) -> Pairs:
        found = []
        for rows in _chunks(table, len(dims)):
            index, there = table.padded(rows)
            batch = batch_of(
                settings,
                stats,
                steps,
                np.where(there[..., None], table.rewards_R_D[index], np.nan),
                (table.absolute_R_D - table.uncertainty_R_D)[index],
                table.usable_R[index] & there,
                table.lengths_R[index].astype(float),
                np.zeros((len(index), len(dims)), bool),
                target=dims.index(target),
                guarded=tuple(dims.index(d) for d in aligned),
            )

            def tie(p: int, i: int, j: int, index: NDArray[np.int64] = index) -> int:
                return seed_of(*(digest(table.texts[int(index[p, k])].as_py()) for k in (i, j)))

            picks = top_pairs(batch, lexi(batch), 1, tie)
            rank = picks.chosen_P_K[:, 0] >= 0
            found.append(
                (
                    rows.start + np.flatnonzero(rank),
                    picks.chosen_P_K[rank, 0],
                    picks.rejected_P_K[rank, 0],
                    picks.score_P_K[rank, 0],
                )
            )
        row, chosen, rejected, score = (
            (np.concatenate(c) for c in zip(*found, strict=True)) if found else [np.empty(0)] * 4
        )
        return Pairs.of(row, chosen, rejected, score, len(dims))

    return pick


def _chunks(table: ScoredTable, n_dims: int) -> Iterator[slice]:
    """Rows side by side, few enough for their pairs to fit into CELLS."""
    widest = max(int(np.diff(table.starts).max(initial=1)), 1)
    step = max(CELLS // (widest * widest * n_dims), 1)
    return (slice(at, min(at + step, len(table))) for at in range(0, len(table), step))


def _controls(part: Partition, published: Sequence[str]) -> Counter[tuple[str, str]]:
    """Arms that are there to compare with: their pairs stay in the partition, for the report."""
    arms = part.table("arms", ["arm"])["arm"].to_pylist()
    n = sum(arm not in published and arm not in UNFUSED for arm in arms)
    return Counter({("select", "in"): n, ("select", "control_arm"): n} if n else {})


def repeats_in(table: ScoredTable, seen: set[int], near: NearDuplicates | None) -> NDArray[np.str_]:
    """Per row the reason to leave it out, "" for none: a rewrite that repeats one of the prompts
    `seen` so far, to which those of the table are added, and a fused one that nearly does. The
    source's own prompts were told apart when they were mined."""
    out = np.full(len(table), "", "<U24")
    for row, (prompt, arm, messages) in enumerate(
        zip(table.prompts, table.arms, table.messages, strict=True)
    ):
        own = arm in ("identity", "recorded")
        asked = int(prompt.prompt_id if own else context_id(messages), 16)
        if not own and asked in seen:
            out[row] = "duplicate_prompt"
        elif arm == "fused" and near is not None and near.seen(messages[-1]["content"]):
            out[row] = "near_duplicate_prompt"
        seen.add(asked)
    return out


def _count_rows(
    table: ScoredTable, repeats: NDArray[np.str_], good: Pairs
) -> Counter[tuple[str, str]]:
    """Rows by what became of them."""
    n = len(table)
    has_candidate, has_good = (np.isin(np.arange(n), p.row_Q) for p in (table.pairs, good))
    scored_R = ~np.isnan(table.rewards_R_D).any(1)
    scored, different = (
        np.bincount(table.row_R[which], minlength=n)
        for which in (scored_R, scored_R & table.usable_R)
    )
    fate = np.select(
        [has_good, has_candidate, different >= 2, scored >= 2],
        ["kept", "not_confirmed", "no_dominating_pair", "answers_alike"],
        "too_few_scored",
    )
    reason = np.where(repeats == "", fate, repeats)
    names, counts = np.unique(reason, return_counts=True)
    return Counter(
        {
            ("select", "in"): n,
            **{("select", str(k)): int(v) for k, v in zip(names, counts, strict=True)},
        }
    )


def _columns_of(part: int, first_row: int, table: ScoredTable, pairs: Pairs) -> list[NDArray[Any]]:
    """Partition, place in its table of candidates, row over all tables, score, log length gap and
    both sides of each pair."""
    first = table.starts[pairs.row_Q]
    length = np.log(np.maximum(table.lengths_R, 1))
    return [
        np.full(len(pairs), part, np.int32),
        pairs.at_Q.astype(np.int32),
        (first_row + pairs.row_Q).astype(np.int32),
        pairs.score_Q,
        length[first + pairs.chosen_Q] - length[first + pairs.rejected_Q],
        np.stack([pairs.chosen_Q, pairs.rejected_Q], axis=1).astype(np.int16),
    ]


def _choose(
    confirmed: Sequence[list[NDArray[Any]]], settings: BuildSettings
) -> tuple[dict[int, NDArray[np.int64]], float | None]:
    """Pairs per prompt, greedily; no answer twice on one side or on both sides; and their mean log
    length gap. `confirmed`: as `_columns_of` gives them."""
    if not any(len(columns[0]) for columns in confirmed):
        return {}, None
    part, at, row, score, gap, sides = (
        np.concatenate(column) for column in zip(*confirmed, strict=True)
    )
    _, first, n = np.unique(row, return_index=True, return_counts=True)
    place = np.arange(len(row)) - np.repeat(first, n)
    shape = (len(first), int(n.max()))
    score_P_K, gap_P_K = np.full(shape, -np.inf), np.zeros(shape)
    prompt = np.repeat(np.arange(len(first)), n)
    score_P_K[prompt, place], gap_P_K[prompt, place] = score, gap
    best = balance(score_P_K, gap_P_K) if settings.select.balance_length else score_P_K.argmax(1)
    taken = first + best
    if (most := settings.select.pairs_per_prompt) > 1:
        of_prompt = zip(taken.tolist(), first.tolist(), n.tolist(), strict=True)
        orders = ([q, *(x for x in range(a, a + k) if x != q)] for q, a, k in of_prompt)
        taken = np.array([q for order in orders for q in _greedy(order, sides, most)])
    # partitions come one after the other
    numbers, starts = np.unique(part[taken], return_index=True)
    rows = np.split(at[taken].astype(np.int64), starts[1:])
    return dict(zip(numbers.tolist(), rows, strict=True)), float(gap[taken].mean())


def _greedy(candidates: Sequence[int], sides: NDArray[Any], n: int) -> list[int]:
    taken: list[int] = []
    used: set[int] = set()
    for q in candidates:
        both = set(sides[q].tolist())
        if len(taken) < n and not used & both:
            taken.append(q)
            used |= both
    return taken


# Length balancing over the whole dataset: chosen must not be the longer answer on average


def balance(score_P_K: Floats, log_gap_P_K: Floats) -> NDArray[np.int64]:
    """Which of each prompt's K candidates to take, so that the mean log length gap comes as near to
    0 as they allow.

    Maximises score - mu * gap with one mu for all, found by bisection (docs/method.md, Selection).
    Absent candidates have score -inf; a prompt without any gets -1.
    """
    there = np.isfinite(score_P_K)
    have = there.any(1)
    gap = np.where(there, log_gap_P_K, 0.0)
    scale = score_P_K[there].std() if there.any() else 1.0

    def choice(mu: float) -> NDArray[np.int64]:
        return np.asarray(np.where(there, score_P_K - mu * gap, -np.inf).argmax(1))

    def mean_gap(mu: float) -> float:
        taken = np.take_along_axis(gap, choice(mu)[:, None], 1)[have, 0]
        return float(taken.mean()) if len(taken) else 0.0

    low, high = -1e3 * max(scale, 1e-6), 1e3 * max(scale, 1e-6)
    if mean_gap(0.0) > 0:
        low = 0.0
    else:
        high = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_gap(middle) > 0 else (low, middle)
    best = min((0.0, low, high), key=lambda mu: (abs(mean_gap(mu)), abs(mu)))
    return np.where(have, choice(best), -1)
