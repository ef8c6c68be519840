"""Speed and memory of the statistics: all estimators over many prompts in chunks, and the bootstrap
of all metrics.

    python benchmarks/estimators.py [--prompts 100000] [--rollouts 64] [--bootstrap-prompts 40000]
    [--chunk 4000]

Rewards are levels of a five-point judge with one value in fifty missing. Each part is a process of
its own, on one core, with its own peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
GOALS = {
    "estimators": "20 s, 2 GB",
    "hypervolume": "no goal",
    "bootstrap": "60 s",
    "sign_flip": "no goal",
}


def estimators(prompts: int, rollouts: int, chunk: int) -> dict[str, float]:
    """CPU seconds per estimator on one core, rewards drawn chunk by chunk outside the clock."""
    import numpy as np

    from mora_data.statistics import rollouts as s
    from mora_data.statistics.inference import moment_prior

    floors, sigma, delta = np.full(3, 0.75), np.full(3, 0.05), np.full(3, 0.125)
    work: dict[str, Callable[[np.ndarray], object]] = {
        "any_pass, all_pass @16": lambda r: (
            s.any_pass_at_k((r >= floors).sum(1), (~np.isnan(r)).sum(1), 16),
            s.all_pass_at_k((r >= floors).sum(1), (~np.isnan(r)).sum(1), 16),
        ),
        "joint_pass@16": lambda r: s.joint_pass_at_k(r, floors, 16),
        "best_of_16_distribution": lambda r: s.best_of_k_distribution(r, 16, np.arange(5) / 4),
        "range@16": lambda r: s.range_at_k(r, 16),
        "gini": s.gini_mean_difference,
        "erd": lambda r: s.effective_dimensionality(r, sigma),
        "dominance": lambda r: s.dominance_rate(
            r, np.arange(len(r) * 3).reshape(-1, 3) % 5 > 0, delta
        ),
        "dominance_everywhere": lambda r: s.dominance_rate_everywhere(r, delta),
        "prior": lambda r: moment_prior((r >= floors).sum(1)[:, 0], (~np.isnan(r)).sum(1)[:, 0]),
    }
    spent = dict.fromkeys(work, 0.0)
    for r in _chunks(prompts, rollouts, chunk):
        for name, run in work.items():
            start = time.process_time()
            run(r)
            spent[name] += time.process_time() - start
    return spent


def hypervolume(prompts: int, chunk: int) -> dict[str, float]:
    """Exact HV_8 from 16 rollouts in three dimensions."""
    from mora_data.statistics.rollouts import hypervolume_at_k

    spent = 0.0
    for r in _chunks(prompts, 16, chunk):
        start = time.perf_counter()
        hypervolume_at_k(r, 8)
        spent += time.perf_counter() - start
    return {"HV_8 of 16": spent}


def bootstrap(prompts: int) -> dict[str, float]:
    """2,000 draws of 60 columns: 10 metrics in 6 arms, with both intervals."""
    import numpy as np

    from mora_data.statistics.inference import cluster_bootstrap

    values = np.random.default_rng(0).random((prompts, 60))
    start = time.perf_counter()
    boot = cluster_bootstrap(values, draws=2000)
    boot.percentile()
    boot.bca()
    return {"2,000 draws x 60": time.perf_counter() - start}


def sign_flip(prompts: int) -> dict[str, float]:
    """10,000 flips of the six primary comparisons."""
    import numpy as np

    from mora_data.statistics.inference import sign_flip_test

    values = np.random.default_rng(0).normal(size=(prompts, 6))
    start = time.perf_counter()
    sign_flip_test(values)
    return {"10,000 flips x 6": time.perf_counter() - start}


def _chunks(prompts: int, rollouts: int, chunk: int):  # type: ignore[no-untyped-def]
    import numpy as np

    rng = np.random.default_rng(0)
    for first in range(0, prompts, chunk):
        r = rng.integers(0, 5, (min(chunk, prompts - first), rollouts, 3)) / 4
        r[rng.random(r.shape) < 0.02] = np.nan
        yield r


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--bootstrap-prompts", type=int, default=40_000)
    parser.add_argument("--chunk", type=int, default=4000)
    parser.add_argument("--part", choices=GOALS)
    args = parser.parse_args()
    if not args.part:
        for part in GOALS:
            subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--part", part],
                check=True,
                env={**os.environ, **ONE_CORE},
            )
        return
    cpu = time.process_time()
    spent = {
        "estimators": lambda: estimators(args.prompts, args.rollouts, args.chunk),
        "hypervolume": lambda: hypervolume(args.bootstrap_prompts, args.chunk),
        "bootstrap": lambda: bootstrap(args.bootstrap_prompts),
        "sign_flip": lambda: sign_flip(args.bootstrap_prompts),
    }[args.part]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(
        json.dumps(
            {
                "part": args.part,
                "seconds": round(sum(spent.values()), 2),
                "cpu_with_drawing": round(time.process_time() - cpu, 2),
                "peak_gb": round(peak, 2),
                "goal": GOALS[args.part],
                "each": {k: round(v, 2) for k, v in spent.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
