"""Guards, rubrics, comparisons, functions, expected scores: what they read, and what is None with
which reason."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mora_data.errors import SettingsError
from mora_data.rewards import load
from mora_data.rewards.guard import llama_guard, request_is_safe, shieldgemma, wildguard
from mora_data.rewards.judge import expected_level, verdict
from mora_data.rewards.pairwise import circle
from mora_data.settings import RewardSettings, build_settings
from mora_data.types import Answer, Message, Messages, Request, Score

BUILD = build_settings({"name": "x", "source": {"kind": "jsonl"}})
ASKED: Messages = (Message(role="user", content="Is tea warm?"),)
Say = Callable[[Request], str]


def scores(
    settings: RewardSettings,
    say: Say | Answer,
    answers: list[str],
    dimension: str = "helpful",
    purpose: str = "score",
) -> tuple[list[Score], list[Request]]:
    asked: list[Request] = []

    async def ask(request: Request) -> list[Answer]:
        asked.append(request)
        return [say if isinstance(say, Answer) else Answer(say(request))]

    made = load(dimension, settings, BUILD)
    return asyncio.run(made.scores(ask, "p", ASKED, answers, purpose)), asked


def top(*tokens: tuple[str, dict[str, float]]) -> Any:
    """Logprobs of tokens from their alternatives' probabilities."""
    return tuple((t, tuple((w, math.log(p)) for w, p in ps.items())) for t, ps in tokens)


# guards


@pytest.mark.parametrize(
    ("reply", "value", "reason"),
    [
        (Answer("safe"), 1.0, ""),
        (Answer("\n\nsafe"), 1.0, ""),
        (Answer("unsafe\nS1"), 0.0, "unsafe S1"),
        (Answer("unsafe"), 0.0, "unsafe"),
        (Answer("\n\nunsafe\nS9,S10"), 0.0, "unsafe S9 S10"),
        (Answer("unsafe\ns2, S14"), 0.0, "unsafe S2 S14"),
        (
            Answer(
                "\n\nunsafe\nS1",
                logprobs=top(
                    ("\n\n", {"\n\n": 0.9, "safe": 0.1}), ("unsafe", {"unsafe": 0.6, "safe": 0.2})
                ),
            ),
            0.25,
            "unsafe S1",
        ),
        (Answer("safe", logprobs=top(("safe", {"safe": 0.8, "un": 0.1, "unsafe": 0.1}))), 0.8, ""),
        (Answer("safe", logprobs=top(("safe", {"maybe": 0.8}))), 1.0, ""),
        (Answer("unsafe\nS15"), None, "unknown_code: S15"),
        (Answer("unsafe\nO3"), None, "unknown_code: O3"),
        (Answer("safe\nS1"), None, "unknown_code: S1"),
        (Answer("Das ist sicher."), None, "no_verdict"),
        (Answer(""), None, "no_verdict"),
        (Answer("The answer is safe"), None, "no_verdict"),
        (Answer("unsafely done"), None, "no_verdict"),
        (Answer("un", "length"), None, "cut_off"),
    ],
)
def test_llama_guard(reply: Answer, value: float | None, reason: str) -> None:
    found, why = llama_guard(reply)
    assert found == (pytest.approx(value) if value is not None else None) and why == reason


def lines(request: str, refusal: str, response: str) -> str:
    return f"Harmful request: {request}\nResponse refusal: {refusal}\nHarmful response: {response}"


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        (lines("yes", "no", "yes"), 0.0, ""),
        (lines("yes", "yes", "no"), 1.0, "response_refusal"),
        (lines("no", "no", "no"), 1.0, ""),
        (lines("no", "no", "no").upper() + "</s>", None, "no_verdict"),
        (lines("no", "no", "no").upper(), 1.0, ""),
        (lines("no", "n/a", "n/a"), None, "no_verdict"),
        ("Harmful response: no", None, "no_verdict"),
        ("no no no", None, "no_verdict"),
        ("", None, "no_verdict"),
        (lines("no", "no", "no") + "\nHarmful response: yes", None, "conflicting_verdicts"),
        (lines("no", "no", "perhaps"), None, "no_verdict"),
    ],
)
def test_wildguard(text: str, value: float | None, reason: str) -> None:
    assert wildguard(Answer(text)) == (value, reason)


def test_wildguard_by_the_probabilities_of_its_verdicts() -> None:
    def line(
        name: str, verdict: str, yes: float, *, end: str = "\n"
    ) -> list[tuple[str, dict[str, float]]]:
        return [
            (f"{name}:", {}),
            (f" {verdict}", {" yes": yes, " no": 0.8 - yes, " maybe": 0.2}),
            (end, {}),
        ]

    said = [*line("Harmful request", "yes", 0.6), *line("Response refusal", "no", 0.2)]
    said += line("Harmful response", "no", 0.2, end="")
    reply = Answer("".join(token for token, _ in said), logprobs=top(*said))
    assert wildguard(reply) == (pytest.approx(0.75), "")
    assert request_is_safe("wildguard", reply) == (pytest.approx(0.25), "")
    # tokens that don't make up the text: words alone
    split = [(t[:5], {}) if t.startswith("Harm") else (t, p) for t, p in said]
    assert wildguard(Answer(reply.text, logprobs=top(*split))) == (1.0, "")
    assert request_is_safe("wildguard", Answer(lines("no", "n/a", "n/a"))) == (1.0, "")
    assert request_is_safe("wildguard", Answer("Harmful request: n/a")) == (None, "no_verdict")
    assert request_is_safe("llama-guard-3", Answer("unsafe\nS9")) == (0.0, "unsafe S9")


@pytest.mark.parametrize(
    ("reply", "value", "reason"),
    [
        (Answer("Yes"), 0.0, ""),
        (Answer("No"), 1.0, ""),
        (Answer("no, because"), 1.0, ""),
        (Answer("Nope"), None, "no_verdict"),
        (Answer("Ja"), None, "no_verdict"),
        (Answer("Yes", logprobs=top(("Yes", {"Yes": 0.6, "No": 0.2, "Sure": 0.2}))), 0.25, ""),
        (Answer("", "length"), None, "cut_off"),
    ],
)
def test_shieldgemma(reply: Answer, value: float | None, reason: str) -> None:
    found, why = shieldgemma(reply)
    assert found == (pytest.approx(value) if value is not None else None) and why == reason


def test_a_guard_is_asked_with_the_conversation_and_top_tokens() -> None:
    (found,), (asked,) = scores(
        RewardSettings(kind="guard", family="llama-guard-3"),
        lambda r: "unsafe\nS2",
        ["Yes.<|eot_id|>"],
        "harmless",
    )
    assert found == Score("harmless", "guard:llama-guard-3", 0.0, 0.0, "unsafe S2")
    assert asked.messages == (*ASKED, Message(role="assistant", content="Yes.< |eot_id|>"))
    assert (
        asked.sampling.temperature == 0 and asked.sampling.logprobs == 10 and asked.role == "judge"
    )


def test_the_worst_policy_counts_and_an_unread_one_leaves_no_score(tmp_path: Path) -> None:
    file = tmp_path / "shield.j2"
    file.write_text("{% block user %}{{ policy }}|{{ question }}|{{ answer }}{% endblock %}")
    settings = RewardSettings(
        kind="guard",
        family="shieldgemma",
        template=str(file),
        policies={"hate": "No hate.", "harm": "No harm."},
    )
    (found,), asked = scores(
        settings,
        lambda r: "Yes" if "harm" in r.messages[0]["content"] else "No",
        ["A."],
        "harmless",
    )
    assert (found.value, found.reason) == (0.0, "policy:harm")
    assert [r.messages[0]["content"] for r in asked] == [
        "No hate.|Is tea warm?|A.",
        "No harm.|Is tea warm?|A.",
    ]
    (found,), _ = scores(
        settings,
        lambda r: "Yes" if "harm" in r.messages[0]["content"] else "Oui",
        ["A."],
        "harmless",
    )
    assert (found.value, found.raw, found.reason) == (None, None, "no_verdict")


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ({"family": "llamaguard"}, "did you mean 'llama-guard-3'"),
        ({}, "unknown guard family None"),
        ({"family": "wildguard"}, "needs `template`"),
        ({"family": "shieldgemma", "template": "x.j2"}, "`policies`"),
        ({"family": "llama-guard-3", "policies": {"a": "b"}}, "`policies`"),
    ],
)
def test_guard_settings_that_do_not_fit_are_refused(reward: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load("harmless", RewardSettings(kind="guard", **reward), BUILD)


# expected score


@pytest.mark.parametrize(
    ("logprobs", "level"),
    [
        (
            top(
                ('{"', {'{"': 1.0}),
                ("score", {"score": 1.0}),
                ('":', {'":': 1.0}),
                (" ", {" ": 1.0}),
                ("4", {"4": 0.6, "5": 0.2, "3": 0.2}),
                ("}", {"}": 1.0}),
            ),
            4.0,
        ),
        (top((" 2}", {" 2}": 0.5, " 3}": 0.25, " 4}": 0.25})), 2.75),
        (top(("5", {"5": 0.4, "9": 0.4, "x": 0.2})), 5.0),
        (top(("1", {"1": 0.5, "5": 0.5}), (" 4", {"4": 0.5, "2": 0.5})), 3.0),
        (top(("x", {"x": 1.0})), None),
        (None, None),
        (top(("4", {})), None),
    ],
)
def test_expected_level(logprobs: Any, level: float | None) -> None:
    assert expected_level(Answer("", logprobs=logprobs)) == (
        pytest.approx(level) if level is not None else None
    )


def test_expected_scores_are_between_levels_and_fall_back_to_them() -> None:
    settings = RewardSettings(expected=True)
    reply = Answer('{"score": 4}', logprobs=top(("4", {"4": 0.5, "5": 0.5})))
    (found,), (asked,) = scores(settings, reply, ["A."])
    assert (found.raw, found.value) == (
        pytest.approx(4.5),
        pytest.approx(0.875),
    ) and asked.sampling.logprobs == 10
    (found,), _ = scores(settings, Answer('{"score": 4}'), ["A."])
    assert (found.raw, found.value) == (4.0, 0.75)
    judge = load("helpful", settings, BUILD)
    assert judge.step == 0.0 and scores(RewardSettings(), reply, ["A."])[0][0].value == 0.75
    # a mean passes where the level that is nearest to it does
    assert judge.pass_threshold == (3.5 - 1) / 4
    assert load("helpful", RewardSettings(), BUILD).pass_threshold == 0.75


# rubric lists


RUBRIC = RewardSettings(
    kind="rubric",
    criteria=[{"text": "It is short.", "weight": 3}, {"text": "It is kind.", "scale": "levels"}],
)  # type: ignore[list-item]


def test_a_rubric_is_the_weighted_mean_of_its_criteria() -> None:
    (found,), asked = scores(
        RUBRIC,
        lambda r: '{"score": 1}' if "short" in r.messages[0]["content"] else '{"score": 3}',
        ["A."],
    )
    assert found.value == pytest.approx((3 * 1 + 1 * 0.5) / 4) and found.raw == found.value
    assert [r.sampling.pattern for r in asked] == [r'\{"score": [0-1]\}', r'\{"score": [1-5]\}']
    assert asked[0].sampling.schema != asked[1].sampling.schema
    assert load("helpful", RUBRIC, BUILD).step == pytest.approx(1 / 4 / 4)


def test_a_criterion_that_cannot_be_read_leaves_no_score() -> None:
    (found,), asked = scores(
        RUBRIC,
        lambda r: '{"score": 1}' if "short" in r.messages[0]["content"] else "kind enough",
        ["A."],
    )
    assert (found.value, found.raw, found.reason) == (
        None,
        None,
        "criterion 2: no_verdict: 'kind enough'",
    ) and len(asked) == 1 + 3
    (found,), _ = scores(RUBRIC, lambda r: '{"score": 5}', ["A."])
    assert found.reason.startswith("criterion 1: no_verdict")  # 5 is not yes or no
    with pytest.raises(SettingsError, match="give `criteria`"):
        load("helpful", RewardSettings(kind="rubric"), BUILD)


# comparisons


def longer(request: Request) -> str:
    first, second = re.findall(
        r"^<(?:first|second)-\w+>\n(.*)$", request.messages[1]["content"], re.M
    )
    return f'{{"score": {1 if len(first) > len(second) else 2 if len(second) > len(first) else 0}}}'


def test_win_rate_among_all_answers_follows_a_consistent_judge() -> None:
    found, asked = scores(
        RewardSettings(kind="pairwise", opponents=8), longer, ["a", "aaa", "aa", "aaaa", "bb"]
    )
    assert [s.value for s in found] == [0.0, 0.75, 0.375, 1.0, 0.375] and len(asked) == 2 * 10
    assert load("helpful", RewardSettings(kind="pairwise"), BUILD).pass_threshold is None


def test_equal_answers_play_as_one() -> None:
    found, asked = scores(RewardSettings(kind="pairwise"), longer, ["a", "aa", "a", "aa", "aa"])
    assert [s.value for s in found] == [0.0, 1.0, 0.0, 1.0, 1.0] and len(asked) == 2
    assert [len(s.orders) for s in found] == [1, 0, 0, 0, 0]
    found, asked = scores(RewardSettings(kind="pairwise"), longer, ["a", "a"])
    assert [s.value for s in found] == [0.5, 0.5] and not asked  # they tie, and nobody is asked


def test_a_judge_that_loves_the_first_place_says_nothing() -> None:
    found, _ = scores(RewardSettings(kind="pairwise"), lambda r: '{"score": 1}', ["a", "aaa", "aa"])
    assert [s.value for s in found] == [0.5, 0.5, 0.5]


def test_the_tournament_is_bounded_and_the_same_in_any_order() -> None:
    names = [f"{(i * 7919) % 1000:03d}" for i in range(64)]
    games = circle(names, 4)
    assert len(games) == 64 * 4 // 2 and all(sum(i in g for g in games) == 4 for i in range(64))
    turned = circle(names[::-1], 4)
    assert {frozenset(names[i] for i in g) for g in games} == {
        frozenset(names[::-1][i] for i in g) for g in turned
    }
    assert (
        circle(["a"], 4) == []
        and circle(["a", "b"], 4) == [(0, 1)]
        and len(circle(["a", "b", "c"], 64)) == 3
    )


def test_unread_games_do_not_count_and_too_many_of_them_leave_no_score() -> None:
    def say(request: Request) -> str:
        return "prose" if "broken" in request.messages[1]["content"] else longer(request)

    found, _ = scores(
        RewardSettings(kind="pairwise", opponents=8), say, ["a", "aaa", "broken", "aa"]
    )
    assert [s.value for s in found] == [0.0, 1.0, None, 0.5]
    assert found[2].reason == "no_verdict: 'prose'"
    (alone,), asked = scores(RewardSettings(kind="pairwise"), longer, ["a"])
    assert (alone.value, alone.reason, asked) == (None, "no_opponent", [])


def test_an_answer_alone_before_a_judge_that_compares_is_no_failed_row() -> None:
    from mora_data.prompts.result import PromptResult
    from mora_data.prompts.runner import errors_of
    from mora_data.types import Prompt

    (alone,), _ = scores(RewardSettings(kind="pairwise"), longer, ["a"])
    prompt = Prompt("p", (Message(role="user", content="Why?"),), "g", "s", "", "", "", 0, "")
    result = PromptResult(prompt, scores=[("presample", 0, "score", alone)])
    assert errors_of(result) == []
    broken = Score("helpful", "pairwise:pairwise", None, None, "no_verdict: 'prose'")
    result.scores.append(("presample", 1, "score", broken))
    assert [e["index"] for e in errors_of(result)] == [1]


# functions


def half(messages: Messages, answer: str) -> object:
    return {
        "nan": float("nan"),
        "two": 2,
        "text": "1",
        "none": None,
        "true": True,
        "bad": -0.1,
    }.get(answer, 0.5)


async def later(messages: Messages, answer: str) -> float:
    return 0.25 if messages == ASKED else 0.0


def broken(messages: Messages, answer: str) -> float:
    raise KeyError(answer)


def of(path: str, *answers: str) -> list[tuple[float | None, str]]:
    found, asked = scores(RewardSettings(kind="python", path=path), Answer("never"), list(answers))
    assert asked == []
    return [(s.value, s.reason) for s in found]


def test_a_function_gives_a_number_or_a_reason() -> None:
    here = __name__
    assert of(f"{here}:half", "x", "nan", "two", "text", "none", "true", "bad") == [
        (0.5, ""),
        (None, "not_finite"),
        (None, "out_of_range"),
        (None, "not_a_number: str"),
        (None, "none_given"),
        (None, "not_a_number: bool"),
        (None, "out_of_range"),
    ]
    assert of(f"{here}:later", "x") == [(0.25, "")]
    assert of(f"{here}:broken", "x") == [(None, "raised KeyError: 'x'")]
    for path in ("half", "nowhere:half", f"{here}:nobody"):
        with pytest.raises(SettingsError, match=r"module:name|can't load"):
            of(path, "x")


# the judge's own


def test_a_verdict_counts_only_at_the_end_of_the_reply() -> None:
    assert verdict(Answer('Good. {"score": 4}\n```\n')) == (4, "")
    assert verdict(Answer('{"score": 4} is what I would say.')) == (None, "verdict_not_last")
    assert verdict(Answer('It says {"score": 5}. I say {"score": 2}')) == (
        None,
        "conflicting_verdicts",
    )
    assert verdict(Answer('{"score": 1, "score": 5}')) == (None, "conflicting_verdicts")
    assert verdict(Answer('{"quote": {"score": 5}, "score": 2}')) == (2, "")
    assert verdict(Answer("2"), 0, 2) == (2, "") and verdict(Answer('{"score": 0}'), 0, 2) == (
        0,
        "",
    )
