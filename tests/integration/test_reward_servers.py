"""A build whose rewards are models on servers of their own: counted, resumed, asked anew only for
what a setting changes."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.fake_openai import FakeOpenAI, Fault

from mora_data.cli import main


def cost(body: dict[str, Any]) -> list[float]:
    """A cost of -4 to 4 by the text."""
    return [
        zlib.crc32(json.dumps(body["messages"] if "messages" in body else body["input"]).encode())
        % 9
        - 4.0
    ]


def build(
    server: FakeOpenAI, out: Path, capsys: pytest.CaptureFixture[str], *more: str, code: int = 0
) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    reward = (
        "rewards.harmless=[{kind: classifier, family: beaver-cost, "
        f"endpoint: {{base_url: '{server.base_url}', model: cost}}}}]"
    )
    argv = [
        "build",
        "--source",
        "pku-saferlhf",
        "--sample",
        "--engine",
        "scripted",
        "--limit",
        "12",
        "--out",
        str(out),
        "--json",
        "--set",
        reward,
        "--set",
        "presample.n=[2]",
        "--set",
        "rollout.n=8",
        "--set",
        "fuse.arms=[identity]",
        "--set",
        "publish.configs=[preference, scored]",
        "--set",
        "dimensions=[helpful, harmless]",
        *more,
    ]
    got = main(argv)
    printed, err = capsys.readouterr()
    assert got == code, err
    return (json.loads(printed) if printed else {}), err


def scores(run: Path) -> list[dict[str, Any]]:
    return [
        r
        for p in sorted((run / "parts").glob("*/scores.parquet"))
        for r in pq.read_table(p).to_pylist()
    ]


def test_scores_of_a_server_are_counted_kept_and_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeOpenAI(rates=cost) as server:
        summary, _ = build(server, tmp_path, capsys)
        n = len(server.requests)
        assert (
            summary["requests"] == n > 100
            and set(server.paths) == {"/classify"}
            and summary["pairs"] > 0
        )
        assert all(
            body["model"] == "cost"
            and body["use_activation"] is False
            and body["input"].count(" ASSISTANT:") == 1
            for body in server.requests
        )
        found = [s for s in scores(tmp_path) if s["dimension"] == "harmless"]
        assert {s["source"] for s in found} == {"beaver-cost:cost@cost"} and all(
            -4 <= s["raw"] <= 4 for s in found
        )
        assert all((s["value"] >= 0.5) == (s["raw"] >= 0) for s in found)
        again, _ = build(server, tmp_path, capsys)
        assert (
            again["requests"] == 0
            and len(server.requests) == n
            and again["pairs"] == summary["pairs"]
        )
        other, _ = build(server, tmp_path, capsys, "--set", "select.pairs_per_prompt=2")
        # only further candidates are confirmed
        assert other["requests"] <= n // 2 and other["repeated"] == 0


def test_a_failing_text_is_counted_and_never_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(body: dict[str, Any], time: int) -> Fault | None:
        return (
            Fault(status=400, body=b'{"error": {"message": "no chat template"}}')
            if cost(body) == [4.0]
            else None
        )

    with FakeOpenAI(
        script, rates=lambda body: [float("inf")] if cost(body) == [3.0] else cost(body)
    ) as server:
        summary, _ = build(server, tmp_path, capsys, "--set", "limits.max_error_share=1")
    lost = [s for s in scores(tmp_path) if s["value"] is None]
    assert {s["reason"] for s in lost} == {"HTTP 400: no chat template", "not_finite"} and all(
        s["raw"] is None for s in lost
    )
    c = summary["counts"]["score"]
    assert c["in"] == c["kept"] + c["dropped"]["unscored"] and summary["errors"] == len(lost) > 0


def test_an_old_run_asks_a_new_label_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The raw outputs are in the log: another reading of them costs no request."""
    with FakeOpenAI(rates=lambda body: [*cost(body), 1.0]) as server:
        url = server.base_url
        for label in ("a", "b"):
            reward = (
                f"rewards.harmless=[{{kind: classifier, labels: [a, b], label: {label}, activation:"
                f" softmax, endpoint: {{base_url: '{url}', model: two}}}}]"
            )
            before = len(server.requests)
            build(server, tmp_path, capsys, "--until", "score", "--set", reward)
            assert (len(server.requests) == before) == (label == "b")


def test_the_simulator_is_no_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "build",
        "--source",
        "pku-saferlhf",
        "--sample",
        "--engine",
        "scripted",
        "--limit",
        "3",
        "--out",
        str(tmp_path),
        "--set",
        "rewards.harmless=[{kind: classifier, family: beaver-cost}]",
    ]
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert (
        "the simulator is no classifier, and judge asks for one: give the reward an `endpoint`"
        in err
        and "Traceback" not in err
    )


def test_a_dead_reward_server_stops_the_run_with_its_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mora_data.engines.openai.NEVER_ANSWERED_S", 0.0)
    with FakeOpenAI() as server:
        _, err = build(server, tmp_path, capsys, code=1)  # a chat server: it has no /classify
    assert (
        "check the reward's `endpoint`: it has to be a server with /classify" in err
        and err.count("mora-data: ") == 1
    )
    with FakeOpenAI(rates=cost) as server:
        summary, _ = build(server, tmp_path, capsys)
    assert summary["pairs"] > 0


def test_published_settings_hold_no_url_of_a_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeOpenAI(rates=cost) as server:
        build(server, tmp_path, capsys)
        told = [
            p
            for p in (tmp_path / "dataset").rglob("*")
            if p.is_file() and f"127.0.0.1:{server.port}" in p.read_text("utf-8", "replace")
        ]
    assert told == []
