"""What an engine is: it turns one request for n samples into one record of answers. With the bytes
of a request and its key, and what a model in this process is.

Everything else (replay, top-ups) is in `CachedClient`, once, above the engines. A new engine is a
class, what makes one for a role (a function, or the class itself), and a line in `ENGINES`; or a
dotted path `module:function` as `policy.engine`.

The key is a hash of everything that can change a request's answers, and of nothing that cannot. In
it: model and revision, rendered messages, sampling parameters, purpose, seed. Not in it: base URL,
timeout, retries, concurrency, samples per request. The encoder is part of the definition (orjson,
sorted keys): a golden test holds it. Only the properties of a JSON schema keep their order: a
server that decodes by the schema makes the model write them in it, so it can change the answer.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import orjson

from ..errors import SettingsError
from ..run.limiter import Limits, LocalRateLimiter, RateLimiter
from ..run.log import Record
from ..run.stats import RunStats
from ..settings import BuildSettings, RoleSettings
from ..text import one_line
from ..types import Answer, Messages, Request

T = TypeVar("T")
OnRecord = Callable[[Record], None]

ENGINES = {
    "scripted": "mora_data.simulator.engine:open_simulator",
    "openai": "mora_data.engines.openai:open_openai",
    "batch": "mora_data.engines.batch:open_batch",
    "transformers": "mora_data.engines.in_process:open_transformers",
    "vllm": "mora_data.engines.in_process:open_vllm",
    "recorded": "mora_data.engines.engine:RecordedEngine",
}


class Engine(Protocol):
    """Requests to answers."""

    model: str
    revision: str | None
    extra: Mapping[str, Any]
    n_per_request: int  # samples asked for at once, at most
    simulated: bool

    async def send(
        self, request: Request, request_bytes: bytes, seed: int, on_record: OnRecord
    ) -> Record:
        """Ask for the `request.n` samples from `request.first` on; sample i has `seed` + i. The
        record goes to `on_record` before the permit is free.

        Fewer answers may come. A failure that no retry can mend is a record of errors.

        Raises:
            PendingRetry: the tries ran out.
            EndpointError: the endpoint can't be used at all.
        """

    @property
    def wants_more(self) -> bool:
        """Whether another prompt may be opened."""

    async def changed(self) -> None:
        """Return when `wants_more` may have changed."""

    async def close(self) -> None:
        """Release connections."""


@dataclass(slots=True)
class Shared:
    """What the roles of a build share: endpoints, models and rate limits, by a name of their
    own.

    Attributes:
        run_dir: where engines that keep files keep them.
        log: prints a line while they wait.
        rate_limiter: makes the clock of one model's limits; in a cluster one that all workers ask.
    """

    run_dir: Path | None = None
    log: Callable[[str], None] = print
    rate_limiter: Callable[[str, Limits], RateLimiter] = lambda key, limits: LocalRateLimiter(
        *limits
    )
    _parts: dict[str, object] = field(default_factory=dict)

    def once(self, key: str, make: Callable[[], T]) -> T:
        """What `make` gave when `key` was first asked for."""
        if key not in self._parts:
            self._parts[key] = make()
        return cast(T, self._parts[key])


OpenEngine = Callable[[RoleSettings, BuildSettings, RunStats, Shared], Engine]
"""Makes the engine of one role."""


def endpoint_key(role: RoleSettings) -> str:
    """What roles share an endpoint by: URLs, and all that says how they are reached. A key goes to
    the server for the roles that name it alone."""
    signs = (role.api_key_env, *sorted(role.headers_env.items()), role.ca_file, role.transport)
    return " ".join((role.base_url or "", *role.replicas, "as", *map(str, signs)))


def n_per_request(role: RoleSettings) -> int:
    """How many samples a role's engine is asked for at once, at most."""
    return 1 << 30 if role.n_per_request == "all" else role.n_per_request


def extra_of(role: RoleSettings) -> Mapping[str, Any]:
    """Further fields of a role's requests to a server; they are in its keys."""
    return role.extra_body | ({"messages": MERGED} if role.system == "merge" else {})


def deliver(done: asyncio.Future[Record], on_record: OnRecord, record: Record) -> None:
    """Log a record, then hand it to whoever waits, unless that was done before."""
    if done.done():
        return
    try:
        on_record(record)
    except Exception as e:
        done.set_exception(e)
    else:
        done.set_result(record)


class RecordedEngine:
    """No model: the source rows' own answers and ratings; no fusion.

    These are mined with the prompt (`Prompt.recorded`), so nothing is ever asked here; what remains
    is a name for the record.
    """

    simulated = False
    revision: str | None = None
    n_per_request = 1
    wants_more = True

    def __init__(
        self, role: RoleSettings, build: BuildSettings, stats: RunStats, shared: Shared
    ) -> None:
        self.model = f"recorded/{build.source.dataset or build.source.kind}"
        self.extra: Mapping[str, Any] = {}

    async def send(
        self, request: Request, request_bytes: bytes, seed: int, on_record: OnRecord
    ) -> Record:
        """Never an answer.

        Raises:
            SettingsError: always.
        """
        raise SettingsError(
            f"the engine recorded can't answer as {request.role}: it holds answers and ratings, not"
            " a model. Give the judge a server (--judge-base-url URL), or use `precomputed`"
            " rewards alone"
        )

    async def changed(self) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        return None


class RefusedRequest(Exception):
    """This model can't take this request, now or later; the text says why."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a model answers in one go: samples `first` .. `first + n - 1` of a request, the first of
    them with `seed`."""

    request: Request
    first: int
    n: int
    seed: int
    tokens: Sequence[int] = ()

    def singles(self) -> list[Piece]:
        """A piece for each of its samples."""
        return [
            replace(self, first=self.first + i, n=1, seed=(self.seed + i) & 0x7FFFFFFF)
            for i in range(self.n)
        ]


class LocalModel(Protocol):
    """A loaded model. The worker thread alone calls it."""

    def encode(self, request: Request) -> Sequence[int]:
        """The request's tokens.

        Raises:
            RefusedRequest: it can't be answered.
        """

    def run(self, pieces: Sequence[Piece]) -> Sequence[tuple[Answer, ...]]:
        """The answers to each piece of a batch.

        Raises:
            MemoryError: the batch is too large; a smaller one may fit.
        """

    def close(self) -> None:
        """Let go of the device."""


def templated(tokenizer: Any, messages: Messages, answer_follows: bool) -> str:
    """A conversation as the model's own chat template writes it.

    Raises:
        RefusedRequest: the template does not take it.
    """
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=answer_follows
        )
        return text
    # a template is the model's own program: whatever it raises, this conversation is not for it
    except Exception as e:
        raise RefusedRequest(
            f"the model's chat template refuses the conversation: {one_line(e, 150)}"
        ) from e


def checked_length(ids: list[int], limit: int, answer_follows: bool) -> list[int]:
    """The tokens, where the model can take them.

    Raises:
        RefusedRequest: there are none, or too many.
    """
    if not ids or len(ids) + answer_follows > limit:
        raise RefusedRequest(
            f"the prompt has {len(ids)} tokens, the model takes {limit} with its answer"
        )
    return ids


def outputs_answer(values: Sequence[float]) -> Answer:
    """A classifier's raw outputs as a JSON list."""
    if not all(math.isfinite(v) for v in values):
        return Answer("", "error", error="outputs_not_finite")
    return Answer(orjson.dumps(list(values)).decode())


MERGED = "system merged"  # as `messages` of the extra fields: the system turn opens the user's


def encode(request: Request, model: str, extra: Mapping[str, object]) -> bytes:
    """The canonical JSON object of the request body, without `n` and `seed`; one encode serves
    key and body."""
    if request.task != "chat":
        return _rating(request, model, extra)
    s, messages = request.sampling, request.messages
    body: dict[str, Any] = {
        "messages": without_system(messages) if extra.get("messages") == MERGED else messages,
        "model": model,
        "temperature": s.temperature,
        "top_p": s.top_p,
        "max_tokens": s.max_tokens,
    }
    if s.stop:
        body["stop"] = s.stop
    if s.logprobs:
        body["logprobs"], body["top_logprobs"] = True, s.logprobs
    if s.schema is not None:
        body["response_format"] = orjson.Fragment(_format(orjson.dumps(s.schema)))
    return _with_extra(body, extra)


def _with_extra(body: dict[str, Any], extra: Mapping[str, object]) -> bytes:
    for name, value in extra.items():
        if value is None:
            body.pop(name, None)
        elif value != MERGED:
            body[name] = value
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


def without_system(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """System turns put before the first user turn."""
    system = [m["content"] for m in messages if m["role"] == "system"]
    rest = [dict(m) for m in messages if m["role"] != "system"]
    if system:
        at = next((i for i, m in enumerate(rest) if m["role"] == "user"), None)
        if at is None:
            rest.insert(0, {"role": "user", "content": "\n\n".join(system)})
        else:
            rest[at]["content"] = "\n\n".join([*system, rest[at]["content"]])
    return rest


def _rating(request: Request, model: str, extra: Mapping[str, object]) -> bytes:
    """The whole body of a classify or pooling request; a single message is a text whose template is
    applied already."""
    body: dict[str, Any] = {"model": model, "use_activation": False}
    if len(request.messages) == 1:
        body["input"] = request.messages[0]["content"]
    else:
        body["messages"] = request.messages
    if request.task == "pooling":
        body["task"] = "classify"
    return _with_extra(body, extra)


def with_pattern(request_bytes: bytes, schema: Mapping[str, object], pattern: str) -> bytes:
    """The body with its schema replaced by vLLM's `structured_outputs` pattern, which leaves no
    room for white space."""
    field = b'"response_format":' + _format(orjson.dumps(schema))
    return request_bytes.replace(
        field, orjson.dumps({"structured_outputs": {"regex": pattern}})[1:-1], 1
    )


@functools.lru_cache(maxsize=64)
def _format(schema: bytes) -> bytes:
    """The `response_format` of a schema, given as JSON in the order in which it is written."""
    tree = {"name": "reply", "schema": _in_order(orjson.loads(schema)), "strict": True}
    return orjson.dumps({"json_schema": tree, "type": "json_schema"})


def _in_order(schema: Any) -> Any:
    """A schema with its keys sorted, but for the properties."""
    if isinstance(schema, list):
        return [_in_order(x) for x in schema]
    if not isinstance(schema, dict):
        return schema
    out = {k: _in_order(v) for k, v in sorted(schema.items()) if k != "properties"}
    if "properties" in schema:
        out["properties"] = {k: _in_order(v) for k, v in schema["properties"].items()}
    return dict(sorted(out.items()))


def request_key(request_bytes: bytes, purpose: str, seed: int, revision: str | None) -> bytes:
    """12 bytes that name the request; sample i is named by four more bytes."""
    tail = f"\n{purpose}\n{seed}\n{revision or ''}".encode()
    return hashlib.sha256(request_bytes + tail).digest()[:12]


def request_body(request_bytes: bytes, n: int, seed: int) -> bytes:
    """The request body for `n` samples, the first of them with `seed`."""
    return b'%s,"n":%d,"seed":%d}' % (request_bytes[:-1], n, seed)
