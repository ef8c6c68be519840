"""The simulator with two prompts that it can't bear: one makes it raise, the other ends its
process.

Named in settings as `policy.engine: support.poison:opened`.
"""

from __future__ import annotations

import os

from mora_data.engines.engine import OnRecord, Shared
from mora_data.run.log import Record
from mora_data.run.stats import RunStats
from mora_data.settings import BuildSettings, RoleSettings
from mora_data.simulator.engine import Simulator
from mora_data.types import Request

RAISES, KILLS = "an item that raises", "an item that kills"


def opened(role: RoleSettings, build: BuildSettings, stats: RunStats, shared: Shared) -> Simulator:
    """The engine."""
    return Poisoned(build.scripted, build.seed, stats)


class Poisoned(Simulator):
    async def send(
        self, request: Request, request_bytes: bytes, seed: int, on_record: OnRecord
    ) -> Record:
        text = request.messages[-1]["content"]
        if RAISES in text:
            raise ValueError("this row breaks the code")
        if KILLS in text:
            os._exit(9)
        return await super().send(request, request_bytes, seed, on_record)
