"""What a reward source asks through: models by requests, and its own servers by cached calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..engines.limiter import ConcurrencyLimiter
from ..types import Answer, Request

UNCALIBRATED = "uncalibrated"
"""Reason of a score that has a raw number and no value yet: the source has no scale of its own."""


class Ask(Protocol):
    """The one way to ask: first the answer log, then whoever answers."""

    async def __call__(self, request: Request) -> list[Answer]:
        """The request's answers in index order."""

    async def cached(self, key: Any, call: Callable[[], Awaitable[Any]]) -> Any:
        """The JSON value of `call`, from the answer log where the same `key` is there."""


@dataclass(frozen=True, slots=True)
class RewardClient:
    """`Ask` for one reward source and one purpose.

    Attributes:
        cache_key: of the source; together with the purpose it is part of every key.
        limiter: of the source's own calls.
        ratings: of the prompt's recorded answers, by text.
    """

    ask: Ask
    cache_key: str
    purpose: str
    limiter: ConcurrencyLimiter
    ratings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    async def __call__(self, request: Request) -> list[Answer]:
        """The request's answers in index order; see `engines.cached_client`."""
        return await self.ask(request)

    async def cached(self, key: Any, call: Callable[[], Awaitable[Any]]) -> Any:
        """The JSON value that `call()` returns, logged: the next run gets it without a call.

        `key` is a JSON value that names everything in the call that can change its outcome. The
        source's code and settings, the prompt's purpose (first score, repeat, confirmation) are
        part of the key already. What `call` raises passes through and is not logged.
        """

        async def limited() -> Any:
            permit = await self.limiter.take()
            try:
                return await call()
            finally:
                self.limiter.free(permit)

        return await self.ask.cached([self.cache_key, self.purpose, key], limited)
