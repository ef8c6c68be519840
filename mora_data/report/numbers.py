"""Numbers as report.json holds them: rounded, null where missing, with an interval that suits
them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..statistics import Bootstrap, rate_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGITS = 5  # decimals: what the order of a sum may change lies below


def number(value: Any) -> float | None:
    """A finite value rounded, else None."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), DIGITS) + 0.0


def interval_of(
    boot: Bootstrap, rates_M: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile ends; where a column is a rate, those of `Bootstrap.rate`, which cover rare ones
    too (METHOD 3.1)."""
    low, high = boot.percentile()
    low[rates_M], high[rates_M] = boot.rate(rates_M)
    return low, high


def share(c: int, n: int) -> dict[str, Any]:
    """A share with its interval; value None without cases."""
    low, high = rate_interval(np.array(c), np.array(n))
    return {
        "value": number(c / n) if n else None,
        "low": number(low) if n else None,
        "high": number(high) if n else None,
        "n": n,
    }


def shares(cumulative: Sequence[float | None]) -> list[float] | None:
    """Shares of the grades from P(best <= grade)."""
    if any(c is None for c in cumulative):
        return None
    steps = np.diff([0.0, *(c for c in cumulative if c is not None), 1.0])
    return [round(float(max(s, 0.0)), DIGITS) for s in steps]
