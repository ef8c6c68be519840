"""Arms of simulated prompts with a gain that is known: what the verdict and the intervals are
measured on.

Two metrics, shares of 16 answers, of `n` prompts whose own rates are drawn from a Beta
distribution: `common` (mean 0.3), `rare` (mean 0.01, most prompts near 0) and `split` (mean 0.1,
    most prompts near 0 and some near 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from mora_data.statistics.inference import (
    CONTROLS,
    Verdict,
    by_cluster,
    gains_by_prompt,
    verdict_of,
)

METRICS = ["dominance_rate", "joint_pass"]
MATCHED = {"single": 0.01, "generic": -0.02}
SHAPES = {"common": (0.3, 2.0), "rare": (0.01, 1.0), "split": (0.1, 0.5)}


def verdict(arms: Mapping[str, np.ndarray], *args: Any, **settings: Any) -> Verdict:
    """The verdict on values_P_M of each arm, every prompt a cluster of its own."""
    paired, common = (by_cluster(d) for d in gains_by_prompt(arms))
    return verdict_of((paired, common), *args, **settings)


def arms(
    rng: np.random.Generator,
    n: int,
    shape: str,
    gain: float = 0.0,
    few: bool = False,
    also: str | None = None,
) -> dict[str, np.ndarray]:
    """Every arm's values_P_2; the mean of fused lies `gain` above the controls'. `few`: in few
    prompts that gain much.

    `also` names a control that gains as much.
    """
    mean, strength = SHAPES[shape]
    base = rng.beta(mean * strength, (1 - mean) * strength, (n, 2))
    if few:
        better = np.where(
            rng.random((n, 1)) < gain / (0.5 * (1 - mean)), base + 0.5 * (1 - base), base
        )
    else:
        better = base + gain * (1 - base) / (1 - mean)
    return {
        a: rng.binomial(16, better if a in ("fused", also) else base) / 16
        for a in ("fused", *CONTROLS)
    }


def lines(
    runs: int, n: int, shape: str, draws: int = 500, flips: int = 500, **world: object
) -> dict[str, float]:
    """Share of each verdict over `runs` simulations, data and draws seeded apart."""
    found = Counter(
        verdict(
            arms(np.random.default_rng([7, n, i]), n, shape, **world),
            METRICS,
            MATCHED,  # type: ignore[arg-type]
            draws=draws,
            flips=flips,
            seed=i,
        ).line
        for i in range(runs)
    )
    return {
        line: found[line] / runs for line in ("supports expansion", "not supported", "inconclusive")
    }
