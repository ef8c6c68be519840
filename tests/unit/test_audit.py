"""`mora-data audit`: pairs of labelled answers, the figures on fixed scores, the command against a
server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_openai import FakeOpenAI, Fault

from mora_data.cli import main
from mora_data.cli.dry_run import estimate
from mora_data.rewards.audit import (
    Labelled,
    PairScores,
    audit_rows,
    differences,
    labelled_pairs,
)
from mora_data.rewards.combine import sources_of
from mora_data.settings import BuildSettings, build_settings, load_settings
from mora_data.sources import load_source
from mora_data.sources.mine import OpenedSource
from mora_data.sources.read import SourceRow
from mora_data.statistics.inference import rate_interval
from mora_data.statistics.judges import label_agreement, right
from mora_data.text import digest
from mora_data.types import Score


def settings_with(labels: Mapping[str, Any], **more: Any) -> BuildSettings:
    tree = {"name": "x", "source": {"kind": "jsonl"}, "audit": {"labels": labels}, **more}
    return build_settings({"dimensions": ["helpful"], **tree})


def opened(
    rows: Sequence[Mapping[str, Any]], kind: str = "jsonl", **source: Any
) -> tuple[OpenedSource]:
    settings = build_settings({"name": "x", "source": {"kind": kind, **source}})
    read = [SourceRow(i, "rows.jsonl", row) for i, row in enumerate(rows)]
    where = ("local", "local", "local", "local:0", "unknown")
    return (OpenedSource(load_source(settings.source), read, *where),)


def texts(found: Labelled) -> list[tuple[str, str, str]]:
    return [(p.dimension, p.better.text.strip(), p.worse.text.strip()) for p in found.pairs]


def pku(i: int, safe: tuple[bool, bool], better: int = 0) -> dict[str, Any]:
    return {
        "prompt": f"How do I clean pan {i}?",
        "response_0": f"Soak it, {i}.",
        "response_1": f"Scrub it, {i}.",
        "is_response_0_safe": safe[0],
        "is_response_1_safe": safe[1],
        "better_response_id": better,
        "safer_response_id": 0,
    }


# figures on fixed numbers


def test_the_share_of_right_pairs_counts_ties_half_and_leaves_out_what_was_not_read() -> None:
    better = np.array([5, 4, 3, 2, np.nan, 1.0])
    worse = np.array([1, 4, 4, 1, 2, np.nan])
    assert np.array_equal(right(better, worse), [1, 0.5, 0, 1, np.nan, np.nan], equal_nan=True)


def test_over_all_pairs_of_two_classes_it_is_the_auc() -> None:
    """By hand: of 3 x 2 pairs 4 are in order and one is a tie, (4 + 1/2) / 6."""
    good, bad = np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])
    assert right(np.repeat(good, 2), np.tile(bad, 3)).mean() == pytest.approx(4.5 / 6)


def test_the_interval_is_that_of_a_share_and_clusters_widen_it() -> None:
    judged, coin = np.repeat([1.0, 1.0, 0.0, 1.0, 0.0], 20), np.full(100, 0.5)
    share, gain = label_agreement(judged, coin, np.arange(100))
    low, high = rate_interval(np.array(60.0), np.array(100.0))
    assert share == pytest.approx((0.6, float(low), float(high), 100), abs=0.01)
    assert gain.gain == pytest.approx(0.1) and gain.n == 100
    # half of 1.96 sqrt(.6 * .4 / 100) = 0.096 on either side
    assert (gain.low, gain.high) == (pytest.approx(0.004, abs=0.02), pytest.approx(0.196, abs=0.02))
    wide, _ = label_agreement(judged, coin, np.arange(100) // 20)
    assert wide.high - wide.low > 2 * (share.high - share.low)


def test_a_difference_is_taken_on_the_pairs_that_both_have() -> None:
    first = np.array([1.0, 0.0, np.nan, 1.0] * 10)
    second = np.array([1.0, 1.0, 1.0, np.nan] * 10)
    share, gain = label_agreement(second, first, np.arange(40))
    assert share.n == 30 and gain.n == 20
    assert gain.gain == pytest.approx(0.5)


@pytest.mark.parametrize("n", [0, 1])
def test_too_little_gives_no_interval(n: int) -> None:
    column = np.array([1.0] * n + [np.nan] * 3)
    share, gain = label_agreement(column, column, np.arange(len(column)))
    assert (share.n, share.low, share.high) == (n, 0.0, 1.0)
    assert gain == (None, None, None, n)


# pairs


def test_a_pair_is_two_answers_to_one_prompt_with_different_labels() -> None:
    rows = [pku(0, (True, False)), pku(1, (True, True), 1), pku(2, (False, True), 1)]
    labels = {"helpful": "better", "harmless": "safe"}
    s = settings_with(labels, dimensions=["helpful", "harmless", "truthful"])
    found = labelled_pairs(opened(rows, "pku-saferlhf"), s)
    assert texts(found) == [
        ("helpful", "Soak it, 0.", "Scrub it, 0."),
        ("helpful", "Scrub it, 1.", "Soak it, 1."),
        ("helpful", "Scrub it, 2.", "Soak it, 2."),
        ("harmless", "Soak it, 0.", "Scrub it, 0."),
        ("harmless", "Scrub it, 2.", "Soak it, 2."),
    ]
    assert found.without == {"truthful": "no rating is said to speak of it (audit.labels)"}


def test_the_first_pairs_are_the_same_whatever_the_limit() -> None:
    rows = [
        {
            "prompt": f"What is {i}?",
            "answers": [{"text": f"{i} {k}", "ratings": {"r": k}} for k in range(4)],
        }
        for i in range(9)
    ]
    found = [
        texts(
            labelled_pairs(
                opened(rows),
                settings_with({"helpful": "r"}).model_copy(
                    update={
                        "audit": settings_with({"helpful": "r"}).audit.model_copy(
                            update={"limit": n}
                        )
                    }
                ),
            )
        )
        for n in (4, 100)
    ]
    assert len(found[0]) == 4 and found[1][:4] == found[0]
    assert len(found[1]) == 9, "one a prompt"
    assert len({better.split()[1] + worse.split()[1] for _, better, worse in found[1]}) > 2


def test_lower_is_better_where_the_label_says_so() -> None:
    rows = [
        {
            "prompt": "Hi?",
            "answers": [{"text": a, "ratings": {"harm": h}} for a, h in (("calm", 0), ("rude", 3))],
        }
    ]
    label = {"rating": "harm", "invert": True}
    assert texts(labelled_pairs(opened(rows), settings_with({"helpful": label}))) == [
        ("helpful", "calm", "rude")
    ]


def test_rows_speak_of_a_dimension_by_their_stratum() -> None:
    row = {
        "chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.",
        "rejected": "\n\nHuman: Hi?\n\nAssistant: What?",
    }
    s = load_settings("hh-rlhf")
    for config, there in (("helpful-base", "helpful"), ("harmless-base", "harmless")):
        found = labelled_pairs(opened([row], "hh-rlhf", config=config), s)
        assert texts(found) == [(there, "Hello.", "What?")]


def test_answers_alone_at_their_prompts_meet_those_of_other_prompts() -> None:
    rows = [
        {"prompt": f"Q{i}?", "answers": [{"text": f"A{i}", "ratings": {"ok": ok}}]}
        for i, ok in enumerate((1, 1, 0, 1, 0, 0))
    ]
    found = labelled_pairs(opened(rows), settings_with({"helpful": "ok"}))
    assert texts(found) == [("helpful", f"A{a}", f"A{b}") for a, b in ((0, 2), (1, 4), (3, 5))]


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([("a", {"r": 2}), ("b", {"r": 2})], "all 2 ratings 'r' are 2: one class only"),
        ([("a", {"q": 2}), ("b", {})], "no answer of the rows has the rating 'r'"),
        ([("a", {"r": 2}), (" ", {"r": 1})], "all 1 ratings 'r' are 2"),
    ],
)
def test_labels_that_tell_nothing_apart_are_named(
    answers: list[tuple[str, Any]], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "Hi?", "answers": [{"text": t, "ratings": r} for t, r in answers]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    argv = ["audit", "--source", "jsonl", "--data", str(path), "--set", "dimensions=[helpful]"]
    argv += ["--set", "audit.labels.helpful=r", "--out", str(tmp_path / "run")]
    assert main([*argv, "--base-url", "http://127.0.0.1:9/v1"]) == 1
    err = capsys.readouterr().err.strip()
    assert "nothing to audit with in source jsonl: helpful: " + why in err
    assert "\n" not in err


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--limit", "0"], "audit.limit is 0, so there is nothing to do: give --limit N"),
        (["--engine", "recorded"], "an audit asks the judges: leave --engine recorded out"),
        (["--source", "hh-rlhf"], "no answer of the rows of strata helpful-* has the rating"),
        (["--seed", "0"], "no model endpoint is known: give --base-url URL"),
    ],
)
def test_what_can_not_be_audited_is_one_line(
    flags: list[str],
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "rows.jsonl"
    turn = "\n\nHuman: Hi?\n\nAssistant: "
    answers = [{"text": t, "ratings": {"r": r}} for t, r in (("a", 1), ("b", 0))]
    row = {"prompt": "Hi?", "answers": answers, "chosen": turn + "a", "rejected": turn + "b"}
    path.write_text(json.dumps(row))
    argv = ["audit", "--data", str(path), "--out", str(tmp_path / "run")]
    if flags[0] != "--source":
        argv += ["--source", "jsonl", "--set", "audit.labels.helpful=r"]
    assert main([*argv, *flags]) == 1
    err = capsys.readouterr().err.strip()
    assert why in err and "\n" not in err


# rows


def scored(
    values: Sequence[tuple[float | None, float | None]], lengths: tuple[int, int] = (3, 2)
) -> tuple[Labelled, list[PairScores]]:
    rows = [
        {
            "prompt": f"What is {i}?",
            "answers": [
                {"text": "word " * lengths[0] + f"{i}a", "ratings": {"r": 1}},
                {"text": "word " * lengths[1] + f"{i}b", "ratings": {"r": 0}},
            ],
        }
        for i in range(len(values))
    ]
    many = settings_with({"helpful": "r"})
    many = many.model_copy(update={"audit": many.audit.model_copy(update={"limit": 1000})})
    found = labelled_pairs(opened(rows), many)
    scores = [
        PairScores(
            [[Score("helpful", "judge", v, v, "" if v is not None else "no_verdict") for v in both]]
        )
        for both in values
    ]
    return found, scores


def rows_for(values: Sequence[tuple[float | None, float | None]], **more: Any) -> Any:
    s = settings_with({"helpful": "r"})
    sources = sources_of(s)
    labelled, scores = scored(values, **more)
    (row,) = audit_rows(labelled, scores, sources, s)
    return row


@pytest.mark.parametrize(
    ("values", "lengths", "end"),
    [
        ([(1.0, 0.0)] * 12, (3, 2), "too few pairs to tell"),
        ([(1.0, 0.0), (0.0, 1.0)] * 30, (2, 2), "it can't be told from a coin"),
        ([(0.0, 1.0)] * 40, (2, 2), "look whether a scale is turned"),
        ([(1.0, 0.0)] * 50 + [(0.0, 1.0)] * 10, (3, 2), "it is not surely better than length"),
        ([(1.0, 0.0)] * 50 + [(0.0, 1.0)] * 10, (2, 2), "it knows more than length"),
        ([(None, None)] * 30, (2, 2), "gave no score that can be compared in 30 pairs"),
    ],
)
def test_one_sentence_says_what_the_row_means(
    values: list[tuple[float | None, float | None]], lengths: tuple[int, int], end: str
) -> None:
    row = rows_for(values, lengths=lengths)
    assert end in row["sentence"]
    assert row["sentence"].count(".") == 1


def test_a_row_counts_ties_and_what_was_read() -> None:
    row = rows_for([(1.0, 0.5), (0.5, 0.5), (None, 0.5), (0.25, 0.75)] * 10)
    assert row["agreement"]["rate"] == pytest.approx(0.5) and row["agreement"]["n"] == 30
    assert row["ties"] == pytest.approx(1 / 3, abs=1e-5)
    assert row["parse_rate"] == pytest.approx(70 / 80)
    assert (row["length_rule"], row["length"]["rate"]) == ("longer", 1.0)
    assert row["over_length"]["gain"] == pytest.approx(-0.5)


def test_the_shorter_answer_may_be_the_better_rule() -> None:
    row = rows_for([(1.0, 0.0)] * 30, lengths=(2, 5))
    assert (row["length_rule"], row["length"]["rate"]) == ("shorter", 1.0)


def test_two_judges_are_compared_pair_by_pair() -> None:
    s = settings_with({"helpful": "r"})
    sources = sources_of(s)
    labelled, poor = scored([(0.0, 1.0), (1.0, 0.0)] * 20)
    _, good = scored([(1.0, 0.0)] * 40)
    (d,) = differences(labelled, (sources, poor), (sources, good))
    assert d["gain"]["gain"] == pytest.approx(0.5) and d["gain"]["n"] == 40
    assert "the second agrees more with the labels" in d["sentence"]


# the command against a server

ANSWER = re.compile(r"<answer-\w+>\n(.*?)\n</answer-", re.S)


def by_length(body: dict[str, Any], time: int) -> Fault | None:
    """A judge that likes long answers among the labelled ones, and scores others by their hash."""
    if "response_format" not in body:
        return None
    answer = ANSWER.findall("\n".join(m["content"] for m in body["messages"]))[-1]
    score = len(answer.split()) if answer.startswith("One") else 1 + int(digest(answer), 16) % 5
    return Fault(text=json.dumps({"score": score}))


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(script=by_length) as fake:
        yield fake


def data(path: Path, n: int = 12) -> Path:
    """Pairs of which the longer answer is preferred two times in three."""
    rows = []
    for i in range(n):
        long, short = f"One two three {i}.", f"One {i}."
        sides = (long, short) if i % 3 else (short, long)
        rows.append({"prompt": f"Say {i}?", "chosen": sides[0], "rejected": sides[1]})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def command(name: str, path: Path, server: FakeOpenAI, out: Path, *more: str) -> list[str]:
    return [
        *(name, "--source", "jsonl", "--data", str(path), "--base-url", server.base_url),
        *("--set", "dimensions=[helpful]", "--set", "audit.labels.helpful=preferred"),
        *("--out", str(out), "--json", *more),
    ]


def printed(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    capsys.readouterr()
    assert main(argv) == code, capsys.readouterr().err
    out = capsys.readouterr().out
    return json.loads(out) if out else {}


def test_an_audit_is_resumed_and_the_build_in_its_folder_asks_none_of_it_again(
    server: FakeOpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = data(tmp_path / "rows.jsonl"), tmp_path / "run"
    audit = command("audit", path, server, run)
    few = ["--max-tokens", "150", *("--set", "judge.concurrency=2")]  # 15 tokens a reply
    printed([*audit, *few, *("--set", "policy.concurrency=2")], capsys, code=1)
    part = len(server.requests)
    assert 0 < part < 24
    found = printed(audit, capsys)
    (row,) = found["audit"]["rows"]
    assert row["agreement"]["rate"] == pytest.approx(8 / 12, abs=1e-5)
    assert found["audit"]["without"] == {} and found["audit"]["owed"] == 0
    assert server.repeated() == 0
    asked = len(server.requests)
    again = printed(audit, capsys)
    assert (len(server.requests), again["requests"]) == (asked, 0)
    assert again["audit"] == found["audit"]
    quick = "presample.n=[4] presample.canaries=0 rollout.n=4 fuse.arms=[identity]".split()
    build = command("build", path, server, run, "--limit", "6", "--allow-unreliable")
    for text in (*quick, "select.confirm=false"):
        build += ["--set", text]
    printed(build, capsys)
    assert server.repeated() == 0
    said = ["\n".join(m["content"] for m in r["messages"]) for r in server.requests[asked:]]
    answers = [a[-1] for text in said if (a := ANSWER.findall(text))]
    assert answers and not [a for a in answers if a.startswith("One")], "asked once more"
    for name in ("manifest.json", "report.json"):
        assert json.loads((run / name).read_text())["judge_audit"] == found["audit"]
    for name in ("report.html", "dataset/README.md"):
        assert row["sentence"] in (run / name).read_text()
    doubts = json.loads((run / "report.json").read_text())["doubts"]
    assert f"Before the build, {row['sentence']}" in doubts


def test_a_build_audits_by_itself_and_0_leaves_it_out(
    server: FakeOpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data(tmp_path / "rows.jsonl")
    for limit, n in ((5, 5), (0, None)):
        run = tmp_path / f"run-{limit}"
        argv = command("build", path, server, run, "--set", f"audit.limit={limit}", "--limit", "2")
        printed([*argv, "--until", "presample", "--set", "presample.n=[2]"], capsys)
        audit = json.loads((run / "manifest.json").read_text())["judge_audit"]
        assert (audit["rows"][0]["pairs"] if audit else None) == n
        assert (run / "judge_audit.json").exists() == (limit > 0)


def test_neither_the_sample_nor_the_simulator_is_audited_in_a_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data(tmp_path / "rows.jsonl")
    for rows in (["--sample"], ["--data", str(path), "--engine", "scripted"]):
        run = tmp_path / rows[0].strip("-")
        argv = ["build", "--source", "jsonl", *rows, "--out", str(run), "--json"]
        argv += ["--until", "presample", "--set", "presample.n=[2]"]
        printed([*argv, "--limit", "1", "--set", "audit.labels.helpful=preferred"], capsys)
        assert not (run / "judge_audit.json").exists()


def test_two_rubrics_are_compared_on_the_same_rows(
    server: FakeOpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data(tmp_path / "rows.jsonl")
    audit = command("audit", path, server, tmp_path / "run")
    changed = "rewards.helpful.template=truthful"
    found = printed([*audit, "--compare-set", changed], capsys)
    assert [a["rows"][0]["source"] for a in (found["audit"], found["other"])] == [
        "judge:helpful",
        "judge:truthful",
    ]
    (difference,) = found["differences"]
    assert difference["gain"]["gain"] == 0 and difference["gain"]["n"] == 12
    assert "no sure difference" in difference["sentence"]


def test_a_comparing_judge_shows_its_position_flips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def first(body: dict[str, Any], time: int) -> Fault | None:
        return Fault(text='{"score": 1}') if "response_format" in body else None

    path = data(tmp_path / "rows.jsonl")
    with FakeOpenAI(script=first) as server:
        audit = command("audit", path, server, tmp_path / "run", "--limit", "6")
        changed = ["--set", "rewards.helpful.kind=pairwise"]
        changed += ["--set", "presample.floors={helpful: 0.5}"]
        found = printed([*audit, *changed], capsys)
    (row,) = found["audit"]["rows"]
    assert row["position"]["flips"]["rate"] == 1.0 and row["ties"] == 1.0
    assert row["agreement"]["rate"] == 0.5


def test_the_table_is_printed_in_plain_words(
    server: FakeOpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command("audit", data(tmp_path / "rows.jsonl", 30), server, tmp_path / "run")
    argv.remove("--json")
    capsys.readouterr()
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "judge:helpful finds the answer that people call more helpful in 67% of 30 pairs" in out
    assert "taking the longer one is right in 67%: it" in out


def test_a_dry_run_says_what_the_audit_takes(tmp_path: Path) -> None:
    path = data(tmp_path / "rows.jsonl", 60)
    fewer = {"presample.enabled": False, "rollout.n": 2}  # of the build, which is foreseen, too
    overrides = {"audit.labels.helpful": "preferred", "dimensions": ["helpful"], **fewer}
    s = load_settings("jsonl", overrides)
    found = estimate(s, False, [path])
    assert found.audit is not None
    assert (found.audit.pairs, found.audit.requests) == (50, 120)
    assert found.audit.tokens_in > 120 * 400 and found.audit.cost is None
    assert (
        estimate(load_settings("jsonl", {**overrides, "audit.limit": 0}), False, [path]).audit
        is None
    )
    assert estimate(s, True, []).audit is None
