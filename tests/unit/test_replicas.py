"""Several base URLs for one model: load, death, return, and what stops the run."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI, Fault

from mora_data.engines import openai, replicas
from mora_data.engines.cached_client import CachedClient
from mora_data.engines.openai import Endpoint, HttpEngine
from mora_data.errors import EndpointError
from mora_data.run.limiter import LocalRateLimiter
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
    n=2,
)
MANY = [
    replace(REQUEST, prompt_id=f"p{i}", messages=(Message(role="user", content=f"What is {i}?"),))
    for i in range(40)
]


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "_wait_s", lambda fault, tries: 0.0)


def ask(
    tmp_path: Path,
    stats: RunStats,
    urls: list[str],
    requests: list[Request],
    at_once: bool = True,
    between: Any = None,
    pace: LocalRateLimiter | None = None,
    **settings: Any,
) -> list[list[Answer]]:
    async def run() -> list[list[Answer]]:
        role = RoleSettings(base_url=urls[0], replicas=urls[1:], concurrency=4, **settings)
        engine = HttpEngine(Endpoint(urls[0], role, stats), role, "fake", pace)
        log = AnswerLog(tmp_path / "answers.log")
        try:
            asker = CachedClient({"policy": engine}, log, 0, stats)
            if at_once:
                return await all_of(asker(r) for r in requests)
            out = []
            for i, r in enumerate(requests):
                if between is not None:
                    await between(i, engine)
                out.append(await asker(r))
            return out
        finally:
            log.close()
            await engine.close()

    return asyncio.run(run())


def test_all_are_used_and_the_answers_are_those_of_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(FakeOpenAI(delay_s=0.01)) for _ in range(3)]
        stats = RunStats()
        got = ask(tmp_path / "three", stats, [s.base_url for s in servers], MANY)
        assert all(len(s.requests) >= 8 for s in servers) and sum(
            len(s.requests) for s in servers
        ) == len(MANY)
        assert got == ask(tmp_path / "one", RunStats(), [servers[0].base_url], MANY)
        assert stats.slots_busy is not None and 0 < stats.slots_busy <= 1


def test_a_replica_that_is_down_costs_a_retry_and_no_row(tmp_path: Path) -> None:
    with FakeOpenAI() as dead:
        url = dead.base_url
    with FakeOpenAI() as alive:
        stats = RunStats()
        got = ask(tmp_path, stats, [url, alive.base_url], MANY)
        assert all(len(a) == 2 for a in got) and len(alive.requests) == len(MANY)
        assert list(stats.replicas_out) == [url] and stats.retries["refused"] <= 4


def test_a_replica_that_fails_three_in_a_row_is_out_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "FIRST_PROBE_S", 1e9)
    broken = [True]
    with FakeOpenAI(lambda b, t: Fault(500) if broken[0] else None) as flaky, FakeOpenAI() as alive:
        stats = RunStats()

        async def between(i: int, engine: HttpEngine) -> None:
            inside = engine.endpoint.replicas
            if i == 20:
                broken[0] = False
                inside.all[0].probe_at = 0.0
                inside.probe_due()
                await asyncio.wait(inside._probing)
                assert inside.all[0].out_since is None
            elif i == 10:
                assert (
                    inside.all[0].out_since is not None
                    and len(flaky.requests) == replicas.FAULTS_IN_A_ROW
                )

        got = ask(
            tmp_path, stats, [flaky.base_url, alive.base_url], MANY, at_once=False, between=between
        )
        assert all(len(a) == 2 for a in got)
        assert len(flaky.requests) > replicas.FAULTS_IN_A_ROW + 5
        assert stats.retries == {"500": 3}


@pytest.mark.parametrize(
    "fault", [Fault(401), Fault(404), Fault(model="other")], ids=["401", "404", "other model"]
)
def test_a_replica_that_cannot_be_used_is_out_and_the_last_one_stops_the_run(
    tmp_path: Path, fault: Fault
) -> None:
    with FakeOpenAI(lambda b, t: fault, models=("other",)) as wrong, FakeOpenAI() as right:
        stats = RunStats()
        assert all(
            len(a) == 2 for a in ask(tmp_path, stats, [wrong.base_url, right.base_url], MANY)
        )
        assert list(stats.replicas_out) == [wrong.base_url]
        with pytest.raises(EndpointError, match="endpoint http") as caught:
            ask(tmp_path / "b", RunStats(), [wrong.base_url, wrong.base_url], MANY)
        assert "\n" not in str(caught.value)


def test_all_dead_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "NEVER_ANSWERED_S", 0.1)
    monkeypatch.setattr(openai, "_wait_s", lambda fault, tries: 0.05)
    with FakeOpenAI() as one, FakeOpenAI() as two:
        urls = [one.base_url, two.base_url]
    with pytest.raises(EndpointError, match=r"and 1 more never answered"):
        ask(tmp_path, RunStats(), urls, MANY)


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """Connections of a dying replica break; its requests go elsewhere and nothing is asked twice of
    the living one."""
    with (
        FakeOpenAI(lambda b, t: Fault(drop="middle") if len(dying.requests) > 5 else None) as dying,
        FakeOpenAI() as alive,
    ):
        stats = RunStats()
        got = ask(tmp_path, stats, [dying.base_url, alive.base_url], MANY)
        assert all(len(a) == 2 for a in got) and alive.repeated() == dying.repeated() == 0
        assert sum(dying.answered.values()) + sum(alive.answered.values()) == len(MANY)
        assert list(stats.replicas_out) == [dying.base_url]


def test_requests_per_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits add up to what the limit says; while they last no slot is held and few prompts are
    opened."""
    waited: list[float] = []

    async def pause(self: Endpoint, seconds: float) -> None:
        waited.append(seconds)
        assert self.limiter.waiting >= 1
        await asyncio.sleep(0)

    monkeypatch.setattr(Endpoint, "_pause", pause)
    with FakeOpenAI() as server:
        ask(
            tmp_path,
            RunStats(),
            [server.base_url],
            MANY,
            pace=LocalRateLimiter(60.0, None, lambda: 1000.0),
        )
    assert waited == [float(i) for i in range(1, len(MANY) - 1)]
