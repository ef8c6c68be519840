"""How long the command takes to start: `--help`, and the first request on the wire."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import MORA_DATA, Figure, Scale, checked, median, run
from benchmarks.endpoint import Job, Server

HELP_GOAL_S, FIRST_GOAL_S = 0.15, 0.4
HEAVY = (
    "torch",
    "datasets",
    "pandas",
    "openai",
    "transformers",
    "pyarrow",
    "numpy",
    "pydantic",
    "aiohttp",
)
LOADED = f"""
import sys
sys.argv = ["mora-data", "--help"]
from mora_data.cli import main
try:
    main()
except SystemExit:
    pass
print("loaded:", *(m for m in {HEAVY!r} if m in sys.modules))
"""


def figures(scale: Scale) -> Iterator[Figure]:
    """CPU of --help, what it imports, the first request."""
    n = 5 if scale.quick else 9
    cpu = median(
        [checked(run((*MORA_DATA, "--help")), "--help") for _ in range(n)], lambda r: r.cpu_s
    )
    floor = median(
        [checked(run((sys.executable, "-c", "pass")), "python") for _ in range(n)],
        lambda r: r.cpu_s,
    )
    yield Figure(
        "`mora-data --help`, CPU s",
        f"<= {HELP_GOAL_S}",
        f"{cpu:.3f}",
        f"{floor:.3f} python -c pass",
        cpu / floor,
        cpu <= HELP_GOAL_S,
    )
    loaded = run((sys.executable, "-c", LOADED)).out.rpartition("loaded:")[2].split()
    yield Figure(
        "heavy modules that it imports", "none", ", ".join(loaded) or "none", met=not loaded
    )
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        runs = [
            Job(m=10).run(server, "mora-data", Path(folder) / str(i)) for i in range(scale.repeats)
        ]
        bare = [
            Job(m=10).run(server, "aiohttp", Path(folder) / f"f{i}") for i in range(scale.repeats)
        ]
    first, floor = median(runs, lambda r: r.first_s), median(bare, lambda r: r.first_s)
    yield Figure(
        "first request after process start, s",
        f"<= {FIRST_GOAL_S}",
        f"{first:.2f}",
        f"{floor:.2f} aiohttp",
        first / floor,
        first <= FIRST_GOAL_S,
    )
