"""What a real vLLM computes of the judge's prompts, by its own counters: the rule of
tests/unit/test_prefixes.py against a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.real_server import RealServer, vllm_python
from support.tiny import tiny_model

from mora_data.cli import main

pytestmark = pytest.mark.server

SMALL = (
    "policy.engine=scripted",
    "rewriter.engine=scripted",
    "judge.model=tiny",
    "judge.max_tokens=16",
    "presample.n=[8]",
    "rollout.n=32",
    "presample.accept=[flat,one_dim,conflict,multi,undecided]",
    "limits.max_error_share=0.5",
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealServer]:
    """With blocks of 32 tokens, the smallest that vLLM has on the CPU; on a GPU they have 16."""
    flags = ("--block-size", "32")
    with RealServer(tiny_model(vllm_python()), tmp_path / "log", flags=flags) as running:
        yield running


def counted(server: RealServer) -> tuple[float, float]:
    """Prompt tokens looked up in the prefix cache, and those found there."""
    metrics = server.metrics()
    queries, hits = (
        sum(v for k, v in metrics.items() if k.startswith(f"vllm:prefix_cache_{what}_total"))
        for what in ("queries", "hits")
    )
    return queries, hits


def test_a_real_server_computes_at_most_three_tenths_of_the_judges_prompts(
    server: RealServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent, found = counted(server)
    seen = server.requests_seen()
    command = ["build", "--source", "pku-saferlhf", "--sample", "--limit", "8"]
    sets = [*SMALL, f"judge.base_url={server.base_url}"]
    command += [word for s in sets for word in ("--set", s)]
    code = main([*command, "--until", "score", "--out", str(tmp_path / "run"), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    summary = json.loads(out)
    assert server.requests_seen() - seen > 800 and summary["errors"] == 0
    sent, found = (
        after - before for after, before in zip(counted(server), (sent, found), strict=True)
    )
    print(f"{sent:.0f} prompt tokens, computed {1 - found / sent:.3f}", summary["retries"])
    assert 1 - found / sent <= 0.3
