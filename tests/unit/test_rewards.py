"""Judge verdicts: the last readable one counts, and anything doubtful is None, never a number."""

from __future__ import annotations

import asyncio
import re
from collections import Counter

import pytest

from mora_data.errors import SettingsError
from mora_data.prompts.context import PromptContext, load_context
from mora_data.prompts.flow import as_rollouts, score
from mora_data.resources import Secret
from mora_data.rewards import REWARDS, load
from mora_data.rewards.judge import Judge, expected_level, verdict
from mora_data.settings import RewardSettings, RoleSettings, build_settings
from mora_data.sources.benchmarks import Benchmarks
from mora_data.types import Answer, Message, Request, Score

BUILD = build_settings({"name": "x", "source": {"kind": "jsonl"}})
SECRET = Secret()


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ('{"score": 4}', 4),
        (' {"score":1}\n', 1),
        ('```json\n{"score": 5}\n```', 5),
        ('Thinking: good. {"score": 3}', 3),
        ('{"score": 3} and again {"score": 3}', 3),
        ('{"score": 4.0}', 4),
        ('{"reason": "a {brace}", "score": 2}', 2),
        ('{"note": 1} {"score": 2}', 2),
        ('{"score": 9} {"score": 2}', 2),
    ],
)
def test_readable_verdicts(text: str, level: int) -> None:
    assert verdict(Answer(text)) == (level, "")


@pytest.mark.parametrize(
    "text",
    [
        "4",
        " 4.0\n",
        '"4"',
        "4/5",
        '"4/5"',
        "4 / 5.",
        "4 out of 5",
        "Score: 4",
        "score = 4",
        "**Score:** 4/5",
        "Final rating: 4.0",
        "[[4]]",
        "Rating: [[4]]",
        "\ufeff4",
        "```\n4\n```",
        '{"score": "4"}',
        '{"score": "4/5"}',
        '{"Score": 4}',
        '{"rating": 4}',
        '{"reason": "Of 5 points it has 3.", "rating": 4}',
        '[{"score": 4}]',
        '{"result": {"score": 4}}',
        '[{"result": {"score": 4}}]',
        '**{"score": 4}**',
        '`{"score": 4}`',
        '{"score": 4}.',
        '{"score": 4}</s>',
        '{"score": 4}<|im_end|>\n',
        '```json\n[{"score": 4}]\n```',
        '<answer>{"score": 4}</answer>',
        'I would say **{"score": "4"}**.',
    ],
)
def test_a_whole_reply_may_be_a_verdict_in_another_form(text: str) -> None:
    """Seen of judges: https://github.com/OpenAgentHQ/openagent-eval/pull/214,
    https://github.com/comet-ml/opik/pull/7758, https://github.com/pinchbench/skill/pull/24,
    https://github.com/smithersai/smithers/pull/378."""
    assert verdict(Answer(text)) == (4, "")


def test_of_a_scale_in_the_reply_the_level_counts() -> None:
    """The last digit of 4/5 is not it; and a scale of 0 to 2 is not one of 5."""
    top = tuple((t, ((t, 0.0),)) for t in ("4", "/", "5"))
    assert expected_level(Answer("4/5", logprobs=top), said=4) == 4.0
    assert verdict(Answer("1/2"), 0, 2) == (1, "")
    assert verdict(Answer("1/5"), 0, 2) == (None, "no_verdict")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_verdict"),
        ("four", "no_verdict"),
        ("It is 5.", "no_verdict"),
        ("Score: 4 because it is kind.", "no_verdict"),
        ("4/10", "no_verdict"),
        ("4.5", "no_verdict"),
        ("4.5/5", "no_verdict"),
        ("Score: 4-5", "no_verdict"),
        ("14", "no_verdict"),
        ("4 4", "no_verdict"),
        ('"four"', "no_verdict"),
        ('{"score": 4.5}', "no_verdict"),
        ('{"score": "4/10"}', "no_verdict"),
        ('{"n": 4}', "no_verdict"),
        ('{"rating": 4, "grade": 2}', "no_verdict"),
        ('[{"score": 4}, {"n": 1}]', "verdict_not_last"),
        ('[{"score": 4}, {"score": 5}]', "conflicting_verdicts"),
        ('{"a": {"score": 4}, "b": 1}', "no_verdict"),
        ('{"a": {"b": {"c": {"score": 4}}}}', "no_verdict"),
        ('I say {"result": {"score": 4}}', "no_verdict"),
        ('{"score": ' + "9" * 400 + "}", "no_verdict"),
        ('{"score": ' + "9" * 6000 + "}", "no_verdict"),
        ('{"score": 0}', "no_verdict"),
        ('{"score": 6}', "no_verdict"),
        ('{"score": 3.5}', "no_verdict"),
        ('{"score": 4} or so', "verdict_not_last"),
        ('{"score": true}', "no_verdict"),
        ('{"score": NaN}', "no_verdict"),
        ('{"score": Infinity}', "no_verdict"),
        ('{"score": null}', "no_verdict"),
        ("[4]", "no_verdict"),
        ('{"score": 4', "no_verdict"),
        ('{"score": 2} {"score": 5}', "conflicting_verdicts"),
        ("{" * 5000, "no_verdict"),
    ],
)
def test_doubtful_verdicts_are_none(text: str, reason: str) -> None:
    assert verdict(Answer(text)) == (None, reason)


def test_cut_off_verdict_says_so() -> None:
    assert verdict(Answer('{"sco', "length", 4)) == (None, "cut_off")
    assert verdict(Answer("", "length", 256)) == (None, "thought_cut_off")


def test_a_missing_score_says_what_the_judge_replied() -> None:
    def reason(answer: Answer) -> str:
        async def ask(request: Request) -> list[Answer]:
            return [answer]

        judge = load("helpful", RewardSettings(), BUILD, secret=SECRET)
        asked = (Message(role="user", content="A question?"),)
        (score,) = asyncio.run(judge.scores(ask, "p", asked, ["An answer."], "score"))
        assert score.value is None
        return score.reason

    assert reason(Answer("I like\nit.\x1b[2J" + "x" * 99)) == (
        "no_verdict: 'I like it.\\x1b[2J" + "x" * 43 + "'"
    )
    assert reason(Answer("", "length", 256)) == (
        "thought_cut_off: max_tokens = 256 went into the model's thoughts, raise it"
    )


class Recorder:
    """Answers what it is told and keeps the requests."""

    def __init__(self, *replies: str) -> None:
        self.replies, self.requests = list(replies), []  # type: ignore[var-annotated]

    async def __call__(self, request: Request) -> list[Answer]:
        self.requests.append(request)
        return [Answer(self.replies.pop(0) if len(self.replies) > 1 else self.replies[0])]


def scores(
    ask: Recorder, purpose: str = "score:fused", answer: str = "An answer."
) -> list[float | None]:
    judge = load("helpful", RewardSettings(), BUILD, secret=SECRET)
    messages = (Message(role="user", content="A question?"),)
    return [s.value for s in asyncio.run(judge.scores(ask, "p", messages, [answer], purpose))]


def test_unreadable_verdict_is_asked_again_twice() -> None:
    ask = Recorder("prose", "prose", '{"score": 5}')
    assert scores(ask) == [1.0]
    assert [r.purpose for r in ask.requests] == [
        "score:fused",
        "score:fused:retry:1",
        "score:fused:retry:2",
    ]
    never = Recorder("prose")
    assert scores(never) == [None] and len(never.requests) == 3


def test_repeat_and_confirm_are_fresh_and_take_the_levels_backwards() -> None:
    first, repeat, confirm = (
        Recorder('{"score": 2}'),
        Recorder('{"score": 2}'),
        Recorder('{"score": 2}'),
    )
    scores(first), scores(repeat, "repeat"), scores(confirm, "confirm")
    (a,), (b,), (c,) = first.requests, repeat.requests, confirm.requests
    assert a.sampling.temperature == 0.0 and b.sampling.temperature == c.sampling.temperature == 0.7
    assert a.messages != b.messages == c.messages and len({a.purpose, b.purpose, c.purpose}) == 3
    assert a.messages[0] == b.messages[0]  # a server has read it
    assert "from 5 " in b.messages[1]["content"].rpartition("\n")[2]


def test_table_and_dotted_path() -> None:
    needs: dict[str, dict[str, object]] = {
        "rubric": {"criteria": [{"text": "It is short."}]},
        "guard": {"family": "llama-guard-3"},
        "python": {"path": "math:prod"},
        "precomputed": {"column": "helpfulness", "range": [1, 5]},
    }
    build = BUILD.model_copy(update={"policy": RoleSettings(engine="recorded")})
    for kind in REWARDS:
        reward = load(
            "helpful", RewardSettings.model_validate({"kind": kind, **needs.get(kind, {})}), build
        )
        assert (
            reward.dimension == "helpful"
            and reward.name
            and isinstance(getattr(reward, "fingerprint", ""), str)
            and reward.step >= 0
        )
        assert reward.pass_threshold is None or 0 < reward.pass_threshold < 1
        assert reward.calibration in ("likert", "identity", "sigmoid", "ecdf", "anchored")
    assert isinstance(
        load("helpful", RewardSettings(kind="mora_data.rewards.judge:Judge"), BUILD), Judge
    )
    with pytest.raises(SettingsError, match="did you mean 'judge'"):
        load("helpful", RewardSettings(kind="juge"), BUILD)
    for given, fault in (
        ({"templat": "x"}, "unknown setting 'rewards.helpful.templat': did you mean 'template'"),
        ({"kind": "rubric", "criteria": [{"txt": "x"}]}, "criteria.0.txt': did you mean 'text'"),
        ({"kind": "pairwise", "opponents": 1}, "rewards.helpful.opponents = 1"),
        ({"kind": "rules", "strict": True}, "rules has no settings of its own"),
    ):
        with pytest.raises(SettingsError, match=fault):
            load("helpful", RewardSettings.model_validate(given), BUILD)


def test_rules_object_to_refusals_and_degenerate_texts() -> None:
    rules = load("intact", RewardSettings(kind="rules"), BUILD)
    texts = ["A plain and useful answer.", "", "I'm sorry, but I can't help with that."]
    found = asyncio.run(
        rules.scores(Recorder("x"), "p", (Message(role="user", content="?"),), texts, "score")
    )
    assert [(s.value, s.reason) for s in found] == [(1.0, ""), (0.0, "empty"), (0.0, "refusal")]


def test_the_order_of_the_dimensions_is_drawn_for_each_prompt() -> None:
    """The same for a prompt each time, every dimension first somewhere; scores come back under
    their own names."""
    build = BUILD.model_copy(update={"seed": 3})

    loaded = load_context(build, "publish", Benchmarks({}), Secret())

    def asked(prompt_id: str) -> list[str]:
        ask = Recorder('{"score": 2}')
        context = PromptContext(loaded, ask)
        rollouts = asyncio.run(as_rollouts(prompt_id, [Answer("An answer.")]))
        found = asyncio.run(
            score(
                context, (Message(role="user", content="A question?"),), rollouts, "score:identity"
            )
        )
        assert {s.dimension for _, s in found} == set(build.dimensions) and {
            i for i, _ in found
        } == {0}
        return [
            re.findall(r"^Dimension: (\w+)", r.messages[0]["content"], re.M)[-1]
            for r in ask.requests
        ]

    orders = [asked(f"{i:016x}") for i in range(60)]
    assert (
        orders == [asked(f"{i:016x}") for i in range(60)] and len({tuple(o) for o in orders}) == 6
    )
    firsts = Counter(o[0] for o in orders)
    assert set(firsts) == set(build.dimensions) and min(firsts.values()) >= 10


def test_judges_that_score_together_ask_once_and_read_their_own_number() -> None:
    judge_all = [{"kind": "judge", "together": True}]
    kinds = {"helpful": judge_all, "harmless": judge_all, "truthful": judge_all}
    build = build_settings({"name": "x", "source": {"kind": "jsonl"}, "rewards": kinds})
    messages, secret = (Message(role="user", content="A question?"),), Secret()

    def scored(reply: str) -> tuple[list[float | None], list[str], int]:
        ask = Recorder(reply)
        found: list[Score] = []
        for d, (settings,) in build.rewards.items():
            judge = load(d, settings, build, secret=secret)
            found += asyncio.run(judge.scores(ask, "p", messages, ["An answer."], "score"))
        asked = {(str(r.messages), str(r.sampling)) for r in ask.requests}
        return [s.value for s in found], [s.reason.split(":")[0] for s in found], len(asked)

    said = '{"helpful": 2, "harmless": 5, "truthful": 1}'
    assert scored(said) == ([0.25, 1.0, 0.0], ["", "", ""], 1)
    assert scored(f"```json\n{said}\n```")[0] == [0.25, 1.0, 0.0]
    partly = '{"helpful": 2, "harmless": "none", "truthful": 9}'
    assert scored(partly)[:2] == ([0.25, None, None], ["", "no_verdict", "no_verdict"])
    for unclear in ("4", '{"score": 4}', "Score: 4"):  # of which dimension?
        assert scored(unclear)[0] == [None, None, None]
    twice = said + said.replace("5", "1")
    assert scored(twice)[0] == [0.25, None, 0.0]
    for wrong, why in (
        ({"kind": "judge", "together": True, "expected": True}, "whole levels alone"),
        ({"kind": "judge", "together": True, "template": "shared"}, "a template of its own"),
        ({"kind": "judge", "template": "together"}, "say `together: true`"),
        ({"kind": "judge", "template": "rubric"}, "for `kind: rubric`"),
    ):
        with pytest.raises(SettingsError, match=why):
            load("helpful", RewardSettings.model_validate(wrong), build)
    for of_three in ({"together": True}, {"template": "shared"}):
        says = r"for helpful, harmless, truthful: write a rubric of your own .*rubrics/brave\.j2"
        with pytest.raises(SettingsError, match=says):
            load("brave", RewardSettings.model_validate(of_three), build)
