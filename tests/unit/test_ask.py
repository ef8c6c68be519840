"""Asking: keys, replay, top-ups, retries and the faults of an endpoint, against a loopback
server."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI, Fault, Script
from support.floods import KINDS, Flood

from mora_data.engines import http, openai, replicas
from mora_data.engines.cached_client import CachedClient
from mora_data.engines.engine import encode, request_key, with_pattern
from mora_data.engines.http import Patience, PlainTransport
from mora_data.engines.openai import Endpoint, HttpEngine, ReplyTimes
from mora_data.engines.replies import LEAST_CHARS
from mora_data.errors import EndpointError, PendingRetry, SettingsError
from mora_data.run import tasks
from mora_data.run.log import AnswerLog
from mora_data.run.stats import RunStats
from mora_data.run.tasks import all_of
from mora_data.settings import RoleSettings
from mora_data.types import Answer, Message, Request, Sampling

REQUEST = Request(
    "policy",
    (Message(role="user", content="What is tea?"),),
    Sampling(1.0, 0.95, 64),
    "presample",
    "p1",
    n=4,
)


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "_wait_s", lambda fault, tries: 0.0)


@contextmanager
def opened(tmp_path: Path, server: FakeOpenAI, **settings: Any) -> Iterator[tuple[Any, RunStats]]:
    """A function that asks requests through a log in `tmp_path`, each call in a loop of its own."""
    stats = RunStats()

    def ask(*requests: Request) -> list[list[Answer]]:
        async def run() -> list[list[Answer]]:
            role = RoleSettings(base_url=server.base_url, model="fake", **settings)
            engine = HttpEngine(Endpoint(server.base_url, role, stats), role, "fake")
            log = AnswerLog(tmp_path / "answers.log")
            try:
                asker = CachedClient({"policy": engine}, log, 0, stats)
                return [await asker(r) for r in requests]
            finally:
                log.close()
                await engine.close()

        return asyncio.run(run())

    yield ask, stats


def test_golden_key() -> None:
    """Keys are a contract with every log on disk: a change here makes users pay twice."""
    request_bytes = encode(REQUEST, "m", {})
    assert (
        request_bytes
        == b'{"max_tokens":64,"messages":[{"content":"What is tea?","role":"user"}],"model":"m",'
        b'"temperature":1.0,"top_p":0.95}'
    )
    assert request_key(request_bytes, "presample", 7, None).hex() == "9428539ac9555036f7e5aa26"


def test_a_schema_keeps_the_order_of_its_properties_and_sorts_the_rest() -> None:
    """A server that decodes by the schema makes the model write them in this order."""
    schema = {"type": "object", "properties": {"text": {"type": "string"}, "notes": {}, "a": {}}}
    sampling = replace(REQUEST.sampling, schema=schema)
    sent = encode(replace(REQUEST, sampling=sampling), "m", {"zeta": {"b": 1, "a": 2}, "alpha": 1})
    assert b'"properties":{"text":{"type":"string"},"notes":{},"a":{}},"type":"object"' in sent
    assert sent.startswith(b'{"alpha":1,') and sent.endswith(b'"zeta":{"a":2,"b":1}}')
    assert b'"response_format"' not in with_pattern(sent, schema, "x+")
    other = {**schema, "properties": dict(reversed(schema["properties"].items()))}
    again = replace(REQUEST, sampling=replace(sampling, schema=other))
    assert encode(again, "m", {}) != encode(replace(REQUEST, sampling=sampling), "m", {})


def test_key_holds_what_changes_the_answer_and_nothing_else() -> None:
    base = request_key(encode(REQUEST, "m", {}), REQUEST.purpose, 1, None)
    others = [
        (replace(REQUEST, sampling=replace(REQUEST.sampling, temperature=0.5)), "m", {}, 1, None),
        (REQUEST, "m2", {}, 1, None),
        (REQUEST, "m", {"top_k": 5}, 1, None),
        (REQUEST, "m", {}, 2, None),
        (REQUEST, "m", {}, 1, "rev"),
        (replace(REQUEST, purpose="confirm"), "m", {}, 1, None),
    ]
    keys = {request_key(encode(r, m, e), r.purpose, s, rev) for r, m, e, s, rev in others}
    assert len(keys) == len(others) and base not in keys
    assert (
        request_key(encode(replace(REQUEST, n=9, first=4), "m", {}), REQUEST.purpose, 1, None)
        == base
    )


def test_n_samples_in_one_request_then_all_from_the_log(tmp_path: Path) -> None:
    with FakeOpenAI() as server, opened(tmp_path, server) as (ask, stats):
        first = ask(REQUEST)
        assert len({a.text for a in first[0]}) == 4
        assert [r["n"] for r in server.requests] == [4]
        assert ask(REQUEST) == first
        assert len(server.requests) == 1 and stats.requests == 1 and stats.replayed == 4
        assert (stats.tokens_in, stats.tokens_out) == (10, 20)


def test_growing_k_asks_only_the_new_samples(tmp_path: Path) -> None:
    with FakeOpenAI() as server, opened(tmp_path, server) as (ask, _):
        (few,), (many,) = ask(REQUEST), ask(replace(REQUEST, n=12))
        assert many[:4] == few
        assert [r["n"] for r in server.requests] == [4, 8]
        assert server.requests[1]["seed"] == server.requests[0]["seed"] + 4
        assert len({a.text for a in many}) == 12


@pytest.mark.parametrize("per_request", [1, 3, 4])
def test_n_per_request_splits(tmp_path: Path, per_request: int) -> None:
    with FakeOpenAI() as server, opened(tmp_path, server, n_per_request=per_request) as (ask, _):
        (answers,) = ask(REQUEST)
        rest = [4 % per_request] if 4 % per_request else []
        assert sorted(r["n"] for r in server.requests) == sorted(
            [per_request] * (4 // per_request) + rest
        )
        assert len({a.text for a in answers}) == 4


def test_server_that_ignores_n_is_topped_up(tmp_path: Path) -> None:
    with FakeOpenAI(max_n=1) as server, opened(tmp_path, server) as (ask, _):
        (answers,) = ask(REQUEST)
        assert len({a.text for a in answers}) == 4
        assert [r["n"] for r in server.requests] == [4, 1, 1, 1]
        assert ask(REQUEST) == [answers] and len(server.requests) == 4


def test_cut_in_the_middle_of_topping_up_asks_for_the_same_samples(tmp_path: Path) -> None:
    def short(body: dict[str, Any], time: int) -> Fault | None:
        return Fault(choices=2) if body["n"] > 1 else None

    with FakeOpenAI(short) as server, opened(tmp_path / "whole", server) as (ask, _):
        (whole,) = ask(replace(REQUEST, n=6))
    raw = (tmp_path / "whole" / "answers.log").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "answers.log").write_bytes(raw[0] + raw[3])
    with FakeOpenAI(short) as server, opened(tmp_path / "cut", server) as (ask, _):
        assert ask(replace(REQUEST, n=6)) == [whole]
        assert [r["n"] for r in server.requests] == [1, 1, 1]


def test_more_choices_than_asked_are_left_out(tmp_path: Path) -> None:
    with FakeOpenAI(lambda b, t: Fault(choices=9)) as server, opened(tmp_path, server) as (ask, _):
        assert len(ask(REQUEST)[0]) == 4 and len(server.requests) == 1


PASSING: dict[str, Script] = {
    "429": lambda b, t: Fault(429, headers={"retry-after": "0"}) if t == 1 else None,
    "500": lambda b, t: Fault(500) if t <= 2 else None,
    "503 html": lambda b, t: Fault(503, b"<html>busy</html>") if t == 1 else None,
    "408": lambda b, t: Fault(408) if t == 1 else None,
    "closed before": lambda b, t: Fault(drop="before") if t == 1 else None,
    "closed in the middle": lambda b, t: Fault(drop="middle") if t == 1 else None,
    "200 html": lambda b, t: Fault(200, b"<html>login</html>") if t == 1 else None,
    "200 truncated json": lambda b, t: (
        Fault(200, b'{"choices": [{"index": 0, "mess') if t == 1 else None
    ),
    "200 not utf-8": lambda b, t: (
        Fault(200, b'{"choices": [{"message": {"content": "\xff\xfe"}}]}') if t == 1 else None
    ),
    "200 no choices": lambda b, t: Fault(choices=0) if t == 1 else None,
    "200 list": lambda b, t: Fault(200, b"[]") if t == 1 else None,
    "200 null": lambda b, t: Fault(200, b"null") if t == 1 else None,
}


TRANSPORTS = ("auto", "openai")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", PASSING)
def test_faults_that_pass(tmp_path: Path, name: str, transport: str) -> None:
    with FakeOpenAI() as server, opened(tmp_path / "clean", server) as (ask, _):
        clean = ask(REQUEST)
    with (
        FakeOpenAI(PASSING[name]) as server,
        opened(tmp_path / "faulty", server, transport=transport) as (ask, stats),
    ):
        assert ask(REQUEST) == clean
        assert server.repeated() == (1 if name == "200 no choices" else 0)
        assert (
            stats.requests == len(server.requests)
            and sum(stats.retries.values()) == len(server.requests) - 1
        )


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_hang_past_the_timeout(tmp_path: Path, transport: str) -> None:
    with (
        FakeOpenAI(lambda b, t: Fault(hang=True) if t == 1 else None) as server,
        opened(tmp_path, server, timeout_s=0.3, transport=transport) as (ask, stats),
    ):
        assert len(ask(REQUEST)[0]) == 4
        # more than one where the machine is slow
        assert stats.retries.keys() == {"timeout"}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("status", [400, 413, 422])
def test_permanent_failure_is_logged_and_never_asked_again(
    tmp_path: Path, status: int, transport: str
) -> None:
    with (
        FakeOpenAI(lambda b, t: Fault(status) if "tea" in str(b["messages"]) else None) as server,
        opened(tmp_path, server, transport=transport) as (ask, stats),
    ):
        (answers,) = ask(REQUEST)
        assert {a.error for a in answers} == {f"HTTP {status}: told to say {status}"}
        asked = len(server.requests)
        assert ask(REQUEST) == [answers] and len(server.requests) == asked <= 2
        assert stats.failed == {str(status): 1}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("status", "says"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "--model")]
)
def test_unusable_endpoint_stops_the_run_in_one_line(
    tmp_path: Path, status: int, says: str, transport: str
) -> None:
    with (
        FakeOpenAI(lambda b, t: Fault(status)) as server,
        opened(tmp_path, server, transport=transport) as (ask, _),
    ):
        with pytest.raises(EndpointError, match=says) as caught:
            ask(REQUEST)
        assert "\n" not in str(caught.value)


def test_tries_run_out_and_the_row_is_owed(tmp_path: Path) -> None:
    def broken(body: dict[str, Any], time: int) -> Fault | None:
        return Fault(500) if body["messages"][0]["content"] == "bad" else None

    bad = replace(REQUEST, messages=(Message(role="user", content="bad"),))
    with FakeOpenAI(broken) as server, opened(tmp_path, server) as (ask, _):
        with pytest.raises(PendingRetry, match=r"HTTP 500.*8 tries"):
            ask(REQUEST, bad)
        server.script = None
        assert len(ask(REQUEST, bad)[1]) == 4
        assert server.repeated() == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_dead_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    monkeypatch.setattr(openai, "NEVER_ANSWERED_S", 0.2)
    monkeypatch.setattr(openai, "_wait_s", lambda fault, tries: 0.05)
    with FakeOpenAI() as server:
        pass
    with opened(tmp_path, server, transport=transport) as (ask, stats):
        with pytest.raises(EndpointError, match=r"never answered.*start the server"):
            ask(REQUEST)
        assert set(stats.retries) == {"refused"}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_name_that_does_not_resolve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    monkeypatch.setattr(openai, "NEVER_ANSWERED_S", 0.0)
    server = FakeOpenAI()
    server._server.server_close()
    server.base_url = "http://no-such-host.invalid/v1"
    with opened(tmp_path, server, transport=transport) as (ask, stats):
        with pytest.raises(EndpointError, match="never answered"):
            ask(REQUEST)
        assert set(stats.retries) == {"dns"}


def test_dies_midway_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "_wait_s", lambda fault, tries: 0.02)
    other = replace(REQUEST, prompt_id="p2", messages=(Message(role="user", content="other"),))

    def dead(body: dict[str, Any], time: int) -> Fault | None:
        return Fault(drop="before") if body["messages"][0]["content"] == "other" else None

    with FakeOpenAI(dead) as server, opened(tmp_path, server, give_up_s=0.1) as (ask, _):
        with pytest.raises(EndpointError, match=r"has not answered for 0.1 s.*same command again"):
            ask(REQUEST, other)
        server.script = None
        assert len(ask(REQUEST, other)) == 2
        assert server.repeated() == 0


@pytest.mark.parametrize(
    ("fault", "text", "finish"),
    [
        (Fault(text=""), "", "stop"),
        (Fault(text="cut", finish_reason="length"), "cut", "length"),
        (Fault(text="no", finish_reason="content_filter"), "no", "content_filter"),
        (Fault(text="x" * LEAST_CHARS), "x" * LEAST_CHARS, "stop"),
        (Fault(text="x" * 1_000_000), "x" * LEAST_CHARS, "length"),
    ],
)
def test_odd_answers_are_kept_as_they_came(
    tmp_path: Path, fault: Fault, text: str, finish: str
) -> None:
    with FakeOpenAI(lambda b, t: fault) as server, opened(tmp_path, server) as (ask, _):
        (answers,) = ask(REQUEST)
        assert {(a.text, a.finish_reason) for a in answers} == {(text, finish)}
        assert ask(REQUEST) == [answers]


def test_the_same_question_at_the_same_time_is_asked_once(tmp_path: Path) -> None:
    with FakeOpenAI() as server:

        async def run() -> list[list[Answer]]:
            role = RoleSettings()
            stats = RunStats()
            engine = HttpEngine(Endpoint(server.base_url, role, stats), role, "fake")
            log = AnswerLog(tmp_path / "a.log")
            asker = CachedClient({"policy": engine}, log, 0, stats)
            out = await asyncio.gather(*(asker(REQUEST) for _ in range(5)))
            log.close()
            await engine.close()
            return out

        answers = asyncio.run(run())
        assert len(server.requests) == 1 and all(a == answers[0] for a in answers)


def test_reused_connection_closed_by_the_server_is_resent_at_once(tmp_path: Path) -> None:
    """The server closes kept-alive connections without a word: one resend on a fresh one, counted
    as a request."""
    other = replace(REQUEST, prompt_id="p2", messages=(Message(role="user", content="other"),))

    def close_second(body: dict[str, Any], time: int) -> Fault | None:
        return (
            Fault(drop="before")
            if body["messages"][0]["content"] == "other" and time == 1
            else None
        )

    with (
        FakeOpenAI(close_second) as server,
        opened(tmp_path, server, concurrency=1) as (ask, stats),
    ):
        ask(REQUEST, other)
        assert stats.requests == len(server.requests) == 3 and not stats.retries


def test_own_client_and_its_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`transport: module:function` brings its own sign-in."""
    module = tmp_path / "own_client.py"
    module.write_text(
        "import openai\ndef client(base_url):\n    return openai.AsyncOpenAI(base_url=base_url,"
        " api_key='own')\ndef unsigned(base_url):\n    return"
        " openai.AsyncOpenAI(base_url=base_url)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FakeOpenAI(lambda b, t: Fault(500) if t == 1 else None) as server:
        with opened(tmp_path, server, transport="own_client:client") as (ask, stats):
            assert len(ask(REQUEST)[0]) == 4 and stats.retries == {"500": 1}
        for name, says in {
            "own_client:unsigned": "can't sign in",
            "own_client:no": "can't load",
            "nonsense": "unknown transport",
        }.items():
            with (
                opened(tmp_path / "b", server, transport=name) as (ask, _),
                pytest.raises(SettingsError, match=says),
            ):
                ask(REQUEST)


def test_server_restarts_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused for a while, then another process on the same port, which loads its model for longer
    than a row is tried: no row is lost, nothing that was answered is asked again."""
    many = [
        replace(REQUEST, prompt_id=f"p{i}", messages=(Message(role="user", content=f"{i}"),))
        for i in range(20)
    ]
    servers = [FakeOpenAI()]
    waits: list[int] = []

    def loads(body: dict[str, Any], time: int) -> Fault | None:
        said = b'{"error": {"message": "Loading model"}}'
        return Fault(503, said) if len(servers[1].requests) <= 20 else None

    def wait_s(fault: Exception, tries: int) -> float:
        waits.append(1)
        if len(waits) == 5:
            servers.append(FakeOpenAI(loads, port=servers[0].port).__enter__())
        return 0.0

    monkeypatch.setattr(openai, "_wait_s", wait_s)

    def stop_after_ten(body: dict[str, Any], time: int) -> Fault | None:
        if len(servers[0].requests) > 10:
            threading.Thread(target=servers[0].__exit__, args=(None, None, None)).start()
            return Fault(drop="before")
        return None

    servers[0].script = stop_after_ten
    servers[0].__enter__()
    try:
        with opened(tmp_path, servers[0], concurrency=1) as (ask, _):
            assert all(len(a) == 4 for a in ask(*many))
    finally:
        for server in servers[1:]:
            server.__exit__(None, None, None)
    assert sum(sum(s.answered.values()) for s in servers) == 20 and len(servers) == 2


def test_clock_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock jumps a day ahead and back in the middle of a run: no timeout, no giving up,
    no endless wait."""
    real, now = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + now[0])

    def jumps(body: dict[str, Any], times: int) -> Fault | None:
        now[0] = 86400.0 if now[0] <= 0 else -86400.0
        after = formatdate(real(), usegmt=True)
        return Fault(503, headers={"retry-after": after}) if times == 1 else None

    with FakeOpenAI(jumps) as server, opened(tmp_path, server) as (ask, stats):
        assert len(ask(REQUEST)[0]) == 4 and stats.retries == {"503": 1}


@pytest.mark.parametrize("seed", range(5))
def test_log_damaged_at_a_random_byte_is_counted_and_asked_again(tmp_path: Path, seed: int) -> None:
    many = [
        replace(REQUEST, prompt_id=f"p{i}", messages=(Message(role="user", content=f"{i}"),))
        for i in range(10)
    ]
    rng = random.Random(seed)
    with FakeOpenAI() as server, opened(tmp_path, server) as (ask, _):
        answers = ask(*many)
        path = tmp_path / "answers.log"
        raw = bytearray(path.read_bytes())
        at = rng.randrange(len(raw))
        raw[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(raw))
        log = AnswerLog(path)
        assert log.damaged in (1, 2)  # two when it is the line's end that is hit
        log.close()
        assert ask(*many) == answers and len(server.requests) in (11, 12)


def test_refused_key_in_the_middle_keeps_what_is_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """401 for one request: the others in flight are answered, logged and not asked again; nothing
    new is sent."""
    # for a busy machine; it is over as soon as all are there
    monkeypatch.setattr(tasks, "GRACE_S", 30.0)
    many = [
        replace(REQUEST, prompt_id=f"p{i}", messages=(Message(role="user", content=f"{i}"),))
        for i in range(30)
    ]
    all_in = threading.Event()

    def refuse(body: dict[str, Any], times: int) -> Fault | None:
        if len(server.requests) == 8:
            all_in.set()
        all_in.wait(10)
        if body["messages"][0]["content"] == "3" and times == 1:
            return Fault(401)
        refused.wait(10)
        return None

    refused = threading.Event()
    with FakeOpenAI(refuse) as server:
        stats = RunStats()
        stats.stop = lambda error: (setattr(stats, "stopped", error), refused.set())  # type: ignore[assignment,method-assign]

        async def run() -> list[list[Answer]]:
            role = RoleSettings(concurrency=8)
            engine = HttpEngine(Endpoint(server.base_url, role, stats), role, "fake")
            log = AnswerLog(tmp_path / "answers.log")
            try:
                asker = CachedClient({"policy": engine}, log, 0, stats)
                return await all_of(asker(r) for r in many)
            finally:
                assert len(log) == 7
                log.close()
                await engine.close()

        with pytest.raises(EndpointError, match="says 401"):
            asyncio.run(run())
        assert len(server.requests) == 8
        stats.stopped = None
        asyncio.run(run_all(tmp_path, server, many))
        assert server.repeated() == 0


async def run_all(tmp_path: Path, server: FakeOpenAI, requests: list[Request]) -> None:
    """All at once, in another command."""
    role, stats = RoleSettings(), RunStats()
    engine = HttpEngine(Endpoint(server.base_url, role, stats), role, "fake")
    log = AnswerLog(tmp_path / "answers.log")
    asker = CachedClient({"policy": engine}, log, 0, stats)
    await all_of(asker(r) for r in requests)
    log.close()
    await engine.close()


def test_patience_grows_with_n_with_max_tokens_and_with_what_the_server_has_shown() -> None:
    assert ReplyTimes(7.0).patience(16, 16 * 512) == (7.0, 7.0)
    times = ReplyTimes(None)
    assert times.patience(1, 64) == (600 + 32, 10 * (600 + 32))  # a model may have to be loaded
    assert times.patience(8, 8 * 160).silence_s == 600 + 0.5 * 8 * 160
    times.note(2.0, 8 * 160)
    assert times.patience(8, 8 * 160).silence_s == 60 + 0.5 * 160
    times.note(700.0, 8 * 160)  # ten tokens a second, five requests at a time
    assert times.patience(8, 8 * 160).silence_s == pytest.approx(60 + 4 * 700)
    assert times.patience(1, 160).silence_s == pytest.approx(60 + 4 * 700 / 8)
    for _ in range(300):
        times.note(2.0, 8 * 160)
    assert times.patience(8, 8 * 160).silence_s == pytest.approx(60 + 0.5 * 160)  # forgotten


def one_by_one(lock: threading.Lock) -> Script:
    """A server with a single slot: 20 ms a reply, in the order in which requests came."""

    def work(body: dict[str, Any], time_: int) -> Fault | None:
        with lock:
            threading.Event().wait(0.02)
        return None

    return work


def posted(url: str, n: int, silence_s: float, total_s: float) -> list[Any]:
    """What comes of `n` posts at once."""

    async def run() -> list[Any]:
        transport = PlainTransport(f"{url}/chat/completions", {}, lambda: None)
        body = json.dumps({"messages": [], "model": "m"}).encode()
        try:
            patience = Patience(silence_s, total_s)
            posts = (transport.post(body, lambda: patience) for _ in range(n))
            return await asyncio.gather(*posts, return_exceptions=True)
        finally:
            await transport.close()

    return asyncio.run(run())


def test_a_slow_server_is_not_cut_off_while_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve requests, the last answered after 240 ms; nothing is silent for 120 ms."""
    monkeypatch.setattr(http, "_SWEEP_S", 0.01)
    with FakeOpenAI(one_by_one(threading.Lock())) as server:
        found = posted(server.base_url, 12, 0.12, 10.0)
        assert [getattr(r, "status", r) for r in found] == [200] * 12
        found = posted(server.base_url, 12, 0.12, 0.12)  # as `timeout_s` has it
        assert {r.kind for r in found if isinstance(r, http.Fault)} == {"timeout"}
    with FakeOpenAI(lambda b, t: Fault(hang=True)) as server:
        found = posted(server.base_url, 2, 0.05, 10.0)
        assert [str(r) for r in found] == ["timeout: no reply within 0.05 s"] * 2


def test_a_silent_server_is_told_from_an_absent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the patience of a first reply, whatever an absent one gets."""
    monkeypatch.setattr(http, "_SWEEP_S", 0.01)
    monkeypatch.setattr(openai, "NEVER_ANSWERED_S", 0.0)
    says = r"takes connections and has not answered yet.*concurrency \(3\) or n_per_.* timeout_s"
    given = {"timeout_s": 0.03, "concurrency": 3}
    with FakeOpenAI(lambda b, t: Fault(hang=True)) as server:
        with opened(tmp_path, server, **given) as (ask, stats):
            with pytest.raises(EndpointError, match=says):
                ask(REQUEST)
            assert stats.retries == {"timeout": openai.TRIES}
        monkeypatch.setattr(openai, "FIRST_REPLY_S", 0.01)
        with opened(tmp_path, server, **given) as (ask, stats):
            with pytest.raises(EndpointError, match=says):
                ask(REQUEST)
            assert stats.retries == {"timeout": 1}


def test_a_server_that_falls_silent_is_told_from_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_SWEEP_S", 0.01)
    with (
        FakeOpenAI(lambda b, t: Fault(hang=True) if len(server.requests) > 1 else None) as server,
        opened(tmp_path, server, timeout_s=0.03, give_up_s=0.02) as (ask, stats),
        pytest.raises(EndpointError, match=r"has answered nothing of late.*raise timeout_s"),
    ):
        ask(REQUEST, replace(REQUEST, prompt_id="p2"))
    assert stats.retries == {"timeout": 2}


def test_one_fault_after_a_long_reply_stops_nothing(tmp_path: Path) -> None:
    """The time without an answer counts from the first fault: replies may take longer than
    `give_up_s`."""

    def work(body: dict[str, Any], time_: int) -> Fault | None:
        threading.Event().wait(0.03)
        return Fault(500) if len(server.requests) == 2 else None

    with FakeOpenAI(work) as server, opened(tmp_path, server, give_up_s=0.02) as (ask, stats):
        assert len(ask(REQUEST, replace(REQUEST, prompt_id="p2"))) == 2
        assert stats.retries == {"500": 1}


def test_a_server_that_says_nothing_of_its_models_is_not_called_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "ASK_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(
            EndpointError, match=r"takes connections and gave no whole reply in 0\.05 s"
        ):
            replicas.served_models([url], RoleSettings(), 0.0)


def test_a_list_of_models_that_comes_a_byte_at_a_time_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "ASK_S", 0.1)
    monkeypatch.setattr(replicas, "PROBE_S", 0.05)
    ended = threading.Event()

    def drip(server: socket.socket) -> None:
        client = server.accept()[0]
        with client, contextlib.suppress(OSError):
            client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n")
            while not ended.wait(0.02):
                client.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as slow:
        thread = threading.Thread(target=drip, args=(slow,))
        thread.start()
        try:
            with pytest.raises(EndpointError, match="no whole reply"):
                replicas.served_models(
                    [f"http://127.0.0.1:{slow.getsockname()[1]}/v1"], RoleSettings(), 0.0
                )
        finally:
            ended.set()
            thread.join()


def test_too_many_open_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not taken for a server that refuses: the remedy is here."""

    async def full(*_: object, **__: object) -> object:
        raise OSError(24, "Too many open files")

    real = os.open

    def open_(path: str, *more: int) -> int:
        if path == os.devnull:
            raise OSError(24, "Too many open files")
        return real(path, *more)

    with FakeOpenAI() as server, opened(tmp_path, server) as (ask, stats):
        with monkeypatch.context() as m:
            m.setattr(asyncio.BaseEventLoop, "create_connection", full)
            m.setattr(os, "open", open_)
            with pytest.raises(EndpointError, match=r"ulimit -n\) or lower concurrency \("):
                ask(REQUEST)
        assert not stats.replicas_out


def transport_to(kind: str, base_url: str) -> http.Transport:
    url = f"{base_url}/chat/completions"
    if kind == "plain":
        return PlainTransport(url, {}, lambda: None)
    if kind == "aiohttp":
        return http.AiohttpTransport(url, {}, 1, lambda: None)
    return http.ClientTransport(base_url, "/chat/completions", {}, lambda: None, kind)


async def bodies(kind: str, base_url: str, times: int = 1) -> list[bytes]:
    """The bodies of replies, through one transport."""
    transport = transport_to(kind, base_url)
    try:
        return [
            (await transport.post(b"{}", lambda: Patience(60.0, 60.0))).body for _ in range(times)
        ]
    finally:
        await transport.close()


def test_a_closed_transport_holds_no_call() -> None:
    """Its connections did, and each call the log of its partition, until the end of the build."""

    async def run(base_url: str) -> tuple[http.Transport, weakref.ref[Any]]:
        transport = transport_to("plain", base_url)

        def patience() -> Patience:
            return Patience(60.0, 60.0)

        await transport.post(json.dumps({"messages": [], "model": "m"}).encode(), patience)
        await transport.close()
        return transport, weakref.ref(patience)

    with FakeOpenAI() as server:
        transport, patience = asyncio.run(run(server.base_url))
    assert isinstance(transport, PlainTransport) and patience() is None


@pytest.mark.parametrize("transport", ["plain", "aiohttp", "openai"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_has_a_size(kind: str, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten gigabytes are left unread, however they come; packed ones count as they are unpacked."""
    monkeypatch.setattr(http, "MOST_BYTES", 1 << 18)
    with Flood(KINDS[kind]) as flood, pytest.raises(http.Fault) as fault:
        asyncio.run(bodies(transport, flood.base_url))
    assert flood.replies == 1 and flood.longest < 32 << 20  # with what the system keeps of it
    # whatever it says of a head without an end
    # (other clients read it slowly, so that a busy machine sees the wait end first)
    endless = kind in ("head", "a chunk's length") and transport != "plain"
    said = ("reset", "timeout") if endless else ()
    assert fault.value.kind in ("protocol", *said), fault.value


def test_a_client_of_the_users_has_that_size_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(http, "MOST_BYTES", 1 << 18)
    (tmp_path / "patient_client.py").write_text(
        "import openai\ndef client(base_url):\n"
        "    return openai.AsyncOpenAI(base_url=base_url, api_key='own', max_retries=3)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for kind in ("error", "chunks"):
        with Flood(KINDS[kind]) as flood, pytest.raises(http.Fault, match="longer than"):
            asyncio.run(bodies("patient_client:client", flood.base_url))
        assert flood.replies == 1


@pytest.mark.parametrize("transport", ["plain", "aiohttp", "openai"])
def test_a_reply_in_pieces_is_whole(transport: str) -> None:
    """In chunks of every size; the connection serves again."""
    rng, body, reply = random.Random(0), bytes(range(33, 127)) * 10_000, bytearray()
    at = 0
    while at < len(body):
        piece = body[at : at + rng.choice((1, 2, 50, 70_000))]
        reply += b"%x\r\n%s\r\n" % (len(piece), piece)
        at += len(piece)
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + reply + b"0\r\n\r\n"
    with Flood(lambda: iter((whole,))) as server:
        assert asyncio.run(bodies(transport, server.base_url, 3)) == [body] * 3
    assert (server.replies, server.connections) == (3, 1)
    if transport != "plain":
        packed, headers = gzip.compress(body), {"content-encoding": "gzip"}
        with FakeOpenAI(lambda b, t: Fault(body=packed, headers=headers)) as fake:
            assert asyncio.run(bodies(transport, fake.base_url)) == [body]


def test_a_caller_that_is_cancelled_leaves_its_call_to_the_next(tmp_path: Path) -> None:
    stats, made = RunStats(), []
    log = AnswerLog(tmp_path / "answers.log")
    ask = CachedClient({}, log, 0, stats)

    async def call() -> int:
        made.append(1)
        await asyncio.sleep(0.05)
        return 7

    async def run() -> list[Any]:
        first = asyncio.ensure_future(ask.cached({"x": 1}, call))
        others = [asyncio.ensure_future(ask.cached({"x": 1}, call)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in (first, others[0]):
            task.cancel()
        return await asyncio.gather(first, *others, return_exceptions=True)

    *gone, second, third = asyncio.run(run())
    log.close()
    assert [type(e) for e in gone] == [asyncio.CancelledError] * 2
    assert (second, third, len(made), stats.sent) == (7, 7, 2, 1)
