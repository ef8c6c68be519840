"""Scores that can be trusted, as a user meets them: charts, noise, canaries, the held-out judge."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.fake_openai import FakeOpenAI, Fault
from support.fake_rewards import Level

from mora_data.cli import main

BASE = [
    "build",
    "--source",
    "pku-saferlhf",
    "--sample",
    "--set",
    "presample.n=[4]",
    "--set",
    "rollout.n=8",
    "--set",
    "publish.configs=[preference, scored]",
    "--limit",
    "24",
]


def build(run: Path, *more: str, code: int = 0) -> dict[str, Any]:
    """The run's manifest."""
    assert main([*BASE, "--out", str(run), "--json", *more]) == code
    return json.loads((run / "manifest.json").read_text()) if run.exists() else {}


def rewards(**kinds: str) -> list[str]:
    listed = {
        d: [
            {"kind": k if ":" not in k and k == "judge" else f"support.fake_rewards:{k}"}
            for k in kind.split("+")
        ]
        for d, kind in kinds.items()
    }
    return ["--set", f"rewards={json.dumps(listed)}"]


def table(run: Path, name: str) -> list[dict[str, Any]]:
    return [
        row
        for p in sorted((run / "parts").iterdir())
        for row in pq.read_table(p / f"{name}.parquet").to_pylist()
    ]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mora-data: ")]
    return line


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """helpful: a Bradley-Terry score beside the judge; truthful: ranks with some missing scores; a
    held-out judge."""
    run = tmp_path_factory.mktemp("mixed") / "run"
    build(
        run,
        *rewards(helpful="judge+Offset", truthful="Ranked"),
        "--set",
        "heldout_judge={engine: scripted}",
        "--set",
        "limits.max_error_share=0.2",
    )
    return run


def test_charts_are_fitted_once_and_published(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (mixed / "reference.json").read_text()
    reference = json.loads(before)
    judge, offset = reference["calibration"]["helpful"]
    (ranks,) = reference["calibration"]["truthful"]
    assert judge == {"source": "judge:helpful", "kind": "likert"}
    assert (
        offset["kind"] == "anchored"
        and offset["temperature"] > 0
        and offset["provisional"] is True
        and offset["n"] > 80
    )
    assert (
        ranks["kind"] == "ecdf" and ranks["n"] > 80 and len(ranks["x"]) == len(ranks["y"]) <= 1024
    )
    published = json.loads((mixed / "dataset/provenance/calibration.json").read_text())
    assert published["reference"]["calibration"] == reference["calibration"]
    build(
        mixed,
        *rewards(helpful="judge+Offset", truthful="Ranked"),
        "--set",
        "heldout_judge={engine: scripted}",
        # the same command: nothing is fitted again, nothing asked
        "--set",
        "limits.max_error_share=0.2",
    )
    assert (mixed / "reference.json").read_text() == before
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["requests"] == 0


def test_an_offset_of_the_prompt_does_not_reach_the_values(mixed: Path) -> None:
    values: dict[tuple[str, str], list[float]] = {}
    raws = []
    for s in table(mixed, "scores"):
        # the presamples are the anchor of the answers before fusion
        if s["source"] == "offset" and s["purpose"] == "score" and s["arm"] != "before":
            values.setdefault((s["prompt_id"], s["arm"]), []).append(s["value"])
            raws.append(s["raw"])
    assert max(raws) - min(raws) > 15  # the offsets are there
    for found in values.values():
        ordered = sorted(found)
        # each prompt's median answer is worth 0.5
        assert ordered[(len(ordered) - 1) // 2] <= 0.5 <= ordered[len(ordered) // 2]


def test_missing_numbers_are_none_with_a_reason_and_counted(mixed: Path) -> None:
    rows = [s for s in table(mixed, "scores") if s["source"] == "ranked"]
    bad = [s for s in rows if s["value"] is None]
    assert {s["reason"] for s in bad} == {"not_finite", "no_score"}
    assert all(0 <= s["value"] <= 1 for s in rows if s["value"] is not None)
    figures = json.loads((mixed / "feedback.json").read_text())["sources"]["truthful"]["ranked"]
    first = [s for s in rows if s["purpose"] == "score"]
    missing = sum(s["value"] is None for s in first)
    assert figures["n"] == len(first) and figures["parse_rate"] == pytest.approx(
        1 - missing / len(first)
    )
    assert sum(figures["reasons"].values()) == missing > 0


def test_floors_ask_the_absolute_source_and_doubt_is_how_far_sources_differ(mixed: Path) -> None:
    whole = [r for r in table(mixed, "rollouts") if r["reward_helpful"] is not None]
    by = {
        (s["prompt_id"], s["arm"], s["index"], s["source"]): s["value"]
        for s in table(mixed, "scores")
        if s["purpose"] == "score"
    }
    for r in whole:
        judge, offset = (
            by[r["prompt_id"], r["arm"], r["index"], source]
            for source in ("judge:helpful", "offset")
        )
        assert r["level_helpful"] == judge and r["reward_helpful"] == pytest.approx(
            (judge + offset) / 2
        )
        assert (
            r["doubt_helpful"] == pytest.approx(abs(judge - offset) / 2)
            and r["doubt_harmless"] == 0
        )
    chosen = [
        r
        for f in (mixed / "dataset/preference").glob("*.parquet")
        for r in pq.read_table(f).to_pylist()
    ]
    assert chosen
    for pair in chosen:
        sides = {r["text"]: r for r in whole if r["prompt_id"] == pair["prompt_id"]}
        good, bad = sides[pair["chosen"][0]["content"]], sides[pair["rejected"][0]["content"]]
        assert good["level_helpful"] - good["doubt_helpful"] >= 0.75 - 1e-9
        assert all(
            pair[f"margin_{d}"] > good[f"doubt_{d}"] + bad[f"doubt_{d}"]
            for d in pair["binding_dims"]
        )


def test_heldout_judge_scores_confirmed_pairs_only_and_is_reported(mixed: Path) -> None:
    scores = table(mixed, "scores")
    heldout = {(s["prompt_id"], s["arm"], s["index"]) for s in scores if s["purpose"] == "heldout"}
    confirmed = {
        (s["prompt_id"], s["arm"], s["index"]) for s in scores if s["purpose"] == "confirm"
    }
    assert (
        heldout
        and heldout <= confirmed
        and {s["source"] for s in scores if s["purpose"] == "heldout"}
        == {"judge:helpful", "judge:harmless", "judge:truthful"}
    )
    found = json.loads((mixed / "feedback.json").read_text())["heldout"]
    assert found == json.loads((mixed / "manifest.json").read_text())["feedback"]["heldout"]
    n = json.loads((mixed / "manifest.json").read_text())["pairs"]
    assert found["total"]["pairs"] + found["unscored"] >= n >= found["total"]["pairs"] > 0
    assert 0 <= found["total"]["low"] <= found["total"]["accuracy"] <= found["total"]["high"] <= 1


def test_agreement_of_two_sources_is_measured(mixed: Path) -> None:
    agreement = json.loads((mixed / "feedback.json").read_text())["agreement"]
    assert agreement.keys() == {"helpful"} and -1 <= agreement["helpful"]["krippendorff_alpha"] <= 1


def test_heldout_judge_changes_no_pair(tmp_path: Path) -> None:
    plain = (
        "--set",
        "presample={enabled: false}",
        "--set",
        "fuse.arms=[identity]",
        "--set",
        "rollout.n=16",
    )
    build(tmp_path / "a", *plain)
    build(tmp_path / "b", *plain, "--set", "heldout_judge={engine: scripted}")
    files = sorted(
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a/dataset").glob("*/*.parquet")
    )
    assert files and all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
    assert (
        json.loads((tmp_path / "b/feedback.json").read_text())["heldout"]["total"]["accuracy"] > 0.7
    )


def test_a_bradley_terry_score_alone_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path / "r", *rewards(helpful="Offset"), code=1)
    line = said(capsys)
    assert (
        "dimension helpful" in line
        and "rewards.helpful" in line
        and "presample.floors.helpful" in line
    )
    assert not (tmp_path / "r").exists()
    build(
        tmp_path / "r",
        *rewards(helpful="Offset"),
        "--set",
        "presample={enabled: false}",
        "--until",
        "score",
        code=1,
    )
    assert "calibration_file or calibration.temperature" in said(capsys)


def test_mostly_noise_is_refused_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (*rewards(truthful="Dice"), "--set", "presample.repeat_share=0.5", "--limit", "60")
    more += ("--set", "presample.n=[8]")
    manifest = build(tmp_path / "r", *more, code=1)
    line = said(capsys)
    assert (
        "dimension truthful" in line
        and "reliability" in line
        and "--allow-unreliable" in line
        and "mostly noise" in line
    )
    assert manifest["status"] != "done" and (tmp_path / "r/reference.json").is_file()
    build(tmp_path / "r", *more, "--until", "score")  # scoring is allowed, selecting is not
    manifest = build(tmp_path / "r", *more, "--allow-unreliable")
    v = manifest["unreliable"]["truthful"]
    assert v["reliability"] < 0.3 and v["reliability_upper"] < 0.3 and v["n"] >= 30
    assert "mostly noise" in (tmp_path / "r/dataset/README.md").read_text()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["replayed"] > 0


def test_canaries_see_a_scorer_that_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (*rewards(truthful="Level"), "--set", "presample.canaries=20", "--limit", "12")
    same = build(tmp_path / "same", *more)
    assert same["drift"]["truthful"] == {
        "shift": 0.0,
        "error": pytest.approx(0.0, abs=0.05),
        "n": 20,
    }
    assert abs(same["drift"]["helpful"]["shift"]) < 0.1
    assert len(json.loads((tmp_path / "same/canary.json").read_text())["items"]) == 20
    capsys.readouterr()
    assert build(tmp_path / "same", *more)["drift"] == same["drift"]
    # both ends are in the log
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["requests"] == 0
    monkeypatch.setattr(Level, "shift", -0.3)
    moved = build(tmp_path / "moved", *more, code=1)
    line = said(capsys)
    assert (
        "canary answers moved by -0." in line
        and "truthful" in line
        and "presample.max_drift" in line
    )
    assert moved["status"] == "drifted" and moved["drift"]["truthful"]["shift"] < -0.1
    assert (tmp_path / "moved/parts/00000/manifest.json").is_file()  # the state is kept
    build(tmp_path / "moved", *more, "--set", "presample.max_drift=0.9")


def test_the_simulator_is_not_asked_for_canaries(mixed: Path) -> None:
    assert not (mixed / "canary.json").exists() and not (mixed / "canary.log").exists()


@pytest.mark.parametrize(("lean", "low", "high"), [(0.0, 0.0, 0.0), (0.6, 0.5, 0.7)])
def test_a_judge_that_leans_to_the_first_place_is_found(
    lean: float, low: float, high: float, tmp_path: Path
) -> None:
    """A server that takes the longer answer, but in a share `lean` of the pairs the first one, and
    now and then talks."""

    def say(body: dict[str, Any], time: int) -> Fault:
        first, second = re.findall(
            r"^<(?:first|second)-\w+>\n(.*?)\n</", body["messages"][-1]["content"], re.M | re.S
        )
        chance = (
            int(hashlib.sha256("".join(sorted((first, second))).encode()).hexdigest()[:8], 16)
            / 16**8
        )
        if chance > 0.98:
            return Fault(text="I would rather not say.")
        better = 1 if chance < lean or (len(first), first) > (len(second), second) else 2
        return Fault(text=f'{{"score": {better}}}')

    with FakeOpenAI(say) as server:
        sources = {
            "helpful": [
                {"kind": "judge"},
                {"kind": "pairwise", "endpoint": {"base_url": server.base_url, "model": "fake"}},
            ]
        }
        manifest = build(
            tmp_path / "run",
            "--set",
            f"rewards={json.dumps(sources)}",
            "--limit",
            "8",
            "--set",
            "limits.max_error_share=0.5",
        )
    feedback = json.loads((tmp_path / "run/feedback.json").read_text())
    sources_of = feedback["sources"]["helpful"]
    (name,) = set(sources_of) - {"judge:helpful"}
    found = sources_of[name]["position"]
    assert low <= found["flips"]["rate"] <= high and found["flips"]["n"] > 100
    # nothing else makes a tie here
    assert found["tie_rate"]["rate"] == pytest.approx(found["flips"]["rate"])
    assert 0.9 < found["parse_rate"]["rate"] < 1 and found["games"] == found["parse_rate"]["n"]
    assert (found["first"]["low"] > 0.6) == (lean > 0)
    assert sources_of["judge:helpful"]["position"] is None
    assert "position flips (no pairwise judge)" not in feedback["not_measured"]
    assert manifest["feedback"]["sources"]["helpful"][name]["position"] == found
