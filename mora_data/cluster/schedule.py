"""Which worker gets which partition: pure asyncio, no Ray in it.

    backlog = await distribute(numbers, hire, size=2, tries=3, log=print)
    backlog.poisoned                                          # {3: "ValueError: ..."}

Each of `size` places has one worker that runs two partitions, so that the second fills its permits
while the first drains. A worker that ends in any way but by finalizing is replaced. What it ran
goes back:

    the worker died       to others, with a strike each; no strike where its whole node is gone
    it raised on one      that one with a strike, the other without
    it can't work here    (no model, other versions, no run folder) to others; its place stays empty
    the storage refused   nobody can go on: the build stops

A partition with a strike runs alone, so the next ones are surely its own; with `tries` of them it
is left out.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..errors import ClusterError, RunFolderError

PER_WORKER = 2
Kind = Literal["finalized", "stopped", "locked", "raised", "unfit", "storage"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a partition at a worker; anything but `finalized` ends the worker, too."""

    kind: Kind
    why: str = ""
    damaged: int = 0  # lines of its log


class WorkerDied(Exception):
    """The worker is gone. `node_lost`: and its node with it."""

    def __init__(self, why: str, node_lost: bool = False) -> None:
        super().__init__(why)
        self.node_lost = node_lost


class UnfitWorker(Exception):
    """The worker can't do this work where it is."""


class HiredWorker(Protocol):
    """A worker at work."""

    async def finalize(self, number: int) -> Outcome:
        """Ask a partition to its end.

        Raises:
            WorkerDied: the worker did not live to tell.
        """

    async def dismiss(self) -> None:
        """End it."""


Hire = Callable[[], Awaitable[HiredWorker]]  # raises UnfitWorker, or WorkerDied


@dataclass
class Backlog:
    """The partitions that are still to be done."""

    waiting: deque[int]
    tries: int
    running: set[int] = field(default_factory=set)
    strikes: Counter[int] = field(default_factory=Counter)
    poisoned: dict[int, str] = field(default_factory=dict)
    unfit: list[str] = field(default_factory=list)
    damaged: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_done(self) -> bool:
        return not self.waiting and not self.running

    def take(self, running: Sequence[int]) -> int | None:
        """A partition for a worker that runs these, or None; one with a strike stays alone."""
        if any(self.strikes[n] for n in running):
            return None
        number = next((n for n in self.waiting if not running or not self.strikes[n]), None)
        if number is not None:
            self.waiting.remove(number)
            self.running.add(number)
        return number

    def give_back(self, number: int, strike: str | None = None) -> None:
        """A partition is not finalized; `strike` says what it did to its worker."""
        self.running.discard(number)
        if strike is not None:
            self.strikes[number] += 1
        if strike is not None and self.strikes[number] >= self.tries:
            self.poisoned[number] = strike
        else:
            self.waiting.appendleft(number)
        self._notify()

    def mark_done(self, number: int, outcome: Outcome) -> None:
        """A partition is done."""
        self.running.discard(number)
        self.damaged += outcome.damaged
        self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


async def distribute(
    numbers: Sequence[int], hire: Hire, size: int, tries: int, log: Callable[[str], None]
) -> Backlog:
    """Work all partitions off; the backlog says which were left out.

    Raises:
        RunFolderError: the storage refuses to be written.
        ClusterError: no worker can do the work.
    """
    backlog = Backlog(deque(numbers), tries)
    places = {
        asyncio.ensure_future(_place(backlog, hire, log)) for _ in range(min(size, len(numbers)))
    }
    waiting = set(places)
    try:
        while waiting and not backlog.is_done:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for place in done:
                place.result()
    finally:
        for place in places:
            place.cancel()
        await asyncio.wait(places)
    if not backlog.is_done:
        raise ClusterError(
            f"no worker of the cluster can do the work ({backlog.unfit[-1]}): put that right and"
            " run the same command again, what was answered is kept"
        )
    return backlog


async def _place(backlog: Backlog, hire: Hire, log: Callable[[str], None]) -> None:
    """One worker after another, until all is done or no worker can work here."""
    deaths = 0
    while not backlog.is_done and deaths < backlog.tries:
        try:
            worker = await hire()
        except UnfitWorker as e:
            return _leave(backlog, str(e), log)
        except WorkerDied as e:
            deaths += 1  # before it ran anything: nobody's fault but the place's
            backlog.unfit.append(f"a worker died as it started: {e}")
            continue
        deaths = 0
        try:
            unfit = await _employ(worker, backlog, log)
        finally:
            await worker.dismiss()
        if unfit is not None:
            return _leave(backlog, unfit, log)


def _leave(backlog: Backlog, why: str, log: Callable[[str], None]) -> None:
    if why not in backlog.unfit:
        log(f"a worker is left out: {why}")
    backlog.unfit.append(why)


async def _employ(worker: HiredWorker, backlog: Backlog, log: Callable[[str], None]) -> str | None:
    """Give a worker partitions until all are done or it ends; why it is unfit, if it is."""
    running: dict[asyncio.Future[Outcome], int] = {}
    over, unfit = False, None
    try:
        while not over or running:
            while (
                not over
                and len(running) < PER_WORKER
                and (number := backlog.take(list(running.values()))) is not None
            ):
                running[asyncio.ensure_future(worker.finalize(number))] = number
            if not running and backlog.is_done:
                return None
            changed = asyncio.ensure_future(backlog.changed.wait())
            waits: set[asyncio.Future[Any]] = {*running, changed}
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            for task in [t for t in done if t in running]:
                number = running.pop(task)
                fine, why = _take_outcome(backlog, number, task, log)
                over, unfit = over or not fine, unfit or why
        return unfit
    finally:
        for task in running:
            task.cancel()


def _take_outcome(
    backlog: Backlog, number: int, task: asyncio.Future[Outcome], log: Callable[[str], None]
) -> tuple[bool, str | None]:
    """Whether the worker goes on, and why it is unfit, if it is.

    Raises:
        RunFolderError: the storage refuses to be written.
    """
    died = task.exception()
    if isinstance(died, WorkerDied):
        log(f"a worker died with partition {number:05d} in hand ({died}): others take it up")
        backlog.give_back(number, None if died.node_lost else f"worker died: {died}")
        return False, None
    outcome = task.result()
    if outcome.kind == "finalized":
        backlog.mark_done(number, outcome)
        return True, None
    if outcome.kind == "storage":
        raise RunFolderError(outcome.why)
    if outcome.kind == "locked":
        log(f"partition {number:05d} is tried again: {outcome.why}")
    if outcome.kind == "raised":
        log(
            f"partition {number:05d} failed ({outcome.why}), {backlog.strikes[number] + 1} of"
            f" {backlog.tries} tries"
        )
    backlog.give_back(number, outcome.why if outcome.kind == "raised" else None)
    return False, outcome.why if outcome.kind == "unfit" else None
