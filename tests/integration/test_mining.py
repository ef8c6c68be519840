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
from mora_data.errors import SettingsError
from mora_data.prompts.before import before_half
from mora_data.run.partitions import Partition
from mora_data.settings import load_settings
from mora_data.simulator.engine import prompt_kind
from mora_data.statistics import before

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


def test_planted_kinds_and_numbers_before(
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
    settings = load_settings("jsonl")
    ids, half = before_half([Partition(tmp_path, 0)], settings)
    assert ids == [p["prompt_id"] for p in prompts]
    for i in (0, 7, 50):
        odd = [
            [r[f"reward_{d}"] for d in settings.dimensions]
            for r in rollouts
            if r["prompt_id"] == ids[i] and r["index"] % 2
        ]
        np.testing.assert_array_equal(half.rewards_P_N_D[i, : len(odd)], np.array(odd, dtype=float))
        assert np.isnan(half.rewards_P_N_D[i, len(odd) :]).all()
        even = [r for r in rollouts if r["prompt_id"] == ids[i] and not r["index"] % 2]
        assert found[i]["n"] <= len(even) == len(odd)
    numbers = before(half, np.full(3, 0.75), np.full(3, 0.09))
    assert 0 <= np.nanmean(numbers.joint_P) <= 1
    with pytest.raises(SettingsError, match="use the identity arm"):
        before_half([], load_settings("jsonl", {"presample.split": False}))


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
