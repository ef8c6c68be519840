"""The held-out judge: another model that scores the pairs that were confirmed. Nothing is mined,
selected or dropped by it.

Its scores stand in the scores table under the purpose `heldout`; how often it agrees is in
feedback.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..prompts.result import is_confirmed
from ..run.tasks import all_of
from ..settings import BuildSettings, RewardSettings
from ..types import Answer, Messages, Pair, Request, Rollout, Score
from . import Reward
from . import load as load_reward
from .asking import Ask

ROLE = "heldout_judge"
# asked like a first score: temperature of the role, levels in their usual order
PURPOSE = "score:heldout"


def judges_of(settings: BuildSettings) -> dict[str, Reward]:
    """One judge per dimension, with the rubric of the dimension's first judge; empty when no
    held-out judge is set.

    Raises:
        SettingsError: a dimension has no rubric.
    """
    if settings.heldout_judge is None:
        return {}
    theirs = settings.model_copy(update={"judge": settings.role(ROLE)})
    out = {}
    for d in settings.dimensions:
        rubrics = [r.options for r in settings.reward_sources(d) if r.kind == "judge"]
        rubric = (
            {"template": rubrics[0]["template"]} if rubrics and "template" in rubrics[0] else {}
        )
        out[d] = load_reward(d, RewardSettings.model_validate(rubric), theirs)
    return out


async def second_opinion(
    ask: Ask,
    judges: Mapping[str, Reward],
    messages: Messages,
    rollouts: Sequence[Rollout],
    pairs: Sequence[Pair],
    binding: Sequence[str],
) -> list[tuple[int, Score]]:
    """(position, score) of both sides of every confirmed pair, in each dimension."""
    sides = sorted(
        {
            i
            for p in pairs
            if not p.margins_confirmed or is_confirmed(p, binding)
            for i in (p.chosen, p.rejected)
        }
    )
    if not sides:
        return []

    async def theirs(request: Request) -> list[Answer]:
        return await ask(replace(request, role=ROLE))

    texts = [rollouts[i].text for i in sides]
    columns = await all_of(
        j.scores(theirs, rollouts[0].prompt_id, messages, texts, PURPOSE) for j in judges.values()
    )
    return [(sides[k], s) for column in columns for k, s in enumerate(column)]
