"""The small actor that holds what the workers of a build share: rate limits, cost, how far each
partition is.

A worker reports four times a second and learns whether the build has to stop; a request waits for
its turn only where the settings limit requests or tokens a minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import LimitReached
from ..run.cost import Prices, check_totals
from ..run.limiter import Limits, LocalRateLimiter
from ..run.stats import RunStats, added
from ..settings import LimitSettings


class UsageMonitor:
    """Runs as one Ray actor, beside the driver; `before` are the tokens by model that were used up
    already."""

    def __init__(
        self, limits: LimitSettings, prices: Prices, before: Mapping[str, Sequence[int]]
    ) -> None:
        self._limits, self._prices, self._before = limits, prices, before
        self._rate_limiters: dict[str, LocalRateLimiter] = {}
        self._usages: dict[str, RunStats] = {}
        self._prompts: dict[int, int] = {}
        self._stopped: str | None = None

    async def reserve(
        self, key: str, limits: Limits, body_bytes: int, longest: int
    ) -> tuple[float, float]:
        """A turn under the limits that `key` names."""
        if key not in self._rate_limiters:
            self._rate_limiters[key] = LocalRateLimiter(*limits)
        return await self._rate_limiters[key].reserve(body_bytes, longest)

    async def settle(
        self, key: str, reserved: float, tokens_in: int, tokens_out: int, longest: int
    ) -> None:
        """What a reserved turn brought."""
        await self._rate_limiters[key].settle(reserved, tokens_in, tokens_out, longest)

    async def report(self, worker: str, stats: RunStats, prompts: Mapping[int, int]) -> str | None:
        """A worker's numbers so far; why the build has to stop, if it has to."""
        self._usages[worker] = stats
        self._prompts.update(prompts)
        if self._stopped is None:
            try:
                used = added([self._before, *(u.by_account for u in self._usages.values())])
                check_totals(used, self._limits, self._prices)
            except LimitReached as e:
                self._stopped = str(e)
        return self._stopped

    async def state(self) -> tuple[list[RunStats], int]:
        """The numbers of all workers, those that are gone too, and how many prompts are done."""
        return list(self._usages.values()), sum(self._prompts.values())


class SharedRateLimiter:
    """The limits of one model for all workers: asks the monitor."""

    def __init__(self, monitor: Any, key: str, limits: Limits) -> None:
        self._monitor, self._key, self._limits = monitor, key, limits

    async def reserve(self, body_bytes: int, longest: int) -> tuple[float, float]:
        wait_s, reserved = await self._monitor.reserve.remote(
            self._key, self._limits, body_bytes, longest
        )
        return float(wait_s), float(reserved)

    async def settle(self, reserved: float, tokens_in: int, tokens_out: int, longest: int) -> None:
        self._monitor.settle.remote(self._key, reserved, tokens_in, tokens_out, longest)
