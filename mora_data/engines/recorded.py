"""No model at all: the answers and ratings that the source's rows already carry.

They are mined with the prompt (`Prompt.recorded`), so nothing is ever asked here; what remains is a
name for the record. A role that would ask (a judge without a server of its own) is told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ..errors import SettingsError
from ..run.log import Record
from ..run.stats import RunStats
from ..settings import BuildSettings, RoleSettings
from ..types import Request
from .engine import OnRecord


def opened(
    role: RoleSettings, build: BuildSettings, stats: RunStats, shared: dict[str, Any]
) -> RecordedEngine:
    """No model: the source rows' own answers and ratings; no fusion."""
    return RecordedEngine(build.source.dataset or build.source.kind)


class RecordedEngine:
    """Stands for the people and models that wrote and rated the source's answers."""

    simulated = False
    revision: str | None = None
    n_per_request = 1
    wants_more = True

    def __init__(self, dataset: str) -> None:
        self.model = f"recorded/{dataset}"
        self.extra: Mapping[str, Any] = {}

    async def send(
        self,
        request_bytes: bytes,
        request: Request,
        n: int,
        first: int,
        seed: int,
        on_record: OnRecord,
    ) -> Record:
        """Never an answer.

        Raises:
            SettingsError: always.
        """
        raise SettingsError(
            f"the engine recorded can't answer as {request.role}: it holds answers and ratings, not"
            " a model. Give the judge a server (--judge-base-url URL), or use `precomputed`"
            " rewards alone"
        )

    async def changed(self) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        return None
