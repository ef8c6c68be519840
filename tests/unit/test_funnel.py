"""The funnel and the length audit, over partitions written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mora_data.prompts.result import PromptResult, RewriteAttempt, tables
from mora_data.report.arms_audit import MAX_GAP, arms_audit, funnel
from mora_data.run.partitions import Partition
from mora_data.statistics.expansion import MOST_LENGTH_GAP
from mora_data.types import Prompt

PROMPT = Prompt(
    "0" * 16,
    ({"role": "user", "content": "How?"},),
    "g",
    "d",
    "c",
    "train",
    "r",
    0,
    "l",
    category="Drugs",
)


def tried(
    arm: str, attempt: int, text: str, *failed: str, harm: tuple[float, float] | None = None
) -> RewriteAttempt:
    seen = [(name, True, None) for name in ("parse", "rewriter_refusal")] + [
        ("length", "length" not in failed, 9.0)
    ]
    checks = [(n, False, None) for n in failed if n != "length"] or seen
    if harm is not None:
        checks = [*checks, ("harm_before", True, harm[0]), ("harm", True, harm[1])]
    return RewriteAttempt(arm, attempt, 0, text, not failed, failed, tuple(checks))


@pytest.fixture
def part(tmp_path: Path) -> Partition:
    found = Partition(tmp_path, 0)
    prompts = [
        replace(PROMPT, prompt_id=f"{i:016x}", category=c)
        for i, c in enumerate(("Drugs", "Drugs", "Food", None))
    ]
    found.keep_prompts(prompts)
    fusions = [
        [tried("fused", 0, "x", "rewriter_refusal"), tried("fused", 1, "y", "rewriter_refusal")],
        [
            tried("fused", 0, "x", "length"),
            tried("fused", 1, "a b c d e f g h i j", harm=(1.0, 0.25)),
            tried("single", 0, "a b c d e f g h i"),
        ],
        [
            tried("fused", 0, "a b c d e f g h i j", harm=(0.0, 0.0)),
            tried("single", 0, "a b c d e f g h i j k"),
        ],
        [],
    ]
    outcomes = [PromptResult(p, fusions=list(f)) for p, f in zip(prompts, fusions, strict=True)]
    found.finalize(tables(outcomes, ["helpful"]), [], [], {})
    return found


def test_funnel_counts_prompts_tries_checks_and_categories(part: Partition) -> None:
    fused = funnel([part])["arms"]["fused"]
    assert {k: fused[k] for k in ("prompts", "accepted", "tries", "first_try")} == {
        "prompts": 3,
        "accepted": 2,
        "tries": 5,
        "first_try": 1,
    }
    assert fused["checks"]["rewriter_refusal"] == {"seen": 5, "failed": 2, "last": 1}
    assert fused["checks"]["length"] == {"seen": 3, "failed": 1, "last": 0}
    assert fused["categories"] == {
        "Drugs": {"prompts": 2, "accepted": 1, "refused": 1},
        "Food": {"prompts": 1, "accepted": 1, "refused": 0},
    }
    assert fused["harm_shift"] == {"n": 2, "before": 0.5, "after": 0.125, "mean": -0.375}
    assert fused["values"]["length"] == {"n": 2, "mean": 9.0}
    assert funnel([part])["arms"]["single"]["harm_shift"] is None


def test_funnel_adds_up_over_partitions(part: Partition) -> None:
    once, twice = funnel([part])["arms"]["fused"], funnel([part, part])["arms"]["fused"]
    assert (
        twice["tries"] == 2 * once["tries"]
        and twice["harm_shift"]["mean"] == once["harm_shift"]["mean"]
    )
    assert funnel([]) == {"arms": {}}


def test_audit_compares_prompt_by_prompt(part: Partition) -> None:
    from math import log

    found = arms_audit([part], ["single", "generic"])
    gaps = [log(9 / 10), log(11 / 10)]
    assert found["single"] == {
        "n": 2,
        "mean_log_gap": pytest.approx(sum(gaps) / 2),
        "worst": pytest.approx(-gaps[0]),
        "matched": True,
    }
    assert found["generic"] == {"n": 0, "mean_log_gap": None, "worst": None, "matched": None}
    assert arms_audit([part], []) == {}
    assert MAX_GAP == MOST_LENGTH_GAP
