"""What a build will take, from running a few of its prompts: what `mora-data build --dry-run
--probe` prints.

Sixteen mined prompts, drawn by the run seed, go through every stage in a folder that is thrown
away; what they took is scaled to all prompts. Intervals are 95 % percentile bootstraps over the
probed prompts (2,000 resamples). Time: at the low end the server keeps the latency that it had and
fills every slot, at the high end it gets no more done than in the probe.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..engines import resolve
from ..errors import SettingsError
from ..pipeline import Builder
from ..run.prices import Prices, load_prices
from ..run.progress import Progress
from ..run.stats import RunStats
from ..settings import BuildSettings, Options
from ..sources.mine import MineCounts, mine, open_source
from .estimate import estimate

PROMPTS = 16
RESAMPLES = 2000
FROM_PROBE = ("requests", "tokens_in", "tokens_out", "cost", "seconds")


@dataclass(frozen=True, slots=True)
class _Took:
    """What one prompt took."""

    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None


def probe(
    settings: BuildSettings, sample: bool, data: Sequence[Path], quiet: bool = False
) -> dict[str, Any]:
    """The estimate of a dry run with `FROM_PROBE` measured, each as [low, high], and what the probe
    itself took.

    Raises:
        SettingsError: a role is simulated, so that nothing could be learned.
        MoraError: the probe failed as a build would.
    """
    if any(
        resolve(settings.role(r), sample).engine == "scripted"
        for r in ("policy", "rewriter", "judge")
    ):
        raise SettingsError(
            "--probe asks the real models, and the simulator would answer: give --base-url, or"
            " leave --probe out"
        )
    found = estimate(settings, sample, data)
    ids = [
        p.prompt_id for p in mine(open_source(settings, sample, list(data)), settings, MineCounts())
    ]
    if not ids:
        return found
    chosen = random.Random(settings.seed).sample(ids, min(PROMPTS, len(ids)))
    stats = RunStats(by_prompt={})
    with TemporaryDirectory() as folder:
        options = Options(
            sample, tuple(data), Path(folder) / "probe", "select", only=frozenset(chosen)
        )
        here = settings.model_copy(update={"executor": "local"})  # sixteen prompts need no cluster
        Builder(here, options, Progress(stats, quiet), stats).run()
    del found["assumed_tokens_per_s"]
    took = [_took(stats, prompt_id, load_prices(settings.limits.prices)) for prompt_id in chosen]
    return {
        **found,
        **_scaled(took, len(ids), stats, settings.seed),
        "from_probe": list(FROM_PROBE),
        "probe": {
            "prompts": len(chosen),
            "requests": stats.requests,
            "tokens_in": stats.tokens_in,
            "tokens_out": stats.tokens_out,
            "cost": _sum([t.cost for t in took]),
        },
    }


def _took(stats: RunStats, prompt_id: str, prices: Prices) -> _Took:
    models = (stats.by_prompt or {}).get(prompt_id, {})
    n_in, n_out, _, n = (sum(t[i] for t in models.values()) for i in range(4))
    return _Took(n, n_in, n_out, prices.cost({m: t[:3] for m, t in models.items()}))


def _scaled(took: Sequence[_Took], n_prompts: int, stats: RunStats, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    draws = [rng.choices(range(len(took)), k=len(took)) for _ in range(RESAMPLES)]
    scale = n_prompts / len(took)

    def interval(values: Sequence[float]) -> list[float]:
        sums = sorted(scale * sum(values[i] for i in draw) for draw in draws)
        return [sums[int(0.025 * RESAMPLES)], sums[int(0.975 * RESAMPLES) - 1]]

    requests = interval([t.requests for t in took])
    costs = [t.cost for t in took]
    known = [c for c in costs if c is not None]
    busy = [s.busy_s for s in stats.limiters]
    filled_s = max(
        (area / s.size for s, (area, _) in zip(stats.limiters, busy, strict=True)), default=0.0
    )
    probed_s = max(
        (there / s.size for s, (_, there) in zip(stats.limiters, busy, strict=True)), default=0.0
    )
    sent = max(sum(t.requests for t in took), 1)
    return {
        "requests": [round(x) for x in requests],
        "tokens_in": [round(x) for x in interval([t.tokens_in for t in took])],
        "tokens_out": [round(x) for x in interval([t.tokens_out for t in took])],
        "cost": [float(f"{x:.4g}") for x in interval(known)] if len(known) == len(costs) else None,
        "seconds": [
            round(requests[0] / sent * filled_s, 1),
            round(requests[1] / sent * probed_s, 1),
        ],
    }


def _sum(costs: Sequence[float | None]) -> float | None:
    known = [c for c in costs if c is not None]
    return float(f"{sum(known):.4g}") if len(known) == len(costs) else None
