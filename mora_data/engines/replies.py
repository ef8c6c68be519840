"""What a server's reply holds: the answers of a chat completion, the outputs of a classifier.

vLLM's `/classify` and `/pooling` stand at the root of the server, not under /v1:

    {"messages": [..., {"role": "assistant", ...}], "model": "rm", "use_activation": false}
        the server's chat template
    {"input": "BEGINNING OF CONVERSATION: ...", "model": "rm", "use_activation": false}
        the text as it is

What comes back is raw: one number per label, before any sigmoid or softmax (without
`use_activation` vLLM applies one). A request holds one conversation, so that requests sent are
answers wanted. The bodies are made in `run.cache_key`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from ..run.log import Record
from ..types import Answer, Task

RATING_PATHS: Mapping[Task, str] = {"classify": "/classify", "pooling": "/pooling"}
PASSING = frozenset((408, 409, 425, 429))  # and all from 500 on
UNUSABLE = frozenset((401, 403, 404))

Served = Callable[[object], None]  # looks at the model that a reply names


class TransientFault(Exception):
    """A fault that may pass. `wait_s` is what the server asked for."""

    def __init__(self, kind: str, detail: str, wait_s: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.wait_s = wait_s


def parse_chat(raw: bytes, asked: int, served: Served = lambda name: None) -> Record:
    """The answers of a chat completion, in the order of their index, at most `asked`; `served` gets
    the model's name.

    Raises:
        TransientFault: the body is not such a completion.
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
        raise TransientFault(
            "not_json", f"HTTP 200 without a chat completion in it: {raw[:60]!r}"
        ) from e


def _answer(choice: Mapping[str, Any], tokens: int) -> Answer:
    content = choice["message"].get("content")
    text = content if isinstance(content, str) else ""
    reason = str(choice.get("finish_reason") or "stop")
    return Answer(text, reason, tokens, logprobs=_logprobs(choice.get("logprobs")))


def _logprobs(tree: Any) -> tuple[tuple[str, tuple[tuple[str, float], ...]], ...] | None:
    if not isinstance(tree, Mapping) or not tree.get("content"):
        return None
    return tuple(
        (t["token"], tuple((a["token"], float(a["logprob"])) for a in t.get("top_logprobs") or ()))
        for t in tree["content"]
    )


def parse_rating(task: Task, raw: bytes, asked: int, served: Served = lambda name: None) -> Record:
    """The outputs of one conversation as a JSON list; what is not a finite number is null in it.

    Raises:
        TransientFault: the body is not such a reply.
    """
    try:
        # takes NaN and Infinity, which are this text's fault and not the server's
        tree = json.loads(raw)
        served(tree.get("model"))
        (item,) = tree["data"]
        outputs = item["probs" if task == "classify" else "data"]
        numbers = [_number(x) for x in (outputs if isinstance(outputs, list) else [outputs])]
        tokens = int((tree.get("usage") or {}).get("prompt_tokens") or 0)
        return Record(asked, (Answer(orjson.dumps(numbers).decode()),), (tokens, 0, 0))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise TransientFault(
            "not_json", f"HTTP 200 without the outputs of one text in it: {raw[:60]!r}"
        ) from e


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def failure(n: int, reason: str) -> Record:
    """A failure that no retry can mend, for `n` samples."""
    return Record(n, (Answer("", "error", error=reason),) * n)
