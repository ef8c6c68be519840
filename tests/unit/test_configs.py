"""Each config as a pure function of one scored prompt."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.scored import DIMS, FLOORS, ORIGIN, Scored, one, pick, settings, table_of

from mora_data import text
from mora_data.dataset import configs, schemas
from mora_data.dataset.configs import Release, TableView, config_batch
from mora_data.run.table import Pairs, ScoredTable
from mora_data.types import Pair


def view(scored: Scored, **changes: Any) -> TableView:
    given: dict[str, Any] = {
        "settings": settings(),
        "origin": ORIGIN,
        "manifest": {},
        "thresholds": FLOORS,
        "pick": pick,
        "dominance": True,
        "live": DIMS,
        **changes,
    }
    return TableView(table_of([scored], DIMS), Release(**given))


def rows(of: TableView, config: str) -> list[dict[str, Any]]:
    return config_batch(of, config)[1].to_pylist()  # type: ignore[no-any-return]


def message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.mark.parametrize("config", schemas.config_names(DIMS, DIMS))
def test_rows_have_exactly_the_columns_of_the_schema(config: str) -> None:
    made = rows(view(one()), config)
    assert made
    for row in made:
        assert set(row) == set(schemas.schema(config, DIMS).names)


def test_a_pair_row_tells_both_sides() -> None:
    (row,) = rows(view(one(3)), "preference")
    assert row["prompt"] == [{"role": "user", "content": "How do I number 3 things?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "Count 3 of them, slowly."}]
    assert row["rejected"] == [{"role": "assistant", "content": "No idea 3."}]
    assert (
        row["chosen_reward_helpful"],
        row["rejected_reward_helpful"],
        row["margin_helpful"],
    ) == (1.0, 0.25, 0.75)
    assert (row["margin_confirmed_helpful"], row["margin_confirmed_harmless"]) == (0.5, None)
    assert (row["margin_total"], row["score"], row["weight"], row["selector"]) == (
        2.25,
        0.42,
        1.0,
        "dominance_hv",
    )
    shares = [row["pro_weight_helpful"], row["pro_weight_harmless"]]
    rewards = [row["chosen_reward_helpful"], row["chosen_reward_harmless"]]
    assert all(
        math.isclose(a / shares[0], math.exp(b - rewards[0]))
        for a, b in zip(shares, rewards, strict=True)
    )
    assert math.isclose(sum(v for k, v in row.items() if k.startswith("pro_weight_")), 1)
    assert row["len_chosen"] == text.n_tokens("Count 3 of them, slowly.")


def test_margins_come_from_the_rewards_not_from_the_pair() -> None:
    wrong = Pair(0, 1, 0.1, dict.fromkeys(DIMS, 99.0))
    assert rows(view(one(pairs=(wrong,))), "preference")[0]["margin_helpful"] == 0.75


def test_two_pairs_of_a_prompt_weigh_a_half_each() -> None:
    pairs = (Pair(0, 1, 0.4, {}), Pair(2, 1, 0.1, {}))
    made = rows(view(one(pairs=pairs)), "preference")
    assert [r["weight"] for r in made] == [0.5, 0.5]
    assert len({r["pair_id"] for r in made}) == 2


def test_pair_id_depends_on_texts_prompt_and_arm_only() -> None:
    ids = [
        rows(view(s), "preference")[0]["pair_id"]
        for s in (
            one(1),
            one(1, rewards=dict.fromkeys(DIMS, (1.0, 0.0, 0.0, 0.0))),
            one(2),
            replace(one(1), arm="identity"),
        )
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_a_missing_reward_stays_null() -> None:
    rewards = {"helpful": (1.0, 0.25, None, None), "harmless": (None, 0.5, None, None)}
    (row,) = rows(view(one(rewards=rewards), dominance=False), "preference")
    assert (
        row["margin_harmless"],
        row["chosen_reward_harmless"],
        row["rejected_reward_harmless"],
    ) == (None, None, 0.5)
    assert row["chosen_reward_truthful"] is None
    assert row["margin_total"] == 0.75


def test_unpaired_labels_pass_fail_and_drops_the_grey_zone() -> None:
    rewards = {
        "helpful": (0.75, 0.0, 0.72, 0.75, 1.0),
        "harmless": (0.5, 1.0, 1.0, None, 1.0),
        "truthful": (1.0, 1.0, 1.0, 1.0, 1.0),
    }
    flags: tuple[tuple[str, ...], ...] = ((), ("refusal",), (), (), ("truncated",))
    scored = one(answers=("good", "bad", "nearly", "unknown", "cut"), rewards=rewards, flags=flags)
    made = rows(view(scored), "unpaired")
    assert [(r["completion"], r["label"]) for r in made] == [
        (message("assistant", "good"), True),
        (message("assistant", "bad"), False),
    ]
    noisy = rows(view(scored, manifest={"reference": {"noise": {"helpful": 0.4}}}), "unpaired")
    assert [r["label"] for r in noisy] == [True]


def test_a_dimension_that_nobody_scored_does_not_empty_unpaired() -> None:
    rewards = {"helpful": (1.0, 0.0, 1.0, None), "harmless": (1.0, 1.0, 1.0, None)}
    made = rows(view(one(rewards=rewards), live=("helpful", "harmless")), "unpaired")
    assert [r["label"] for r in made] == [True, False, True]


def test_by_dimension_is_all_or_none() -> None:
    flat = {
        "helpful": (1.0, 0.0, 0.5, None),
        "harmless": (0.5, 0.5, 0.5, None),
        "truthful": (1.0, 0.5, 0.5, None),
    }
    for dim in DIMS:
        assert rows(view(one(rewards=flat)), f"preference_{dim}") == []
        made = rows(view(one()), f"preference_{dim}")
        assert [(r["dimension"], r["selector"]) for r in made] == [(dim, "lexi")]
    assert rows(view(one(rewards=flat), live=("helpful", "truthful")), "preference_helpful")


def test_a_stage_constrains_the_dimensions_aligned_before_it() -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []

    def spy(table: ScoredTable, target: str, aligned: tuple[str, ...]) -> Pairs:
        asked.append((target, aligned))
        return pick(table, target, aligned)

    order = ("harmless", "helpful", "truthful")
    of_order = view(one(), settings=settings(publish={"stage_order": list(order)}), pick=spy)
    for number, dim in enumerate(order, 1):
        (row,) = rows(of_order, f"stage{number}_{dim}")
        assert (row["stage"], row["dimension"]) == (number, dim)
    assert asked == [
        ("harmless", ()),
        ("helpful", ("harmless",)),
        ("truthful", ("harmless", "helpful")),
    ]


def test_scored_keeps_everything_and_points_at_the_pair() -> None:
    scored = one(answers=("a", "b", "c", ""))
    failed = replace(
        scored,
        rollouts=(
            *scored.rollouts[:3],
            replace(scored.rollouts[3], error="refused by http://10.0.0.1", flags=()),
        ),
    )
    (row,) = rows(view(failed), "scored")
    assert row["completions"] == ["a", "b", "c", ""]
    assert row["rewards_helpful"] == [1.0, 0.25, 0.5, None]
    assert row["flags"] == [[], [], [], ["error"]]
    assert (row["pair_chosen"], row["pair_rejected"]) == ([0], [1])
    assert "10.0.0.1" not in str(row)


def test_multilabel_leaves_out_what_has_no_score_or_no_text() -> None:
    made = rows(view(one()), "multilabel")
    assert [r["score_helpful"] for r in made] == [1.0, 0.25, 0.5]


def test_source_prompt_is_the_whole_normalised_context() -> None:
    assert (
        configs.source_prompt(({"role": "user", "content": "  What IS\nthis? "},))
        == "what is this?"
    )
    history = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})
    (row,) = rows(view(one(history=history, question="And NOW?")), "preference")
    assert row["source_prompt"] == "user: hi\nassistant: hello\nuser: and now?"
    assert len(row["prompt"]) == 3


@pytest.mark.parametrize(
    ("answers", "rewards", "says"),
    [
        (("same", "same"), {}, "the same text"),
        (("a", "b"), {"helpful": (0.5, 0.5)}, "margin_helpful is 0.0, not positive"),
        (("a", "b"), {"harmless": (None, 0.5)}, "margin_harmless is None, not positive"),
        (("a", "b"), {"truthful": (0.0, 0.5)}, "margin_truthful is -0.5, negative"),
    ],
)
def test_a_dominance_pair_that_breaks_the_law_is_named(
    answers: tuple[str, ...], rewards: dict[str, Any], says: str
) -> None:
    scored = one(answers=answers, rewards={**dict.fromkeys(DIMS, (1.0, 0.0)), **rewards})
    v = view(scored)
    assert says in (configs.broken_law(v, v.pairs) or "")


def test_without_dominance_a_negative_margin_is_allowed() -> None:
    scored = one(
        answers=("a", "b"),
        rewards={"helpful": (1.0, 0.0), "harmless": (0.0, 1.0), "truthful": (1.0, 0.0)},
    )
    v = view(scored, dominance=False)
    assert configs.broken_law(v, v.pairs) is None
