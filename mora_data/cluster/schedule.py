"""Which worker gets which partition: pure asyncio, no Ray in it.

    poisoned = await distribute(numbers, hire, size=2, tries=3, say=print)      # {3: "ValueError:
    ..."}

Each of `size` places has one worker, with two partitions in hand, so that the second fills its
slots while the first drains. A worker that ends in any way but by sealing is replaced. What it had
in hand goes back:

    the worker died          to others, with a strike each; no strike where its whole node is gone
    it raised on one         that one with a strike, the other without
    it can't work here       (no model, other versions, no run folder) to others; its place stays
    empty the storage refused      nobody can go on: the build stops

A partition with a strike is worked on alone, so the next ones are surely its own; with `tries` of
them it is left out.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..errors import ClusterError, RunFolderError

IN_HAND = 2
What = Literal["sealed", "stopped", "held", "raised", "unfit", "storage"]


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a partition at a worker; anything but `sealed` ends the worker, too."""

    what: What
    why: str = ""
    damaged: int = 0  # lines of its log


class Died(Exception):
    """The worker is gone. `node_lost`: and its node with it."""

    def __init__(self, why: str, node_lost: bool = False) -> None:
        super().__init__(why)
        self.node_lost = node_lost


class Unfit(Exception):
    """The worker can't do this work where it is."""


class Hand(Protocol):
    """A worker at work."""

    async def seal(self, number: int) -> Ended:
        """Ask a partition to its end.

        Raises:
            Died: the worker did not live to tell.
        """

    async def dismiss(self) -> None:
        """End it."""


Hire = Callable[[], Awaitable[Hand]]  # raises Unfit, or Died


@dataclass
class Board:
    """The partitions that are still to be done."""

    waiting: deque[int]
    tries: int
    in_hand: set[int] = field(default_factory=set)
    strikes: Counter[int] = field(default_factory=Counter)
    poisoned: dict[int, str] = field(default_factory=dict)
    unfit: list[str] = field(default_factory=list)
    damaged: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_done(self) -> bool:
        return not self.waiting and not self.in_hand

    def take(self, held: Sequence[int]) -> int | None:
        """A partition for a worker that has `held` in hand, or None; one with a strike stays
        alone."""
        if any(self.strikes[n] for n in held):
            return None
        number = next((n for n in self.waiting if not held or not self.strikes[n]), None)
        if number is not None:
            self.waiting.remove(number)
            self.in_hand.add(number)
        return number

    def give_back(self, number: int, strike: str | None = None) -> None:
        """A partition is not sealed; `strike` says what it did to its worker."""
        self.in_hand.discard(number)
        if strike is not None:
            self.strikes[number] += 1
        if strike is not None and self.strikes[number] >= self.tries:
            self.poisoned[number] = strike
        else:
            self.waiting.appendleft(number)
        self._tell()

    def sealed(self, number: int, ended: Ended) -> None:
        """A partition is done."""
        self.in_hand.discard(number)
        self.damaged += ended.damaged
        self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


async def distribute(
    numbers: Sequence[int], hire: Hire, size: int, tries: int, say: Callable[[str], None]
) -> Board:
    """Work all partitions off; the board says which were left out.

    Raises:
        RunFolderError: the storage refuses to be written.
        ClusterError: no worker can do the work.
    """
    board = Board(deque(numbers), tries)
    places = {
        asyncio.ensure_future(_place(board, hire, say)) for _ in range(min(size, len(numbers)))
    }
    waiting = set(places)
    try:
        while waiting and not board.is_done:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for place in done:
                place.result()
    finally:
        for place in places:
            place.cancel()
        await asyncio.wait(places)
    if not board.is_done:
        raise ClusterError(
            f"no worker of the cluster can do the work ({board.unfit[-1]}): put that right and run"
            " the same command again, what was answered is kept"
        )
    return board


async def _place(board: Board, hire: Hire, say: Callable[[str], None]) -> None:
    """One worker after another, until all is done or no worker can work here."""
    deaths = 0
    while not board.is_done and deaths < board.tries:
        try:
            hand = await hire()
        except Unfit as e:
            return _leave(board, str(e), say)
        except Died as e:
            deaths += 1  # before it had anything in hand: nobody's fault but the place's
            board.unfit.append(f"a worker died as it started: {e}")
            continue
        deaths = 0
        try:
            unfit = await _use(hand, board, say)
        finally:
            await hand.dismiss()
        if unfit is not None:
            return _leave(board, unfit, say)


def _leave(board: Board, why: str, say: Callable[[str], None]) -> None:
    if why not in board.unfit:
        say(f"a worker is left out: {why}")
    board.unfit.append(why)


async def _use(hand: Hand, board: Board, say: Callable[[str], None]) -> str | None:
    """Give a worker partitions until all are done or it ends; why it is unfit, if it is."""
    held: dict[asyncio.Future[Ended], int] = {}
    over, unfit = False, None
    try:
        while not over or held:
            while (
                not over
                and len(held) < IN_HAND
                and (number := board.take(list(held.values()))) is not None
            ):
                held[asyncio.ensure_future(hand.seal(number))] = number
            if not held and board.is_done:
                return None
            changed = asyncio.ensure_future(board.changed.wait())
            waits: set[asyncio.Future[Any]] = {*held, changed}
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            for task in [t for t in done if t in held]:
                number = held.pop(task)
                fine, why = _settle(board, number, task, say)
                over, unfit = over or not fine, unfit or why
        return unfit
    finally:
        for task in held:
            task.cancel()


def _settle(
    board: Board, number: int, task: asyncio.Future[Ended], say: Callable[[str], None]
) -> tuple[bool, str | None]:
    """Whether the worker goes on, and why it is unfit, if it is.

    Raises:
        RunFolderError: the storage refuses to be written.
    """
    died = task.exception()
    if isinstance(died, Died):
        say(f"a worker died with partition {number:05d} in hand ({died}): others take it up")
        board.give_back(number, None if died.node_lost else f"worker died: {died}")
        return False, None
    ended = task.result()
    if ended.what == "sealed":
        board.sealed(number, ended)
        return True, None
    if ended.what == "storage":
        raise RunFolderError(ended.why)
    if ended.what == "held":
        say(f"partition {number:05d} is tried again: {ended.why}")
    if ended.what == "raised":
        say(
            f"partition {number:05d} failed ({ended.why}), {board.strikes[number] + 1} of"
            f" {board.tries} tries"
        )
    board.give_back(number, ended.why if ended.what == "raised" else None)
    return False, ended.why if ended.what == "unfit" else None
