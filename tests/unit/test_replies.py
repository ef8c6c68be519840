"""What is read of a chat server's reply, by the bodies of public bug reports: thoughts, errors that
come with HTTP 200, counts, ends and streams.

Thoughts in the text: https://github.com/RooCodeInc/Roo-Code/issues/8522 ([THINK]),
https://github.com/isaiah-harville/Primer/issues/109, https://github.com/sgl-project/sglang/issues/9244
(analysis ... assistantfinal), https://github.com/vllm-project/vllm/issues/23694,
https://github.com/johnbean393/Sidekick/issues/75 (channels),
https://github.com/ephraimduncan/opencode-cursor/pull/12 (siblings of <think>). The closing tag
alone: https://github.com/ggml-org/llama.cpp/issues/11861,
https://github.com/mudler/LocalAI/issues/4761, https://github.com/skalesapp/skales/issues/166.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from mora_data.engines.dialect import Refusal
from mora_data.engines.replies import (
    ErrorReply,
    TransientFault,
    as_answer,
    parse_chat,
    without_thought,
)
from mora_data.rewards.judge import SCHEMA
from mora_data.types import Sampling

SAY = Sampling(1.0, 1.0, 64)
JUDGE = Sampling(0.0, 1.0, 64, schema=SCHEMA)
FOUR = '{"score": 4}'
LONG = "A sentence of an answer. " * 100

THOUGHTS = {
    "tag": ("<think>They ask.</think>Tea.", "Tea."),
    "tag and lines": ("\n<think>\nThey ask.\n</think>\n\nTea.\n", "Tea."),
    "empty": ("<think>\n\n</think>\n\nTea.", "Tea."),
    "twice": ("<think>One.</think>\n<think>Two.</think>\nTea.", "Tea."),
    "thinking": ("<thinking>They ask.</thinking> Tea.", "Tea."),
    "thought": ("<thought>They ask.</thought> Tea.", "Tea."),
    "reasoning": ("<reasoning>They ask.</reasoning> Tea.", "Tea."),
    "upper case": ("<THINK>They ask.</Think> Tea.", "Tea."),
    "seed": ("<seed:think>They ask.</seed:think>Tea.", "Tea."),
    "minimax": ("<mm:think>They ask.</mm:think>Tea.", "Tea."),
    "magistral": ("[THINK]They ask.[/THINK]Tea.", "Tea."),
    "kimi": ("◁think▷They ask.◁/think▷Tea.", "Tea."),
    "sky": (
        "<|begin_of_thought|>\nThey ask.\n<|end_of_thought|>\n\n"
        "<|begin_of_solution|>\nTea.\n<|end_of_solution|>",
        "Tea.",
    ),
    "command": (
        "<|START_THINKING|>They ask.<|END_THINKING|><|START_RESPONSE|>Tea.<|END_RESPONSE|>",
        "Tea.",
    ),
    "gemma": ("<|channel>thought\nThey ask.<channel|>Tea.", "Tea."),
    "channels": (
        "<|channel|>analysis<|message|>They ask.<|end|><|start|>assistant<|channel|>final"
        "<|message|>Tea.<|return|>",
        "Tea.",
    ),
    "channels in JSON": (
        "<|channel|>analysis<|message|>They ask.<|end|><|start|>assistant<|channel|>final "
        f"<|constrain|>json<|message|>{FOUR}",
        FOUR,
    ),
    "only the last channel": (f"<|channel|>final<|message|>{FOUR}<|return|>", FOUR),
    "channels without their tokens": ('analysisThe user asks: "What?"assistantfinalTea.', "Tea."),
    "wrapped answer": ("<think>They ask.</think>\n<answer>\nTea.\n</answer>", "Tea."),
    "wrapped response": ("<think>\nThey ask.\n</think>\n\n<response>\nTea.\n</response>\n", "Tea."),
    "opened by the template": ("They ask what.\n</think>\n\nTea.", "Tea."),
    "opened by the template, no lines": (f"They ask what. Good.</think>{FOUR}", FOUR),
    "opened by the template, empty": ("</think>\n\nTea.", "Tea."),
    "it speaks of tags": ("They ask about <think> tags.\n</think>\n\nTea.", "Tea."),
    "it quotes its tag": ("<think>Shall I say `</think>`? No.\n</think>\nTea.", "Tea."),
    "nothing behind": ("<think>They ask.</think>", ""),
}

ANSWERS = {
    "plain": "Tea.",
    "about the tags": "Models think between `<think>` and `</think>`.",
    "about the closing tag": 'Such a thought ends with "</think>" and then the answer follows.',
    "an inline example": "A reply like <think>hm</think>Tea. has a thought in it.",
    "code": "Use this:\n\n```\n<think>\nplan\n</think>\nanswer\n```\n\nDone.",
    "code of the end": 'Split it:\n\n```python\ntext.split("</think>")\n```\n\nDone.',
    "code that is the end": "It ends with\n\n```\n</think>\n```",
    "on lines of their own": "The form is\n\n<think>\nplan\n</think>\n\nand then the answer.",
    "table": "<table><thead><th>a</th></thead></table>",
    "word": "analysis of the data shows",
    "brackets": "[link](x) [THINK] is a token, [/INST] another.",
    "white space around": "\n  Tea.\n",
    "other languages": "◁ a sign, ▷ another",
}

CUT = {
    "tag": "<think>They ask. Let me",
    "tag alone": "<think>",
    "second thought": "<think>One.</think><think>Two",
    "magistral": "[THINK]They ask",
    "channels": "<|channel|>analysis<|message|>They ask",
    "channels without their tokens": "analysisWe need to",
}


@pytest.mark.parametrize(("written", "answer"), THOUGHTS.values(), ids=THOUGHTS)
def test_a_thought_is_no_part_of_the_answer(written: str, answer: str) -> None:
    assert without_thought(written) == (answer, False)


@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_about_tags_is_left_as_it_is(text: str) -> None:
    """A tag counts at the start of a reply, or where it closes what nothing opened."""
    assert without_thought(text) == (text, False)


@pytest.mark.parametrize("written", CUT.values(), ids=CUT)
def test_a_thought_that_is_cut_off_leaves_a_truncated_answer(written: str) -> None:
    assert without_thought(written) == ("", True)
    answer = as_answer(written, "stop", 9)
    assert (answer.text, answer.finish_reason) == ("", "length")


@pytest.mark.parametrize(
    ("written", "thought"),
    [(w, "They ask.") for name, (w, _) in THOUGHTS.items() if "They ask.<" in w or "ask.\n" in w]
    + [(CUT["tag"], "They ask. Let me"), ("Tea.", None), (THOUGHTS["empty"][0], "")],
)
def test_a_thought_is_kept_where_it_is_asked_for(written: str, thought: str | None) -> None:
    assert as_answer(written, "stop", 9, keep=True).thought == thought
    assert as_answer(written, "stop", 9).thought is None


def test_probabilities_are_those_of_the_answer() -> None:
    """A guard's verdict is read off its first token."""
    tokens = ["<think>", "They", " ask", "</think>", "\n", "safe"]
    top = tuple((t, ((t, -0.1),)) for t in tokens)
    answer = as_answer("".join(tokens), "stop", 6, top)
    assert answer.text == "safe" and answer.logprobs == (("safe", (("safe", -0.1),)),)
    elsewhere = as_answer("safe", "stop", 6, top, beside="They ask")
    assert elsewhere.logprobs == answer.logprobs
    assert as_answer("<think>", "stop", 1, top[:1]).logprobs == ()
    assert as_answer("safe", "stop", 1, top[5:]).logprobs == top[5:]


def body(*messages: Any, usage: Any = None, **more: Any) -> bytes:
    """A completion with these messages; a text stands for its content."""
    choices = [
        {
            "index": i,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": m} if isinstance(m, str) else m,
            **more,
        }
        for i, m in enumerate(messages)
    ]
    usage = {"prompt_tokens": 9, "completion_tokens": 7} if usage is None else usage
    return json.dumps({"model": "m", "choices": choices, "usage": usage}).encode()


def message(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


MESSAGES: dict[str, tuple[Any, Sampling, str]] = {
    # https://github.com/vllm-project/vllm/issues/17609, https://github.com/QwenLM/Qwen3/issues/1297
    "thought in a field": (message("Tea.", reasoning_content="They ask."), SAY, "Tea."),
    "thought in another field": (message("Tea.", reasoning="They ask."), SAY, "Tea."),
    "thought alone": (message(None, reasoning_content="They ask."), SAY, ""),
    "thought alone, white space": (message("\n\n", reasoning="They ask."), SAY, ""),
    # https://github.com/vllm-project/vllm/issues/16182, .../50948
    "JSON as a thought": (message(None, reasoning_content=FOUR), JUDGE, FOUR),
    "JSON as a thought, a new field": (message("", reasoning=f"\n{FOUR}\n"), JUDGE, FOUR),
    "JSON behind a thought": (
        message(None, reasoning_content=f"Hm.\n</think>\n\n{FOUR}"),
        JUDGE,
        FOUR,
    ),
    "JSON in a thought": (message(None, reasoning_content=f"I say {FOUR}."), JUDGE, ""),
    "JSON as a thought, unasked": (message(None, reasoning_content=FOUR), SAY, ""),
    # https://github.com/NousResearch/hermes-agent/pull/4748, https://github.com/simonw/llm-mistral/pull/39
    "parts": (
        message([{"type": "thinking", "thinking": [part("They ask.")]}, part("Te"), part("a.")]),
        SAY,
        "Tea.",
    ),
    "parts, a thought as text": (
        message([{"type": "reasoning", "text": "They ask."}, {"text": "Tea."}]),
        SAY,
        "Tea.",
    ),
    "parts, texts": (message(["Te", "a."]), SAY, "Tea."),
    "refusal": (message(None, refusal="I can't."), JUDGE, "I can't."),
    "null": (message(None), SAY, ""),
    "no content": ({"role": "assistant"}, SAY, ""),
}


@pytest.mark.parametrize(("said", "sampling", "text"), MESSAGES.values(), ids=MESSAGES)
def test_the_text_of_a_message(said: Any, sampling: Sampling, text: str) -> None:
    (answer,) = parse_chat(body(said), 1, sampling=sampling).answers
    assert (answer.text, answer.error, answer.tokens_out) == (text, None, 7)


ENDS = {
    "stop": "stop",
    "length": "length",
    None: "stop",
    "": "stop",
    7: "stop",
    # https://github.com/openai/openai-dotnet/pull/267, https://github.com/spring-projects/spring-ai/pull/4900
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "STOP": "stop",
    # https://github.com/QwenLM/qwen-code/pull/9884
    "MAX_TOKENS": "length",
    "max_tokens": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    "x" * 60: "x" * 40,
}


@pytest.mark.parametrize(("said", "meant"), ENDS.items())
def test_why_an_answer_ended(said: Any, meant: str) -> None:
    raw = body("Tea.", finish_reason=said)
    assert parse_chat(raw, 1, sampling=SAY).answers[0].finish_reason == meant


def test_a_proxy_that_calls_every_end_a_stop() -> None:
    full = {"completion_tokens": 64}
    for text, reason in (("and then the", "length"), ("That is all.", "stop")):
        answers = parse_chat(body(text, usage=full), 1, sampling=SAY).answers
        assert answers[0].finish_reason == reason
    (short,) = parse_chat(body("and then the", usage={"completion_tokens": 63}), 1).answers
    assert short.finish_reason == "stop"


def test_a_reply_without_its_message_was_all_thought() -> None:
    """As a gateway to Gemini answers: https://github.com/QwenLM/qwen-code/pull/9884"""
    raw = json.dumps(
        {
            "choices": [{"index": 0, "finish_reason": "MAX_TOKENS"}],
            "usage": {"completion_tokens": 5},
        }
    )
    (answer,) = parse_chat(raw.encode(), 1, sampling=JUDGE).answers
    assert (answer.text, answer.finish_reason, answer.tokens_out) == ("", "length", 5)


COUNTS: dict[str, tuple[Any, tuple[int, int, int]]] = {
    "as usual": ({"prompt_tokens": 9, "completion_tokens": 1500}, (9, 1500, 0)),
    # https://github.com/ggml-org/llama.cpp/pull/27318
    "one choice of three": ({"prompt_tokens": 9, "completion_tokens": 300}, (9, 1875, 0)),
    # https://github.com/abetlen/llama-cpp-python/issues/1344
    "always one": ({"prompt_tokens": 9, "completion_tokens": 1}, (9, 1875, 0)),
    "none": ({}, (0, 1875, 0)),
    "no object": ("free", (0, 1875, 0)),
    "huge": ({"prompt_tokens": 1e30, "completion_tokens": 10**18}, (0, 1875, 0)),
    "negative": ({"prompt_tokens": -9, "completion_tokens": -5}, (0, 1875, 0)),
    "text": ({"prompt_tokens": "nine", "completion_tokens": "5"}, (0, 1875, 0)),
    "more cached than sent": (
        {
            "prompt_tokens": 9,
            "completion_tokens": 1500,
            "prompt_tokens_details": {"cached_tokens": 99},
        },
        (9, 1500, 9),
    ),
}


@pytest.mark.parametrize(("usage", "tokens"), COUNTS.values(), ids=COUNTS)
def test_tokens_that_were_not_counted_are_estimated(
    usage: Any, tokens: tuple[int, int, int]
) -> None:
    record = parse_chat(body(LONG, LONG, LONG, usage=usage), 3, sampling=SAY)
    assert record.tokens == tokens
    assert {a.tokens_out for a in record.answers} == {tokens[1] // 3}
    assert {a.finish_reason for a in record.answers} == {"stop"}


def test_a_body_may_begin_with_a_mark_of_its_encoding() -> None:
    assert parse_chat(b"\xef\xbb\xbf" + body("Tea."), 1).answers[0].text == "Tea."


def events(*tree: Any, done: bool = True) -> bytes:
    lines = [b": PROCESSING", *(b"data: " + json.dumps(t).encode() for t in tree)]
    return b"\n\n".join([*lines, b"data: [DONE]"] if done else lines) + b"\n\n"


def delta(index: int = 0, reason: str | None = None, **said: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": index, "delta": said, "finish_reason": reason}]}


def test_events_add_up_to_a_completion() -> None:
    """As of a server that only streams; with and without the space after the colon."""
    seen: list[object] = []
    rare = {"token": "C.", "logprob": -9.3}  # less than 1e-4: not worth its place in the log
    top = {"content": [{"token": "B.", "top_logprobs": [{"token": "B.", "logprob": -0.5}, rare]}]}
    ended = delta(1, "length")
    ended["choices"][0]["logprobs"] = top
    raw = events(
        delta(0, role="assistant", content=""),
        delta(1, content="B."),
        delta(0, reasoning_content="Hm."),
        delta(0, content=[{"type": "thinking", "thinking": [part("Hm.")]}, part("<think>x</th")]),
        delta(0, content="ink>A"),
        delta(0, content="."),
        delta(0, "stop"),
        ended,
        {"model": "m", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}},
    )
    for reply in (raw, raw.replace(b"data: ", b"data:"), b"\xef\xbb\xbf\n" + raw):
        record = parse_chat(reply, 2, seen.append, SAY)
        assert [(a.text, a.finish_reason) for a in record.answers] == [
            ("A.", "stop"),
            ("B.", "length"),
        ]
        assert record.tokens == (9, 4, 0) and seen.pop() == "m"
        assert record.answers[0].logprobs is None
        assert record.answers[1].logprobs == (("B.", (("B.", -0.5),)),)


def test_events_that_break_off_are_no_answer() -> None:
    with pytest.raises(TransientFault, match="without a chat completion"):
        parse_chat(events(delta(content="A"), done=False), 1)
    assert parse_chat(events(delta(content="A")), 1).answers[0].text == "A"
    ended = events(delta(content="A"), delta(reason="stop"), done=False)
    assert parse_chat(ended, 1).answers[0].text == "A"


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_an_answer_that_the_server_broke_off_is_asked_again(reason: str) -> None:
    with pytest.raises(TransientFault, match="ended an answer by"):
        parse_chat(body("Te", finish_reason=reason), 1)


ERRORS: dict[str, tuple[Any, int]] = {
    # https://github.com/UKGovernmentBEIS/inspect_ai/issues/1534
    "provider's limit": (
        {"choices": None, "error": {"message": "Provider returned error", "code": 429}},
        429,
    ),
    # https://github.com/SWE-agent/mini-swe-agent/pull/902
    "upstream": ({"error": {"message": "no reply from upstream", "code": 502}}, 502),
    "code as text": ({"error": {"message": "no", "code": "401"}}, 401),
    "context": (
        {"error": {"message": "This model's maximum context length is 8192 tokens", "code": 500}},
        400,
    ),
    "overloaded": ({"error": {"type": "overloaded_error", "message": "Overloaded"}}, 503),
    "words alone": ({"error": "the server is busy, please try again later"}, 503),
    "no credit": ({"error": {"message": "Insufficient credits"}}, 402),
    "status beside it": ({"status": 422, "detail": "seed: extra fields not permitted"}, 422),
    "old vLLM": ({"object": "error", "message": "bad request", "code": 400}, 400),
    "list": ([{"error": {"code": 400, "message": "Unknown name seed"}}], 400),
    "details": ({"detail": [{"loc": ["body", "seed"], "msg": "extra_forbidden"}]}, 400),
    "nothing known": ({"error": {"message": "something went wrong", "code": 1301}}, 400),
    "in a choice": (
        {"choices": [{"index": 0, "error": {"code": 503, "message": "x"}, "message": {}}]},
        503,
    ),
}


@pytest.mark.parametrize(("tree", "status"), ERRORS.values(), ids=ERRORS)
def test_an_error_may_come_with_status_200(tree: Any, status: int) -> None:
    raw = json.dumps(tree).encode()
    for reply in (raw, events(tree)) if isinstance(tree, dict) else (raw,):
        with pytest.raises(ErrorReply) as e:
            parse_chat(reply, 1)
        assert Refusal(200, e.value.body).status == status


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>bad gateway</html>",
        b"null",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [7]}',
        b'{"choices": [{"message": {"content": [7]}}]}',
        b"data: [DONE]\n\n",
        b"data: {\n\n",
        b"\xef\xbb\xbf",
    ],
)
def test_what_is_no_completion_is_asked_again(raw: bytes) -> None:
    with pytest.raises(TransientFault, match="without a chat completion"):
        parse_chat(raw, 1)
