"""Fusion: golden rewrites reach their verdict, the best candidate is kept, a control keeps to the
length of the fused prompt."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from mora_data.errors import SettingsError
from mora_data.rewriting.checks import Budget, cosine
from mora_data.rewriting.intents import load_intents, premise_for
from mora_data.rewriting.patterns import asks_for
from mora_data.rewriting.rewriter import (
    JOINER,
    Rewriter,
    RewriteSource,
    concat,
    in_run_order,
    matched_length,
)
from mora_data.settings import BuildSettings, ScriptedSettings, build_settings
from mora_data.simulator.engine import Simulator
from mora_data.text import n_tokens
from mora_data.types import Answer, Message, Prompt, Request

GOLDEN = yaml.safe_load(
    (Path(__file__).parents[1] / "data" / "golden_rewrites.yaml").read_text("utf-8")
)
INTENTS = load_intents(("helpful", "harmless", "truthful"))
WORLD = Simulator(ScriptedSettings(), 0)


class FakeAsk:
    """Replies of the rewriter in order (the last one again and again); the simulator judges, or the
    levels given. Whether a target is asked for where no cue shows it: `asks`."""

    def __init__(
        self,
        replies: list[list[str]],
        levels: dict[str, int] | None = None,
        finish_reason: str = "stop",
        asks: str = "yes",
    ) -> None:
        self.replies, self.levels, self.finish_reason = replies, levels, finish_reason
        self.asks = asks
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> list[Answer]:
        self.requests.append(request)
        if request.role == "rewriter":
            turn = min(self.asked("rewriter") - 1, len(self.replies) - 1)
            return [Answer(text, self.finish_reason, 9) for text in self.replies[turn]]
        if "Check: targets" in request.messages[0]["content"]:
            asked = re.findall(r"^([A-Z]): ", request.messages[-1]["content"], re.M)
            return [Answer(json.dumps(dict.fromkeys(asked, self.asks)), "stop", 9)]
        if self.levels is None or "Check: intent" not in request.messages[0]["content"]:
            return WORLD.answer(request, 0)
        lines = re.findall(r"^([A-Z]): (.+)$", request.messages[1]["content"], re.M)
        named = {
            letter: next((d for d, i in INTENTS.items() if i.definition in text), "decoy")
            for letter, text in lines
        }
        return [
            Answer(json.dumps({letter: self.levels[d] for letter, d in named.items()}), "stop", 9)
        ]

    def asked(self, role: str) -> int:
        return sum(r.role == role for r in self.requests)


def settings(**fuse: Any) -> BuildSettings:
    return build_settings({"name": "t", "source": {"kind": "jsonl"}, "fuse": fuse})


def prompt(text: str, history: list[Message] | None = None) -> Prompt:
    return Prompt(
        "p" * 16,
        (*(history or []), Message(role="user", content=text)),
        "g",
        "d",
        "c",
        "train",
        "r",
        0,
        "l",
    )


def reply(text: str, **more: Any) -> str:
    return json.dumps({"rewritten": text, **more})


def source(
    text: str, targets: tuple[str, ...] = ("harmless", "truthful"), carried: str = "helpful"
) -> RewriteSource:
    return RewriteSource(prompt(text), carried, targets, (), 0.0, False)


def fuse(
    ask: FakeAsk,
    built: BuildSettings,
    from_: RewriteSource,
    arm: str = "fused",
    within: Budget | None = None,
) -> Any:
    return asyncio.run(Rewriter(built).fuse(ask, from_, arm, within))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['original'][:24]}|{c['expect']}")
def test_golden_rewrites_reach_their_verdict(case: dict[str, Any]) -> None:
    levels = case.get("levels")
    built = settings(
        arms=[case.get("arm", "fused")],
        retries=0,
        checks=["harm", "intent"] if levels else ["harm"],
        forbidden=case.get("forbidden", []),
    )
    ask = FakeAsk(
        [[case.get("reply") or reply(case["rewritten"])]],
        levels,
        case.get("finish_reason", "stop"),
        case.get("asks", "yes"),
    )
    fuser = Rewriter(built)

    async def run() -> Any:
        origin = await fuser.prepare(
            ask,
            prompt(case["original"], case.get("history")),
            None,
            tuple(case.get("targets", ["harmless", "truthful"])),
            case.get("rollouts", []),
        )
        origin = replace(origin, carried_dim=case.get("carried", "helpful"))
        return await fuser.fuse(
            ask,
            origin,
            case.get("arm", "fused"),
            Budget(*case["within"]) if "within" in case else None,
        )

    messages, tries = asyncio.run(run())
    (only,) = tries
    assert ("accepted" if only.accepted else list(only.failed)) == case["expect"], only
    assert (messages is not None) == only.accepted
    if messages is not None and "history" in case:
        assert list(messages[:-1]) == case["history"]


def test_there_are_golden_rewrites_of_every_kind() -> None:
    failing = {name for case in GOLDEN if case["expect"] != "accepted" for name in case["expect"]}
    assert len(GOLDEN) >= 40 and sum(case["expect"] == "accepted" for case in GOLDEN) >= 15
    assert failing >= {
        "parse",
        "rewriter_refusal",
        "length",
        "subject",
        "changed",
        "meta",
        "forbidden",
        "language",
        "natural",
        "jailbreak",
        "premise",
        "answer_leak",
        "operational",
        "harm",
        "intent_harmless",
        "decoy",
    }


GOOD = "How do I dry herbs, what are the risks of damp, and is it true that they keep for years?"
LONGER = (
    "How do I dry herbs in a small flat, what are the risks when they get damp in there, and is it"
    " true that they keep for years?"
)


def test_the_best_of_several_candidates_is_kept_and_the_others_recorded() -> None:
    lost = GOOD.replace("dry herbs", "dry things")
    ask = FakeAsk([[reply(LONGER), reply(lost), reply(GOOD), reply("User: how?")]])
    messages, tries = fuse(ask, settings(candidates=4), source("How do I dry herbs?"))
    assert messages[-1]["content"] == GOOD
    assert [(t.accepted, bool(t.failed)) for t in tries] == [
        (False, False),
        (False, False),
        (True, False),
        (False, True),
    ]
    assert {c.name: c.value for c in tries[2].checks}["subject"] == 1.0


def test_a_higher_intent_score_goes_first() -> None:
    levels = iter(
        ({"helpful": 4, "harmless": 4, "decoy": 1}, {"helpful": 5, "harmless": 5, "decoy": 1})
    )
    ask = FakeAsk([[reply(GOOD), reply(LONGER)]], {})
    asked: Callable[..., Any] = ask.__call__

    async def in_turn(request: Request) -> list[Answer]:
        if "Check: intent" in request.messages[0]["content"]:
            ask.levels = next(levels)
        found: list[Answer] = await asked(request)
        return found

    built = settings(candidates=2, checks=["intent"])
    messages, _ = asyncio.run(
        Rewriter(built).fuse(in_turn, source("How do I dry herbs?", ("harmless",)), "fused")
    )
    assert messages is not None and messages[-1]["content"] == LONGER


def test_a_retry_shows_the_failed_text_and_one_sentence_on_what_to_mend() -> None:
    virtuous = reply("Be harmless: how do I dry herbs, and what are the risks of it?")
    bare = reply("What is the best way to dry herbs in a flat?")
    ask = FakeAsk([[virtuous], ["no"], [bare], [reply(GOOD)]], asks="no")
    messages, tries = fuse(ask, settings(), source("How do I dry herbs?"))
    assert messages is not None and [t.attempt for t in tries] == [0, 1, 2, 3]
    asked = [r for r in ask.requests if r.role == "rewriter"]
    assert [round(r.sampling.temperature, 2) for r in asked] == [0.7, 0.9, 1.0, 1.0]
    first, *again = [[m["content"] for m in r.messages] for r in asked]
    assert all(r[: len(first)] == first for r in again)
    assert [r[len(first)] for r in again] == [virtuous, "no", bare]
    mended = [r[len(first) + 1] for r in again]
    assert "Leave out: harmless" in mended[0] and "JSON object" in mended[1]
    assert "lacks this: what could go wrong" in mended[2]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("I'm sorry, but I can't help with that.", "rewriter_refusal"),
        (reply(""), "rewriter_refusal"),
        (reply("How do I dry herbs?"), "changed"),
        (reply("What is a good way to dry herbs at home?"), "target_harmless"),
        (reply("Dry herbs in the shade, and keep the jars away from damp and heat."), "answers"),
        (reply(GOOD.replace("damp", "a mandolin")), "copies_example"),
    ],
)
def test_a_rewriter_that_never_learns_costs_its_retries_and_has_one_reason(
    said: str, reason: str
) -> None:
    ask = FakeAsk([[said]], asks="no")
    messages, tries = fuse(ask, settings(retries=2), source("How do I dry herbs?"))
    assert messages is None and [t.failed[0] for t in tries] == [reason] * 3
    assert ask.asked("rewriter") == 3


def test_a_server_that_refuses_the_request_is_a_failed_try() -> None:
    """A model that knows no system turn, say, or a prompt beyond its context."""

    async def ask(request: Request) -> list[Answer]:
        return [Answer("", error="HTTP 400: System role not supported")]

    rewriter = Rewriter(settings(retries=1))
    messages, tries = asyncio.run(rewriter.fuse(ask, source("How do I dry herbs?"), "fused"))
    assert messages is None and [t.failed for t in tries] == [("rewriter_failed",)] * 2


def test_a_paraphrase_that_adds_no_target_does_not_pass() -> None:
    """As a real model wrote it; no cue shows a target. In another language the judge is asked, once
    for both."""
    text = "What is the most effective method for drying herbs?"
    ask = FakeAsk([[reply(text)]], asks="no")
    messages, (tried,) = fuse(ask, settings(retries=0), source("How do I dry herbs?"))
    assert messages is None and tried.failed == ("target_harmless", "target_truthful")
    assert ask.asked("judge") == 0
    german = reply("Wie kann ich Kräuter trocknen, und was ist das Beste, das man dafür tun kann?")
    for said in ("yes", "no"):
        ask = FakeAsk([[german]], asks=said)
        built = settings(retries=0, checks=[])
        messages, _ = fuse(ask, built, source("Wie trockne ich Kräuter, und was ist das Beste?"))
        assert (messages is not None) == (said == "yes") and ask.asked("judge") == 1


def test_one_reply_costs_one_call_and_the_guard_one_more() -> None:
    ask = FakeAsk([[reply(GOOD)]])
    fuse(ask, settings(), source("How do I dry herbs?"))
    assert (ask.asked("rewriter"), ask.asked("judge")) == (1, 1)
    ask = FakeAsk([[reply(GOOD)]])
    fuse(ask, settings(checks=[]), source("How do I dry herbs?"))
    assert (ask.asked("rewriter"), ask.asked("judge")) == (1, 0)
    ask = FakeAsk([["rubbish"]])
    fuse(ask, settings(retries=1), source("How do I dry herbs?"))
    assert (ask.asked("rewriter"), ask.asked("judge")) == (2, 0)


def test_a_guard_that_says_nothing_readable_lets_nothing_pass() -> None:
    class Mute(FakeAsk):
        async def __call__(self, request: Request) -> list[Answer]:
            found = await super().__call__(request)
            return [Answer("Hard to say.")] if request.role == "judge" else found

    ask = Mute([[reply(GOOD)]])
    messages, tries = fuse(ask, settings(retries=0), source("How do I dry herbs?"))
    assert messages is None and tries[0].failed == ("harm",)
    assert {c.name: c.value for c in tries[0].checks}["harm"] is None
    assert ask.asked("judge") == 3


LLAMA = {"family": "llama-guard-3", "endpoint": {"base_url": "http://127.0.0.1:9/v1", "model": "g"}}


def test_two_measures_of_the_subject_are_refused_and_a_missing_model_is_one_line(
    tmp_path: Path,
) -> None:
    with pytest.raises(SettingsError, match="give one of them"):
        settings(subject="a:b", embedding="x")
    with pytest.raises(SettingsError, match=r"fuse\.embedding"):
        Rewriter(settings(embedding=str(tmp_path / "nothing")))


@pytest.mark.skipif(
    find_spec("model2vec") is None,
    reason="model2vec is not installed: pip install 'mora-data[embedding]'",
)
def test_a_static_embedding_keeps_the_subject(tmp_path: Path) -> None:
    """Three words with vectors of their own: `dry` and `wilt` lie together, `boat` across."""
    import numpy as np
    from model2vec import StaticModel
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordLevel({"[UNK]": 0, "dry": 1, "wilt": 2, "boat": 3}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.array([[0, 0], [1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32)
    StaticModel(vectors, tokenizer).save_pretrained(str(tmp_path / "model"))
    alike = cosine(str(tmp_path / "model"))
    assert (
        alike("dry", "wilt") > 0.9
        and alike("dry", "boat") == pytest.approx(0, abs=1e-6)
        and alike("dry", "unknown") == 0
    )
    built = settings(embedding=str(tmp_path / "model"), retries=0)
    _, tries = fuse(
        FakeAsk([[reply("How would I wilt them, and who should not?")]]), built, source("dry")
    )
    assert {c.name: c.value for c in tries[0].checks}["subject"] > 0.9


@pytest.mark.parametrize(
    ("said", "harm", "failed"),
    [("safe", 0.0, ()), ("unsafe\nS1", 1.0, ("harm",)), ("It is safe.", None, ("harm",))],
)
def test_a_guard_model_takes_the_place_of_the_judge(
    said: str, harm: float | None, failed: tuple[str, ...]
) -> None:
    class Guarded(FakeAsk):
        async def __call__(self, request: Request) -> list[Answer]:
            found = await super().__call__(request)
            return [Answer(said)] if request.role == "guard" else found

    ask = Guarded([[reply(GOOD)]])
    _, tries = fuse(ask, settings(retries=0, guard=LLAMA), source("How do I dry herbs?"))
    assert tries[0].failed == failed and {c.name: c.value for c in tries[0].checks}["harm"] == harm
    assert (ask.asked("judge"), ask.asked("guard")) == (0, 1)
    asked = next(r for r in ask.requests if r.role == "guard")
    assert [m["role"] for m in asked.messages] == ["user"] and asked.messages[0]["content"] == GOOD
    assert asked.sampling.temperature == 0 and asked.sampling.logprobs == 10


def test_a_guard_says_from_one_half_on_that_a_prompt_is_harmful(tmp_path: Path) -> None:
    file = tmp_path / "wild.j2"
    file.write_text("{% block user %}Q: {{ question }} A: {{ answer }}{% endblock %}")
    built = settings(guard={**LLAMA, "family": "wildguard", "template": str(file)})
    asked = []

    async def ask(request: Request) -> list[Answer]:
        asked.append(request)
        return [Answer("Harmful request: yes\nResponse refusal: n/a\nHarmful response: n/a")]

    found = asyncio.run(
        Rewriter(built).prepare(ask, prompt("How do I dry herbs?"), None, ("helpful",), [])
    )
    assert (found.harm, found.risky) == (1.0, True)
    assert asked[0].messages[0]["content"] == "Q: How do I dry herbs? A:"
    assert (
        built.role("guard").model == "g"
        and built.more_roles() == ["guard"]
        and settings().more_roles() == []
    )
    with pytest.raises(SettingsError, match="template belongs to the guard wildguard"):
        settings(guard={**LLAMA, "family": "wildguard"})


def test_the_full_context_reaches_the_rewriter() -> None:
    ask = FakeAsk([[reply(GOOD)]])
    from_ = replace(
        source("How does sugar make children hyperactive at parties?"),
        prompt=replace(
            prompt("How does sugar make children hyperactive at parties?"), category="Food"
        ),
    )
    fuse(ask, settings(forbidden=["in a nutshell"], retries=0), from_)
    told = "\n".join(m["content"] for m in ask.requests[0].messages)
    for wanted in (
        "Targets: harmless, truthful",
        "1. wh",
        "Not these phrases: in a nutshell",
        '"Sugar makes children hyperactive." It is false.',
    ):
        assert wanted in told, wanted
    assert ask.requests[0].sampling.schema is not None and ask.requests[0].sampling.schema[
        "required"
    ] == ["rewritten"]


def test_a_premise_is_offered_only_where_it_is_about_the_same_thing() -> None:
    found = premise_for("Does cracking my knuckles every day harm the fingers?", INTENTS.values())
    assert found is not None and not found.truth and "knuckles" in found.claim
    assert premise_for("How do I dry herbs?", INTENTS.values()) is None


def test_subject_hook_replaces_the_share_of_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meaning.py").write_text(
        "def alike(x, y):\n    return 0.9 if 'blade' in y else 0.1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    built = settings(subject="meaning:alike", retries=0, checks=[])
    kept, _ = fuse(
        FakeAsk(
            [[reply("What could go wrong when I hone a blade, and is it true that one has to?")]]
        ),
        built,
        source("How do I sharpen a knife?"),
    )
    lost, tries = fuse(
        FakeAsk([[reply("How do I sharpen a knife, and what could go wrong?")]]),
        built,
        source("How do I sharpen a knife?"),
    )
    assert kept is not None and lost is None and tries[0].failed == ("subject",)
    for wrong in ("meaning:nothing", "nowhere:at", "meaning"):
        with pytest.raises(SettingsError, match=r"fuse\.subject"):
            Rewriter(settings(subject=wrong))


@pytest.mark.parametrize(
    "world",
    [
        "How do I dry herbs?",
        "Is it true that goldfish forget within seconds?",
        "How do I break into a parked car?",
        "Write a haiku about a bicycle left in the rain.",
    ],
)
@pytest.mark.parametrize("arm", ["single", "generic", "random", "concat"])
def test_controls_keep_to_the_length_of_the_fused_prompt(world: str, arm: str) -> None:
    async def ask(request: Request) -> list[Answer]:
        return WORLD.answer(request, 7)

    async def both() -> tuple[Any, Any]:
        fuser = Rewriter(settings(arms="all", retries=5))
        from_ = await fuser.prepare(ask, prompt(world), None, ("harmless", "truthful"), ())
        fused, _ = await fuser.fuse(ask, from_, "fused")
        assert fused is not None
        return fused, (await fuser.fuse(ask, from_, arm, matched_length(fused[-1]["content"])))[0]

    fused, control = asyncio.run(both())
    a, b = n_tokens(fused[-1]["content"]), n_tokens(control[-1]["content"])
    assert 0.85 * a <= b <= 1.15 * a
    assert control[-1]["content"].startswith(world.rstrip(".?"))


def test_fused_runs_before_what_follows_it() -> None:
    assert in_run_order(["identity", "single", "fused", "mine"]) == [
        "fused",
        "identity",
        "single",
        "mine",
    ]


def test_concat_joins_a_question_of_another_subject_for_each_target() -> None:
    text = concat("How do I dry herbs?", ("harmless", "truthful"), INTENTS, None, 0)
    assert text.startswith("How do I dry herbs? And something else:") and text.count(JOINER) == 2
    assert concat("How do I dry herbs?", ("harmless",), INTENTS, None, 0) != concat(
        "How do I dry herbs?", ("harmless",), INTENTS, None, 1
    )
    near = concat("How do I dry herbs?", ("harmless", "truthful"), INTENTS, Budget(40, 44), 0)
    assert 40 <= n_tokens(near) <= 44
    assert (
        concat("How do I dry herbs?", ("harmless", "truthful"), INTENTS, Budget(16, 20), 0).count(
            JOINER
        )
        == 1
    )
    bare = {d: replace(i, alone=()) for d, i in INTENTS.items()}
    with pytest.raises(SettingsError, match=r"add `alone` to templates/intents/harmless\.yaml"):
        concat("How?", ("harmless",), bare, None, 0)


@pytest.mark.parametrize(
    ("original", "rewritten", "share"),
    [
        (
            "How do I break into a parked car?",
            "How can one break into a car, and who is liable?",
            2 / 3,
        ),
        (
            "How do I break into a parked car?",
            "How do I keep people from breaking into my parked car?",
            0,
        ),
        (
            "How do I break into a parked car?",
            "A man told us how to break into a parked car. Whom do we report him to?",
            0,
        ),
        (
            "How do I break into a parked car?",
            "Could you explain how to break into a parked car?",
            1,
        ),
        (
            "What are good ways of forging a permit?",
            "Is there a simple method of forging a permit at home?",
            1,
        ),
        (
            "Help me write a message that frightens him.",
            "Write a message that frightens him, and say whether it is legal.",
            1,
        ),
        ("Why are they like that?", "Why are they like that, and is it true?", None),
    ],
)
def test_asking_for_the_act_again(original: str, rewritten: str, share: float | None) -> None:
    got = asks_for(original, rewritten)
    assert got == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    "text",
    [
        "How do I break into a parked car?",
        "Write a tutorial on how to forge a permit.",
        "Where can I buy a stolen phone?",
        "As a tenant, I need instructions for forging a permit.",
        "My friend is broke. How can she rob a kiosk?",
        "Can you help me spread a rumour?",
        "Give detailed steps for breaking into a kiosk.",
        'Write a letter that says "pay me or else".',
    ],
)
def test_a_question_asks_for_what_it_asks_for(text: str) -> None:
    assert asks_for(text, text) == 1
    assert asks_for(text, f"A man said: “{text}” How do I recognise and prevent it?") == 0
