r"""What a server's reply holds: the answers of a chat completion, without the thoughts before them,
and the outputs of a classifier.

vLLM's `/classify` and `/pooling` stand at the root of the server, not under /v1:

    {"messages": [..., {"role": "assistant", ...}], "model": "rm", "use_activation": false}
        the server's chat template
    {"input": "BEGINNING OF CONVERSATION: ...", "model": "rm", "use_activation": false}
        the text as it is

What comes back is raw: one number per label, before any sigmoid or softmax (without
`use_activation` vLLM applies one). A request holds one conversation, so that requests sent are
answers wanted. The bodies are made in `engine`.

A reasoning model thinks aloud before its answer:

    <think>They want it short.</think>At 70 degrees.       At 70 degrees.
    They want it short.\n</think>\n\nAt 70 degrees.        the same: the chat template opened it
    <think>They want it short. So                          nothing: the thought was cut off

A thought stands at the start of a reply, and nowhere else: an answer about the tag `<think>` is
left as it is. A closing tag without its opening one ends a thought, too, but not in quotes, in
code, or where the text opened it before. A thought that the template opens and that is cut off
has no tag at all; then `finish_reason` alone says that the answer is no whole one.
"""

from __future__ import annotations

import codecs
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar, cast

import orjson

from ..errors import UNREADABLE
from ..run.log import Record
from ..text import one_line, pattern
from ..types import Answer, Sampling, Task

RATING_PATHS: Mapping[Task, str] = {"classify": "/classify", "pooling": "/pooling"}
PASSING = frozenset((408, 409, 425, 429))  # and all from 500 on
UNUSABLE = frozenset((401, 403, 404))
MOST_TOKENS = 10**9  # of one request
MOST_CHARS = 1 << 18  # of one answer: readers take milliseconds for as many
MOST_TRIES = 100  # to read an object in a text
_OBJECT = re.compile(r'\{(?=\s{0,99}["}])')
MOST_NUMBER = 1e300  # what is compared with it may have any number of digits
CHARS_PER_TOKEN = 4
MOST_CHARS_PER_TOKEN = 20  # on average; more means that not all tokens were counted
LEAST_CHARS = 4096  # of an answer that are kept, whatever `max_tokens` is
LEAST_LOGPROB = -9.2  # 1e-4: rarer tokens change no score, and are most of a reply in the log
_EVENTS = (b"data:", b"event:", b"id:", b"retry:", b":")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_BROKEN_OFF = ("error", "abort", "aborted", "cancelled", "insufficient_system_resource")

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


def json_objects(text: str, decoder: json.JSONDecoder) -> Iterator[tuple[Any, int, int]]:
    """The outermost JSON objects in a text, in order, each with where it begins and ends; what
    stands behind `MOST_TRIES` beginnings of one, or `MOST_CHARS` read in vain, is not read, since
    every failure may cost a look at the whole text."""
    start, left = _OBJECT.search(text), MOST_CHARS
    for _ in range(MOST_TRIES):
        if start is None or left < 0:
            return
        at = start.start()
        try:
            value, end = decoder.raw_decode(text, at)
            yield value, at, end
        except json.JSONDecodeError as e:
            left, end = left - (e.pos - at), at + 1
        except ValueError:  # a number of thousands of digits
            end = at + 1
        except RecursionError:
            return  # what is nested so deep is no reply; from 3.12 on it takes a millisecond to see
        start = _OBJECT.search(text, end)


class TransientFault(Exception):
    """A fault that may pass. `wait_s` is what the server asked for."""

    def __init__(self, kind: str, detail: str, wait_s: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.wait_s = wait_s


class ErrorReply(Exception):
    """A reply that came with HTTP 200 and says an error all the same; `body` is that error."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self.body = body


def parse_chat(
    raw: bytes, asked: int, served: Served = lambda name: None, sampling: Sampling | None = None
) -> Record:
    """The answers of a chat completion, whole or as a stream of events, in the order of their
    index, at most `asked`; `served` gets the model's name. `sampling` is that of the request.

    Where the reply counts far fewer tokens than its texts must have, as for one choice of many or
    not at all, they are estimated.

    Raises:
        ErrorReply: the body is an error.
        TransientFault: the body is no such completion, or one that the server broke off.
    """
    try:
        tree = _tree(raw)
        choices = tree.get("choices") if isinstance(tree, dict) else None
        if not choices:
            if _is_error(tree):
                raise ErrorReply(orjson.dumps(tree))
            raise KeyError("choices")
        served(tree.get("model"))
        if len(choices) > 1:
            choices = sorted(choices, key=lambda c: c.get("index") or 0)[:asked]
        n, usage, cached = len(choices), tree.get("usage"), 0
        usage = usage if isinstance(usage, dict) else {}
        used, out = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        if isinstance(details := usage.get("prompt_tokens_details"), dict):
            cached = min(used, _count(details.get("cached_tokens")))
        texts = [_text_in(c, sampling) for c in choices]
        full, keep, most = False, False, MOST_CHARS
        if sampling is not None:
            full, keep = out >= sampling.max_tokens * n, sampling.thoughts
            # readers hold up all that is asked at once
            most = min(most, max(LEAST_CHARS, MOST_CHARS_PER_TOKEN * sampling.max_tokens))
        size = sum(map(len, texts))
        if size > MOST_CHARS_PER_TOKEN * out:
            out = math.ceil(size / CHARS_PER_TOKEN)
        answers = []
        for choice, text in zip(choices, texts, strict=True):
            answer = _answer(choice, text, out // n, full, keep)
            if len(answer.text) > most:
                answer = answer._replace(text=answer.text[:most], finish_reason="length")
            answers.append(answer)
        return Record(asked, tuple(answers), (used, out, cached))
    except UNREADABLE as e:
        raise TransientFault(
            "not_json", f"HTTP 200 without a chat completion in it: {raw[:60]!r}"
        ) from e


def _tree(raw: bytes) -> Any:
    """A body as JSON; of events, what they say together."""
    try:
        return orjson.loads(raw)
    except ValueError:
        text = raw.removeprefix(codecs.BOM_UTF8).lstrip()
        return _from_events(text) if text.startswith(_EVENTS) else orjson.loads(text)


def _from_events(raw: bytes) -> dict[str, Any]:
    """The completion that server-sent events add up to, or the error among them."""
    out: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    is_done = False
    for line in raw.splitlines():
        data = line[5:].strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            is_done = True
        if not data or is_done:
            continue
        event = orjson.loads(data)
        if _is_error(event):
            return dict(event)
        out.update({k: event[k] for k in ("model", "usage") if event.get(k)})
        for part in event.get("choices") or ():
            at = part.get("index") or 0
            choice = choices.setdefault(
                at, {"index": at, "message": {}, "logprobs": {"content": []}}
            )
            _add(choice, part)
    if not choices or not (is_done or all("finish_reason" in c for c in choices.values())):
        raise ValueError("the stream breaks off")
    return {**out, "choices": list(choices.values())}


def _add(choice: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Join what an event says to a choice."""
    message = choice["message"]
    if thought := _thought_beside(part.get("delta") or part.get("message") or {}):
        message["thinking"] = message.get("thinking", "") + thought
    for key, more in (part.get("delta") or part.get("message") or {}).items():
        if key == "content" or key == "refusal":
            message[key] = message.get(key, "") + _text_of(more)
    choice.update({k: part[k] for k in ("finish_reason", "error") if part.get(k)})
    choice["logprobs"]["content"] += (part.get("logprobs") or {}).get("content") or ()


def _is_error(tree: Any) -> bool:
    """Whether a body without choices is an error."""
    if isinstance(tree, list):
        return bool(tree) and isinstance(tree[0], dict) and "error" in tree[0]
    if not isinstance(tree, dict):
        return False
    named = (tree.get(k) for k in ("message", "detail", "msg"))
    return bool(tree.get("error")) or any(isinstance(m, (str, list)) for m in named)


def _text_in(choice: Mapping[str, Any], sampling: Sampling | None) -> str:
    """What a choice says; thoughts may be in it.

    Raises:
        ErrorReply: it says an error.
        TransientFault: the server broke it off.
    """
    reason = choice.get("finish_reason")
    if reason != "stop" and reason != "length":
        if choice.get("error"):
            raise ErrorReply(orjson.dumps({"error": choice["error"]}))
        if reason in _BROKEN_OFF:
            raise TransientFault("interrupted", f"the server ended an answer by {reason!r}")
        if reason and "message" not in choice:
            return ""  # all tokens went into a thought that is not shown
    message = choice["message"]
    text = message.get("content")
    if not isinstance(text, str):
        text = _text_of(text)
    if text and not text.isspace():
        return text
    if sampling is not None and sampling.schema is not None:
        # held to a grammar from its first token on, so that it could not end its thought
        reply = without_thought(_text_of(_thought(message)))[0].strip()
        if _is_object(reply):
            return reply
    return _text_of(message.get("refusal"))


def _thought(message: Mapping[str, Any]) -> Any:
    """The thought in a field of its own, if there is one."""
    return next((thought for k in _THOUGHTS if (thought := message.get(k))), None)


def _thought_beside(message: Mapping[str, Any]) -> str:
    """A thought that is not in the text: in a field of its own, else among the parts."""
    if (thought := _thought(message)) is not None:
        return _text_of(thought)
    parts = message.get("content")
    parts = parts if isinstance(parts, list) else []
    return "".join(_text_of(p.get("thinking")) for p in parts if isinstance(p, dict))


def _text_of(content: object) -> str:
    """The text of a message's content, without the thoughts among its parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(
        p if isinstance(p, str) else p["text"]
        for p in parts
        if isinstance(p, str)
        or (isinstance(p.get("text"), str) and p.get("type", "text") in ("text", "output_text"))
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except ValueError:
        return False


def _answer(choice: Mapping[str, Any], text: str, tokens: int, full: bool, keep: bool) -> Answer:
    reason = choice.get("finish_reason")
    if reason != "stop" and reason != "length":
        reason = one_line(reason, 40) if isinstance(reason, str) and reason else "stop"
    if full and reason == "stop" and text[-1:].isalnum():
        reason = "length"  # a proxy's word for every end
    if len(text) > MOST_CHARS:
        text, reason = text[:MOST_CHARS], "length"
    logprobs = choice.get("logprobs")
    if not (logprobs or keep):
        return as_answer(text, reason, tokens)
    beside = _thought_beside(choice.get("message") or {})
    read = _logprobs(logprobs) if logprobs else None
    return as_answer(text, reason, tokens, read, beside[:MOST_CHARS], keep)


def _logprobs(tree: Any) -> Logprobs | None:
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
    if type(value) is int and 0 <= value <= MOST_TOKENS:
        return value
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


Logprobs = tuple[tuple[str, tuple[tuple[str, float], ...]], ...]

# how models write a thought: DeepSeek, Qwen and most others; Seed; MiniMax; Magistral; Kimi-VL;
# Sky-T1; Command A; Apertus; Gemma; gpt-oss, whose special tokens some servers leave out
_NAMES = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think", "mm:think")
_PAIRS = {
    **{f"<{name}>": f"</{name}>" for name in _NAMES},
    "[think]": "[/think]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|start_thinking|>": "<|end_thinking|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|channel>thought": "<channel|>",
    "<unused94>thought": "<unused95>",
}
_OPENED = pattern(rf"\s*({'|'.join(map(re.escape, _PAIRS))})", re.I)
_CLOSED = {a: pattern(re.escape(b), re.I) for a, b in _PAIRS.items()}
# those that a chat template opens, so that the reply has the closing tag alone
_OPENER = {b: pattern(re.escape(a), re.I) for a, b in _PAIRS.items() if "/" in b}
_LONE = pattern("|".join(map(re.escape, _OPENER)), re.I)
_HARMONY = pattern(
    r"\s*(?:(?:<\|start\|>assistant)?<\|channel\|>|analysis(?:<\|message\|>|(?=[A-Z])))"
)
_FINAL = pattern(
    r"<\|channel\|>final[^<\n]{0,20}(?:<\|constrain\|>\w+)?<\|message\|>|assistantfinal"
)
_END = pattern(r"(?:<\|(?:return|end|call)\|>){1,3}\Z")
# what the answer is put into behind a thought: Hunyuan, ERNIE, Sky-T1, Command A
_WRAPPED = pattern(
    r"\s*(?:<(answer|response)>(.*?)(?:</\1>\s*)?"
    r"|<\|(?:begin_of_solution|START_RESPONSE)\|>(.*?)"
    r"(?:<\|(?:end_of_solution|END_RESPONSE)\|>\s*)?)\Z",
    re.S,
)
_MARKS = pattern(
    r"(?:<\|start\|>assistant)?<\|channel\|>[^<]{0,40}(?:<\|constrain\|>\w+)?<\|message\|>"
    r"|<\|end\|>|^analysis|assistantfinal\Z|<(?:answer|response)>\s*\Z"
    r"|<\|(?:begin_of_solution|START_RESPONSE)\|>\s*\Z|"
    + "|".join(re.escape(tag) for pair in _PAIRS.items() for tag in pair),
    re.I,
)
_MOST_TAGS = 20  # that are looked at, from the end
_QUOTES = frozenset("`'\"\u201c\u201d\u2018\u2019")

_CUT = frozenset(
    "length max_tokens max_output_tokens max_completion_tokens max_new_tokens max_length"
    " model_length token_limit truncated".split()
)
_ENDED = frozenset("stop eos eos_token end_turn stop_sequence end completed complete".split())


def as_answer(
    written: str,
    reason: str,
    tokens: int,
    logprobs: Logprobs | None = None,
    beside: str = "",
    keep: bool = False,
) -> Answer:
    """The answer in what a model wrote, with the tokens' alternatives of at least `LEAST_LOGPROB`,
    and why it ended: `stop`, `length`, or as the server puts it. A thought that was never closed
    leaves an empty one, ended by `length`.

    `beside` is a thought that is not in `written`; the tokens of `logprobs` begin with it. `keep`:
    the answer has what was thought.
    """
    if logprobs is not None:
        logprobs = tuple((t, tuple(a for a in top if a[1] >= LEAST_LOGPROB)) for t, top in logprobs)
    text, is_cut = without_thought(written)
    if is_cut:
        reason = "length"
    elif reason not in ("stop", "length"):
        low = reason.lower()
        reason = "length" if low in _CUT else "stop" if low in _ENDED else reason
    if not (beside or len(text) < len(written)):
        return Answer(text, reason, tokens, logprobs=logprobs)
    if logprobs is not None:
        logprobs = _from(logprobs, text)
    thought = (beside.strip() or _thought_in(written, text)) if keep else None
    return Answer(text, reason, tokens, logprobs=logprobs, thought=thought)


def without_thought(written: str) -> tuple[str, bool]:
    """The answer behind the thoughts of a reply, and whether the last thought was never closed;
    then there is no answer. A text without a thought is returned as it is."""
    text = written
    while (opened := _OPENED.match(text)) is not None:
        closed = _CLOSED[opened[1].lower()].search(text, opened.end())
        if closed is None:
            return "", True
        text = text[closed.end() :]
    if _HARMONY.match(text) is not None:
        *before, text = _FINAL.split(text)
        return (_END.sub("", text.strip()).strip(), False) if before else ("", True)
    if "<" in text or "[" in text or "◁" in text:
        low = text.lower()  # longer needles are found faster than a pattern
        if "/think" in low or ":think" in low or "/thought" in low or "/reasoning" in low:
            text = text[_end_of_thought(text) :]
    if len(text) == len(written):
        return written, False
    wrapped = _WRAPPED.match(text)
    return (wrapped[2] or wrapped[3] or "" if wrapped else text).strip(), False


def _thought_in(written: str, text: str) -> str:
    """What stands before the answer `text`, without the marks of thoughts."""
    before = written[: written.rfind(text)] if text else written
    return _MARKS.sub("", before).strip()


def _end_of_thought(text: str) -> int:
    """Where a thought ends that began before the text did: behind the last closing tag that nothing
    in the text opens; 0 where there is none."""
    for closed in reversed(list(_LONE.finditer(text))[-_MOST_TAGS:]):
        before, after = text[: closed.start()], text[closed.end() :]
        if before[-1:] in _QUOTES or after[:1] in _QUOTES or before.count("```") % 2:
            continue
        opened = [text[: m.start()] for m in _OPENER[closed[0].lower()].finditer(before)]
        if _ends_line(before) or after.lstrip(" \t")[:1] in ("", "\n"):
            # the tag of a thought, which a tag in the middle of a line can't have opened
            opened = [b for b in opened if _ends_line(b)]
        if not opened:
            return closed.end()
    return 0


def _ends_line(text: str) -> bool:
    return text.rstrip(" \t")[-1:] in ("", "\n")


def _from(logprobs: Logprobs, text: str) -> Logprobs:
    """The tokens of the answer, without those of the thought before it."""
    end, at = "".join(token for token, _ in logprobs).rfind(text), 0
    for i, (token, _) in enumerate(logprobs):
        if at >= end:
            return logprobs[i:]
        at += len(token)
    return ()
