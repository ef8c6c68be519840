"""`--arms all` from the command line: what is run, what is matched, what is published."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.fake_openai import FakeOpenAI, Fault, harm_levels

from mora_data.cli import main
from mora_data.selection import plain_pairs_doubt
from mora_data.settings import build_settings
from mora_data.text import n_tokens
from mora_data.types import ARMS

SMALL = [
    "--set",
    "presample.n=[8,16]",
    "--set",
    "rollout.n=8",
    "--set",
    "publish.configs=[preference, scored]",
    "--limit",
    "40",
    "--json",
]


def build(run: Path, *more: str, source: str = "pku-saferlhf", code: int = 0) -> dict[str, Any]:
    assert main(["build", "--source", source, "--sample", "--out", str(run), *SMALL, *more]) == code
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return manifest


def rows(run: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(run / f"parts/00000/{table}.parquet").to_pylist()
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("arms") / "run"
    build(out, "--arms", "all")
    return out


def test_every_arm_runs_on_the_same_prompts(run: Path) -> None:
    of = defaultdict(set)
    for r in rows(run, "arms"):
        of[r["arm"]].add(r["prompt_id"])
    assert set(of) == {*ARMS, "presample"}
    assert len(of["identity"]) == 40
    for arm in ("single", "generic", "random", "concat"):
        assert of[arm] <= of["fused"] and len(of[arm]) >= 0.9 * len(of["fused"]), arm
    counts = json.loads((run / "manifest.json").read_text())["counts"]["fuse"]
    missing = 40 - len(of["fused"])
    assert counts["in"] == 6 * 40 and counts["dropped"].get("not_fused", 0) == 4 * missing


def test_controls_are_as_long_as_the_fused_prompt(run: Path) -> None:
    audit = json.loads((run / "manifest.json").read_text())["arms_audit"]
    assert set(audit) == {"single", "generic", "random", "concat"}
    assert all(a["matched"] and a["worst"] <= 0.17 for a in audit.values()), audit
    length = {
        (r["prompt_id"], r["arm"]): n_tokens(r["messages"][-1]["content"])
        for r in rows(run, "arms")
    }
    for (prompt_id, arm), n in length.items():
        if arm in audit:
            assert 0.85 <= n / length[prompt_id, "fused"] <= 1.15, (prompt_id, arm)


def test_only_the_fused_arm_is_published_and_the_rest_is_counted(run: Path) -> None:
    counts = json.loads((run / "manifest.json").read_text())["counts"]["select"]
    assert counts["in"] == counts["kept"] + sum(counts["dropped"].values())
    assert counts["dropped"]["control_arm"] == sum(
        r["arm"] not in ("fused", "presample") for r in rows(run, "arms")
    )
    for file in (run / "dataset").rglob("*.parquet"):
        assert set(pq.read_table(file, columns=["arm"]).column("arm").to_pylist()) == {"fused"}, (
            file
        )
    assert {r["arm"] for r in rows(run, "pairs")} > {"fused"}


def test_the_planted_world_widens_the_fused_arm_alone(run: Path) -> None:
    dims = ("helpful", "harmless", "truthful")
    passes = defaultdict(list)
    for r in rows(run, "rollouts"):
        if None not in (values := [r[f"reward_{d}"] for d in dims]):
            passes[r["arm"]].append(all(v >= 0.75 for v in values))
    rate = {arm: mean(p) for arm, p in passes.items()}
    assert rate["fused"] > rate["concat"] > rate["identity"] - 0.02
    assert (
        rate["fused"] > 0.15 > 3 * max(rate[a] for a in ("identity", "single", "generic", "random"))
    )
    pairs = defaultdict(set)
    for r in rows(run, "pairs"):
        pairs[r["arm"]].add(r["prompt_id"])
    assert (
        len(pairs["fused"])
        > 20
        > 3 * max(len(pairs[a]) for a in ("identity", "single", "generic", "random"))
    )


def test_in_the_null_world_no_arm_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(
        tmp_path / "run",
        "--arms",
        "identity,single,fused",
        "--limit",
        "30",
        "--set",
        "scripted.world=null",
        "--set",
        "publish.arms=[identity,fused]",
        "--set",
        "select.selector=weighted_sum",
    )
    level = defaultdict(list)
    for r in rows(tmp_path / "run", "rollouts"):
        if r["reward_helpful"] is not None:
            level[r["arm"]].append(
                sum(r[f"reward_{d}"] or 0 for d in ("helpful", "harmless", "truthful"))
            )
    means = {arm: mean(v) for arm, v in level.items()}
    assert max(means.values()) - min(means.values()) < 0.12, means
    published = pq.read_table(tmp_path / "run/dataset/scored").column("arm").to_pylist()
    assert set(published) == {"identity", "fused"}
    doubt = "airs of identity are a biased plain baseline here"
    assert f"p{doubt}" in capsys.readouterr().err
    doubts = json.loads((tmp_path / "run/report.json").read_text())["doubts"]
    assert any(d.startswith(f"P{doubt}") for d in doubts)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, ""),
        ({"fuse.arms": ["identity", "single"]}, "identity, single"),
        ({"fuse.arms": ["concat", "fused"], "publish.arms": ["concat", "fused"]}, ""),
        ({"fuse.arms": ["identity"], "presample.enabled": False}, ""),
        ({"fuse.arms": ["fused", "my/brief.j2"], "publish.arms": ["brief"]}, ""),
    ],
)
def test_plain_pairs_of_a_build_that_presamples_are_doubted(
    changes: dict[str, object], named: str
) -> None:
    settings = build_settings({"name": "x", "source": {"kind": "jsonl"}}, changes)
    said = plain_pairs_doubt(settings.model_dump())
    assert said.startswith(f"pairs of {named} are a biased") if named else not said


def test_what_the_checks_of_a_run_saw(run: Path) -> None:
    by_arm = defaultdict(list)
    for row in rows(run, "fusions"):
        by_arm[row["arm"]].append(row)
    assert set(by_arm) == {"fused", "single", "generic", "random", "concat"}
    fused = by_arm["fused"]
    assert len({r["prompt_id"] for r in fused}) == 40 < len(fused)
    shift = {}
    for arm in ("fused", "single"):
        kept = [{c["name"]: c["value"] for c in r["checks"]} for r in by_arm[arm] if r["accepted"]]
        shift[arm] = mean(v["harm"] - v["harm_before"] for v in kept)
    assert shift["fused"] < -0.05 < shift["single"]
    assert {c["name"] for r in fused for c in r["checks"]} >= {
        "parse",
        "rewriter_refusal",
        "length",
        "subject",
        "changed",
        "meta",
        "language",
        "jailbreak",
        "answer_leak",
        "operational",
        "harm",
    }
    assert all(
        c["value"] is not None
        for r in rows(run, "fusions")
        for c in r["checks"]
        if c["name"] == "harm"
    )


def test_intent_checks_by_the_judge(tmp_path: Path) -> None:
    build(
        tmp_path / "run",
        "--limit",
        "24",
        "--set",
        "fuse.checks=[harm,intent]",
        "--set",
        "fuse.candidates=2",
        "--until",
        "fuse",
    )
    kept = [
        {c["name"]: c["value"] for c in r["checks"]}
        for r in rows(tmp_path / "run", "fusions")
        if r["accepted"]
    ]
    assert len(kept) > 20
    assert all(
        v["decoy"] <= 2 and min(v[f"intent_{d}"] for d in ("helpful", "harmless", "truthful")) >= 4
        for v in kept
    )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--arms", "fused,fused"), "different arms"),
        (("--arms", "fusd"), "fusd"),
        (("--set", "fuse.arms=[]"), "different arms"),
        (("--arms", "identity", "--set", "publish.arms=[fused]"), "publish.arms names"),
        (("--set", "fuse.checks=[guard]"), "harm"),
    ],
)
def test_bad_arms_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], says: str
) -> None:
    assert (
        main(["build", "--source", "jsonl", "--sample", "--out", str(tmp_path / "r"), *more]) == 1
    )
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("mora-data: ")
    ]
    assert len(lines) == 1 and says in lines[0]
    assert not (tmp_path / "r").exists()


def test_rewrites_are_tried_out_before_they_are_accepted(tmp_path: Path) -> None:
    """Each rewrite that passes the other checks is; its answers are not kept; the same command
    again gives the same."""
    build(tmp_path / "run", "--limit", "12", "--set", "fuse.probe=4")
    tries = [t for t in rows(tmp_path / "run", "fusions") if not {"harm"} & set(t["failed"])]
    probes = [c for t in tries for c in t["checks"] if c["name"] == "probe"]
    assert len(probes) == sum(t["accepted"] or t["failed"] == ["probe"] for t in tries) >= 10
    assert all(0 <= c["value"] <= 1 for c in probes) and any(c["passed"] for c in probes)
    assert {r["arm"] for r in rows(tmp_path / "run", "rollouts")} == {
        "presample",
        "before",
        "fused",
    }
    first = (tmp_path / "run/manifest.json").read_text()
    build(tmp_path / "run", "--limit", "12", "--set", "fuse.probe=4")
    assert (tmp_path / "run/manifest.json").read_text() == first


def test_a_guard_model_over_the_wire(tmp_path: Path) -> None:
    """A guard that knows the worked examples, and finds one in three rewrites unsafe, by the bytes
    of the text: those are not accepted."""

    def say(body: dict[str, Any], time: int) -> Fault:
        asked = body["messages"][-1]["content"]
        unsafe = harm_levels()[asked] == 5 if asked in harm_levels() else len(asked) % 3 == 0
        return Fault(text="unsafe\nS2" if unsafe else "safe")

    with FakeOpenAI(say) as server:
        guard = {
            "family": "llama-guard-3",
            "endpoint": {"base_url": server.base_url, "model": "fake"},
        }
        build(
            tmp_path / "run",
            "--limit",
            "12",
            "--set",
            f"fuse.guard={json.dumps(guard)}",
            "--until",
            "fuse",
        )
        seen = [b["messages"] for b in server.requests]
    tries = rows(tmp_path / "run", "fusions")
    checked = [(t, c) for t in tries for c in t["checks"] if c["name"] == "harm"]
    before = {
        t["prompt_id"]: c["value"] for t in tries for c in t["checks"] if c["name"] == "harm_before"
    }
    assert len(checked) >= 10 and len(seen) >= len(checked)
    for t, c in checked:
        assert c["value"] == (len(t["text"]) % 3 == 0) and c["passed"] == (
            c["value"] <= before[t["prompt_id"]] + 0.05
        )
