"""`source look`, a data file as the source, ratings of any layout, and where files are found."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from layouts.cases import MORE, SAID, SYSTEM, USER, A, B, Q, lines
from support.hub_standin import make_server

from mora_data.cli import main
from mora_data.errors import SettingsError, SourceError
from mora_data.settings import load_settings
from mora_data.sources.mine import MineCounts, as_recorded, mine, open_source
from mora_data.sources.read import find, left_out, local_paths, names_data, split_of

CHATS = [{"messages": [SYSTEM, USER, SAID, MORE]}, {"messages": None}, {"messages": [USER]}]
RATED = [
    {"prompt": f"{Q} {i}", "answers": [{"text": A, "x": 5}, {"text": B, "x": 1}]} for i in range(3)
]


def put(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines(rows))
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(argv))
    return code, *capsys.readouterr()


def test_look_shows_rows_and_counts_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "data/train.jsonl", CHATS)
    put(tmp_path / "data/test.jsonl", CHATS)
    code, out, _ = run(capsys, "source", "look", "data")
    assert code == 0 and sorted(p.name for p in tmp_path.iterdir()) == ["data"]
    assert "train.jsonl: conversations of {role, content}, 3 turns, system in the first" in out
    assert f"     0  system: Be brief.\n        user: {Q}\n        assistant: {A}\n" in out
    assert "     1  dropped: null_text" in out and "not read, as of another split" in out
    put(tmp_path / "data/harmless/test.jsonl", CHATS)
    assert "; nothing of harmless is read" in run(capsys, "source", "look", "data")[1]
    assert re.search(r"read +3 +2  1 null_text", out) and "data/test.jsonl" not in out
    code, out, _ = run(capsys, "source", "look", "data/*.jsonl", "--json", "--rows", "1")
    tree = json.loads(out)
    assert code == 0 and tree["in"] == 6 and len(tree["rows"]) == 6
    assert tree["rows"][2]["messages"] == [USER] and tree["rows"][1]["dropped"] == "null_text"
    code, _, err = run(capsys, "source", "look", "data/train.jsonl", "--layout", "mesages")
    assert code == 1 and "did you mean 'messages'" in err


def test_a_data_file_is_a_source_and_pairs_of_any_layout_are_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"chosen": [{**USER, "content": f"{Q} {i}"}, SAID],
         "rejected": [{**USER, "content": f"{Q} {i}"}, {**SAID, "content": B}]}
        for i in range(12)
    ]  # fmt: skip
    path = str(put(tmp_path / "pairs.jsonl", rows))
    argv = ("build", "--source", path, "--engine", "recorded", "--out", str(tmp_path / "run"))
    code, out, err = run(capsys, *argv, "--json")
    assert code == 0 and json.loads(out)["pairs"] == 12, err
    assert "pairs.jsonl: preference rows, chosen and rejected, 2 answers rated by pref" in err


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (RATED, "are rated by x, not by preferred"),
        ([{"prompt": Q, "responses": [A, B], "scores": [88, 12.5]}], "range: [12, 88]"),
        ([{"prompt": Q, "response": [A, B]}], "ranked"),
    ],
)
def test_ratings_of_other_names_end_with_what_to_type(
    rows: list[Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(put(tmp_path / "rows.jsonl", rows))
    argv = ["build", "--source", "auto", "--data", path, "--engine", "recorded"]
    argv += ["--until", "mine", "--out", str(tmp_path / "run")]
    code, _, err = run(capsys, *argv)
    way = re.search(r"--set (?:'[^']*'|\S+)", err)
    assert code == 1 and says in err and way
    assert run(capsys, *argv, *shlex.split(way[0]))[0] == 0


def test_turns_of_the_user_are_not_said_to_be_ranked_answers(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", [{"question_id": 1, "turns": [Q, f"{Q} Why?"]}])
    settings, _ = as_recorded(load_settings("auto", {"policy.engine": "recorded"}))
    with pytest.raises(SourceError, match="no rated answers: name them by") as refused:
        next(mine(open_source(settings, False, [path]), settings, MineCounts()))
    assert "ranked" not in str(refused.value)


def test_labels_of_single_answers_join_at_their_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": Q, "completion": t, "label": t == A} for t in (A, B)]
    path = put(tmp_path / "kto.jsonl", rows)
    settings, _ = as_recorded(load_settings("auto", {"policy.engine": "recorded"}))
    (prompt,) = mine(open_source(settings, False, [path]), settings, MineCounts())
    assert [(r.text, r.ratings["preferred"]) for r in prompt.recorded] == [(A, 1.0), (B, 0.0)]


def test_only_files_whose_ratings_compare_join_answers_of_different_rows(tmp_path: Path) -> None:
    one, other = ([{"prompt": q, "completion": t, "label": t == A} for t in (A, B)] for q in "ab")
    pairs = [{"prompt": "p", "chosen": A, "rejected": t} for t in (B, "No.")]
    for name, rows in (("1", one), ("2", pairs), ("3", other)):
        put(tmp_path / f"{name}.jsonl", rows)
    settings, _ = as_recorded(load_settings("auto", {"policy.engine": "recorded"}))
    prompts = list(mine(open_source(settings, False, [tmp_path]), settings, MineCounts()))
    assert [(p.text, [r.text for r in p.recorded]) for p in prompts] == [
        ("a", [A, B]),
        ("p", [A, B]),
        ("p", [A, "No."]),
        ("b", [A, B]),
    ]


def test_a_name_that_is_no_source_says_how_own_rows_are_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SettingsError, match=r"did you mean 'hh-rlhf'.*--source auto --data PATH"):
        load_settings("hh-rhlf")
    assert names_data("rows.csv.zst") and names_data("hf://datasets/a/b") and names_data(".")
    assert not names_data("jsonl") and not names_data("x.yaml") and not names_data("hh-rhlf")
    code, _, err = run(capsys, "build", "--source", "x.csv", "--sample")
    assert code == 1 and "leave it out" in err


def test_paths_are_expanded_and_urls_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MORA_DATA_CACHE", str(tmp_path / "cache"))
    one, two = (put(tmp_path / f"rows{i}.jsonl", [{"prompt": Q}]) for i in (1, 2))
    assert local_paths(["~/rows1.jsonl"]) == [one]
    assert local_paths([str(tmp_path / "rows?.jsonl")]) == [one, two]
    with pytest.raises(SourceError, match="no file matches"):
        local_paths([str(tmp_path / "no*.jsonl")])
    memory = fsspec.filesystem("memory")
    memory.pipe({"/b/train.jsonl": b"{}", "/b/d/test.jsonl": b"{}", "/b/x.bin": b""})
    (folder,) = local_paths(["memory://b"])
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["test.jsonl", "train.jsonl"]
    files = find([folder], [], "train")
    assert [f.name for f in files] == ["train.jsonl"]
    assert left_out([folder], files) == ["d/test.jsonl"]
    (file,) = local_paths(["memory://b/train.jsonl"])
    assert file.read_bytes() == b"{}"
    with pytest.raises(SourceError, match=r"can't read memory://b/none\.csv"):
        local_paths(["memory://b/none.csv"])


def test_the_split_that_a_name_says() -> None:
    assert split_of("data/train-00000-of-00001.parquet") == "train"
    assert split_of("30k_test.jsonl.xz") == split_of("test/data.arrow") == "test"
    assert split_of("val.csv") == split_of("dev/x.csv") == "validation"
    assert split_of("latest.csv") is None and split_of("rows.jsonl") is None


def test_files_behind_http_and_on_the_hub_are_read(tmp_path: Path) -> None:
    rows = lines([{"prompt": Q}]).encode()
    hub = make_server(tmp_path / "hub", token="T")
    repo = hub.store.create("dataset", "org/rows", False)
    files = [("file", n, rows) for n in ("train.jsonl", "test.jsonl", "README.md")]
    hub.store.commit(repo, "main", files, "rows", "")
    hub.store.save(repo)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "rows.jsonl").write_bytes(rows)
    web = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "web")
    )
    for server in (hub, web):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    here = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "T", "HF_HOME": str(tmp_path / "hf")}
    here |= {"MORA_DATA_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    urls = [f"http://127.0.0.1:{web.server_port}/rows.jsonl?v=1", "hf://datasets/org/rows"]
    try:
        # processes of their own, as the Hub's client reads its address once
        for url, left in zip(urls, ([], ["test.jsonl"]), strict=True):
            command = [sys.executable, "-m", "mora_data", "source", "look", url, "--json"]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | here)
            assert done.returncode == 0, done.stderr
            tree = json.loads(done.stdout)
            assert tree["kept"] == 1 and tree["rows"][0]["messages"] == [USER]
            assert tree["left_out"] == left
    finally:
        for server in (hub, web):
            server.shutdown()
            server.server_close()
