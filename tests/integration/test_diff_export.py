"""What changed between two datasets, and the JSON that other trainers read."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.scored import DIMS, many, one, settings, write

from mora_data import cli
from mora_data.cli.recipes import run_command
from mora_data.dataset.export import FORMATS, export_config
from mora_data.dataset.lint import verify
from mora_data.dataset.push import Delta, changelog, diff_datasets, version_step
from mora_data.errors import PublishError
from mora_data.selection import DOMINANCE
from mora_data.settings import load_settings
from mora_data.sources.mine import MineCounts, mine, open_source
from mora_data.types import Pair

FEW = {"publish": {"configs": ["preference", "unpaired", "scored"]}}


def test_rows_are_added_removed_and_changed(tmp_path: Path) -> None:
    rows = list(many(20))
    write(tmp_path / "a" / "dataset", rows, settings=settings(**FEW))
    (pair,) = rows[3].pairs
    rows[3] = replace(
        rows[3],
        pairs=(Pair(0, 1, 0.5, pair.margins, pair.margins_confirmed),),
    )
    write(tmp_path / "b", [*rows[2:], one(99)], settings=settings(**FEW))
    found = diff_datasets(str(tmp_path / "a"), str(tmp_path / "b"))
    assert found["preference"] == Delta(added=1, removed=2, changed=1, same=17)
    assert (found["scored"].added, found["scored"].removed, found["scored"].changed) == (1, 2, 0)
    per_prompt = pq.read_table(
        tmp_path / "b" / "unpaired" / "train-00000-of-00001.parquet"
    ).num_rows
    assert found["unpaired"].added * 2 == found["unpaired"].removed > 0 and per_prompt > 0
    assert not any(diff_datasets(str(tmp_path / "b"), str(tmp_path / "b")).values())


def test_rows_that_are_twice_there_count_twice(tmp_path: Path) -> None:
    twin = one(
        0,
        answers=("Same.", "Same.", "Other."),
        rewards=dict.fromkeys(DIMS, (1.0, 1.0, 0.0)),
        pairs=(),
    )
    write(tmp_path / "a", [twin], settings=settings(publish={"configs": ["unpaired"]}))
    write(tmp_path / "b", [], settings=settings(publish={"configs": ["unpaired", "scored"]}))
    with pytest.raises(PublishError, match="holds no dataset"):
        diff_datasets(str(tmp_path / "a"), str(tmp_path / "b"))
    write(tmp_path / "b", [one(1)], settings=settings(publish={"configs": ["unpaired"]}))
    assert diff_datasets(str(tmp_path / "a"), str(tmp_path / "b"))["unpaired"].removed == 3


def test_columns_and_configs_that_differ_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", list(many(12)), settings=settings(publish={"configs": ["preference"]}))
    two = settings(dimensions=["helpful", "harmless"], publish={"configs": ["preference", "sft"]})
    write(tmp_path / "b", [one(i, dims=("helpful", "harmless")) for i in range(12)], settings=two)
    assert cli.main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["config", "added", "removed", "changed", "same", "columns"]
    assert lines[1].split()[:5] == ["preference", "0", "0", "12", "0"]
    assert "margin_truthful: double -> none" in lines[1]
    assert lines[2].split() == ["sft", "12", "0", "0", "0", "-"]
    assert cli.main(["diff", "--json", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert json.loads(capsys.readouterr().out)["sft"]["added"] == 12
    assert cli.main(["diff", str(tmp_path), str(tmp_path / "b")]) == 1
    assert "holds no dataset" in capsys.readouterr().err


def test_what_a_dataset_breaks_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run" / "dataset"
    write(folder, list(many(12)), settings=settings(**FEW))

    def faults() -> dict[str, str]:
        checks = islice(verify(folder, DOMINANCE), 5)
        return {c.name: " ".join(c.faults) for c in checks if c.faults}

    assert set(faults()) <= {"licence", "checksums"}  # the tests' rows come from nowhere
    path = folder / "preference" / "train-00000-of-00001.parquet"
    rows = pq.read_table(path)
    worse = rows.to_pylist()
    worse[0]["rejected"] = worse[0]["chosen"]
    worse[1]["margin_harmless"] = -0.5
    worse[2]["margin_total"] = 0.0
    made = pa.Table.from_pylist(worse, rows.schema).drop_columns(["weight"])
    pq.write_table(made, path)
    pq.write_table(made.slice(0, 1), path.with_name("test-00000-of-00001.parquet"))
    found = faults()
    assert "weight missing" in found["columns"] and "README.md says" in (found["card and files"])
    for line in (
        "in 1 rows chosen and rejected are the same text",
        "in 1 rows margin_harmless is ",
        "in 1 rows margin_total is not positive",
        "is in two splits",
    ):
        assert line in found["laws"], found
    pq.write_table(made.drop_columns(["selector", "prompt_id"]), path)
    assert "not as this version" in faults()["laws"]
    monkeypatch.setattr("mora_data.dataset.lint.load_back", lambda *_: {})
    assert cli.main(["verify", str(tmp_path / "run")]) == 1
    said = capsys.readouterr()
    assert "FAILED  laws" in said.out and "ok      loads" in said.out
    assert "checks (" in said.err and said.err.count("\n") == 1


def test_datasets_are_shown_where_runs_are_and_else_a_line_says_what_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run" / "dataset"
    write(folder, list(many(12)), settings=settings(**FEW))
    assert cli.main(["status", str(folder)]) == 0
    assert "preference               train 10  test 2" in capsys.readouterr().out
    to = str(tmp_path / "to")
    assert cli.main(["export", str(folder), "--config", "preference", "--to", to]) == 0
    assert cli.main(["report", str(folder)]) == 1
    assert "is no run folder: `mora-data status`" in capsys.readouterr().err
    for command in ("status", "view", "verify", "export"):
        more = ["--config", "x", "--to", "y"] if command == "export" else []
        assert cli.main([command, str(tmp_path / "none"), *more]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ("does not exist" in said or "ORG/NAME@TAG" in said)
    command = run_command("dpo", str(tmp_path / "run"))
    assert f"dataset={folder}" in command


def test_a_changelog_puts_the_new_section_before_the_old_ones() -> None:
    first = changelog("v1.0.0", None, {"preference": Delta(added=5)})
    second = changelog(
        "v1.1.0", "v1.0.0", {"preference": Delta(added=1), "sft": Delta(same=5)}, first
    )
    assert (
        second.index("## v1.1.0")
        < second.index("Against v1.0.0.")
        < second.index("## v1.0.0")
        < second.index("First release")
    )
    assert "| `preference` | 1 | 0 | 0 |" in second and "sft" not in second
    assert second.count("# Changelog") == 1 and second.endswith(first[first.index("## ") :])
    assert "No row changed." in changelog("v2.0.0", "v1.0.0", {})
    gone, new = (
        Delta(same=5, columns=("x: string -> none",)),
        Delta(same=5, columns=("x: none -> string",)),
    )
    assert [version_step({"sft": d}) for d in (gone, new, Delta(added=1), Delta(same=5))] == [
        "major",
        "minor",
        "minor",
        "patch",
    ]
    assert "Against v1.0.0. A minor step." in second


def loaded(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return rows


def test_llamafactory_has_its_shape(tmp_path: Path) -> None:
    chat = one(
        50,
        history=(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi é"},
            {"role": "assistant", "content": "Yes?"},
        ),
    )
    write(tmp_path / "dataset", [*many(20), chat])
    *files, info = export_config(
        tmp_path / "dataset", "preference", tmp_path / "out", "llamafactory"
    )
    assert [f.name for f in files] == ["preference-train.json", "preference-test.json"]
    rows = [r for f in files for r in loaded(f)]
    assert len(rows) == 21
    for row in rows:
        assert list(row) == ["conversations", "chosen", "rejected"]
        for turn in (*row["conversations"], row["chosen"], row["rejected"]):
            assert list(turn) == ["from", "value"] and all(
                isinstance(v, str) for v in turn.values()
            )
        assert {t["from"] for t in row["conversations"]} <= {"human", "gpt", "system"}
        assert row["conversations"][-1]["from"] == "human"
        assert row["chosen"]["from"] == row["rejected"]["from"] == "gpt"
    long = [r["conversations"] for r in rows if len(r["conversations"]) > 1]
    assert [[t["from"] for t in turns] for turns in long] == [["system", "human", "gpt", "human"]]
    declared = json.loads(info.read_text("utf-8"))
    assert {d["file_name"] for d in declared.values()} == {f.name for f in files}
    assert all(
        d["ranking"] and set(d["columns"].values()) == set(rows[0]) for d in declared.values()
    )
    with pytest.raises(PublishError, match="wants pairs"):
        export_config(tmp_path / "dataset", "scored", tmp_path / "out", "llamafactory")
    with pytest.raises(PublishError, match="is in the dataset itself"):  # verify would fail
        export_config(tmp_path / "dataset", "scored", tmp_path / "dataset" / "out")


def test_mahdpo_has_one_file_of_equal_size_per_dimension(tmp_path: Path) -> None:
    tied = {"helpful": (1.0, 0.0), "harmless": (0.5, 0.5), "truthful": (1.0, 0.0)}
    rows = [
        one(i, answers=("a", "b"), rewards=tied, pairs=()) if i % 3 else one(i) for i in range(30)
    ]
    write(tmp_path / "dataset", rows)
    files = export_config(tmp_path / "dataset", "preference_by_dim", tmp_path / "out", "mahdpo")
    for split in ("train", "test"):
        of = {f.name.split("-")[0]: loaded(f) for f in files if split in f.name}
        assert list(of) == list(DIMS) if of else split == "test"
        assert len({len(r) for r in of.values()}) <= 1
        for k, (dim, found) in enumerate(of.items()):
            assert all((r["dimension"], r["dimension_id"]) == (dim, k) for r in found)
            assert all(
                isinstance(r[c], str) and r[c]
                for r in found
                for c in ("question", "chosen", "rejected")
            )
            assert [r["prompt_id"] for r in found] == [r["prompt_id"] for r in of["helpful"]]
    assert sum(len(loaded(f)) for f in files) == 30
    with pytest.raises(PublishError, match="preference_by_dim, not preference"):
        export_config(tmp_path / "dataset", "preference", tmp_path / "out", "mahdpo")
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


# What each reader's own documentation asks of a row, in our words; docs/publish.md names the pages.


def is_text(value: object) -> bool:
    return isinstance(value, str)


def are_turns(value: Any, last: str) -> bool:
    """Messages of {role, content}: an optional system turn, then user and assistant by turns."""
    roles = [m["role"] for m in value]
    rest = roles[roles[:1] == ["system"] :]
    return (
        all(set(m) == {"role", "content"} and is_text(m["content"]) for m in value)
        and rest == (["user", "assistant"] * len(rest))[: len(rest)]
        and rest[-1] == last
    )


def is_reply(value: Any) -> bool:
    return (
        set(value) == {"role", "content"}
        and value["role"] == "assistant"
        and bool(value["content"])
    )


def alpaca(row: dict[str, Any]) -> bool:
    return (
        set(row) == {"instruction", "input", "system", "history", "chosen", "rejected"}
        and all(is_text(row[k]) for k in row if k != "history")
        and all(len(turn) == 2 and all(map(is_text, turn)) for turn in row["history"])
        and bool(row["instruction"] and row["chosen"] and row["rejected"])
    )


def openrlhf(row: dict[str, Any]) -> bool:
    both = row["chosen"], row["rejected"]
    return (
        all(are_turns(side, "assistant") for side in both)
        and both[0][:-1] == both[1][:-1]
        and isinstance(row["margin"], float)
    )


def axolotl(row: dict[str, Any]) -> bool:
    return (
        are_turns(row["messages"], "user") and is_reply(row["chosen"]) and is_reply(row["rejected"])
    )


def openai(row: dict[str, Any]) -> bool:
    sides = row["preferred_output"], row["non_preferred_output"]
    return (
        set(row) == {"input", "preferred_output", "non_preferred_output"}
        and are_turns(row["input"]["messages"], "user")
        and row["input"]["tools"] == []
        and all(len(side) == 1 and is_reply(side[0]) for side in sides)
    )


def binarized(row: dict[str, Any]) -> bool:
    return (
        openrlhf({**row, "margin": 0.0})
        and row["messages"] == row["chosen"]
        and row["prompt"] in [m["content"] for m in row["chosen"] if m["role"] == "user"]
        and 0 <= row["score_rejected"] < row["score_chosen"] <= 1
        and is_text(row["prompt_id"])
    )


READERS = {
    "llamafactory-alpaca": alpaca,
    "openrlhf": openrlhf,
    "axolotl": axolotl,
    "openai": openai,
    "binarized": binarized,
}
CHAT = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Hi é, "you"'},
    {"role": "assistant", "content": "Yes?\nWell?"},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, one of them after a conversation with a system turn."""
    path = tmp_path_factory.mktemp("export") / "dataset"
    write(path, [*many(20), one(50, history=CHAT)])
    return path


def exported(folder: Path, to: Path, fmt: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in export_config(folder, "preference", to, fmt):
        text = path.read_text("utf-8")
        if path.suffix == ".jsonl":
            rows += map(json.loads, text.splitlines())
        elif path.name != "dataset_info.json":
            rows += json.loads(text)
    return rows


@pytest.mark.parametrize("fmt", READERS)
def test_a_row_is_what_its_reader_documents(folder: Path, tmp_path: Path, fmt: str) -> None:
    rows = exported(folder, tmp_path, fmt)
    assert len(rows) == 21 and [row for row in rows if not READERS[fmt](row)] == []
    assert len({json.dumps(row) for row in rows}) == 21
    with pytest.raises(PublishError, match=f"{fmt} wants pairs, and scored has none"):
        export_config(folder, "scored", tmp_path, fmt)


def test_alpaca_keeps_history_and_system_and_is_declared(folder: Path, tmp_path: Path) -> None:
    rows = exported(folder, tmp_path, "llamafactory-alpaca")
    (chat,) = [r for r in rows if r["history"]]
    assert chat["system"] == CHAT[0]["content"]
    assert chat["history"] == [[CHAT[1]["content"], CHAT[2]["content"]]]
    info = json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))
    assert info["preference-train"] == {
        "file_name": "preference-train.json",
        "ranking": True,
        "formatting": "alpaca",
        "columns": {
            "prompt": "instruction",
            "query": "input",
            "system": "system",
            "chosen": "chosen",
            "rejected": "rejected",
            "history": "history",
        },
    }


def test_binarized_rows_are_read_back_as_a_source(folder: Path, tmp_path: Path) -> None:
    files = export_config(folder, "preference", tmp_path, "binarized")
    settings = load_settings("ultrafeedback-binarized", {"policy.engine": "recorded"})
    counts = MineCounts()
    prompts = list(mine(open_source(settings, False, files), settings, counts))
    assert counts.as_dict() == {"in": 21, "kept": 21, "dropped": {}}
    assert {len(p.recorded) for p in prompts} == {2}
    assert all(a.ratings["score"] > b.ratings["score"] for a, b in (p.recorded for p in prompts))


def test_csv_has_texts_and_lists_as_json(folder: Path, tmp_path: Path) -> None:
    (*_, path) = export_config(folder, "preference", tmp_path / "csv", "csv")
    whole: list[dict[str, str]] = []
    for file in (tmp_path / "csv").iterdir():
        with file.open(encoding="utf-8", newline="") as f:
            whole += csv.DictReader(f)
    rows = {r["pair_id"]: r for r in exported(folder, tmp_path, "jsonl")}
    assert len(whole) == 21 and path.suffix == ".csv"
    for got in whole:
        row = rows[got["pair_id"]]
        assert list(got) == list(row)
        assert got["chosen"] == row["chosen"][0]["content"]
        assert got["margin_total"] == str(row["margin_total"])
        alone = len(row["prompt"]) == 1
        assert (got["prompt"] if alone else json.loads(got["prompt"])) == (
            row["prompt"][0]["content"] if alone else row["prompt"]
        )
    assert export_config(folder, "scored", tmp_path / "csv", "csv")


def test_the_command_line_knows_every_format() -> None:
    assert tuple(FORMATS) == cli.EXPORTS
