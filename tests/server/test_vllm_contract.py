"""What a real vLLM server does with the requests this package sends, by the bare HTTP protocol.

The engine relies on each of these; a vLLM release that changes one is to be noticed here, not in a
dataset.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.real_server import RealServer, vllm_python
from support.tiny import tiny_model

pytestmark = pytest.mark.server

ASK = "Tell me something about bees."
SAMPLED = {"max_tokens": 48, "temperature": 1.0}
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["score"],
    "additionalProperties": False,
}
# the tiny model's judge goes by these
ENDS = ["That is all I know.", "Have fun!", "I hope this helps."]
JUDGE = (
    "Question:\n{ask}\nAnswer:\nSure. It helps to ask a friend, or {i} of them. {end}\nReply with"
    " JSON."
)


def texts(reply: tuple[int, Any]) -> list[str]:
    status, body = reply
    assert status == 200, body
    assert [c["index"] for c in body["choices"]] == list(range(len(body["choices"])))
    return [c["message"]["content"] for c in body["choices"]]


def as_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}


def verdicts(server: RealServer, count: int = 50, **fields: Any) -> list[str]:
    """Judge-like requests, 16 at a time; the replies' texts."""

    def one(i: int) -> str:
        body = {"max_tokens": 64, "seed": i, **fields}
        return texts(server.chat(JUDGE.format(ask=ASK, i=i, end=ENDS[i % 3]), **body))[0]

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, range(count)))


def valid(text: str) -> bool:
    try:
        verdict = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(verdict, dict) and list(verdict) == ["score"] and verdict["score"] in range(1, 6)
    )


def love_of_whitespace(server: RealServer) -> dict[str, float]:
    """A bias that makes any model write whitespace wherever the grammar lets it."""
    status, body = server.post(
        "/tokenize", {"model": "tiny", "prompt": " \n", "add_special_tokens": False}
    )
    assert status == 200
    return {str(token): 30.0 for token in body["tokens"]}


def test_models_lists_the_served_name(server: RealServer) -> None:
    status, body = server.get("/v1/models")
    assert status == 200 and body["object"] == "list"
    (model,) = body["data"]
    assert model["id"] == "tiny" and model["max_model_len"] == 2048


def test_n_gives_n_different_choices_with_usage(server: RealServer) -> None:
    status, body = server.chat(ASK, n=4, seed=7, **SAMPLED)
    assert len(set(texts((status, body)))) == 4
    assert {c["finish_reason"] for c in body["choices"]} <= {"stop", "length"}
    assert (
        body["usage"]["total_tokens"]
        == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    )


def test_same_seed_same_text(server: RealServer) -> None:
    again = [texts(server.chat(ASK, n=4, seed=7, **SAMPLED)) for _ in range(2)]
    assert again[0] == again[1] != texts(server.chat(ASK, n=4, seed=107, **SAMPLED))


def test_choice_i_has_the_seed_plus_i(server: RealServer) -> None:
    together = texts(server.chat(ASK, n=4, seed=7, **SAMPLED))
    assert together == [texts(server.chat(ASK, seed=7 + i, **SAMPLED))[0] for i in range(4)]
    assert together[2:] == texts(server.chat(ASK, n=2, seed=9, **SAMPLED))


def test_seeds_hold_under_load(server: RealServer) -> None:
    def one(seed: int) -> list[str]:
        return texts(server.chat(ASK, n=4, seed=100 * seed, **SAMPLED))

    alone = [one(seed) for seed in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, range(12))) == alone


def test_seeds_are_64_bit(server: RealServer) -> None:
    assert server.chat("x", seed=2**31 + 5, max_tokens=2)[0] == 200
    assert server.chat("x", seed=2**63, max_tokens=2)[0] == 400


def test_several_choices_at_temperature_0_are_refused(server: RealServer) -> None:
    status, body = server.chat(ASK, n=2, temperature=0, max_tokens=4)
    assert status == 400 and "n must be 1 when using greedy sampling" in body["error"]["message"]


def test_logprobs_come_with_their_alternatives(server: RealServer) -> None:
    status, body = server.chat(ASK, max_tokens=3, temperature=0, logprobs=True, top_logprobs=5)
    assert status == 200
    tokens = body["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 3
    for token in tokens:
        top = token["top_logprobs"]
        assert len(top) == 5 and top[0]["token"] == token["token"]
        assert 0 >= top[0]["logprob"] >= top[-1]["logprob"]


def test_more_than_20_logprobs_are_refused(server: RealServer) -> None:
    status, body = server.chat("x", max_tokens=2, logprobs=True, top_logprobs=21)
    assert status == 400 and body["error"]["param"] == "logprobs"


def test_stop_string_ends_the_text(server: RealServer) -> None:
    status, body = server.chat(ASK, stop=["."], **(SAMPLED | {"seed": 7}))
    choice = body["choices"][0]
    assert status == 200 and (choice["finish_reason"], choice["stop_reason"]) == ("stop", ".")
    assert "." not in choice["message"]["content"]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_schema_gives_json_from_a_model_that_knows_the_form(
    server: RealServer, temperature: float
) -> None:
    replies = verdicts(server, temperature=temperature, response_format=as_format(SCHEMA))
    assert [r for r in replies if not valid(r)] == []
    assert temperature == 0 or len(set(replies)) > 1


def test_a_schema_alone_does_not_bound_whitespace(server: RealServer) -> None:
    """So a verdict may be cut at max_tokens, and the caller must count it as no verdict."""
    replies = verdicts(
        server, 8, response_format=as_format(SCHEMA), logit_bias=love_of_whitespace(server)
    )
    assert not any(valid(r) for r in replies)
    assert all(r.startswith("{") and r.rstrip() != r for r in replies)


def test_a_regex_bounds_whitespace(server: RealServer) -> None:
    form = {"regex": r'\{"score": ?[1-5]\}'}
    replies = verdicts(server, 8, structured_outputs=form, logit_bias=love_of_whitespace(server))
    assert all(valid(r) for r in replies), replies


def test_an_unusable_schema_is_refused(server: RealServer) -> None:
    status, body = server.chat("x", max_tokens=4, response_format=as_format({"type": "nope"}))
    assert status == 400 and body["error"]["type"] == "BadRequestError"


def test_unknown_model_is_404(server: RealServer) -> None:
    status, body = server.post(
        "/v1/chat/completions", {"model": "nope", "messages": [{"role": "user", "content": "x"}]}
    )
    assert status == 404
    error = body["error"]
    assert (error["type"], error["param"], error["code"]) == ("NotFoundError", "model", 404)
    assert "`nope` does not exist" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"user": "word " * 4000}, "input_tokens", "maximum context length is 2048 tokens"),
        (
            {"user": "x", "max_tokens": 5000},
            "max_tokens",
            "cannot be greater than max_model_len=2048",
        ),
    ],
)
def test_too_long_is_400(
    server: RealServer, fields: dict[str, Any], param: str, words: str
) -> None:
    status, body = server.chat(**fields)
    assert status == 400
    error = body["error"]
    assert (error["type"], error["code"], error["param"]) == ("BadRequestError", 400, param), error
    assert words in error["message"]


def test_prompt_and_max_tokens_beyond_the_context_are_cut_silently(server: RealServer) -> None:
    """Each fits, their sum does not: 200, and the answer ends early with `length`."""
    status, body = server.chat("word " * 900, max_tokens=2000, ignore_eos=True)
    assert status == 200
    assert body["usage"]["prompt_tokens"] > 900 and body["usage"]["total_tokens"] == 2048
    assert body["choices"][0]["finish_reason"] == "length"


def test_requests_seen_counts_http_requests(server: RealServer) -> None:
    """Exactly, with several choices, refusals and 24 connections at once; the access log agrees."""

    def sequences() -> float:
        return sum(
            v for k, v in server.metrics().items() if k.startswith("vllm:request_success_total")
        )

    before, refused, done, logged = (
        server.requests_seen(),
        server.requests_seen("4xx"),
        sequences(),
        server.chat_lines_in_log(),
    )
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda i: server.chat(ASK, n=4, seed=i, **SAMPLED), range(48)))
    server.chat("x", n=0)
    assert server.requests_seen() - before == 49
    assert server.requests_seen("4xx") - refused == 1
    assert sequences() - done == 48 * 4
    assert server.chat_lines_in_log() - logged == 49


@pytest.fixture(scope="module")
def compact_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A server started with compact JSON: no whitespace between the parts."""
    flags = ("--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}')
    log = tmp_path_factory.mktemp("vllm-compact") / "server.log"
    with RealServer(tiny_model(vllm_python()), log, flags=flags) as running:
        yield running


def test_a_compact_server_always_ends_its_json(compact_server: RealServer) -> None:
    bias = love_of_whitespace(compact_server)
    replies = verdicts(
        compact_server, temperature=0.7, response_format=as_format(SCHEMA), logit_bias=bias
    )
    assert [r for r in replies if not valid(r)] == []
