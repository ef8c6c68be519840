"""Intervals cover, tests keep their level, the verdict says what the rule says."""

from __future__ import annotations

import numpy as np
import pytest
from support.worlds import verdict

from mora_data.statistics.inference import CONTROLS, cluster_bootstrap, holm, sign_flip_test

METRICS = ["dominance_rate", "joint_pass"]
MATCHED = {"single": 0.01, "generic": -0.02}


def world(rng: np.random.Generator, n: int, **gain: float) -> dict[str, np.ndarray]:
    """Two correlated metrics per prompt, shared by the arms but for each arm's gain and its own
    sampling."""
    base = rng.beta(1, 4, (n, 1)) * np.array([1.0, 0.8])
    return {
        arm: rng.binomial(16, np.clip(base + gain.get(arm, 0.0), 0, 1)) / 16
        for arm in ("fused", *CONTROLS)
    }


KINDS = ("percentile", "bca")


def cover(draw: object, truth: float, runs: int = 1000) -> dict[str, float]:
    """How often the interval of each kind holds the truth."""
    hits = dict.fromkeys(KINDS, 0)
    for i in range(runs):
        boot = cluster_bootstrap(draw(np.random.default_rng([1, i])), draws=500, seed=i)  # type: ignore[operator]
        for kind in KINDS:
            low, high = getattr(boot, kind)()
            hits[kind] += bool(low[0] <= truth <= high[0])
    return {kind: n / runs for kind, n in hits.items()}


def test_intervals_cover_a_mean_and_a_skewed_one() -> None:
    """1,000 simulations of 100 and of 300 prompts, data and draws seeded apart: 92-98 % (standard
    error 0.7 %)."""
    mean = cover(lambda rng: rng.normal(0.3, 1, (100, 1)), 0.3)
    skewed = cover(lambda rng: (rng.random((300, 1)) < 0.03).astype(float), 0.03)
    assert all(0.92 <= found[kind] <= 0.98 for found in (mean, skewed) for kind in KINDS), (
        mean,
        skewed,
    )


def test_draws_are_those_of_index_resampling() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 2))
    boot = cluster_bootstrap(values, draws=4000)
    by_index = np.array([values[rng.integers(0, 50, 50)].mean(0) for _ in range(4000)])
    np.testing.assert_allclose(boot.draws_B_M.std(0), by_index.std(0), rtol=0.06)
    np.testing.assert_allclose(boot.estimate_M, values.mean(0))
    np.testing.assert_array_equal(boot.draws_B_M, cluster_bootstrap(values, draws=4000).draws_B_M)


def test_rows_of_a_cluster_stay_together() -> None:
    """Ten copies of each row in one cluster say no more than the row: the interval does not
    shrink."""
    values = np.random.default_rng(0).normal(size=(60, 1))
    copies, ids = np.repeat(values, 10, axis=0), np.repeat(np.arange(60), 10)
    once, often = cluster_bootstrap(values), cluster_bootstrap(copies, ids)
    np.testing.assert_allclose(once.draws_B_M, often.draws_B_M)
    assert cluster_bootstrap(copies).draws_B_M.std() < 0.5 * once.draws_B_M.std()


def test_missing_values_leave_their_metric_only() -> None:
    values = np.array([[1.0, 0.0], [3.0, np.nan], [np.nan, np.nan]])
    boot = cluster_bootstrap(values, draws=50)
    assert boot.estimate_M.tolist() == [2.0, 0.0] and boot.n_M.tolist() == [2, 1]
    low, high = boot.percentile()
    assert np.isnan(low[1]) and np.isnan(high[1])


def test_a_metric_that_few_prompts_have_gets_both_ends() -> None:
    """Draws without any of these prompts say nothing about it, and do not push an end out of
    reach."""
    values = np.full((60, 1), np.nan)
    values[:3, 0] = 0.2, 0.4, 0.9
    boot = cluster_bootstrap(values)
    assert np.isnan(boot.draws_B_M).mean() > 0.03
    for low, high in (boot.percentile(), boot.bca()):
        assert 0.2 <= low[0] < 0.5 < high[0] <= 0.9


def test_bca_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).exponential(size=80)
    low, high = cluster_bootstrap(values[:, None], draws=20_000).bca()
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    np.testing.assert_allclose([low[0], high[0]], theirs, atol=0.02)


def test_sign_flip_equals_all_flips_of_a_small_sample() -> None:
    d = np.array([0.3, 0.1, -0.05, 0.4, 0.2, 0.15])
    flips = np.array([[1 if i >> j & 1 else -1 for j in range(6)] for i in range(64)])
    exact = (np.abs(flips @ d) >= abs(d.sum()) - 1e-12).mean()
    p = sign_flip_test(np.stack([d, np.zeros(6), np.full(6, np.nan)], axis=1), draws=40_000)
    assert abs(p[0] - exact) < 4 * np.sqrt(exact / 40_000)
    assert p[1] == p[2] == 1


def test_sign_flip_keeps_its_level() -> None:
    """1,000 nulls at once, as columns: rejections at 5 % within 4 standard errors."""
    p = sign_flip_test(np.random.default_rng(0).standard_t(3, (60, 1000)), draws=2000)
    assert abs((p < 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 1000)


def test_holm() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.6, 0.7])), [1.0, 1.0])
    assert holm(np.zeros(0)).shape == (0,)


def rate(n_runs: int, n: int, **gain: float) -> dict[str, float]:
    lines = [
        verdict(
            world(np.random.default_rng([1, i]), n, **gain),
            METRICS,
            MATCHED,
            draws=200,
            flips=500,
            seed=i,
        ).line
        for i in range(n_runs)
    ]
    return {
        line: lines.count(line) / n_runs
        for line in ("supports expansion", "not supported", "inconclusive")
    }


def test_the_verdict_seldom_supports_a_null() -> None:
    """400 nulls, and 400 in which fused beats all but one control: at most 5 % "supports"."""
    assert rate(400, 100)["supports expansion"] <= 0.05
    assert rate(400, 100, fused=0.2, generic=0.2)["supports expansion"] <= 0.05


def test_the_verdict_finds_a_gain_and_rules_one_out() -> None:
    assert rate(40, 200, fused=0.15, single=0.02)["supports expansion"] >= 0.95
    assert rate(10, 6000)["not supported"] >= 0.95
    assert rate(10, 6000, fused=0.1, single=0.1)["not supported"] >= 0.95


def test_the_verdict_needs_every_arm_matched_in_length() -> None:
    arms = world(np.random.default_rng(0), 300, fused=0.2)
    assert verdict(arms, METRICS, MATCHED, draws=200, flips=500).line == "supports expansion"
    for gaps in ({"single": 0.2, "generic": 0.0}, {"single": 0.0}):
        found = verdict(arms, METRICS, gaps, draws=200, flips=500)
        assert found.line == "inconclusive" and "length" in found.reason


def test_a_prompt_without_a_fused_answer_is_in_no_comparison() -> None:
    arms = world(np.random.default_rng(0), 100, fused=0.2)
    arms["fused"][:40] = np.nan
    arms["generic"][:] = np.nan
    found = verdict(arms, METRICS, MATCHED, draws=200, flips=500)
    assert [c["n"] for c in found.comparisons] == [60, 60, 60, 60, 0, 0]
    assert found.comparisons[-1]["gain"] is None and found.comparisons[-1]["p_holm"] == 1
    assert found.line == "inconclusive" and found.over_best == {
        "dominance_rate": None,
        "joint_pass": None,
    }
