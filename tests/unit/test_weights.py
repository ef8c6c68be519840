"""Weights for a target: solved, refused, and as near as can be."""

from __future__ import annotations

import numpy as np
import pytest

from mora_data.report.weights import LEAST_ESS, solve_dual


def world(rho: float, p: int = 200, n: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    r = rng.multivariate_normal([0.5, 0.5], 0.02 * np.array([[1, rho], [rho, 1]]), (p, n))
    return np.clip(r, 0, 1)


def test_a_target_in_reach_is_met_with_the_least_change() -> None:
    r = world(-0.5)
    found = solve_dual(r, np.array([0.55, 0.52]))
    assert found.feasible and found.ess > 8 and found.n == 200
    np.testing.assert_allclose(found.reached_D, [0.55, 0.52], atol=1e-3)
    optimize = pytest.importorskip("scipy.optimize")

    def dual(lam: np.ndarray) -> float:
        return float(np.log(np.exp(r @ lam).mean(1)).mean() - lam @ [0.55, 0.52])

    theirs = optimize.minimize(dual, np.ones(2), bounds=[(0, None)] * 2).x
    np.testing.assert_allclose(found.weights_D, theirs, rtol=0.02)


def test_a_target_below_the_mean_needs_no_weight() -> None:
    found = solve_dual(world(0.0), np.array([0.55, 0.1]))
    assert found.weights_D[1] == 0 and found.weights_D[0] > 0 and found.reached_D[1] > 0.4
    assert solve_dual(world(0.0), np.array([0.1, 0.1])).weights_D.tolist() == [0, 0]


def test_a_target_out_of_reach_is_refused_with_the_nearest_point() -> None:
    r = world(-0.9)
    target = np.array([0.8, 0.8])
    found = solve_dual(r, target)
    assert not found.feasible and found.ess < LEAST_ESS
    assert np.all(found.nearest_D < target) and np.all(found.reached_D >= found.nearest_D - 1e-3)
    # no direction's best rollouts reach past a feasible point; at the frontier some direction's
    # just do
    directions = np.stack([np.linspace(0, 1, 101), np.linspace(1, 0, 101)])
    slack = (r @ directions).max(1).mean(0) - found.nearest_D @ directions
    assert -2e-3 < slack.min() < 0.02
    assert ((r @ directions).max(1).mean(0) - target @ directions).min() < 0


def test_missing_scores_are_left_out() -> None:
    r = world(0.0)
    more = np.concatenate([r, np.full_like(r, np.nan)], axis=1)
    more[:, 16:, 0] = 0.9
    np.testing.assert_allclose(
        solve_dual(more, np.array([0.55, 0.55])).weights_D,
        solve_dual(r, np.array([0.55, 0.55])).weights_D,
    )
    with pytest.raises(ValueError, match="no rollout"):
        solve_dual(np.full((2, 3, 2), np.nan), np.array([0.5, 0.5]))
