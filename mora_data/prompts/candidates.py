"""The selector's best pairs of each arm: what is confirmed, and what selection over the dataset
chooses from.

Arms are looked at side by side where several are at hand: with `select.confirm: false` nothing
waits for a prompt's pairs, so a whole partition's are found at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..selection import Batch, top_pairs
from ..text import digest, seed_of
from ..types import Pair
from .result import Arm, PromptResult

if TYPE_CHECKING:
    from .flow import PromptContext

CELLS = 1_000_000  # pairs x dimensions looked at together


def candidates(work: PromptContext, arms: Sequence[tuple[PromptResult, Arm]]) -> None:
    """Give each arm its `select.confirm_top` best pairs per pair wanted, best first."""
    settings = work.settings.select
    arms = [(o, arm) for o, arm in arms if arm.rollouts]
    for few in _chunks(arms, len(work.dims)):
        batch = as_batch(work, few)

        def tie(p: int, i: int, j: int, few: Sequence[tuple[PromptResult, Arm]] = few) -> int:
            outcome, arm = few[p]
            return seed_of(
                outcome.prompt.prompt_id, digest(arm.rollouts[i].text), digest(arm.rollouts[j].text)
            )

        picks = top_pairs(
            batch, work.selector(batch), settings.confirm_top * settings.pairs_per_prompt, tie
        )
        rows, ranks = np.nonzero(picks.chosen_P_K >= 0)
        chosen, rejected = picks.chosen_P_K[rows, ranks], picks.rejected_P_K[rows, ranks]
        margins = (batch.rewards_P_N_D[rows, chosen] - batch.rewards_P_N_D[rows, rejected]).tolist()
        for p, i, j, s, m in zip(
            rows.tolist(),
            chosen.tolist(),
            rejected.tolist(),
            picks.score_P_K[rows, ranks].tolist(),
            margins,
            strict=True,
        ):
            outcome, arm = few[p]
            arm.pairs.append(
                Pair(
                    outcome.prompt.prompt_id,
                    arm.name,
                    i,
                    j,
                    s,
                    dict(zip(work.dims, m, strict=True)),
                )
            )


def as_batch(work: PromptContext, arms: Sequence[tuple[PromptResult, Arm]]) -> Batch:
    """Arms as one batch, a row each; the shorter ones are filled up with answers that may not be
    used."""
    from .flow import is_usable

    dims, settings = work.dims, work.settings.select
    sizes = np.array([len(arm.rollouts) for _, arm in arms])
    there = np.arange(sizes.max()) < sizes[:, None]
    rollouts = [r for _, arm in arms for r in arm.rollouts]
    rewards, absolutes, uncertainties = (
        np.full((*there.shape, len(dims)), np.nan) for _ in range(3)
    )
    for k, d in enumerate(dims):
        rewards[there, k] = [np.nan if v is None else v for _, arm in arms for v in arm.rewards[d]]
        absolutes[there, k] = [
            np.nan if v is None else v for _, arm in arms for v in arm.absolutes[d]
        ]
        uncertainties[there, k] = [
            np.nan if v is None else v for _, arm in arms for v in arm.uncertainties[d]
        ]
    usable = np.zeros(there.shape, bool)
    usable[there] = [is_usable(r) for r in rollouts]
    lengths = np.ones(there.shape)
    lengths[there] = [r.length for r in rollouts]
    hashes = np.zeros(there.shape, np.uint64)
    hashes[there] = [int(digest(r.text), 16) for r in rollouts]
    with np.errstate(invalid="ignore"):
        passing = np.all(
            absolutes - uncertainties
            >= np.array([work.reference.pass_thresholds[d] for d in dims]) - 1e-9,
            axis=-1,
        )
    return Batch(
        rewards,
        usable,
        passing,
        np.array([[d in o.binding_dims for d in dims] for o, _ in arms]),
        np.array(work.reference.delta(dims, work.steps)),
        lengths,
        np.array([settings.weights.get(d, 1.0) for d in dims]),
        max_length_ratio=settings.max_length_ratio,
        text_hash_P_N=hashes,
        uncertainty_P_N_D=uncertainties if bool(np.any(uncertainties > 0)) else None,
    )


def _chunks(
    arms: Sequence[tuple[PromptResult, Arm]], n_dims: int
) -> Iterator[Sequence[tuple[PromptResult, Arm]]]:
    widest = max((len(arm.rollouts) for _, arm in arms), default=1)
    step = max(CELLS // max(widest * widest * n_dims, 1), 1)
    return (arms[at : at + step] for at in range(0, len(arms), step))
