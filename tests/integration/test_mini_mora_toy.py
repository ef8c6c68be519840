"""Mini-MORA at toy size, as a user runs it: a base policy, answers, pairs, DPO, tests, the tables.
Slow."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.train,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the train extra"),
]


def test_the_toy_experiment_runs_to_its_tables_and_a_second_run_does_nothing_again(
    tmp_path: Path,
) -> None:
    table = tmp_path / "toy.csv"

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "benchmarks.mini_mora", "--scale", "toy", *arguments]
        done = subprocess.run(
            [*command, "--out", str(tmp_path), "--results", str(table)],
            cwd=ROOT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    pieces = ("--piece", "added", "--piece", "simultaneous", "--piece", "rate")
    first = run(*pieces)
    rows = table.read_bytes()
    methods = (
        "base",
        "plain",
        "plain+fused",
        "plain+plain",
        "fused",
        "dims",
        "dims+fused",
        "dims+plain",
    )
    assert [x.partition(",")[0] for x in first.splitlines()[:8]] == list(methods)
    assert rows.count(b"\n") == 1 + 3 * len(methods)
    assert run(*pieces).count("joint") == 0 and table.read_bytes() == rows
    assert "| plain+fused - plain | 6 | 0.1 | held_out | 1 |" in run("--report")
