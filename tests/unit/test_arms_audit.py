"""The length audit, over partitions written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mora_data.prompts.result import PromptResult, RewriteAttempt, tables
from mora_data.report.arms import arms_audit
from mora_data.rewriting.checks import Check
from mora_data.run.partitions import Partition
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
    seen = [Check(name, True) for name in ("parse", "rewriter_refusal")] + [
        Check("length", "length" not in failed, 9.0)
    ]
    checks = [Check(n, False) for n in failed if n != "length"] or seen
    if harm is not None:
        checks = [*checks, Check("harm_before", True, harm[0]), Check("harm", True, harm[1])]
    return RewriteAttempt(arm, attempt, 0, text, tuple(checks), accepted=not failed)


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
    outcomes = [PromptResult(p, attempts=list(f)) for p, f in zip(prompts, fusions, strict=True)]
    found.finalize(tables(outcomes, ["helpful"]), [], [], {})
    return found


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
