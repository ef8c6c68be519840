"""Mining as a build runs it: planted kinds, numbers before fusion from the other half, budget,
early stopping."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from mora_data.cli import main
from mora_data.simulator.engine import prompt_kind

BUILD = [
    "build",
    "--source",
    "jsonl",
    "--sample",
    "--set",
    "scripted.n_prompts=60",
    "--until",
    "presample",
    "--json",
]


def run(capsys: pytest.CaptureFixture[str], out: Path, *more: str) -> dict[str, Any]:
    assert main([*BUILD, "--out", str(out), *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def profiles(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "parts/00000/profiles.parquet").to_pylist()


def test_planted_kinds_are_found_by_half_of_the_presamples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, tmp_path)
    prompts = [
        orjson.loads(line)
        for line in (tmp_path / "parts/00000/prompts.jsonl").read_bytes().splitlines()
    ]
    planted = {p["prompt_id"]: prompt_kind(p["messages"][-1]["content"]) for p in prompts}
    found = profiles(tmp_path)
    assert len(found) > 80 and np.mean([planted[p["prompt_id"]] == p["kind"] for p in found]) >= 0.9
    rollouts = pq.read_table(tmp_path / "parts/00000/rollouts.parquet").to_pylist()
    for p in found[::10]:
        indices = [r["index"] for r in rollouts if r["prompt_id"] == p["prompt_id"]]
        assert p["n"] <= sum(i % 2 == 0 for i in indices) == len(indices) / 2


def test_a_budget_is_frozen_and_asks_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "--set",
        "presample.budget=30",
        "--set",
        "presample.reference=40",
        "--set",
        "mine.strata=none",
        "--set",
        "presample.n=[8,16]",
    ]
    first = run(capsys, tmp_path, *settings)
    counts = first["counts"]["presample"]
    assert counts["in"] == counts["kept"] + sum(counts["dropped"].values())
    assert counts["dropped"]["over_budget"] > 10 and 15 <= counts["kept"] <= 45
    frozen = (tmp_path / "reference.json").read_bytes()
    assert json.loads(frozen)["mining"]["all"]["n"] == 40
    again = run(capsys, tmp_path, *settings)
    assert (again["requests"], again["counts"]) == (0, first["counts"]) and (
        tmp_path / "reference.json"
    ).read_bytes() == frozen
    assert first["repeated"] == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["reference"]["mining"]["all"]["expected"] > 30


def test_a_budget_for_an_unknown_stratum_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [
        "--set",
        "presample.budget={chemistry: 5}",
        "--set",
        "presample.n=[4]",
        "--limit",
        "8",
        "--out",
        str(tmp_path),
    ]
    assert main([*BUILD, *more]) == 1
    err = capsys.readouterr().err
    assert (
        "presample.budget names stratum 'chemistry'; the mined prompts have" in err
        and "Traceback" not in err
    )


def test_what_decides_nothing_is_scored_for_prompts_that_go_on_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is not scored at all where the identity arm gives the numbers before fusion."""
    settings = ["--limit", "20", "--until", "presample", "--set", "presample.n=[16,32]"]
    settings += ["--set", "presample.accept=[one_dim]", "--set", "scripted.n_prompts=0"]
    run(capsys, tmp_path, *settings, "--set", "presample.before=2")
    kinds = {p["prompt_id"]: p["kind"] for p in profiles(tmp_path)}
    scored: dict[str, list[int]] = {prompt_id: [] for prompt_id in kinds}
    for r in pq.read_table(tmp_path / "parts/00000/rollouts.parquet").to_pylist():
        if r["reward_helpful"] is not None and r["index"] % 2:
            scored[r["prompt_id"]].append(r["index"])
    went_on = {k for k, kind in kinds.items() if kind == "one_dim"}
    assert 2 < len(went_on) < len(kinds) and {k for k, at in scored.items() if at} == went_on
    assert {i for at in scored.values() for i in at} == {1, 3}
    again = run(capsys, tmp_path, *settings, "--arms", "identity,fused")
    assert again["requests"] == 0 == again["repeated"]
    kept = pq.read_table(tmp_path / "parts/00000/rollouts.parquet").to_pylist()
    assert not [r for r in kept if r["reward_helpful"] is not None and r["index"] % 2]


def test_early_stopping_in_a_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        "--set",
        "presample.step=16",
        "--set",
        "presample.n=[16,32]",
        "--limit",
        "30",
        "--set",
        "scripted.n_prompts=0",
    ]
    run(capsys, tmp_path, *settings)
    assert {p["kind"] for p in profiles(tmp_path)} <= {
        "flat",
        "one_dim",
        "conflict",
        "multi",
        "undecided",
    }
    asked = pq.read_table(tmp_path / "parts/00000/rollouts.parquet").to_pylist()
    per_prompt = {p["prompt_id"]: 0 for p in profiles(tmp_path)}
    for r in asked:
        per_prompt[r["prompt_id"]] += 1
    assert set(per_prompt.values()) == {16, 32}
    reference = json.loads((tmp_path / "reference.json").read_text())
    assert set(reference["prior"]) == {"helpful", "harmless", "truthful"}
    assert run(capsys, tmp_path, *settings)["requests"] == 0
