"""A dry run: it follows the settings, counts by role, prices what it can, and says in words what it
can't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.dry_run import measured
from mora_data.cli.dry_run import (
    BuildEstimate,
    _canaries,
    at_speed,
    estimate,
    for_pairs,
    for_prompts,
)
from mora_data.cli.show import estimate_lines
from mora_data.errors import SettingsError
from mora_data.settings import RoleSettings, load_settings

SMALL = {
    "mine.limit": 4,
    "presample.n": [2, 4],
    "rollout.n": 2,
    "presample.canaries": 0,
    "policy.base_url": "http://127.0.0.1:8000/v1",
    "policy.model": "org/policy-8b",
    "judge.base_url": "https://api.openai.com/v1",
    "judge.model": "gpt-4o-mini",
}


@pytest.fixture(autouse=True)
def _no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def small(until: str = "score", **changed: Any) -> BuildEstimate:
    return estimate(load_settings("pku-saferlhf", {**SMALL, **changed}), True, [], until)


def roles(found: BuildEstimate) -> list[str]:
    return [r.role for r in found.roles]


def test_by_role_with_money_and_until_where_it_goes() -> None:
    found = small()
    policy, rewriter, judge = found.roles
    assert [r.role for r in found.roles] == ["policy", "rewriter", "judge"]
    assert policy.cost == rewriter.cost == (0, 0) and policy.where == "local"
    assert judge.cost and found.cost == judge.cost and judge.where == "hosted"
    low, high = judge.cost
    assert low == pytest.approx((0.15 * judge.tokens_in[0] + 0.6 * judge.tokens_out[0]) / 1e6, 0.01)
    assert high > low and found.currency == "USD" and found.unpriced == ()
    assert 0 < judge.tokens_computed[1] < judge.tokens_in[1], "rubrics are computed once"
    assert found.requests[0] == sum(r.requests[0] for r in found.roles)
    mined = small("presample")
    assert roles(mined) == ["policy", "judge"] and mined.requests[1] < found.requests[1]
    assert small("mine").roles == () and small("mine").requests == (0, 0)


def test_the_schedule_is_that_of_the_settings() -> None:
    plain = {"presample.n": [6], "presample.before": 0}
    found = small("presample", **plain, **{"presample.repeat_share": 0})
    assert found.answers == (4 * 6, 4 * 6) and found.roles[0].requests == (4, 4)
    one_by_one = small("presample", **plain, **{"policy.n_per_request": 2})
    assert one_by_one.roles[0].requests == (12, 12)


def test_what_is_asked_of_some_prompts_does_not_grow_with_all_of_them() -> None:
    """Numbers before fusion, of about before_prompts of them; second scores, of the reference."""
    plain = {"presample.n": [4], "presample.repeat_share": 0, "presample.before": 8}

    estimates: dict[str, tuple[Any, Any]] = {}

    def answers(n: int, **changed: Any) -> float:
        if (key := str(changed)) not in estimates:
            settings = load_settings("pku-saferlhf", {**SMALL, **plain, **changed})
            estimates[key] = estimate(settings, True, [], "presample"), settings
        whole, settings = estimates[key]
        found = for_prompts(whole, settings, True, n)
        assert found.prompts == n and "cases" not in found.as_dict()
        return found.answers[1]

    def asked_before(n: int, **changed: Any) -> float:
        return answers(n, **changed) - answers(n, **{"presample.before": 0})

    all_of = {"presample.before_prompts": None}
    four = asked_before(4, **all_of)
    assert four > 0 and asked_before(4, **{"presample.before_prompts": 2}) == four / 2
    assert asked_before(4000, **all_of) == pytest.approx(1000 * four, rel=0.1)
    some = {"presample.before_prompts": 400}
    assert asked_before(4000, **some) == pytest.approx(100 * four, rel=0.1)


def test_rewards_that_ask_no_model_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asking_rewards.py").write_text(
        "raise_if_called = 1 / 1\n"
        "class Asks:\n"
        "    pass_threshold, calibration, step = 0.5, 'identity', 0.0\n"
        "    def __init__(self, *a): raise RuntimeError('a dry run runs nobody')\n"
        "class Free(Asks):\n"
        "    asks_model = False\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = {"dimensions": ["helpful"], "publish.stage_order": ["helpful"], "fuse.checks": []}
    plain |= {"presample.repeat_share": 0, "presample.n": [4]}

    def judged(*kinds: dict[str, Any]) -> int:
        found = small("presample", **plain, **{"rewards.helpful": list(kinds)})
        return next((int(r.requests[1]) for r in found.roles if r.role == "judge"), 0)

    assert judged({"kind": "asking_rewards:Free"}) == judged({"kind": "python", "path": "x:y"}) == 0
    once = judged({"kind": "asking_rewards:Asks"})
    assert 0 < once < judged({"kind": "judge"}, {"kind": "asking_rewards:Asks"})
    games = judged({"kind": "pairwise", "opponents": 4})
    assert games == 4 * once


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("rewriter.engine", "opanai", "unknown engine 'opanai': did you mean 'openai'"),
        ("publish.configs", ["prefrence"], "did you mean 'preference'"),
        ("rewards.helpful", {"together": True}, "helpful.together: one call scores three"),
        ("rewards.helpful", {"kind": "rules", "template": "x"}, "unknown setting rewards.helpful."),
        ("rewards.helpful", {"kind": "rules", "endpoint": {}}, "endpoint: rules asks no model"),
        ("rewards.helpful", {"kind": "classifier", "family": "x"}, "unknown classifier family"),
        (
            "rewards.helpful",
            {"calibration": {"low": 0, "zero": 1}},
            "zero is not for the kind",
        ),
        ("source.layout", "messages", "source.layout does nothing while source.kind is"),
        ("source.columns", {"prompt": "q"}, "source.columns does nothing while source.kind is"),
    ],
)
def test_what_a_build_would_refuse_or_never_use_is_said(
    setting: str, value: object, says: str
) -> None:
    """Each was estimated as if it were not there; an unknown config ended a build at its end."""
    with pytest.raises(SettingsError, match=says):
        small(**{setting: value})


def test_what_has_no_price_is_named() -> None:
    found = small("presample", **{"judge.model": "other-1"})
    assert found.cost is None and found.unpriced == ("other-1",)
    assert "money        not known: model other-1 of judge has no price (limits.prices: PATH)" in (
        lines := estimate_lines(found)
    )
    assert not [line for line in lines if "[" in line or "None" in line], "words, not Python"


def test_without_an_endpoint_only_the_money_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "How do I fold a paper hat?"}\n')
    settings = load_settings("jsonl", {"presample.n": [2], "presample.canaries": 0})
    found = estimate(settings, False, [tmp_path / "rows.jsonl"], "presample")
    assert found.cost is None and found.requests[0] > 0 and {r.where for r in found.roles} == {""}
    said = "\n".join(estimate_lines(found))
    assert "money        not known: policy has no endpoint yet (--base-url, --model)" in said


def test_pairs_and_speed() -> None:
    found = BuildEstimate(
        prompts=100,
        rows=100,
        requests=(1, 1),
        tokens_in=(3_600_000, 7_200_000),
        tokens_out=(0, 0),
        answers=(1, 1),
        cost=(2.0, 4.0),
        seconds=(0, 0),
        pairs=(40, 80),
        currency="USD",
    )
    wanted = for_pairs(found, 5000)
    assert wanted.prompts_needed == (6250, 12500)
    said = "\n".join(estimate_lines(at_speed(wanted, 1000)))
    assert "6,250 to 12,500 for 5,000 pairs" in said and "1 to 2 h at 1,000 tokens/s" in said
    assert "0.025 to 0.1 USD a pair" in said
    from dataclasses import replace

    perhaps = for_pairs(replace(found, pairs=(0, 80)), 5000)
    assert perhaps.prompts_needed == (6250, None)
    assert "6,250 or more (--probe tells)" in "\n".join(estimate_lines(perhaps))


def test_the_intervals_hold_what_a_build_takes() -> None:
    """One build of the benchmark's, so small that the probe asks for all its prompts."""
    row = measured(8, 12)
    for what in ("requests", "tokens", "money"):
        took = row["took"][what]
        low, high = row["dry run"][what]
        assert low <= took <= high <= 3 * low, what
        low, high = row["probe"][what]
        assert low == high == pytest.approx(took, rel=0.001), what
    assert row["probe"]["pairs"] == (row["took"]["pairs"],) * 2


def test_canaries_are_scored_where_any_scorer_is_a_model() -> None:
    """A simulated judge beside a held-out one that is a model: as the build, which asks both."""
    settings = load_settings(
        "pku-saferlhf", {"judge.engine": "scripted", "policy.engine": "scripted"}
    )
    settings = settings.model_copy(
        update={"heldout_judge": RoleSettings(engine="openai", model="m")}
    )
    assert _canaries(settings, False, ["policy", "judge"], "publish") == 0
    assert _canaries(settings, False, ["policy", "judge", "heldout_judge"], "publish") == 100
    assert _canaries(settings, False, ["policy", "judge", "heldout_judge"], "score") == 50
