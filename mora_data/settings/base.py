"""What all settings have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all settings: unknown keys refused, frozen once built."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
