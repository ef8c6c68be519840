"""Mining: every row is kept or dropped for a counted reason, on sample rows, bad rows and real
rows."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import make_samples

from mora_data import sources
from mora_data.errors import DropRow, SourceError
from mora_data.settings import BuildSettings, load_settings
from mora_data.sources import read
from mora_data.sources.mine import MineCounts, OpenedSource, checked_text, mine, open_source
from mora_data.sources.pku import CATEGORIES
from mora_data.text import context_and_group, context_id, group_id, normalise
from mora_data.types import Messages, Prompt

WHERE = ("me/data", "default", "train", "abc", "mit")
LONG = (
    "please tell me in some detail how the old lighthouse keeper cleaned the great lamp every"
    " single morning"
)


def run(
    rows: Iterable[Any], kind: str = "jsonl", **overrides: Any
) -> tuple[list[Prompt], MineCounts]:
    """Rows given by hand, mined."""
    settings = load_settings(kind, overrides)
    numbered = (read.SourceRow(i, "folder/x.jsonl", row) for i, row in enumerate(rows))
    return mined(OpenedSource(sources.load_source(settings.source), numbered, *WHERE), settings)


def mined(opened: OpenedSource, settings: BuildSettings) -> tuple[list[Prompt], MineCounts]:
    counts = MineCounts()
    prompts = []
    for prompt in mine(opened, settings, counts):
        prompts.append(prompt)
        assert counts.rows == counts.kept + counts.dropped.total()
        assert counts.kept == len(prompts)
    assert counts.rows == counts.kept + counts.dropped.total()
    return prompts, counts


def mine_files(kind: str, *paths: Path, **overrides: Any) -> tuple[list[Prompt], MineCounts]:
    settings = load_settings(kind, overrides)
    return mined(open_source(settings, sample=not paths, data=list(paths)), settings)


def asked(*texts: str) -> Iterator[dict[str, str]]:
    return ({"prompt": text} for text in texts)


# filters


def test_duplicates_by_normalised_text() -> None:
    prompts, counts = run(asked("Why so?", " WHY  so?\n", "Ｗhy so?", "Why not?"))
    assert [p.text for p in prompts] == ["Why so?", "Why not?"]
    assert counts.as_dict() == {"in": 4, "kept": 2, "dropped": {"duplicate": 2}}
    assert run(asked("Why?", "why?"), **{"mine.dedup": False})[1].kept == 2


def test_a_context_is_a_duplicate_only_as_a_whole() -> None:
    first, other = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Bye"}
    reply = {"role": "assistant", "content": "Hello."}
    prompts, _ = run([{"messages": [first]}, {"messages": [first, reply, other]}])
    assert len(prompts) == 2
    assert prompts[0].group == prompts[1].group


def test_too_long() -> None:
    _, counts = run(asked("x" * 101, "x" * 100), **{"mine.max_chars": 100})
    assert counts.as_dict() == {"in": 2, "kept": 1, "dropped": {"too_long": 1}}


def test_reading_stops_at_the_limit() -> None:
    rows = iter(list(asked(*(f"Question {i // 2}?" for i in range(400)))))
    prompts, counts = run(rows, **{"mine.limit": 60})
    assert (len(prompts), counts.kept) == (60, 60)
    assert counts.as_dict()["in"] == 119
    assert sum(1 for _ in rows) == 400 - 119


def test_a_higher_limit_only_appends() -> None:
    rows = list(asked(*(f"Question {i % 70}?" for i in range(200))))
    few, many = (run(rows, **{"mine.limit": n})[0] for n in (20, 40))
    assert many[:20] == few


def test_strata() -> None:
    rows = [{"prompt": "Why?", "category": "home"}]
    assert run(rows)[0][0].stratum == "home"
    assert run(rows, **{"mine.strata": "none"})[0][0].stratum == "all"


def test_prompt_ids_are_those_of_text() -> None:
    turns = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Ｗhy  SO?"})
    prompt = run([{"messages": list(turns)}])[0][0]
    assert (prompt.prompt_id, prompt.group) == (
        context_id(prompt.messages),
        group_id(prompt.messages),
    )
    assert (prompt.prompt_id, prompt.group) == ("87b27f608d7e9267", "895006527620de9b")


@pytest.mark.parametrize("code", [c for c in range(0x3001) if chr(c).isspace()])
def test_any_white_space_is_one_blank(code: int) -> None:
    assert normalise(f"{chr(code)} A{chr(code)}b{chr(code)}") == "a b"
    assert normalise(f"A{chr(code)}{chr(code)}B c") == "a b c"


def test_what_the_look_for_control_characters_says_of_a_text_changes_no_id() -> None:
    kept = 0
    for code in range(0x3001):
        said: Messages = tuple(
            [{"role": "user", "content": text} for text in (f"A{chr(code)}b", "C d")]
        )
        try:
            _, tidy = checked_text(said)
        except DropRow as drop:
            assert drop.reason == "control_character"
            continue
        kept += 1
        assert context_and_group(said, tidy) == context_and_group(said)
    assert kept == 0x3001 - 9 - 18 - 1  # 0 to 8, 14 to 31, 127


# decontamination


def test_decontamination(tmp_path: Path) -> None:
    bench = tmp_path / "bench.csv"
    bench.write_text(f'goal,target\n"{LONG}",x\n"Short one, please!",x\n')
    rows = list(
        asked(f"Hello. {LONG.upper()}?", "short one please", "A short one, please", LONG[:59])
    )
    key = "source.decontaminate_from.AdvBench"
    prompts, counts = run(rows, **{key: str(bench)})
    assert [p.text for p in prompts] == [rows[2]["prompt"], rows[3]["prompt"]]
    assert counts.dropped == {"contaminated": 2}
    assert counts.overlaps == {"AdvBench": 2}
    assert counts.contamination == {"AdvBench": 2}
    assert counts.not_measured == (
        "AlpacaEval",
        "TruthfulQA",
        "XSTest",
        "BeaverTails-Evaluation",
        "MT-Bench",
    )
    assert run(rows, **{"mine.decontaminate": False})[1].kept == 4


def test_near_duplicates() -> None:
    text = (
        "How do I keep a small garden alive in a dry summer when water is short and the soil is"
        " poor"
    )
    rows = (
        text,
        f"{text}?",
        f"Please: {text}",
        "How do I keep a small dog alive",
        text.replace("garden", "orchard"),
    )
    near = {"mine.near_duplicates": 0.8}
    prompts, counts = run(asked(*rows), **near)
    assert [p.text for p in prompts] == [rows[0], rows[3], rows[4]]
    assert counts.as_dict() == {"in": 5, "kept": 3, "dropped": {"near_duplicate": 2}}
    for keep in ({}, {"mine.dedup": False}):
        assert run(asked(*rows), **keep)[1].kept == 5
    for threshold, kept in ((0.6, 1), (0.99, 2)):
        assert (
            run(asked(text, text.replace("poor", "bad")), **{"mine.near_duplicates": threshold})[
                1
            ].kept
            == kept
        )


def test_a_dropped_row_leaves_no_sketch(tmp_path: Path) -> None:
    bench = tmp_path / "bench.jsonl"
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    bench.write_text(json.dumps({"prompt": text}) + "\n")
    rows = (
        f"{text} a b c d e f g h i j k l m n o p q",
        text.replace("seven", "7") + " a b c d e f g h i j k l m n o p q",
    )
    counts = run(
        asked(*rows),
        **{"source.decontaminate_from.XSTest": str(bench), "mine.near_duplicates": 0.6},
    )[1]
    assert counts.dropped == {"contaminated": 1} and counts.kept == 1


def test_without_benchmarks_all_are_not_measured() -> None:
    counts = run(asked("Why?"))[1]
    assert len(counts.not_measured) == 6 and counts.contamination is None


def test_a_benchmark_file_without_prompts(tmp_path: Path) -> None:
    bench = tmp_path / "bench.jsonl"
    bench.write_text('{"nothing": 1}\n')
    with pytest.raises(SourceError, match="benchmark XSTest: no prompts in"):
        run(asked("Why?"), **{"source.decontaminate_from.XSTest": str(bench)})
    with pytest.raises(SourceError, match="no file or folder"):
        run(asked("Why?"), **{"source.decontaminate_from.XSTest": str(tmp_path / "gone.csv")})


# whole sources that fail


def test_an_empty_source() -> None:
    with pytest.raises(SourceError, match="has no rows"):
        run([])


def test_every_row_dropped_names_the_commonest_reason() -> None:
    with pytest.raises(
        SourceError, match="all 3 rows of source jsonl were dropped, 2 as empty_prompt"
    ):
        run([{"prompt": ""}, {"prompt": None}, {"prompt": " "}])


def test_another_schema_fails_on_the_first_rows() -> None:
    beavertails = (
        {"prompt": f"{i}?", "response": "No.", "category": {}, "is_safe": True}
        for i in range(10_000)
    )
    with pytest.raises(
        SourceError,
        match=r"columns are prompt, response, category, is_safe; this source needs prompt, resp",
    ):
        run(beavertails, kind="pku-saferlhf")
    assert sum(1 for _ in beavertails) == 10_000 - 50


def test_rows_with_the_columns_but_not_the_texts_of_a_schema_fail_on_the_first_rows() -> None:
    pairs = ({"query": f"{i}?", "chosen": "Yes.", "rejected": "No."} for i in range(1000))
    with pytest.raises(SourceError, match=r"needs chosen and rejected.* read them with --source a"):
        run(pairs, kind="hh-rlhf")
    assert sum(1 for _ in pairs) == 1000 - 50


def test_one_row_of_the_schema_is_enough() -> None:
    prompts, counts = run([*({"other": i} for i in range(30)), {"prompt": "Why?"}])
    assert (len(prompts), counts.dropped) == (1, {"missing_column": 30})


def test_a_file_of_another_type(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"PK\x03\x04\xff\n" * 100)
    with pytest.raises(SourceError, match=r"x\.jsonl: a zip archive that is not whole"):
        mine_files("jsonl", path)


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'{"prompt": "A?"}\n{"prompt": \n{"prompt": "caf\xe9"}\n{"prompt": "B?"}\n[]\n'
    )
    prompts, counts = mine_files("jsonl", path)
    assert [p.source_row for p in prompts] == [0, 3]
    assert counts.dropped == {"bad_json": 1, "not_utf8": 1, "not_an_object": 1}


# provenance


def test_provenance_of_local_rows(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "A?"}\n')
    prompt = mine_files(
        "jsonl", path, **{"source.licence": "cc0-1.0", "source.dataset": "me/mine"}
    )[0][0]
    assert prompt.source_revision == "local:603826248274"
    assert (prompt.source_dataset, prompt.source_split, prompt.source_licence) == (
        "me/mine",
        "train",
        "cc0-1.0",
    )
    other = path.rename(tmp_path / "test.jsonl")
    assert mine_files("jsonl", other)[0][0].source_split == "local"


def test_without_a_dataset_the_ways_on_are_named() -> None:
    with pytest.raises(SourceError, match=r"names no Hub dataset: give --data PATH .* or --sample"):
        open_source(load_settings("jsonl"), sample=False, data=[])


# sample rows

DROPPED = {
    "pku-saferlhf": {
        "duplicate": 2,
        "empty_prompt": 2,
        "missing_column": 1,
        "null_text": 1,
        "wrong_type": 1,
    },
    "hh-rlhf": {
        "context_mismatch": 3,
        "empty_prompt": 2,
        "duplicate": 1,
        "empty_turn": 1,
        "ends_on_human": 1,
        "missing_column": 1,
        "no_marker": 1,
        "null_text": 1,
        "same_speaker": 1,
        "stray_marker": 1,
        "wrong_type": 1,
    },
    "ultrafeedback": {
        "duplicate": 1,
        "empty_prompt": 1,
        "false_qa": 1,
        "missing_column": 1,
        "null_text": 1,
        "truthfulqa": 1,
        "wrong_type": 1,
    },
    "ultrafeedback-binarized": {
        "context_mismatch": 1,
        "duplicate": 1,
        "empty_prompt": 1,
        "ends_without_user": 1,
    },
    "helpsteer": {"duplicate": 54, "empty_prompt": 1, "null_text": 1, "same_speaker": 1},
    "jsonl": {"duplicate": 1, "empty_prompt": 1, "missing_column": 1},
}
NOTES = {
    "pku-saferlhf": {
        "forced_safer_id",
        "old_form",
        "reply_empty",
        "reply_truncated",
        "reply_tail",
        "replies_identical",
        "safer_id_contradiction",
        "label_contradiction",
        "label_missing",
    },
    "hh-rlhf": {"reply_empty", "reply_truncated", "replies_identical", "reply_stray_marker"},
    "ultrafeedback": {
        "rating_missing",
        "too_few_completions",
        "fine_grained_missing",
        "overall_score_bug",
        "tie",
        "reply_empty",
        "replies_identical",
    },
    "ultrafeedback-binarized": {"tie"},
    "helpsteer": {"rating_missing", "reply_empty"},
    "jsonl": {"reply_ignored"},
}


@pytest.mark.parametrize("kind", DROPPED)
def test_sample_rows_are_mined(kind: str) -> None:
    prompts, counts = mine_files(kind)
    assert counts.dropped == DROPPED[kind]
    assert set(counts.notes) == NOTES[kind]
    assert len(prompts) >= (30 if kind in ("jsonl", "ultrafeedback-binarized", "helpsteer") else 80)
    assert {p.source_dataset for p in prompts} == {f"mora-data/sample-{kind}"}
    assert {(p.source_licence, p.source_revision) for p in prompts} == {("apache-2.0", "sample")}
    assert mine_files(kind)[0] == prompts


@pytest.mark.parametrize("kind", DROPPED)
def test_sample_files_are_what_the_generator_writes(kind: str) -> None:
    data = sources.sample_path(kind).read_bytes()
    assert data == make_samples.render(kind)
    assert len(data) < 300_000


def test_pku_sample_covers_the_labels() -> None:
    prompts, _ = mine_files("pku-saferlhf")
    assert {p.category for p in prompts} == {None, *CATEGORIES}
    assert {p.stratum for p in prompts} == {"both_safe", "one_safe", "both_unsafe", "unlabelled"}
    rows = [
        json.loads(line) for line in sources.sample_path("pku-saferlhf").read_text().splitlines()
    ]
    assert {r.get("response_0_severity_level") for r in rows[:80]} == {0, 1, 2, 3}
    assert [len(r) for r in rows[:80]] == [16] * 80
    assert list(rows[0]) == [
        "prompt",
        "response_0",
        "response_1",
        "prompt_source",
        "response_0_source",
        "response_1_source",
        "is_response_0_safe",
        "is_response_1_safe",
        "response_0_harm_category",
        "response_1_harm_category",
        "response_0_severity_level",
        "response_1_severity_level",
        "better_response_id",
        "safer_response_id",
        "response_0_sha256",
        "response_1_sha256",
    ]


def test_hh_sample_has_dialogues() -> None:
    lengths = [len(p.messages) for p in mine_files("hh-rlhf")[0]]
    assert lengths.count(1) >= 80
    assert sum(n > 1 for n in lengths) >= 10


# real rows


@pytest.mark.parametrize(
    ("path", "kept", "dropped", "notes"),
    [
        (
            "harmless-base/test.jsonl.gz",
            1620,
            {"stray_marker": 14, "context_mismatch": 4, "same_speaker": 3, "duplicate": 2},
            {"reply_truncated": 226, "reply_stray_marker": 19, "reply_empty": 3},
        ),
        (
            "helpful-base-restored/train.jsonl.gz",
            1719,
            {
                "stray_marker": 8,
                "same_speaker": 2,
                "context_mismatch": 1,
                "duplicate": 1,
                "empty_turn": 1,
            },
            {
                "reply_truncated": 146,
                "reply_stray_marker": 13,
                "replies_identical": 5,
                "reply_empty": 3,
            },
        ),
    ],
)
def test_real_hh_rows(
    shared_data: Path, path: str, kept: int, dropped: dict[str, int], notes: dict[str, int]
) -> None:
    file = shared_data / "hh-rlhf" / path
    prompts, counts = mine_files("hh-rlhf", file, **{"mine.near_duplicates": None})
    with gzip.open(file) as stream:
        assert counts.rows == sum(1 for _ in stream) == kept + sum(dropped.values())
    assert (len(prompts), counts.dropped, counts.notes) == (kept, dropped, notes)
    assert {p.stratum for p in prompts} == {
        path.partition("/")[0] if path.startswith("harmless") else "all"
    }
    again = mine_files("hh-rlhf", file)[1]
    assert (
        again.dropped - counts.dropped == {"near_duplicate": counts.kept - again.kept}
        and again.kept > 0.98 * kept
    )


def test_real_hh_rows_leak_alpacaeval(shared_data: Path) -> None:
    bench = {
        "source.decontaminate_from.AlpacaEval": str(
            shared_data / "alpaca_eval" / "alpaca_eval.json"
        )
    }
    files = (shared_data / "hh-rlhf").glob("*/*.gz")
    assert mine_files("hh-rlhf", *files, **bench)[1].overlaps == {"AlpacaEval": 47}


def test_real_rows_of_another_schema(shared_data: Path) -> None:
    with pytest.raises(SourceError, match="another schema"):
        mine_files("pku-saferlhf", shared_data / "beavertails-converted" / "prompts.json")


def test_mining_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mora_data.sources.mine import mine; print([m for m in ('pyarrow',"
        " 'huggingface_hub', 'datasets', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
