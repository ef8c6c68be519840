"""What a dataset, a server or a file says is text: it names no endpoint, no key and no code."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mora_data.dataset.lint import load_back
from mora_data.errors import MoraError, PublishError, SettingsError, SourceError
from mora_data.evaluate.asking import EvaluateOptions, settings_for
from mora_data.evaluate.prompts import load_prompts, prompts_of_file
from mora_data.settings import build_settings
from mora_data.sources.auto import Auto
from mora_data.sources.mine import label

HOSTILE = {
    "judge": {"base_url": "http://evil.example/v1", "api_key_env": "HF_TOKEN"},
    "heldout_judge": {"base_url": "http://evil.example/v1", "api_key_env": "HF_TOKEN"},
    "policy": {"api_key_env": "HF_TOKEN", "transport": "os:system", "extra_body": {"a": 1}},
    "rewriter": {"engine": "os:system"},
    "rewards": {"helpful": [{"kind": "pty:spawn"}, {"kind": "python", "path": "os:system"}]},
    "fuse": {"subject": "os:system", "guard": {"endpoint": {"base_url": "http://evil.example"}}},
    "select": {"selector": "os:system"},
    "rollout": {"personas": ["/etc/passwd"]},
    "limits": {"prices": "/etc/passwd"},
}
PLAIN = {"name": "x", "source": {"kind": "jsonl"}, "dimensions": ["helpful", "harmless"]}


def folder(path: Path, tree: object) -> Path:
    (path / "dataset" / "prompt_only").mkdir(parents=True, exist_ok=True)
    (path / "dataset" / "README.md").write_text("---\n---\n")
    (path / "build.yaml").write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("part", HOSTILE)
def test_a_dataset_that_is_evaluated_gives_names_and_numbers_alone(
    part: str, tmp_path: Path
) -> None:
    run = folder(tmp_path, {**PLAIN, part: HOSTILE[part]})
    judge = {"heldout_judge.base_url": "http://mine.example/v1"}
    settings, *_ = settings_for(EvaluateOptions(dataset=run, overrides=judge))
    text = settings.model_dump_json()
    assert settings.dimensions == ["helpful", "harmless"]
    for said in ("evil", "HF_TOKEN", "os:system", "pty", "passwd", "extra_body"):
        assert said not in text.replace('"extra_body":{}', "")
    assert settings.judge.base_url == "http://mine.example/v1"


def test_a_dataset_names_no_judge(tmp_path: Path) -> None:
    for part in ("judge", "heldout_judge"):
        run = folder(tmp_path, {**PLAIN, part: HOSTILE[part]})
        with pytest.raises(SettingsError, match="no judge is named"):
            settings_for(EvaluateOptions(dataset=run))


def test_a_dataset_gives_rubrics_that_are_shipped_and_sampling(tmp_path: Path) -> None:
    rewards = {"helpful": [{"kind": "judge", "template": "truthful", "endpoint": {"model": "m"}}]}
    policy = {"temperature": 0.5, "max_tokens": 64, "model": "m"}
    run = folder(tmp_path, {**PLAIN, "rewards": rewards, "policy": policy, "seed": 3})
    judge = {"heldout_judge.base_url": "http://mine.example/v1"}
    settings, *_ = settings_for(EvaluateOptions(dataset=run, overrides=judge))
    (source,) = settings.reward_sources("helpful")
    assert source.options == {"template": "truthful"} and source.endpoint is None
    assert (settings.policy.temperature, settings.policy.max_tokens) == (0.5, 64)
    assert settings.policy.model is None and settings.seed == 3
    tree = {**PLAIN, "rewards": {"helpful": [{"kind": "judge", "template": "../x.j2"}]}}
    settings, *_ = settings_for(EvaluateOptions(dataset=folder(tmp_path, tree), overrides=judge))
    assert not settings.rewards


@pytest.mark.parametrize(
    "tree",
    [{"dimensions": 3}, {"dimensions": [["a"]]}, {"dimensions": ["helpful"], "seed": "x"}],
)
def test_a_datasets_settings_that_make_no_sense_are_one_line(tree: object, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^[^\n]+--source[^\n]+$"):
        settings_for(EvaluateOptions(dataset=folder(tmp_path, tree)))


def test_the_users_own_file_counts_as_before(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({**PLAIN, "judge": {"base_url": "http://mine.example/v1"}}))
    settings, *_ = settings_for(EvaluateOptions(source=str(own)))
    assert settings.judge.base_url == "http://mine.example/v1"


@pytest.mark.parametrize(
    "name",
    [
        "total",
        "Total",
        "by_dim",
        "confirmed_helpful",
        "a/b",
        "x/../../..",
        "a\x00b",
        "",
        "a b",
        "1st",
        "-x",
        ".",
        "a.b",
        "h" * 41,
        "a\n",
        "é",
        "a\u202e",
        "<b>",
        "CON:",
    ],
)
def test_a_dimension_has_a_name_that_columns_and_folders_can_have(name: str) -> None:
    for tree in (
        {"dimensions": ["helpful", name]},
        {"recorded": {"dimensions": [name], "rewards": {}}},
    ):
        with pytest.raises(SettingsError, match=r"^setting (?:recorded\.)?dimensions[^\n]+$"):
            build_settings({**PLAIN, **tree})


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "", ".", "..", "a\x00", "~", "a b", "-x", "x" * 97]
)
def test_a_builder_has_a_name_that_a_folder_can_have(name: str) -> None:
    with pytest.raises(SettingsError, match=r"^setting name = [^\n]+$"):
        build_settings({**PLAIN, "name": name})


def test_ordinary_names_and_two_that_differ_in_case() -> None:
    build_settings({**PLAIN, "name": "pku-saferlhf_2.v1", "dimensions": ["a", "B-2", "total_cost"]})
    with pytest.raises(SettingsError, match="different names"):
        build_settings({**PLAIN, "dimensions": ["helpful", "Helpful"]})


def test_a_label_is_a_short_name_without_an_address() -> None:
    assert label("http://a.example/x\x1b[2J\n  b") == "http:a.example/x\\x1b[2J b"
    assert len(label("a" * 500)) == 80 and label("Home & garden") == "Home & garden"


COLUMN = "a'$(touch x); touch x '?"


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({COLUMN: "How do I cook rice at home?"}, {}),
        ({"chosen": "a", COLUMN: "b"}, {"prompt": "chosen"}),
        ({"prompt": "How do I cook?", COLUMN: ["a", "b"]}, {}),
    ],
)
def test_what_is_to_be_typed_runs_nothing_that_a_column_says(
    row: dict[str, object], columns: dict[str, str]
) -> None:
    source = Auto(build_settings({**PLAIN, "source": {"kind": "auto", "columns": columns}}).source)
    with pytest.raises(SourceError) as e:
        source.look([row], "f")
        source.check_ratings([row], frozenset({"nope"}), "f")
    (typed,) = re.findall(r"--set ((?:'[^']*'|\"[^\"]*\"|[^\s',])+)", str(e.value))
    (value,) = shlex.split(typed)
    assert value.endswith(f"={COLUMN}")


@pytest.mark.parametrize(
    "prompt", [None, [], [{"role": "user", "content": None}], [{"role": "\x1b", "content": "a"}]]
)
def test_a_row_of_a_dataset_that_is_no_conversation_is_skipped(
    prompt: object, tmp_path: Path
) -> None:
    kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    good = [{"role": "user", "content": "How do I cook rice?"}]
    columns = {"source_prompt": [None, None], "arm": [None, "identity"]}
    table = pa.table({"prompt": pa.array([prompt, good], kind), **columns})
    (tmp_path / "prompt_only").mkdir()
    pq.write_table(table, tmp_path / "prompt_only" / "test-0.parquet")
    skipped: Counter[str] = Counter()
    (found,) = load_prompts(tmp_path, {}, [], None, skipped)
    assert found.messages == tuple(good) and skipped == {"no_conversation": 1}


def test_prompts_of_another_type_or_a_damaged_file_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "prompt_only").mkdir()
    file = tmp_path / "prompt_only" / "test-0.parquet"
    pq.write_table(pa.table({"prompt": [3], "source_prompt": ["a"], "arm": ["a"]}), file)
    with pytest.raises(MoraError, match="no held-out prompt"):
        load_prompts(tmp_path, {}, [], None, Counter())
    for raw in (b"", b"PAR1" * 9, file.read_bytes()[:-40]):
        file.write_bytes(raw)
        with pytest.raises(MoraError, match=r"test-0\.parquet can't be read"):
            load_prompts(tmp_path, {}, [], None, Counter())
    (tmp_path / "a.json").write_text('[{"messages": [{"role": "user", "content": ["a"]}]}]')
    with pytest.raises(MoraError, match="can't read prompts from"):
        prompts_of_file(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("http://127.0.0.1:9/x.parquet", {}),
        ("zip://*.parquet::http://127.0.0.1:9/x.zip", {}),
        ("../elsewhere/*.parquet", {}),
        ("/etc/passwd", {}),
        ("a/train-0.parquet", {"data_dir": "http://127.0.0.1:9"}),
    ],
)
def test_a_card_of_others_is_not_followed_out_of_its_folder(
    path: str, more: dict[str, str], tmp_path: Path
) -> None:
    """`datasets` would fetch what the card names."""
    (tmp_path / "a").mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a" / "train-0.parquet")
    config = {"config_name": "a", "data_files": [{"split": "train", "path": path}], **more}
    info = {"config_name": "a", "splits": [{"name": "train", "num_examples": 1}]}
    header: Any = {"configs": [config], "dataset_info": [info]}
    with pytest.raises(PublishError, match="no Parquet file of the folder"):
        load_back(tmp_path, header)
