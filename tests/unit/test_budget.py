"""Budgeted mining: thresholds from a reference that meet the budget in expectation, and decide each
prompt alone."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mora_data.errors import SettingsError
from mora_data.prompts.budget import Mined, fit_thresholds, goes_on, joint_score
from mora_data.statistics.rollouts import PromptStats

ACCEPT = ("flat", "one_dim", "conflict", "undecided")


def stats(dominance: float, joint: float, kind: str = "one_dim", n: int = 16) -> PromptStats:
    return PromptStats(
        kind, n, "helpful", ("harmless",), ("informative",), (0.5,), (0.2,), dominance, 1.0, joint
    )  # type: ignore[arg-type]


def prompts(n: int, seed: int, ties: float = 0.4) -> list[Mined]:
    """Two strata; a share `ties` has no dominance and no joint pass at all."""
    rng = random.Random(seed)
    out = []
    for i in range(n):
        none = rng.random() < ties
        p = stats(
            0.0 if none else rng.random() * 0.3,
            0.0 if none else rng.randint(0, 16) / 16,
            "multi" if rng.random() < 0.2 else "one_dim",
        )
        out.append(Mined(f"{seed}-{i}", "a" if i % 4 else "b", p))
    return out


def kept(
    found: list[Mined], mining: dict[str, dict[str, object]], stratum: str | None = None
) -> int:
    return sum(
        goes_on(mining, m.stratum, m.prompt_id, m.stats)
        for m in found
        if m.stats.kind in ACCEPT and stratum in (None, m.stratum)
    )


@pytest.mark.parametrize("budget", [200, 1000, 2400])
def test_the_budget_is_met_in_expectation(budget: int) -> None:
    """4,000 prompts, thresholds from 1,000 others: within 4 standard errors of a quantile taken
    from 800."""
    found = prompts(4000, 1)
    mining = fit_thresholds(prompts(1000, 2), {"a": 3000, "b": 1000}, budget, ACCEPT)
    share = budget / 3200
    assert (
        abs(kept(found, mining) - budget)
        < 4 * 3200 * (share * (1 - share) * (1 / 800 + 1 / 3200)) ** 0.5
    )


def test_a_budget_of_its_own_for_a_stratum() -> None:
    mining = fit_thresholds(prompts(1000, 2), {"a": 3000, "b": 1000}, {"b": 100}, ACCEPT)
    found = prompts(4000, 1)
    assert set(mining) == {"b"} and kept(found, mining, "a") == sum(
        m.stats.kind in ACCEPT for m in found if m.stratum == "a"
    )
    assert 50 < kept(found, mining, "b") < 150


def test_those_with_the_least_come_first() -> None:
    found = prompts(2000, 3, ties=0.0)
    mining = fit_thresholds(found, {"a": 1500, "b": 500}, 400, ACCEPT)
    limit = mining["a"]
    going = [
        m
        for m in found
        if m.stratum == "a"
        and m.stats.kind in ACCEPT
        and goes_on(mining, "a", m.prompt_id, m.stats)
    ]
    staying = [m for m in found if m.stratum == "a" and m.stats.kind in ACCEPT and m not in going]
    scores = [
        [joint_score(m.stats, limit["dominance_prior"], limit["joint_prior"]) for m in side]
        for side in (going, staying)
    ]
    assert max(scores[0]) <= min(scores[1])


def test_no_budget_or_a_large_one_lets_all_pass() -> None:
    assert fit_thresholds(prompts(100, 1), {"a": 75, "b": 25}, 1000, ACCEPT) == {}
    assert goes_on({}, "a", "x", stats(1.0, 1.0))


def test_a_stratum_that_the_reference_lacks_gets_the_threshold_of_all() -> None:
    mining = fit_thresholds(
        [m for m in prompts(400, 1) if m.stratum == "a"], {"a": 300, "c": 300}, 100, ACCEPT
    )
    assert mining["c"]["n"] == 0 and mining["c"]["dominance"] == mining["a"]["dominance"]
    assert fit_thresholds([], {"a": 10}, 5, ACCEPT) == {}


def test_an_unknown_stratum_is_one_line() -> None:
    with pytest.raises(
        SettingsError, match="names stratum 'x'; the strata of the mined prompts are a, b"
    ):
        fit_thresholds(prompts(10, 1), {"a": 5, "b": 5}, {"x": 3}, ACCEPT)


def test_the_posterior_means() -> None:
    """Against 400,000 draws of p ~ Beta(a + c, b + n - c): E[1 - (1 - p)^16]; tolerance 0.002."""
    p = np.random.default_rng(0).beta(1 + 4, 3 + 12, 400_000)
    dominance, a_16 = joint_score(stats(0.25, 0.25), (0.5, 2.0), (1.0, 3.0))
    assert a_16 == pytest.approx((1 - (1 - p) ** 16).mean(), abs=0.002)
    assert dominance == pytest.approx((0.5 + 2) / (2.5 + 8))
