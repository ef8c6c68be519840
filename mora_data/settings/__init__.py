"""The settings of a build: what stands in builders/*.yaml, checked and merged.

Precedence: flags > --set > YAML > environment > defaults. An unknown key is an error that names the
nearest known one.

    settings = load_settings("pku-saferlhf", overrides={"rollout.n": 8})

    roles     who answers          stages   what the stages do and how a build runs
    rewards   who scores           build    all of them together; from and to YAML
"""

from __future__ import annotations

from .build import (
    GUARD_ROLE,
    PLUGIN_FOLDERS,
    REWARD_ROLE,
    BuildOptions,
    BuildSettings,
    build_settings,
    changes_of,
    explain,
    find_plugins_in,
    kept_settings,
    load_settings,
    mixed_builder,
    parse_override,
    preview_settings,
    read_builder,
    settings_that_differ,
    to_yaml,
)
from .needs import nearest
from .roles import (
    ROLES,
    BatchSettings,
    CalibrationSettings,
    LocalSettings,
    RewardSettings,
    RoleSettings,
    Settings,
    cache_tree,
)
from .stages import (
    AuditSettings,
    Foresee,
    FuseSettings,
    GuardSettings,
    LabelSettings,
    LimitSettings,
    MineSettings,
    MixedSource,
    PresampleSettings,
    PublishSettings,
    RaySettings,
    RecordedSettings,
    RolloutSettings,
    ScriptedSettings,
    SelectSettings,
    SourceSettings,
)
