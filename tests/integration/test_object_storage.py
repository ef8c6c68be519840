"""A run folder behind a URL: killed on one machine, finished on another, read on a third; the bytes
of an ordinary folder."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from support.command import asked_since, finish_here, kill, parquet_hashes, rows_file, start, steady
from support.fake_openai import FakeOpenAI

SLOTS = 16


def argv(server: FakeOpenAI, out: str) -> list[str]:
    sets = (
        "presample.n=[2,4]",
        "rollout.n=8",
        "fuse.arms=[identity]",
        "partition_size=4",
        f"policy.concurrency={SLOTS}",
        "presample.accept=[flat,one_dim,conflict,multi,undecided]",
        "presample.reference=4",
    )
    return [
        "build",
        "--source",
        "jsonl",
        "--data",
        "rows.jsonl",
        "--base-url",
        server.base_url,
        "--model",
        "gen",
        "--judge-model",
        "judge",
        "--out",
        out,
        *[word for s in sets for word in ("--set", s)],
        "--json",
    ]


def machine(where: Path, name: str) -> dict[str, str]:
    """The environment of a machine with a cache of its own."""
    return {"MORA_DATA_CACHE": str(where / name)}


def test_interrupted_here_finished_there(tmp_path: Path) -> None:
    rows_file(tmp_path / "rows.jsonl", 12)
    url = f"file://{tmp_path}/bucket/run"
    with FakeOpenAI(steady, delay_s=0.01) as server:
        needed = finish_here(argv(server, "plain"), tmp_path)[0]["requests"]
        server.requests.clear()
        server.answered.clear()
        process = start(argv(server, url), tmp_path, env=machine(tmp_path, "one"))
        asked_since(server, 0, needed // 2)
        code, said = kill(process, signal.SIGINT)
        assert code == 130 and f"--out {url}" in said and "Traceback" not in said
        assert list((tmp_path / "bucket/run").glob("parts/*/answers.log/000000-*"))
        summary, said = finish_here(argv(server, url), tmp_path, env=machine(tmp_path, "two"))
        assert parquet_hashes(tmp_path / "bucket/run") == parquet_hashes(tmp_path / "plain")
        assert (
            summary["replayed"] > 0
            and len(server.requests) == needed + server.repeated()
            and server.repeated() == 0
        )
        assert not list((tmp_path / "bucket/run").rglob("answers.log")) and "working copy" in said
        before = len(server.requests)
        for name in ("one", "three"):
            found, _ = finish_here(["status", url, "--json"], tmp_path, env=machine(tmp_path, name))
            assert found["status"] == "done" and found["partitions_sealed"] == 3
        finish_here(["report", url], tmp_path, env=machine(tmp_path, "three"))
        assert (
            json.loads((tmp_path / "bucket/run/report.json").read_text())["verdict"]
            and len(server.requests) == before
        )
