"""What an engine is: it turns one request for n samples into one record of answers.

Everything else (keys, replay, top-ups) is in `CachedClient`, once, above the engines. A new engine
is a class, what makes one for a role (a function, or the class itself), and a line in `ENGINES`; or
a dotted path `module:function` as `policy.engine`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from ..errors import SettingsError
from ..run.cache_key import MERGED
from ..run.limiter import Limits, LocalRateLimiter, RateLimiter
from ..run.log import Record
from ..run.stats import RunStats
from ..settings import BuildSettings, RoleSettings
from ..types import Request

T = TypeVar("T")
OnRecord = Callable[[Record], None]

ENGINES = {
    "scripted": "mora_data.simulator.engine:open_simulator",
    "openai": "mora_data.engines.openai:open_openai",
    "batch": "mora_data.engines.batch:open_batch",
    "transformers": "mora_data.engines.in_process:open_transformers",
    "vllm": "mora_data.engines.in_process:open_vllm",
    "recorded": "mora_data.engines.engine:RecordedEngine",
}


class Engine(Protocol):
    """Requests to answers."""

    model: str
    revision: str | None
    extra: Mapping[str, Any]
    n_per_request: int  # samples asked for at once, at most
    simulated: bool

    async def send(
        self, request: Request, request_bytes: bytes, seed: int, on_record: OnRecord
    ) -> Record:
        """Ask for the `request.n` samples from `request.first` on; sample i has `seed` + i. The
        record goes to `on_record` before the permit is free.

        Fewer answers may come. A failure that no retry can mend is a record of errors.

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


@dataclass(slots=True)
class Shared:
    """What the roles of a build share: endpoints, models and rate limits, by a name of their
    own.

    Attributes:
        run_dir: where engines that keep files keep them.
        log: prints a line while they wait.
        rate_limiter: makes the clock of one model's limits; in a cluster one that all workers ask.
    """

    run_dir: Path | None = None
    log: Callable[[str], None] = print
    rate_limiter: Callable[[str, Limits], RateLimiter] = lambda key, limits: LocalRateLimiter(
        *limits
    )
    _parts: dict[str, object] = field(default_factory=dict)

    def once(self, key: str, make: Callable[[], T]) -> T:
        """What `make` gave when `key` was first asked for."""
        if key not in self._parts:
            self._parts[key] = make()
        return cast(T, self._parts[key])


OpenEngine = Callable[[RoleSettings, BuildSettings, RunStats, Shared], Engine]
"""Makes the engine of one role."""


def endpoint_key(role: RoleSettings) -> str:
    """What roles share an endpoint by: URLs, and all that says how they are reached. A key goes to
    the server for the roles that name it alone."""
    signs = (role.api_key_env, *sorted(role.headers_env.items()), role.ca_file, role.transport)
    return " ".join((role.base_url or "", *role.replicas, "as", *map(str, signs)))


def n_per_request(role: RoleSettings) -> int:
    """How many samples a role's engine is asked for at once, at most."""
    return 1 << 30 if role.n_per_request == "all" else role.n_per_request


def extra_of(role: RoleSettings) -> Mapping[str, Any]:
    """Further fields of a role's requests to a server; they are in its keys."""
    return role.extra_body | ({"messages": MERGED} if role.system == "merge" else {})


def deliver(done: asyncio.Future[Record], on_record: OnRecord, record: Record) -> None:
    """Log a record, then hand it to whoever waits, unless that was done before."""
    if done.done():
        return
    try:
        on_record(record)
    except Exception as e:
        done.set_exception(e)
    else:
        done.set_result(record)


class RecordedEngine:
    """No model: the source rows' own answers and ratings; no fusion.

    These are mined with the prompt (`Prompt.recorded`), so nothing is ever asked here; what remains
    is a name for the record.
    """

    simulated = False
    revision: str | None = None
    n_per_request = 1
    wants_more = True

    def __init__(
        self, role: RoleSettings, build: BuildSettings, stats: RunStats, shared: Shared
    ) -> None:
        self.model = f"recorded/{build.source.dataset or build.source.kind}"
        self.extra: Mapping[str, Any] = {}

    async def send(
        self, request: Request, request_bytes: bytes, seed: int, on_record: OnRecord
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
