"""Random faults, and damage to the log between runs: the answers had are the answers asked for,
each once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI, Fault

from mora_data.engines import openai
from mora_data.engines.cached_client import CachedClient
from mora_data.engines.openai import Endpoint, HttpEngine
from mora_data.errors import MoraError, PendingRetry
from mora_data.run.log import AnswerLog, Record
from mora_data.run.stats import RunStats
from mora_data.run.tasks import all_of
from mora_data.settings import RoleSettings
from mora_data.types import Answer, Message, Request, Sampling

SCHEDULES = 40
RUNS = 4
SLOTS = 4
REQUESTS = [
    Request(
        "policy",
        (Message(role="user", content=f"What is tea {i}?"),),
        Sampling(1.0, 0.95, 64),
        "presample",
        f"p{i}",
        n=6,
    )
    for i in range(8)
]
FAULTS = (
    Fault(429, headers={"retry-after": "0"}),
    Fault(500),
    Fault(503, b"<html>busy</html>"),
    Fault(drop="before"),
    Fault(drop="middle"),
    Fault(200, b"<html>login</html>"),
    Fault(200, b'{"choices": [{"index": 0, "mess'),
    Fault(401),
)


def short(body: dict[str, Any]) -> Fault | None:
    """The server's own habit, always the same for one body: some replies hold fewer choices than
    asked."""
    return Fault(choices=max(1, body["n"] - 1 - body["seed"] % 3)) if body["seed"] % 2 else None


def run(
    server: FakeOpenAI, path: Path, requests: list[Request], stats: RunStats
) -> list[list[Answer] | str]:
    """Every request's answers, or the name of what stopped it."""

    async def one(asker: CachedClient, request: Request) -> list[Answer] | str:
        try:
            return await asker(request)
        except PendingRetry:
            return "owed"

    async def all_requests() -> list[list[Answer] | str]:
        stats.stopped = None  # another command
        role = RoleSettings(concurrency=SLOTS)
        engine = HttpEngine(Endpoint(server.base_url, role, stats), role, "fake")
        log = AnswerLog(path)
        try:
            asker = CachedClient({"policy": engine}, log, 0, stats)
            return await all_of(one(asker, r) for r in requests)
        except MoraError:
            return ["stopped"] * len(requests)
        finally:
            log.close()
            await engine.close()

    return asyncio.run(all_requests())


def records(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def damage(path: Path, rng: random.Random) -> int:
    """Cut or overwrite the log; how many of its records are hit."""
    before = records(path)
    raw = bytearray(b"".join(before))
    if not raw:
        return 0
    if rng.random() < 0.5:
        del raw[rng.randrange(len(raw)) :]
    else:
        for _ in range(rng.randrange(1, 6)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    path.write_bytes(bytes(raw))
    left = Counter(bytes(raw).splitlines(keepends=True))
    return sum((Counter(before) - left).values())


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> list[list[Answer] | str]:
    """What an undisturbed run answers."""
    with FakeOpenAI(lambda body, time: short(body)) as server:
        answers = run(server, tmp_path_factory.mktemp("clean") / "a.log", REQUESTS, RunStats())
        assert (
            all(len(a) == 6 for a in answers)
            and server.repeated() == 0
            and len(server.requests) > len(REQUESTS)
        )
        return answers


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_any_schedule_ends_with_the_answers_asked_for(
    clean: list[list[Answer] | str], tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "_wait_s", lambda fault, tries: 0.0)
    rng = random.Random(seed)
    rate = [0.0]
    # samples that the server answered, by request and seed
    given: Counter[tuple[str, int]] = Counter()

    def script(body: dict[str, Any], time: int) -> Fault | None:
        if rng.random() < rate[0]:
            return rng.choice(FAULTS)
        fault = short(body)
        given.update(
            (body["messages"][0]["content"], body["seed"] + i)
            for i in range(fault.choices or 0 if fault else body["n"])
        )
        return fault

    path, stats, hit, in_flight = tmp_path / "a.log", RunStats(), 0, 0
    with FakeOpenAI(script) as server:
        for _ in range(RUNS):
            rate[0] = rng.choice((0.05, 0.3, 0.9))
            some = [
                (k, rng.choice((3, 6)))
                for k in rng.sample(range(len(REQUESTS)), rng.randrange(1, 9))
            ]
            got = run(server, path, [replace(REQUESTS[k], n=n) for k, n in some], stats)
            in_flight += SLOTS * ("stopped" in got)
            for (k, n), answers in zip(some, got, strict=True):
                assert answers in ("owed", "stopped") or answers == clean[k][:n]
            if rng.random() < 0.5:
                hit += damage(path, rng)
        rate[0] = 0.0
        assert run(server, path, REQUESTS, stats) == clean
        server.drain()
        asked = len(server.requests)
        assert run(server, path, REQUESTS, stats) == clean and len(server.requests) == asked
    assert len(given) == sum(r.n for r in REQUESTS)
    assert sum(n - 1 for n in given.values()) <= 6 * (hit + in_flight) and stats.repeated == 0
    log = AnswerLog(path)
    indices = Counter(
        (key[:12], int.from_bytes(key[12:], "big") + i)
        for key, raw in log.items()
        for i in range(len(Record.decode(raw).answers))
    )
    log.close()
    assert len(indices) == len(given) and set(indices.values()) == {1}
