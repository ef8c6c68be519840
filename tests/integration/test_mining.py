"""Mining as a build runs it: planted kinds, numbers before fusion from fresh answers, budget,
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
from mora_data.simulator.language import interpret

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


def test_planted_kinds_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, tmp_path)
    prompts = [
        orjson.loads(line)
        for line in (tmp_path / "parts/00000/prompts.jsonl").read_bytes().splitlines()
    ]
    planted = {p["prompt_id"]: interpret(p["messages"][-1]["content"], True).kind for p in prompts}
    found = profiles(tmp_path)
    assert len(found) > 80 and np.mean([planted[p["prompt_id"]] == p["kind"] for p in found]) >= 0.9
    rollouts = pq.read_table(tmp_path / "parts/00000/rollouts.parquet").to_pylist()
    for p in found[::10]:
        arms = [r["arm"] for r in rollouts if r["prompt_id"] == p["prompt_id"]]
        assert p["n"] <= arms.count("presample")
        assert arms.count("before") == 8 * (p["kind"] != "multi")


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
        "presample.n=[4,8]",
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
        "presample.budget names stratum 'chemistry'; the strata of the mined prompts are" in err
        and "Traceback" not in err
    )


def test_fresh_answers_are_asked_for_prompts_that_go_on_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And for none where the identity arm gives the numbers before fusion."""
    settings = ["--limit", "20", "--until", "presample", "--set", "presample.n=[8,16]"]
    settings += ["--set", "presample.accept=[one_dim]", "--set", "scripted.n_prompts=0"]
    run(capsys, tmp_path, *settings, "--set", "presample.before=2")
    kinds = {p["prompt_id"]: p["kind"] for p in profiles(tmp_path)}
    rows = pq.read_table(tmp_path / "parts/00000/rollouts.parquet").to_pylist()
    fresh = [(r["prompt_id"], r["index"]) for r in rows if r["arm"] == "before"]
    went_on = {k for k, kind in kinds.items() if kind == "one_dim"}
    assert 2 < len(went_on) < len(kinds)
    assert sorted(fresh) == sorted((k, i) for k in went_on for i in (0, 1))
    again = run(capsys, tmp_path, *settings, "--arms", "identity,fused")
    assert again["requests"] == 0 == again["repeated"]
    kept = pq.read_table(tmp_path / "parts/00000/rollouts.parquet").to_pylist()
    assert not [r for r in kept if r["arm"] == "before"]


def test_of_many_prompts_some_are_asked_for_the_numbers_before_fusion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else depends on which."""
    settings = ["--limit", "32", "--until", "select", "--set", "scripted.n_prompts=0"]
    settings += ["--set", "rollout.n=4"]
    found = {}
    for few in ("8", "null"):
        out = tmp_path / few
        run(capsys, out, *settings, "--set", f"presample.before_prompts={few}")
        rows = pq.read_table(out / "parts/00000/rollouts.parquet").to_pylist()
        before = {r["prompt_id"] for r in rows if r["arm"] == "before"}
        found[few] = before, [r for r in rows if r["arm"] != "before"]
    (some, rest), (every, same) = found["8"], found["null"]
    assert some < every and 3 <= len(some) <= 13 and rest == same
    assert json.loads((tmp_path / "8/reference.json").read_text())["before_share"] == 0.25


def test_early_stopping_in_a_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        "--set",
        "presample.step=8",
        "--set",
        "presample.n=[8,16]",
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
        per_prompt[r["prompt_id"]] += r["arm"] == "presample"
    assert set(per_prompt.values()) == {8, 16}
    reference = json.loads((tmp_path / "reference.json").read_text())
    assert set(reference["prior"]) == {"helpful", "harmless", "truthful"}
    assert run(capsys, tmp_path, *settings)["requests"] == 0
