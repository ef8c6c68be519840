"""The main job over a real vLLM server: a tiny trained model is policy and judge, the rewriter is
simulated.

A random model cannot rewrite, and its verdicts are noise: how many pairs come out is luck, and none
is a correct result (then the build says so and exits 1). What must hold is the accounting, the
resume, and that nothing is lost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.real_server import RealServer

from mora_data.cli import main

pytestmark = pytest.mark.server

SMALL = [
    "--limit",
    "20",
    "--set",
    "policy.max_tokens=32",
    "--set",
    "presample.n=[2]",
    "--set",
    "presample.before=2",
    "--set",
    "rollout.n=4",
    "--set",
    "judge.max_tokens=64",
]


def build(
    server: RealServer, run: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    capsys.readouterr()
    code = main(
        [
            "build",
            "--source",
            "pku-saferlhf",
            "--sample",
            "--base-url",
            server.base_url,
            "--out",
            str(run),
            *SMALL,
            "--set",
            "rewriter.engine=scripted",
            "--json",
            *more,
        ]
    )
    out, err = capsys.readouterr()
    assert out, err
    summary: dict[str, Any] = json.loads(out)
    assert code == 0 or (code == 1 and summary["pairs"] == 0 and "no pair was selected" in err), err
    return summary


def test_build_reports_the_requests_that_the_server_saw(
    server: RealServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = server.requests_seen()
    summary = build(server, tmp_path / "run", capsys)
    assert server.requests_seen() - before == summary["requests"] > 300
    assert summary["repeated"] == 0
    # one model writes answers and verdicts: now and then an answer holds the verdict on it
    errors = (tmp_path / "run" / "errors.jsonl").read_text().splitlines()
    assert len(errors) == summary["errors"] <= 5, errors
    assert all("quoted_verdict" in line for line in errors), errors
    for stage, c in summary["counts"].items():
        assert c["in"] == c["kept"] + sum(c["dropped"].values()), stage
    assert summary["counts"]["rollout"]["in"] == 4 * summary["counts"]["fuse"]["kept"]
    assert (tmp_path / "run/dataset/README.md").is_file()

    again = build(server, tmp_path / "run", capsys)
    assert again["requests"] == 0 and server.requests_seen() - before == summary["requests"]
    assert again["pairs"] == summary["pairs"]


def test_more_rollouts_ask_only_the_new_ones(
    server: RealServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = (
        "--limit",
        "5",
        "--set",
        "presample={enabled: false}",
        "--set",
        "fuse.arms=[identity]",
        "--set",
        "select.confirm=false",
        "--set",
        "dimensions=[helpful]",
    )
    first = build(server, tmp_path / "run", capsys, *plain)
    texts = _texts(tmp_path / "run")
    grown = build(server, tmp_path / "run", capsys, *plain, "--set", "rollout.n=8")
    assert first["counts"]["rollout"]["in"] == 20 and grown["counts"]["rollout"]["in"] == 40
    assert grown["requests"] <= 5 + 20 and grown["repeated"] == 0
    assert {k: v for k, v in _texts(tmp_path / "run").items() if k in texts} == texts


def test_every_arm_with_the_model_as_rewriter_and_guard(
    server: RealServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a random model rewrites is refused by the checks, whatever it says; the counts and the
    guard's verdicts hold."""
    import pyarrow.parquet as pq

    small = (
        "--limit",
        "4",
        "--arms",
        "all",
        "--set",
        "fuse.checks=[harm,intent]",
        "--set",
        "fuse.retries=1",
        "--until",
        "fuse",
        "--set",
        "fuse.candidates=2",
    )
    for rewriter in ("openai", "scripted"):
        before = server.requests_seen()
        run = tmp_path / rewriter
        summary = build(
            server,
            run,
            capsys,
            *small,
            "--set",
            f"rewriter.engine={rewriter}",
            *(("--set", f"rewriter.base_url={server.base_url}") if rewriter == "openai" else ()),
        )
        assert server.requests_seen() - before == summary["requests"] and summary["errors"] == 0
        assert server.requests_seen("4xx") == server.requests_seen("5xx") == 0
        tries = pq.read_table(run / "parts/00000/fusions.parquet").to_pylist()
        counts = summary["counts"]["fuse"]
        assert (
            counts["in"]
            == 6 * summary["counts"]["presample"]["kept"]
            == counts["kept"] + sum(counts["dropped"].values())
        )
        assert tries and all(t["accepted"] or t["failed"] or t["candidate"] for t in tries)
        levels = [c["value"] for t in tries for c in t["checks"] if c["name"] in ("harm", "decoy")]
        assert all(v is not None for v in levels)
        assert levels or rewriter == "openai"


def test_a_judge_that_compares(
    server: RealServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny model's verdicts are noise, but each is one of the schema's; how often it names the
    same place is counted."""
    sources = {"helpful": [{"kind": "judge"}, {"kind": "pairwise", "opponents": 2}]}
    before = server.requests_seen()
    summary = build(
        server,
        tmp_path / "run",
        capsys,
        "--limit",
        "6",
        "--set",
        f"rewards={json.dumps(sources)}",
        "--set",
        "dimensions=[helpful]",
        "--set",
        "limits.max_error_share=0.5",
    )
    assert server.requests_seen() - before == summary["requests"]
    errors = (tmp_path / "run/errors.jsonl").read_text().splitlines()
    # the model may quote the answer's own words
    assert len(errors) == summary["errors"] and all("_verdict" in e for e in errors), errors
    assert server.requests_seen("4xx") == server.requests_seen("5xx") == 0
    feedback = json.loads((tmp_path / "run/feedback.json").read_text())
    found = feedback["sources"]["helpful"]["pairwise:pairwise"]["position"]
    print(found)
    assert found["games"] >= 6 * 4 and found["parse_rate"]["rate"] > 0.9
    assert (
        0 <= found["flips"]["low"] <= found["flips"]["rate"] <= found["flips"]["high"] <= 1
        and found["first"]["n"] > 0
    )
    assert "position flips (no pairwise judge)" not in feedback["not_measured"]


def _texts(run: Path) -> dict[tuple[str, int], str]:
    import pyarrow.parquet as pq

    rows = pq.read_table(
        run / "parts/00000/rollouts.parquet", columns=["prompt_id", "index", "text"]
    ).to_pylist()
    return {(r["prompt_id"], r["index"]): r["text"] for r in rows}


def test_the_server_is_checked(server: RealServer, capsys: pytest.CaptureFixture[str]) -> None:
    """vLLM takes everything that a build sends; what a random model says is no verdict."""
    assert main(["check", "--base-url", server.base_url, "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    print(json.dumps(checked, indent=1))
    assert checked["around"] == [] and checked["found"]["usage"] == "reported"
    assert checked["found"]["n"] == "3 of 3 choices in one request"
    assert checked["found"]["logprobs"] == "with alternatives"
