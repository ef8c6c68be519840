"""Every source: what is dropped, what is noted, what becomes of the labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mora_data import resources, sources
from mora_data.errors import DropRow, SettingsError, SourceError
from mora_data.settings import SourceSettings, build_settings, load_settings
from mora_data.sources import ParsedRow
from mora_data.sources.mine import MineCounts, as_recorded, mine, open_source
from mora_data.sources.pku import CATEGORIES
from mora_data.types import Recorded

PKU = {
    "prompt": "How?",
    "response_0": "So.",
    "response_1": "Not.",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "better_response_id": 0,
    "safer_response_id": 0,
}
PKU_16 = PKU | {
    "response_0_severity_level": 0,
    "response_1_severity_level": 3,
    "response_0_harm_category": {"Drugs": False},
    "response_1_harm_category": {"Drugs": True, "Violence": True},
}
REWARD = {"kind": "precomputed", "column": "score", "range": [0, 1]}
TURN = {"role": "user", "content": "Why?"}
REPLY = {"role": "assistant", "content": "Because."}
H4 = {
    "prompt": "Why?",
    "chosen": [TURN, REPLY],
    "rejected": [TURN, {"role": "assistant", "content": "No."}],
    "score_chosen": 8.0,
    "score_rejected": 5.0,
}


def draft(
    kind: str, row: dict[str, Any], file: str = "folder/file.jsonl", **settings: Any
) -> ParsedRow:
    return sources.load_source(SourceSettings(kind=kind, **settings)).parse(row, file)


def reason(kind: str, row: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(DropRow) as caught:
        draft(kind, row, **settings)
    return caught.value.reason


def said(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {t}" for i, t in enumerate(turns))


def pair(context: str, chosen: str = "Yes.", rejected: str = "No.") -> dict[str, str]:
    return {
        "chosen": f"{context}\n\nAssistant: {chosen}",
        "rejected": f"{context}\n\nAssistant: {rejected}",
    }


def completion(
    reply: str = "Well.", rating: str | None = "4", overall: float = 8.0, fine: float | None = 4.0
) -> dict[str, Any]:
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    return {
        "response": reply,
        "overall_score": overall,
        "fine-grained_score": fine,
        "annotations": {a: {"Rating": rating} for a in aspects},
    }


def uf(*completions: dict[str, Any], **over: Any) -> dict[str, Any]:
    return {
        "source": "flan",
        "instruction": "Name a tree.",
        "completions": list(completions),
        **over,
    }


# loading


def test_every_kind_loads_and_ships_a_sample() -> None:
    for kind in sources.SOURCES:
        assert sources.load_source(SourceSettings(kind=kind)).files is not None
        assert sources.sample_path(kind).is_file()


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'hh-rlhf'"):
        sources.load_source(SourceSettings(kind="hh-rhlf"))
    with pytest.raises(SourceError, match="no sample rows"):
        sources.sample_path("hh-rhlf")


def test_a_dotted_path_is_a_source() -> None:
    assert sources.load_source(SourceSettings(kind="mora_data.sources.hh:HH_RLHF")).files()
    with pytest.raises(SettingsError, match=r"can't load source.kind"):
        sources.load_source(SourceSettings(kind="mora_data.sources.hh:Nobody"))


def test_a_source_of_one_s_own_may_carry_rated_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
from mora_data.sources import ParsedRow

class Rated:
    required, absolute = (frozenset({"ask"}),), True
    def __init__(self, settings): ...
    def files(self): return []
    def parse(self, row, file):
        asked = ({"role": "user", "content": row["ask"]},)
        return ParsedRow(asked, answers=((row["said"], {"score": row["score"]}),))

class Before(Rated):
    def recorded(self, row): ...
"""
    (tmp_path / "rated_rows.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    lines = [f'{{"ask": "q", "said": "{said}", "score": {i}}}\n' for i, said in enumerate("ab")]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    recorded = {"dimensions": ["helpful"], "rewards": {"helpful": [REWARD]}}
    tree = {"name": "own", "recorded": recorded, "policy": {"engine": "recorded"}}
    tree["source"] = {"kind": "rated_rows:Rated"}
    settings, _ = as_recorded(build_settings(tree))
    opened = open_source(settings, False, [tmp_path / "rows.jsonl"])
    (prompt,) = mine(opened, settings, MineCounts())
    assert prompt.recorded == (Recorded("a", {"score": 0}), Recorded("b", {"score": 1}))
    with pytest.raises(SettingsError, match=r"as ParsedRow\.answers in place of"):
        sources.load_source(SourceSettings(kind="rated_rows:Before"))


def test_every_builder_loads() -> None:
    names = resources.names("builders", "*.yaml")
    assert set(sources.SOURCES) <= set(names)
    for name in names:
        settings = load_settings(name)
        assert settings.name == name
        assert sources.load_source(settings.source)
        assert settings.dimensions == ["helpful", "harmless", "truthful"]
    pinned = [
        load_settings(name).source.revision
        for name in sources.SOURCES
        if name not in ("jsonl", "auto")
    ]
    assert len({r for r in pinned if r and len(r) == 40}) == 4


@pytest.mark.parametrize(
    ("kind", "config", "split", "files"),
    [
        (
            "hh-rlhf",
            "default",
            "test",
            [
                f"{d}/test.jsonl*"
                for d in (
                    "harmless-base",
                    "helpful-base",
                    "helpful-online",
                    "helpful-rejection-sampled",
                )
            ],
        ),
        ("hh-rlhf", "red-team-attempts", "train", ["red-team-attempts/train.jsonl*"]),
        (
            "pku-saferlhf",
            "default",
            "train",
            [f"data/{m}/train.jsonl*" for m in ("Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B")],
        ),
        ("pku-saferlhf", "alpaca2-7b", "test", ["data/Alpaca2-7B/test.jsonl*"]),
        ("ultrafeedback", "default", "train", ["*.jsonl"]),
        ("helpsteer", "default", "validation", ["validation.jsonl*"]),
        ("ultrafeedback", "evol_instruct", "train", ["evol_instruct.jsonl"]),
        ("ultrafeedback-binarized", "default", "train", ["data/train_prefs-*.parquet"]),
        ("ultrafeedback-binarized", "default", "test_gen", ["data/test_gen-*.parquet"]),
    ],
)
def test_upstream_layout(kind: str, config: str, split: str, files: list[str]) -> None:
    assert (
        sources.load_source(SourceSettings(kind=kind, config=config, split=split)).files() == files
    )


# PKU-SafeRLHF


def test_pku_labels_become_stratum_and_category() -> None:
    got = draft("pku-saferlhf", PKU_16)
    assert got.messages == ({"role": "user", "content": "How?"},)
    assert (got.stratum, got.category, got.notes) == ("one_safe", "Violence", ())


def test_pku_old_form() -> None:
    got = draft("pku-saferlhf", PKU)
    assert (got.stratum, got.category, got.notes) == ("one_safe", None, ("old_form",))


@pytest.mark.parametrize(
    ("over", "note"),
    [
        (
            {
                "is_response_1_safe": True,
                "response_1_severity_level": 0,
                "response_1_harm_category": {},
            },
            "forced_safer_id",
        ),
        ({"is_response_0_safe": False, "response_0_severity_level": 1}, "forced_safer_id"),
        ({"safer_response_id": 1}, "safer_id_contradiction"),
        ({"response_0_severity_level": 2}, "label_contradiction"),
        ({"response_1_severity_level": 0, "response_1_harm_category": {}}, "label_contradiction"),
        ({"is_response_0_safe": None}, "label_missing"),
        ({"response_0_severity_level": "high"}, "label_missing"),
        ({"better_response_id": None}, "label_missing"),
        ({"response_0": ""}, "reply_empty"),
        ({"response_0": None}, "reply_missing"),
        ({"response_0": "It is the"}, "reply_truncated"),
        ({"response_0": "Not."}, "replies_identical"),
        ({"response_0": "So. // end //"}, "reply_tail"),
    ],
)
def test_pku_bad_replies_and_labels_are_notes(over: dict[str, Any], note: str) -> None:
    assert note in draft("pku-saferlhf", PKU_16 | over).notes
    assert note not in draft("pku-saferlhf", PKU_16).notes


@pytest.mark.parametrize(
    "kind", ["pku-saferlhf", "ultrafeedback", "ultrafeedback-binarized", "jsonl"]
)
@pytest.mark.parametrize(
    ("value", "why"),
    [("", "empty_prompt"), (" \n", "empty_prompt"), (None, "null_text"), (7, "wrong_type")],
)
def test_an_unusable_prompt_is_dropped(kind: str, value: object, why: str) -> None:
    rows = {
        "pku-saferlhf": PKU,
        "ultrafeedback": uf(completion()),
        "ultrafeedback-binarized": H4,
        "jsonl": {},
    }
    column = "instruction" if kind == "ultrafeedback" else "prompt"
    assert reason(kind, rows[kind] | {column: value}) == why
    assert reason(kind, {k: v for k, v in rows[kind].items() if k != column}) == "missing_column"


# HH-RLHF


def test_hh_keeps_the_turns_of_the_shared_context() -> None:
    got = draft("hh-rlhf", pair(said("Hi", "Hello", "Why?")), file="helpful-base/train.jsonl.gz")
    assert [(m["role"], m["content"]) for m in got.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Why?"),
    ]
    assert (got.stratum, got.notes) == ("helpful-base", ())
    assert draft("hh-rlhf", pair(said("Hi")), config="helpful-online").stratum == "helpful-online"
    stripped = {side: text.strip() for side, text in pair(said("Hi", "Hello", "Why?")).items()}
    assert draft("hh-rlhf", stripped).messages == got.messages


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (
            {"chosen": pair(said("A"))["chosen"], "rejected": pair(said("B"))["rejected"]},
            "context_mismatch",
        ),
        (
            {
                "chosen": pair(said("A", "B", "C"))["chosen"],
                "rejected": pair(said("A"))["rejected"],
            },
            "context_mismatch",
        ),
        (pair("\n\nHuman: A\n\nHuman: B"), "same_speaker"),
        (pair(said("A", "B")), "ends_without_user"),
        (pair(said("A Assistant: B Human: C")), "stray_marker"),
        (pair(said("A", "B\nHuman: C", "D")), "stray_marker"),
        ({"chosen": said("A"), "rejected": said("A")}, "ends_on_human"),
        ({"chosen": said("A", "B", "C"), "rejected": said("A", "B", "C")}, "ends_on_human"),
        (pair(said("A", "", "C")), "empty_turn"),
        (pair(said("")), "empty_prompt"),
        (pair(""), "starts_without_user"),
        (pair("Preamble." + said("A")), "no_marker"),
        ({"chosen": "Hello", "rejected": "Hello"}, "no_marker"),
        ({"chosen": "", "rejected": ""}, "empty_prompt"),
        ({"chosen": None, "rejected": ""}, "null_text"),
        ({"chosen": ["A"], "rejected": ""}, "wrong_type"),
        ({"chosen": pair(said("A"))["chosen"]}, "missing_column"),
    ],
)
def test_hh_untrustworthy_context_is_dropped(row: dict[str, Any], why: str) -> None:
    assert reason("hh-rlhf", row) == why


@pytest.mark.parametrize(
    ("chosen", "rejected", "note"),
    [
        ("", "No.", "reply_empty"),
        ("Well, you", "No.", "reply_truncated"),
        ("No.", "No.", "replies_identical"),
        ("Yes. Human: Thanks.", "No.", "reply_stray_marker"),
    ],
)
def test_hh_bad_replies_are_notes(chosen: str, rejected: str, note: str) -> None:
    got = draft("hh-rlhf", pair(said("A"), chosen, rejected))
    assert note in got.notes
    assert got.messages == ({"role": "user", "content": "A"},)


def test_hh_reply_without_a_blank_after_the_marker_is_empty() -> None:
    row = {"chosen": said("A") + "\n\nAssistant:", "rejected": said("A", "No.")}
    assert "reply_empty" in draft("hh-rlhf", row).notes


def test_hh_red_team() -> None:
    got = draft(
        "hh-rlhf", {"transcript": said("A", "B", "C", "D."), "rating": 1.0, "tags": ["Theft"]}
    )
    assert len(got.messages) == 3
    assert (got.stratum, got.category, got.notes) == ("red-team-attempts", "Theft", ())
    unrated = draft("hh-rlhf", {"transcript": said("A", "B."), "rating": None, "tags": None})
    assert (unrated.category, unrated.notes) == (None, ("rating_missing",))


# UltraFeedback


def test_ultrafeedback_source_becomes_stratum() -> None:
    got = draft(
        "ultrafeedback", uf(*(completion(f"{i}.", str(i), fine=float(i)) for i in (1, 2, 4, 5)))
    )
    assert (got.stratum, got.notes) == ("flan", ())


@pytest.mark.parametrize(
    ("source", "why"),
    [("truthful_qa", "truthfulqa"), ("false_qa", "false_qa"), (None, "null_text")],
)
def test_ultrafeedback_benchmark_rows_are_dropped(source: object, why: str) -> None:
    assert reason("ultrafeedback", uf(completion(), source=source)) == why


@pytest.mark.parametrize(
    ("completions", "note"),
    [
        ([completion(), completion("B.", "2")], "too_few_completions"),
        (None, "too_few_completions"),
        ([completion(rating="N/A")], "rating_missing"),
        ([completion(rating=None)], "rating_missing"),
        ([completion(rating="6")], "rating_missing"),
        ([completion(fine=None)], "fine_grained_missing"),
        ([completion(fine=float("nan"))], "fine_grained_missing"),
        ([completion(overall=10.0, fine=1.5)], "overall_score_bug"),
        ([completion("A."), completion("B.")], "tie"),
        ([completion(""), completion("B.", "2")], "reply_empty"),
        ([{"response": None}], "reply_missing"),
    ],
)
def test_ultrafeedback_bad_ratings_are_notes(completions: Any, note: str) -> None:
    assert note in draft("ultrafeedback", uf() | {"completions": completions}).notes


# UltraFeedback, binarized


def test_h4_keeps_a_system_turn() -> None:
    system = {"role": "system", "content": "Be brief."}
    row = H4 | {"chosen": [system, TURN, REPLY], "rejected": [system, TURN, REPLY]}
    got = draft("ultrafeedback-binarized", row)
    assert [m["role"] for m in got.messages] == ["system", "user"]
    assert "replies_identical" in got.notes


@pytest.mark.parametrize(
    ("over", "why"),
    [
        ({"rejected": [TURN | {"content": "What?"}, REPLY]}, "context_mismatch"),
        ({"prompt": "Another?"}, "context_mismatch"),
        ({"chosen": [TURN, TURN], "rejected": [TURN, TURN]}, "same_speaker"),
        ({"chosen": [TURN, TURN, REPLY], "rejected": [TURN, TURN, REPLY]}, "same_speaker"),
        ({"chosen": "Why?"}, "wrong_type"),
        ({"chosen": None}, "null_text"),
        ({"chosen": []}, "empty_prompt"),
        ({"chosen": [TURN | {"role": "tool"}, REPLY]}, "unknown_role"),
        ({"chosen": [{"role": "user"}, REPLY]}, "missing_column"),
    ],
)
def test_h4_untrustworthy_context_is_dropped(over: dict[str, Any], why: str) -> None:
    assert reason("ultrafeedback-binarized", H4 | over) == why


def test_h4_scores() -> None:
    assert "tie" in draft("ultrafeedback-binarized", H4 | {"score_rejected": 8.0}).notes
    assert "score_missing" in draft("ultrafeedback-binarized", H4 | {"score_rejected": None}).notes
    with pytest.raises(SettingsError, match="292c1632"):
        sources.load_source(
            SourceSettings(kind="ultrafeedback-binarized", revision="292c1632deadbeef")
        )


# anyone's rows


def test_jsonl_needs_no_mapping() -> None:
    assert draft("jsonl", {"prompt": " Why? ", "category": "home"}) == ParsedRow(
        (TURN,), "home", "home"
    )  # type: ignore[arg-type]
    assert draft("jsonl", {"prompt": [TURN]}).messages == (TURN,)
    finished = draft("jsonl", {"messages": [{"role": "system", "content": "S"}, TURN, REPLY]})
    assert [m["role"] for m in finished.messages] == ["system", "user"]
    assert finished.notes == ("reply_ignored",)
    empty = draft("jsonl", {"messages": [{"role": "system", "content": " "}, TURN]})
    assert empty.messages == (TURN,)


def test_jsonl_mapping() -> None:
    columns = {"prompt": "question", "category": "topic"}
    assert draft("jsonl", {"question": "Why?", "topic": "x"}, columns=columns).category == "x"
    assert reason("jsonl", {"prompt": "Why?"}, columns=columns) == "missing_column"
    with pytest.raises(SettingsError, match="did you mean 'prompt'"):
        draft("jsonl", {}, columns={"promt": "question"})


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([REPLY], "starts_without_user"),
        ([TURN, TURN], "same_speaker"),
        ([TURN, REPLY, REPLY], "ends_without_user"),
        ([TURN, {"role": "system", "content": "S"}], "misplaced_system"),
        ([TURN | {"content": ""}], "empty_prompt"),
        (["Why?"], "wrong_type"),
        ([TURN | {"content": 1}], "wrong_type"),
    ],
)
def test_jsonl_bad_messages(messages: object, why: str) -> None:
    assert reason("jsonl", {"messages": messages}) == why


def test_the_nineteen_categories() -> None:
    assert len(set(CATEGORIES)) == 19
