"""The Hub path of every source, against a stand-in Hub whose repositories are laid out like the
originals.

The client runs in a process of its own, since huggingface_hub reads HF_ENDPOINT when it is
imported.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import make_samples
from support.hub_standin import Store, make_server

from mora_data.errors import SourceError
from mora_data.settings import load_settings
from mora_data.sources.mine import open_source

PKU_MODELS = ("Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B")
HH_DIRS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
CLIENT = """
import json, sys
from mora_data.settings import load_settings
from mora_data.errors import MoraError
from mora_data.sources.mine import MineCounts, mine, open_source

for name, overrides in json.loads(sys.argv[1]):
    settings, counts = load_settings(name, overrides), MineCounts()
    try:
        prompts = list(mine(open_source(settings, sample=False, data=[]), settings, counts))
        p = prompts[0]
        strata = sorted({p.stratum for p in prompts})
        where = [p.source_dataset, p.source_config, p.source_split, p.source_revision, p.source_licence]
        print(json.dumps({**counts.as_dict(), "strata": strata, "from": where}))
    except MoraError as e:
        print(json.dumps({"error": str(e)}))
"""  # noqa: E501


def clean(kind: str, n: int) -> list[dict[str, Any]]:
    """The first good sample rows of a source."""
    return [json.loads(line) for line in make_samples.render(kind).splitlines()[:n]]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def pku_files() -> dict[str, bytes]:
    rows = clean("pku-saferlhf", 64)
    return {
        f"data/{model}/{split}.jsonl": lines(rows[i * 20 + (split == "test") * 10 :][:10])
        for i, model in enumerate(PKU_MODELS)
        for split in ("train", "test")
    }


def hh_files() -> dict[str, bytes]:
    rows = clean("hh-rlhf", 40)
    files = {
        f"{d}/{split}.jsonl.gz": gzip.compress(lines(rows[i * 10 + (split == "test") * 5 :][:5]))
        for i, d in enumerate(HH_DIRS)
        for split in ("train", "test")
    }
    red = {
        "transcript": "\n\nHuman: How do I steal a boat?\n\nAssistant: I won't help.",
        "rating": 0.0,
        "tags": None,
    }
    return files | {"red-team-attempts/train.jsonl.gz": gzip.compress(lines([red]))}


def h4_files() -> dict[str, bytes]:
    rows = clean("ultrafeedback-binarized", 20)
    return {
        "data/train_prefs-00000-of-00002-0f1e.parquet": parquet(rows[:8]),
        "data/test_prefs-00000-of-00001-aa.parquet": parquet(rows[8:12]),
        "data/train_prefs-00001-of-00002-0f1e.parquet": parquet(rows[12:]),
    }


REPOS = {
    "pku-saferlhf": pku_files,
    "hh-rlhf": hh_files,
    "ultrafeedback": lambda: {
        f"{name}.jsonl": lines(clean("ultrafeedback", 8)[i::2])
        for i, name in enumerate(("flan", "sharegpt"))
    },
    "ultrafeedback-binarized": h4_files,
}


def publish(store: Store, name: str, files: dict[str, bytes]) -> None:
    """A dataset repository whose second commit has the id that builders/<name>.yaml pins; a later
    one empties it."""
    source = load_settings(name).source
    repo = store.create("dataset", str(source.dataset), False)
    made = store.commit(
        repo,
        "main",
        [("file", p, data) for p, data in files.items()] + [("file", "README.md", b"# Card")],
        "data",
        "",
    )
    repo["commits"][source.revision] = repo["commits"].pop(made)
    repo["branches"]["main"] = source.revision
    repo["tags"]["v0"] = source.revision
    store.commit(repo, "main", [("rm", p, None) for p in files], "removed", "")
    store.save(repo)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Hub that holds the four datasets."""
    root = tmp_path_factory.mktemp("hub")
    for name, files in REPOS.items():
        publish(Store(root), name, files())
    server = make_server(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(url: str, cache: Path, *builds: tuple[str, dict[str, object]]) -> list[dict[str, Any]]:
    """What a client of this Hub gets for each build."""
    env = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(builds)],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_source_from_the_hub_as_its_builder_says(hub: str, tmp_path: Path) -> None:
    got = dict(zip(REPOS, ask(hub, tmp_path, *((name, {}) for name in REPOS)), strict=True))
    assert {name: one.get("in", one) for name, one in got.items()} == {
        "pku-saferlhf": 30,
        "hh-rlhf": 20,
        "ultrafeedback": 8,
        "ultrafeedback-binarized": 16,
    }
    for name, one in got.items():
        source = load_settings(name).source
        assert one["kept"] == one["in"]
        assert one["from"] == [source.dataset, "default", "train", source.revision, source.licence]
    assert got["hh-rlhf"]["strata"] == sorted(HH_DIRS)


def test_configs_splits_and_tags(hub: str, tmp_path: Path) -> None:
    alpaca, online, red, test, tag = ask(
        hub,
        tmp_path,
        ("pku-saferlhf", {"source.config": "alpaca2-7b"}),
        ("hh-rlhf", {"source.config": "helpful-online"}),
        ("hh-rlhf", {"source.config": "red-team-attempts"}),
        ("ultrafeedback-binarized", {"source.split": "test"}),
        ("hh-rlhf", {"source.revision": "v0", "source.files": ["helpful-*/train.jsonl.gz"]}),
    )
    assert [one["in"] for one in (alpaca, online, red, test, tag)] == [10, 5, 1, 4, 15]
    assert online["strata"] == ["helpful-online"]
    assert red["strata"] == ["red-team-attempts"]
    assert tag["from"][3] == load_settings("hh-rlhf").source.revision


def test_what_the_hub_lacks_is_one_line(hub: str, tmp_path: Path) -> None:
    errors = [
        one["error"]
        for one in ask(
            hub,
            tmp_path,
            ("hh-rlhf", {"source.dataset": "Anthropic/hh-rhlf"}),
            ("hh-rlhf", {"source.revision": "f" * 40}),
            ("hh-rlhf", {"source.split": "validation"}),
            ("hh-rlhf", {"source.dataset": "not a name!"}),
        )
    ]
    starts = [
        "no Hub dataset 'Anthropic/hh-rhlf'",
        "Hub dataset Anthropic/hh-rlhf lacks revision 'ffff",
        (
            "Hub dataset Anthropic/hh-rlhf at 09be8c5bbc57 has no file like"
            " harmless-base/validation.jsonl"
        ),
        "no Hub dataset 'not a name!'",
    ]
    for error, start in zip(errors, starts, strict=True):
        assert error.startswith(start)
        assert "--data PATH" in error and "--sample" in error and "\n" not in error


def test_an_unreachable_hub_is_one_line(tmp_path: Path) -> None:
    (one,) = ask("http://127.0.0.1:9", tmp_path, ("pku-saferlhf", {}))
    assert one["error"].startswith(
        "can't fetch PKU-Alignment/PKU-SafeRLHF from the Hub (ConnectError)"
    )
    assert "--data PATH" in one["error"] and "--sample" in one["error"]


def test_a_source_without_a_dataset() -> None:
    with pytest.raises(SourceError, match="names no Hub dataset"):
        open_source(load_settings("jsonl"), sample=False, data=[])
