"""Random inputs for a while, counted by kind, and other figures; pytest prints them at its end."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable

import pytest

FUZZ_SEED = int(os.environ.get("MORA_FUZZ_SEED", "1"))
FUZZ_S = float(os.environ.get("MORA_FUZZ_S", "110"))  # of each kind
Fuzzing = Callable[[str, Callable[[int], int]], None]


@pytest.fixture()
def fuzzing(record_property: Callable[[str, object], None]) -> Fuzzing:
    """Calls a function with seed after seed until MORA_FUZZ_S seconds are over. It tries inputs of
    one kind, and gives how many it tried; all are counted under the kind."""

    def run(kind: str, some: Callable[[int], int]) -> None:
        n, seed, end = 0, FUZZ_SEED * 1_000_000, time.monotonic() + FUZZ_S
        while time.monotonic() < end:
            n, seed = n + some(seed), seed + 1
        record_property("fuzzed", (kind, n))

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was fuzzed, by kind, and what tests noted as a `figure`."""
    counts: Counter[str] = Counter()
    every = (r for reports in terminalreporter.stats.values() for r in reports)
    for report in (r for r in every if getattr(r, "when", "") == "call"):
        for name, value in getattr(report, "user_properties", ()):
            if name == "fuzzed":
                counts[value[0]] += value[1]
            if name == "figure":
                terminalreporter.write_line(str(value))
    if counts:
        each = ", ".join(f"{n:,} {kind}" for kind, n in sorted(counts.items()))
        terminalreporter.write_line(
            f"fuzzed from seed {FUZZ_SEED}: {each}; {counts.total():,} in all"
        )
