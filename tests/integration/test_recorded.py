"""`--engine recorded`: a source's own answers and ratings become pairs; no model is asked, nothing
is fused or simulated."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

import mora_data
from mora_data.cli import main
from mora_data.errors import EndpointError, SettingsError
from mora_data.settings import build_settings, load_settings
from mora_data.sources import SourceAdapter, is_rated, load_source
from mora_data.sources.mine import RECORDED_MESSAGE, MineCounts, as_recorded, mine, open_source

KINDS = {
    "ultrafeedback": ["helpful", "truthful"],
    "pku-saferlhf": ["helpful", "harmless"],
    "hh-rlhf": ["preferred"],
    "ultrafeedback-binarized": ["overall"],
    "helpsteer": ["helpful", "truthful"],
}


def build(
    source: str, out: Path, capsys: pytest.CaptureFixture[str], *more: str, sample: bool = True
) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    code = main(
        [
            "build",
            "--source",
            source,
            *(["--sample"] if sample else []),
            "--engine",
            "recorded",
            "--out",
            str(out),
            "--json",
            *more,
        ]
    )
    printed, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(printed), err


@pytest.mark.parametrize("source", KINDS)
def test_sample_rows_give_pairs_without_a_request(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, err = build(source, tmp_path, capsys)
    assert err.count(RECORDED_MESSAGE) == 1 and "simulat" not in err
    assert (
        summary["requests"] == summary["replayed"] == summary["errors"] == 0
        and summary["pairs"] > 40
    )
    for stage, c in summary["counts"].items():
        assert c["in"] == c["kept"] + sum(c["dropped"].values()), stage
    assert (
        summary["counts"]["fuse"] == summary["counts"]["presample"]
        and not summary["counts"]["fuse"]["dropped"]
    )
    run = mora_data.load_run(tmp_path)
    rows = [r for split in ("train", "test") for r in run.pairs(split=split)]
    assert len(rows) == summary["pairs"]
    for r in rows:
        assert (
            r["dims"] == KINDS[source]
            and r["simulated"] is False
            and r["arm"] == "recorded"
            and r["kind"] == "plain"
        )
        assert (
            r["source_dataset"] == f"mora-data/sample-{source}"
            and r["source_row"] >= 0
            and r["policy"].startswith("recorded/")
        )
        margins = [r[f"margin_{d}"] for d in r["dims"]]
        assert (
            min(margins) >= 0
            and max(margins) > 0
            and all(r[f"chosen_reward_{d}"] >= 0.75 for d in r["dims"])
        )
    card = (tmp_path / "dataset/README.md").read_text()
    assert (
        "no model was asked to answer" in card
        and "no model answered" in card
        and "the same model wrote" not in card
    )
    assert "the policy answers" not in card and "simulated: true" not in card
    assert json.loads((tmp_path / "manifest.json").read_text())["simulated"] is False


def test_the_same_rows_give_the_same_bytes_and_a_second_run_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files(run: Path) -> dict[str, bytes]:
        return {
            str(p.relative_to(run)): p.read_bytes()
            for p in sorted((run / "dataset").rglob("*.parquet"))
        }

    one, _ = build("helpsteer", tmp_path / "a", capsys)
    first = files(tmp_path / "a")
    build("helpsteer", tmp_path / "b", capsys)
    again, _ = build("helpsteer", tmp_path / "a", capsys)
    assert (
        first
        and files(tmp_path / "b") == first == files(tmp_path / "a")
        and again["counts"] == one["counts"]
    )


# what each source carries


def rows_of(kind: str, row: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    adapter = load_source(load_settings(kind).source)
    assert is_rated(adapter)
    return [(text, dict(found)) for text, found in adapter.parse(row, "").answers]


def test_ratings_are_read_as_the_rows_have_them() -> None:
    pku = {
        "prompt": "q",
        "response_0": "a",
        "response_1": "b",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "response_0_severity_level": 0,
        "response_1_severity_level": 3,
        "better_response_id": 1,
        "safer_response_id": 0,
    }
    assert rows_of("pku-saferlhf", pku) == [
        ("a", {"severity": 0, "safe": 1, "better": 0, "safer": 1}),
        ("b", {"severity": 3, "safe": 0, "better": 1, "safer": 0}),
    ]
    assert rows_of(
        "pku-saferlhf", {**pku, "better_response_id": None, "response_0_severity_level": 9}
    )[0] == ("a", {"safe": 1, "safer": 1})
    assert rows_of("pku-saferlhf", {**pku, "response_0": None})[0][0] == "b"
    rating = {
        "annotations": {
            "helpfulness": {"Rating": "4"},
            "truthfulness": {"Rating": "N/A"},
            "honesty": None,
        }
    }
    assert rows_of(
        "ultrafeedback",
        {
            "source": "flan",
            "instruction": "q",
            "completions": [
                {"response": "a", **rating},
                {"response": None},
                "x",
                {"response": "b"},
            ],
        },
    ) == [("a", {"helpfulness": 4}), ("b", {})]
    assert rows_of(
        "helpsteer",
        {"prompt": "q", "response": "a", "helpfulness": 3, "correctness": 9, "coherence": None},
    ) == [("a", {"helpfulness": 3})]
    hh = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    assert [r for _, r in rows_of("hh-rlhf", hh)] == [
        {"preferred": 1},
        {"preferred": 0},
    ] and rows_of("hh-rlhf", {"transcript": hh["chosen"]}) == []
    assert rows_of("jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"}) == [
        ("a", {"preferred": 1}),
        ("b", {"preferred": 0}),
    ]
    assert rows_of(
        "jsonl",
        {"prompt": "q", "answers": [{"text": "a", "ratings": {"x": 2, "y": "3"}}, {"text": 1}, 5]},
    ) == [("a", {"x": 2.0})]


def mined(
    kind: str, rows: list[dict[str, Any]], folder: Path, **over: Any
) -> tuple[list[tuple[str, list[str]]], dict[str, Any]]:
    file = folder / "train.jsonl"
    file.write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))
    settings, _ = as_recorded(load_settings(kind, {"policy.engine": "recorded", **over}))
    counts = MineCounts()
    prompts = list(mine(open_source(settings, False, [file]), settings, counts))
    assert counts.rows == counts.kept + sum(counts.dropped.values())
    return [(p.text, [r.text for r in p.recorded]) for p in prompts], {
        **counts.as_dict(),
        "notes": dict(counts.notes),
    }


def steer(prompt: str, response: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "response": response,
        "helpfulness": 1,
        "correctness": 2,
        "coherence": 3,
        "complexity": 4,
        "verbosity": 0,
    }


def test_neighbours_of_one_prompt_join_their_answers(tmp_path: Path) -> None:
    rows = [
        steer("p", "1"),
        steer("P ", "2"),
        steer("q", "3"),
        steer("p", "4"),
        steer(" ", "5"),
        steer("r", "6"),
        steer("r", "7"),
        steer("r", "8"),
    ]
    prompts, counts = mined("helpsteer", rows, tmp_path)
    assert prompts == [("p", ["1", "2"]), ("q", ["3"]), ("r", ["6", "7", "8"])]
    assert (
        counts["dropped"] == {"duplicate": 4, "empty_prompt": 1}
        and counts["notes"]["answers_joined"] == 3
    )


@pytest.mark.parametrize(
    ("limit", "prompts", "dropped"),
    [
        (1, [("p", ["1", "2"])], {"duplicate": 1, "over_limit": 1}),
        (2, [("p", ["1", "2"]), ("q", ["3"])], {"duplicate": 1}),
    ],
)
def test_a_limit_does_not_cut_a_prompt_s_answers(
    limit: int, prompts: list[Any], dropped: dict[str, int], tmp_path: Path
) -> None:
    found, counts = mined(
        "helpsteer",
        [steer("p", "1"), steer("p", "2"), steer("q", "3")],
        tmp_path,
        **{"mine.limit": limit},
    )
    assert found == prompts and counts["dropped"] == dropped


def test_packed_turns_of_helpsteer_are_turns() -> None:
    source: SourceAdapter = load_source(load_settings("helpsteer").source)
    draft = source.parse(steer("a<extra_id_1>Assistant\nb\nc<extra_id_1>User\nd", "e"), "")
    assert [(m["role"], m["content"]) for m in draft.messages] == [
        ("user", "a"),
        ("assistant", "b\nc"),
        ("user", "d"),
    ]


def test_labels_that_compare_two_replies_are_never_mixed_with_another_row_s(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    prompts, counts = mined("jsonl", [row, {**row, "chosen": "c"}], tmp_path)
    assert prompts == [("p", ["a", "b"]), ("p", ["c", "b"])] and counts["dropped"] == {}


def test_other_engines_carry_no_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "build",
                "--source",
                "ultrafeedback",
                "--sample",
                "--until",
                "mine",
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    capsys.readouterr()
    lines = [
        json.loads(line)
        for line in (tmp_path / "parts/00000/prompts.jsonl").read_text().splitlines()
    ]
    assert lines and all(line["recorded"] == [] for line in lines)
    build("ultrafeedback", tmp_path, capsys, "--until", "mine")
    lines = [
        json.loads(line)
        for line in (tmp_path / "parts/00000/prompts.jsonl").read_text().splitlines()
    ]
    assert sum(len(line["recorded"]) for line in lines) > 300


# what is missing, wrong or forbidden


def test_missing_ratings_are_counted_and_never_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(*ratings: dict[str, object]) -> dict[str, Any]:
        return {"answers": [{"text": f"{i} is it.", "ratings": r} for i, r in enumerate(ratings)]}

    rows = [
        {"prompt": f"q{i}", **answers({"x": 5}, {"x": 1}, {"x": 9}, {"y": 1}, {"x": "5"})}
        for i in range(12)
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))
    rewards = "{dimensions: [x], rewards: {x: [{kind: precomputed, column: x, range: [1, 5]}]}}"
    summary, _ = build(
        "jsonl",
        tmp_path / "run",
        capsys,
        "--data",
        str(tmp_path / "rows.jsonl"),
        "--set",
        f"recorded={rewards}",
        "--set",
        "limits.max_error_share=1",
        sample=False,
    )
    assert (
        summary["counts"]["score"] == {"in": 60, "kept": 24, "dropped": {"unscored": 36}}
        and summary["pairs"] == 12
    )
    errors = [
        json.loads(line)["error"]
        for line in (tmp_path / "run/errors.jsonl").read_text().splitlines()
    ]
    # a rating that is not there is no failure; one that can't be is
    assert errors == ["out_of_range"] * 12
    scored = mora_data.load_run(tmp_path / "run").pairs("scored")
    assert all(r["rewards_x"] == [1.0, 0.0, None, None, None] for r in scored)


@pytest.mark.parametrize(
    ("source", "over", "says"),
    [
        (
            "hh-rlhf",
            {"publish.configs": ["preference", "sft"]},
            "publish.configs names sft: the card of HH-RLHF forbids",
        ),
        ("pku-saferlhf", {"recorded": None}, "pku-saferlhf has no such part"),
        (
            "pku-saferlhf",
            {"recorded.rewards": {"helpful": []}},
            "recorded.rewards lacks helpful, harmless",
        ),
        ("mine", {}, "has no such answers"),
    ],
)
def test_what_cannot_be_is_refused(source: str, over: dict[str, object], says: str) -> None:
    settings = (
        build_settings(
            {"name": "x", "source": {"kind": f"{__name__}:Bare"}, "policy": {"engine": "recorded"}}
        )
        if source == "mine"
        else load_settings(source, {"policy.engine": "recorded", **over})
    )
    with pytest.raises(SettingsError, match=says):
        as_recorded(settings)


class Bare:
    """A source without answers."""

    required = (frozenset({"prompt"}),)

    def __init__(self, settings: object) -> None: ...

    def files(self) -> list[object]:
        return []

    def parse(self, row: object, file: str) -> None: ...


def test_hh_has_no_sft_and_pku_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = build("hh-rlhf", tmp_path / "hh", capsys)
    assert (
        "without the config sft: the card of HH-RLHF" in err
        and not (tmp_path / "hh/dataset/sft").exists()
    )
    _, err = build("pku-saferlhf", tmp_path / "pku", capsys)
    assert (
        "warning: the licence of PKU-SafeRLHF is non-commercial" in err
        and (tmp_path / "pku/dataset/sft").is_dir()
    )


def test_a_precomputed_rating_needs_recorded_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override = "rewards={helpful: [{kind: precomputed, column: helpfulness, range: [1, 5]}]}"
    argv = [
        "build",
        "--source",
        "ultrafeedback",
        "--sample",
        "--engine",
        "scripted",
        "--out",
        str(tmp_path),
    ]
    code = main([*argv, "--set", override])
    err = capsys.readouterr().err
    assert (
        code == 1
        and "a precomputed rating belongs to the source's own answers: give --engine recorded"
        in err
    )


def test_a_judge_beside_the_ratings_needs_a_server_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "recorded.rewards.truthful=[{kind: judge}]"
    argv = [
        "build",
        "--source",
        "ultrafeedback",
        "--sample",
        "--engine",
        "recorded",
        "--out",
        str(tmp_path),
        "--limit",
        "3",
        "--set",
        more,
    ]
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert "the engine recorded can't answer as judge" in err and "Traceback" not in err
    assert EndpointError is not SettingsError
    assert main([*argv, "--set", "judge.engine=scripted", "--set", "judge.use=null"]) == 0
    assert mora_data.load_run(tmp_path).counts["score"]["kept"] > 0


def test_the_dry_run_says_that_nothing_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "build",
                "--source",
                "helpsteer",
                "--sample",
                "--engine",
                "recorded",
                "--dry-run",
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["requests"] == [0, 0] and found["tokens_in"] == [0, 0] and found["prompts"] > 40
    judge = "recorded.rewards.truthful=[{kind: judge}]"
    assert (
        main(
            [
                "build",
                "--source",
                "helpsteer",
                "--sample",
                "--engine",
                "recorded",
                "--dry-run",
                "--json",
                "--set",
                judge,
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["requests"][0] > 80


REAL = {  # folder and file under MORA_TEST_DATA, builder, further settings, prompts
    "hh": ("hh-rlhf/helpful-base-restored/test.jsonl.gz", "hh-rlhf", (), 540),
    "pku": (
        "pku-saferlhf-converted/pairs_test.json",
        "jsonl",
        ("--set", "source.columns={prompt: query}"),
        240,
    ),
    "uf": ("ultrafeedback-converted/binarized_eval.jsonl", "jsonl", (), 140),
}


@pytest.mark.parametrize("name", REAL)
def test_real_rows_give_pairs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, source, more, prompts = REAL[name]
    path = Path(os.environ.get("MORA_TEST_DATA", "")) / file
    if not os.environ.get("MORA_TEST_DATA") or not path.is_file():
        pytest.skip(f"no real rows: MORA_TEST_DATA does not name a folder with {file}")
    summary, _ = build(source, tmp_path, capsys, "--data", str(path), *more, sample=False)
    c = summary["counts"]
    print(
        f"{name}: {c['mine']['in']} rows, {c['rollout']['kept']} answers, {summary['pairs']} pairs;"
        f" {c['select']['dropped']}"
    )
    assert (
        c["mine"]["kept"] >= prompts
        and c["score"]["kept"] == c["rollout"]["kept"]
        and summary["errors"] == 0
    )
    assert summary["pairs"] > prompts / 2 and c["select"]["in"] == c["select"]["kept"] + sum(
        c["select"]["dropped"].values()
    )
