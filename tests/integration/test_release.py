"""From nothing to a tagged dataset, as docs/publish.md says it, against a stand-in Hub; other
readers of its files."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.command import HANGS_S, ROOT, environment, finish_here, parquet_hashes
from support.hub_standin import HubServer, make_server

from mora_data.dataset import lint
from mora_data.dataset.schemas import counts_of

REPO, TAG = "org/mora-pairs", "v1.0.0"
# No thread of a library may hold a file of `fs` when the interpreter ends: a thread that then wants
# the interpreter's lock aborts the process ("terminate called without an active exception",
# apache/arrow#34314). `pq.read_table` leaves such threads, which drop their reader after the table
# is there; ParquetFile, read so, works on the calling thread alone. A closed duckdb has ended its
# threads; polars reads Python files on the calling thread.
READERS = {
    "pyarrow": (
        """
import pyarrow.parquet as pq
def read(paths):
    rows, columns = 0, None
    for path in paths:
        with fs.open(path, "rb") as f, pq.ParquetFile(f, pre_buffer=False) as file:
            table = file.read(use_threads=False)
        rows, columns = rows + table.num_rows, columns or table.column_names
    return rows, columns
"""
    ),
    "polars": (
        """
import polars as pl
def read(paths):
    frames = [pl.read_parquet(fs.open(p, "rb")) for p in paths]
    whole = pl.concat(frames)
    return whole.height, whole.columns
"""
    ),
    "duckdb": (
        """
import datetime, duckdb
# duckdb asks a file system for modification times, which the Hub's does not know: the tag's files
# never change
class Dated(HfFileSystem):
    def modified(self, path):
        return datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
def read(paths):
    with duckdb.connect() as db:
        db.register_filesystem(Dated())
        found = db.execute(f"SELECT * FROM read_parquet({paths!r})")
        return len(found.fetchall()), [column[0] for column in found.description]
"""
    ),
}
READ_ALL = """
import json, sys
from huggingface_hub import HfFileSystem
fs = HfFileSystem()
{read}
wanted = json.load(sys.stdin)
print(json.dumps({{name: read(paths) for name, paths in wanted.items()}}))
"""


@dataclass
class World:
    """A folder to work in, a stand-in Hub, and what the commands of the page said."""

    home: Path
    server: HubServer
    build: list[str]
    said: list[str]

    def run(self, argv: list[str], given: str = "") -> str:
        """What a command printed; `mora-data` and `hf` are those of this Python."""
        tools = {
            "mora-data": [sys.executable, "-m", "mora_data"],
            "hf": [str(Path(sys.executable).with_name("hf"))],
        }
        env = environment(
            self.home, HF_ENDPOINT=self.server.url, HF_HUB_DISABLE_XET="1", PYTHONWARNINGS="ignore"
        )
        done = subprocess.run(
            [*tools.get(argv[0], argv[:1]), *argv[1:]],
            cwd=self.home,
            env=env,
            input=given,
            text=True,
            capture_output=True,
            timeout=HANGS_S,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout if given else done.stdout + done.stderr

    @property
    def dataset(self) -> Path:
        return self.home / "runs" / "pku" / "dataset"

    def commits(self) -> int:
        return len(self.server.store.load("dataset", REPO)["commits"])


def page_commands() -> list[list[str]]:
    """The five commands at the top of the page."""
    text = (ROOT / "docs" / "publish.md").read_text("utf-8")
    found = re.search(r"in five commands:\n\n```console\n(.*?)```", text, re.S)
    assert found
    return [shlex.split(line) for line in found[1].splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("release")
    server = make_server(home / "hub", token="W", read_token="R")
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    _, build, login, *pushes = page_commands()
    # two model servers; here the built-in simulator, and its sample instead of the Hub's rows
    at = build.index("--base-url")
    build = [
        *build[:at],
        "--sample",
        "--limit",
        "14",
        *build[build.index("--out") :],
        "--set",
        "rollout.n=8",
        "--set",
        "presample.n=[4]",
    ]
    made = World(home, server, build, [])
    made.said = [made.run(argv) for argv in (build, [*login, "--token", "W"], *pushes)]
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def test_five_commands_give_a_tagged_dataset(world: World) -> None:
    assert len(page_commands()) == 5 and page_commands()[0] == ["pip", "install", "."]
    planned, pushed = world.said[-2:]
    assert "add README.md" in planned and "add preference/train-00000-of-00001.parquet" in planned
    repo = world.server.store.load("dataset", REPO)
    assert (
        repo["tags"] == {TAG: repo["branches"]["main"]}
        and repo["private"]
        and len(repo["commits"]) == 2
    )
    card = world.server.store.blob(
        repo["commits"][repo["tags"][TAG]]["files"]["README.md"]["sha"]
    ).read_text("utf-8")
    assert f'load_dataset("{REPO}", revision="{TAG}")' in card and "pushed" in pushed
    assert lint.lint(world.dataset) == []


def test_the_same_run_again_changes_nothing(world: World) -> None:
    again = [
        *world.build[: world.build.index("--out") + 1],
        "runs/again",
        *world.build[world.build.index("--out") + 2 :],
    ]
    finish_here(again[1:], world.home)
    folder = world.home / "runs" / "again" / "dataset"
    assert parquet_hashes(folder) == parquet_hashes(world.dataset) != {}
    assert {p.name: p.read_bytes() for p in folder.glob("*.*")} == {
        p.name: p.read_bytes() for p in world.dataset.glob("*.*")
    }
    before = world.commits()
    assert "nothing changed" in world.run(["mora-data", "push", "runs/again", REPO, "--tag", TAG])
    assert world.commits() == before


def paths_of(dataset: Path) -> dict[str, list[str]]:
    """Config -> the addresses of its files under the tag."""
    header = lint.read_header((dataset / "README.md").read_text("utf-8"))
    assert header is not None
    return {
        name: [f"hf://datasets/{REPO}@{TAG}/{f}" for files in by_split.values() for f in files]
        for name, by_split in lint.declared_files(header).items()
    }


@pytest.mark.parametrize(
    "library",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                find_spec(name) is None, reason=f"{name} is not installed: pip install {name}"
            ),
        )
        for name in READERS
    ],
)
def test_every_config_is_read_by_other_libraries(world: World, library: str) -> None:
    wanted = paths_of(world.dataset)
    code = READ_ALL.format(read=READERS[library])
    found = json.loads(world.run([sys.executable, "-c", code], given=json.dumps(wanted)))
    rows = {name: sum(by_split.values()) for name, by_split in counts_of(world.dataset).items()}
    rows["preference_by_dim"] = sum(n for name, n in rows.items() if name.startswith("preference_"))
    assert {name: n for name, (n, _) in found.items()} == rows
    assert {"prompt", "chosen", "rejected", "margin_helpful"} <= set(found["preference"][1])


def test_a_reader_without_a_token_is_told_that_there_is_nothing(world: World) -> None:
    """A private repository does not exist for strangers."""
    (world.home / "stranger").mkdir(exist_ok=True)
    env = environment(world.home / "stranger", HF_ENDPOINT=world.server.url, HF_HUB_DISABLE_XET="1")
    done = subprocess.run(
        [sys.executable, "-m", "mora_data", "diff", f"{REPO}@{TAG}", str(world.dataset)],
        env=env,
        text=True,
        capture_output=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert (
        f"{REPO}@{TAG} is neither a folder here nor on the Hub, or the token may not see it"
        in done.stderr
    )
