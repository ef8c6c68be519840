"""Calibration: a million raw scores through each chart, in blocks, and the memory it takes.

    python -m benchmarks.calibration KIND SCORES      KIND: a kind of chart, or copy (the floor:
    reading and writing the scores)

A chart is a table of at most 1,024 points, whatever it was fitted on, so memory does not grow with
the scores.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

from benchmarks.common import Figure, Scale, checked, median, run

SCORES, REFERENCE, BLOCK = 1_000_000, 4096, 65_536
SHOWN = ("ecdf", "isotonic", "anchored")
GOAL_S = 2.0


def child(kind: str, n: int) -> None:
    """One kind in this process; drawing the scores is not timed."""
    import numpy as np

    from mora_data.rewards.calibration import LABELLED, apply, fit, logistic

    rng = np.random.default_rng(0)
    reference = rng.normal(3, 1, REFERENCE)
    labels = (
        (rng.random(REFERENCE) < logistic(reference - 3)).astype(float)
        if kind in LABELLED
        else None
    )
    chart = fit(kind, reference, labels, {"spread": 1.0}) if kind != "copy" else {}
    seconds, total = 0.0, 0.0
    for at in range(0, n, BLOCK):
        raw = rng.normal(3, 1, min(BLOCK, n - at))
        start = time.process_time()
        values = apply(chart, raw, 3.0) if chart else raw.copy()
        seconds += time.process_time() - start
        total += float(values.sum())
    print(json.dumps({"seconds": seconds, "mean": total / n}))


def figures(scale: Scale) -> Iterator[Figure]:
    """CPU seconds, and the peak memory of ten times the scores over that of these."""
    n = SCORES // 10 if scale.quick else SCORES

    def seconds(kind: str) -> float:
        runs = [
            checked(run((sys.executable, "-m", "benchmarks.calibration", kind, str(n))), kind)
            for _ in range(scale.repeats)
        ]
        return median(runs, lambda r: json.loads(r.out)["seconds"]) * SCORES / n

    floor = seconds("copy")
    for kind in SHOWN:
        ours = seconds(kind)
        yield Figure(
            f"calibration, {kind}, {SCORES:,} scores, CPU s",
            f"<= {GOAL_S:.0f}",
            f"{ours:.3f}",
            f"{floor:.4f} a copy",
            ours / max(floor, 1e-9),
            ours <= GOAL_S,
        )
    few, many = (
        checked(
            run((sys.executable, "-m", "benchmarks.calibration", "ecdf", str(k))), "memory"
        ).peak_mb
        for k in (n, 10 * n)
    )
    yield Figure(
        f"same, ecdf, peak MB with {10 * n:,} scores",
        "<= 1.1 x",
        f"{many:.0f}",
        f"{few:.0f} with {n:,}",
        many / few,
        many <= 1.1 * few,
    )


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]))
