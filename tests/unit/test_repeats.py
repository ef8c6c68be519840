"""Answers that repeat another: one call scores them all, every statistic counts each of them, and a
pair never holds two."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mora_data.engines.cached_client import CachedClient
from mora_data.errors import PendingRetry
from mora_data.prompts.context import BuildContext, PromptContext, load_context
from mora_data.prompts.flow import as_rollouts, run_prompt
from mora_data.prompts.judge_quality import sums_of
from mora_data.prompts.result import PromptResult, tables
from mora_data.report.measure import Scale, _arm, _flagged, measure, metric_names
from mora_data.resources import Secret
from mora_data.run.log import AnswerLog, Record
from mora_data.run.stats import RunStats
from mora_data.settings import build_settings
from mora_data.sources.benchmarks import Benchmarks
from mora_data.types import Answer, Message, Prompt, Request

QUESTION = "How long does tea keep in a tin?"
GOOD = "In a tight tin, away from light, tea keeps its taste for about a year."
POOR = "For a while, I suppose, although it may depend on some things."
PROMPT = Prompt(
    "a" * 16, (Message(role="user", content=QUESTION),), "b" * 16, "d", "c", "s", "r", 0, "l"
)
DIMS = ["helpful", "truthful"]


class TwoAnswers:
    """A policy that has two answers, one of them in two spellings, and a judge that likes one."""

    simulated, revision, n_per_request, wants_more = False, None, 1 << 30, True
    model, extra = "two-answers", {}

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.judged = texts, 0

    async def send(self, request: Request, body: bytes, seed: int, on_record: Any) -> Record:
        first, n = request.first, request.n
        if request.role == "policy":
            found = [Answer(self.texts[i % len(self.texts)]) for i in range(first, first + n)]
        else:
            self.judged += 1
            shown = request.messages[-1]["content"]
            found = [Answer(f'{{"score": {5 if GOOD in shown or GOOD.upper() in shown else 2}}}')]
        record = Record(n, tuple(found))
        on_record(record)
        return record


def ran(
    tmp_path: Path, texts: list[str], **given: Any
) -> tuple[PromptResult, TwoAnswers, BuildContext]:
    """One prompt in the identity arm, 8 or 16 presamples and 8 rollouts unless said otherwise."""
    settings = build_settings(
        {
            "name": "x",
            "source": {"kind": "jsonl"},
            "dimensions": DIMS,
            "presample": {"n": [8, 16], "accept": ["undecided", "flat", "multi", "conflict"]},
            "fuse": {"arms": ["identity"]},
            "rollout": {"n": 8},
            **given,
        }
    )
    build, engine = load_context(settings, "publish", Benchmarks({}), Secret()), TwoAnswers(texts)
    log = AnswerLog(tmp_path / "answers.log")
    ask = CachedClient({"policy": engine, "judge": engine}, log, 0, RunStats())
    try:
        return asyncio.run(run_prompt(PromptContext(build, ask), PROMPT)), engine, build
    finally:
        log.close()


MIXED = [GOOD, GOOD.upper(), GOOD, POOR]  # 3 in 4 are one text


def test_copies_are_scored_by_one_call_and_counted_in_every_statistic(tmp_path: Path) -> None:
    result, engine, build = ran(tmp_path, MIXED)
    (arm,), before = result.arms, result.presample
    assert before is not None and result.stats is not None
    for found in (before, arm):
        n = len(found.rollouts)
        for d in DIMS:
            assert found.rewards[d] == [1.0, 1.0, 1.0, 0.25] * (n // 4)
        flagged = ["duplicate" in r.flags for r in found.rollouts]
        assert flagged == [False, True, True, False] + [True] * (n - 4)
    # in two dimensions: the two texts of presamples and rollouts, and the two sides of a pair
    assert engine.judged == 2 * 2 + 2 * 2 + 2 * 2
    assert (result.stats.passed, result.stats.joint) == ((0.75, 0.75), 0.75)
    assert result.counts["rollout", "kept"] == result.counts["rollout", "in"] == 8
    assert result.counts["score", "kept"] == result.counts["score", "in"] == 8
    assert {(p.chosen, p.rejected) for p in arm.pairs} == {(0, 3)}
    sums = sums_of([result])["sources"]["helpful"]
    assert sum(s["n"] for s in sums.values()) == len(before.rollouts) + 8
    assert build.judge_stats.n_rollouts == 0


def test_the_report_counts_copies_and_says_how_many_repeat(tmp_path: Path) -> None:
    result, _, _ = ran(tmp_path, MIXED)
    schema, rows = tables([result], DIMS)["rollouts"]
    rollouts = pa.Table.from_pylist(list(rows), schema)
    rollouts = rollouts.filter(pc.equal(rollouts["arm"], "identity"))
    rewards = np.stack([rollouts[f"reward_{d}"].to_numpy() for d in DIMS], 1)
    columns = [np.zeros(8), *(_flagged(rollouts, f) for f in ("refusal", "duplicate"))]
    block = _arm(np.zeros(8, int), np.arange(8), rewards, columns, {0: QUESTION})
    scale = Scale(tuple(DIMS), np.full(2, 0.75), np.zeros(2), k=4, every=1)
    found = dict(
        zip(metric_names(DIMS), measure(block, scale, np.array([True]))[0].tolist(), strict=True)
    )
    assert (found["repeats"], found["scored"]) == (0.75, 1.0)
    assert (found["joint_pass_1"], found["pass_helpful"]) == (0.75, 0.75)
    assert found["dominance_rate"] == pytest.approx(6 * 2 / 28)


def test_a_policy_with_one_answer_has_numbers_and_no_pair(tmp_path: Path) -> None:
    result, engine, _ = ran(tmp_path, [GOOD])
    (arm,), stats = result.arms, result.stats
    assert stats is not None and stats.passed == (1.0, 1.0) and engine.judged == 2 * 2
    assert arm.rewards["helpful"] == [1.0] * 8 and not arm.pairs


def test_the_same_text_in_a_later_look_is_a_copy() -> None:
    first = asyncio.run(as_rollouts("p", [Answer(GOOD), Answer("", error="HTTP 400")]))
    later = asyncio.run(as_rollouts("p", [Answer(GOOD), Answer("")], "", first))
    assert [(r.index, "duplicate" in r.flags) for r in later] == [(2, True), (3, False)]


def test_a_fault_in_the_numbers_before_fusion_leaves_the_arms_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt is asked again by the next run, and its counts add up."""
    answered = TwoAnswers.send

    async def send(self: TwoAnswers, request: Request, *more: Any) -> Record:
        if request.purpose == "before":
            raise PendingRetry("HTTP 503")
        return await answered(self, request, *more)

    monkeypatch.setattr(TwoAnswers, "send", send)
    result, _, _ = ran(tmp_path, MIXED, fuse={"arms": ["concat"], "checks": []})
    assert result.pending == "HTTP 503" and result.before is not None
    assert not result.before.rollouts and [a.name for a in result.arms] == ["concat"]
    counts = result.counts
    assert counts["rollout", "in"] == 8 and not [k for k in counts if k[1] == "owed"]
    assert [len(list(rows)) for _, rows in tables([result], DIMS).values()][3] == 8 + len(
        result.presample.rollouts
    )
