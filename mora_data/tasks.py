"""Running coroutines side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from .errors import MoraError

T = TypeVar("T")


async def all_of(coroutines: Iterable[Awaitable[T]]) -> list[T]:
    """Run all to their end, then return the results in order or raise the gravest failure.

    Unlike a bare gather, nothing is left running behind a failure, so every answer that was paid for gets logged. A
    MoraError ends the run: then the rest is cancelled, as what it would still ask for could not be used.
    """
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    waiting, fatal = set(tasks), False
    try:
        while waiting and not fatal:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
            fatal = any(isinstance(_failure(t), MoraError) for t in done)
    finally:
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)
        failures = [e for t in tasks if t.done() and (e := _failure(t)) is not None]
    if failures:
        raise next((f for f in failures if isinstance(f, MoraError)), failures[0])
    return [t.result() for t in tasks]


def _failure(task: asyncio.Future[T]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


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
