"""Statistics of training: intervals that cover, curves that are found again, sentences that claim
no more than they may."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mora_data.evaluate.report import (
    Difference,
    backward_transfer,
    bootstrap_p,
    draws_interval,
    hierarchical_bootstrap,
    length_controlled_win_rate,
    relative_improvement,
    scaling_fit,
    statement,
)


def test_differences_are_paired_by_prompt_and_cover_the_seeds() -> None:
    rng = np.random.default_rng(0)
    prompts = rng.normal(0, 1, 400)
    reference = (prompts + rng.normal(0, 0.1, 400))[None, :, None]
    same = (prompts + 0.05 + rng.normal(0, 0.1, 400))[None, :, None]
    spread = np.stack([prompts + shift + rng.normal(0, 0.1, 400) for shift in (-0.4, 0.1, 0.5)])[
        :, :, None
    ]
    ref, one, many = hierarchical_bootstrap([reference, same, spread], draws=1000)
    low, high = draws_interval((one.draws_B_M - ref.draws_B_M)[:, 0]) or (0, 0)
    assert 0.03 < low < 0.05 < high < 0.07  # an unpaired interval would be +-0.14
    low, high = draws_interval((many.draws_B_M - ref.draws_B_M)[:, 0]) or (0, 0)
    assert low < -0.1 and high > 0.25  # the seeds disagree
    assert one.estimate_M[0] == pytest.approx(same.mean())


def test_hierarchical_interval_covers_about_95_percent() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for k in range(120):
        seeds = rng.normal(0, 0.1, 8)
        values = (0.3 + seeds[:, None] + rng.normal(0, 0.5, (8, 200)))[:, :, None]
        (r,) = hierarchical_bootstrap([values], draws=300, seed=k)
        low, high = draws_interval(r.draws_B_M[:, 0]) or (9, 9)
        hits += low <= 0.3 <= high
    assert 0.86 <= hits / 120 <= 1.0


def test_missing_values_are_no_zeros() -> None:
    values = np.full((1, 10, 2), 0.5)
    values[0, ::2, 0] = np.nan
    values[0, :, 1] = np.nan
    (r,) = hierarchical_bootstrap([values], draws=200)
    assert (
        r.estimate_M[0] == 0.5
        and np.isnan(r.estimate_M[1])
        and draws_interval(r.draws_B_M[:, 1]) is None
    )


def test_forty_thousand_rows_take_seconds() -> None:
    values = np.random.default_rng(0).normal(0, 1, (2, 20_000, 6))
    started = time.process_time()
    hierarchical_bootstrap([values], draws=500)
    assert time.process_time() - started < 20


def test_length_control_takes_the_length_out() -> None:
    rng = np.random.default_rng(0)
    gap = rng.normal(20, 20, 3000)
    # wins by length alone
    wins = (rng.random(3000) < 1 / (1 + np.exp(-2 * np.tanh(gap / gap.std())))).astype(float)
    rate, ends = length_controlled_win_rate(wins, gap)
    assert (
        wins.mean() > 0.65
        and rate == pytest.approx(0.5, abs=0.04)
        and ends
        and ends[0] < 0.5 < ends[1]
    )
    assert length_controlled_win_rate(np.full(50, 0.5), np.zeros(50))[0] == pytest.approx(0.5)
    always, _ = length_controlled_win_rate(np.ones(50), rng.normal(0, 1, 50))
    assert 0.9 < always <= 1
    assert np.isnan(length_controlled_win_rate(np.array([np.nan, 1.0]), np.zeros(2))[0])


def test_rows_of_one_cluster_are_drawn_together() -> None:
    """Ten copies of each row tell no more than one."""
    rng = np.random.default_rng(1)
    gap, wins = rng.integers(-20, 20, 100).astype(float), rng.integers(0, 2, 100).astype(float)
    rate, ends = length_controlled_win_rate(wins, gap)
    copies = length_controlled_win_rate(
        np.tile(wins, 10), np.tile(gap, 10), clusters_P=np.tile(np.arange(100), 10)
    )
    apart = length_controlled_win_rate(np.tile(wins, 10), np.tile(gap, 10))
    assert ends and copies[1] and apart[1] and copies[0] == pytest.approx(rate, abs=1e-3)
    assert copies[1] == pytest.approx(ends, abs=5e-3) and apart[1][1] - apart[1][0] < 0.5 * (
        ends[1] - ends[0]
    )


def test_backward_transfer_counts_from_the_own_stage() -> None:
    scores = np.array([[0.1, 0.1, 0.5], [0.6, 0.1, 0.5], [0.4, 0.7, 0.4]])
    found = backward_transfer(scores, [1, 2, None])
    assert found[:2] == pytest.approx([-0.2, 0.0]) and np.isnan(found[2])


def test_scaling_curve_is_found_again_and_a_line_is_said_to_be_one() -> None:
    n = [0, 250, 500, 1000, 2000]
    y = 0.4 + 0.2 * (1 - np.exp(-np.array(n) / 400))
    draws = y + np.random.default_rng(0).normal(0, 0.01, (300, 5))
    fit = scaling_fit(n, y, draws)
    assert (
        fit
        and fit.a == pytest.approx(0.4, abs=0.01)
        and fit.b == pytest.approx(0.2, abs=0.01)
        and not fit.at_edge
    )
    assert (
        fit.n0 == pytest.approx(400, rel=0.1)
        and fit.b_interval
        and fit.b_interval[0] < 0.2 < fit.b_interval[1]
    )
    line = scaling_fit(n, np.array(n) / 2000)
    assert line and line.at_edge and line.b_interval is None
    assert scaling_fit([0, 100], np.array([0.0, 1.0])) is None


def test_small_numbers() -> None:
    assert (
        relative_improvement(0.6, 0.5) == pytest.approx(20)
        and relative_improvement(0.6, 0.0) is None
    )
    assert bootstrap_p(np.full(999, 0.3)) == pytest.approx(0.002)
    assert bootstrap_p(np.array([-1.0, 1.0] * 500)) == 1.0


def difference(metric: str, points: float, half: float, seeds: int, p: float = 0.001) -> Difference:
    return Difference(metric, points, (points - half, points + half), p, 300, seeds)


def test_the_word_improves_needs_three_seeds_and_an_interval_without_zero() -> None:
    clear, unclear = difference("helpful", 0.1, 0.02, 3), difference("harmless", 0.01, 0.05, 3)
    text = statement("mora", "sft", {"a": clear, "b": unclear}, simulated=False)
    assert (
        "improves on sft in helpful" in text and "no clear difference from sft in harmless" in text
    )
    assert "3 training seeds" in text
    text = statement("mora", "sft", {"a": difference("helpful", 0.1, 0.02, 1)}, simulated=False)
    assert (
        "improves" not in text
        and "scores above sft in helpful" in text
        and "not about the training method" in text
    )
    text = statement(
        "mora", "sft", {"a": difference("helpful", 0.1, 0.02, 3, p=0.2)}, simulated=False
    )
    assert "improves" not in text and "no clear difference" in text
    worse = statement(
        "mora",
        "sft",
        {"a": difference("x", -0.1, 0.02, 5), "b": difference("y", -0.2, 0.02, 5)},
        simulated=False,
    )
    assert "is worse than sft in x and y" in worse
    assert "nothing is shown" in statement("mora", "sft", {"a": clear}, simulated=True)
