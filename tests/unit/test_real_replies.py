"""What a real 1.5B instruct model replied (tests/data/real_replies.jsonl), as it is read today.

    {"role": "rewriter", "prompt": "How do I ...?", "request": [...], "schema": "as written",
     "max_tokens": 300, "reply": "...", "finish_reason": "stop"}

`schema` null: the same request without its JSON schema, as a server hears it that knows none;
"sorted": with the schema's keys sorted, as it was sent at first, so that the model had to write the
intents, spans of a question that was not there yet, before the question.
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
        "rewriter": 25,
    }
    prompts = {row["prompt"] for rows in replies.values() for row in rows}
    assert prompts == {prompt for prompt, _ in ASKED}
    assert REPLIES.stat().st_size <= 100_000


def test_every_verdict_is_read(replies: dict[str, list[Reply]]) -> None:
    """With and without a schema alike; they hardly differ between the answers."""
    levels: dict[str | None, list[int | None]] = {"as written": [], None: []}
    for row in replies["judge"]:
        level, reason = verdict(Answer(row["reply"], row["finish_reason"]))
        assert reason == ""
        levels[row["schema"]].append(level)
    assert levels["as written"] == levels[None] == [4, 4, 4, 3, 4, 4, 5, 5]


def test_whole_rewrites_are_read_and_cut_ones_are_called_that(
    replies: dict[str, list[Reply]],
) -> None:
    """Of the sorted ones that are cut off, each begins with a whole inner object, an intent."""
    found = Counter(
        (row["schema"], row["finish_reason"], outcome(row)) for row in replies["rewriter"]
    )
    assert found == {
        ("as written", "stop", "rewrite"): 7,
        (None, "stop", "rewrite"): 4,
        ("as written", "length", "cut_off"): 3,
        (None, "length", "cut_off"): 1,
        ("sorted", "length", "cut_off"): 5,
        ("sorted", "stop", "rewrite"): 5,
    }


def outcome(row: Reply) -> str:
    read = parse_rewrite(row["reply"], row["finish_reason"])
    return "rewrite" if isinstance(read, Rewrite) else read


def test_the_model_writes_in_the_order_of_the_schema(replies: dict[str, list[Reply]]) -> None:
    for row in replies["rewriter"]:
        reply = row["reply"]
        first = "intents" if row["schema"] == "sorted" else "rewritten"
        assert reply[reply.index("{") :].lstrip("{ \n").startswith(f'"{first}"')


def test_intents_seldom_name_a_target(replies: dict[str, list[Reply]]) -> None:
    """The model invents dimensions ("targets", "prevention"); so intents decide nothing."""
    found: Counter[tuple[str | None, str]] = Counter()
    targets = dict(ASKED)
    for row in replies["rewriter"]:
        read = parse_rewrite(row["reply"], row["finish_reason"])
        for dimension, span in read.intents if isinstance(read, Rewrite) else ():
            found[row["schema"], "intents"] += 1
            found[row["schema"], "quoted"] += span.lower() in read.text.lower()
            found[row["schema"], "targets"] += dimension in targets[row["prompt"]]
    assert found == {
        ("as written", "intents"): 14,
        ("as written", "quoted"): 10,
        ("as written", "targets"): 2,
        (None, "intents"): 6,
        (None, "quoted"): 3,
        (None, "targets"): 1,
        ("sorted", "intents"): 6,
        ("sorted", "quoted"): 1,
        ("sorted", "targets"): 0,
    }
