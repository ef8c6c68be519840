"""The selector's best pairs of each arm: what is confirmed, and what selection over the dataset
chooses from.

Arms are looked at side by side where several are at hand: with `select.confirm: false` nothing
waits for a prompt's pairs, so a whole partition's are found at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import SettingsError
from ..selection.batch import Batch, are_confirmed, batch_of, top_pairs
from ..text import digest, seed_of
from ..types import Pair
from .context import BuildContext
from .result import Arm, PromptResult

CELLS = 1_000_000  # pairs x dimensions looked at together


def find_candidates(build: BuildContext, arms: Sequence[tuple[PromptResult, Arm]]) -> None:
    """Give each arm its `select.confirm_top` best pairs per pair wanted, best first."""
    settings = build.settings.select
    for some in _chunks([(r, arm) for r, arm in arms if arm.rollouts], len(build.dims)):
        batch = as_batch(build, some)

        def tie(p: int, i: int, j: int, some: Sequence[tuple[PromptResult, Arm]] = some) -> int:
            result, arm = some[p]
            texts = (arm.rollouts[i].text, arm.rollouts[j].text)
            return seed_of(result.prompt.prompt_id, *map(digest, texts))

        k = settings.confirm_top * settings.pairs_per_prompt
        (p, n, _), found = batch.rewards_P_N_D.shape, build.selector.call(batch)
        if np.shape(found) != (p, n, n):
            raise SettingsError(
                f"select.selector {build.selector.name!r} gave an array of {np.shape(found)} in"
                f" place of {(p, n, n)}: a score for each prompt, chosen and rejected answer"
            )
        picks = top_pairs(batch, np.asarray(found, float), k, tie)
        rows, ranks = np.nonzero(picks.chosen_P_K >= 0)
        chosen, rejected = picks.chosen_P_K[rows, ranks], picks.rejected_P_K[rows, ranks]
        margins = batch.rewards_P_N_D[rows, chosen] - batch.rewards_P_N_D[rows, rejected]
        scores = picks.score_P_K[rows, ranks]
        columns = (x.tolist() for x in (rows, chosen, rejected, scores, margins))
        for p, i, j, score, m in zip(*columns, strict=True):
            _, arm = some[p]
            arm.pairs.append(Pair(i, j, score, dict(zip(build.dims, m, strict=True))))


def confirmed_pairs(
    pairs: Sequence[Pair], dims: Sequence[str], binding: Sequence[str]
) -> list[Pair]:
    """The pairs that fresh scores confirm, or that none was asked about."""
    margins = [[p.margins_confirmed.get(d) for d in dims] for p in pairs]
    fresh = np.array([[np.nan if v is None else v for v in m] for m in margins], dtype=float)
    bound = np.array([[d in binding for d in dims]] * len(pairs), dtype=bool)
    confirmed = are_confirmed(fresh.reshape(-1, len(dims)), bound.reshape(-1, len(dims)))
    return [p for p, yes in zip(pairs, confirmed, strict=True) if yes or not p.margins_confirmed]


def n_pairs(build: BuildContext, result: PromptResult) -> int:
    """How many pairs a finished prompt brings, before selection over the dataset."""
    most = build.settings.select.pairs_per_prompt
    return sum(
        min(most, len(confirmed_pairs(arm.pairs, build.dims, result.binding_dims)))
        for arm in result.arms
        if arm.pairs and arm.name in build.settings.published_arms
    )


def as_batch(build: BuildContext, arms: Sequence[tuple[PromptResult, Arm]]) -> Batch:
    """Arms as one batch, a row each; the shorter ones are filled up with answers that may not be
    used."""
    sizes = np.array([len(arm.rollouts) for _, arm in arms])
    there = np.arange(sizes.max()) < sizes[:, None]
    rewards, absolutes, uncertainties = (
        np.full((*there.shape, len(build.dims)), np.nan) for _ in range(3)
    )
    for k, d in enumerate(build.dims):
        for table, name in (
            (rewards, "rewards"),
            (absolutes, "absolutes"),
            (uncertainties, "uncertainties"),
        ):
            columns = (getattr(arm, name)[d] for _, arm in arms)
            table[there, k] = [np.nan if v is None else v for column in columns for v in column]
    rollouts = [r for _, arm in arms for r in arm.rollouts]
    usable = np.zeros(there.shape, bool)
    usable[there] = [r.is_usable for r in rollouts]
    lengths = np.ones(there.shape)
    lengths[there] = [r.length for r in rollouts]
    hashes = np.zeros(there.shape, np.uint64)
    hashes[there] = [int(digest(r.text), 16) for r in rollouts]
    return batch_of(
        build.settings,
        build.judge_stats,
        build.steps,
        rewards,
        absolutes - uncertainties,
        usable,
        lengths,
        np.array([[d in r.binding_dims for d in build.dims] for r, _ in arms]),
        text_hash_P_N=hashes,
        uncertainty_P_N_D=uncertainties if bool(np.any(uncertainties > 0)) else None,
    )


def _chunks(
    arms: Sequence[tuple[PromptResult, Arm]], n_dims: int
) -> Iterator[Sequence[tuple[PromptResult, Arm]]]:
    widest = max((len(arm.rollouts) for _, arm in arms), default=1)
    step = max(CELLS // max(widest * widest * n_dims, 1), 1)
    return (arms[at : at + step] for at in range(0, len(arms), step))
