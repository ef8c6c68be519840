"""What all settings have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all settings: unknown keys refused, frozen once built."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    not_in_rows: ClassVar[frozenset[str]] = frozenset()
    """Settings that can't change a row of a partition; every other one is part of its cache key."""


def cache_tree(settings: Settings) -> dict[str, Any]:
    """What of the settings can change a partition's rows, as a JSON tree."""
    return {k: _in_rows(v) for k, v in settings if k not in settings.not_in_rows}


def _in_rows(value: Any) -> Any:
    if isinstance(value, Settings):
        return cache_tree(value)
    if isinstance(value, Mapping):
        return {str(k): _in_rows(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_in_rows(v) for v in value]
    return value
