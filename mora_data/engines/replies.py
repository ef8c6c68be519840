"""What a reply of a server says: the answers of a chat completion, the message of an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from ..run.log import Record
from ..types import Answer


class Passing(Exception):
    """A fault that may pass. `wait_s` is what the server asked for."""

    def __init__(self, kind: str, detail: str, wait_s: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.wait_s = wait_s


def parse_reply(
    raw: bytes, asked: int, served: Callable[[object], None] = lambda name: None
) -> Record:
    """The answers of a chat completion, in the order of their index, at most `asked`; `served` gets
    the model's name.

    Raises:
        Passing: the body is not such a completion.
    """
    try:
        tree = orjson.loads(raw)
        served(tree.get("model"))
        choices = sorted(tree["choices"], key=lambda c: c.get("index", 0))[:asked]
        if not choices:
            raise KeyError("choices")
        usage = tree.get("usage") or {}
        out = int(usage.get("completion_tokens") or 0)
        share = out // len(choices)
        answers = tuple(_answer(c, share) for c in choices)
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        return Record(asked, answers, (int(usage.get("prompt_tokens") or 0), out, cached))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Passing("not_json", f"HTTP 200 without a chat completion in it: {raw[:60]!r}") from e


def _answer(choice: Mapping[str, Any], tokens: int) -> Answer:
    content = choice["message"].get("content")
    text = content if isinstance(content, str) else ""
    return Answer(
        text,
        str(choice.get("finish_reason") or "stop"),
        tokens,
        logprobs=_logprobs(choice.get("logprobs")),
    )


def _logprobs(tree: Any) -> tuple[tuple[str, tuple[tuple[str, float], ...]], ...] | None:
    if not isinstance(tree, Mapping) or not tree.get("content"):
        return None
    return tuple(
        (t["token"], tuple((a["token"], float(a["logprob"])) for a in t.get("top_logprobs") or ()))
        for t in tree["content"]
    )


def error_message(raw: bytes) -> str:
    """The message in an error body, on one line, at most 200 characters."""
    try:
        tree = orjson.loads(raw)
        inner = tree.get("error", tree)
        said = inner.get("message") if isinstance(inner, dict) else inner
        said = said if isinstance(said, str) else json.dumps(said or tree)
    except (ValueError, AttributeError):
        said = raw[:200].decode("utf-8", "replace")
    return " ".join(str(said).split())[:200] or "no message"
