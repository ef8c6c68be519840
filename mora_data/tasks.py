"""Running coroutines side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

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


async def to_its_end(work: Callable[..., T], *args: Any) -> T:
    """Run `work` in a thread; when cancelled, still wait for its end, as a thread can't be stopped in the middle."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        if not running.cancelled():
            running.exception()  # seen
        raise
