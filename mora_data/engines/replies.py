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

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

import orjson

from ..run.log import Record
from ..text import one_line
from ..types import Answer, Task

RATING_PATHS: Mapping[Task, str] = {"classify": "/classify", "pooling": "/pooling"}
PASSING = frozenset((408, 409, 425, 429))  # and all from 500 on
UNUSABLE = frozenset((401, 403, 404))
MOST_TOKENS = 10**9  # of one request
MOST_NUMBER = 1e300  # what is compared with it may have any number of digits
# what reading a reply may raise, whatever stands in it
UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

P = ParamSpec("P")
T = TypeVar("T")

Served = Callable[[object], None]  # looks at the model that a reply names


def reads_reply(otherwise: object) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes a function that reads a model's reply give `otherwise` where it can't: nothing in a
    reply stops a run. `tests/unit/test_fuzz_replies.py` finds these functions by this mark."""

    def guard(read: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(read)
        def guarded(*args: P.args, **options: P.kwargs) -> T:
            try:
                return read(*args, **options)
            except UNREADABLE:
                return cast(T, otherwise)

        guarded.__dict__["reads_reply"] = True
        return guarded

    return guard


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
        used, out = (_count(usage.get(k)) for k in ("prompt_tokens", "completion_tokens"))
        share = out // len(choices)
        answers = tuple(_answer(c, share) for c in choices)
        cached = _count((usage.get("prompt_tokens_details") or {}).get("cached_tokens"))
        return Record(asked, answers, (used, out, min(cached, used)))
    except UNREADABLE as e:
        raise TransientFault(
            "not_json", f"HTTP 200 without a chat completion in it: {raw[:60]!r}"
        ) from e


def _answer(choice: Mapping[str, Any], tokens: int) -> Answer:
    content, reason = choice["message"].get("content"), choice.get("finish_reason")
    text = content if isinstance(content, str) else ""
    reason = one_line(reason, 40) if isinstance(reason, str) and reason else "stop"
    return Answer(text, reason, tokens, logprobs=_logprobs(choice.get("logprobs")))


def _logprobs(tree: Any) -> tuple[tuple[str, tuple[tuple[str, float], ...]], ...] | None:
    """Tokens with their alternatives; None where there are none, or some are no such."""
    if not isinstance(tree, Mapping) or not tree.get("content"):
        return None
    out = []
    for t in tree["content"]:
        top = [(a["token"], _number(a["logprob"])) for a in t.get("top_logprobs") or ()]
        if not all(isinstance(token, str) for token in (t["token"], *(name for name, _ in top))):
            return None
        out.append((t["token"], tuple((name, p) for name, p in top if p is not None)))
    return tuple(out)


def _count(value: object) -> int:
    """Tokens that a reply says were used; 0 where it says no number that can be one."""
    number = _number(value)
    return int(number) if number is not None and 0 <= number <= MOST_TOKENS else 0


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
        tokens = _count((tree.get("usage") or {}).get("prompt_tokens"))
        return Record(asked, (Answer(orjson.dumps(numbers).decode()),), (tokens, 0, 0))
    except UNREADABLE as e:
        raise TransientFault(
            "not_json", f"HTTP 200 without the outputs of one text in it: {raw[:60]!r}"
        ) from e


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < MOST_NUMBER else None


def failure(n: int, reason: str) -> Record:
    """A failure that no retry can mend, for `n` samples."""
    return Record(n, (Answer("", "error", error=reason),) * n)
