"""Running coroutines side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from ..errors import MoraError

T = TypeVar("T")
GRACE_S = 2.0  # for answers that are on their way when a run has to stop


async def all_of(coroutines: Iterable[Awaitable[T]]) -> list[T]:
    """Run all to their end, then return the results in order or raise the gravest failure.

    Unlike a bare gather, nothing is left running behind a failure, so every answer that was paid
    for gets logged. A MoraError ends the run: then the rest is cancelled after a moment, as what it
    would still ask for could not be used.
    """
    works = list(coroutines)
    if len(works) == 1:  # a task of its own would cost more than many a call
        return [await works[0]]
    tasks = [asyncio.ensure_future(c) for c in works]
    waiting: set[asyncio.Future[T]] = set(tasks)
    fatal: BaseException | None = None
    try:
        while waiting and fatal is None:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
            fatal = next((e for t in done if isinstance(e := _failure(t), MoraError)), None)
    finally:
        await wind_down(waiting, fatal)
        failures = [e for t in tasks if t.done() and (e := _failure(t)) is not None]
    if failures:
        raise next((f for f in failures if isinstance(f, MoraError)), failures[0])
    return [t.result() for t in tasks]


async def wind_down(tasks: Iterable[asyncio.Future[T]], why: BaseException | None) -> None:
    """End tasks: at once, or behind a MoraError once they had `GRACE_S` from it on for what they
    have in flight."""
    waiting = set(tasks)
    if waiting and isinstance(why, MoraError):
        now = asyncio.get_running_loop().time()
        why.until = why.until or now + GRACE_S
        _, waiting = await asyncio.wait(waiting, timeout=max(0.0, why.until - now))
    for task in waiting:
        task.cancel()
    if waiting:
        await asyncio.wait(waiting)


def _failure(task: asyncio.Future[T]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


async def to_its_end(work: Callable[..., T], *args: Any) -> T:
    """Run `work` in a thread; when cancelled, still wait for its end, as a thread can't be stopped
    in the middle."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        if not running.cancelled():
            running.exception()  # seen
        raise
