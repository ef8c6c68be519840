"""`batch.mode: files` with vLLM's own run-batch: the command that the build names is run as it
stands, but for the program."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.command import rows_file
from support.real_server import START_S, WHOLE_PROMPTS, vllm_python
from support.tiny import tiny_model

from mora_data.cli import main

pytestmark = pytest.mark.server


def test_a_wave_through_run_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_file(tmp_path / "rows.jsonl", 6)
    sets = (
        "presample.enabled=false",
        "fuse.arms=[identity]",
        "rollout.n=4",
        "policy.max_tokens=24",
        "policy.batch.mode=files",
    )
    build = [
        "build",
        "--source",
        "jsonl",
        "--data",
        str(rows),
        "--engine",
        "batch",
        "--model",
        str(tiny_model(vllm_python())),
        "--out",
        str(tmp_path / "run"),
        "--until",
        "rollout",
        "--json",
        *(w for s in sets for w in ("--set", s)),
    ]
    assert main(build) == 1
    command = re.search(
        r"6 requests are written: run `vllm run-batch (.+)`, then the same command again",
        capsys.readouterr().err,
    )
    assert command is not None
    _run_batch(command[1].split())
    assert main(build) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (
        found["counts"]["rollout"]["in"] == 24 and found["errors"] == 0 and found["requests"] == 0
    )
    assert len(_texts(tmp_path / "run")) > 12 and found["tokens"]["out"] > 100


def _run_batch(arguments: list[str]) -> None:
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    command = [
        vllm_python(),
        "-m",
        "vllm.entrypoints.openai.run_batch",
        *arguments,
        "--max-model-len",
        "1024",
        "--enforce-eager",
        "--dtype",
        "float32",
        *WHOLE_PROMPTS,
    ]
    done = subprocess.run(
        command,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=2 * START_S,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def _texts(run: Path) -> set[str]:
    import pyarrow.parquet as pq

    return {
        t
        for p in sorted(run.glob("parts/*/rollouts.parquet"))
        for t in pq.read_table(p, columns=["text"])["text"].to_pylist()
    }
