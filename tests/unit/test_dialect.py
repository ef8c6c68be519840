"""What endpoints refuse, and how they are written to instead. The bodies are those of public bug
reports; the fake server says them, since no real one can be made to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI, Fault

from mora_data.engines.cached_client import CachedClient
from mora_data.engines.dialect import FILE, Refusal
from mora_data.engines.engine import Shared
from mora_data.engines.openai import open_openai
from mora_data.errors import EndpointError
from mora_data.rewards.judge import SCHEMA
from mora_data.run.log import AnswerLog
from mora_data.run.stats import RunStats
from mora_data.settings import build_settings
from mora_data.types import Answer, Message, Request, Sampling

Body = dict[str, Any]
TURNS = (
    Message(role="system", content="You grade."),
    Message(role="user", content="What is tea?"),
    Message(role="assistant", content="A drink."),
    Message(role="user", content="Is it hot? Reply in JSON."),
)
JUDGE = Request("policy", TURNS, Sampling(0.0, 0.9, 64, ("END",), SCHEMA, None, 5), "score", "p1")
SAMPLE = Request("policy", TURNS, Sampling(0.7, 0.9, 64), "presample", "p1", n=3)


def error(status: int, message: str, **more: Any) -> Fault:
    return Fault(status, json.dumps({"error": {"message": message, **more}}).encode())


def has(name: str) -> Callable[[Body], bool]:
    return lambda body: name in body


def has_system(body: Body) -> bool:
    return any(m["role"] == "system" for m in body["messages"])


def json_type(body: Body) -> str:
    return str((body.get("response_format") or {}).get("type"))


def is_bounded(body: Body) -> bool:
    return '"minimum"' in json.dumps(body.get("response_format"))


FORMS: dict[str, tuple[Callable[[Body], bool], Fault]] = {
    "max_completion_tokens instead": (
        has("max_tokens"),
        error(
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
            " 'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        ),
    ),
    "only the default temperature": (
        lambda b: b.get("temperature", 1) != 1,
        error(400, "Only the default (1) value is supported.", param="temperature"),
    ),
    "temperature 0": (
        lambda b: b.get("temperature") == 0,
        error(400, "temperature must be strictly positive, got 0"),
    ),
    "not both": (
        lambda b: "temperature" in b and "top_p" in b,
        error(400, "`temperature` and `top_p` cannot both be specified for this model."),
    ),
    "top_p": (has("top_p"), error(422, "top_p is not allowed")),
    "seed, 422": (
        has("seed"),
        Fault(
            422,
            b'{"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"],'
            b' "msg": "Extra inputs are not permitted"}]}',
        ),
    ),
    "seed, a list": (
        has("seed"),
        Fault(
            400,
            b'[{"error": {"code": 400, "status": "INVALID_ARGUMENT",'
            b' "message": "Invalid JSON payload received. Unknown name \\"seed\\""}}]',
        ),
    ),
    "n, at most 1": (lambda b: b.get("n", 1) > 1, error(400, "'n' : number must be at most 1")),
    "n, one choice": (
        lambda b: b.get("n", 1) > 1,
        error(400, "Only one completion choice is allowed"),
    ),
    "json_schema": (
        lambda b: json_type(b) == "json_schema",
        error(400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported"),
    ),
    "any format": (
        has("response_format"),
        error(422, "This model does not support structured outputs"),
    ),
    "bounds": (is_bounded, error(400, "For 'integer' type, properties maximum are not supported")),
    "stop": (has("stop"), error(400, "Unsupported parameter: 'stop'", param="stop")),
    "logprobs": (has("logprobs"), error(400, "logprobs are not supported by this model")),
    "system, 400": (has_system, error(400, "System role not supported")),
    "system, 500": (has_system, Fault(500, b'{"error": "Jinja: System role not supported"}')),
    "alternation": (
        lambda b: b["messages"][0]["role"] == "system",
        error(400, "Conversation roles must alternate user/assistant/user/assistant/..."),
    ),
    "seed, unnamed": (has("seed"), Fault(400, b"Bad Request")),
    "bounds, unnamed": (is_bounded, Fault(400, b"{}")),
}


def ask(
    server: FakeOpenAI, folder: Path, *requests: Request, **settings: Any
) -> tuple[list[list[Answer]], RunStats]:
    """The answers, through a log in `folder`."""
    build = build_settings(
        {
            "name": "x",
            "source": {"kind": "jsonl"},
            "dimensions": ["helpful"],
            "policy": {"base_url": server.base_url, "model": "fake", **settings},
        }
    )
    stats = RunStats()

    async def run() -> list[list[Answer]]:
        engine = open_openai(build.policy, build, stats, Shared(folder, log=lambda line: None))
        log = AnswerLog(folder / "answers.log")
        try:
            client = CachedClient({"policy": engine}, log, 0, stats)
            return await asyncio.gather(*(client(r) for r in requests))
        finally:
            log.close()
            await engine.close()

    return asyncio.run(run()), stats


@pytest.mark.parametrize("case", FORMS)
def test_a_refused_form_is_written_otherwise(case: str, tmp_path: Path) -> None:
    refused, fault = FORMS[case]
    with FakeOpenAI(lambda body, time: fault if refused(body) else None) as server:
        answers, _ = ask(server, tmp_path, JUDGE, SAMPLE)
        assert [len(a) for a in answers] == [1, 3]
        assert not any(x.error for a in answers for x in a)
        asked = len(server.requests)
        later = replace(JUDGE, prompt_id="p2", messages=(*TURNS[:3], {**TURNS[3], "content": "?"}))
        again, stats = ask(server, tmp_path, JUDGE, SAMPLE, later)
    assert again[:2] == answers and stats.replayed == 4
    assert len(server.requests) == asked + 1, "what was learned is kept: nothing is refused again"
    assert (tmp_path / FILE).exists()


def test_what_refuses_everything_stops_the_run(tmp_path: Path) -> None:
    fault = error(400, "Your project may not use this model in your region")
    with FakeOpenAI(lambda body, time: fault) as server:
        with pytest.raises(EndpointError, match="may not use this model in your region"):
            ask(server, tmp_path, JUDGE, SAMPLE)
        assert len(server.requests) < 8
    assert (tmp_path / "answers.log").stat().st_size == 0


@pytest.mark.parametrize(
    "fault",
    [
        error(400, "This model's maximum context length is 512 tokens", code=None),
        error(400, "filtered", code="content_filter"),
        error(403, "Your input was flagged by moderation"),
        Fault(400, b"strange text"),
    ],
)
def test_a_row_that_is_refused_is_one_failure(fault: Fault, tmp_path: Path) -> None:
    bad = replace(SAMPLE, prompt_id="bad", messages=(Message(role="user", content="bad"),), n=1)
    with FakeOpenAI(
        lambda b, t: fault if b["messages"][-1]["content"] == "bad" else None
    ) as server:
        answers, stats = ask(server, tmp_path, bad, SAMPLE)
        asked = len(server.requests)
        assert ask(server, tmp_path, bad, SAMPLE)[0] == answers and len(server.requests) == asked
    assert answers[0][0].error and not any(a.error for a in answers[1])
    assert sum(stats.failed.values()) == 1


@pytest.mark.parametrize(
    "fault",
    [
        error(402, "Insufficient credits"),
        error(429, "You exceeded your current quota", code="insufficient_quota"),
    ],
)
def test_no_credit_stops_the_run(fault: Fault, tmp_path: Path) -> None:
    with FakeOpenAI(lambda body, time: fault) as server:
        with pytest.raises(EndpointError, match="add credit"):
            ask(server, tmp_path, SAMPLE)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"detail": "max_tokens: unknown field"}', "max_tokens"),
        (b'{"object": "error", "message": "top_p must be 1"}', "top_p"),
        (b'"temperature is fixed"', "temperature"),
        (b"<html>Bad Gateway</html>", None),
        (b"", None),
        (b'{"error": {"message": null}}', None),
        (b'{"detail": [1, {"loc": null}]}', None),
    ],
)
def test_bodies_of_errors(body: bytes, field: str | None) -> None:
    sent = {"messages": list(TURNS), "max_tokens": 5, "top_p": 0.9, "temperature": 0.5}
    assert Refusal(400, body).field(sent) == field


@pytest.mark.parametrize("text", ["", "[]", '{"x": 1}', "nope", '{"PLACE": {"json_step": 99}}'])
def test_a_damaged_file_teaches_nothing(text: str, tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        (tmp_path / FILE).write_text(text.replace("PLACE", f"{server.base_url} fake"))
        assert not ask(server, tmp_path, SAMPLE)[0][0][0].error
