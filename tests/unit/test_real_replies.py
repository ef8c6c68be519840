"""What a real 1.5B instruct model replied (tests/data/real_replies.jsonl), as it is read today.

    {"role": "rewriter", "prompt": "How do I ...?", "request": [...], "schema": true,
     "max_tokens": 300, "reply": "...", "finish_reason": "stop"}

`schema` false: the same request without its JSON schema, as a server hears it that knows none.
`python -m tests.support.real_model record` writes the file anew.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from support.real_model import ASKED, REPLIES

from mora_data.rewards.judge import verdict
from mora_data.rewriting.reply import Rewrite, parse_rewrite
from mora_data.types import Answer

Reply = dict[str, Any]


@pytest.fixture(scope="module")
def replies() -> dict[str, list[Reply]]:
    """By role, in the order in which they came."""
    out: dict[str, list[Reply]] = {"policy": [], "judge": [], "rewriter": []}
    for line in REPLIES.read_text("utf-8").splitlines():
        row = json.loads(line)
        out[row["role"]].append(row)
    return out


def test_the_replies_are_few_and_to_known_prompts(replies: dict[str, list[Reply]]) -> None:
    assert {role: len(rows) for role, rows in replies.items()} == {
        "policy": 4,
        "judge": 16,
        "rewriter": 15,
    }
    prompts = {row["prompt"] for rows in replies.values() for row in rows}
    assert prompts == {prompt for prompt, _ in ASKED}
    assert REPLIES.stat().st_size <= 100_000


def test_every_verdict_is_read(replies: dict[str, list[Reply]]) -> None:
    """With and without a schema alike; they hardly differ between the answers."""
    levels: dict[bool, list[int | None]] = {True: [], False: []}
    for row in replies["judge"]:
        level, reason = verdict(Answer(row["reply"], row["finish_reason"]))
        assert reason == ""
        levels[row["schema"]].append(level)
    assert levels[True] == levels[False] == [4, 4, 4, 3, 4, 4, 5, 5]


def test_whole_rewrites_are_read_and_cut_ones_are_misnamed(
    replies: dict[str, list[Reply]],
) -> None:
    """Wrong today: of a reply under the schema that is cut off, the first whole inner object is
    taken for the reply, so that it counts as `wrong_fields`. It was cut off, and it is called so
    where no inner object is whole."""
    found = Counter(
        (row["schema"], row["finish_reason"], outcome(row)) for row in replies["rewriter"]
    )
    assert found == {
        (True, "stop", "rewrite"): 5,
        (True, "length", "wrong_fields"): 5,
        (False, "stop", "rewrite"): 4,
        (False, "length", "cut_off"): 1,
    }


def outcome(row: Reply) -> str:
    read = parse_rewrite(row["reply"], row["finish_reason"])
    return "rewrite" if isinstance(read, Rewrite) else read


def test_the_schema_makes_the_model_annotate_before_it_writes(
    replies: dict[str, list[Reply]],
) -> None:
    """Wrong today: the schema is sent with its keys sorted, and the intents come first. Without it
    the model keeps to the order of the template."""
    for row in replies["rewriter"]:
        reply = row["reply"]
        first = "intents" if row["schema"] else "rewritten"
        assert reply[reply.index("{") :].lstrip("{ \n").startswith(f'"{first}"')


def test_few_intents_quote_their_rewrite_or_name_a_target(replies: dict[str, list[Reply]]) -> None:
    """Under the schema, written before the rewrite, one span of six stands in it, and no intent
    names a target; written after it, three of six do, and one is a target."""
    found: Counter[tuple[bool, str]] = Counter()
    targets = dict(ASKED)
    for row in replies["rewriter"]:
        read = parse_rewrite(row["reply"], row["finish_reason"])
        for dimension, span in read.intents if isinstance(read, Rewrite) else ():
            found[row["schema"], "intents"] += 1
            found[row["schema"], "quoted"] += span.lower() in read.text.lower()
            found[row["schema"], "targets"] += dimension in targets[row["prompt"]]
    assert found == {
        (True, "intents"): 6,
        (True, "quoted"): 1,
        (True, "targets"): 0,
        (False, "intents"): 6,
        (False, "quoted"): 3,
        (False, "targets"): 1,
    }
