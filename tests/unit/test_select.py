"""Which prompts selection leaves out, and that a table is cut without losing anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.run_folder import make_run
from support.scored import DIMS, one, table_of

from mora_data.run import table as scored
from mora_data.run.partitions import Partition
from mora_data.run.table import ScoredTable
from mora_data.selection.select import _count_rows, repeats_in
from mora_data.sources.near import NearDuplicates

LONG = (
    "How do I keep a small vegetable garden alive through a dry and hot summer without wasting any"
    " water at all?"
)


def table(*asked: tuple[str, str]) -> ScoredTable:
    """One row per (arm, text), each of another source prompt."""
    rows = [
        replace(one(i), arm=arm, messages=({"role": "user", "content": text},))
        for i, (arm, text) in enumerate(asked)
    ]
    return table_of(rows, DIMS)


def test_a_rewrite_that_repeats_another_is_left_out_and_so_is_a_fused_one_that_nearly_does() -> (
    None
):
    thanks = f"{LONG} Thanks!"
    made = table(
        ("fused", LONG),
        ("fused", LONG.upper()),
        ("fused", thanks),
        ("single", thanks),
        ("identity", LONG),
    )
    assert repeats_in(made, set(), NearDuplicates(0.8)).tolist() == [
        "",
        "duplicate_prompt",
        "near_duplicate_prompt",
        "duplicate_prompt",
        "",
    ]
    assert repeats_in(made, set(), None).tolist() == [
        "",
        "duplicate_prompt",
        "",
        "duplicate_prompt",
        "",
    ]


def test_repeats_are_seen_across_tables() -> None:
    seen: set[int] = set()
    assert repeats_in(table(("fused", LONG)), seen, None).tolist() == [""]
    assert repeats_in(table(("fused", LONG)), seen, None).tolist() == ["duplicate_prompt"]


def test_a_prompt_whose_answers_are_all_one_text_is_counted_as_that() -> None:
    answers, copy = ("Yes.", "Yes.", "yes.", ""), ((), ("duplicate",), ("duplicate",), ("empty",))
    rewards = dict.fromkeys(DIMS, (1.0, 1.0, 1.0, None))
    rows = [
        one(0, answers=answers, flags=copy, rewards=rewards, pairs=()),
        one(
            1,
            answers=answers,
            flags=copy,
            rewards=dict.fromkeys(DIMS, (1.0, *[None] * 3)),
            pairs=(),
        ),
        one(2, pairs=()),
    ]
    made = table_of(rows, DIMS)
    counts = _count_rows(made, np.array([""] * 3), made.pairs)
    assert {k: n for (stage, k), n in counts.items() if stage == "select"} == {
        "in": 3,
        "answers_alike": 1,
        "too_few_scored": 1,
        "no_dominating_pair": 1,
    }


def test_tables_of_any_size_hold_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "r", {"presample": 0.4, "identity": 0.3, "fused": 0.6}, 12)
    part = Partition(run, 0)

    def rows(published: list[str]) -> list[tuple[object, ...]]:
        return [
            (
                t.prompts[p].prompt_id,
                t.arms[p],
                t.texts[a:b].to_pylist(),
                t.rewards_R_D[a:b].tolist(),
                [
                    (q.chosen_Q[0], q.rejected_Q[0], q.at_Q[0])
                    for q in [t.pairs.take(t.pairs.row_Q == p)]
                    if len(q)
                ],
            )
            for t in scored.scored_tables(part, DIMS, published)
            for p, (a, b) in enumerate(zip(t.starts, t.starts[1:], strict=False))
        ]

    whole = rows(["identity", "fused"])
    assert {r[1] for r in whole} == {"identity", "fused"}
    monkeypatch.setattr(scored, "TEXT_BYTES", 40)
    assert str(rows(["identity", "fused"])) == str(whole)
    only = rows(["fused"])
    # NaN is never equal to itself
    assert str([r[:4] for r in only]) == str([r[:4] for r in whole if r[1] == "fused"])
