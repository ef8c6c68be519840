"""A build on a Ray cluster: the bytes of the one-machine build, whatever dies, and the same folder
for both executors."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import (
    ROOT,
    asked_since,
    environment,
    finish,
    finish_here,
    kill,
    parquet_hashes,
    rows_file,
    start,
    steady,
)
from support.fake_openai import FakeOpenAI
from support.poison import KILLS, RAISES

from benchmarks.nodes import QUIET, Nodes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -e '.[ray]'"
)

PROMPTS, SLOTS, PARTS = 24, 4, 6
SETTINGS = (
    "presample.n=[2,4]",
    "rollout.n=8",
    "fuse.arms=[identity]",
    f"partition_size={PROMPTS // PARTS}",
    "presample.accept=[flat,one_dim,conflict,multi,undecided]",
    "presample.reference=4",
)
SIMULATED = ("--engine", "scripted", "--arms", "fused")
TWO = ("--executor", "ray", "--set", "ray.workers=2")
ENV = {**QUIET, "PYTHONWARNINGS": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def scripted(run: str, *more: str) -> list[str]:
    sets = [word for s in SETTINGS for word in ("--set", s)]
    return [
        "build",
        "--source",
        "jsonl",
        "--data",
        "rows.jsonl",
        "--out",
        run,
        *sets,
        "--json",
        *more,
    ]


def build(server: FakeOpenAI, run: str, *more: str) -> list[str]:
    models = ("--base-url", server.base_url, "--model", "gen", "--judge-model", "judge")
    return scripted(run, *models, "--set", f"policy.concurrency={SLOTS}", *more)


def poisoned(where: Path) -> list[str]:
    """Rows of which one raises and one kills, in partitions 1 and 3; the engine that does it."""
    rows = [f"How do I repair item {i} of the old clock?" for i in range(PROMPTS)]
    rows[PROMPTS // PARTS], rows[3 * PROMPTS // PARTS] = (
        f"How do I repair {RAISES}?",
        f"How do I repair {KILLS}?",
    )
    (where / "rows.jsonl").write_text("".join(json.dumps({"prompt": r}) + "\n" for r in rows))
    return [
        "--set",
        "policy.engine=support.poison:opened",
        "--set",
        "judge.engine=scripted",
        "--set",
        "limits.max_error_share=1",
    ]


def test_two_workers_make_the_bytes_of_one_process(tmp_path: Path) -> None:
    rows_file(tmp_path / "rows.jsonl", PROMPTS)
    there, said = finish(scripted("ray", *SIMULATED, *TWO), tmp_path, env=ENV)
    here, _ = finish_here(scripted("local", *SIMULATED), tmp_path)
    files = parquet_hashes(tmp_path / "ray")
    assert files == parquet_hashes(tmp_path / "local") and len(files) >= PARTS * 7
    kept = (
        "counts",
        "pairs",
        "requests",
        "repeated",
        "replayed",
        "tokens",
        "cost",
        "errors",
        "damaged",
    )
    assert {k: there[k] for k in kept} == {k: here[k] for k in kept} and "Ray: 1 nodes" in said
    assert (tmp_path / "ray/build.yaml").read_bytes() == (
        tmp_path / "local/build.yaml"
    ).read_bytes()


@pytest.mark.slow
def test_poisoned_partitions_are_listed_and_the_rest_is_what_one_machine_makes(
    tmp_path: Path,
) -> None:
    engine = [*poisoned(tmp_path), "--arms", "fused"]
    sick, said = finish(scripted("ray", *engine, *TWO), tmp_path, env=ENV)
    n = PROMPTS // PARTS
    assert (
        sick["counts"]["presample"]["dropped"] == {"poisoned": 2 * n}
        and sick["counts"]["presample"]["in"] == PROMPTS
    )
    errors = [json.loads(line) for line in (tmp_path / "ray/errors.jsonl").read_text().splitlines()]
    assert sick["errors"] == len(errors) == 2 * n and {e["stage"] for e in errors} == {"partition"}
    whys = {e["error"] for e in errors}
    assert any(
        "partition 00001 was given up after 3 tries: ValueError: this row breaks the code" in w
        for w in whys
    )
    assert any(
        "partition 00003 was given up after 3 tries: worker died: its process ended" in w
        for w in whys
    )
    assert "Traceback" not in said and "its prompts are in errors.jsonl" in said
    assert 0 < sick["pairs"] <= PROMPTS - 2 * n and (tmp_path / "ray/report.html").exists()
    rows_file(tmp_path / "rows.jsonl", PROMPTS)
    finish(scripted("local", *engine), tmp_path, env=ENV)
    ours, theirs = (parquet_hashes(tmp_path / run) for run in ("ray", "local"))
    fine = [
        name
        for name in theirs
        if name.startswith("parts/") and name[6:11] not in ("00001", "00003")
    ]
    assert len(fine) == 4 * 7 and all(ours[name] == theirs[name] for name in fine)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with Nodes(2, environment(tmp_path_factory.mktemp("home"), **ENV)) as up:
        yield up


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], int]:
    """The Parquet files of a build on one machine, and how many requests it needed."""
    where = tmp_path_factory.mktemp("clean")
    rows_file(where / "rows.jsonl", PROMPTS)
    with FakeOpenAI(steady) as server:
        summary, _ = finish(build(server, "run"), where)
        assert summary["requests"] == len(server.requests) > 500
        return parquet_hashes(where / "run"), len(server.requests)


def on(nodes: Nodes, *more: str) -> list[str]:
    return ["--executor", "ray", "--set", f"ray.address={nodes.address}", *more]


@pytest.mark.slow
def test_two_nodes_make_the_same_bytes_and_count_the_same(
    clean: tuple[dict[str, str], int], nodes: Nodes, tmp_path: Path
) -> None:
    rows_file(tmp_path / "rows.jsonl", PROMPTS)
    with FakeOpenAI(steady) as server:
        summary, said = finish(build(server, "run", *on(nodes)), tmp_path, env=ENV)
        assert parquet_hashes(tmp_path / "run") == clean[0]
        assert (
            summary["requests"] == len(server.requests) == clean[1]
            and server.repeated() == summary["repeated"] == 0
        )
        assert summary["replayed"] == 0 and "Ray: 2 nodes" in said
        # the other executor finds nothing left to do
        again, _ = finish(build(server, "run"), tmp_path)
        assert again["requests"] == 0 and parquet_hashes(tmp_path / "run") == clean[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_ends_in_the_middle_goes_on_without_ray(
    clean: tuple[dict[str, str], int], nodes: Nodes, tmp_path: Path, how: signal.Signals
) -> None:
    rows_file(tmp_path / "rows.jsonl", PROMPTS)
    with FakeOpenAI(steady, delay_s=0.05) as server:
        process = start(build(server, "run", *on(nodes)), tmp_path, env=ENV)
        asked_since(server, 0, clean[1] // 2)
        code, said = kill(process, how)
        assert (
            code == (130 if how == signal.SIGINT else -signal.SIGKILL) and "Traceback" not in said
        ), said
        server.drain()
        summary, _ = finish(build(server, "run"), tmp_path)
        assert parquet_hashes(tmp_path / "run") == clean[0]
        lost = 0 if how == signal.SIGINT else 2 * SLOTS
        assert (
            len(server.requests) == clean[1] + server.repeated()
            and server.repeated() <= lost
            and summary["replayed"] > 0
        )


@pytest.mark.slow
def test_limits_hold_for_all_workers_together(nodes: Nodes, tmp_path: Path) -> None:
    rows_file(tmp_path / "rows.jsonl", PROMPTS)
    with FakeOpenAI(steady, delay_s=0.02) as server:
        _, said = finish(
            build(server, "run", *on(nodes, "--max-tokens", "8000")), tmp_path, code=1, env=ENV
        )
        assert "limits.max_tokens = 8000 is used up" in said
        used = sum(
            m[0] + m[1]
            for m in json.loads((tmp_path / "run/spending.json").read_text())["models"].values()
        )
        assert 8000 <= used <= 8000 + 15 * (2 * SLOTS + 2 * SLOTS * 0.5 / 0.02), (
            "in flight, and what half a second brings"
        )


@pytest.mark.slow
def test_requests_a_minute_are_those_of_all_workers(nodes: Nodes, tmp_path: Path) -> None:
    rows_file(tmp_path / "rows.jsonl", PROMPTS)
    plain = [
        "--set",
        "presample={enabled: false}",
        "--set",
        "rollout.n=2",
        "--until",
        "score",
        "--set",
        "policy.n_per_request=1",
        "--set",
        "dimensions=[helpful]",
        "--set",
        "publish.stage_order=[helpful]",
    ]
    with FakeOpenAI(steady) as server:
        seen: list[float] = []
        server.script = lambda body, time_: (seen.append(time.monotonic()), steady(body, time_))[1]  # type: ignore[func-returns-value]
        finish(
            build(server, "run", *on(nodes, *plain, "--set", "policy.requests_per_min=600")),
            tmp_path,
            env=ENV,
        )
        gen = sorted(
            t for t, body in zip(seen, server.requests, strict=True) if body["model"] == "gen"
        )
    assert len(gen) == 2 * PROMPTS
    assert (len(gen) - 1 - 10 - 2) / (gen[-1] - gen[0]) <= 10.5, (
        "10 a second after a burst of one second"
    )


@pytest.mark.slow
def test_a_node_that_does_not_see_the_model_or_the_folder_is_said(
    nodes: Nodes, tmp_path: Path
) -> None:
    rows_file(tmp_path / "rows.jsonl", PROMPTS)
    with FakeOpenAI(steady) as server:
        argv = build(server, "run", *on(nodes), "--set", "presample={enabled: false}")
    _, said = finish(argv, tmp_path, code=1, env=ENV)  # the server is gone: no node reaches it
    assert "no worker of the cluster can do the work (node " in said and "never answered" in said
    assert "what was answered is kept" in said and "Traceback" not in said


DIFFERS = """
import sys
from mora_data import cli
from mora_data.pipeline import asking
from mora_data.cluster import worker
{patch}
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (
            "old = worker.versions; worker.versions = lambda: {**old(), 'pyarrow': '1.0'}",
            r"has pyarrow \S+, the driver 1\.0",
        ),
        (
            "asking.shared_address = lambda path: '/nowhere'",
            "does not see the run folder /nowhere: give --out on storage that all nodes",
        ),
    ],
)
def test_a_node_that_is_not_like_the_driver_is_named(
    nodes: Nodes, tmp_path: Path, patch: str, said: str
) -> None:
    rows_file(tmp_path / "rows.jsonl", PROMPTS)
    argv = scripted("run", *SIMULATED, *on(nodes))
    done = subprocess.run(
        [sys.executable, "-c", DIFFERS.format(patch=patch), *argv],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=environment(tmp_path, **ENV),
        timeout=120,
    )
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and line.startswith(
        "mora-data: no worker of the cluster can do the work (node "
    )
    assert re.search(said, line) and "Traceback" not in done.stderr


@pytest.mark.slow
def test_storage_that_refuses_a_workers_writes_is_one_line(nodes: Nodes, tmp_path: Path) -> None:
    rows_file(tmp_path / "rows.jsonl", PROMPTS)
    more = [
        "--set",
        "presample={enabled: false}",
        "--arms",
        "identity",
        "--set",
        "judge.engine=scripted",
    ]
    finish(scripted("run", *SIMULATED[:2], *more, "--until", "mine"), tmp_path)
    (tmp_path / "run/parts/00003/answers.log").mkdir()
    _, said = finish(scripted("run", *SIMULATED[:2], *more, *on(nodes)), tmp_path, code=1, env=ENV)
    last = said.splitlines()[-1]
    assert re.match(
        r"mora-data: node \S+: can't open the answer log .*parts/00003/answers.log: Is a directory",
        last,
    ), said
    assert "Traceback" not in said


@pytest.mark.slow
def test_object_storage_with_two_nodes_and_a_death(
    clean: tuple[dict[str, str], int], tmp_path: Path
) -> None:
    rows_file(tmp_path / "rows.jsonl", PROMPTS)
    url = f"file://{tmp_path}/bucket/run"
    with (
        Nodes(2, environment(tmp_path, **ENV)) as mortal,
        FakeOpenAI(steady, delay_s=0.1) as server,
    ):
        process = start(
            build(server, url, *on(mortal)),
            tmp_path,
            env={**ENV, "MORA_DATA_CACHE": str(tmp_path / "one")},
        )
        asked_since(server, 0, clean[1] // 2)
        mortal.kill()
        _, said = process.communicate(timeout=180)
        assert process.returncode == 0 and "Traceback" not in said, said
        assert parquet_hashes(tmp_path / "bucket/run") == clean[0]
        assert server.repeated() <= SLOTS + 3.5 * SLOTS / 0.1, (
            "in flight, and what three seconds brought"
        )
        # another machine
        again, _ = finish(
            build(server, url), tmp_path, env={"MORA_DATA_CACHE": str(tmp_path / "two")}
        )
        assert again["requests"] == 0 and parquet_hashes(tmp_path / "bucket/run") == clean[0]


@pytest.mark.slow
def test_no_cluster_at_the_address_is_one_line(tmp_path: Path) -> None:
    rows_file(tmp_path / "rows.jsonl", 2)
    _, said = finish(
        scripted(
            "run", "--engine", "scripted", "--executor", "ray", "--set", "ray.address=127.0.0.1:1"
        ),
        tmp_path,
        code=1,
        env=ENV,
    )
    assert (
        "can't join the Ray cluster at 127.0.0.1:1" in said
        and "ray start --head" in said
        and "Traceback" not in said
    )


@pytest.mark.slow
def test_a_node_killed_in_the_middle_loses_nothing(
    clean: tuple[dict[str, str], int], tmp_path: Path
) -> None:
    rows_file(tmp_path / "rows.jsonl", PROMPTS)
    with (
        Nodes(2, environment(tmp_path, **ENV)) as mortal,
        FakeOpenAI(steady, delay_s=0.1) as server,
    ):
        process = start(build(server, "run", *on(mortal)), tmp_path, env=ENV)
        asked_since(server, 0, clean[1] // 2)
        mortal.kill()
        out, said = process.communicate(timeout=120)
        summary: dict[str, Any] = json.loads(out)
        assert process.returncode == 0 and "its node is gone" in said and "Traceback" not in said
        assert (
            parquet_hashes(tmp_path / "run") == clean[0]
            and summary["counts"]["presample"]["dropped"] == {}
        )
        assert len(server.requests) == clean[1] + server.repeated() and server.repeated() <= SLOTS
