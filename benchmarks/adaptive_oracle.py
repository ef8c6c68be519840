"""A stopper that knows from which distributions the prompts of adaptive.py were drawn: no rule
foresees their kinds better.

Its posterior is over MIX prompts drawn from the mix. In each, an answer passes one of the eight
patterns of three floors with known chances; after n answers a drawn prompt weighs as much as it
makes their patterns likely, and the answers to come are drawn from prompts picked by weight, slips
of the judge included. What it finds is the posterior chance of each kind at N, up to the number of
draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from adaptive import LAST, SHARES, SLIP

MIX, DRAWS = 30_000, 128
PATTERNS = np.array([[k >> d & 1 for d in range(3)] for k in range(8)])
NORMAL = NormalDist()
GRID = np.array([NORMAL.inv_cdf((i + 0.5) / 60) for i in range(60)])


def foresight(
    rewards: Any, looks: Sequence[int], rule: tuple[Any, Any, Any], seed: int = 123
) -> Any:
    """Chance of each kind at every look; P x looks x kinds."""
    from mora_data.statistics.rollouts import decisions

    rng = np.random.default_rng(seed)
    chances = np.stack([_prompt(int(k), rng) for k in rng.choice(4, MIX, p=SHARES)])
    logs, steps = np.log(np.maximum(chances, 1e-12)), np.cumsum(chances, axis=1)
    seen = (rewards >= rule[0]).astype(int) @ np.array([1, 2, 4])
    out = np.zeros((len(rewards), len(looks), 5))
    for p in range(len(rewards)):
        for i, n in enumerate(looks):
            weight = logs @ np.bincount(seen[p, :n], minlength=8)
            weight = np.exp(weight - weight.max())
            like = rng.choice(MIX, DRAWS, p=weight / weight.sum())
            pattern = (rng.random((DRAWS, LAST - n))[..., None] > steps[like][:, None, :-1]).sum(-1)
            future = _scored(PATTERNS[pattern], rng)
            whole = np.concatenate([np.broadcast_to(rewards[p, :n], (DRAWS, n, 3)), future], axis=1)
            out[p, i] = np.bincount(decisions(whole, *rule).kind_P, minlength=5) / DRAWS
    return out


def _scored(passes: Any, rng: np.random.Generator) -> Any:
    levels = np.where(passes, 5, 2)
    slips = np.where(rng.random(levels.shape) < 0.5, 1, -1) * (rng.random(levels.shape) < SLIP)
    return (np.clip(levels + slips, 1, 5) - 1) / 4


def _prompt(kind: int, rng: np.random.Generator) -> Any:
    """The chance of each pattern in a prompt of one kind."""
    p = np.array([rng.beta(60, 1) if rng.random() < 0.7 else rng.beta(1, 60) for _ in range(3)])
    if kind == 1:
        p[rng.integers(3)] = rng.beta(4, 4)
    if kind < 2:
        return np.prod(np.where(PATTERNS, p, 1 - p), axis=1)
    i, j, both = (
        (0, 1, _at_odds(rng)) if kind == 2 else (*rng.choice(3, 2, replace=False), _together(rng))
    )
    rest = 3 - i - j
    return both[PATTERNS[:, i], PATTERNS[:, j]] * np.where(PATTERNS[:, rest], p[rest], 1 - p[rest])


def _at_odds(rng: np.random.Generator) -> Any:
    p = rng.beta(4, 4)
    return np.array([[(1 - p) * 0.05, (1 - p) * 0.95], [p * 0.95, p * 0.05]])


def _together(rng: np.random.Generator) -> Any:
    """Two dimensions that share a Gaussian factor: the chance of fail or pass in each."""
    passes = [
        1
        - np.array(
            [
                NORMAL.cdf(float(z))
                for z in (NORMAL.inv_cdf(1 - p) - np.sqrt(0.5) * GRID) / np.sqrt(0.5)
            ]
        )
        for p in rng.beta(4, 4, 2)
    ]
    sides = [np.stack([1 - a, a]) for a in passes]
    return np.einsum("ig,jg->ij", *sides) / len(GRID)
