"""How fast one model may be asked: how many requests at a time (learned from what the server
refuses), and how many requests and tokens a minute (told by the settings).

`ConcurrencyLimiter`, the rank rule. Each request remembers how many others were in flight when it
was sent. A refusal (429) of a request with rank r claims "at most r fit". Three refusals in a row
with no success at or above the lowest of them set the limit to that rank. What was sent before and
comes back afterwards is the test of it: once requests at or above the limit were served more than
twice as often as refused, the refusals were stray, and the limit is lifted (a few of them are
served by a full server, too: they waited until it had room). Otherwise the limit grows by 1, 2, 4,
... every two seconds, more slowly after every cut. It reads the capacity off in one round trip
where halving would search for it, and a stray 429 changes nothing.

At a limit that is still too high every request has the same rank, so the next cut would read off
one permit less: cuts that follow each other with no growth between them take off 1, 2, 4, ... at
least.

Three timeouts in a row with no success between them halve the limit, once for all requests sent
before. Latency that merely rises does not: a server that batches answers later the more it is given
and still gets more done, and the calls that share permits (512 tokens, then a verdict of 8) differ
more in length than any load would make them.

`LocalRateLimiter`. Each limit is a clock of its own that runs ahead by what every request costs; a
request may go once that clock is not ahead of the real one. It may lag by a second, so that much
comes at once after a pause. Tokens are reserved before they are known (the body's length and the
usual share of max_tokens) and put right when the reply tells. The processes of a cluster share one
such clock, so asking it may take a moment.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

BURST_S = 1.0
BYTES_PER_TOKEN = 4
_LEARN = 0.05  # weight of a new reply in the usual share of max_tokens
_NEVER = 1 << 60
_FAILING_PER_PERMIT = 4
_STREAK = 3
_SERVED_PER_REFUSED = 2

Limits = tuple[float | None, float | None]  # requests, tokens a minute; None: no limit


class Permit(NamedTuple):
    """What a request in flight remembers."""

    rank: int
    seq: int
    at: int = 0  # the base URL's index


@dataclass(slots=True)
class _SinceCut:
    """What replies have shown since the limit was cut."""

    refused: int = 0  # at or above the limit: sent before the cut
    served: int = 0  # the same
    streak: int = 0  # refusals in a row below the limit
    lowest: int = _NEVER  # rank among them
    timeouts: int = 0  # in a row
    step: int = 1  # of the next growth


class UrlLimit:
    """One base URL: requests in flight, and how many may be."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self.size = size
        self.limit = size
        self.in_flight = 0
        self.out = False  # takes no requests
        self._clock = clock
        self._seen = _SinceCut()
        self._newest_at_cut = 0  # permits up to this one were sent before a cut for timeouts
        self._backoff = 1  # how much the next cut takes off at least
        self._pause_s, self._grow_at = 2.0, 0.0

    @property
    def has_room(self) -> bool:
        return self.in_flight < self.limit and not self.out

    def refused(self, permit: Permit) -> None:
        """The server answered 429."""
        seen = self._seen
        if permit.rank >= self.limit:
            seen.refused += 1
            return
        seen.lowest = min(seen.lowest, permit.rank)
        seen.streak += 1
        if seen.streak == _STREAK:
            self._cut(min(seen.lowest, self.limit - self._backoff), _STREAK)
            self._backoff *= 2

    def timed_out(self, permit: Permit, newest: int) -> None:
        """No reply came in time; `newest` is the last permit's number."""
        seen = self._seen
        seen.timeouts = seen.timeouts + 1 if permit.seq > self._newest_at_cut else 0
        if seen.timeouts == _STREAK:
            self._cut(self.limit // 2, _NEVER)
            self._newest_at_cut = newest

    def succeeded(self, permit: Permit) -> None:
        """The server answered."""
        seen = self._seen
        seen.timeouts = 0
        if permit.rank >= seen.lowest:
            seen.streak, seen.lowest = 0, _NEVER
        if self.limit >= self.size:
            return
        if permit.rank >= self.limit:
            seen.served += 1
            if seen.served > _SERVED_PER_REFUSED * seen.refused:
                self._grow(permit.rank + 1)
        elif (now := self._clock()) >= self._grow_at:
            self._grow(min(self.size, self.limit + seen.step))
            seen.step *= 2
            self._grow_at = now + self._pause_s

    def _grow(self, limit: int) -> None:
        self.limit, self._backoff = limit, 1

    def _cut(self, limit: int, refused: int) -> None:
        self.limit = max(1, limit)
        self._seen = _SinceCut(refused)
        self._grow_at = self._clock() + self._pause_s
        self._pause_s = min(30.0, self._pause_s * 1.5)


class ConcurrencyLimiter:
    """At most `size` requests in flight on each of `n` base URLs, fewer where a server refuses
    more; one queue for all."""

    def __init__(self, size: int, n: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = size * n
        self.limits = [UrlLimit(size, clock) for _ in range(n)]
        self._clock = clock
        self._failing = self._paced = self._seq = self._busy = 0
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._room = asyncio.Event()  # set where `wants_more` has become true
        self._began: float | None = None
        self._last = self._area_s = 0.0

    @property
    def waiting(self) -> int:
        """Calls that wait for a permit, or for their turn under a rate limit."""
        return len(self._waiting) + self._paced

    @property
    def usable(self) -> int:
        """Permits that the servers' refusals leave open."""
        return sum(limit.limit for limit in self.limits if not limit.out)

    @property
    def in_flight(self) -> int:
        """Calls that hold one."""
        return self._busy

    @property
    def busy_s(self) -> tuple[float, float]:
        """Seconds of permits in use, and of permits there were, from the first request to the last
        reply."""
        return self._area_s, self.size * (
            self._last - self._began
        ) if self._began is not None else 0.0

    def forget(self) -> None:
        """Count `busy_s` from the next request on."""
        self._began, self._area_s = None, 0.0

    @property
    def wants_more(self) -> bool:
        """Whether fewer calls wait than there are permits, and few are being tried again: then
        another prompt may be opened."""
        return self.waiting < self.size and self._failing < _FAILING_PER_PERMIT * self.size

    async def changed(self) -> None:
        """Return once another prompt may be opened."""
        while not self.wants_more:
            self._room.clear()
            await self._room.wait()

    def _wake(self) -> None:
        """Wake who waits for room, only where there is some: this is at each reply."""
        if not self._room.is_set() and self.wants_more:
            self._room.set()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Around a call that is tried again: it holds no permit while it waits, so it would count
        nowhere."""
        self._failing += 1
        try:
            yield
        finally:
            self._failing -= 1
            self._wake()

    @contextmanager
    def paced(self) -> Iterator[None]:
        """Around a call that waits for its turn under a rate limit."""
        self._paced += 1
        try:
            yield
        finally:
            self._paced -= 1
            self._wake()

    async def take(self) -> Permit:
        """Wait for a permit on the base URL with the smallest share of its own in use."""
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
        """Give a permit back."""
        self._leave(permit.at)

    def refused(self, permit: Permit) -> None:
        """The server answered 429."""
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
        self._wake()

    def _tick(self) -> None:
        now = self._clock()
        if self._began is None:
            self._began = now
        else:
            self._area_s += self._busy * (now - self._last)
        self._last = now


class RateClock:
    """At most `per_min` units a minute."""

    def __init__(self, per_min: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_min / 60.0
        self._clock = clock
        self._next = clock() - BURST_S

    def reserve(self, units: float) -> float:
        """Count `units`; returns the seconds to wait before they are used."""
        now = self._clock()
        turn = max(self._next, now - BURST_S)
        self._next = turn + units / self._per_s
        return max(0.0, turn - now)

    def settle(self, more: float) -> None:
        """`more` units than were reserved have been used (fewer, where negative)."""
        self._next += more / self._per_s


class RateLimiter(Protocol):
    """Says when a request may go; here, or for a whole cluster."""

    async def reserve(self, body_bytes: int, longest: int) -> tuple[float, float]:
        """(seconds to wait, tokens reserved) for a request that may bring up to `longest`
        tokens."""

    async def settle(self, reserved: float, tokens_in: int, tokens_out: int, longest: int) -> None:
        """The reply to a request for which `reserved` tokens were set aside."""


class LocalRateLimiter:
    """The limits of one model at one endpoint."""

    def __init__(
        self,
        requests_per_min: float | None,
        tokens_per_min: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = RateClock(requests_per_min, clock) if requests_per_min else None
        self._tokens = RateClock(tokens_per_min, clock) if tokens_per_min else None
        self._share = 1.0  # of max_tokens that an answer usually has

    async def reserve(self, body_bytes: int, longest: int) -> tuple[float, float]:
        wait = self._requests.reserve(1.0) if self._requests else 0.0
        if self._tokens is None:
            return wait, 0.0
        tokens = body_bytes / BYTES_PER_TOKEN + longest * self._share
        return max(wait, self._tokens.reserve(tokens)), tokens

    async def settle(self, reserved: float, tokens_in: int, tokens_out: int, longest: int) -> None:
        if self._tokens is not None:
            self._tokens.settle(tokens_in + tokens_out - reserved)
            self._share += _LEARN * (min(1.0, tokens_out / max(longest, 1)) - self._share)
