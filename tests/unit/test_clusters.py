"""Batches of prompts stand for prompts: the same estimates and counts, the same spread within
Monte-Carlo error."""

from __future__ import annotations

import numpy as np
import pytest
from support.worlds import verdict

from mora_data.report import arms as report_arms
from mora_data.report import measure
from mora_data.report.arms import Gathered
from mora_data.report.measure import MOST, Scale
from mora_data.statistics.inference import (
    CONTROLS,
    Sums,
    bootstrap_of,
    cluster_bootstrap,
    gains_by_prompt,
    verdict_of,
)

PROMPTS = 40_000


def ids(n: int) -> list[str]:
    return [f"{v:016x}" for v in np.random.default_rng(5).integers(0, 1 << 63, n).tolist()]


def values() -> np.ndarray:
    """A mean, a rate of 0.3 %, a skewed metric that half of the prompts have; the first depends on
    the place in the source."""
    rng = np.random.default_rng(0)
    mean = rng.normal(0.3, 1, PROMPTS) + np.linspace(-1, 1, PROMPTS)
    some = np.where(rng.random(PROMPTS) < 0.5, rng.exponential(size=PROMPTS), np.nan)
    return np.stack([mean, (rng.random(PROMPTS) < 0.003).astype(float), some], axis=1)


def added_up(values_P_M: np.ndarray, n_prompts: int, whole: bool = False) -> Sums:
    """In partitions of 512, as a report of so many prompts does."""
    report = Gathered(Scale((), np.zeros(0), np.zeros(0), 1, 1), n_prompts > MOST)
    added, names = Sums.empty(values_P_M.shape[1], whole), ids(len(values_P_M))
    for at in range(0, len(values_P_M), 512):
        added.add(report.labels("", names[at : at + 512]), values_P_M[at : at + 512])
    return report.sums(added)


def test_few_prompts_are_clusters_of_their_own() -> None:
    some = values()[:700]
    by = added_up(some, 700)
    ours, theirs = bootstrap_of(by, 200, 3), cluster_bootstrap(some, draws=200, seed=3)
    np.testing.assert_array_equal(ours.draws_B_M, theirs.draws_B_M)
    np.testing.assert_array_equal(ours.acceleration_M, theirs.acceleration_M)


@pytest.mark.parametrize(("batches", "tolerance"), [(20_000, 0.06), (1_000, 0.10)])
def test_batches_agree_with_prompts_at_40000(
    batches: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard errors of B draws differ by 1 / sqrt(2 B) of themselves (1.8 % at 1,500), those of G
    batches by 1 / sqrt(2 G)."""
    monkeypatch.setattr(measure, "BATCHES", batches)
    monkeypatch.setattr(report_arms, "BATCHES", batches)
    all_values = values()
    by = added_up(all_values, MOST + 1)
    assert len(by.sums_C_M) == batches
    ours, theirs = bootstrap_of(by, 1500, 1), cluster_bootstrap(all_values, draws=1500, seed=2)
    np.testing.assert_allclose(ours.estimate_M, theirs.estimate_M, rtol=1e-9)
    np.testing.assert_array_equal(by.numbers_C_M.sum(0), (~np.isnan(all_values)).sum(0))
    np.testing.assert_allclose(ours.draws_B_M.std(0), theirs.draws_B_M.std(0), rtol=tolerance)
    for a, b in zip(ours.bca(), theirs.bca(), strict=True):
        # ends of 1,500 draws: 0.1 each time
        np.testing.assert_array_less(np.abs(a - b), 0.4 * theirs.draws_B_M.std(0))
    rare = slice(1, 2)  # cases count there, not batches
    np.testing.assert_array_equal(ours.mixed_M[rare], theirs.mixed_M[rare])
    for a, b in zip(ours.rate(rare), theirs.rate(rare), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance)


def test_rows_that_count_as_a_whole_leave_out_what_is_not() -> None:
    some = values()[:300]
    by, whole = added_up(some, 300, whole=True), ~np.isnan(some).any(1)
    np.testing.assert_array_equal(by.numbers_C_M[:, 0], whole)
    np.testing.assert_allclose(by.sums_C_M.sum(0), some[whole].sum(0))


@pytest.mark.parametrize("gain", [0.0, 0.03])
def test_the_verdict_on_batches_is_that_on_prompts(gain: float) -> None:
    rng = np.random.default_rng(1)
    base = rng.beta(1, 4, (PROMPTS, 1)) * np.array([0.9, 0.8])
    arms = {
        a: rng.binomial(16, base + (gain if a == "fused" else 0)) / 16 for a in ("fused", *CONTROLS)
    }
    arms["single"][::7] = np.nan
    many = MOST + 1
    batched = tuple(added_up(d, many) for d in gains_by_prompt(arms))
    gaps = {"single": 0.0, "generic": 0.01}
    ours, theirs = (
        f(x, ["a", "b"], gaps, draws=300, flips=300, seed=1)
        for f, x in ((verdict_of, batched), (verdict, arms))
    )  # type: ignore[operator]
    assert ours.line == theirs.line == ("supports expansion" if gain else "not supported")
    for a, b in zip(ours.comparisons, theirs.comparisons, strict=True):
        assert (a["n"], a["gain"]) == (b["n"], pytest.approx(b["gain"]))
        assert a["low"] == pytest.approx(b["low"], abs=0.15 * (b["high"] - b["low"]))
