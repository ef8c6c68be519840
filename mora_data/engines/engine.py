"""What an engine is: it turns one request for n samples into one record of answers.

Everything else (keys, replay, top-ups) is in `ask`, once, above the engines. A new engine is a
class, a function `opened` that makes one for a role, and a line in `ENGINES`; or a dotted path
`module:function` as `policy.engine`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..run.log import Record
from ..run.stats import RunStats
from ..settings import BuildSettings, RoleSettings
from ..types import Request

OnRecord = Callable[[Record], None]

ENGINES = {
    "scripted": "mora_data.simulator.engine:opened",
    "openai": "mora_data.engines.openai:opened",
    "batch": "mora_data.engines.batch:opened",
    "transformers": "mora_data.engines.transformers:opened",
    "vllm": "mora_data.engines.vllm:opened",
    "recorded": "mora_data.engines.recorded:opened",
}


def settle(done: asyncio.Future[Record], on_record: OnRecord, record: Record) -> None:
    """Log a record, then hand it to whoever waits, unless that was done before."""
    if done.done():
        return
    try:
        on_record(record)
    except Exception as e:
        done.set_exception(e)
    else:
        done.set_result(record)


class Engine(Protocol):
    """Requests to answers."""

    model: str
    revision: str | None
    extra: Mapping[str, Any]
    n_per_request: int  # samples asked for at once, at most
    simulated: bool

    async def send(
        self,
        request_bytes: bytes,
        request: Request,
        n: int,
        first: int,
        seed: int,
        on_record: OnRecord,
    ) -> Record:
        """Ask for samples `first` .. `first + n - 1` of `request`; give the record to `on_record`
        before the slot is free.

        Fewer answers than `n` may come. A failure that no retry can mend is a record of errors.

        Raises:
            PendingRetry: the tries ran out.
            EndpointError: the endpoint can't be used at all.
        """

    @property
    def wants_more(self) -> bool:
        """Whether another prompt may be opened."""

    async def changed(self) -> None:
        """Return when `wants_more` may have changed."""

    async def close(self) -> None:
        """Release connections."""


class Opened(Protocol):
    """Makes the engine of one role. Roles of a build share `shared`, so that those on one base URL
    share its slots."""

    def __call__(
        self, role: RoleSettings, build: BuildSettings, stats: RunStats, shared: dict[str, Any]
    ) -> Engine: ...
