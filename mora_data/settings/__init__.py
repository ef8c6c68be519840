"""The settings of a build: what stands in builders/*.yaml, checked and merged.

Precedence: flags > --set > YAML > environment > defaults. An unknown key is an error that names the
    nearest known one.

    settings = load_settings("pku-saferlhf", overrides={"rollout.n": 8})

    base     what all settings have in common          stages    what the stages do
    roles    who answers                               running   how a build runs
    rewards  who scores                                build     all of them together; load: from
    and to YAML
"""

from __future__ import annotations

from .base import Settings, cache_tree
from .build import GUARD_ROLE, REWARD_ROLE, BuildSettings, Options
from .load import build_settings, explain, load_settings, parse_override, to_yaml
from .nearest import nearest
from .rewards import CalibrationSettings, RewardSettings
from .roles import ROLES, BatchSettings, LocalSettings, RoleSettings
from .running import LimitSettings, RaySettings, RecordedSettings, ScriptedSettings
from .stages import (
    Foresee,
    FuseSettings,
    GuardSettings,
    MineSettings,
    PresampleSettings,
    PublishSettings,
    RolloutSettings,
    SelectSettings,
    SourceSettings,
)

__all__ = [
    "GUARD_ROLE",
    "REWARD_ROLE",
    "ROLES",
    "BatchSettings",
    "BuildSettings",
    "CalibrationSettings",
    "Foresee",
    "FuseSettings",
    "GuardSettings",
    "LimitSettings",
    "LocalSettings",
    "MineSettings",
    "Options",
    "PresampleSettings",
    "PublishSettings",
    "RaySettings",
    "RecordedSettings",
    "RewardSettings",
    "RoleSettings",
    "RolloutSettings",
    "ScriptedSettings",
    "SelectSettings",
    "Settings",
    "SourceSettings",
    "build_settings",
    "cache_tree",
    "explain",
    "load_settings",
    "nearest",
    "parse_override",
    "to_yaml",
]
