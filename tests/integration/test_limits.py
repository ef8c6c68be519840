"""Limits and replicas as a user gives them: on the command line, over several commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command import rows_file
from support.fake_openai import FakeOpenAI, Fault

from mora_data.cli import main

SLOTS = 8
Build = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Build:
    """Runs a plain build of 12 prompts; (exit code, its JSON, stderr)."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    data = rows_file(tmp_path / "rows.jsonl", 12)
    (tmp_path / "prices.yaml").write_text(
        "currency: USD\nmodels: {gen: {in: 1000, cached: 500, out: 2000}}"
    )

    def run(*more: object, out: str = "run") -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        code = main(
            [
                str(a)
                for a in (
                    "build",
                    "--source",
                    "jsonl",
                    "--data",
                    data,
                    "--model",
                    "gen",
                    "--out",
                    tmp_path / out,
                    "--set",
                    "rollout.n=4",
                    "--set",
                    "presample.enabled=false",
                    "--set",
                    "fuse.arms=[identity]",
                    "--set",
                    "select.confirm=false",
                    "--set",
                    f"policy.concurrency={SLOTS}",
                    "--set",
                    f"limits.prices={tmp_path / 'prices.yaml'}",
                    "--json",
                    *more,
                )
            ]
        )
        said, err = capsys.readouterr()
        return code, json.loads(said) if said.strip() else {}, err

    return run


REQUESTS = 12 * (1 + 4 * 3)
TOKENS = 12 * (10 + 4 * 5 + 4 * 3 * 15)


def test_cost_in_summary_and_manifest(build: Build, tmp_path: Path) -> None:
    with FakeOpenAI(lambda b, t: Fault(cached=6)) as server:
        code, summary, _ = build("--base-url", server.base_url)
    assert code == 0 and summary["tokens"] == {
        "in": 10 * REQUESTS,
        "out": TOKENS - 10 * REQUESTS,
        "cached": 6 * REQUESTS,
    }
    tokens = summary["tokens"]
    assert summary["cost"] == pytest.approx(
        (tokens["in"] - tokens["cached"] / 2 + 2 * tokens["out"]) / 1000
    )
    assert json.loads((tmp_path / "run/manifest.json").read_text())["cost"] == summary["cost"]
    assert 0 < summary["slots_busy"] <= 1 and summary["replicas_out"] == {}


@pytest.mark.parametrize("limit", ["--max-tokens", "--max-cost"])
def test_stops_on_the_reply_that_is_too_much_and_goes_on_with_a_higher_limit(
    build: Build, tmp_path: Path, limit: str
) -> None:
    with FakeOpenAI() as clean:
        _, whole, _ = build("--base-url", clean.base_url, out="whole")
    enough, some = (
        (TOKENS + 1, 600) if limit == "--max-tokens" else (whole["cost"] + 0.01, whole["cost"] / 4)
    )
    with FakeOpenAI() as server:
        code, first, err = build("--base-url", server.base_url, limit, some)
        said = [line for line in err.splitlines() if line.startswith("mora-data: ")]
        assert code == 1 and len(said) == 1 and f"({limit})" in said[0] and "is used up" in said[0]
        used = (
            sum(first["tokens"][k] for k in ("in", "out"))
            if limit == "--max-tokens"
            else first["cost"]
        )
        most = SLOTS * (30 if limit == "--max-tokens" else 0.05)
        assert some <= used <= some + most, "what is in flight comes on top, and no more"
        asked = len(server.requests)
        code, again, _ = build("--base-url", server.base_url, limit, some)
        assert code == 1 and again["requests"] == 0 and len(server.requests) == asked
        code, rest, _ = build("--base-url", server.base_url, limit, enough)
        assert code == 0 and server.repeated() == 0 and len(server.requests) == REQUESTS
        assert first["requests"] + rest["requests"] == REQUESTS
    assert json.loads((tmp_path / "run/manifest.json").read_text())["cost"] == pytest.approx(
        whole["cost"]
    )


def test_what_was_finalized_before_counts_as_replayed_where_a_limit_stops_the_build(
    build: Build, tmp_path: Path
) -> None:
    with FakeOpenAI() as server:
        given = "--base-url", server.base_url, "--set", "partition_size=1", "--max-tokens"
        assert build(*given, TOKENS // 2)[0] == 1
        done = (tmp_path / "run/parts").glob("*/manifest.json")
        finalized = sum(json.loads(p.read_text())["answers"] for p in done)
        code, again, _ = build(*given, TOKENS * 3 // 4)
        assert code == 1 and 0 < finalized <= again["replayed"]


def test_unknown_price_is_null_and_refuses_a_money_limit(build: Build, tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        code, summary, _ = build("--base-url", server.base_url, "--judge-model", "judge")
        assert code == 0 and summary["cost"] is None
        asked = len(server.requests)
        code, _, err = build(
            "--base-url", server.base_url, "--judge-model", "judge", "--max-cost", 1, "--fresh"
        )
        assert code == 1 and "price of 'judge'" in err and len(server.requests) == asked


@pytest.mark.parametrize("commas", [True, False])
def test_replicas_on_the_command_line(build: Build, commas: bool) -> None:
    with FakeOpenAI(delay_s=0.002) as one, FakeOpenAI(delay_s=0.002) as two:
        urls = [one.base_url, two.base_url]
        given = (
            ["--base-url", ",".join(urls)]
            if commas
            else [x for u in urls for x in ("--base-url", u)]
        )
        code, summary, _ = build(*given)
        assert (
            code == 0 and summary["requests"] == len(one.requests) + len(two.requests) == REQUESTS
        )
        assert min(len(one.requests), len(two.requests)) > REQUESTS / 4


def test_replicas_do_not_change_the_keys(build: Build) -> None:
    with FakeOpenAI() as one, FakeOpenAI() as two:
        build("--base-url", one.base_url)
        code, summary, _ = build("--base-url", two.base_url, "--base-url", one.base_url)
        assert code == 0 and summary["requests"] == 0 and not two.requests


def test_a_replica_dies_and_the_build_says_so(build: Build) -> None:
    with FakeOpenAI() as one:
        dead = one.base_url
    with FakeOpenAI() as two:
        code, summary, _ = build("--base-url", two.base_url, "--base-url", dead)
        assert code == 0 and summary["errors"] == 0 and len(two.requests) == REQUESTS
        assert (
            list(summary["replicas_out"]) == [dead] and "refused" in summary["replicas_out"][dead]
        )


def test_another_model_answers(build: Build) -> None:
    with FakeOpenAI(lambda b, t: Fault(model="gen-mini"), models=("gen-mini",)) as server:
        code, _, err = build("--base-url", server.base_url)
        assert (
            code == 1
            and "answers as 'gen-mini' where 'gen' was asked" in err
            and "served_as" in err
        )
        assert len(server.requests) <= SLOTS
        code, summary, _ = build(
            "--base-url", server.base_url, "--set", "policy.served_as=[gen-mini]"
        )
        assert code == 0 and summary["replayed"] == 0


@pytest.mark.parametrize("name", ["GEN", "org/gen", "gen-2025-01-01"])
def test_a_snapshot_of_the_model_is_the_model(build: Build, name: str) -> None:
    with FakeOpenAI(lambda b, t: Fault(model=name)) as server:
        assert build("--base-url", server.base_url)[0] == 0


def test_probe_measures_what_a_dry_run_guesses(build: Build, tmp_path: Path) -> None:
    """All requests of the whole build lie in the probe's interval; nothing is left behind."""
    before = sorted(p.name for p in tmp_path.iterdir())
    rows_file(tmp_path / "rows.jsonl", 40)
    with FakeOpenAI() as server:
        code, found, _ = build("--base-url", server.base_url, "--dry-run", "--probe")
        assert code == 0 and found["prompts"] == 40 and found["probe"]["prompts"] == 16
        assert found["probe"]["requests"] == len(server.requests) == 16 * 13
        assert found["requests"] == [40 * 13, 40 * 13], "every prompt takes the same here"
        assert found["tokens_in"] == [40 * 130, 40 * 130]
        assert 0 < found["seconds"][0] <= found["seconds"][1] and found["cost"][0] > 0
        assert set(found["from_probe"]) == {
            "requests",
            "tokens_in",
            "tokens_out",
            "cost",
            "seconds",
        }
        assert sorted(p.name for p in tmp_path.iterdir()) == before
        server.requests.clear()
        code, plain, _ = build("--base-url", server.base_url, "--dry-run")
        assert code == 0 and "probe" not in plain and not server.requests


def test_probe_needs_a_model_and_a_dry_run(build: Build) -> None:
    code, _, err = build("--engine", "scripted", "--dry-run", "--probe")
    assert code == 1 and "--base-url" in err
    code, _, err = build("--base-url", "http://127.0.0.1:9/v1", "--probe")
    assert code == 1 and "--dry-run" in err


def test_a_damaged_log_is_named_and_asked_again(build: Build, tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        assert build("--base-url", server.base_url, "--max-tokens", 1000)[0] == 1
        log = tmp_path / "run/parts/00000/answers.log"
        raw = bytearray(log.read_bytes())
        raw[len(raw) // 2] ^= 1
        log.write_bytes(bytes(raw))
        code, summary, err = build("--base-url", server.base_url, "--max-tokens", TOKENS + 100)
        assert code == 0 and 1 <= summary["damaged"] == server.repeated() <= 2
        assert (
            f"{summary['damaged']} damaged lines in the answer logs of {tmp_path / 'run'}/parts"
            in err
        )
