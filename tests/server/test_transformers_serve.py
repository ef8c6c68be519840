"""A second real server, of the kind that takes a request and ignores half of it: `transformers
serve`.

It answers n=4 with one choice, and drops logprobs and response_format, all with HTTP 200. So what
came back is counted and
checked: the missing samples are asked for singly, and a reply without a verdict is no verdict.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import rows_file
from support.real_server import RealServer, TransformersServer, vllm_python
from support.tiny import tiny_model

from mora_data.cli import main
from mora_data.engines import openai
from mora_data.engines.cached_client import CachedClient
from mora_data.engines.engine import Shared
from mora_data.rewards.judge import SCHEMA, verdict
from mora_data.run.log import AnswerLog
from mora_data.run.stats import RunStats
from mora_data.settings import BuildSettings, RoleSettings, build_settings
from mora_data.types import Answer, Message, Request, Sampling

pytestmark = pytest.mark.server

ASK: tuple[Message, ...] = (Message(role="user", content="Tell me something about bees."),)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    where = tmp_path_factory.mktemp("serve")
    model = where / "model"
    shutil.copytree(tiny_model(vllm_python()), model)
    config = model / "generation_config.json"
    # else it is greedy, whatever is asked
    config.write_text(json.dumps({**json.loads(config.read_text()), "do_sample": True}))
    with TransformersServer(model, where / "server.log") as running:
        yield running


def asked(
    server: RealServer, where: Path, *requests: Request
) -> tuple[list[list[Answer]], RunStats]:
    """One after the other: its seed is one for the whole process."""
    stats = RunStats()
    role = RoleSettings(
        base_url=server.base_url, model=str(server.model), concurrency=1, timeout_s=120
    )
    build: BuildSettings = build_settings({"name": "x", "source": {"kind": "jsonl"}})

    async def run() -> list[list[Answer]]:
        engine = openai.open_openai(role, build, stats, Shared())
        log = AnswerLog(where / "answers.log")
        try:
            ask = CachedClient({"policy": engine}, log, 0, stats)
            return [await ask(r) for r in requests]
        finally:
            log.close()
            await engine.close()

    return asyncio.run(run()), stats


def request(n: int = 4, **sampling: Any) -> Request:
    wanted = Sampling(**{"temperature": 1.0, "top_p": 0.95, "max_tokens": 24, **sampling})
    return Request("policy", ASK, wanted, "presample", "p", n)


def test_n_is_ignored_and_topped_up(server: RealServer, tmp_path: Path) -> None:
    status, body = server.post(
        "/v1/chat/completions",
        {"model": str(server.model), "messages": list(ASK), "n": 4, "max_tokens": 8},
    )
    assert status == 200 and len(body["choices"]) == 1, (
        "this server has learned n: the test has lost its subject"
    )
    (first,), stats = asked(server, tmp_path / "a", request())
    assert [a.error for a in first] == [None] * 4 and len({a.text for a in first}) > 1
    assert stats.sent == 4 and stats.repeated == 0
    (again,), _ = asked(server, tmp_path / "b", request())
    assert [a.text for a in again] == [a.text for a in first]  # each by its own seed
    (log,), stats = asked(server, tmp_path / "a", request())
    assert log == first and stats.sent == 0


def test_logprobs_that_do_not_come_are_none(server: RealServer, tmp_path: Path) -> None:
    (answers,), _ = asked(server, tmp_path, request(n=1, logprobs=3))
    assert answers[0].error is None and answers[0].text and answers[0].logprobs is None


def test_json_that_does_not_come_is_no_verdict(server: RealServer, tmp_path: Path) -> None:
    """The model writes small talk where a verdict was asked for: None with a reason, never a
    number."""
    (answers,), _ = asked(server, tmp_path, request(n=3, schema=SCHEMA))
    for answer in answers:
        level, reason = verdict(answer)
        assert (level is None and reason in ("no_verdict", "cut_off")) or level in range(1, 6)
    assert any(verdict(a)[0] is None for a in answers)


def test_a_build(server: RealServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_file(tmp_path / "rows.jsonl", 2)
    sets = (
        "presample.enabled=false",
        "fuse.arms=[identity]",
        "rollout.n=3",
        "policy.max_tokens=16",
        "judge.max_tokens=16",
        "dimensions=[helpful]",
        "select.confirm=false",
        "policy.concurrency=2",
        "limits.max_error_share=1.0",
    )
    main(
        [
            "build",
            "--source",
            "jsonl",
            "--data",
            str(rows),
            "--base-url",
            server.base_url,
            "--model",
            str(server.model),
            "--out",
            str(tmp_path / "run"),
            "--json",
            "--until",
            "score",
            *(w for s in sets for w in ("--set", s)),
        ]
    )
    summary = json.loads(capsys.readouterr().out)
    assert summary["counts"]["rollout"] == {
        "in": 6,
        "kept": summary["counts"]["rollout"]["kept"],
        "dropped": summary["counts"]["rollout"]["dropped"],
    }
    for stage, c in summary["counts"].items():
        assert c["in"] == c["kept"] + sum(c["dropped"].values()), stage
    assert summary["requests"] >= 6 + 6 and summary["repeated"] == 0
