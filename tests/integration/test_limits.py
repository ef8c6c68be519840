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
                    "publish.configs=[preference, scored]",
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


def test_unknown_price_is_null_named_and_refuses_a_money_limit(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mora_data.run.cost.is_own", lambda url: False)
    with FakeOpenAI() as server:
        given = "--base-url", server.base_url, "--judge-model", "judge"
        code, summary, _ = build(*given)
        assert code == 0 and summary["cost"] is None and summary["unpriced"] == ["judge"]
        asked = len(server.requests)
        code, _, err = build(*given, "--max-cost", 1, "--fresh")
        assert code == 1 and "price of 'judge'" in err and len(server.requests) == asked
        code, found, _ = build(*given, "--dry-run")
        assert found["cost"] is None and found["unpriced"] == ["judge"]


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


def test_a_probe_measures_and_the_build_asks_nothing_again(build: Build, tmp_path: Path) -> None:
    rows_file(tmp_path / "rows.jsonl", 40)
    with FakeOpenAI() as server:
        given = "--base-url", server.base_url
        code, found, _ = build(*given, "--dry-run", "--probe")
        assert code == 0 and found["prompts"] == 40
        assert (found["probe"]["prompts"], found["probe"]["finished"]) == (16, 16)
        assert found["probe"]["requests"] == len(server.requests) == 16 * 13
        assert found["requests"] == (whole := [40 * 13, 40 * 13]), "each takes the same here"
        assert found["tokens_in"] == [40 * 130, 40 * 130]
        assert 0 < found["seconds"][0] <= found["seconds"][1] and found["cost"][0] > 0
        code, again, _ = build(*given, "--dry-run", "--probe")
        assert code == 0 and again["probe"]["requests"] == 0 and again["requests"] == whole
        assert again["probe"]["replayed"] == 16 * 16 and again["assumed_tokens_per_s"]
        code, plain, _ = build(*given, "--dry-run")
        assert code == 0 and "probe" not in plain and len(server.requests) == 16 * 13
        code, summary, _ = build(*given)
        assert code == 0 and server.repeated() == 0 and len(server.requests) == 40 * 13
        assert summary["requests"] == 24 * 13
    with FakeOpenAI() as other:
        build("--base-url", other.base_url, out="unprobed")
    fingerprints = [
        json.loads((tmp_path / run / "manifest.json").read_text())["fingerprint"]
        for run in ("run", "unprobed")
    ]
    assert fingerprints[0] == fingerprints[1], "a probe leaves nothing but answers"


def test_a_probe_that_ends_early_shows_what_it_measured(build: Build) -> None:
    with FakeOpenAI() as server:
        given = "--base-url", server.base_url, "--dry-run", "--probe", "--max-tokens"
        code, found, err = build(*given, TOKENS // 2)
        assert code == 1 and "limits.max_tokens" in found["failure"] and "is used up" in err
        assert err.splitlines()[-1].startswith("mora-data: limits.max_tokens = ")
        assert 0 < found["probe"]["finished"] < 12 and found["requests"][0] > 0
        code, found, _ = build(*given, TOKENS + 100)
        assert code == 0 and server.repeated() == 0 and len(server.requests) == REQUESTS
        assert found["requests"] == [REQUESTS, REQUESTS] and "failure" not in found


def test_mixed_local_and_hosted_models_have_a_money_limit(build: Build, tmp_path: Path) -> None:
    """The judge here is on a machine of one's own and has no price; the policy has one."""
    with FakeOpenAI() as server:
        given = "--base-url", server.base_url, "--judge-model", "judge", "--max-cost"
        code, first, err = build(*given, 0.5)
        assert code == 1 and "limits.max_cost = 0.5 USD is used up" in err
        code, rest, _ = build(*given, 5)
        assert code == 0 and server.repeated() == 0 and len(server.requests) == REQUESTS
    assert first["cost"] + rest["cost"] == pytest.approx(12 * (10 * 1000 + 4 * 5 * 2000) / 1e6)
    spent = json.loads((tmp_path / "run/spending.json").read_text())["models"]
    assert sorted(spent) == ["gen (local)", "judge (local)"]


@pytest.mark.parametrize("flags", [["--max-cost", "0"], ["--max-cost", "nan"], ["--max-tokens", 0]])
def test_a_limit_of_nothing_is_one_line(build: Build, tmp_path: Path, flags: list[object]) -> None:
    code, _, err = build("--base-url", "http://127.0.0.1:9/v1", *flags)
    assert code == 1 and err.count("\n") == 1 and "limits.max_" in err
    assert not (tmp_path / "run").exists()


def test_a_budget_that_ends_in_the_calibration_of_the_judges_goes_on(build: Build) -> None:
    with FakeOpenAI() as server:
        given = "--base-url", server.base_url, "--set", "presample.enabled=true", "--set"
        given = *given, "presample.n=[2]", "--set", "select.allow_unreliable=true"
        given = *given, "--set", "presample.canaries=0", "--until", "score"
        code, first, err = build(*given, "--max-tokens", TOKENS // 3)
        assert code == 1 and "limits.max_tokens" in err and "judge calibration" in err
        asked = len(server.requests)
        assert 0 < asked == first["requests"]
        code, _, _ = build(*given, "--max-tokens", 100 * TOKENS)
        assert code == 0 and server.repeated() == 0 and len(server.requests) > asked


def test_probe_needs_a_model_and_a_dry_run(build: Build) -> None:
    simulated = ("--set", "policy={engine: scripted}")
    code, _, err = build(*simulated, "--dry-run", "--probe")
    assert code == 1 and "--base-url" in err
    with pytest.raises(SystemExit):
        build("--base-url", "http://127.0.0.1:9/v1", "--probe")


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
