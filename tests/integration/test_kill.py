"""Death at any moment: the same command again ends with the same bytes, and nothing that was
answered is asked again."""

from __future__ import annotations

import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.command import (
    HANGS_S,
    asked_since,
    finish,
    finish_here,
    kill,
    parquet_hashes,
    rows_file,
    start,
    steady,
)
from support.fake_openai import FakeOpenAI

PROMPTS = 8
SLOTS = 32
KILLS = 20
SETTINGS = (
    "presample.n=[2,4]",
    "rollout.n=8",
    "fuse.arms=[identity]",
    "partition_size=2",
    "presample.accept=[flat,one_dim,conflict,multi,undecided]",
    f"policy.concurrency={SLOTS}",
    "presample.reference=8",
    "presample.repeat_share=0.2",
    "publish.configs=[preference, scored]",
)


def build(server: FakeOpenAI, where: Path, run: str = "run") -> list[str]:
    sets = [word for s in SETTINGS for word in ("--set", s)]
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
        run,
        *sets,
        "--json",
    ]


class Clean:
    """An uninterrupted run: its Parquet files and how many requests it needed."""

    def __init__(self, where: Path) -> None:
        rows_file(where / "rows.jsonl", PROMPTS)
        with FakeOpenAI(steady) as server:
            self.summary, _ = finish_here(build(server, where), where)
            assert server.repeated() == self.summary["repeated"] == 0
            self.needed = len(server.requests)
        self.files = parquet_hashes(where / "run")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    found = Clean(tmp_path_factory.mktemp("clean"))
    assert (
        found.summary["pairs"] >= PROMPTS // 4
        and found.summary["requests"] == found.needed > KILLS * 20
    )
    assert {"parts/00000/answers.parquet", "parts/00003/pairs.parquet"} <= found.files.keys()
    assert any(name.startswith("dataset/preference/") for name in found.files)
    return found


@contextmanager
def slow_server(where: Path, delay_s: float = 0.02) -> Iterator[FakeOpenAI]:
    rows_file(where / "rows.jsonl", PROMPTS)
    with FakeOpenAI(steady, delay_s=delay_s) as server:
        yield server


def quiet(err: str) -> None:
    """Nothing on stderr that a user should not see."""
    assert "Traceback" not in err and "never retrieved" not in err and "Warning" not in err, err


@pytest.mark.parametrize("kills", [4, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_of_asking(clean: Clean, tmp_path: Path, kills: int) -> None:
    rng = random.Random(20)
    with slow_server(tmp_path) as server:
        argv = build(server, tmp_path)
        for server.run in range(kills):
            before = len(server.requests)
            process = start(argv, tmp_path)
            asked_since(server, before, 1)
            asked_since(server, before, 1 + rng.randrange(clean.needed // kills))
            assert kill(process, signal.SIGKILL)[0] == -signal.SIGKILL
            server.drain()
            assert len(server.requests) > before
        server.run = kills
        summary, err = finish_here(argv, tmp_path)
        repeats = server.repeated_by_run()
        assert parquet_hashes(tmp_path / "run") == clean.files
        assert (
            all(n <= SLOTS for n in repeats.values()) and repeats[kills] == 0 == summary["repeated"]
        )
        assert len(server.answered_in) == len(server.requests) == clean.needed + server.repeated()
        assert (
            0 < summary["requests"] < clean.needed
            and summary["replayed"] > 0
            and summary["damaged"] == 0
        )
        quiet(err)


def died_then_again(clean: Clean, server: FakeOpenAI, where: Path) -> dict[str, Any]:
    """After any death: the same command ends like the clean run."""
    server.drain()
    server.run += 1
    summary, err = finish_here(build(server, where), where)
    assert parquet_hashes(where / "run") == clean.files
    assert (
        len(server.answered_in) == clean.needed + server.repeated()
        and server.repeated_by_run()[0] <= SLOTS
    )
    quiet(err)
    return summary


def wait_for_path(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    """Looks a thousand times a second, as the window is short."""
    while not there():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("parts/00000/answers.parquet", marks=pytest.mark.slow),
        "parts/00003/manifest.json",
        ".dataset.new",
        pytest.param(".dataset.new/scored", marks=pytest.mark.slow),
        "dataset",
    ],
)
def test_sigkill_while_sealing_and_publishing(clean: Clean, tmp_path: Path, what: str) -> None:
    with slow_server(tmp_path, delay_s=0.0) as server:
        process = start(build(server, tmp_path), tmp_path)
        wait_for_path(process, lambda: any((tmp_path / "run").glob(f"{what}*")))
        assert kill(process, signal.SIGKILL)[0] == -signal.SIGKILL
        summary = died_then_again(clean, server, tmp_path)
        assert summary["replayed"] > 0
        assert not [
            p
            for p in (tmp_path / "run").rglob("*")
            if p.suffix == ".tmp" or p.name.startswith(".dataset")
        ]


@pytest.mark.parametrize(
    ("how", "share"),
    [
        (signal.SIGINT, 0.6),
        (signal.SIGINT, 0.95),  # while the canaries are scored once more
        (signal.SIGTERM, 0),
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 0.95, marks=pytest.mark.slow),
    ],
)
def test_interrupt_keeps_what_was_answered_and_says_how_to_go_on(
    clean: Clean, tmp_path: Path, how: signal.Signals, share: float
) -> None:
    with slow_server(tmp_path) as server:
        process = start([*build(server, tmp_path), "--fresh"], tmp_path)
        asked_since(server, 0, max(1, int(share * clean.needed)))
        code, err = kill(process, how)
        assert code == 130
        quiet(err)
        said = [line for line in err.splitlines() if line.startswith("interrupted")]
        assert len(said) == 1
        again = shlex.split(said[0].partition("To go on: ")[2])
        assert again == ["mora-data", *build(server, tmp_path)]
        server.drain()
        server.run = 1
        finish_here(again[1:], tmp_path)
        assert parquet_hashes(tmp_path / "run") == clean.files
        # what was in flight is waited for; 3.10 has no orderly Ctrl-C
        lost = 0 if sys.version_info >= (3, 11) else SLOTS
        assert (
            len(server.answered_in) == clean.needed + server.repeated()
            and server.repeated() <= lost
        )


def test_two_processes_on_one_run_folder(clean: Clean, tmp_path: Path) -> None:
    with slow_server(tmp_path) as server:
        first = start(build(server, tmp_path), tmp_path)
        asked_since(server, 0, 1)
        _, err = finish(build(server, tmp_path), tmp_path, code=1)
        assert first.poll() is None
        lines = [line for line in err.splitlines() if line.startswith("mora-data: ")]
        assert (
            len(lines) == 1
            and "in use by another mora-data process" in lines[0]
            and "--out" in lines[0]
        )
        quiet(err)
        assert first.wait(HANGS_S) == 0
        first.communicate()
        assert parquet_hashes(tmp_path / "run") == clean.files and server.repeated() == 0


@pytest.mark.parametrize(
    "gap_s", [0.05, *(pytest.param(g / 100, marks=pytest.mark.slow) for g in range(0, 60, 5))]
)
def test_a_second_interrupt_ends_at_once(clean: Clean, tmp_path: Path, gap_s: float) -> None:
    with slow_server(tmp_path, delay_s=3) as server:
        # as users have it: what is not closed in time is no warning
        process = start(build(server, tmp_path), tmp_path, env={"PYTHONWARNINGS": ""})
        asked_since(server, 0, SLOTS)
        process.send_signal(signal.SIGINT)
        time.sleep(gap_s)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
        assert process.returncode == 130
        quiet(err)
        assert "Exception" not in err and err.count("interrupted; what was answered") == 1
