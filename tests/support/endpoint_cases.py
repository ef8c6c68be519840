"""How endpoints differ, as a table: what a server does, and how asking it has to end.

A row is (name, what the server says to a body, how it ends, a text that is printed, where it was
reported). Ends: `whole`, every answer comes; `row`, the request with "bad" in it is one failure and
the others are answered; `stop`, the run stops with that text in its one line and nothing is logged.
"""

from __future__ import annotations

import asyncio
import json
import re
import time as clock
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from support.fake_openai import FakeOpenAI, Fault, answer

from mora_data.engines.cached_client import CachedClient
from mora_data.engines.engine import Shared
from mora_data.engines.openai import open_openai
from mora_data.rewards.judge import SCHEMA
from mora_data.run.log import AnswerLog
from mora_data.run.stats import RunStats
from mora_data.settings import build_settings
from mora_data.types import Answer, Message, Request, Sampling

Body = dict[str, Any]
When = Callable[[Body], bool]
Ends = Literal["whole", "row", "stop"]
TURNS = (
    Message(role="system", content="You grade."),
    Message(role="user", content="What is tea?"),
    Message(role="assistant", content="A drink."),
    Message(role="user", content="Is it hot? Reply in JSON."),
)
JUDGE = Request("policy", TURNS, Sampling(0.0, 0.9, 64, ("END",), SCHEMA, None, 5), "score", "p1")
SAMPLE = Request("policy", TURNS, Sampling(0.7, 0.9, 64), "presample", "p1", n=3)
GITHUB = "https://github.com/"


@dataclass(frozen=True)
class Case:
    """One behaviour of a server.

    Attributes:
        says: what a body gets instead of its answer, and how often it was sent.
        set_up: changes the server before it is asked.
        url: the base URL, made of the server's own.
        more: settings of the role.
    """

    name: str
    says: Callable[[Body, int], Fault | None]
    ends: Ends = "whole"
    line: str = ""
    source: str = ""
    set_up: Callable[[FakeOpenAI], None] = lambda server: None
    url: Callable[[str], str] = lambda base: base
    more: Mapping[str, Any] = field(default_factory=dict)


def ask(
    server: FakeOpenAI,
    folder: Path,
    *requests: Request,
    url: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> tuple[list[list[Answer]], RunStats]:
    """The answers, through a log in `folder`."""
    role = {"base_url": url or server.base_url, "model": "fake", **settings}
    tree = {"name": "x", "source": {"kind": "jsonl"}, "dimensions": ["helpful"], "policy": role}
    build = build_settings(tree)
    stats = RunStats()

    async def run() -> list[list[Answer]]:
        engine = open_openai(build.policy, build, stats, Shared(folder, log=say))
        log = AnswerLog(folder / "answers.log")
        try:
            client = CachedClient({"policy": engine}, log, 0, stats)
            return await asyncio.gather(*(client(r) for r in requests))
        finally:
            log.close()
            await engine.close()

    return asyncio.run(run()), stats


def everything_in(folder: Path) -> str:
    """The texts of a dataset folder, rows and papers."""
    tables = [str(pq.read_table(p).to_pylist()) for p in folder.rglob("*.parquet")]
    texts = [p.read_text("utf-8") for p in folder.rglob("*") if p.suffix in (".md", ".json")]
    assert tables and texts
    return "\n".join(tables + texts)


# what servers look at, and how they say it


def error(status: int, message: str, **more: Any) -> Fault:
    return Fault(status, json.dumps({"error": {"message": message, **more}}).encode())


def plain(status: int, text: str, **headers: str) -> Fault:
    return Fault(status, text.encode(), headers)


def has(name: str) -> When:
    return lambda body: name in body


def has_system(body: Body) -> bool:
    return any(m["role"] == "system" for m in body["messages"])


def is_many(body: Body) -> bool:
    return int(body.get("n", 1)) > 1


def json_type(body: Body) -> str:
    return str((body.get("response_format") or {}).get("type"))


def has_schema(body: Body) -> bool:
    return json_type(body) == "json_schema"


def is_bounded(body: Body) -> bool:
    return '"minimum"' in json.dumps(body.get("response_format"))


def is_warm(body: Body) -> bool:
    return body.get("temperature", 1) != 1


def is_greedy(body: Body) -> bool:
    return body.get("temperature") == 0


def is_bad(body: Body) -> bool:
    """By the word: one nonce in 400 has these letters among its digits."""
    return re.search(r"\bbad\b", json.dumps(body["messages"])) is not None


def always(body: Body) -> bool:
    return True


def alternates(body: Body) -> bool:
    roles = [m["role"] for m in body["messages"]]
    return roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


def begins_with_user(body: Body) -> bool:
    return next(m["role"] for m in body["messages"] if m["role"] != "system") == "user"


def if_(when: When, fault: Fault) -> Callable[[Body, int], Fault | None]:
    return lambda body, time: fault if when(body) else None


def at_first(times: int, fault: Fault) -> Callable[[Body, int], Fault | None]:
    """The first `times` times that a body comes."""
    return lambda body, time: fault if time <= times else None


def plainly(body: Body, time: int) -> None:
    return None


def as_model(name: str) -> Callable[[Body, int], Fault | None]:
    return lambda body, time: Fault(model=name)


def vllm(message: str, status: int = 400) -> Fault:
    tree = {"object": "error", "message": message, "type": "BadRequestError", "param": None}
    return Fault(status, json.dumps({**tree, "code": status}).encode())


def validator(name: str, nested: str = "detail") -> Fault:
    item = {
        "type": "extra_forbidden",
        "loc": ["body", name],
        "msg": "Extra inputs are not permitted",
    }
    tree: Any = {"detail": [item]} if nested == "detail" else {"message": {"detail": [item]}}
    return Fault(422, json.dumps(tree).encode())


def gemini(message: str, status: int = 400, **more: Any) -> Fault:
    tree = {"error": {"code": status, "message": message, "status": "INVALID_ARGUMENT", **more}}
    return Fault(status, json.dumps([tree]).encode())


MAX_TOKENS = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
    " 'max_completion_tokens' instead."
)
ONLY_ONE = (
    "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1)"
    " value is supported."
)
BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
ALTERNATE = "Conversation roles must alternate user/assistant/user/assistant/..."
AFTER = "After the optional system message, conversation roles must alternate user/assistant/..."
FILTERED = (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management"
    " policy. Please modify your prompt and retry."
)
QUOTA = "You exceeded your current quota, please check your plan and billing details."
AFFORD = (
    "This request requires more credits, or fewer max_tokens. You requested up to 512 tokens, but"
    " can only afford 19."
)
TOO_LONG = "This model's maximum context length is 512 tokens. However, you requested 900 tokens."
GATEWAY = (
    "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><center>"
    "<h1>502 Bad Gateway</h1></center></body></html>"
)

REFUSED: tuple[tuple[str, When, Fault, str], ...] = (
    (
        "max_tokens, by param",
        has("max_tokens"),
        error(400, MAX_TOKENS, param="max_tokens"),
        "teilomillet/gollm/issues/33",
    ),
    (
        "max_tokens, by its words",
        has("max_tokens"),
        error(400, MAX_TOKENS, code="invalid_request_body"),
        "caozhiyuan/copilot-api/issues/164",
    ),
    (
        "max_tokens, said by a router",
        has("max_tokens"),
        error(
            400, f"Error from provider(new-api,gpt-5-mini: 400): {MAX_TOKENS} (request id: 2025)"
        ),
        "",
    ),
    (
        "max_tokens, litellm",
        has("max_tokens"),
        error(400, f"litellm.BadRequestError: {MAX_TOKENS}"),
        "enoch3712/ExtractThinker/issues/327",
    ),
    ("max_tokens, 422", has("max_tokens"), validator("max_tokens"), ""),
    ("max_tokens, a bare string", has("max_tokens"), plain(400, '"max_tokens is deprecated"'), ""),
    (
        "temperature, the default only",
        is_warm,
        error(400, ONLY_ONE, param="temperature"),
        "tmc/langchaingo/issues/1355",
    ),
    ("temperature, by its words", is_warm, error(400, ONLY_ONE), "johny-b/llmcomp/issues/69"),
    (
        "temperature, kimi",
        is_warm,
        error(400, "invalid temperature: only 1 is allowed for this model"),
        "moona3k/macparakeet/pull/1087",
    ),
    (
        "temperature is deprecated",
        has("temperature"),
        error(400, "`temperature` is deprecated for this model."),
        "pollinations/pollinations/pull/12162",
    ),
    (
        "temperature 0 not positive",
        is_greedy,
        plain(
            422, '{"error": "`temperature` must be strictly positive", "error_type": "validation"}'
        ),
        "oobabooga/textgen/pull/4524",
    ),
    ("temperature 0 too low", is_greedy, error(400, "temperature must be in (0.01, 1.0]"), ""),
    (
        "temperature 0, by loc",
        is_greedy,
        Fault(
            422,
            b'{"detail": [{"loc": ["body", "temperature"],'
            b' "msg": "ensure this value is greater than 0", "type": "value_error"}]}',
        ),
        "",
    ),
    (
        "temperature and top_p",
        lambda b: "temperature" in b and "top_p" in b,
        error(400, BOTH),
        "aws-samples/bedrock-access-gateway/issues/191",
    ),
    (
        "temperature and top_p, litellm",
        lambda b: "temperature" in b and "top_p" in b,
        error(400, f'litellm.BadRequestError: BedrockException - {{"message": "{BOTH}"}}'),
        "skydiscover-ai/skydiscover/issues/15",
    ),
    (
        "temperature and top_p, cut short",
        lambda b: "temperature" in b and "top_p" in b,
        error(400, "temperature and topP cannot both be specified"),
        "mem0ai/mem0/pull/4147",
    ),
    ("top_p", has("top_p"), error(422, "top_p is not allowed"), ""),
    (
        "top_p, gpt-5",
        has("top_p"),
        error(400, "Unsupported parameter: 'top_p'", param="top_p"),
        "CopilotKit/CopilotKit/pull/7191",
    ),
    (
        "top_p with greedy",
        lambda b: is_greedy(b) and "top_p" in b,
        error(400, "top_p must be 1 when using greedy sampling"),
        "EricLBuehler/candle-vllm/issues/307",
    ),
    ("seed, 422", has("seed"), validator("seed"), "partITech/php-mistral/issues/76"),
    (
        "seed, 422 under message",
        has("seed"),
        validator("seed", "message"),
        "Gage-Technologies/mistral-go/issues/3",
    ),
    (
        "seed, a list",
        has("seed"),
        gemini('Invalid JSON payload received. Unknown name "seed": Cannot find field.'),
        "Vali-98/ChatterUI/issues/227",
    ),
    (
        "seed, unknown field",
        has("seed"),
        error(400, "Unrecognized request argument supplied: seed"),
        "",
    ),
    ("seed, unnamed", has("seed"), plain(400, "Bad Request"), ""),
    ("seed, without a body", has("seed"), plain(400, ""), ""),
    (
        "n, at most 1",
        is_many,
        error(400, "'n' : number must be at most 1"),
        "stanfordnlp/dspy/issues/1155",
    ),
    (
        "n, as many as slots",
        lambda body: body.get("n", 1) > 2,
        error(400, "Field 'n': Value must be between 1 <= value <= 2, but got 3"),
        "",  # seen on llama.cpp's server
    ),
    (
        "n, one choice",
        is_many,
        error(400, "Only one completion choice is allowed"),
        "algorithmicsuperintelligence/optillm/issues/8",
    ),
    ("n, 422", is_many, validator("n", "message"), "crewAIInc/crewAI/issues/60"),
    (
        "n, greater than 1",
        is_many,
        error(400, "n > 1 is not supported"),
        "langchain-ai/langchain/pull/40607",
    ),
    ("n, in words", is_many, error(400, "Multiple candidates is not enabled for this model"), ""),
    (
        "n, candidate count",
        is_many,
        gemini("Only one candidate can be specified: candidateCount=1"),
        "",
    ),
    ("n, must be 1", is_many, vllm("n must be 1 when using beam search"), ""),
    ("n, unnamed 500", is_many, plain(400, '{"error": "internal"}'), ""),
    (
        "json_schema is unavailable",
        has_schema,
        error(400, "This response_format type is unavailable now", code="invalid_request_error"),
        "llm-exe/llm-exe/issues/662",
    ),
    (
        "json_schema, 422",
        has_schema,
        plain(
            422,
            "Failed to deserialize the JSON body into the target type: response_format:"
            " response_format.type `json_schema` is unavailable now at line 1 column 90",
        ),
        "dzhng/deep-research/issues/22",
    ),
    (
        "json_schema of this model",
        has_schema,
        error(
            400,
            "This model does not support response format `json_schema`. See supported models.",
            param="response_format",
        ),
        "ItzCrazyKns/Vane/issues/980",
    ),
    (
        "json_schema, invalid parameter",
        has_schema,
        error(400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported"),
        "",
    ),
    (
        "any format",
        has("response_format"),
        error(422, "This model does not support structured outputs"),
        "",
    ),
    (
        "any format, grammar",
        has("response_format"),
        error(400, "Failed to parse grammar"),
        "ggml-org/llama.cpp/issues/11866",
    ),
    ("any format, unknown field", has("response_format"), validator("response_format"), ""),
    (
        "json_object alone is refused",
        lambda b: is_bounded(b) or json_type(b) == "json_object",
        plain(400, "{\"error\":\"'response_format.type' must be 'json_schema' or 'text'\"}"),
        "lmstudio-ai/lmstudio-bug-tracker/issues/189",
    ),
    (
        "bounds",
        is_bounded,
        error(400, "For 'integer' type, properties maximum, minimum are not supported"),
        "",
    ),
    (
        "bounds, of the schema",
        is_bounded,
        error(
            400,
            "invalid schema for response format: response_format/json_schema/reply: minimum is not"
            " supported",
        ),
        "i-am-bee/beeai-framework/issues/1215",
    ),
    ("bounds, unnamed", is_bounded, plain(400, "{}"), ""),
    (
        "stop",
        has("stop"),
        error(400, "Unsupported parameter: 'stop'", param="stop"),
        "EleutherAI/lm-evaluation-harness/pull/3247",
    ),
    ("stop, in words", has("stop"), error(400, "Argument not supported on this model: stop"), ""),
    ("logprobs", has("logprobs"), error(400, "logprobs are not supported by this model"), ""),
    (
        "logprobs, gemini",
        has("logprobs"),
        gemini("Unable to submit request because Logprobs is not supported for this model."),
        "GoogleCloudPlatform/generative-ai/issues/2947",
    ),
    ("logprobs, 422", has("logprobs"), validator("logprobs"), ""),
    (
        "top_logprobs, too many",
        has("top_logprobs"),
        error(400, "top_logprobs must be at most 0", param="top_logprobs"),
        "",
    ),
    (
        "two parameters, one after the other",
        lambda b: "seed" in b or "top_p" in b,
        error(400, "Unsupported parameters: seed, top_p"),
        "",
    ),
    (
        "said by the provider behind",
        has("seed"),
        error(
            400,
            "Provider returned error",
            code=400,
            metadata={"raw": '{"detail": "seed: Extra inputs are not permitted"}'},
        ),
        "charmbracelet/crush/issues/279",
    ),
    (
        "system role, 400",
        has_system,
        error(400, "System role not supported"),
        "vllm-project/guidellm/issues/67",
    ),
    (
        "system role, 500",
        has_system,
        plain(500, '{"error": "Jinja Exception: System role not supported"}'),
        "sgl-project/sglang/issues/1342",
    ),
    (
        "system role, 500 without a word",
        has_system,
        plain(400, "Internal Server Error"),
        "sgl-project/sglang/issues/892",
    ),
    (
        "system role, only two roles",
        has_system,
        vllm("Only user and assistant roles are supported!"),
        "withcatai/node-llama-cpp/issues/263",
    ),
    (
        "system role, o1-mini",
        has_system,
        error(
            400,
            "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
            param="messages[0].role",
        ),
        "SilasMarvin/lsp-ai/issues/95",
    ),
    (
        "system role, developer instruction",
        has_system,
        gemini("Developer instruction is not enabled for models/gemma-3-27b-it"),
        "",
    ),
    ("system role, alternation", has_system, vllm(ALTERNATE), "microsoft/autogen/issues/1037"),
    ("system role, by place", has_system, vllm("Unexpected role 'system' at place 0"), ""),
    (
        "alternation",
        lambda b: not alternates({"messages": [m for m in b["messages"] if m["role"] != "system"]}),
        vllm(AFTER),
        "vllm-project/vllm/issues/6862",
    ),
    (
        "alternation, 500",
        lambda b: not alternates({"messages": [m for m in b["messages"] if m["role"] != "system"]}),
        plain(500, json.dumps({"error": {"code": 500, "message": AFTER}})),
        "lemonade-sdk/lemonade/issues/1420",
    ),
    (
        "the user first",
        lambda b: not begins_with_user(b),
        error(400, "The first message must be of role user"),
        "microsoft/autogen/issues/3597",
    ),
)


def _only(path: str) -> Callable[[FakeOpenAI], None]:
    def set_up(server: FakeOpenAI) -> None:
        server.only = path

    return set_up


def _lists(*names: str, fault: Fault | None = None) -> Callable[[FakeOpenAI], None]:
    def set_up(server: FakeOpenAI) -> None:
        server.models, server.listed = names, fault

    return set_up


def _waits(status: int = 429, **headers: str) -> Callable[[Body, int], Fault | None]:
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return at_first(1, Fault(status, b'{"error": {"message": "Rate limit reached"}}', named))


# what stands in a reply: a function of the body and the text that is meant gives the message

MUSING = "Musing: what do they want"  # in every thought
Say = Callable[[Body, str], dict[str, Any]]


def is_judge(body: Body) -> bool:
    return '{"score"' in json.dumps(body["messages"]).replace("\\", "")


def replies(say: Say, stream: bool = False) -> Callable[[Body, int], Fault]:
    """Answers in the form that `say` gives them, 40 tokens each; as a stream where that is asked
    for or `stream`."""

    def says(body: Body, time: int) -> Fault:
        choices = [
            {"index": i, "finish_reason": "stop", "message": say(body, answer(body, i))}
            for i in range(body.get("n") or 1)
        ]
        usage = {"prompt_tokens": 10, "completion_tokens": 40 * len(choices)}
        if not (stream or body.get("stream")):
            tree = {"model": body["model"], "choices": choices, "usage": usage}
            return Fault(body=json.dumps(tree).encode())
        parts = [{"choices": [{**c, "delta": c["message"]}]} for c in choices]
        lines = [f"data: {json.dumps(part)}\n\n" for part in (*parts, {"usage": usage})]
        return Fault(body="".join([*lines, "data: [DONE]\n\n"]).encode())

    return says


def wrapped(before: str, after: str = "") -> Say:
    return lambda body, text: {"content": f"{before}{text}{after}"}


def beside(name: str) -> Say:
    """The thought in a field of its own."""
    return lambda body, text: {"content": text, name: f"{MUSING}?"}


def as_thought(body: Body, text: str) -> dict[str, Any]:
    """Who is held to a grammar thinks nothing and answers in the wrong field."""
    if "response_format" in body:
        return {"content": None, "reasoning_content": text}
    return {"content": text, "reasoning": f"{MUSING}?"}


def in_parts(body: Body, text: str) -> dict[str, Any]:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": MUSING}]}
    return {"content": [thought, {"type": "text", "text": text}]}


def as_verdict(form: Callable[[int], str]) -> Say:
    """A verdict in another form; other answers as they are."""
    return lambda body, text: {
        "content": form(json.loads(text)["score"]) if is_judge(body) else text
    }


def streams_only(body: Body, time: int) -> Fault | None:
    return None if body.get("stream") else error(400, STREAMS_ONLY, code="invalid_parameter_error")


STREAMS_ONLY = (
    "This model only support stream mode, please enable the stream parameter to access the model."
)
JSON = '{"score": %d}'


def _with_key(server: FakeOpenAI) -> Callable[[Body, int], Fault | None]:
    """Whoever has not sent the header is refused."""
    return lambda body, time: (
        None if server.headers[-1].get("api-key") else error(401, "Access denied: no api-key")
    )


NO_LIST = Fault(404, b'{"detail": "Not Found"}')
CASES: tuple[Case, ...] = (
    *(
        Case(name, if_(when, fault), source=source and GITHUB + source)
        for name, when, fault, source in REFUSED
    ),
    # a stop whose cause no form mends
    Case(
        "everything is refused",
        if_(always, error(400, "Your project may not use this model")),
        "stop",
        "may not use this model",
    ),
    Case("everything is refused, 422", if_(always, plain(422, '{"detail": "no"}')), "stop", "no"),
    Case(
        "402",
        if_(always, error(402, "Insufficient credits")),
        "stop",
        "add credit",
    ),
    Case(
        "402, fewer max_tokens",
        if_(always, error(402, AFFORD)),
        "stop",
        "can only afford 19",
        GITHUB + "Taewan-P/gpt_mobile/issues/284",
    ),
    Case(
        "402, nested",
        if_(
            always,
            Fault(
                402,
                b'{"error": {"error": {"message": "More credits are'
                b' required", "code": 402}, "code": 402}}',
            ),
        ),
        "stop",
        "More credits are required",
        GITHUB + "tailcallhq/forgecode/issues/571",
    ),
    Case(
        "no quota, by code",
        if_(always, error(429, QUOTA, code="insufficient_quota")),
        "stop",
        "add credit",
        GITHUB + "langchain-ai/langchainjs/issues/1929",
    ),
    Case(
        "no quota, by type",
        if_(always, error(429, QUOTA, type="insufficient_quota")),
        "stop",
        "add credit",
        GITHUB + "Afool4U/MIGPT/issues/11",
    ),
    Case(
        "no balance",
        if_(always, error(429, "Your credit balance is too low to access the API")),
        "stop",
        "add credit",
    ),
    Case(
        "a balance of nothing, 400",
        if_(always, error(400, "Insufficient Balance", code="insufficient_balance")),
        "stop",
        "add credit",
    ),
    Case("401", if_(always, error(401, "Incorrect API key provided")), "stop", "OPENAI_API_KEY"),
    Case("403, the key", if_(always, error(403, "Forbidden")), "stop", "OPENAI_API_KEY"),
    Case(
        "403, a page",
        if_(always, plain(403, "<html><title>Access denied</title></html>")),
        "stop",
        "Access denied",
    ),
    Case(
        "404, the model",
        if_(always, vllm("The model `fake` does not exist.", 404)),
        "stop",
        "check --model",
    ),
    Case(
        "404, a deployment",
        if_(
            always,
            error(
                404,
                "The API deployment for this resource does not exist",
                code="DeploymentNotFound",
            ),
        ),
        "stop",
        "check --model",
    ),
    Case("400, the model", if_(always, error(400, "Model Not Exist")), "stop", "check --model"),
    Case(
        "400, an invalid model",
        if_(always, error(400, "Invalid model: fake", code="invalid_model")),
        "stop",
        "check --model",
    ),
    Case("404, the path", plainly, "stop", "check --model", set_up=_only("/nowhere")),
    Case("405", if_(always, plain(405, '{"detail": "Method Not Allowed"}')), "stop", "Method Not"),
    Case(
        "a redirect", if_(always, Fault(307, b"", {"location": "https://x/"})), "stop", "HTTP 307"
    ),
    Case(
        "max_tokens over the model's",
        if_(
            always,
            error(
                400, "max_tokens is too large: 64. This model supports at most 16 completion tokens"
            ),
        ),
        "stop",
        "lower max_tokens",
    ),
    Case(
        "max_tokens over the context",
        if_(always, vllm("max_tokens=64 is greater than the maximum context length of 32 tokens")),
        "stop",
        "lower max_tokens",
    ),
    Case(
        "500 for ever",
        if_(always, error(500, "CUDA error: out of memory")),
        "stop",
        "CUDA error: out of memory",
    ),
    # one row
    *(
        Case(f"row: {name}", if_(is_bad, fault), "row", source=source and GITHUB + source)
        for name, fault, source in (
            ("too long, vLLM", vllm(TOO_LONG), ""),
            ("too long, OpenAI", error(400, TOO_LONG, code="context_length_exceeded"), ""),
            (
                "too long, llama.cpp",
                error(
                    400,
                    "the request exceeds the available context size",
                    type="exceed_context_size_error",
                ),
                "",
            ),
            (
                "too long, Anthropic",
                error(400, "prompt is too long: 210000 tokens > 200000 maximum"),
                "",
            ),
            (
                "too long, Gemini",
                gemini(
                    "The input token count (2000000) exceeds the maximum number of"
                    " tokens allowed (1048576)."
                ),
                "",
            ),
            ("too long, 413", plain(413, "Request Entity Too Large"), ""),
            (
                "too long, with max_tokens",
                vllm(
                    "'max_tokens' is too large: 64. This model's maximum"
                    " context length is 100 tokens and your request has 90"
                ),
                "",
            ),
            (
                "content filter, Azure",
                error(400, FILTERED, code="content_filter", param="prompt"),
                "vibrantlabsai/ragas/issues/649",
            ),
            (
                "content filter, by its words",
                error(400, FILTERED),
                "microsoft/azurechat/issues/351",
            ),
            (
                "content filter, litellm",
                error(
                    400,
                    f"litellm.ContentPolicyViolationError: AzureException - {FILTERED}",
                    code="400",
                ),
                "BerriAI/litellm/pull/16231",
            ),
            (
                "moderation, 403",
                error(403, "Your input was flagged by moderation"),
                "cline/cline/pull/2075",
            ),
            ("moderation, 403 without a word", error(403, "Forbidden"), ""),
            (
                "moderation, OpenAI",
                error(
                    400,
                    "Invalid prompt: your prompt was flagged as potentially"
                    " violating our usage policy.",
                    code="invalid_prompt",
                ),
                "",
            ),
            (
                "moderation, DashScope",
                error(
                    400,
                    "Input data may contain inappropriate content.",
                    code="data_inspection_failed",
                ),
                "",
            ),
            ("strange text", plain(400, "strange text"), ""),
            ("an empty body", plain(400, ""), ""),
            ("422", plain(422, '{"detail": [{"loc": ["body", "messages", 0], "msg": "bad"}]}'), ""),
        )
    ),
    # what passes
    *(
        Case(f"passes: {name}", says, source=source and GITHUB + source)
        for name, says, source in (
            ("429", _waits(), ""),
            ("429, Retry-After", _waits(retry_after="0"), "icereed/paperless-gpt/issues/814"),
            ("429, a date", _waits(retry_after=formatdate(clock.time() - 5, usegmt=True)), ""),
            ("429, a Unix time", _waits(retry_after=str(int(clock.time()) - 1)), ""),
            (
                "429, a Unix time in ms",
                _waits(retry_after=str(int(clock.time() * 1000) - 1000)),
                "",
            ),
            (
                "429, milliseconds",
                _waits(retry_after_ms="20"),
                "Azure/azure-openai-benchmark/issues/31",
            ),
            (
                "429, x-ms milliseconds",
                _waits(x_ms_retry_after_ms="20"),
                "Azure/azure-sdk-for-python/issues/9092",
            ),
            ("429, nan", _waits(retry_after="nan"), ""),
            ("429, no number", _waits(retry_after="soon"), ""),
            (
                "429, a reset",
                _waits(x_ratelimit_reset_requests="12ms", x_ratelimit_remaining_requests="0"),
                "openai/openai-python/issues/937",
            ),
            (
                "429, resets of -1 and 0",
                _waits(x_ratelimit_reset_tokens="0", x_ratelimit_remaining_tokens="-1"),
                "openai/openai-dotnet/issues/838",
            ),
            (
                "429, Gemini's quota of a minute",
                at_first(1, gemini(QUOTA, 429, details=[{"retryDelay": "0.02s"}])),
                "RooCodeInc/Roo-Code/issues/3883",
            ),
            (
                "429, in words",
                at_first(
                    1,
                    error(
                        429,
                        "Rate limit reached. Please try again in 12ms.",
                        code="rate_limit_exceeded",
                    ),
                ),
                "",
            ),
            (
                "503, loading",
                at_first(
                    1,
                    plain(
                        503,
                        '{"error":{"code":503,"message":"Loading model",'
                        '"type":"unavailable_error"}}',
                    ),
                ),
                "mostlygeek/llama-swap/issues/146",
            ),
            (
                "503, loading, seven times",
                at_first(7, plain(503, '{"error": {"message": "Loading model"}}')),
                "mindverse/Second-Me/issues/20",
            ),
            (
                "503, overloaded",
                at_first(2, plain(503, "server is overloaded")),
                "cline/cline/issues/440",
            ),
            (
                "529",
                at_first(2, error(529, "Overloaded", type="overloaded_error")),
                "",
            ),
            ("502, a page", at_first(1, plain(502, GATEWAY)), ""),
            ("504", at_first(1, plain(504, "<html><h1>Gateway Time-out</h1></html>")), ""),
            ("500 once", at_first(1, error(500, "try again")), ""),
            ("408", at_first(1, plain(408, "")), ""),
            ("409", at_first(1, plain(409, "")), ""),
            ("425", at_first(1, plain(425, "")), ""),
            (
                "closed before a reply",
                at_first(1, Fault(drop="before")),
                "vllm-project/vllm/issues/5084",
            ),
            ("closed in the middle", at_first(1, Fault(drop="middle")), ""),
            (
                "fewer choices than asked",
                lambda b, t: Fault(choices=1),
                "abetlen/llama-cpp-python/issues/1906",
            ),
            ("more choices than asked", lambda b, t: Fault(choices=5), ""),
        )
    ),
    # what stands in a reply
    *(
        Case(f"thought: {name}", says, source=source and GITHUB + source)
        for name, says, source in (
            (
                "in tags",
                replies(wrapped(f"<think>\n{MUSING}?\n</think>\n\n")),
                "RooCodeInc/Roo-Code/issues/8522",
            ),
            ("an empty one", replies(wrapped("<think>\n\n</think>\n\n")), ""),
            (
                "the closing tag alone",
                replies(wrapped(f"{MUSING}?\n</think>\n\n")),
                "ggml-org/llama.cpp/issues/11861",
            ),
            (
                "the closing tag alone, on the line",
                replies(wrapped(f"{MUSING}.</think>")),
                "deepseek-ai/DeepSeek-R1/issues/526",
            ),
            ("brackets", replies(wrapped(f"[THINK]{MUSING}[/THINK]")), ""),
            ("a sign", replies(wrapped(f"◁think▷{MUSING}◁/think▷")), ""),
            ("a name", replies(wrapped(f"<seed:think>{MUSING}</seed:think>")), ""),
            (
                "channels",
                replies(
                    wrapped(
                        f"<|channel|>analysis<|message|>{MUSING}?<|end|><|start|>assistant"
                        "<|channel|>final<|message|>"
                    )
                ),
                "vllm-project/vllm/issues/23694",
            ),
            (
                "channels without their tokens",
                replies(wrapped(f"analysis{MUSING}?assistantfinal")),
                "sgl-project/sglang/issues/9244",
            ),
            (
                "wrapped answers",
                replies(wrapped(f"<think>{MUSING}</think>\n<answer>\n", "\n</answer>")),
                "",
            ),
            ("reasoning_content", replies(beside("reasoning_content")), ""),
            ("reasoning", replies(beside("reasoning")), ""),
            ("thinking", replies(beside("thinking")), ""),
            (
                "JSON taken for one",
                replies(as_thought),
                "vllm-project/vllm/issues/50948",
            ),
            ("parts", replies(in_parts), "simonw/llm-mistral/pull/39"),
            ("a stream of parts", replies(in_parts, stream=True), "agentjido/req_llm/issues/742"),
        )
    ),
    *(
        Case(f"verdict: {name}", replies(as_verdict(form)), source=source and GITHUB + source)
        for name, form, source in (
            (
                "fenced",
                lambda n: f"```json\n{JSON % n}\n```",
                "lightspeed-core/lightspeed-evaluation/issues/285",
            ),
            ("behind a sentence", lambda n: f"Sure, here it is:\n{JSON % n}", ""),
            ("a mark of the encoding", lambda n: "\ufeff" + JSON % n, ""),
            ("4.0", lambda n: f'{{"score": {n}.0}}', ""),
            ('"4"', lambda n: f'{{"score": "{n}"}}', "OpenAgentHQ/openagent-eval/pull/214"),
            ('"4/5"', lambda n: f'{{"score": "{n}/5"}}', "comet-ml/opik/pull/7758"),
            ("a number", str, "pinchbench/skill/pull/24"),
            ("Score: 4", lambda n: f"Score: {n}", "smithersai/smithers/pull/378"),
            ("a list", lambda n: f"[{JSON % n}]", ""),
            ("within a result", lambda n: f'{{"result": {JSON % n}}}', ""),
            ("bold", lambda n: f"**{JSON % n}**", ""),
            ("a full stop", lambda n: f"{JSON % n}.", ""),
            ("an end of text", lambda n: f"{JSON % n}</s>", ""),
            ("a rating", lambda n: f'{{"reason": "Clear.", "rating": {n}}}', ""),
            ("behind a thought", lambda n: f"<think>{MUSING}</think>{JSON % n}", ""),
        )
    ),
    Case(
        "streams only",
        lambda body, time: streams_only(body, time) or replies(wrapped(""))(body, time),
        source=GITHUB + "infiniflow/ragflow/issues/5912",
    ),
    Case(
        "streams only, with thoughts",
        lambda body, time: (
            streams_only(body, time) or replies(beside("reasoning_content"))(body, time)
        ),
        source=GITHUB + "evalstate/fast-agent/issues/153",
    ),
    Case("streams whatever is asked", replies(wrapped(""), stream=True)),
    # names
    Case(
        "an alias",
        as_model("fake-2506"),
        line="answers as fake-2506",
        more={"model": "fake-latest"},
    ),
    Case("a date", as_model("fake-2024-08-06")),
    Case("models/", as_model("models/fake")),
    Case("a path", as_model("/srv/weights/fake.gguf")),
    Case("an owner", as_model("org/fake")),
    Case("other letters", as_model("FAKE")),
    Case("a tag", as_model("fake:latest")),
    Case(
        "a deployment, no list",
        as_model("gpt-4o-2024-08-06"),
        line="answers as gpt-4o",
        set_up=_lists(fault=NO_LIST),
    ),
    Case("a router that lists the name", as_model("azure/other"), line="answers as azure/other"),
    Case(
        "a router that lists it by its path",
        as_model("other"),
        set_up=_lists("models/fake"),
        line="answers as other",
    ),
    Case("another model", as_model("other"), "stop", "answers as 'other'", set_up=_lists("other")),
    Case(
        "another model, said to be the same",
        as_model("other"),
        set_up=_lists("other"),
        more={"served_as": ["other"]},
    ),
    # addresses and connections
    Case("a slash at the end", plainly, url=lambda u: u + "/"),
    Case("without /v1", plainly, url=lambda u: u[:-3], set_up=_only("/v1/chat/completions")),
    Case("the full path", plainly, url=lambda u: u + "/chat/completions"),
    Case(
        "the full path and a query",
        plainly,
        url=lambda u: u + "/chat/completions?api-version=1",
        set_up=_only("/v1/chat/completions?api-version=1"),
        source=GITHUB + "BerriAI/litellm/issues/8572",
    ),
    Case(
        "a query",
        plainly,
        url=lambda u: u + "?api-version=2024-10-21",
        set_up=_only("/v1/chat/completions?api-version=2024-10-21"),
        source=GITHUB + "ThinkInAIXYZ/deepchat/issues/262",
    ),
    Case(
        "a path of its own",
        plainly,
        url=lambda u: u.replace("/v1", "/v1beta/openai"),
        set_up=_only("/v1beta/openai/chat/completions"),
    ),
    Case(
        "a key in a header of its own",
        plainly,
        set_up=lambda server: server.__setattr__("script", _with_key(server)),
        more={"headers_env": {"api-key": "FAKE_KEY"}},
    ),
    Case("localhost", plainly, url=lambda u: u.replace("127.0.0.1", "localhost")),
    Case(
        "the only model of a bare list",
        plainly,
        more={"model": None},
        set_up=_lists(fault=Fault(200, b'[{"id": "fake"}]', drop="")),
        source=GITHUB + "helixml/helix/issues/386",
    ),
    Case("the only model, without /v1", plainly, more={"model": None}, url=lambda u: u[:-3]),
    Case(
        "no list of models",
        plainly,
        set_up=_lists(fault=NO_LIST),
        source=GITHUB + "Mobile-Artificial-Intelligence/maid/issues/663",
    ),
    Case("a list of models behind a key", plainly, set_up=_lists(fault=Fault(401, b"{}"))),
    Case(
        "a list of models that is a page",
        plainly,
        set_up=_lists(fault=Fault(200, b"<html></html>")),
    ),
)
