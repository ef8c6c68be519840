"""Waves of batch requests with a clock of the test's own: how often is looked, and what is written
down when."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.fake_batches import FakeProvider

from mora_data.engines.batch import BatchEngine, Waves
from mora_data.engines.batch_jobs import BatchFolder, reply_of
from mora_data.engines.cached_client import CachedClient
from mora_data.engines.dialect import Learner
from mora_data.errors import RunFolderError
from mora_data.run.log import AnswerLog
from mora_data.run.stats import RunStats
from mora_data.settings import BatchSettings, RoleSettings
from mora_data.types import Answer, Message, Request, Sampling


def asked(
    where: Path, provider: FakeProvider, n: int = 3, **settings: Any
) -> tuple[list[list[Answer]], list[float], list[Any]]:
    """The answers to `n` requests, the pauses, and the state on disk at each pause."""
    pauses: list[float] = []
    states: list[Any] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        states.append(json.loads((where / "batches/state.json").read_text())["jobs"])

    async def run() -> list[list[Answer]]:
        stats = RunStats()
        role = RoleSettings(
            base_url=provider.base_url, model="fake", batch=BatchSettings(**settings)
        )
        engine = BatchEngine(
            Waves(BatchFolder(where / "batches"), stats, lambda line: None, sleep),
            role,
            stats,
            Learner(),
        )
        log = AnswerLog(where / "answers.log")
        try:
            ask = CachedClient({"policy": engine}, log, 0, stats)
            turns = [(Message(role="user", content=f"What is {i}?"),) for i in range(n)]
            return list(
                await asyncio.gather(
                    *(
                        ask(Request("policy", t, Sampling(1.0, 0.95, 8), "presample", f"p{i}", n=2))
                        for i, t in enumerate(turns)
                    )
                )
            )
        finally:
            log.close()
            await engine.close()

    return asyncio.run(run()), pauses, states


def test_a_batch_is_looked_at_every_poll_s(tmp_path: Path) -> None:
    with FakeProvider(looks=5) as provider:
        answers, pauses, states = asked(tmp_path, provider, poll_s=45)
    assert pauses == [45.0] * 4 and len({a.text for some in answers for a in some}) == 6
    (job,) = states[0]
    assert (job["step"], job["batch_id"], job["n"], job["model"]) == ("sent", "batch_0", 3, "fake")
    assert json.loads((tmp_path / "batches/state.json").read_text()) == {"last": 1, "jobs": []}


def test_the_pause_before_a_creation_is_tried_again(tmp_path: Path) -> None:
    with FakeProvider(looks=1, lose_created=1) as provider:
        _, pauses, states = asked(tmp_path, provider)
        assert pauses == [2.0] and states[0][0]["step"] == "uploaded" and len(provider.batches) == 1


def test_a_disk_that_is_full_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "batches").write_text("in the way")
    with (
        FakeProvider() as provider,
        pytest.raises(RunFolderError, match=r"can't make the folder .*batches"),
    ):
        asked(tmp_path, provider)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ({"response": {"status_code": 200, "body": {"choices": []}}, "error": None}, 200),
        ({"response": {"status_code": 400, "body": {"error": {}}}}, 400),
        ({"response": None, "error": {"code": "batch_expired"}}, 503),
        ({"response": {"status_code": 200}}, 503),
        ({}, 503),
    ],
)
def test_what_a_line_of_an_answer_file_says(line: dict[str, Any], status: int) -> None:
    assert reply_of(line).status == status


def test_answer_files_may_hold_anything(tmp_path: Path) -> None:
    """Lines that are not in form are passed over; an answer outweighs an error for the same key."""
    folder = BatchFolder(tmp_path / "batches")
    keys = [f"{i:032x}" for i in range(3)]
    job = folder.write("provider", "", "m", [(k, b"{}") for k in keys])
    good = {"response": {"status_code": 200, "body": {"a": 1}}}
    folder.file(job, "errors").write_text(
        json.dumps({"custom_id": keys[0], "error": {"code": "x"}}) + "\n"
    )
    folder.file(job, "answers").write_bytes(
        b"\xff\xfe not json\n[]\n7\n"
        + json.dumps({"custom_id": keys[0], **good}).encode()
        + b"\n"
        + json.dumps({"custom_id": keys[1], **good}).encode()
        + b'\n{"custom_id": "torn'
    )
    folder.read(job)
    found = [folder.take(k) for k in keys]
    assert [f and f.status for f in found] == [200, 200, None] and job.left == {keys[2]}
    assert BatchFolder(tmp_path / "batches").jobs[0].left == set(keys)
