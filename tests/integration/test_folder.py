"""The dataset folder as a reader finds it: loads with `datasets`, splits by group, same bytes
again, all or nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.scored import (
    DIMS,
    MANIFEST,
    ORIGIN,
    Scored,
    many,
    one,
    pick,
    settings,
    table_of,
    write,
)

from mora_data.dataset import configs, folder, lint, schemas
from mora_data.dataset.export import export_config
from mora_data.errors import PublishError, SettingsError


def table(out: Path, config: str) -> list[dict[str, Any]]:
    return [
        row
        for f in sorted((out / config).glob("*.parquet"))
        for row in pq.read_table(f, partitioning=None).to_pylist()
    ]


def files(out: Path) -> dict[str, bytes]:
    return {
        p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()
    }


def test_every_config_loads_with_the_rows_of_the_card(tmp_path: Path) -> None:
    result = write(tmp_path / "dataset", list(many(40)))
    header = lint.read_header((tmp_path / "dataset" / "README.md").read_text("utf-8"))
    assert header is not None
    assert lint.lint(tmp_path / "dataset") == []
    loaded = lint.load_back(tmp_path / "dataset", header)
    assert {k: v for k, v in loaded.items() if k != "preference_by_dim"} == result.counts
    assert list(result.counts) == schemas.config_names(DIMS, DIMS)
    assert sum(loaded["preference_by_dim"].values()) == 3 * 40
    assert result.counts["preference"]["train"] + result.counts["preference"]["test"] == 40


def test_schema_and_row_groups_are_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "BATCH_ROWS", 10)
    write(tmp_path / "dataset", list(many(40)), settings=settings(publish={"test_share": 0.0}))
    for config in schemas.config_names(DIMS, DIMS):
        (path,) = (tmp_path / "dataset" / config).glob("*.parquet")
        file = pq.ParquetFile(path)
        assert file.schema_arrow.equals(schemas.schema(config, DIMS))
        assert file.metadata.row_group(0).num_rows == 10
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        assert file.metadata.row_group(0).column(0).has_offset_index


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = list(many(30))
    first, second = write(tmp_path / "a", rows), write(tmp_path / "b", rows)
    assert first == second
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert write(tmp_path / "b", rows[:-1]).fingerprint != first.fingerprint


def test_a_group_is_never_split_and_stays_where_it_was(tmp_path: Path) -> None:
    chats = [
        one(
            i,
            history=(
                {"role": "user", "content": f"Opening {i % 15}"},
                {"role": "assistant", "content": "Yes?"},
            ),
        )
        for i in range(60)
    ]
    write(tmp_path / "a", chats, settings=settings(publish={"test_share": 0.3}))
    write(tmp_path / "b", chats[:45], settings=settings(publish={"test_share": 0.3}))

    def place(out: Path) -> dict[str, set[str]]:
        where: dict[str, set[str]] = {}
        for split in ("train", "test"):
            for row in pq.read_table(
                out / "scored" / f"{split}-00000-of-00001.parquet", partitioning=None
            ).to_pylist():
                where.setdefault(row["prompt"][0]["content"], set()).add(split)
        return where

    assert all(len(splits) == 1 for splits in place(tmp_path / "a").values())
    assert place(tmp_path / "a") == place(tmp_path / "b")
    assert {"test"} in place(tmp_path / "a").values()


def test_ten_groups_give_a_test_split_and_nine_need_not(tmp_path: Path) -> None:
    share = {"test_share": 1e-9}
    assert write(tmp_path / "ten", list(many(10)), settings=settings(publish=share)).counts[
        "preference"
    ] == {
        "train": 9,
        "test": 1,
    }
    assert write(tmp_path / "nine", list(many(9)), settings=settings(publish=share)).counts[
        "preference"
    ] == {"train": 9}
    none = settings(publish={"test_share": 0.0})
    assert write(tmp_path / "none", list(many(30)), settings=none).counts["preference"] == {
        "train": 30
    }


def test_the_forced_test_group_has_a_pair(tmp_path: Path) -> None:
    rows = [one(i, pairs=() if i % 3 else None) for i in range(60)]
    counts = write(
        tmp_path / "dataset", rows, settings=settings(publish={"test_share": 1e-9})
    ).counts
    assert counts["preference"]["test"] == 1


def test_without_pairs_the_rest_is_written_and_declared(tmp_path: Path) -> None:
    result = write(tmp_path / "dataset", [one(i, pairs=()) for i in range(12)])
    assert "preference" not in result.counts
    assert sum(result.counts["scored"].values()) == 12
    header = lint.read_header((tmp_path / "dataset" / "README.md").read_text("utf-8"))
    assert header is not None
    assert not (tmp_path / "dataset" / "preference").exists()
    assert [c["config_name"] for c in header["configs"] if c.get("default")] == [
        next(iter(result.counts))
    ]
    lint.load_back(tmp_path / "dataset", header)


def test_no_rows_at_all_still_gives_a_card(tmp_path: Path) -> None:
    assert write(tmp_path / "dataset", []).counts == {}
    assert (tmp_path / "dataset" / "README.md").is_file()


def test_a_dimension_that_nobody_scored_is_a_column_of_nulls(tmp_path: Path) -> None:
    rows = [
        one(i, rewards=dict.fromkeys(("helpful", "harmless"), (1.0, 0.25, 0.5, None)))
        for i in range(20)
    ]
    result = write(tmp_path / "dataset", rows)
    assert "preference_truthful" not in result.counts
    assert sum(result.counts["preference_helpful"].values()) == 20
    assert {r["margin_truthful"] for r in table(tmp_path / "dataset", "preference")} == {None}
    assert "rewards in truthful: nobody scored" in (tmp_path / "dataset" / "README.md").read_text(
        "utf-8"
    )
    header = lint.read_header((tmp_path / "dataset" / "README.md").read_text("utf-8"))
    assert header is not None
    few = ("preference", "scored")
    infos = [i for i in header["dataset_info"] if i["config_name"] in few]
    lint.load_back(tmp_path / "dataset", {**header, "dataset_info": infos})


def test_by_dimension_configs_are_aligned_row_by_row(tmp_path: Path) -> None:
    tied = {
        "helpful": (1.0, 0.0, 0.5, None),
        "harmless": (0.5, 0.5, 0.5, None),
        "truthful": (1.0, 0.0, 0.5, None),
    }
    rows = [one(i, rewards=tied, pairs=()) if i % 2 else one(i) for i in range(20)]
    write(tmp_path / "dataset", rows)
    ids = [[r["prompt_id"] for r in table(tmp_path / "dataset", f"preference_{d}")] for d in DIMS]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) == 10


def test_rows_over_two_megabytes_are_left_out_and_counted(tmp_path: Path) -> None:
    big = one(
        1,
        answers=("x" * 1_500_000, "y" * 900_000, "fine"),
        rewards=dict.fromkeys(DIMS, (1.0, 0.25, 0.5)),
    )
    counts = {**MANIFEST["counts"], "publish": {"in": 0, "kept": 0, "dropped": {}}}
    result = write(
        tmp_path / "dataset", [one(0), big, one(2)], manifest={**MANIFEST, "counts": counts}
    )
    assert result.too_large["scored"] == 1
    assert result.too_large["preference"] == 1
    assert "unpaired" not in result.too_large
    assert sum(result.counts["preference"].values()) == 2
    assert [sum(result.counts[f"preference_{d}"].values()) for d in DIMS] == [2, 2, 2]
    stages = json.loads((tmp_path / "dataset" / "provenance" / "manifest.json").read_text("utf-8"))[
        "manifest"
    ]["counts"]
    assert stages["publish"] == {"in": 3, "kept": 2, "dropped": {"row_too_large": 1}}
    assert "Rows over 2 MB left out" in (tmp_path / "dataset" / "README.md").read_text("utf-8")
    assert lint.lint(tmp_path / "dataset") == []


def test_large_splits_are_cut_into_schemas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "SHARD_BYTES", 1)
    monkeypatch.setattr(schemas, "BATCH_ROWS", 10)
    write(
        tmp_path / "dataset",
        list(many(25)),
        settings=settings(publish={"test_share": 0.0, "configs": ["preference"]}),
    )
    names = sorted(p.name for p in (tmp_path / "dataset" / "preference").iterdir())
    assert names == [f"train-{k:05d}-of-00003.parquet" for k in range(3)]
    assert lint.lint(tmp_path / "dataset") == []
    assert [r["source_row"] for r in table(tmp_path / "dataset", "preference")] == list(range(25))


def test_a_broken_pair_stops_all_and_keeps_the_old_folder(tmp_path: Path) -> None:
    write(tmp_path / "dataset", list(many(5)))
    before = files(tmp_path / "dataset")
    broken = one(9, answers=("same", "same"), rewards=dict.fromkeys(DIMS, (1.0, 0.0)))
    with pytest.raises(PublishError, match="chosen and rejected are the same text"):
        write(tmp_path / "dataset", [*many(5), broken])
    assert files(tmp_path / "dataset") == before
    assert [p.name for p in tmp_path.iterdir()] == ["dataset"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(schemas.pq.ParquetWriter, "write_table", full)
    with pytest.raises(PublishError, match="No space left on device"):
        write(tmp_path / "dataset", list(many(5)))
    assert list(tmp_path.iterdir()) == []


def test_only_the_configs_that_were_asked_for(tmp_path: Path) -> None:
    result = write(
        tmp_path / "a",
        list(many(12)),
        settings=settings(publish={"configs": ["sft", "preference", "preference_by_dim"]}),
    )
    assert list(result.counts) == ["preference", *(f"preference_{d}" for d in DIMS), "sft"]
    with pytest.raises(SettingsError, match="did you mean 'preference'"):
        write(tmp_path / "b", [], settings=settings(publish={"configs": ["preferences"]}))


def test_the_model_name_of_a_local_path_is_published_without_it(tmp_path: Path) -> None:
    manifest = {
        **MANIFEST,
        "models": {"policy": "/home/ann/models/tiny"},
        "settings": {"policy": {"base_url": "http://10.1.2.3/v1"}},
    }
    write(
        tmp_path / "dataset",
        list(many(3)),
        origin={**ORIGIN, "policy": "/home/ann/models/tiny"},
        manifest=manifest,
    )
    assert table(tmp_path / "dataset", "preference")[0]["policy"] == "tiny"
    for name, data in files(tmp_path / "dataset").items():
        if not name.endswith(".parquet"):
            assert b"ann" not in data.replace(b"annot", b"")
            assert b"10.1.2.3" not in data


def test_a_stale_or_edited_folder_fails_the_check(tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    write(out, list(many(12)))
    text = (out / "README.md").read_text("utf-8")
    assert any(
        "nowhere in" in f for f in lint.lint(out, text.replace("| mine | 30 |", "| mine | 31234 |"))
    )
    assert any("default" in f for f in lint.lint(out, text.replace("  default: true\n", "", 1)))
    assert any(
        "not one that the Hub knows" in f
        for f in lint.lint(out, text.replace("license: cc-by-4.0", "license: mine"))
    )
    (out / "preference" / "old-00000-of-00001.parquet").write_bytes(
        (out / "preference" / "train-00000-of-00001.parquet").read_bytes()
    )
    assert lint.lint(out) == ["preference/old-00000-of-00001.parquet is there but not declared"]
    (out / "preference" / "old-00000-of-00001.parquet").rename(
        out / "preference" / "train-00000-of-00001.parquet"
    )
    (out / "scored" / "train-00000-of-00001.parquet").unlink()
    assert any("declared but not there" in f for f in lint.lint(out))


def test_export_writes_any_config_and_names_those_that_exist(tmp_path: Path) -> None:
    write(tmp_path / "dataset", list(many(12)))
    written = export_config(tmp_path / "dataset", "preference_by_dim", tmp_path / "out", "jsonl")
    rows = [json.loads(line) for path in written for line in path.read_text("utf-8").splitlines()]
    assert sorted({r["dimension"] for r in rows}) == sorted(DIMS)
    assert len(rows) == 36
    parquet = export_config(tmp_path / "dataset", "preference", tmp_path / "out")
    assert pq.read_table(parquet[0]).schema.equals(schemas.schema("preference", DIMS))
    with pytest.raises(PublishError, match=r"no config 'unparied'.*did you mean 'unpaired'"):
        export_config(tmp_path / "dataset", "unparied", tmp_path / "out")
    with pytest.raises(PublishError, match="no config"):
        export_config(tmp_path / "nowhere", "preference", tmp_path / "out")


def test_memory_does_not_hold_the_rows(tmp_path: Path) -> None:
    """While the last table is made, the first is gone: nothing keeps the prompts that were
    written."""
    import gc
    import weakref

    seen: list[weakref.ref[Any]] = []
    alive_at_end: list[int] = []

    def tables() -> Any:
        seen.clear()
        for at in range(0, 3000, 100):
            rewards = dict.fromkeys(DIMS, (1.0, 0.0))
            rows = [
                one(i, answers=(f"Count {i} of them.", "no"), rewards=rewards)
                for i in range(at, at + 100)
            ]
            made = table_of(rows, DIMS)
            seen.append(weakref.ref(made.rewards_R_D))
            yield made
        gc.collect()
        alive_at_end.append(sum(r() is not None for r in seen))

    release = configs.Release(
        settings(publish={"test_share": 0.0}),
        ORIGIN,
        MANIFEST,
        {},
        lambda t, target, aligned: t.pairs,
    )
    folder.write_dataset(tables, release, tmp_path / "d")
    assert alive_at_end[-1] <= 2


def test_rows_of_a_config_equal_what_is_on_disk(tmp_path: Path) -> None:
    scored: list[Scored] = list(many(3))
    write(tmp_path / "dataset", scored, settings=settings(publish={"test_share": 0.0}))
    view = configs.TableView(
        table_of(scored, DIMS), configs.Release(settings(), ORIGIN, MANIFEST, {}, pick)
    )
    assert (
        table(tmp_path / "dataset", "preference")
        == configs.config_batch(view, "preference")[1].to_pylist()
    )
