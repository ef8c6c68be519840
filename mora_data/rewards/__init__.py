"""Reward sources: a prompt and its answers to scores, higher is better.

A new one is a class with the methods of `Reward` and a line in `REWARDS`, or a dotted path
`module:Class` in the YAML.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

from ..errors import SettingsError
from ..settings import BuildSettings, RewardSettings, nearest
from ..types import Messages, Score
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


class Reward(Protocol):
    """One source of reward for one dimension.

    Attributes:
        dimension: the dimension it scores.
        name: how its scores are signed.
        floor: pass mark in [0, 1]; None where no mark means the same for two prompts (Bradley-Terry
            scores).
        calibration: how its raw scores become values. identity, likert, sigmoid: it gives values
            itself; ecdf, robust_z,
            anchored: its values are None with the reason "uncalibrated", and a chart maps `raw`
                (rewards/calibration.py).
        step: smallest difference its scale can show, in [0, 1]; 0 for a continuous scale.
        fingerprint: hash of what it does, for manifests and partition hashes.
    """

    dimension: str
    name: str
    floor: float | None
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


def load(dimension: str, settings: RewardSettings, build: BuildSettings) -> Reward:
    """The reward source that the settings name.

    Raises:
        SettingsError: there is none.
    """
    path = REWARDS.get(settings.kind, settings.kind)
    module, colon, attribute = path.partition(":")
    if not colon:
        raise SettingsError(
            f"unknown reward kind {settings.kind!r}: {nearest(settings.kind, REWARDS)}, or give"
            " module:Class"
        )
    try:
        made = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise SettingsError(f"can't load the reward {settings.kind!r}: {e}") from e
    reward: Reward = made(dimension, settings, build)
    return reward
