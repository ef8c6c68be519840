"""Running coroutines side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

from .errors import MoraError

T = TypeVar("T")


async def all_of(coroutines: Iterable[Awaitable[T]]) -> list[T]:
    """Run all to their end, then return the results in order or raise the gravest failure.

    Unlike a bare gather, nothing is left running behind a failure, so every answer that was paid for gets logged.
    """
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    failures = [r for r in results if isinstance(r, BaseException)]
    if failures:
        raise next((f for f in failures if isinstance(f, MoraError)), failures[0])
    return results  # type: ignore[return-value]
