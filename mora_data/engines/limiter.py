"""The slots of one model: how many requests may be in flight on each of its base URLs, learned from
what they refuse.

The rank rule. Each request remembers how many others were in flight when it was sent. A refusal
(429) of a request with rank r claims "at most r fit". Three refusals in a row with no success at or
above the lowest of them set the limit to that rank. What was sent before and comes back afterwards
is the test of it: once requests at or above the limit were served more than twice as often as
refused, the refusals were stray, and the limit is lifted (a few of them are served by a full
server,
too: they waited until it had room). Otherwise the limit grows by 1, 2, 4, ... every two seconds,
more slowly after every cut. It reads the capacity off in one round trip where halving would search
for it, and a stray 429 changes nothing.

At a limit that is still too high every request has the same rank, so the next cut would read off
one slot less: cuts that follow each other with no growth between them take off 1, 2, 4, ... at
least.

Three timeouts in a row with no success between them halve the limit, once for all requests sent
before. Latency that merely rises does not: a server that batches answers later the more it is given
and still gets more done, and the calls that share slots (512 tokens, then a verdict of 8) differ
more in length than any load would make them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

_NEVER = 1 << 60
_FAILING_PER_SLOT = 4
_STREAK = 3
_SERVED_PER_REFUSED = 2


class Permit(NamedTuple):
    """What a request in flight remembers."""

    rank: int
    seq: int
    at: int = 0  # the base URL's index


class UrlLimit:
    """One base URL: requests in flight, and how many may be."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self.size = size
        self.limit = size
        self.in_flight = 0
        self.out = False  # takes no requests
        self._clock = clock
        self._streak, self._low = 0, _NEVER
        self._over_refused = self._over_served = 0  # since the cut, at or above the limit
        self._timeouts, self._cut_at = 0, 0
        self._step, self._pause, self._probe_at, self._backoff = 1, 2.0, 0.0, 1

    @property
    def has_room(self) -> bool:
        return self.in_flight < self.limit and not self.out

    def refused(self, permit: Permit) -> None:
        """The server said 429."""
        if permit.rank >= self.limit:
            self._over_refused += 1  # sent before the cut
            return
        self._low = min(self._low, permit.rank)
        self._streak += 1
        if self._streak == _STREAK:
            self._cut(min(self._low, self.limit - self._backoff))
            self._over_refused = _STREAK
            self._backoff *= 2

    def timed_out(self, permit: Permit, newest: int) -> None:
        """No reply came in time; `newest` is the last ticket's number."""
        self._timeouts = self._timeouts + 1 if permit.seq > self._cut_at else 0
        if self._timeouts == _STREAK:
            self._cut(self.limit // 2)
            self._cut_at, self._over_refused = newest, _NEVER

    def succeeded(self, permit: Permit) -> None:
        """The server answered."""
        self._timeouts = 0
        if permit.rank >= self._low:
            self._streak, self._low = 0, _NEVER
        if self.limit >= self.size:
            return
        if permit.rank >= self.limit:
            self._over_served += 1
            if self._over_served > _SERVED_PER_REFUSED * self._over_refused:
                self._grow(permit.rank + 1)
        elif (now := self._clock()) >= self._probe_at:
            self._grow(min(self.size, self.limit + self._step))
            self._step *= 2
            self._probe_at = now + self._pause

    def _grow(self, limit: int) -> None:
        self.limit, self._backoff = limit, 1

    def _cut(self, limit: int) -> None:
        self.limit = max(1, limit)
        self._streak, self._low, self._timeouts, self._step, self._over_served = 0, _NEVER, 0, 1, 0
        self._probe_at = self._clock() + self._pause
        self._pause = min(30.0, self._pause * 1.5)


class ConcurrencyLimiter:
    """At most `size` requests in flight on each of `n` base URLs, fewer where a server refuses
    more; one queue for all."""

    def __init__(self, size: int, n: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = size * n
        self.limits = [UrlLimit(size, clock) for _ in range(n)]
        self._clock = clock
        self._failing = self._paced = self._seq = self._busy = 0
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._changed = asyncio.Event()
        self._began: float | None = None
        self._last = self._area_s = 0.0

    @property
    def waiting(self) -> int:
        """Calls that wait for a slot."""
        return len(self._waiting) + self._paced

    @property
    def usable(self) -> int:
        """Slots that the servers' refusals leave open."""
        return sum(limit.limit for limit in self.limits if not limit.out)

    @property
    def in_flight(self) -> int:
        """Calls that hold one."""
        return self._busy

    @property
    def busy_s(self) -> tuple[float, float]:
        """Seconds of slots in use, and of slots there were, from the first request to the last
        reply."""
        return self._area_s, self.size * (
            self._last - self._began
        ) if self._began is not None else 0.0

    def forget(self) -> None:
        """Count `busy_s` from the next request on."""
        self._began, self._area_s = None, 0.0

    @property
    def wants_more(self) -> bool:
        """Whether fewer calls wait than there are slots, and few are being tried again: then
        another prompt may be opened."""
        return self.waiting < self.size and self._failing < _FAILING_PER_SLOT * self.size

    async def changed(self) -> None:
        """Return once another prompt may be opened, or a slot is freed, or a failing call ended."""
        if self.wants_more:
            return
        self._changed.clear()
        await self._changed.wait()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Around a call that is tried again: it holds no slot while it waits, so it would count
        nowhere."""
        self._failing += 1
        try:
            yield
        finally:
            self._failing -= 1
            self._changed.set()

    @contextmanager
    def paced(self) -> Iterator[None]:
        """Around a call that waits for its turn under a rate limit."""
        self._paced += 1
        try:
            yield
        finally:
            self._paced -= 1
            self._changed.set()

    async def take(self) -> Permit:
        """Wait for a slot on the base URL with the smallest share of its slots in use."""
        at = None if self._waiting else self._freest()
        if at is not None:
            self._enter(at)
        else:
            turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                at = await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave(turn.result())
                raise
        self._seq += 1
        return Permit(self.limits[at].in_flight - 1, self._seq, at)

    def free(self, permit: Permit) -> None:
        """Give a slot back."""
        self._leave(permit.at)

    def refused(self, permit: Permit) -> None:
        """The server said 429."""
        self.limits[permit.at].refused(permit)

    def timed_out(self, permit: Permit) -> None:
        """No reply came in time."""
        self.limits[permit.at].timed_out(permit, self._seq)

    def succeeded(self, permit: Permit) -> None:
        """The server answered."""
        self.limits[permit.at].succeeded(permit)

    def take_out(self, at: int, out: bool = True) -> None:
        """Send nothing more to base URL `at`, or send to it again."""
        self.limits[at].out = out
        self._hand_on()

    def _freest(self) -> int | None:
        if len(self.limits) == 1:
            return 0 if self.limits[0].has_room else None
        open_ = [(x.in_flight / x.limit, i) for i, x in enumerate(self.limits) if x.has_room]
        return min(open_)[1] if open_ else None

    def _enter(self, at: int) -> None:
        self._tick()
        self.limits[at].in_flight += 1
        self._busy += 1

    def _leave(self, at: int) -> None:
        self._tick()
        self.limits[at].in_flight -= 1
        self._busy -= 1
        self._hand_on()

    def _hand_on(self) -> None:
        while self._waiting and (at := self._freest()) is not None:
            turn = self._waiting.popleft()
            if not turn.done():
                self._enter(at)
                turn.set_result(at)
        self._changed.set()

    def _tick(self) -> None:
        now = self._clock()
        if self._began is None:
            self._began = now
        else:
            self._area_s += self._busy * (now - self._last)
        self._last = now
