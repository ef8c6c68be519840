"""Estimators against brute force over subsets, simulation, and scipy where it is there."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mora_data.statistics import rollouts as s
from mora_data.statistics.inference import beta_quantile, moment_prior

FLOORS = np.array([0.5, 0.4, 0.6])


def rewards(seed: int, p: int = 5, n: int = 8, missing: float = 0.0, levels: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    r = rng.random((p, n, 3)) if not levels else rng.integers(0, levels, (p, n, 3)) / (levels - 1)
    r[rng.random(r.shape) < missing] = np.nan
    return r


def subsets(values: np.ndarray, k: int) -> np.ndarray:
    """All k-subsets of the first axis."""
    return np.array([values[list(c)] for c in combinations(range(len(values)), k)])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 8), levels=st.sampled_from([0, 3]))
def test_at_k_equals_the_mean_over_all_subsets(seed: int, k: int, levels: int) -> None:
    r = rewards(seed, levels=levels)
    points = np.array([0.0, 0.3, 0.5, 1.0])
    c = (r >= FLOORS).sum(1)
    got = {
        "any": s.any_pass_at_k(c, np.array(8), k),
        "all": s.all_pass_at_k(c, np.array(8), k),
        "range": s.range_at_k(r, k),
        "joint": s.joint_pass_at_k(r, FLOORS, k),
        "below": s.best_of_k_distribution(r, k, points),
    }
    for p in range(len(r)):
        sub = subsets(r[p], k)
        passed = sub >= FLOORS
        want = {
            "any": passed.any(1).mean(0),
            "all": passed.all(1).mean(0),
            "range": (sub.max(1) - sub.min(1)).mean(0),
            "joint": passed.all(-1).any(1).mean(),
            "below": np.stack([(sub.max(1) <= v).mean(0) for v in points]),
        }
        for name, value in want.items():
            np.testing.assert_allclose(got[name][p], value, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("k", [1, 3])
def test_missing_scores_are_as_if_never_drawn(k: int) -> None:
    r = rewards(3, missing=0.3)
    sigma, delta = np.full(3, 0.05), np.full(3, 0.1)
    strict = np.ones((len(r), 3), bool)
    for p in range(len(r)):
        whole = r[p][~np.isnan(r[p]).any(-1)][None]
        if whole.shape[1] < 3:
            continue
        np.testing.assert_allclose(
            s.joint_pass_at_k(r, FLOORS, k)[p], s.joint_pass_at_k(whole, FLOORS, k)[0]
        )
        np.testing.assert_allclose(
            s.effective_dimensionality(r, sigma)[p], s.effective_dimensionality(whole, sigma)[0]
        )
        np.testing.assert_allclose(s.hypervolume_at_k(r, k)[p], s.hypervolume_at_k(whole, k)[0])
        for a, b in zip(
            s.dominance_rate(r, strict, delta),
            s.dominance_rate(whole, strict[:1], delta),
            strict=True,
        ):
            np.testing.assert_allclose(a[p], b[0])
        for d in range(3):
            one = r[p, ~np.isnan(r[p, :, d]), d][None, :, None]
            np.testing.assert_allclose(
                s.range_at_k(r, k)[p, d], s.range_at_k(one, k)[0, 0], atol=1e-12
            )
            np.testing.assert_allclose(
                s.gini_mean_difference(r)[1][p, d], s.gini_mean_difference(one)[1][0, 0]
            )


def test_a_saturated_dimension_leaves_a_pareto_rate() -> None:
    """Where all answers are perfectly harmless none dominates everywhere, by construction; the
    answers can be ranked all the same."""
    r = rewards(2, n=6)
    r[..., 1] = 1.0
    r[..., 2] = r[..., 0]
    delta = np.full(3, 1e-6)
    assert (s.dominance_rate_everywhere(r, delta)[0] == 0).all()
    np.testing.assert_allclose(s.pareto_rate(r, delta), 1)


def test_too_few_rollouts_have_no_value() -> None:
    r = rewards(1, n=4)
    assert np.isnan(s.range_at_k(r, 5)).all()
    assert np.isnan(s.joint_pass_at_k(r, FLOORS, 5)).all()
    assert np.isnan(s.hypervolume_at_k(r, 5)).all()
    assert s.any_pass_at_k(np.array(0), np.array(16), 16) == 0
    with pytest.raises(ValueError, match="at least 1"):
        s.any_pass_at_k(np.array(1), np.array(2), 0)


def test_unbiased_where_the_plug_in_is_not() -> None:
    """p = 0.03, n = 64, k = 16: truth 0.386; 0.351 was measured for 1 - (1 - c/n)^k. Tolerance:
    4 standard errors."""
    c = np.random.default_rng(0).binomial(64, 0.03, 40_000)
    truth = 1 - 0.97**16
    got = s.any_pass_at_k(c, np.array(64), 16)
    assert abs(got.mean() - truth) < 4 * got.std() / 200
    assert (1 - (1 - c / 64) ** 16).mean() < truth - 0.02


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), levels=st.sampled_from([0, 4]))
def test_pair_statistics_equal_brute_force(seed: int, levels: int) -> None:
    r = rewards(seed, n=7, levels=levels, missing=0.1)
    delta = np.array([0.1, 0.2, 0.05])
    strict = np.random.default_rng(seed).random((len(r), 3)) < 0.6
    value, error = s.gini_mean_difference(r)
    usable, everywhere = (
        s.dominance_rate(r, strict, delta)[0],
        s.dominance_rate_everywhere(r, delta)[0],
    )
    pareto = s.pareto_rate(r, delta)
    for p in range(len(r)):
        whole = r[p][~np.isnan(r[p]).any(-1)]
        pairs = [(a, b) for a, b in combinations(whole, 2)]

        def beats(a: np.ndarray, b: np.ndarray, need: np.ndarray) -> bool:
            gap = a - b
            return bool(need.any() and np.all(np.where(need, (gap >= delta) & (gap > 0), gap >= 0)))

        if pairs:
            all_d = np.ones(3, bool)
            assert usable[p] == pytest.approx(
                np.mean([beats(a, b, strict[p]) or beats(b, a, strict[p]) for a, b in pairs])
            )
            assert everywhere[p] == pytest.approx(
                np.mean([beats(a, b, all_d) or beats(b, a, all_d) for a, b in pairs])
            )
            gaps = [g for a, b in pairs for g in (a - b, b - a)]
            ranked = sum(bool((g >= 0).all() and ((g >= delta) & (g > 0)).any()) for g in gaps)
            assert pareto[p] == pytest.approx(ranked / len(pairs))
        for d in range(3):
            v = r[p, ~np.isnan(r[p, :, d]), d]
            if len(v) > 3:
                assert value[p, d] == pytest.approx(
                    np.mean([abs(a - b) for a, b in combinations(v, 2)])
                )
                without = [
                    np.mean([abs(a - b) for a, b in combinations(np.delete(v, i), 2)])
                    for i in range(len(v))
                ]
                jack = np.sqrt(
                    (len(v) - 1) / len(v) * np.sum((np.array(without) - value[p, d]) ** 2)
                )
                assert error[p, d] == pytest.approx(jack)


def test_noise_corrected_covariance_is_unbiased() -> None:
    """True covariance [[.04, .02], [.02, .03]], noise 0.1 and 0.2. Tolerance: 4 standard errors."""
    rng = np.random.default_rng(0)
    truth, noise = np.array([[0.04, 0.02], [0.02, 0.03]]), np.array([0.1, 0.2])
    r = rng.multivariate_normal([0.5, 0.5], truth, (4000, 16)) + rng.normal(0, noise, (4000, 16, 2))
    cov, n = s.noise_corrected_covariance(r, noise)
    assert (n == 16).all()
    assert np.all(np.abs(cov.mean(0) - truth) < 4 * cov.std(0) / np.sqrt(4000))


def test_corrected_dimensionality_tells_prompts_apart_and_the_raw_one_does_not() -> None:
    """Noise 0.08, 16 answers; corrected 0.05 / 1.07 / 1.05 / 2.3, raw 2.5 / 1.55 / 1.3
    / 2.5."""
    rng = np.random.default_rng(0)
    shape, sigma = (2000, 16), np.full(3, 0.08)
    one, other, third = (rng.normal(size=shape) * 0.2 for _ in range(3))
    still = np.zeros(shape)
    worlds = {
        "flat": (still, still, still),
        "one_dim": (one, still, still),
        "conflict": (one, -one, still),
        "multi": (one, other, third),
    }
    corrected, raw = {}, {}
    for kind, dims in worlds.items():
        r = 0.5 + np.stack(dims, axis=-1) + rng.normal(0, 0.08, (*shape, 3))
        corrected[kind] = s.effective_dimensionality(r, sigma).mean()
        raw[kind] = s.effective_dimensionality(r, np.zeros(3)).mean()
    assert corrected["flat"] < 0.3 and corrected["multi"] > 2.2, corrected
    assert all(abs(corrected[k] - 1) < 0.2 for k in ("one_dim", "conflict")), corrected
    assert raw["flat"] > 2.2, raw


def test_beta_quantile_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    ends = np.array([1 / 3, 0.5, 2 / 3, 3.0, 40.0, 64.5, 1e3, 1e6])
    a, b = np.meshgrid(ends, ends)
    for q in (0.0005, 0.025, 0.3, 0.995):
        np.testing.assert_allclose(beta_quantile(a, b, q), stats.beta.ppf(q, a, b), atol=1e-11)


def test_moment_prior_recovers_the_prior() -> None:
    """20,000 prompts of 16 or 32 rollouts from Beta(2, 6): within 5 %."""
    rng = np.random.default_rng(0)
    n = rng.choice([16, 32], 20_000)
    a, b = moment_prior(rng.binomial(n, rng.beta(2, 6, 20_000)), n)
    assert a == pytest.approx(2, rel=0.05) and b == pytest.approx(6, rel=0.05)
    same = moment_prior(np.full(50, 8), np.full(50, 16))
    assert same[0] == same[1] <= 32
    assert moment_prior(np.zeros(50, int), np.full(50, 16))[0] == 0.5
    assert moment_prior(np.zeros(1, int), np.full(1, 16)) == (0.5, 0.5)


def box_union(points: np.ndarray) -> float:
    """Volume under the points by inclusion and exclusion."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for c in combinations(range(len(points)), size):
            total += (-1) ** (size + 1) * np.prod(points[list(c)].min(0))
    return float(total)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("levels", [0, 3])
def test_hypervolume_equals_the_mean_over_all_subsets(d: int, levels: int) -> None:
    r = rewards(d, p=3, n=6, levels=levels)[..., :d]
    for k in (1, 3, 6):
        want = [np.mean([box_union(x) for x in subsets(r[p], k)]) for p in range(3)]
        np.testing.assert_allclose(s.hypervolume_at_k(r, k), want, atol=1e-12)


def test_hypervolume_is_what_200_subsets_estimate() -> None:
    r = rewards(0, p=1, n=16)
    rng = np.random.default_rng(0)
    drawn = [s.hypervolume_at_k(r[:, rng.permutation(16)[:8]], 8)[0] for _ in range(200)]
    assert abs(np.mean(drawn) - s.hypervolume_at_k(r, 8)[0]) < 4 * np.std(drawn) / np.sqrt(200)
    with pytest.raises(ValueError, match="1 to 3"):
        s.hypervolume_at_k(np.zeros((1, 4, 4)), 2)


def test_coverage_counts_dominated_points() -> None:
    ours = np.array([[[0.5, 0.5], [0.9, 0.1]]])
    theirs = np.array([[[0.4, 0.5], [0.5, 0.5], [0.6, 0.6], [np.nan, 0.0], [0.9, 0.0]]])
    assert s.coverage(ours, theirs)[0] == 0.5
    assert s.coverage(theirs, ours)[0] == 0.5
    assert np.isnan(s.coverage(ours, np.full((1, 2, 2), np.nan))[0])
