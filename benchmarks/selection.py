"""Selection: 100,000 prompts x 16 rollouts x 3 dimensions with dominance_hv, in chunks of a partition's size.

    python -m benchmarks.selection SIDE PROMPTS      SIDE: select, margins (the floor: numpy's margins and nothing else)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

from benchmarks.common import Figure, Scale, checked, median, run

PROMPTS, ROLLOUTS, DIMS, CHUNK = 100_000, 16, 3, 512
GOAL_S = 10.0


def child(side: str, n: int) -> None:
    """One side in this process; making the rewards is not timed."""
    import numpy as np

    from mora_data.selection import Batch, load, top_pairs

    rng, selector = np.random.default_rng(0), load("dominance_hv")
    seconds, found = 0.0, 0
    for at in range(0, n, CHUNK):
        p = min(CHUNK, n - at)
        rewards = rng.integers(0, 5, (p, ROLLOUTS, DIMS)) / 4
        batch = Batch(rewards, rng.random((p, ROLLOUTS)) > 0.05, (rewards >= 0.5).all(-1), rng.random((p, DIMS)) > 0.3,
                      np.full(DIMS, 0.125), rng.integers(20, 90, (p, ROLLOUTS)).astype(float), max_length_ratio=3.0)
        start = time.perf_counter()
        if side == "select":
            picks = top_pairs(batch, selector(batch), 3, lambda p, i, j: i * ROLLOUTS + j)
            found += int((picks.chosen_P_K[:, 0] >= 0).sum())
        else:
            found += len(batch.margins_P_N_N_D)
        seconds += time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "found": found}))


def figures(scale: Scale) -> Iterator[Figure]:
    """Seconds, scaled up from fewer prompts with --quick."""
    n = PROMPTS // 10 if scale.quick else PROMPTS
    seconds = {side: median([checked(run((sys.executable, "-m", "benchmarks.selection", side, str(n))), side)
                             for _ in range(scale.repeats)], lambda r: json.loads(r.out)["seconds"]) * PROMPTS / n
               for side in ("select", "margins")}
    ours, floor = seconds["select"], seconds["margins"]
    yield Figure(f"dominance_hv, {PROMPTS:,} prompts x {ROLLOUTS} x {DIMS}, s", f"<= {GOAL_S:.0f}", f"{ours:.1f}",
                 f"{floor:.1f} margins in numpy", ours / floor, ours <= GOAL_S)


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]))
