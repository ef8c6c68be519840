"""What only the GPU scale asks: the latent skill (P3), the number of pairs (P5), the dimensions in
sequence (P6).

    skills(lab)       effect of fused over identity at every q
    portions(lab)     joint pass over the number of fused pairs, at equal steps
    sequences(lab)    backward transfer of three stages, with and without a constraint on the
    dimensions aligned before
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mora_data.statistics.training import (
    backward_transfer,
    hierarchical_bootstrap,
    interval,
    scaling_fit,
)

from .analysis import DRAWS
from .building import build, write_pairs
from .lab import Lab, base, built, learning_rate, main_methods, n_pairs, tested, trained
from .training import METRICS, dpo
from .world import DIMENSIONS

JOINT = METRICS.index("joint_pass")
KEPT, FREE = "kept", "free"


def skills(lab: Lab) -> dict[str, Any]:
    """Fused minus identity in joint pass at every q, and its growth from the lowest q to the
    highest."""
    effect, draws = {}, {}
    for q in sorted(lab.scale.skills):
        methods = {
            m: lambda seed, m=m, q=q: trained(lab, q, m, seed, learning_rate(lab))  # type: ignore[misc]
            for m in ("identity", "fused")
        }
        found = tested(
            lab, q, "plain", methods if q != lab.scale.skills[0] else main_methods(lab, q)
        )
        a, b = hierarchical_bootstrap(
            [found.methods[m] for m in ("fused", "identity")], found.clusters_P, DRAWS
        )
        draws[q] = a.draws_B_M[:, JOINT] - b.draws_B_M[:, JOINT]
        effect[q] = {
            "value": float(a.estimate_M[JOINT] - b.estimate_M[JOINT]),
            "interval": interval(draws[q]),
        }
    low, high = min(effect), max(effect)
    growth = {
        "value": effect[high]["value"] - effect[low]["value"],
        "interval": interval(draws[high] - draws[low]),
    }
    return {
        "effect": effect,
        "growth": growth,
        "verdict": verdict_3(effect[low]["interval"], growth["interval"]),
    }


def verdict_3(at_zero: Sequence[float] | None, growth: Sequence[float] | None) -> str:
    """P3: falsified where the effect at q = 0 is clear, or does not grow."""
    if at_zero is None or growth is None:
        return "not shown: no interval"
    if not at_zero[0] <= 0 <= at_zero[1]:
        return "falsified: the effect at q = 0 is clear"
    if growth[0] > 0:
        return "held: about 0 at q = 0, and it grows"
    return (
        "falsified: it does not grow"
        if growth[1] <= 0
        else "not shown: the growth's interval holds 0"
    )


def portions(lab: Lab) -> dict[str, Any]:
    """Joint pass on plain questions after DPO on a share of the fused pairs, as many steps for
    each; the saturation curve."""
    q, rate = lab.scale.skills[0], learning_rate(lab)
    sizes = [min(int(n_pairs(lab, q, s) * f) for s in range(lab.seeds)) for f in lab.scale.portions]
    methods: dict[str, Callable[[int], Path]] = {
        f"fused_{n}": lambda seed, n=n: trained(lab, q, "fused", seed, rate, n) for n in sizes
    }  # type: ignore[misc]
    found = tested(lab, q, "portions", methods)
    names = ["base", *methods]
    drawn = hierarchical_bootstrap([found.methods[m] for m in names], found.clusters_P, DRAWS)
    y = np.array([d.estimate_M[JOINT] for d in drawn])
    fit = scaling_fit([0, *sizes], y, np.stack([d.draws_B_M[:, JOINT] for d in drawn], axis=1))
    assert fit is not None  # the base policy and three sizes at least
    beyond = fit.at_edge or fit.n0 > max(sizes)
    return {
        "sizes": [0, *sizes],
        "joint_pass": y.tolist(),
        "b": fit.b,
        "b_interval": fit.b_interval,
        "n0": fit.n0,
        "verdict": (
            f"{'falsified' if beyond else 'held'}: n0 = {fit.n0:.0f}, the largest size {max(sizes)}"
        ),
    }


def sequences(lab: Lab) -> dict[str, Any]:
    """One dimension after the other, each stage's reference the stage before; pairs of fused
    questions chosen for it."""
    q, rate = lab.scale.skills[0], learning_rate(lab)
    methods: dict[str, Callable[[int], Path]] = {
        f"{kind}_{t}": lambda seed, kind=kind, t=t: staged(lab, q, kind, t, seed, rate)  # type: ignore[misc]
        for kind in (KEPT, FREE)
        for t in range(1, 1 + len(DIMENSIONS))
    }
    found = tested(lab, q, "sequences", methods)
    names = ["base", *methods]
    drawn = dict(
        zip(
            names,
            hierarchical_bootstrap([found.methods[m] for m in names], found.clusters_P, DRAWS),
            strict=True,
        )
    )
    at = [METRICS.index(f"reward_{d}") for d in DIMENSIONS]

    def transfer(kind: str, b: int | None) -> float:
        chain = [drawn[n] for n in ("base", *(f"{kind}_{t}" for t in (1, 2, 3)))]
        stages = [d.estimate_M[at] if b is None else d.draws_B_M[b, at] for d in chain]
        return float(np.nanmean(backward_transfer(np.stack(stages), [1, 2, 3])[:2]))

    gap = [transfer(KEPT, b) - transfer(FREE, b) for b in range(DRAWS)]
    ends = interval(np.array(gap))
    whole = {k: transfer(k, None) for k in (KEPT, FREE)}
    verdict = "not shown: the interval holds 0"
    if ends is not None and not ends[0] <= 0 < ends[1]:
        verdict = (
            "held: the constraint keeps more"
            if ends[0] > 0
            else "falsified: no better than without it"
        )
    return {
        "backward_transfer": whole,
        "difference": whole[KEPT] - whole[FREE],
        "interval": ends,
        "verdict": verdict,
    }


def staged(lab: Lab, q: float, kind: str, t: int, seed: int, rate: float) -> Path:
    """The checkpoint after stage t: pairs of the published stages (kept), or of each dimension as
    if it came first (free)."""
    if t == 0:
        return base(lab, q)
    run, d = built(lab, q, seed), DIMENSIONS[t - 1]
    before, out = (
        staged(lab, q, kind, t - 1, seed, rate),
        lab.out / "models" / f"seq-{kind}-{t}-s{seed}",
    )

    def work() -> dict[str, Any]:
        source, config = run, f"stage{t}_{d}"
        if kind == FREE and t > 1:
            order = [d, *(x for x in DIMENSIONS if x != d)]
            source = build(
                lab.out / f"{d}-first-s{seed}",
                lab.scale,
                base(lab, q),
                seed,
                start=run,
                order=order,
            )
            config = f"stage1_{d}"
        n = n_pairs(lab, q, seed)
        folder = write_pairs(
            source, "fused", n, lab.out / "pairs" / out.name, seed, config, at_most=True
        )
        return dpo(
            folder,
            before,
            out,
            lab.scale,
            rate,
            seed,
            max(1, -(-n // lab.scale.batch) * lab.scale.epochs),
        )

    lab.step(out.name, work)
    return out
