"""Requests and tokens a minute: how long a request has to wait for its turn.

Each limit is a clock of its own that runs ahead by what every request costs; a request may go once
that clock is not ahead of the real one. It may lag by a second, so that much comes at once after a
pause. Tokens are reserved before they are known (the body's length and the usual share of
max_tokens) and put right when the reply tells. The processes of a cluster share one such clock, so
asking it may take a moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

BURST_S = 1.0
BYTES_PER_TOKEN = 4
_LEARN = 0.05  # weight of a new reply in the usual share


class Rate:
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


class RateLimits(Protocol):
    """Says when a request may go; here, or for a whole cluster."""

    async def reserve(self, body_bytes: int, longest: int) -> tuple[float, float]:
        """(seconds to wait, tokens reserved) for a request that may bring up to `longest`
        tokens."""

    async def settle(self, reserved: float, tokens_in: int, tokens_out: int, longest: int) -> None:
        """The reply to a request for which `reserved` tokens were set aside."""


class RateLimiter:
    """The limits of one model at one endpoint; None stands for no limit."""

    def __init__(
        self,
        requests_per_min: float | None,
        tokens_per_min: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = Rate(requests_per_min, clock) if requests_per_min else None
        self._tokens = Rate(tokens_per_min, clock) if tokens_per_min else None
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
