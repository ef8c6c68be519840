"""Running coroutines side by side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from ..errors import MoraError
from .stats import RunStats

T = TypeVar("T")
P = TypeVar("P")
GRACE_S = 2.0  # for answers that are on their way when a run has to stop


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, for callers that are not async. Where this thread has a running
    loop, as in a notebook, the work has a thread of its own; an interrupt cancels it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    under_way: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def watched() -> T:
        under_way.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await work

    with ThreadPoolExecutor(1, "mora-data") as pool:
        future = pool.submit(asyncio.run, watched())
        try:
            return future.result()
        except BaseException:
            for loop, task in under_way:
                if task is not None and not future.done():
                    with contextlib.suppress(RuntimeError):  # it ended in between
                        loop.call_soon_threadsafe(task.cancel)
            raise


async def all_of(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all to their end, then return the results in order or raise the gravest failure.

    Unlike a bare gather, nothing is left running behind a failure, so every answer that was paid
    for gets logged. A MoraError ends the run: then the rest is cancelled after a moment, as what it
    would still ask for could not be used.
    """
    works = list(coroutines)
    if len(works) == 1:  # a task of its own would cost more than many a call
        return [await works[0]]
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end(task: asyncio.Task[T]) -> None:
        waiting.discard(task)
        if not ended.done() and (not waiting or isinstance(_failure(task), MoraError)):
            ended.set_result(None)

    tasks = [loop.create_task(c) for c in works]
    waiting = set(tasks)
    for task in tasks:
        task.add_done_callback(end)  # asyncio.wait does as much, at twice the cost
    try:
        if tasks:
            await ended
    finally:
        grave = (e for t in tasks if t.done() and isinstance(e := _failure(t), MoraError))
        await wind_down(waiting, next(grave, None))
    failures = [e for t in tasks if (e := _failure(t)) is not None]
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


class Gate(Protocol):
    """What an engine says about further prompts."""

    @property
    def wants_more(self) -> bool:
        """Whether another prompt would find room."""

    async def changed(self) -> None:
        """Returns when `wants_more` may have changed."""


def distinct(engines: Iterable[T]) -> list[T]:
    """Each of them once: roles may share one."""
    return list({id(e): e for e in engines}.values())


class PromptGroup:
    """Tasks begun while every engine wants more; the first failure stops the rest.

    So few prompts are open at once, whatever the size of the run. An interrupt or a failure leaves
    no task behind: nothing may go on once the logs are closed.
    """

    def __init__(self, engines: Collection[Gate], stats: RunStats) -> None:
        self._engines = distinct(engines)
        self._stats = stats
        self._tasks: set[asyncio.Task[Any]] = set()
        self._error: BaseException | None = None
        self._closing = False
        self._changed = asyncio.Event()  # an engine, the number of open prompts, or `_error`
        self._watches: dict[int, asyncio.Task[None]] = {}  # per engine that is waited for

    async def has_room(self) -> bool:
        """Waits until every engine wants another prompt; False once a task has failed."""
        while self._error is None and (full := [e for e in self._engines if not e.wants_more]):
            self._changed.clear()
            for engine in full:
                watch = self._watches.get(id(engine))
                if watch is None or watch.done():
                    self._watches[id(engine)] = asyncio.ensure_future(self._watch(engine))
            await self._changed.wait()
        return self._error is None

    async def _watch(self, engine: Gate) -> None:
        try:
            await engine.changed()
        finally:
            self._changed.set()

    async def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that has run its first step."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        await asyncio.sleep(0)
        return task

    async def open(self, work: Awaitable[T]) -> T:
        """The outcome of a prompt, which counts as open until then."""
        self._stats.prompts_begun += 1
        self._stats.open_prompts += 1
        try:
            return await work
        finally:
            self._stats.open_prompts -= 1
            self._changed.set()

    async def __aenter__(self) -> PromptGroup:
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            while error is None and self._tasks and self._error is None:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:  # an interrupt arrives here, too
            self._closing = True
            why = self._error if isinstance(self._error, MoraError) else MoraError("interrupted")
            if self._tasks:
                self._stats.stop(why)
            await wind_down(self._tasks, why)
            await wind_down(self._watches.values(), None)
        if error is None and self._error is not None:
            raise self._error

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            error: BaseException | None = None
            if not self._closing:
                error = MoraError(
                    "the work on a prompt cancelled itself: catch CancelledError in the plug-in"
                    " that let it through"
                )
        else:
            error = task.exception()
        if error is not None and self._error is None:
            self._error = error
            self._changed.set()


async def run_prompts(
    work: Callable[[P], Awaitable[T]],
    prompts: Sequence[P],
    engines: Collection[Gate],
    stats: RunStats,
) -> list[T]:
    """The results of all prompts, in order; raises the first failure."""
    tasks: list[asyncio.Task[T]] = []
    async with PromptGroup(engines, stats) as group:
        for prompt in prompts:
            if not await group.has_room():
                break
            tasks.append(await group.start(group.open(work(prompt))))
    return [t.result() for t in tasks]


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
