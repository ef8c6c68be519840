"""Nothing in a reply stops a run: what reads one gives a value, or says that there is none.

The functions are found by their mark (`reads_reply`), so a new one is fuzzed as it is written. Each
is called without its guard too: what it raises has to be among the kinds that the guard knows.

    pytest tests/unit/test_fuzz_replies.py            some thousand replies
    pytest -m slow tests/unit/test_fuzz_replies.py    1,000,000 inputs
    make fuzz                                         for MORA_FUZZ_S seconds
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.fuzzing import FUZZ_SEED, Fuzzing

import mora_data
from mora_data.engines.dialect import Refusal
from mora_data.engines.http import Fault, Reply, _Connection, parse_retry_after
from mora_data.engines.replies import (
    LEAST_CHARS,
    MOST_CHARS,
    MOST_TOKENS,
    ErrorReply,
    TransientFault,
    parse_chat,
    parse_rating,
)
from mora_data.errors import UNREADABLE
from mora_data.evaluate.prompts import EvalPrompt
from mora_data.resources import inert
from mora_data.rewards import load
from mora_data.rewards.judge import SCHEMA
from mora_data.rewards.rules import flags
from mora_data.rewriting.reply import Rewrite
from mora_data.run.log import Record
from mora_data.settings import RewardSettings, build_settings
from mora_data.types import Answer, Sampling

PACKAGE = Path(mora_data.__file__).parent
BUILD = build_settings({"name": "x", "source": {"kind": "jsonl"}})

ODD = (
    *('{"score": 3}', '{"rewritten": "a b?"}', '{"winner": "tie"}', '{"A": 3}', "[0.5, 1]", "Yes"),
    *("safe", "unsafe\nS1", "Harmful request: no", "Response refusal: yes\nHarmful response: no"),
    *('"\\ud800"', "9" * 400, "-" + "9" * 5000, "1e400", "1e30", "NaN", "-Infinity", "null"),
    *("{", "}", "[", "]", '"', ":", ",", "\\", "true", "```", " ", "\n", "5", "-1", "\u0665"),
    *("\x00", "\x1b[2J", "\u202e", "\u200b", "\ufeff", "\ud800", "<|im_end|>", '{"a":' * 50),
    *('"score"', '"rewritten"', '"usage"', '"choices"', '"message"', '"content"', "[" * 3000),
    *("<rewritten>", "</rewritten>", "<think>", "</think>", "<|channel|>final<|message|>"),
)
NUMBERS = (0, -1, 3, 1e30, -1e30, 10**400, 1e308, 2**63, 0.5, float("nan"), float("inf"), True)
KEYS = (
    *"choices message content usage prompt_tokens completion_tokens index data logprobs".split(),
    *"prompt_tokens_details cached_tokens token top_logprobs logprob probs finish_reason".split(),
    *"model error response body status_code custom_id id score delta type text".split(),
    *"reasoning_content refusal detail code".split(),
)


def text(rng: random.Random) -> str:
    return "".join(rng.choices(ODD, k=rng.randrange(1, 9)))


def tree(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(6 if depth < 5 else 3)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return text(rng) if rng.random() < 0.5 else rng.choice(("stop", "length", "a", ""))
    if kind == 2:
        return None
    if kind == 3:
        return [tree(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(KEYS): tree(rng, depth + 1) for _ in range(rng.randrange(6))}


def completion(rng: random.Random) -> Any:
    """A chat completion in which some parts are others."""

    def odd(value: Any) -> Any:
        return tree(rng, 3) if rng.random() < 0.15 else value

    top = [{"token": odd("3"), "logprob": odd(-0.1)}]
    content = [{"token": odd("3"), "top_logprobs": odd(top)}]
    choice = {
        "index": odd(0),
        "finish_reason": odd("stop"),
        "message": odd({"content": odd(text(rng))}),
        "logprobs": odd({"content": odd(content)}),
    }
    usage = {
        "prompt_tokens": odd(rng.choice(NUMBERS)),
        "completion_tokens": odd(5),
        "prompt_tokens_details": odd({"cached_tokens": odd(3)}),
    }
    tail = {"usage": odd(usage), "data": odd([{"probs": odd([1, odd(2)]), "data": odd([0.5])}])}
    return {"model": odd("m"), "choices": odd([choice]), **tail}


def body(rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return text(rng).encode("utf-8", "surrogatepass")
    raw = json.dumps(completion(rng) if kind > 1 else tree(rng)).encode()
    if rng.random() < 0.2:
        raw = b"data: " + raw.replace(b'"message"', b'"delta"') + b"\n\ndata: [DONE]\n\n"
    if rng.random() < 0.3:
        cut = rng.randrange(len(raw) + 1)
        raw = raw[:cut] + rng.randbytes(rng.randrange(3)) + raw[cut + rng.randrange(3) :]
    return raw


def readers() -> dict[str, Callable[..., Any]]:
    """Every function of the package that is marked as a reader of replies."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if "\n@reads_reply(" in (source := path.read_text()) or "    @reads_reply(" in source:
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            module = importlib.import_module(name)
            classes = (c for _, c in inspect.getmembers(module, inspect.isclass))
            for owner in (module, *classes):
                for value in vars(owner).values():
                    if inspect.isfunction(value) and "reads_reply" in value.__dict__:
                        found[f"{value.__module__}.{value.__name__}"] = value
    return found


def json_of(said: str) -> Any:
    """The JSON value in a text, else the text."""
    try:
        return orjson.loads(said)
    except ValueError:
        return said


CLASSIFIER = load("helpful", RewardSettings(kind="classifier", activation="sigmoid"), BUILD)
JUDGE = Sampling(0.0, 1.0, 8, schema=SCHEMA)
CHOICE = EvalPrompt("truthfulqa", "p", "g", (), "mc2", (True, False))
ARGUMENTS: dict[str, Callable[[Answer], tuple[Any, ...]]] = {
    "verdict": lambda a: (a, 1, 5, ('{"score": 3}',)),
    "expected_level": lambda a: (a,),
    "llama_guard": lambda a: (a,),
    "wildguard": lambda a: (a,),
    "shieldgemma": lambda a: (a,),
    "request_is_safe": lambda a: ("wildguard", a),
    "read": lambda a: (CLASSIFIER, a),
    "parse_rewrite": lambda a: (a.text, a.finish_reason),
    "_levels": lambda a: (a.text, ["A", "B"]),
    "_answers": lambda a: (a.text, ["A", "B"], ('{"A": "yes", "B": "no"}',)),
    "winner": lambda a: (a.text, ('"winner": "tie"',)),
    "choice_metric": lambda a: (CHOICE, a),
    "reply_of": lambda a: (json_of(a.text),),
}


def check_value(name: str, value: Any) -> None:
    """A reader's number is one that can be used; its texts can be sent on."""
    if isinstance(value, Rewrite):
        value.text.encode()
        return
    first = value[0] if isinstance(value, tuple) else value
    if name == "reply_of":
        assert 100 <= first < 1000 and Refusal(first, value[1]).message, value
        return
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, float):
            assert math.isfinite(part), (name, value)
        if isinstance(part, str):
            part.encode()
    if name in ("llama_guard", "wildguard", "shieldgemma", "request_is_safe", "choice_metric"):
        assert first is None or 0 <= first <= 1, (name, value)
    if name in ("verdict", "expected_level"):
        assert first is None or 1 <= first <= 5, (name, value)


def check_body(raw: bytes) -> Iterator[Answer]:
    """What the parsers of a server's replies make of a body; the answers that came of it."""
    for parse in (
        lambda: parse_chat(raw, 3),
        lambda: parse_chat(raw, 1, sampling=JUDGE),
        lambda: parse_rating("classify", raw, 1),
        lambda: parse_rating("pooling", raw, 1),
    ):
        try:
            record = parse()
        except TransientFault as e:
            assert str(e).isprintable()
            continue
        except ErrorReply as e:
            assert 400 <= Refusal(200, e.body).status < 600
            continue
        assert (
            all(0 <= n <= MOST_TOKENS for n in record.tokens)
            and record.tokens[2] <= record.tokens[0]
        )
        again = Record.decode(record.encode())  # the log gives back what was put into it
        assert again.answers == record.answers
        yield from again.answers
    refusal = Refusal(400, raw)
    said = refusal.message
    assert isinstance(refusal.of_row or refusal.of_account or refusal.of_model, bool)
    refusal.field({"temperature": 0, "messages": [{"role": "user", "content": "a"}]})
    assert said and len(said) <= 200 and "\x1b" not in said and "\n" not in said


def check_stream(raw: bytes, pieces: int) -> None:
    """What a connection makes of bytes: a reply, a fault, or it waits for more."""

    async def read() -> None:
        connection = _Connection()
        connection._waiter = asyncio.get_running_loop().create_future()
        step = max(1, len(raw) // pieces)
        for at in range(0, len(raw), step):
            part = raw[at : at + step][: len(connection._inbox)]
            connection._inbox[: len(part)] = part
            connection.buffer_updated(len(part))
        if connection._waiter.done():
            try:
                reply = connection._waiter.result()
                assert isinstance(reply, Reply) and 200 <= reply.status < 1000
            except Fault:
                pass

    asyncio.run(read())


def stream(rng: random.Random) -> bytes:
    heads = (b"HTTP/1.1 200 OK", b"HTTP/1.1 -20", b"HTTP/1.1 429 x", b"HTTP/1.0 2_0", b"x")
    fields = [
        b"transfer-encoding: chunked",
        b"content-length: " + rng.choice((b"3", b"-3", b"9" * 5000, b"x", b"")),
        b"retry-after: " + rng.choice((b"nan", b"inf", b"-1", b"1e999", b"9" * 5000, b"Mon, 99 x")),
    ]
    lines = [rng.choice(heads), *rng.sample(fields, rng.randrange(4))]
    chunk = rng.choice(
        (b"-6", b"+6", b"0x6", b"6_0", b"3", b"0", b"ffffffffffffffff", b"", b"3;x=y")
    )
    return b"\r\n".join([*lines, b"", chunk, b"abc", b"0", b"X: y" * rng.randrange(3), b"", b""])


def fuzz(seed: int, n: int) -> int:
    """Read `n` odd bodies with everything that reads replies; how many inputs were read."""
    rng, found, seen = random.Random(seed), readers(), 0
    assert {name.rpartition(".")[2] for name in found} == ARGUMENTS.keys()
    for k in range(n):
        raw = body(rng)
        said = text(rng), raw.decode("utf-8", "replace")
        answers = [*check_body(raw), *(Answer(t, rng.choice(("stop", "length"))) for t in said)]
        seen += 5
        for answer in answers:
            for name, read in found.items():
                short = name.rpartition(".")[2]
                check_value(short, read(*ARGUMENTS[short](answer)))
                with contextlib.suppress(*UNREADABLE):
                    read.__wrapped__(*ARGUMENTS[short](answer))  # type: ignore[attr-defined]
                seen += 1
        if k % 20 == 0:
            check_stream(stream(rng), rng.randrange(1, 5))
            wait_s = parse_retry_after({"retry-after": text(rng)})
            assert wait_s is None or 0 <= wait_s <= 600
            seen += 2
    return seen


def test_no_reply_stops_a_run() -> None:
    assert fuzz(FUZZ_SEED, 300) > 4000


@pytest.mark.slow
def test_no_reply_of_a_million_stops_a_run() -> None:
    print(f"{from_seeds(1_000_000):,} inputs")


@pytest.mark.fuzz
def test_no_reply_for_minutes_stops_a_run(fuzzing: Fuzzing) -> None:
    fuzzing("replies", lambda seed: fuzz(seed, 200))


def from_seeds(least: int) -> int:
    """Inputs read from seed after seed until there are `least`."""
    seen, seed = 0, FUZZ_SEED
    while seen < least:
        seed += 1
        seen += fuzz(seed, 1000)
    return seen


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 1e30}, (0, 1, 0)),
        ({"prompt_tokens": 10**40}, (0, 1, 0)),
        ({"prompt_tokens": -5, "completion_tokens": -7}, (0, 1, 0)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}, (5, 1, 5)),
        ({"prompt_tokens": "7"}, (0, 1, 0)),
        ({"prompt_tokens": 7.0, "completion_tokens": 2}, (7, 2, 0)),
    ],
)
def test_impossible_usage_counts_as_none(usage: object, tokens: tuple[int, int, int]) -> None:
    """What the answer's text must have had is estimated."""
    raw = json.dumps({"choices": [{"message": {"content": "a"}}], "usage": usage}).encode()
    record = parse_chat(raw, 1)
    assert record.tokens == tokens and Record.decode(record.encode()).tokens == tokens


@pytest.mark.parametrize("size", [b"-6", b"+6", b"0x6", b"1_0", b"", b"z"])
def test_a_chunk_has_a_length(size: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    check_stream(head + size + b"\r\nabcdef\r\n0\r\n\r\n", 1)


def test_chunks_and_trailers_are_read_and_endless_ones_are_not() -> None:
    async def read(raw: bytes) -> Reply:
        connection = _Connection()
        connection._waiter = asyncio.get_running_loop().create_future()
        for at in range(0, len(raw), 7):
            part = raw[at : at + 7]
            connection._inbox[: len(part)] = part
            connection.buffer_updated(len(part))
            if connection._waiter.done():
                return connection._waiter.result()
        raise AssertionError("waits for more")

    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    head += b"3\r\nabc\r\n4;x=y\r\n\r\n\r\n\r\n0\r\n"
    for end in (b"\r\n", b"A: b\r\nC: d\r\n\r\n"):
        assert asyncio.run(read(head + end)).body == b"abc\r\n\r\n"
    with pytest.raises(Fault, match="trailers"):
        asyncio.run(read(head + b"A: b\r\n" * 20_000))


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read, text)
        for text in (
            "{",
            '{"',
            '{"a":',
            '{"a":' * 9_000 + " ",  # within the depth that Python reads from 3.12 on
            '{"score": 3} ',
            '{"rewritten":',
            "<rewritten>",
            "\n",
            "é́ ",
            "<answer>",
            "😀",
        )
        for read in (*ARGUMENTS, "flags", "inert")
    ],
)
def test_a_long_reply_is_read_in_milliseconds(read: str, text: str) -> None:
    """The event loop stands still meanwhile: 50 ms at most, here for the longest answer of all."""
    said = (text * (MOST_CHARS // len(text) + 1))[:MOST_CHARS]
    call: Callable[[], object] = {
        "flags": lambda: flags(said, "stop"),
        "inert": lambda: inert(said),
    }.get(read) or partial(
        next(f for name, f in readers().items() if name.endswith(f".{read}")),
        *{
            "verdict": (Answer(said), 1, 5, (said,)),
            "winner": (said, (said,)),
            "_answers": (said, ["A"], (said,)),
            "parse_rewrite": (said,),
        }.get(read, ARGUMENTS[read](Answer(said)) if read in ARGUMENTS else ()),
    )
    best = min(_seconds(call) for _ in range(3))
    assert best < 0.05, f"{1000 * best:.0f} ms"


def test_an_answer_has_the_length_that_was_asked_for() -> None:
    """A server that takes no notice of `max_tokens` can't have us read a book; thoughts don't
    count."""
    for tokens, kept in ((8, LEAST_CHARS), (512, 10_240), (10**6, MOST_CHARS)):
        sampling = Sampling(1.0, 1.0, tokens)
        said = f"<think>{'hm ' * 9000}</think>" + "a" * MOST_CHARS
        for content in ("a" * (MOST_CHARS + 1), said):
            body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
            (answer,) = parse_chat(json.dumps(body).encode(), 1, sampling=sampling).answers
            assert answer.finish_reason == "length"
            least = min(kept, MOST_CHARS - len(said) + MOST_CHARS)
            assert least <= len(answer.text) <= kept


def _seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def test_an_answer_longer_than_any_is_cut() -> None:
    body = {"choices": [{"message": {"content": "a" * (MOST_CHARS + 1)}, "finish_reason": "stop"}]}
    (answer,) = parse_chat(json.dumps(body).encode(), 1).answers
    assert (len(answer.text), answer.finish_reason) == (MOST_CHARS, "length")


def test_a_flood_of_interim_replies_ends() -> None:
    connection = _Connection()
    connection._buffer = b"HTTP/1.1 100 Continue\r\n\r\n" * 3
    assert connection._read_head() is None
    connection._buffer += b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"
    head = connection._read_head()
    assert head is not None and connection._buffer[head.body_at : head.end] == b"x"
    connection._buffer = b"HTTP/1.1 100 Continue\r\n\r\n" * 4000
    with pytest.raises(ValueError, match="64 kB"):
        connection._read_head()


@pytest.mark.parametrize("value", ["nan", "NaN", "-nan", "Mon, 01 Jan 99999999999 00:00:00 GMT"])
def test_a_wait_that_is_no_number_is_none(value: str) -> None:
    assert parse_retry_after({"retry-after": value}) is None
