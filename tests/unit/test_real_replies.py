"""What a real 1.5B instruct model replied (tests/data/real_replies.jsonl), as it is read today.

    {"role": "rewriter", "prompt": "How do I ...?", "request": [...], "schema": "as written",
     "max_tokens": 300, "reply": "...", "finish_reason": "stop"}

`schema` null: the same request without its JSON schema, as a server hears it that knows none;
"sorted": with the schema's keys sorted, as it was sent at first, so that the model had to write the
intents, spans of a question that was not there yet, before the question.
`python -m tests.support.real_model record` writes the file anew; the rewriter's rows answer the
first template and stay.

tests/data/real_rewrites.jsonl has rewrites by several templates, `fuse` in place of `record`:

    {"template": "shipped", "prompt": "...", "targets": ["harmless", "truthful"], "reply": "...",
     "finish_reason": "stop", "asks": ["harmless"]}

`asks`: the targets that it asks for, about the prompt's own subject, as one who knew the method
read it. `first`: the first template; `rules`: no worked example; `draft`: worked examples with
other wordings; `control`: by the templates single and generic, which add no target.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from support.real_model import ASKED, REPLIES, REWRITES, source_prompt

from mora_data.rewards.judge import verdict
from mora_data.rewriting.checks import Limits, budget, check
from mora_data.rewriting.intents import is_asked, load_intents
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


@pytest.fixture(scope="module")
def rewrites() -> list[Reply]:
    return [json.loads(line) for line in REWRITES.read_text("utf-8").splitlines()]


def test_the_rewrites_are_enough_to_measure_with(rewrites: list[Reply]) -> None:
    lacking = sum(set(r["asks"]) != set(r["targets"]) for r in rewrites)
    assert len(rewrites) >= 120 and lacking >= 0.45 * len(rewrites)
    assert REWRITES.stat().st_size <= 200_000


def test_rewrites_by_the_shipped_template_are_read_and_pass_the_checks(
    rewrites: list[Reply],
) -> None:
    """All but few, the cues of every target among them."""
    intents, outcomes = load_intents(("helpful", "harmless", "truthful")), Counter[str]()
    shipped = [r for r in rewrites if r["template"] == "shipped"]
    for row in shipped:
        read = parse_rewrite(row["reply"], row["finish_reason"])
        assert isinstance(read, Rewrite), row
        prompt, text = source_prompt(row["prompt"]), read.text
        found = check(prompt, read, Limits(budget(prompt.text)))
        failed = [c.name for c in found if not c.passed]
        failed += [d for d in row["targets"] if not is_asked(intents[d], text)]
        outcomes[failed[0] if failed else "accepted"] += 1
    assert outcomes["accepted"] >= 0.9 * len(shipped) >= 18, outcomes


def test_cues_show_what_is_asked(rewrites: list[Reply]) -> None:
    """Precision and recall of the rule. The same model as a judge said yes to 17 of 24 targets that
    no cue shows and that are not asked for."""
    intents, found = load_intents(("helpful", "harmless", "truthful")), Counter[tuple[bool, bool]]()
    for row in rewrites:
        read = parse_rewrite(row["reply"], row["finish_reason"])
        for d in row["targets"] if isinstance(read, Rewrite) else ():
            found[is_asked(intents[d], read.text) is True, d in row["asks"]] += 1
    right, wrong, missed = found[True, True], found[True, False], found[False, True]
    assert right / (right + wrong) >= 0.92, found
    assert right / (right + missed) >= 0.95, found
