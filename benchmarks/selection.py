"""Selection: 100,000 prompts x 16 and x 64 rollouts x 3 dimensions with dominance_hv, in chunks of
a partition's size.

    python -m benchmarks.selection SIDE PROMPTS ROLLOUTS      SIDE: select, margins (the floor:
    numpy's margins and nothing else)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

from benchmarks.common import Figure, Scale, checked, median, run

PROMPTS, DIMS, CHUNK = 100_000, 3, 512
GOAL_S = {16: 10.0, 64: 60.0}  # rollouts to seconds


def child(side: str, n: int, rollouts: int) -> None:
    """One side in this process; making the rewards is not timed."""
    import numpy as np

    from mora_data import plugins
    from mora_data.selection import SELECTORS
    from mora_data.selection.batch import Batch, top_pairs

    rng, selector = (
        np.random.default_rng(0),
        plugins.load(SELECTORS, "dominance_hv", "select.selector").target,
    )
    seconds, found = 0.0, 0
    for at in range(0, n, CHUNK):
        p = min(CHUNK, n - at)
        rewards = rng.integers(0, 5, (p, rollouts, DIMS)) / 4
        batch = Batch(
            rewards,
            rng.random((p, rollouts)) > 0.05,
            (rewards >= 0.5).all(-1),
            rng.random((p, DIMS)) > 0.3,
            np.full(DIMS, 0.125),
            rng.integers(20, 90, (p, rollouts)).astype(float),
            max_length_ratio=3.0,
        )
        start = time.process_time()
        if side == "select":
            picks = top_pairs(batch, selector(batch), 3, lambda p, i, j: i * rollouts + j)
            found += int((picks.chosen_P_K[:, 0] >= 0).sum())
        else:
            found += len(batch.margins_P_N_N_D)
        seconds += time.process_time() - start
    print(json.dumps({"seconds": seconds, "found": found}))


def figures(scale: Scale) -> Iterator[Figure]:
    """CPU seconds; N = 64 is measured on a tenth of the prompts, --quick on a tenth of these, and
    scaled up."""
    for rollouts, goal in GOAL_S.items():
        n = PROMPTS // (10 if scale.quick else 1) // (10 if rollouts > 16 else 1)
        seconds = {
            side: median(
                [
                    checked(
                        run(
                            (
                                sys.executable,
                                "-m",
                                "benchmarks.selection",
                                side,
                                str(n),
                                str(rollouts),
                            )
                        ),
                        side,
                    )
                    for _ in range(scale.repeats)
                ],
                lambda r: json.loads(r.out)["seconds"],
            )
            * PROMPTS
            / n
            for side in ("select", "margins")
        }
        ours, floor = seconds["select"], seconds["margins"]
        yield Figure(
            f"dominance_hv, {PROMPTS:,} prompts x {rollouts} x {DIMS}, s",
            f"<= {goal:.0f}",
            f"{ours:.1f}",
            f"{floor:.1f} margins in numpy",
            ours / floor,
            ours <= goal,
        )


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
