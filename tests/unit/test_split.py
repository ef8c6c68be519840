"""The presamples decide, fresh answers give the numbers before fusion: planted kinds, and the bias
of reuse."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np

from mora_data.settings import PresampleSettings
from mora_data.simulator.engine import JUDGE_NOISE, draw_levels
from mora_data.simulator.language import DIMENSIONS, clip, generated_prompts, interpret
from mora_data.statistics.inference import cluster_bootstrap
from mora_data.statistics.rollouts import joint_pass_at_k, profiles

FLOORS, SIGMA = np.full(3, 0.75) - 1e-9, np.full(3, 0.09)
N_PRESAMPLES, N_FRESH = 64, 16


@lru_cache(maxsize=1)
def planted() -> tuple[list[str], np.ndarray]:
    """Kinds of 300 generated prompts of the scripted world, and their judged answers: presamples,
    then fresh ones."""
    rng = random.Random(0)
    readings = [interpret(str(r["prompt"]), True) for r in generated_prompts(300, 5)]
    rows = [
        [
            [(clip(levels[d] + rng.gauss(0, JUDGE_NOISE)) - 1) / 4 for d in DIMENSIONS]
            for levels in (draw_levels(r, rng) for _ in range(N_PRESAMPLES + N_FRESH))
        ]
        for r in readings
    ]
    return [r.kind for r in readings], np.array(rows)


def test_kinds_are_recovered_by_the_schedule() -> None:
    kinds, rewards = planted()
    found = ["undecided"] * len(kinds)
    for n in PresampleSettings().n:
        now = profiles(rewards[:, :n], DIMENSIONS, FLOORS, SIGMA, PresampleSettings())
        found = [p.kind if f == "undecided" else f for f, p in zip(found, now, strict=True)]
    recovered = np.mean([a == b for a, b in zip(found, kinds, strict=True)])
    assert recovered >= 0.9, recovered


def gain(rewards: np.ndarray, mined: np.ndarray, earlier: np.ndarray) -> tuple[float, float, float]:
    """Identity arm: joint pass of fresh answers minus `earlier`, over the mined prompts, with its
    95 % interval."""
    fresh = joint_pass_at_k(rewards[:, N_PRESAMPLES:], FLOORS, 1)
    boot = cluster_bootstrap((fresh - earlier)[mined][:, None])
    low, high = boot.percentile()
    return float(boot.estimate_M[0]), float(low[0]), float(high[0])


def test_nothing_is_gained_where_nothing_changed_and_reuse_would_say_otherwise() -> None:
    """Mined for a joint pass of at most 0.25; the same samples then show a gain that no
    arm made."""
    _, rewards = planted()
    passed = np.all(rewards[:, :16] >= FLOORS, axis=-1).mean(1)
    mined = passed <= 0.25
    honest = gain(rewards, mined, joint_pass_at_k(rewards[:, 16:24], FLOORS, 1))
    reused = gain(rewards, mined, passed)
    assert honest[1] <= 0 <= honest[2], honest
    assert reused[1] > 0, reused


def test_the_spurious_gain_is_as_large_as_stated() -> None:
    """Joint pass rates p ~ Beta(1.5, 2.5), 16 samples, mined at 0.25 or less: reuse shows a gain of
    about 0.05 to 0.09."""
    rng = np.random.default_rng(0)
    p = rng.beta(1.5, 2.5, 4000)[:, None]
    rewards = (rng.random((4000, N_PRESAMPLES + N_FRESH)) < p)[..., None] * np.ones(3)
    seen = rewards[:, :16, 0].mean(1)
    estimate, low, _ = gain(rewards, seen <= 0.25, seen)
    assert low > 0 and 0.04 < estimate < 0.1, estimate
    honest = gain(rewards, seen <= 0.25, joint_pass_at_k(rewards[:, 16:32], FLOORS, 1))
    assert honest[1] <= 0 <= honest[2], honest
