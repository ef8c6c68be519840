"""The report: its numbers against the run they came from, its bytes, its words, and hostile text in
it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
import pytest
from support.run_folder import DIMS, make_run

from mora_data.cli import main
from mora_data.cli.show import report_lines
from mora_data.errors import RunFolderError
from mora_data.report.caveats import caveats_of
from mora_data.report.document import report_of, summary_of
from mora_data.report.markup import escape_text
from mora_data.report.page import report_html, write_report
from mora_data.report.pairs import auc, diversity, vendi, wording_probe
from mora_data.report.values import Report
from mora_data.report.weights import weights_of

ARMS = {"identity": 0.1, "single": 0.1, "generic": 0.12, "random": 0.1, "fused": 0.7}
NULL = {"identity": 0.3, "single": 0.3, "generic": 0.3, "fused": 0.3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "planted", ARMS, 200)


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return report_of(run)


def test_a_planted_gain_is_supported_and_a_null_is_not(report: Report, tmp_path: Path) -> None:
    assert report["verdict"] == "supports expansion", report["reasons"]
    assert len(report["comparisons"]) == 6 and all(
        c["p_holm"] < 0.05 and c["low"] > 0 for c in report["comparisons"]
    )
    null = report_of(make_run(tmp_path / "null", NULL, 600, pairs=0))
    assert null["verdict"] in ("not supported", "inconclusive") and null["pairs"] == {"n": 0}
    gap = report_of(make_run(tmp_path / "gap", ARMS, 60, pairs=0, length={"generic": 12}))
    assert gap["verdict"] == "inconclusive" and "length" in gap["reasons"][0]
    assert any("40 % shorter" in d for d in gap["doubts"])


def test_the_numbers_are_those_of_the_run(run: Path, report: Report) -> None:
    import pyarrow.parquet as pq

    rows = [
        r
        for part in (0, 1)
        for r in pq.read_table(run / f"parts/{part:05d}/rollouts.parquet").to_pylist()
    ]
    for arm in ARMS:
        mine = [r for r in rows if r["arm"] == arm]
        metrics = report["arms"][arm]["metrics"]
        whole = [r for r in mine if all(r[f"reward_{d}"] is not None for d in DIMS)]
        passed = sum(all(r[f"reward_{d}"] >= 0.75 for d in DIMS) for r in whole) / len(whole)
        assert metrics["joint_pass_1"]["value"] == pytest.approx(passed, abs=1e-4)
        assert metrics["reward_helpful"]["value"] == pytest.approx(
            np.mean([r["reward_helpful"] for r in mine]), abs=1e-4
        )
        assert metrics["scored"]["value"] == pytest.approx(7 / 8) and metrics["refusal"][
            "value"
        ] == pytest.approx(1 / 8)
        assert report["arms"][arm]["n"] == metrics["joint_pass"]["n"] == 200
        assert all(
            m["low"] <= m["value"] <= m["high"] for m in metrics.values() if m["low"] is not None
        )
    assert report["settings"]["k"] == 4 and report["settings"]["before"] == "identity arm"
    assert report["figures"]["margins"]["shrinkage"] == {
        "n": 1000,
        "ratio": 0.5,
        "by_dimension": {d: {"selected": 0.5, "confirmed": 0.25} for d in DIMS},
    }
    assert report["figures"]["funnel"]["by_category"]["fused"]["sums"]["accepted"]["n"] == 100
    assert report["prompts"]["checks"]["fused"]["subject"] == {"mean": 0.8, "n": 200}


def test_a_large_run_is_told_by_batches(
    run: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers of the same prompts; intervals over batches of them, about as wide."""
    from mora_data.report import measure, pairs

    for module in (measure, pairs):
        monkeypatch.setattr(module, "MOST", 50)
    monkeypatch.setattr(measure, "BATCHES", 100)
    batched = report_of(run)
    assert (
        batched["verdict"] == report["verdict"]
        and batched["figures"]["planes"] == report["figures"]["planes"]
    )
    widths = []
    cells = [(a, m, cell) for a, v in report["arms"].items() for m, cell in v["metrics"].items()]
    for one, other in [(batched["arms"][a]["metrics"][m], cell) for a, m, cell in cells]:
        # 0.086875 rounds either way
        assert (one["value"], one["n"]) == (pytest.approx(other["value"], abs=2e-5), other["n"])
        if other["value"] is not None and other["high"] > other["low"]:
            widths.append((one["high"] - one["low"]) / (other["high"] - other["low"]))
    assert len(widths) > 50 and 0.9 < np.mean(widths) < 1.1
    points, others = (
        [p for panel in r["figures"]["profile"]["panels"] for p in panel["points"]]
        for r in (batched, report)
    )
    assert [(p["k"], p["n"]) for p in points] == [(p["k"], p["n"]) for p in others]
    np.testing.assert_allclose(
        [p["grades"] for p in points], [p["grades"] for p in others], atol=2e-5
    )


def test_pairs_are_described(report: Report) -> None:
    p = report["pairs"]
    assert p["n"] == 12 and p["margins"]["helpful"]["mean"]["value"] == 0.75
    assert p["length"]["chosen_longer"]["value"] == 1 and p["length"]["auc"] == 1
    assert p["neg_dim_rate"]["value"] == 0 and p["wording"] is None
    assert len(report["examples"]["random"]) == 6 and len(set(report["examples"]["worst"])) == 6


def test_dimensions_that_go_together_are_told_of(run: Path, report: Report) -> None:
    """The correlation within prompts, of an independent reading; one dimension scored twice makes
    dominance in both trivial."""
    import pyarrow.parquet as pq

    files = [run / f"parts/{part:05d}/rollouts.parquet" for part in (0, 1)]
    answers: dict[str, list[tuple[float, float]]] = {}
    for row in (r for f in files for r in pq.read_table(f).to_pylist() if r["arm"] == "fused"):
        both = row["reward_helpful"], row["reward_truthful"]
        if None not in both:
            answers.setdefault(row["prompt_id"], []).append(both)
    away = np.vstack([np.array(v) - np.array(v).mean(0) for v in answers.values()])
    (found,) = (
        c
        for c in report["figures"]["correlations"]
        if (c["x"], c["y"], c["arm"]) == ("helpful", "truthful", "fused")
    )
    assert found["value"] == pytest.approx(np.corrcoef(away.T)[0, 1], abs=1e-5)
    assert found["n"] == len(answers) and found["low"] < found["value"] < found["high"]
    assert "helpful x truthful: " in "\n".join(report_lines(report))
    assert not any("they are one dimension" in d for d in report["doubts"])
    one = {**found, "value": 0.95, "low": 0.94, "high": 0.96}
    figures = {**report["figures"], "correlations": [one]}
    doubts = caveats_of(cast(Report, {**report, "figures": figures}))
    assert any("helpful and truthful go together" in d and "0.95" in d for d in doubts)


def test_doubts_are_said_in_words(report: Report) -> None:
    said = " ".join(report["doubts"])
    assert (
        "truthful: reliability 0.20" in said
        and "harmless: reliability 0.60" in said
        and "helpful: rel" not in said
        and "THE HARM CHECK IS OFF" in said
    )
    assert "longer one in 100 %" in said and "12 pairs" in said
    once = {"sigma": 0.2, "reliability": None, "scored_twice": 1, "measured": True}
    judge = {**report["judge"], "dimensions": {"helpful": once}}
    doubts = caveats_of(cast(Report, {**report, "judge": judge}))
    assert any("not known; answers scored twice before the build: 1." in d for d in doubts)
    assert "keep 50 % of their margins" in said


def test_the_same_run_gives_the_same_bytes(run: Path, report: Report) -> None:
    first = [p.read_bytes() for p in write_report(run, report)]
    assert first == [p.read_bytes() for p in write_report(run, report_of(run))]
    assert orjson.loads(first[0])["verdict"] == "supports expansion" and len(first[1]) < 3_000_000


class Page(HTMLParser):
    """Tags, ids and open tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_has_every_figure_with_its_question_table_and_words(
    run: Path, report: Report
) -> None:
    text = report_html(report, run)
    found = Page(text)
    assert found.open == []
    figures = [a["id"] for t, a in found.tags if t == "figure"]
    assert figures == [
        "arms",
        "forest",
        "profile",
        "rewards",
        "planes",
        "margins",
        "length",
        "judges",
        "funnel",
        "composition",
        "scaling",
        "cost",
    ]
    drawn = [a for t, a in found.tags if t == "svg" and "aria-hidden" not in a]
    assert len(drawn) >= 15 and all(a.get("role") == "img" and a["aria-label"] for a in drawn)
    assert not {t for t, _ in found.tags} & {"script", "iframe", "img", "link", "object", "form"}
    assert not re.search(r"https?://|@import|url\(|\bnan\b|\bNone\b|\binf\b", text)
    assert text.index("Fusion helps") < text.index("What to doubt") < text.index("The figures")
    assert text.count("Show the answer") == 12  # the rejected one of each pair


HOSTILE = "<script>alert(1)</script>\"' onload=x & \x00\u202eevil\u200b]]> "


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", {"identity": 0.2, "fused": 0.6}, 12, text=HOSTILE)
    manifest = orjson.loads((run / "manifest.json").read_bytes())
    manifest["models"]["policy"] = manifest["identity"]["dataset"] = HOSTILE
    (run / "manifest.json").write_bytes(orjson.dumps(manifest))
    text = report_html(report_of(run), run)
    assert "<script" not in text and not [t for t, _ in Page(text).tags if t == "script"]
    assert not re.search("[\x00\u202e\u200b]", text)
    assert escape_text("a\u202eb\ud800<") == "a⟦U+202E⟧b⟦U+D800⟧&lt;" and escape_text(
        "x" * 5000
    ).endswith("… [cut]")


def test_without_controls_it_says_only_what_can_be_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "r", {"fused": 0.6}, 12, pairs=0)
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr().out
    assert "verdict: inconclusive" in said and "no control arms" in said
    assert main(["report", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found == json.loads((run / "report.json").read_text())
        and found["comparisons"] == []
        and found["settings"]["before"] is None
    )
    assert (run / "report.html").is_file() and summary_of(found)["arms"].keys() == {"fused"}


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    report = report_of(make_run(tmp_path / "r", ARMS, 40, seal=False, pairs=0))
    assert report["run"]["partitions_sealed"] == 1 and any(
        "1 of 2 partitions" in d for d in report["doubts"]
    )


def test_presamples_that_picked_the_prompts_stand_for_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", {"presample": 0.4, "before": 0.5, "fused": 0.6}, 20, pairs=0)
    found = report_of(run)
    assert set(found["arms"]) == {"before", "fused"} and found["settings"]["before"]
    run = make_run(tmp_path / "q", {"presample": 0.4, "fused": 0.6}, 20, pairs=0)
    found = report_of(run)
    assert set(found["arms"]) == {"fused"} and found["settings"]["before"] is None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: (r / "manifest.json").unlink(), "not a run folder"),
        (
            lambda r: [(r / f"parts/0000{i}/manifest.json").unlink() for i in (0, 1)],
            "no finished partition",
        ),
        (lambda r: (r / "mine.json").unlink(), "no finished partition"),
        (lambda r: (r / "parts/00001/rollouts.parquet").write_bytes(b"PAR1"), "is damaged"),
        (lambda r: (r / "reference.json").unlink(), "no floors"),
        (
            lambda r: (r / "reference.json").write_text('{"noise": {"helpful": {"sigma": 1}}}'),
            "reference.json can't be read",
        ),
        (
            lambda r: (r / "manifest.json").write_text(
                '{"identity": {}, "settings": {"dims": []}}'
            ),
            "another version",
        ),
    ],
)
def test_bad_run_folders_give_one_line(
    tmp_path: Path, spoil: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "r", {"fused": 0.6}, 8, pairs=0)
    spoil(run)
    assert main(["report", str(run)]) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_weights_reach_a_target_or_say_why_not(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = weights_of(run, {"helpful": 0.0}, "fused")["mean"]["helpful"]
    found = weights_of(run, {"helpful": now + 0.03}, "fused")
    assert (
        found["feasible"]
        and found["reached"]["helpful"] == pytest.approx(now + 0.03, abs=2e-3)
        and found["weights"]["helpful"] > 0
    )
    assert main(["weights", str(run), "--target", "helpful=0.9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arm"] == "fused"
    for argv, said in (
        (["--target", "kind=0.5"], "no dimension"),
        (["--target", "helpful=2"], "[0, 1]"),
        (["--target", "helpful=x"], "number"),
        (["--target", "helpful=0.9", "--arm", "other"], "only fused"),
    ):
        assert main(["weights", str(run), *argv]) == 1
        assert said in capsys.readouterr().err
    with pytest.raises(RunFolderError, match="fewer than 4"):
        weights_of(run, dict.fromkeys(DIMS, 1.0), "identity")


def test_the_probe_finds_a_planted_word_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(300)])
    plain = [" ".join(rng.choice(words, 30)) for _ in range(400)]
    groups = np.arange(200)
    none = wording_probe(plain[:200], plain[200:], groups)
    told_apart = wording_probe([t + " certainly" for t in plain[:200]], plain[200:], groups)
    assert none is not None and 0.35 < none["auc"] < 0.65
    assert told_apart is not None and told_apart["auc"] > 0.85
    assert wording_probe(plain[:40], plain[40:80], np.arange(40)) is None
    same = wording_probe(
        [t for t in plain[:100] for _ in (0, 1)],
        [t for t in plain[200:300] for _ in (0, 1)],
        np.repeat(np.arange(100), 2),
    )
    # copies of a prompt are in one fold, so they can't be learnt by heart
    assert same is not None and same["auc"] < 0.65


def test_auc_and_diversity() -> None:
    assert auc(np.array([1.0, 2, 3]), np.array([0.0, 2])) == pytest.approx(4.5 / 6)
    found = diversity(
        ["the cat sat on the mat today"] * 3 + ["a wholly different line of other words"]
    )
    assert found["near_duplicates"]["value"] == 0.75 and found["distinct_1"] == pytest.approx(
        13 / 28, abs=1e-4
    )
    assert diversity(["one two three"] * 7)["vendi"] == pytest.approx(1)
    assert diversity(["red hen", "blue sea", "old wall"])["vendi"] == pytest.approx(3)
    halves = diversity(["red hen"] * 4 + ["blue sea"] * 4)  # two kinds, alike within
    assert halves["vendi"] == pytest.approx(2) and halves["vendi_n"] == 8
    assert (
        vendi([]) is None
        and diversity([f"word{i} number{i}" for i in range(1001)])["vendi_n"] == 334
    )
