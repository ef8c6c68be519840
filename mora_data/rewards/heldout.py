"""The held-out judge: another model that scores the pairs that were confirmed. Nothing is mined,
selected or dropped by it.

Its scores stand in the scores table under the purpose `heldout`; how often it agrees is in
feedback.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..run.tasks import all_of
from ..settings import BuildSettings, RewardSettings
from ..types import Messages, Rollout, Score
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
    settings.role(ROLE)  # says at once where it is missing
    out = {}
    for d in settings.dimensions:
        rubrics = [r.options for r in settings.reward_sources(d) if r.kind == "judge"]
        rubric = (
            {"template": rubrics[0]["template"]} if rubrics and "template" in rubrics[0] else {}
        )
        out[d] = load_reward(d, RewardSettings.model_validate(rubric), settings, ROLE)
    return out


async def second_opinion(
    ask: Ask,
    judges: Mapping[str, Reward],
    messages: Messages,
    rollouts: Sequence[Rollout],
    sides: Sequence[int],
) -> list[tuple[int, Score]]:
    """(position, score) of the rollouts at `sides`, in each dimension."""
    if not sides:
        return []
    texts = [rollouts[i].text for i in sides]
    columns = await all_of(
        j.scores(ask, rollouts[0].prompt_id, messages, texts, PURPOSE) for j in judges.values()
    )
    return [(sides[k], s) for column in columns for k, s in enumerate(column)]
