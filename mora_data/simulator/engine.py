"""The simulator as an engine: no server, no waiting, the same log and keys as any other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..engines.engine import OnRecord
from ..errors import SettingsError
from ..run.log import Record
from ..run.stats import RunStats
from ..settings import REWARD_ROLE, BuildSettings, RoleSettings, ScriptedSettings
from ..types import Request
from .world import MODEL, Scripted

_YIELD_EVERY = 32
CHARS_PER_TOKEN = 4


def opened(
    role: RoleSettings, build: BuildSettings, stats: RunStats, shared: dict[str, Any]
) -> ScriptedEngine:
    """The embedded simulator: no model, no download; for --sample, tests and demos."""
    return ScriptedEngine(build.scripted, build.seed, stats)


class ScriptedEngine:
    """Answers at once, in this process."""

    simulated = True
    revision: str | None = None
    n_per_request = 1 << 30
    wants_more = True

    def __init__(self, settings: ScriptedSettings, seed: int, stats: RunStats) -> None:
        self.model = f"{MODEL}/{settings.world or 'null'}"
        self.extra: Mapping[str, Any] = {}
        self._scripted = Scripted(settings, seed)
        self._stats = stats

    async def send(
        self,
        request_bytes: bytes,
        request: Request,
        n: int,
        first: int,
        seed: int,
        on_record: OnRecord,
    ) -> Record:
        if request.task != "chat":
            raise SettingsError(
                f"the simulator is no classifier, and {request.role} asks for one: give the reward"
                " an `endpoint`"
            )
        self._stats.simulated += 1
        role = "judge" if request.role.startswith(REWARD_ROLE) else request.role
        answers = self._scripted.answer(replace(request, role=role, n=n, first=first), seed)
        tokens_in = sum(len(m["content"]) for m in request.messages) // CHARS_PER_TOKEN
        record = Record(n, tuple(answers), (tokens_in, sum(a.tokens_out for a in answers), 0))
        on_record(record)
        if self._stats.simulated % _YIELD_EVERY == 0:
            await asyncio.sleep(0)
        return record

    async def changed(self) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        return None
