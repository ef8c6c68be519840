"""The slots of one base URL: how many requests may be in flight, learned from what the server refuses.

The rank rule. Each request remembers how many others were in flight when it was sent. A refusal (429) of a request with
rank r claims "at most r fit". Three refusals in a row with no success at or above the lowest of them set the limit to that
rank; a success at or above the limit, sent after the streak began, shows that the refusals were stray and lifts it.
Otherwise the limit grows by 1, 2, 4, ... every two seconds, more slowly after every cut. It reads the capacity off in one
round trip where halving would search for it, and a stray 429 changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_NEVER = 1 << 60
_FAILING_PER_SLOT = 4


class Ticket(NamedTuple):
    """What a request in flight remembers."""

    rank: int
    seq: int


class Slots:
    """At most `size` requests in flight, fewer while the server refuses more."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.limit = size
        self.in_flight = 0
        self._failing = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._changed = asyncio.Event()
        self._seq = 0
        self._streak, self._low, self._first, self._cut_at = 0, _NEVER, 0, 0
        self._step, self._pause, self._probe_at = 1, 2.0, 0.0

    @property
    def waiting(self) -> int:
        """Calls that wait for a slot."""
        return len(self._waiting)

    @property
    def wants_more(self) -> bool:
        """Whether fewer calls wait than there are slots, and few are being tried again: then another prompt may be opened."""
        return len(self._waiting) < self.size and self._failing < _FAILING_PER_SLOT * self.size

    async def changed(self) -> None:
        """Return once another prompt may be opened, or a slot is freed, or a failing call ended."""
        if self.wants_more:
            return
        self._changed.clear()
        await self._changed.wait()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Around a call that is tried again: it holds no slot while it waits, so it would count nowhere."""
        self._failing += 1
        try:
            yield
        finally:
            self._failing -= 1
            self._changed.set()

    async def take(self) -> Ticket:
        """Wait for a slot."""
        if self.in_flight < self.limit and not self._waiting:
            self.in_flight += 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.free()
                raise
        self._seq += 1
        return Ticket(self.in_flight - 1, self._seq)

    def free(self) -> None:
        """Give a slot back."""
        self.in_flight -= 1
        while self._waiting and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
        self._changed.set()

    def refused(self, ticket: Ticket) -> None:
        """The server said 429."""
        if ticket.rank >= self.limit:
            return  # sent before the cut
        self._first = min(self._first, ticket.seq) if self._streak else ticket.seq
        self._low = min(self._low, ticket.rank)
        self._streak += 1
        if self._streak == 3:
            self.limit, self._cut_at = max(1, self._low), self._first
            self._streak, self._low, self._step = 0, _NEVER, 1
            self._probe_at = time.monotonic() + self._pause
            self._pause = min(30.0, self._pause * 1.5)

    def succeeded(self, ticket: Ticket) -> None:
        """The server answered."""
        if ticket.rank >= self._low:
            self._streak, self._low = 0, _NEVER
        if self.limit >= self.size:
            return
        if ticket.rank >= self.limit and ticket.seq > self._cut_at:
            self.limit = ticket.rank + 1
        elif (now := time.monotonic()) >= self._probe_at:
            self.limit = min(self.size, self.limit + self._step)
            self._step *= 2
            self._probe_at = now + self._pause
