"""The demo build: the bundled rows through all stages with the simulator, 16 answers, 3
dimensions."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import MORA_DATA, Figure, Scale, checked, median, run

GOAL_S, GOAL_MB = 10.0, 300
IMPORTS = "import mora_data.pipeline, mora_data.dataset.folder, pyarrow.parquet, numpy"


def figures(scale: Scale) -> Iterator[Figure]:
    """Wall time and peak memory; the floor only imports what the build needs."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            checked(
                run(
                    (
                        *MORA_DATA,
                        "build",
                        "--source",
                        "pku-saferlhf",
                        "--sample",
                        "--engine",
                        "scripted",
                        "--json",
                        "--out",
                        Path(folder) / str(i),
                    )
                ),
                "the demo build",
            )
            for i in range(scale.repeats)
        ]
    floor = [checked(run((sys.executable, "-c", IMPORTS)), "imports") for _ in range(scale.repeats)]
    requests = json.loads(runs[0].out)["requests"]
    wall, bare = median(runs, lambda r: r.wall_s), median(floor, lambda r: r.wall_s)
    mb, bare_mb = median(runs, lambda r: r.peak_mb), median(floor, lambda r: r.peak_mb)
    yield Figure(
        f"demo build ({requests:,} simulated requests), s",
        f"<= {GOAL_S:.0f}",
        f"{wall:.1f}",
        f"{bare:.1f} imports alone",
        wall / bare,
        wall <= GOAL_S,
    )
    yield Figure(
        "demo build, peak PSS MB",
        f"<= {GOAL_MB}",
        f"{mb:.0f}",
        f"{bare_mb:.0f} imports alone",
        mb / bare_mb,
        mb <= GOAL_MB,
    )
