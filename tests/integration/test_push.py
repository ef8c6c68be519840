"""Releases against a stand-in Hub: every client call runs in another process, with the unmodified
Hub client. One process pushes and runs commands, another reads, as importing takes longer than any
of it; the Hub of each test is empty at first."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.hub_standin import Fault, HubServer, Store, make_server
from support.scored import MANIFEST, ORIGIN, many, one, settings, write

from mora_data.dataset.schemas import counts_of

REPO = "org/pairs"
CLIENT = """
import contextlib, io, json, os, sys, time, warnings
warnings.simplefilter("ignore")
time.sleep = lambda seconds: None
from pathlib import Path
from huggingface_hub.utils import disable_progress_bars
from mora_data.cli import main
from mora_data.errors import MoraError
from mora_data.dataset import lint
from mora_data.dataset.push import push_folder
disable_progress_bars()
load_back, loaded = lint.load_back, {}
def once(folder, header):  # many tests push a folder with the same card; it loads as it did
    text = (folder / "README.md").read_text("utf-8")
    if text not in loaded:
        loaded[text] = load_back(folder, header)
    return loaded[text]
lint.load_back = once
for line in sys.stdin:
    a = json.loads(line)
    os.environ.update(a["env"])
    if "argv" in a:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(a["argv"])
        print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
        continue
    try:
        folder = Path(a["folder"])
        r = push_folder(folder, a["repo"], a["tag"], manifest=a["manifest"], **a["flags"])
        print(json.dumps({k: getattr(r, k) for k in r.__slots__}), flush=True)
    except MoraError as e:
        print(json.dumps({"error": type(e).__name__, "text": str(e)}), flush=True)
"""
READER = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import datasets
datasets.disable_progress_bars()
for line in sys.stdin:
    cache, repo, revision, configs = json.loads(line)
    datasets.config.HF_DATASETS_CACHE = cache  # of what other tests read it knows nothing
    out = {}
    for name in configs or datasets.get_dataset_config_names(repo, revision=revision):
        loaded = datasets.load_dataset(repo, name, revision=revision)
        out[name] = {s: sorted(str(r.get("prompt_id")) for r in d) for s, d in loaded.items()}
    streamed = datasets.load_dataset(repo, revision=revision, streaming=True)  # the default config
    out["streamed"] = {s: sum(1 for _ in d) for s, d in streamed.items()}
    out["default"] = datasets.get_dataset_default_config_name(repo, revision=revision)
    print(json.dumps(out), flush=True)
# Arrow's threads may still hold the Python files that were streamed, and would abort the process
# if they met the end of the interpreter (apache/arrow#34314): it ends without that
os._exit(0)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub at one address; a test puts its own store behind it."""
    server = make_server(tmp_path_factory.mktemp("hub"), token="W", read_token="R")
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Client:
    """A process that answers line by line."""

    def __init__(self, code: str, home: Path, env: dict[str, str]) -> None:
        self._home = home
        with (home / "stderr").open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                env={**client_env(home), **env},
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def ask(self, given: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(given) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        assert reply, (self._home / "stderr").read_text()[-2000:]
        return json.loads(reply)

    def close(self) -> None:
        self._process.communicate(timeout=600)
        assert self._process.returncode == 0, (self._home / "stderr").read_text()[-2000:]


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Pushes what it is told, and runs commands; it never waits between retries."""
    process = Client(CLIENT, tmp_path_factory.mktemp("client"), {"HF_ENDPOINT": hub.url})
    yield process
    process.close()


@pytest.fixture(scope="module")
def reader(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Loads what was pushed."""
    env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "W"}
    process = Client(READER, tmp_path_factory.mktemp("reader"), env)
    yield process
    process.close()


def client_env(home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


class World:
    """A stand-in Hub and its clients."""

    def __init__(self, tmp: Path, hub: HubServer, client: Client, reader: Client) -> None:
        self.tmp, self.server, self.client, self.reader = tmp, hub, client, reader
        hub.store = Store(tmp / "hub")
        hub.faults.clear()
        hub.seen.clear()
        self.env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "W"}

    def read(self, revision: str, *configs: str) -> dict[str, Any]:
        """What another process loads of these configs, or of every one."""
        found: dict[str, Any] = self.reader.ask([str(self.tmp / "read"), REPO, revision, configs])
        return found

    def run(self, *argv: str) -> tuple[int, str, str]:
        """A command of the tool: (its exit code, stdout, stderr)."""
        code, out, err = self.client.ask({"argv": argv, "env": self.env})
        return code, out, err

    def push(
        self,
        folder: Path,
        tag: str | None = "v0.1.0",
        repo: str = REPO,
        manifest: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        **flags: Any,
    ) -> dict[str, Any]:
        given = {
            "folder": str(folder),
            "repo": repo,
            "tag": tag,
            "manifest": MANIFEST if manifest is None else manifest,
            "flags": flags,
            "env": {**self.env, **(env or {})},
        }
        answer: dict[str, Any] = self.client.ask(given)
        return answer

    def repo(self, repo: str = REPO) -> dict[str, Any]:
        return self.server.store.load("dataset", repo)

    def texts(self, repo: str, path: str) -> str:
        """The answers of a `scored` file."""
        blob = self.files(repo=repo)[path]["sha"]
        return str(
            pq.read_table(self.server.store.blob(blob), partitioning=None)[
                "completions"
            ].to_pylist()
        )

    def files(self, revision: str = "main", repo: str = REPO) -> dict[str, Any]:
        found = self.repo(repo)
        files: dict[str, Any] = found["commits"][self.server.store.resolve(found, revision)][
            "files"
        ]
        return files


@pytest.fixture
def world(tmp_path: Path, hub: HubServer, client: Client, reader: Client) -> World:
    return World(tmp_path, hub, client, reader)


SMALL = ["preference", "scored"]


def dataset(
    world: World, n: int = 24, name: str = "dataset", configs: Any = SMALL, **overrides: Any
) -> Path:
    overrides.setdefault("settings", settings(publish={"configs": configs}))
    write(world.tmp / name, list(many(n)), **overrides)
    return world.tmp / name


def test_a_release_goes_round(world: World) -> None:
    first = dataset(world, configs="all")
    done = world.push(first)
    assert (done["status"], done["private"]) == ("pushed", True)
    assert world.repo()["private"] is True
    assert len(world.repo()["commits"]) == 2
    assert world.repo()["tags"] == {"v0.1.0": done["revision"]}
    read, counts = world.read("v0.1.0"), counts_of(first)
    assert read.pop("default") == "preference"
    assert read.pop("streamed") == counts["preference"]
    assert set(read) == {*counts, "preference_by_dim"}
    for name, splits in counts.items():
        assert {s: len(ids) for s, ids in read[name].items()} == splits
    card = world.server.store.blob(world.files()["README.md"]["sha"]).read_text()
    assert f'load_dataset("{REPO}", revision="v0.1.0")' in card

    assert world.push(first)["status"] == "nothing changed"
    assert len(world.repo()["commits"]) == 2

    second = dataset(world, 31, "second")
    refused = world.push(second)
    assert refused["error"] == "PublishError"
    assert "tag v0.1.0 of org/pairs exists with other content" in refused["text"]
    assert len(world.repo()["commits"]) == 2

    world.push(second, "v0.2.0")
    again = world.read("v0.1.0", "preference")
    assert again["preference"] == read["preference"]
    new = world.read("v0.2.0", "preference")
    assert sum(len(ids) for ids in new["preference"].values()) == 31

    moved = world.push(dataset(world, 28, "third"), "v0.2.0", move_tag=True)
    assert world.repo()["tags"]["v0.2.0"] == moved["revision"]


def test_files_of_an_older_release_go_and_those_of_others_stay(world: World) -> None:
    world.push(dataset(world))
    repo = world.repo()
    store = world.server.store
    store.commit(
        repo,
        "main",
        [
            ("file", "notes/mine.txt", b"keep me"),
            ("file", "data/train-00000-of-00001.parquet", b"keep me"),
        ],
        "by hand",
        "",
    )
    store.save(repo)
    small = dataset(world, 24, "small", ["preference"])
    done = world.push(small, "v0.2.0")
    assert "scored/train-00000-of-00001.parquet" in done["deleted"]
    assert set(world.files()) == {
        "README.md",
        ".gitattributes",
        "notes/mine.txt",
        "data/train-00000-of-00001.parquet",
        "LICENSE.md",
        "CITATION.cff",
        "CHANGELOG.md",
        *(
            f"provenance/{n}.json"
            for n in ("manifest", "drops", "calibration", "prompts", "croissant")
        ),
        "preference/train-00000-of-00001.parquet",
        "preference/test-00000-of-00001.parquet",
    }
    assert set(world.files("v0.1.0")) > {"scored/train-00000-of-00001.parquet"}


def test_a_dry_run_plans_and_writes_nothing(world: World) -> None:
    folder = dataset(world)
    plan = world.push(folder, dry_run=True)
    assert plan["status"] == "planned"
    assert "preference/train-00000-of-00001.parquet" in plan["added"]
    assert {s.method for s in world.server.seen} == {"GET"}
    world.push(folder)
    assert world.push(dataset(world, 25, "more"), "v0.2.0", dry_run=True)["deleted"] == []
    offline = world.push(
        folder, dry_run=True, env={"HF_TOKEN": "", "HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    assert offline["status"] == "planned"
    assert "not read" in offline["note"]


@pytest.mark.parametrize(
    ("env", "repo", "says"),
    [
        ({"HF_TOKEN": ""}, REPO, "no Hub token: set HF_TOKEN"),
        ({"HF_TOKEN": "wrong"}, REPO, "refused the token (401)"),
        ({"HF_TOKEN": "R"}, REPO, "may not write to org/pairs (403)"),
        ({}, "someone/pairs", "may not write to someone/pairs (403)"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, REPO, "can't be reached"),
        ({}, "pairs", "write it as ORG/NAME"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(
    world: World, env: dict[str, str], repo: str, says: str
) -> None:
    done = world.push(dataset(world), repo=repo, env=env)
    assert done["error"] == "PublishError"
    assert says in done["text"]
    assert "\n" not in done["text"]


def test_what_may_not_be_pushed(world: World) -> None:
    folder = dataset(world)
    assert "publish.unsafe" in world.push(folder, public=True)["text"]
    assert "not a tag name" in world.push(folder, "my tag")["text"]
    assert (
        "fingerprint" in world.push(folder, manifest={**MANIFEST, "fingerprint": "0" * 64})["text"]
    )
    (folder / "scored" / "test-00000-of-00001.parquet").unlink()
    assert "declared but not there" in world.push(folder)["text"]
    assert "no dataset" in world.push(world.tmp / "nowhere")["text"]
    empty = world.tmp / "empty"
    write(empty, [one(i, pairs=()) for i in range(12)])
    counts = {
        "mine": {"in": 12, "kept": 12, "dropped": {}},
        "fuse": {"in": 12, "kept": 0, "dropped": {"length": 12}},
    }
    assert "stage fuse left nothing" in world.push(empty, manifest={"counts": counts})["text"]
    assert world.server.seen == []


def test_a_row_edited_by_hand_is_seen(world: World) -> None:
    folder = dataset(world)
    built = json.loads((folder / "provenance" / "manifest.json").read_text("utf-8"))["manifest"]
    path = folder / "preference" / "train-00000-of-00001.parquet"
    whole = pq.read_table(path, partitioning=None)
    weight = whole.column_names.index("weight")
    pq.write_table(whole.set_column(weight, "weight", pc.multiply(whole["weight"], 2.0)), path)
    refused = world.push(folder, manifest=built)["text"]
    assert (
        f"were changed since the build (fingerprint is not {built['fingerprint'][:12]}): build"
        " again" in refused
    )
    assert world.server.seen == []


def test_simulated_rows_go_to_a_loopback_hub_only(world: World) -> None:
    folder = dataset(world, origin={**ORIGIN, "simulated": True})
    away = {"HF_ENDPOINT": "http://hub.invalid"}
    assert "simulated" in world.push(folder, manifest={}, env=away)["text"]
    allowed = world.push(folder, manifest={}, env=away, allow_simulated=True)
    assert "can't be reached" in allowed["text"]
    assert world.push(folder, manifest={})["status"] == "pushed"


def test_public_means_gated_before_the_first_byte_and_public_last(world: World) -> None:
    manifest = {**MANIFEST, "settings": {"publish": {"unsafe": "gate"}}}
    folder = dataset(world, manifest=manifest)
    assert world.push(folder, manifest=manifest, public=True)["private"] is False
    assert (world.repo()["private"], world.repo()["gated"]) == (False, "auto")
    writes = [
        s.path
        for s in world.server.seen
        if s.method in ("POST", "PUT") and s.path.split("/")[-1] in ("settings", "create", "main")
    ]
    kinds = [
        "settings" if "settings" in w else "commit" if "/commit/" in w else w.split("/")[-1]
        for w in writes
    ]
    assert [k for k in kinds if k in ("settings", "commit")] == [
        "settings",
        "commit",
        "settings",
        "settings",
    ]
    assert "is public already" in world.push(dataset(world, 26, "more"), "v0.2.0")["text"]


def test_a_commit_by_someone_else_stops_the_push(world: World) -> None:
    world.push(dataset(world))

    def meanwhile(store: Store) -> None:
        repo = store.load("dataset", REPO)
        store.commit(repo, "main", [("file", "notes.txt", b"mine")], "Add notes", "")
        store.save(repo)

    world.server.faults.append(Fault("POST", r".*/preupload/.*", then=meanwhile))
    done = world.push(dataset(world, 26, "more"), "v0.2.0")
    assert "someone committed to org/pairs meanwhile" in done["text"]
    assert "'Add notes'" in done["text"]
    assert len(world.repo()["commits"]) == 3
    assert sorted(world.repo()["tags"]) == ["v0.1.0"]
    assert world.push(world.tmp / "more", "v0.2.0")["status"] == "pushed"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", r".*/preupload/.*", status=500),
        Fault("PUT", r"/_lfs/.*", status=403, times=100),
        Fault("PUT", r"/_lfs/.*", drop="half", skip=3, times=100),
        Fault("POST", r".*/commit/.*", status=500, times=100),
        Fault("POST", r".*/commit/.*", drop="half", times=100),
        Fault("POST", r".*/commit/.*", drop="after", times=100),
        Fault("POST", r".*/tag/.*", status=503, times=100),
        Fault("POST", r".*/tag/.*", drop="after", times=100),
    ],
    ids=lambda f: f"{f.path.strip('.*/')}-{f.status or f.drop}",
)
def test_after_a_fault_the_head_is_the_old_release_or_the_new_and_a_repeat_finishes(
    world: World, fault: Fault
) -> None:
    world.push(dataset(world))
    old = world.files()
    world.server.faults.append(fault)
    more = dataset(world, 26, "more")
    first = world.push(more, "v0.2.0")
    halfway = world.files()
    world.server.faults.clear()
    second = world.push(more, "v0.2.0")
    assert second["status"] in ("pushed", "nothing changed")
    assert halfway in (old, world.files())
    assert world.repo()["tags"]["v0.2.0"] == world.repo()["branches"]["main"]
    assert "error" in first or first["status"] == "pushed"
    assert len(world.repo()["commits"]) == 3
    there = world.read("v0.2.0")["preference"]
    assert sum(len(ids) for ids in there.values()) == 26


PLACES = (
    ("GET", r"/api/whoami-v2"),
    ("GET", r"/api/datasets/[^/]+/[^/]+"),
    ("GET", r".*/refs"),
    ("GET", r".*/tree/.*"),
    ("GET", r".*/commits/.*"),
    ("HEAD", r".*/resolve/.*"),
    ("GET", r".*/resolve/.*"),
    ("POST", r".*/preupload/.*"),
    ("POST", r".*/lfs/objects/batch"),
    ("PUT", r"/_lfs/.*"),
    ("POST", r".*/commit/.*"),
    ("POST", r".*/tag/.*"),
)


def random_fault(rng: random.Random) -> Fault:
    """Any request of a push, answered with an error or cut off, once, a few times or for good."""
    method, path = rng.choice(PLACES)
    fault = Fault(method, path, skip=rng.choice((0, 0, 1, 2)), times=rng.choice((1, 2, 100)))
    what = rng.choice((403, 412, 429, 500, 502, 503, "half", "after"))
    if isinstance(what, int):
        fault.status, fault.retry_after = what, 0.0 if what == 429 else None
    else:
        fault.drop = "half" if what == "half" else "after"
    return fault


@pytest.mark.parametrize("n_faults", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_random_faults_leave_the_old_release_or_the_new(world: World, n_faults: int) -> None:
    rng = random.Random(n_faults)
    world.push(dataset(world, 12, configs=["preference"]))
    more = dataset(world, 14, "more", ["preference"])
    store, old, before = world.server.store, world.files(), world.repo()
    blobs = set((store.root / "blobs").iterdir())
    failed, new = 0, None
    for k in range(n_faults):
        store.save(before)
        for blob in set((store.root / "blobs").iterdir()) - blobs:
            blob.unlink()
        fault = random_fault(rng)
        world.server.faults[:] = [fault]
        first = world.push(more, "v0.2.0")
        halfway = world.files()
        world.server.faults.clear()
        second = world.push(more, "v0.2.0")
        assert second.get("status") in ("pushed", "nothing changed"), (k, fault, second)
        new = new or world.files()
        assert world.files() == new and halfway in (old, new), (k, fault)
        assert world.repo()["tags"] == {
            "v0.1.0": before["tags"]["v0.1.0"],
            "v0.2.0": world.repo()["branches"]["main"],
        }, (k, fault)
        assert len(world.repo()["commits"]) == 3, (k, fault)
        assert "error" in first or (first["status"] == "pushed" and halfway == new), (
            k,
            fault,
            first,
        )
        failed += "error" in first
    assert n_faults / 4 < failed < n_faults


def text_of(world: World, name: str, revision: str = "main") -> str:
    return str(world.server.store.blob(world.files(revision)[name]["sha"]).read_text("utf-8"))


def test_the_changelog_counts_rows_against_the_tag_before(world: World) -> None:
    world.push(dataset(world, 20), "v1.0.0")
    first = text_of(world, "CHANGELOG.md")
    assert "## v1.0.0\n\nFirst release." in first and "| `preference` | 20 | 0 | 0 |" in first
    more = dataset(world, 23, "more")
    assert world.push(more, "v1.1.0")["status"] == "pushed"
    second = text_of(world, "CHANGELOG.md")
    assert "## v1.1.0\n\nAgainst v1.0.0." in second and "| `preference` | 3 | 0 | 0 |" in second
    assert second.endswith(first[first.index("## ") :])
    assert world.push(more, "v1.1.0")["status"] == "nothing changed"
    assert world.push(world.tmp / "dataset", "v1.2.0")["status"] == "pushed"
    assert "| `scored` | 0 | 3 | 0 |" in text_of(world, "CHANGELOG.md")
    assert world.push(more, "v1.1.0")["status"] == "nothing changed"
    assert world.push(dataset(world, 24, "moved"), "v1.2.0", move_tag=True)["status"] == "pushed"
    third = text_of(world, "CHANGELOG.md")
    assert third.count("## v1.2.0") == 1 and "| `preference` | 1 | 0 | 0 |" in third
    assert world.push(world.tmp / "moved", "v1.2.0")["status"] == "nothing changed"


def test_a_public_release_without_unsafe_text(world: World) -> None:
    manifest = {**MANIFEST, "settings": {"publish": {"unsafe": "redact"}}}
    folder = dataset(world, manifest=manifest)
    planned = world.push(folder, manifest=manifest, public=True, dry_run=True)
    assert planned["status"] == "planned" and (world.tmp / "dataset-public" / "README.md").is_file()
    world.server.faults.append(Fault("POST", r".*/tag/.*", status=503, times=100))
    assert "error" in world.push(folder, manifest=manifest, public=True)
    world.server.faults.clear()
    assert world.repo()["private"] is True
    assert world.push(folder, manifest=manifest, public=True)["private"] is False
    assert (world.repo()["private"], world.repo().get("gated")) == (False, None)
    assert "Unsafe text was replaced" in text_of(world, "README.md")
    for name, file in world.files().items():
        if name.endswith(".parquet"):
            rows = pq.read_table(
                world.server.store.blob(file["sha"]), partitioning=None
            ).to_pylist()
            assert "No idea" not in str(rows) and "[redacted " in str(rows)
    assert world.push(folder, manifest=manifest, public=True)["status"] == "nothing changed"


def test_an_open_and_a_gated_repository_of_one_folder(world: World) -> None:
    safe = {
        "helpful": (1.0, 0.25, 0.5, None),
        "harmless": (1.0, 0.5, 0.5, None),
        "truthful": (1.0, 0.25, 0.5, None),
    }
    folder = world.tmp / "dataset"
    write(
        folder,
        [*many(12), *(one(i, rewards=safe) for i in range(12, 24))],
        settings=settings(publish={"configs": SMALL}),
    )
    assert (
        world.push(folder, repo="org/pairs-gated", public=True, unsafe="gate")["private"] is False
    )
    assert world.push(folder, public=True, unsafe="drop")["private"] is False
    assert (world.repo().get("gated"), world.repo("org/pairs-gated").get("gated")) == (None, "auto")
    texts = [
        world.texts(repo, "scored/train-00000-of-00001.parquet")
        for repo in (REPO, "org/pairs-gated")
    ]
    assert "No idea 3" not in texts[0] and "No idea 15" in texts[0] and "No idea 3" in texts[1]


def test_tags_on_the_hub_are_compared(world: World) -> None:
    world.push(dataset(world, 20), "v1.0.0")
    world.push(dataset(world, 23, "more"), "v1.1.0")

    def diff(one: str, two: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(world.run("diff", one, two, "--json")[1])["preference"]
        return found

    found = diff(f"{REPO}@v1.0.0", f"{REPO}@v1.1.0")
    assert (found["added"], found["same"]) == (3, 20)
    assert diff(f"{REPO}@v1.1.0", str(world.tmp / "more"))["same"] == 23
    code, _, err = world.run("diff", f"{REPO}@v9", str(world.tmp / "more"), "--json")
    assert code == 1 and err.startswith(
        "mora-data: org/pairs@v9 is neither a folder here nor on the Hub"
    )
    shown = json.loads(world.run("status", f"{REPO}@v1.0.0", "--json")[1])
    assert shown["configs"]["preference"] == {"train": 17, "test": 3} and shown["licence"]
    assert "preference               train 20  test 3" in world.run("status", f"{REPO}@v1.1.0")[1]
    to, rows = world.tmp / "out", ("--config", "preference", "--format", "jsonl")
    world.run("export", f"{REPO}@v1.0.0", *rows, "--to", str(to))
    assert (to / "preference-train.jsonl").read_text("utf-8").count("\n") == 17
    world.run("view", f"{REPO}@v1.0.0", "--freeze", str(world.tmp / "pages"))
    assert (world.tmp / "pages" / "index.html").is_file()
    code, said, err = world.run("verify", f"{REPO}@v1.0.0")
    assert code == 0 and said.count("ok ") == 6, err


def test_a_private_past_with_unsafe_text_stays_private(world: World) -> None:
    manifest = {**MANIFEST, "settings": {"publish": {"unsafe": "redact"}}}
    folder = dataset(world, manifest=manifest)
    assert world.push(folder, manifest=manifest)["status"] == "pushed"
    refused = world.push(folder, "v0.2.0", manifest=manifest, public=True)
    assert "earlier release whose unsafe text was kept" in refused["text"]
    assert world.repo()["private"] is True and len(world.repo()["commits"]) == 2
    assert world.push(folder, repo="org/other", manifest=manifest, public=True)["private"] is False


def test_no_progress_bars_where_stderr_is_no_terminal(tmp_path: Path) -> None:
    code = (
        "from mora_data.dataset.client import Hub\n"
        "from huggingface_hub.utils import are_progress_bars_disabled as off\n"
        "before = off(); Hub('org/pairs'); print(before, off())"
    )
    env = {**client_env(tmp_path), "HF_TOKEN": "x"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
