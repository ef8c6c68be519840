"""The bytes of a request, and its key: a hash of everything that can change its answers, and of
nothing that cannot.

In it: model and revision, rendered messages, sampling parameters, purpose, seed. Not in it: base
URL, timeout, retries, concurrency, samples per request. The encoder is part of the definition
(orjson, sorted keys): a golden test holds it. Only the properties of a JSON schema keep the order
in which they are written: a server that decodes by the schema makes the model write them in that
order, so that order can change the answer.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ..types import Request

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
