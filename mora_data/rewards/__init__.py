"""Reward sources: a prompt and its answers to scores, higher is better.

A new one is a class with the methods of `Reward` and a line in `REWARDS`, or a dotted path
`module:Class` in the YAML. What it needs to be told it declares as a nested `Settings` model; the
build makes it as `Class(dimension, options, context)`, options being an instance of that model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .. import plugins
from ..settings import BuildSettings, RewardSettings, RoleSettings
from ..types import Messages, Role, Score
from .asking import Ask

REWARDS = {
    "judge": "mora_data.rewards.judge:Judge",
    "pairwise": "mora_data.rewards.pairwise:Pairwise",
    "rubric": "mora_data.rewards.rubric:Rubric",
    "classifier": "mora_data.rewards.classifier:Classifier",
    "guard": "mora_data.rewards.guard:Guard",
    "python": "mora_data.rewards.function:Function",
    "precomputed": "mora_data.rewards.precomputed:Precomputed",
    "rules": "mora_data.rewards.rules:Rules",
}


@dataclass(frozen=True, slots=True)
class RewardContext:
    """What a reward source is told of the build that it scores for.

    Attributes:
        role: the role that it asks as: its own endpoint's, else the judge.
        model: that role's sampling parameters.
        seed: the run's.
        suffix: `@model` where it has a model of its own, to sign its scores with.
        recorded: the answers are the source's own.
    """

    role: Role
    model: RoleSettings
    seed: int
    suffix: str = ""
    recorded: bool = False


class Reward(Protocol):
    """One source of reward for one dimension.

    Attributes:
        dimension: the dimension it scores.
        name: how its scores are signed.
        pass_threshold: in [0, 1]; None where no threshold means the same for two prompts
            (Bradley-Terry scores).
        calibration: how its raw scores become values. identity, likert, sigmoid: it gives values
            itself; ecdf, robust_z,
            anchored: its values are None with the reason "uncalibrated", and a chart maps `raw`
                (rewards/calibration.py).
        step: smallest difference its scale can show, in [0, 1]; 0 for a continuous scale.
        fingerprint: hash of what it does beyond its code and its settings, as of the template that
            it reads; empty where there is nothing.
    """

    dimension: str
    name: str
    pass_threshold: float | None
    calibration: str
    step: float
    fingerprint: str

    async def scores(
        self, ask: Ask, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        """A score for each answer to the conversation, in order; value None with a reason where
        there is none.

        `purpose` begins with score, repeat or confirm; the last two must be fresh measurements.
        """


def load(
    dimension: str, settings: RewardSettings, build: BuildSettings, role: Role | None = None
) -> Reward:
    """The reward source that the settings name, with its own settings checked; `role` is whom it
    asks, by default its own endpoint, else the judge.

    Raises:
        SettingsError: there is none, or one of its settings is wrong.
    """
    plugin = plugins.load(REWARDS, settings.kind, f"rewards.{dimension}")
    options = plugin.options(settings.options)
    role = role or build.reward_role(dimension, settings)
    model = settings.endpoint.model if settings.endpoint else None
    context = RewardContext(
        role,
        build.role(role),
        build.seed,
        f"@{model.rpartition('/')[2]}" if model else "",
        build.policy.engine == "recorded",
    )
    reward: Reward = plugin.target(dimension, options, context)
    return reward
