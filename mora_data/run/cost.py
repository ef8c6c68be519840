"""What the builds of a run folder have spent, and when the next reply is one too many.

    spending.json   {"models": {"judge-1": [tokens in, tokens out, tokens cached]}}

The limits hold for the folder, over all its builds: run again with the same limit, a build stops at
once; with a higher one it goes on. Every reply is counted when it comes; what is in flight then
comes on top. The file is written once a second and at the end, so a killed process forgets what its
last second cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import LimitReached, SettingsError
from ..settings import LimitSettings
from .folder import RunFolder, read_json
from .prices import Prices
from .stats import RunStats

FILE = "spending.json"
SAVE_EVERY_S = 1.0


class CostTracker:
    """Counts what a command spends on top of those before."""

    def __init__(
        self,
        folder: RunFolder,
        limits: LimitSettings,
        prices: Prices,
        stats: RunStats,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._limits, self._prices, self._stats, self._clock = (
            folder,
            limits,
            prices,
            stats,
            clock,
        )
        self._before = _read(folder)
        self._save_at = clock()

    def start(self, models: Sequence[str]) -> None:
        """Watch every reply from now on.

        Raises:
            SettingsError: there is a money limit, and no price for one of `models`.
            LimitReached: nothing is left to spend.
        """
        unknown = sorted({m for m in models if not self._prices.knows(m)})
        if self._limits.max_cost is not None and unknown:
            raise SettingsError(
                f"limits.max_cost needs the price of {unknown[0]!r}: put it into a table and give "
                "limits.prices: PATH, or use limits.max_tokens"
            )
        self._stats.on_tokens = self.check
        self.check()

    def check(self) -> None:
        """Raises LimitReached when a limit is used up."""
        if self._clock() >= self._save_at:
            self.save()
        if self._limits.max_cost is None and self._limits.max_tokens is None:
            return
        check_totals(self.totals(), self._limits, self._prices)

    def totals(self) -> dict[str, list[int]]:
        """Tokens in, out and cached by model, those of earlier commands too."""
        out = {m: list(t) for m, t in self._before.items()}
        for model, tokens in self._stats.by_model.items():
            out[model] = [a + b for a, b in zip(out.get(model, [0, 0, 0]), tokens, strict=True)]
        return out

    def cost(self) -> float | None:
        """Money spent in this run folder; None where a price is missing."""
        return self._prices.cost(self.totals())

    def command_cost(self) -> float | None:
        """Money spent by this command."""
        return self._prices.cost(self._stats.by_model)

    def save(self) -> None:
        """Write the totals down."""
        self._save_at = self._clock() + SAVE_EVERY_S
        self._folder.write(FILE, {"models": self.totals()})


def check_totals(
    totals: Mapping[str, Sequence[int]], limits: LimitSettings, prices: Prices
) -> None:
    """Raises LimitReached when the tokens (in, out, cached) by model use up a limit."""
    used = sum(t[0] + t[1] for t in totals.values())
    if limits.max_tokens is not None and used >= limits.max_tokens:
        raise LimitReached(
            f"limits.max_tokens = {limits.max_tokens} is used up ({used} in this run folder): "
            "raise it (--max-tokens) and run the same command again, what was answered is kept"
        )
    cost = prices.cost(totals)
    if limits.max_cost is not None and cost is not None and cost >= limits.max_cost:
        raise LimitReached(
            f"limits.max_cost = {limits.max_cost:g} {prices.currency} is used up ({cost:.4g} spent "
            "in this run folder): raise it (--max-cost) and run the same command again, "
            "what was answered is kept"
        )


def _read(folder: RunFolder) -> dict[str, list[int]]:
    models: Any = read_json(folder.path / FILE).get("models", {})
    good = isinstance(models, dict) and all(
        isinstance(t, list) and len(t) == 3 and all(isinstance(n, int) for n in t)
        for t in models.values()
    )
    return models if good else {}
