"""The whole of mini-MORA at toy size, as a user runs it: a base policy, a build, DPO, the
evaluation, the page. Slow."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.train,
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the train extra"),
]


def test_the_toy_experiment_runs_to_its_page_and_a_second_run_does_nothing_again(
    tmp_path: Path,
) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.mini_mora",
        "--scale",
        "toy",
        "--seeds",
        "1",
        "--out",
        str(tmp_path),
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    first = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert first.returncode == 0, first.stderr[-2000:]
    found = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert set(found["verdicts"]) == {"P1", "P2", "P4"} and min(found["pairs"]) > 0
    assert set(found["P2"]["means"]) == {"base", "identity", "fused", "identity_sum"}
    assert all(0 <= m["joint_pass"]["value"] <= 1 for m in found["P2"]["means"].values())
    assert "P2, training level" in first.stdout
    trained = json.loads(next((tmp_path / "steps").glob("dpo-*fused*.json")).read_text("utf-8"))
    assert trained["pairs"] == found["pairs"][0] and trained["steps"] > 0
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "steps").iterdir()}
    second = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert second.returncode == 0 and second.stdout == first.stdout
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "steps").iterdir()} == before
