"""Stopping early: the prior of the pass rates, what is foreseen, and its stated error."""

from __future__ import annotations

import numpy as np
import pytest

from mora_data.errors import SettingsError
from mora_data.settings import PresampleSettings
from mora_data.statistics.rollouts import BINS, KINDS, decisions, foreseen, likeliest, rate_prior

FLOORS, SIGMA, RULE = np.full(2, 0.5), np.full(2, 0.02), PresampleSettings(step=8)


def test_the_looks() -> None:
    assert RULE.looks() == [8, 16, 24, 32]
    assert PresampleSettings(step=None).looks() == [8, 16, 32]
    assert PresampleSettings(n=[16, 30], step=8).looks() == [16, 24, 30]
    assert PresampleSettings(n=[4], step=8).looks() == [4]
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        PresampleSettings(step=1)


def test_looks_are_few_where_they_are_dear_or_change_the_scores() -> None:
    from mora_data.settings import build_settings

    def step(**given: object) -> object:
        plain = {"name": "x", "source": {"kind": "jsonl"}}
        return build_settings({**plain, **given}).presample.step

    assert (
        step() == 4 and step(presample={"step": 8}) == 8 and step(presample={"step": None}) is None
    )
    assert step(policy={"engine": "batch"}) is None
    assert step(policy={"engine": "openai"}, judge={"engine": "batch"}) is None
    compared = {"helpful": [{"kind": "judge"}, {"kind": "pairwise"}]}
    assert step(rewards=compared) is None


def test_a_kind_takes_the_first_count_that_decides() -> None:
    """24 answers of which the first 8 decide: what the others say is not asked."""
    answers = np.concatenate([np.ones((20, 2)), np.tile([[0.0, 1.0], [1.0, 0.0]], (2, 1))])
    chances = foreseen(answers, [20, 64], FLOORS, SIGMA, RULE)
    first = KINDS[int(decisions(answers[None, :20], FLOORS, SIGMA, RULE).kind_P[0])]
    assert first == "flat" and chances[KINDS.index(first)] == 1
    later = foreseen(answers, [64], FLOORS, SIGMA, RULE)
    assert later[KINDS.index("flat")] < 1


def test_kinds_alone_are_the_same_kinds() -> None:
    rng = np.random.default_rng(2)
    rewards = (rng.random((60, 16, 2)) < rng.choice([0.02, 0.5, 0.97], (60, 1, 2))).astype(float)
    whole, kinds = (
        decisions(rewards, FLOORS, SIGMA, RULE, kinds_only=only) for only in (False, True)
    )
    assert np.array_equal(whole.kind_P, kinds.kind_P) and len(set(kinds.kind_P.tolist())) > 3
    assert (kinds.erd_P != whole.erd_P).any()


def test_rate_prior_recovers_where_rates_lie() -> None:
    """3,000 prompts of 16 answers, a third each at 0.005, 0.5 and 0.995."""
    rng = np.random.default_rng(0)
    c = rng.binomial(16, rng.choice([0.005, 0.5, 0.995], 3000))
    density = rate_prior(c, np.full(3000, 16))
    flat = rate_prior(c[:0], c[:0])
    assert np.all(flat == 1)
    at = np.searchsorted(BINS, [0.005, 0.2, 0.5, 0.8, 0.995], side="right") - 1
    ends, middle, gaps = density[[0, -1]], density[at[2]], density[at[[1, 3]]]
    assert ends.min() > 1 and middle > 1 and gaps.max() < 0.5, density


def test_clear_prompts_stop_early_and_borderline_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    steady = np.ones((1, 24, 2))
    at_odds = np.tile(np.array([[0.0, 1.0], [1.0, 0.0]]), (12, 1))[None]
    border = steady.copy()
    border[0, :2, 0] = 0.0
    prior = np.stack(
        [rate_prior(rng.binomial(16, rng.choice([0.005, 0.5, 0.995], 500)), np.full(500, 16))] * 2
    )
    kind, sure = likeliest(foreseen(steady[0], [64], FLOORS, SIGMA, RULE, prior), "label")
    assert kind == "flat" and sure > 0.9
    settled = likeliest(foreseen(at_odds[0], [64], FLOORS, SIGMA, RULE, prior), "label")
    assert settled == ("conflict", pytest.approx(1, abs=0.05))
    assert likeliest(foreseen(border[0], [64], FLOORS, SIGMA, RULE, prior), "label")[1] < 0.9
    again = [foreseen(border[0], [64], FLOORS, SIGMA, RULE, seed=3) for _ in range(2)]
    assert np.array_equal(*again)


def test_a_decision_is_foreseen_apart_from_whether_it_comes() -> None:
    flat_or_nothing = np.array([0.55, 0.01, 0.0, 0.0, 0.44])
    assert likeliest(flat_or_nothing, "label") == ("flat", 0.55)
    assert likeliest(flat_or_nothing, "decision") == (
        "flat",
        pytest.approx(0.55 / (0.56 + 1 / 128)),
    )
    few = np.array([2 / 128, 0.0, 0.0, 0.0, 126 / 128])
    assert likeliest(few, "label")[0] == "undecided" and likeliest(few, "decision") == (
        "flat",
        pytest.approx(2 / 3),
    )
    assert likeliest(np.array([0.0, 0.0, 0.0, 0.0, 1.0]), "decision")[1] == 0


def test_what_drops_a_prompt_is_as_sure_as_a_label() -> None:
    several = np.array([0.0, 0.0, 0.0, 0.6, 0.4])
    assert likeliest(several, "decision") == ("multi", pytest.approx(0.6 / (0.6 + 1 / 128)))
    assert likeliest(several, "decision", RULE.accept) == ("multi", 0.6)
    assert likeliest(several[[4, 1, 2, 0, 3]], "decision", RULE.accept)[0] == "flat"


def test_missing_scores_do_not_stop_it() -> None:
    gone = np.full((1, 8, 2), np.nan)
    chances = foreseen(gone[0], [16], FLOORS, SIGMA, RULE)
    assert chances.shape == (len(KINDS),) and chances.sum() == pytest.approx(1)


def test_the_error_budget_holds() -> None:
    """Two dimensions, rates from a mixture known to the prior; stops at 95 % are wrong in 5 % at
    most (100 prompts, + 2 se).

    p = 0.93 is near the end of `saturated`, so that 64 answers leave many prompts undecided.
    """
    rates, rng = [0.01, 0.5, 0.93, 0.99], np.random.default_rng(1)
    rewards = (rng.random((100, 64, 2)) < rng.choice(rates, (100, 1, 2))).astype(float)
    final = decisions(rewards, FLOORS, SIGMA, RULE).kind_P
    c = rng.binomial(16, rng.choice(rates, 500))
    prior = np.stack([rate_prior(c, np.full(500, 16))] * 2)
    wrong, used = {"label": 0, "decision": 0}, {"label": 0, "decision": 0}
    for i in range(len(rewards)):
        chances = {
            n: foreseen(rewards[i, :n], [64], FLOORS, SIGMA, RULE, prior, seed=i) for n in (12, 32)
        }
        for foresee in ("label", "decision"):
            sure = [
                (n, *likeliest(c, foresee))
                for n, c in chances.items()
                if likeliest(c, foresee)[1] >= 0.95
            ]  # type: ignore[arg-type]
            used[foresee] += sure[0][0] if sure else 64
            counts = foresee == "label" or KINDS[final[i]] != "undecided"
            wrong[foresee] += bool(sure) and counts and sure[0][1] != KINDS[final[i]]
    decided = int((final != KINDS.index("undecided")).sum())
    assert 20 < decided < 90, decided
    for foresee, n in (("label", len(rewards)), ("decision", decided)):
        assert wrong[foresee] / n <= 0.05 + 2 * (0.05 * 0.95 / n) ** 0.5, (foresee, wrong, n)
    assert used["decision"] < 0.8 * used["label"] < 0.8 * 64 * len(rewards), used


def test_settings_error_names_the_field() -> None:
    from mora_data.settings import load_settings

    with pytest.raises(SettingsError, match=r"presample\.error"):
        load_settings("jsonl", {"presample.error": 0.7})
