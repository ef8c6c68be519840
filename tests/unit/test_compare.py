"""Two runs, arms and datasets against each other: differences against the numbers they come from,
doubts, page, bad input."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from support.run_folder import DIMS, make_run
from support.scored import many, write

from mora_data.cli import main
from mora_data.errors import PublishError, RunFolderError, SettingsError
from mora_data.report.compare import _differences, compare_sides, side_of
from mora_data.report.page import comparison_html, write_comparison

RATES = {"identity": 0.2, "single": 0.2, "fused": 0.3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("runs")
    make_run(home / "a", RATES, 60)
    make_run(home / "b", {**RATES, "fused": 0.8}, 60)
    make_run(home / "other", RATES, 60, text="elsewhere ")
    return home


@pytest.fixture(scope="module")
def tree(runs: Path) -> dict[str, Any]:
    return compare_sides(side_of(str(runs / "a")), side_of(str(runs / "b")))


def row(tree: dict[str, Any], arm: str, metric: str) -> dict[str, Any]:
    return next(r for r in tree["arms"] + tree["pairs"] if (r["arm"], r["metric"]) == (arm, metric))


side_of = cache(side_of)  # sides are only read here


def test_a_planted_gain_is_found_and_nothing_else(tree: dict[str, Any]) -> None:
    found = {(r["arm"], r["metric"]) for r in tree["arms"] if r["differs"]}
    assert ("fused", "joint_pass") in found and {arm for arm, _ in found} == {"fused"}
    gain = row(tree, "fused", "joint_pass")["difference"]
    assert gain["low"] > 0 and gain["paired"] and gain["n"] == 60
    assert tree["differ"] == sum(bool(r["differs"]) for r in tree["arms"] + tree["pairs"])


def test_differences_are_those_of_the_two_reports(runs: Path, tree: dict[str, Any]) -> None:
    sides = [side_of(str(runs / name)) for name in "ab"]
    for r in tree["arms"]:
        for side, s in zip("ab", sides, strict=True):
            assert r[side] == s.metrics[r["arm"]][r["metric"]]
        assert r["difference"]["value"] == pytest.approx(
            r["b"]["value"] - r["a"]["value"], abs=2e-5
        )
    # the paired interval is the bootstrap's of the differences by prompt
    gap = [s.values["fused"][:, 1] for s in sides]
    per_prompt = gap[1] - gap[0]
    spread = per_prompt.std() / np.sqrt(len(per_prompt))
    cell = row(tree, "fused", "joint_pass")["difference"]
    assert (cell["high"] - cell["low"]) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.1)


def test_a_prompt_without_a_value_on_one_side_is_left_out_of_the_difference() -> None:
    a = np.array([[1.0], [2.0], [9.0], [5.0]])
    b = np.array([[2.0], [3.0], [np.nan], [7.0]])
    (cell,) = _differences(a, ["p", "q", "r", "only a"], b, ["p", "q", "r", "only b"], 0)
    assert cell and (cell["value"], cell["n"], cell["paired"]) == (1.0, 2, True)
    assert (cell["low"], cell["high"], cell["p"]) == (1.0, 1.0, 0.0)  # the same in every prompt
    (many,) = _differences(
        np.array([[0.0], [2.0], [4.0]]), ["p", "p", "q"], np.array([[3.0], [5.0]]), ["p", "q"], 0
    )
    assert many and many["value"] == 2.0  # means over rows, as in the reports


def test_without_shared_prompts_nothing_is_paired(runs: Path) -> None:
    tree = compare_sides(side_of(str(runs / "a")), side_of(str(runs / "other")))
    assert tree["prompts"]["shared"] == 0 and any(
        "No prompt is in both" in d for d in tree["doubts"]
    )
    assert not any(
        r["difference"]["paired"] for r in tree["arms"] if r["difference"]["low"] is not None
    )
    assert not any(r["differs"] for r in tree["arms"])


def test_two_arms_of_one_run(runs: Path) -> None:
    b = str(runs / "b")
    tree = compare_sides(side_of(f"{b}:single"), side_of(f"{b}:fused"))
    assert {r["arm"] for r in tree["arms"]} == {"fused − single"} and not tree["pairs"]
    assert row(tree, "fused − single", "joint_pass")["differs"]
    same = compare_sides(side_of(b), side_of(b))
    assert same["differ"] == 0 and same["doubts"][0] == "Both sides are the same folder."
    assert all(r["difference"]["value"] == 0 for r in same["arms"] if r["a"]["value"] is not None)


def test_what_else_differs_stands_first(runs: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "c", RATES, 30, pairs=40)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["models"]["judge"] = "org/another<judge>"
    manifest["settings"]["select"]["selector"] = "maxmin"
    (other / "manifest.json").write_text(json.dumps(manifest))
    reference = json.loads((other / "reference.json").read_text())
    reference["floors"]["helpful"] = 0.5
    (other / "reference.json").write_text(json.dumps(reference))
    tree = compare_sides(side_of(str(runs / "a")), side_of(str(other)))
    said = " ".join(tree["doubts"])
    assert tree["doubts"][0].startswith("The judges differ (org/judge and org/another<judge>)")
    floors, setting = (
        "The floors differ (helpful 0.75 and 0.5)",
        "1 setting differs (select.selector)",
    )
    for part in (floors, setting, "The sizes differ", "30 prompts"):
        assert part in said, part
    assert tree["settings"] == [{"setting": "select.selector", "a": "dominance_hv", "b": "maxmin"}]
    assert tree["prompts"] == {"a": 60, "b": 30, "shared": 30}
    html = comparison_html(tree)
    assert html.index("What to doubt") < html.index("numbers differ") and "<judge>" not in html


def test_a_published_dataset_is_compared_as_far_as_its_numbers_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, n in (("one", 24), ("two", 30)):
        write(tmp_path / name, list(many(n)))
    for name in ("one", "two"):
        path = tmp_path / name / "provenance/manifest.json"
        tree = json.loads(path.read_text())
        tree["manifest"] |= {
            "identity": {"dataset": "org/source"},
            "status": "done",
            "counts": {"mine": {"kept": 30}},
        }
        tree["manifest"]["settings"] |= {
            "seed": 0,
            "select": {"selector": "dominance_hv"},
            "fuse": {"arms": ["fused"]},
        }
        tree["manifest"]["reference"] |= {"reliability": dict.fromkeys(DIMS, 0.9)}
        cell = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 30}
        tree["manifest"]["report"] = {
            "verdict": "inconclusive",
            "k": 8,
            "arms": {"fused": {"n": 30, "joint_pass": cell}},
        }
        path.write_text(json.dumps(tree))
    tree = compare_sides(side_of(str(tmp_path / "one")), side_of(str(tmp_path / "two")))
    assert tree["a"]["kind"] == tree["b"]["kind"] == "dataset"
    joint = row(tree, "fused", "joint_pass")
    assert (
        joint["difference"]["value"] == 0
        and joint["difference"]["low"] is None
        and joint["differs"] is None
    )
    assert row(tree, "", "margin_helpful")["difference"]["n"] == tree["prompts"]["shared"] > 0
    assert "not tested" in comparison_html(tree)

    def fetched(repo: str, revision: str | None) -> Path:
        assert (repo, revision) == ("org/pairs", "v1.0.0")
        return tmp_path / "one"

    monkeypatch.setattr("mora_data.dataset.client.snapshot", fetched)
    tag = compare_sides(
        side_of("org/pairs@v1.0.0:fused"), side_of(str(tmp_path / "one") + ":fused")
    )
    assert (
        tag["a"]["where"] == "org/pairs@v1.0.0" and tag["a"]["arm"] == "fused" and not tag["pairs"]
    )


def test_the_page_is_one_harmless_file_of_the_same_bytes(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    written = write_comparison(tmp_path, tree)
    assert [p.name for p in written] == ["report-compare.json", "report-compare.html"]
    html, again = written[1].read_text(), comparison_html(orjson.loads(written[0].read_bytes()))
    assert html == again and "<script" not in html and "default-src 'none'" in html
    assert not re.findall(r'(?:src|href)="', html)
    for figure in re.findall(r"<figure.*?</figure>", html, re.S):
        assert "<table>" in figure and "report-compare.json" in figure
        assert figure.count("<svg viewBox") == figure.count("<desc>") > 0


def test_the_command_and_what_it_cannot_compare(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = str(runs / "a"), str(runs / "b")
    assert main(["report", "--compare", a, b, "--out", str(tmp_path)]) == 0
    assert (
        "numbers differ" in capsys.readouterr().out and (tmp_path / "report-compare.html").exists()
    )
    assert main(["report", "--compare", a, b, "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == 1
    (tmp_path / "file").write_text("")
    into_a_file = ["report", "--compare", a, b, "--out", str(tmp_path / "file")]
    for bad in (
        into_a_file,
        ["report"],
        ["report", a, "--compare", a, b],
    ):
        assert main(bad) == 1
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    with pytest.raises(SettingsError, match="no arm 'nope', only"):
        side_of(f"{a}:nope")
    with pytest.raises(PublishError, match="holds no dataset"):
        side_of(str(tmp_path / "nothing"))
    empty = tmp_path / "old"
    write(empty, list(many(6)))
    (empty / "provenance/manifest.json").write_text('{"manifest": {}}')
    with pytest.raises(RunFolderError, match="of another version"):
        side_of(str(empty))
