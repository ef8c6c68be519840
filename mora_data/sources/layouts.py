r"""Anyone's rows: the first of a file are looked at, their layout is found in a table, and it says
which conversation a row asks and which answers and ratings it carries.

    {"prompt": "How do I bleed a radiator?", "category": "home"}
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}

`LAYOUTS` is the table; the first layout that a row matches is its own. Rows of other columns are
looked at when they come, so a file may hold several. Where the columns say no layout, or several,
nothing is guessed: the error names the columns and what to type (`source.columns`,
`source.layout`). A row with a finished chat gives its context, and the reply is left aside (note
reply_ignored). Answers always carry `preferred` where the row says which is better: 1 and 0, and
0.5 for a tie; scores keep their own names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import chain, product
from typing import TypeGuard

from ..errors import DropRow
from ..types import Message, Messages, Row
from . import (
    Layout,
    ParsedRow,
    number_in,
    prompt_in,
    reply_notes,
    score_in,
    side_in,
    truth_in,
    user_turn,
)
from .helpsteer import HELPSTEER
from .hh import HH_RLHF, is_pair, is_red_team
from .pku import PKU_SAFERLHF
from .turns import (
    ANY_QUESTION,
    BESIDE,
    MARKS,
    QUESTIONS,
    TALKS,
    checked_context,
    column_in,
    context_of,
    conversation,
    is_lists,
    is_talk,
    json_in,
    marked,
    open_end,
    parsed_as,
    plain,
    question_in,
    talk_column,
    transcript_turns,
    turns_in,
    with_system,
)
from .ultrafeedback import ULTRAFEEDBACK

# columns by what they mean; the first that a row has counts
REPLIES = "response completion output answer reply target".split()
ANSWERS = (*REPLIES, "chosen", "rejected", "responses", "completions", "outputs", "answers")
SIDES = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("chosen_response", "rejected_response"),
    ("accepted", "rejected"),
)
PAIRS = tuple(
    (f"{name}{a}", f"{name}{b}")
    for name in ("response", "answer", "output", "completion", "human_ref", "summary")
    for a, b in (("_0", "_1"), ("_1", "_2"), ("1", "2"), ("_a", "_b"), ("_A", "_B"))
)
SCORES = (
    ("score_{}", "{}_score", "{}-rating", "{}_rating", "rating_{}", "reward_{}", "{}_reward"),
    ("metadata", "meta"),
)
LISTS = "responses completions generations outputs answers candidates".split()
RATINGS = "scores ratings rewards rating reward_scores".split()
JSON_COLUMNS = frozenset((*TALKS, *QUESTIONS, "chosen", "rejected", "answers", *LISTS, *RATINGS))
_TEXT_KEYS = ("text", "answer", "response", "content", "output")


def at(row: Row, path: str, default: object = None) -> object:
    """The value of a column, or at a dotted path in one."""
    if path in row:
        return row[path]
    node: object = row
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return default
        node = node[part]
    return node


def is_texts(value: object) -> TypeGuard[list[str]]:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def means_turns(name: str, value: object) -> bool:
    """Whether a JSON value is what the column is there for, and no text that happens to be JSON."""
    if name in LISTS:
        return isinstance(value, list)
    if name in RATINGS:
        return isinstance(value, list) and all(not isinstance(v, str) for v in value)
    one = isinstance(value, Mapping) and bool(value.keys() & {"role", "from"})
    return is_talk(value) or (one and name != "prompt")


# answers


def _rated(*ratings: tuple[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in ratings if value is not None}


def _sides(row: Row) -> tuple[str, str] | None:
    return next((s for s in SIDES if s[0] in row and s[1] in row), None)


def _side_score(row: Row, side: str) -> float | None:
    places = [row, *(v for m in SCORES[1] if isinstance(v := row.get(m), Mapping))]
    found = (p[k] for p in places for form in SCORES[0] if (k := form.format(side)) in p)
    return score_in(next(found, None))


def _reply(value: object) -> tuple[Messages, str | None]:
    """A side of a preference: the context that it holds, and its reply; a number, say, is none.

    Raises:
        DropRow: a conversation that does not end with a reply.
    """
    if isinstance(value, str):
        marks = marked(value)
        if not marks:
            return (), value
        value = transcript_turns(value, marks)
    if isinstance(value, Mapping) and not is_lists(value):
        value = [value]
    if not isinstance(value, (list, tuple, Mapping)):  # the prompt counts without it
        return (), None
    turns = conversation(value)
    if turns[:-1]:
        checked_context(turns[:-1])
    if turns[-1]["role"] != "assistant":
        raise DropRow("same_speaker")
    return turns[:-1], turns[-1]["content"]


def two_sides(row: Row) -> ParsedRow:
    """Two sides, each a reply or a conversation that ends with one, and the context before them."""
    sides = _sides(row) or SIDES[0]
    values = [row.get(s) for s in sides]
    own = column_in(row, ANY_QUESTION)
    if any(isinstance(v, list) for v in values):
        if any(v is None for v in values):
            raise DropRow("null_text", "a side")
        if any(isinstance(v, str) for v in values):
            raise DropRow("wrong_type", "sides")
    if own and not all(isinstance(v, str) and marked(v) for v in values):
        # beside a question, a text that begins like a transcript is a reply that does
        values = [{"role": "assistant", "content": v} if isinstance(v, str) else v for v in values]
    (before, chosen), (other, rejected) = map(_reply, values)
    if before or other:
        before, other = (with_system(row, b) for b in (before, other))
        prompt = row[own] if own else None
        asked = [m["content"] for m in before if m["role"] == "user"]
        if before != other or (
            isinstance(prompt, str) and not marked(prompt) and question_in(prompt) not in asked
        ):
            raise DropRow("context_mismatch")
        context = checked_context(before), False
    else:
        context = context_of(row)
    a, b = _side_score(row, sides[0]), _side_score(row, sides[1])
    tie = a is not None and a == b
    won = (0.5, 0.5) if tie else (1.0, 0.0)
    texts = [t if isinstance(t, str) else None for t in (chosen, rejected)]
    rated = [_rated(("preferred", w), ("score", s)) for w, s in zip(won, (a, b), strict=True)]
    answers = [(t, r) for t, r in zip(texts, rated, strict=True) if t is not None]
    scored = any("score" in k or "rating" in k for k in row)
    notes = [*reply_notes(*texts), *(["tie"] if tie else [])]
    notes += ["score_missing"] if scored and None in (a, b) else []
    return parsed_as(row, context, answers, notes)


def _winner(row: Row) -> tuple[float, float] | None:
    """`preferred` of the first and second answer of a row; None where it does not say."""
    for name in ("preference_strength", "overall_preference"):  # below 0: the first is better
        if (strength := score_in(row.get(name))) is not None:
            return _won(-strength, 0)
    for name in ("better_response_id", "choice", "safer_response_id"):
        if (side := side_in(row.get(name))) is not None:
            return (0.0, 1.0) if side else (1.0, 0.0)
    for name in ("winner", "preferred", "preference", "better"):
        said = str(row.get(name, "")).lower()
        if said.startswith(("tie", "both")) or said == "draw":
            return 0.5, 0.5
        if re.fullmatch(r"(?:model|response|answer|output|assistant)?_?(?:a|1)", said):
            return 1.0, 0.0
        if re.fullmatch(r"(?:model|response|answer|output|assistant)?_?(?:b|2)", said):
            return 0.0, 1.0
    flags = [score_in(row.get(f"winner_{n}")) for n in ("model_a", "model_b", "tie")]
    if flags.count(1.0) == 1:
        return ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))[flags.index(1.0)]
    for a, b in (("_0", "_1"), ("_1", "_2"), ("_a", "_b"), ("_A", "_B")):
        first, second = (score_in(row.get(f"score{end}")) for end in (a, b))
        if first is not None and second is not None:
            return _won(first, second)
    return None


def _won(first: float, second: float) -> tuple[float, float]:
    return (0.5, 0.5) if first == second else (float(first > second), float(first < second))


def _pair_columns(row: Row) -> tuple[str, str] | None:
    return next((p for p in PAIRS if p[0] in row and p[1] in row), None)


def two_answers(row: Row) -> ParsedRow:
    """Two replies and a column that says which is better."""
    names = _pair_columns(row) or PAIRS[0]
    won = _winner(row)
    answers, texts = [], []
    for i, name in enumerate(names):
        _, text = _reply(row.get(name))
        end = name[len(name.rstrip("0123456789abAB_")) :]
        texts.append(text)
        if text is not None:
            score = score_in(row.get(f"score{end}"))
            answers.append((text, _rated(("preferred", won and won[i]), ("score", score))))
    if "history" in row and column_in(row, ANY_QUESTION) is None:
        row = {**row, "prompt": row["history"]}
    notes = (*reply_notes(*texts), *(() if won else ("label_missing",)))
    return parsed_as(row, context_of(row), answers, notes)


def arena(row: Row) -> ParsedRow:
    """Two conversations that begin alike, and the winner."""
    talks = [conversation(row[c]) for c in ("conversation_a", "conversation_b")]
    same = 0
    while same < min(map(len, talks)) and talks[0][same] == talks[1][same]:
        same += 1
    won = _winner(row)
    judged = won and all(len(t) == same + 1 and t[same]["role"] == "assistant" for t in talks)
    answers = [
        (t[same]["content"], _rated(("preferred", won[i] if judged and won else None)))
        for i, t in enumerate(talks)
        if len(t) > same and t[same]["role"] == "assistant"
    ]
    notes = [] if won else ["label_missing"]
    if any(len(t) > same + 1 for t in talks):
        notes.append("later_turns_ignored")
    return parsed_as(row, open_end(talks[0][:same]), answers, notes)


def kaggle_arena(row: Row) -> ParsedRow:
    """The same, each side a JSON list of texts."""
    asked, *sides = (json_in(row.get(c)) for c in ("prompt", "response_a", "response_b"))
    talks = {}
    for end, side in zip("ab", sides, strict=True):
        if not (is_texts(asked) and is_texts(side)):
            raise DropRow("wrong_type", "prompt")
        talks[f"conversation_{end}"] = _alternating(chain(*zip(asked, side, strict=False)))
    return arena({**row, **talks})


def answer_list(row: Row) -> ParsedRow:
    """`answers`: {text, ratings: {NAME: number}}, or {answer, rank} and the like."""
    found = row.get("answers")
    listed = [a for a in found if isinstance(a, Mapping)] if isinstance(found, list) else []
    ranks = [r for a in listed if (r := score_in(a.get("rank"))) is not None]
    best, worst = (min(ranks), max(ranks)) if ranks else (0.0, 0.0)
    answers = []
    for a in listed:
        text = next((t for k in _TEXT_KEYS if isinstance(t := a.get(k), str)), None)
        if text is None:
            continue
        given = inner if isinstance(inner := a.get("ratings"), Mapping) else a
        ratings = {str(k): v for k in given if (v := number_in(given[k])) is not None}
        if worst > best and (rank := score_in(a.get("rank"))) is not None:
            ratings["preferred"] = (worst - rank) / (worst - best)
        answers.append((text, ratings))
    return parsed_as({k: v for k, v in row.items() if k != "answers"}, context_of(row), answers)


def scored_list(row: Row) -> ParsedRow:
    """A list of replies beside a list of numbers."""
    answers = [(text, _rated(("score", score_in(score)))) for text, score in _scored_texts(row)]
    return parsed_as(row, context_of(row), answers)


def _scored_texts(row: Row) -> list[tuple[str, object]]:
    """Of the first two columns that are such lists of one length; empty without them."""
    for texts, numbers in product(LISTS, RATINGS):
        a, b = row.get(texts), row.get(numbers)
        if is_texts(a) and isinstance(b, list) and len(a) == len(b):
            return list(zip(a, b, strict=True))
    return []


def ranked_list(row: Row) -> ParsedRow:
    """A list of replies, the best first."""
    texts = row.get("ranked" if "ranked" in row else "output")
    listed = [t for t in texts if isinstance(t, str)] if isinstance(texts, list) else []
    last = max(len(listed) - 1, 1)
    answers = [(t, {"preferred": 1 - i / last}) for i, t in enumerate(listed)]
    return parsed_as(row, context_of(row), answers, tuple(reply_notes(*listed)))


def rated_reply(row: Row) -> ParsedRow:
    """One reply, and whether it is good or safe."""
    name = column_in(row, REPLIES) or "response"
    context, reply = _reply(row.get(name))
    said, safe = truth_in(row.get("label")), truth_in(row.get("is_safe"))
    label = side_in(row.get("label")) if said is None else said
    severity = score_in(row.get("severity_level"))
    ratings = _rated(
        ("preferred", None if label is None else float(label)),
        ("safe", None if safe is None else float(safe)),
        ("severity", severity if severity in (0, 1, 2, 3) else None),
    )
    asked = (checked_context(context), False) if context else context_of(row)
    harms = row.get("category", row.get("harm_category"))
    if isinstance(harms, Mapping):
        row = {**row, "category": next((k for k, v in harms.items() if v is True), None)}
    return parsed_as(
        row, asked, [] if reply is None else [(reply, ratings)], tuple(reply_notes(reply))
    )


def oasst_tree(row: Row) -> ParsedRow:
    """A tree of messages: the first one and its replies, with their ranks."""
    found = at(row, "prompt.replies")
    replies = [r for r in found if isinstance(r, Mapping)] if isinstance(found, list) else []
    answers = [{"text": r.get("text"), "rank": r.get("rank")} for r in replies]
    return answer_list({"prompt": at(row, "prompt.text"), "answers": answers})


def oasst_message(row: Row) -> ParsedRow:
    """One message of a tree: a prompt where it is the first."""
    if row.get("parent_id") not in (None, "") or row.get("role") != "prompter":
        raise DropRow("not_a_first_turn")
    return plain({"prompt": row.get("text")})


def summaries(row: Row) -> ParsedRow:
    """`info.post` and two summaries of it."""
    text, two = at(row, "info.post") or at(row, "info.article"), row["summaries"]
    if not isinstance(text, str) or not isinstance(two, list) or len(two) != 2:
        raise DropRow("wrong_type", "info")
    said = {
        f"response_{i}": s.get("text") if isinstance(s, Mapping) else None
        for i, s in enumerate(two)
    }
    prompt = f"Summarize this post.\n\n{text.strip()}"
    return two_answers({"prompt": prompt, "choice": row.get("choice"), **said})


def _texts_in(row: Row, column: str) -> list[str]:
    value = row.get(column)
    if not is_texts(value):
        raise DropRow("null_text" if value is None else "wrong_type", column)
    return value


def user_turns(row: Row) -> ParsedRow:
    """`turns`, the user's alone: the first, as later ones follow replies that are not there."""
    turns = _texts_in(row, "turns")
    notes = ("later_turns_ignored",) if len(turns) > 1 else ()
    return parsed_as(row, (user_turn(question_in(turns[0])), False), (), notes)


def self_instruct(row: Row) -> ParsedRow:
    """An instruction with the input of its first instance."""
    listed = row.get("instances")
    first = listed[0] if isinstance(listed, list) and listed else {}
    given = first.get("input") if isinstance(first, Mapping) else None
    return plain({"instruction": row.get("instruction"), "input": given})


def graded(row: Row) -> ParsedRow:
    """One reply with a grade of 1 to 5."""
    text, grade = row.get("orig_response"), score_in(row.get("orig_score"))
    answers = [(text, _rated(("score", grade)))] if isinstance(text, str) else []
    return parsed_as(row, context_of({"prompt": row.get("orig_instruction")}), answers)


def by_turns(row: Row) -> ParsedRow:
    """`data`, user and assistant by turns."""
    return parsed_as(row, open_end(turns_in(_alternating(_texts_in(row, "data")))))


def _alternating(texts: Iterable[str]) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]


def _with_preferred(row: Row) -> ParsedRow:
    """Of PKU-SafeRLHF, which reply is better as `preferred`, too."""
    parsed = PKU_SAFERLHF.read(row)
    answers = [
        (text, {**found, "preferred": found["better"]} if "better" in found else found)
        for text, found in parsed.answers
    ]
    return parsed._replace(answers=tuple(answers))


def _in(*columns: str) -> Callable[[Row], bool]:
    """Rows with all of these columns."""
    return frozenset(columns).issubset


def _asks(row: Row) -> str | None:
    return column_in(row, ANY_QUESTION) or talk_column(row)


def _talks(row: Row, keys: set[str]) -> bool:
    name = talk_column(row)
    value = row[name] if name else None
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(first, Mapping) and keys <= first.keys()


def _is_preference(row: Row) -> bool:
    values = [row[s] for s in _sides(row) or ()]
    held = all(isinstance(v, list) or (isinstance(v, str) and marked(v)) for v in values)
    return bool(values) and (held or _asks(row) is not None)


def _renamed(
    read: Callable[[Row], ParsedRow], names: Mapping[str, str], prefix: str = ""
) -> Callable[[Row], ParsedRow]:
    """A reader of rows whose columns have other names: theirs to ours, or ours behind a prefix."""
    return lambda row: read({names.get(k, k.removeprefix(prefix)): v for k, v in row.items()})


_PREFS = {"train": "train_prefs", "test": "test_prefs"}
_VERDICTS = {"A>B": "a", "B>A": "b", "A=B": "tie"}


# name, words, recognised by, matches, read; a row of each is in tests/layouts/examples.py
LAYOUTS: tuple[Layout, ...] = (
    replace(
        HH_RLHF,
        known_by="`chosen` and `rejected`, texts with `Human:` and `Assistant:`, and no question"
        " column",
        matches=lambda row: is_pair(row) and not _asks(row),
    ),
    replace(
        HH_RLHF,
        name="red-team",
        what="a red-team transcript",
        known_by="`transcript`, a text with `Human:` and `Assistant:`",
        matches=is_red_team,
    ),
    replace(PKU_SAFERLHF, read=_with_preferred),
    ULTRAFEEDBACK,
    HELPSTEER,
    Layout(
        "self-instruct",
        "Self-Instruct tasks",
        "`instruction` and `instances`, a list of {input, output}",
        lambda row: "instruction" in row and isinstance(row.get("instances"), list),
        self_instruct,
    ),
    Layout(
        "graded",
        "replies with a grade, as Prometheus was trained on",
        "`orig_instruction`, `orig_response`, `orig_score`",
        _in("orig_instruction", "orig_response", "orig_score"),
        graded,
        absolute=True,
        scales={"score": (1, 5)},
    ),
    Layout(
        "preference-collection",
        "two replies and the better one, as Prometheus was trained on",
        "`orig_instruction`, `orig_response_A`, `orig_response_B`, `orig_preference`",
        _in("orig_instruction", "orig_response_A", "orig_response_B"),
        _renamed(two_answers, {"orig_instruction": "prompt", "orig_preference": "winner"}, "orig_"),
    ),
    Layout(
        "verdict",
        "two answers and a verdict such as A>B: JudgeBench",
        "a question column, `response_A`, `response_B`, and `label`: A>B, B>A or A=B",
        lambda row: str(row.get("label")) in _VERDICTS and _pair_columns(row) and _asks(row),
        lambda row: two_answers({**row, "winner": _VERDICTS.get(str(row["label"]))}),
        asks_in_a_column=True,
    ),
    Layout(
        "oasst-tree",
        "OpenAssistant trees",
        "`prompt`, an object with `text` and `replies`",
        lambda row: isinstance(p := row.get("prompt"), Mapping) and {"text", "replies"} <= p.keys(),
        oasst_tree,
    ),
    Layout(
        "oasst-messages",
        "OpenAssistant messages, one a row",
        "`message_id`, `parent_id`, `role` and `text`",
        _in("message_id", "parent_id", "role", "text"),
        oasst_message,
    ),
    Layout(
        "openai-preference",
        "OpenAI preference rows",
        "`input.messages`, `preferred_output`, `non_preferred_output`",
        lambda row: isinstance(row.get("input"), Mapping) and "preferred_output" in row,
        lambda row: two_sides(
            {"messages": at(row, "input.messages"), **{k: row.get(k) for k in SIDES[1]}}
        ),
    ),
    Layout(
        "webgpt",
        "WebGPT comparisons",
        "`question.full_text`, `answer_0`, `answer_1`, `score_0`, `score_1`",
        lambda row: isinstance(q := row.get("question"), Mapping) and "full_text" in q,
        lambda row: two_answers({**row, "question": at(row, "question.full_text")}),
    ),
    Layout(
        "summaries",
        "comparisons of two summaries of a post",
        "`info`, `summaries`, `choice`",
        lambda row: isinstance(row.get("info"), Mapping) and isinstance(row.get("summaries"), list),
        summaries,
    ),
    Layout(
        "kaggle-arena",
        "arena battles, sides as JSON lists",
        "`prompt`, `response_a`, `response_b` as JSON lists, and `winner_model_a`",
        lambda row: (
            is_texts(json_in(row.get("prompt"))) and is_texts(json_in(row.get("response_a")))
        ),
        kaggle_arena,
    ),
    Layout(
        "arena",
        "arena battles",
        "`conversation_a`, `conversation_b`, `winner`",
        lambda row: is_talk(row.get("conversation_a")) and is_talk(row.get("conversation_b")),
        arena,
    ),
    Layout(
        "answer-list",
        "a list of answers with ratings",
        "a question column and `answers`, a list of objects with `text`, `answer` or `response`",
        lambda row: (
            isinstance(a := row.get("answers"), list)
            and any(isinstance(x, Mapping) and x.keys() & set(_TEXT_KEYS) for x in a)
            and _asks(row)
        ),
        answer_list,
        asks_in_a_column=True,
    ),
    Layout(
        "preference",
        "preference rows, chosen and rejected",
        "`chosen` and `rejected`: texts, turns or conversations; a question column, or none where"
        " the conversations hold it",
        _is_preference,
        two_sides,
        scales={"score": (1, 10)},
        asks_in_a_column=True,
    ),
    Layout(
        "two-answers",
        "two answers and which is better",
        "a question column, two of " + ", ".join(f"`{a}`/`{b}`" for a, b in PAIRS[:4]) + ", ...,"
        " and `winner`, `preference_strength`, `better_response_id`, `choice` or two scores",
        lambda row: _pair_columns(row) and (_asks(row) or "history" in row),
        two_answers,
        asks_in_a_column=True,
    ),
    Layout(
        "scored-list",
        "a list of answers beside a list of scores",
        "a question column, `responses` (or completions, generations), and `scores` (or ratings)",
        lambda row: _scored_texts(row) and _asks(row),
        scored_list,
        scales={"score": (1, 5)},
        asks_in_a_column=True,
    ),
    Layout(
        "ranked",
        "a list of answers, the best first",
        "`source.columns.ranked`, or `output` with two texts beside `instruction`",
        lambda row: "ranked" in row or ("instruction" in row and is_texts(row.get("output"))),
        ranked_list,
    ),
    Layout(
        "kto",
        "single answers with a label",
        "`prompt`, `completion` (or another reply column) and `label`, true or false",
        lambda row: (
            truth_in(row.get("label")) is not None and _asks(row) and column_in(row, REPLIES)
        ),
        rated_reply,
        absolute=True,
        asks_in_a_column=True,
    ),
    Layout(
        "safety-labels",
        "single answers with a label of safety",
        "`prompt`, `response` and `is_safe`: BeaverTails, PKU-SafeRLHF-QA",
        lambda row: (
            truth_in(row.get("is_safe")) is not None and _asks(row) and column_in(row, REPLIES)
        ),
        rated_reply,
        absolute=True,
        scales={"safe": (0, 1), "severity": (0, 3)},
        asks_in_a_column=True,
    ),
    Layout(
        "sharegpt",
        "ShareGPT conversations",
        "`conversations`, a list of {from, value}",
        lambda row: _talks(row, {"from"}),
        plain,
    ),
    Layout(
        "exchanges",
        "conversations of {input, output}",
        "`conversation`, a list of {input, output}",
        lambda row: _talks(row, {"input"}),
        plain,
    ),
    Layout(
        "messages",
        "conversations of {role, content}",
        "`messages` (or " + ", ".join(TALKS[1:]) + "), a list of {role, content}, or that as JSON",
        lambda row: _talks(row, {"role"}),
        plain,
    ),
    Layout(
        "user-turns",
        "user turns alone",
        "`turns`, a list of texts: MT-Bench",
        lambda row: is_texts(row.get("turns")),
        user_turns,
    ),
    Layout(
        "by-turns",
        "conversations, user and assistant by turns",
        "`data`, a list of texts: UltraChat",
        lambda row: is_texts(row.get("data")),
        by_turns,
    ),
    Layout(
        "alpaca",
        "Alpaca instructions",
        "`instruction` with `input` (or `context`), which stand below one another in the prompt",
        lambda row: "instruction" in row and isinstance(row.get(column_in(row, BESIDE) or ""), str),
        plain,
    ),
    Layout(
        "transcript",
        "transcripts with marked turns",
        "a question or `text` column whose texts begin with a mark: "
        + ", ".join(["[INST]", *MARKS]),
        lambda row: isinstance(v := row.get(column_in(row, ANY_QUESTION) or ""), str) and marked(v),
        plain,
    ),
    Layout(
        "prompt",
        "plain prompts",
        "a question column: " + ", ".join(f"`{q}`" for q in ANY_QUESTION),
        lambda row: column_in(row, (*ANY_QUESTION, "messages")),
        plain,
        asks_in_a_column=True,
    ),
)
BY_NAME = {layout.name: layout for layout in LAYOUTS}


def _binarized(row: Row) -> ParsedRow:
    if not isinstance(row.get("prompt"), list):
        prompt_in(row, "prompt")
    return two_sides({k: v for k, v in row.items() if k != "messages"})


# HuggingFaceH4/ultrafeedback_binarized and its relatives: rows of the `_prefs`, `_sft` and `_gen`
# splits, which share their columns; the context is `chosen` without its last turn
BINARIZED = replace(
    BY_NAME["preference"],
    name="ultrafeedback-binarized",
    known_by="`prompt`, `chosen`, `rejected`",
    matches=_in("prompt", "chosen", "rejected"),
    read=_binarized,
    absolute=True,
    patterns=lambda settings: [f"data/{_PREFS.get(settings.split, settings.split)}-*.parquet"],
    withdrawn="292c1632",  # scored before the overall_score bug of UltraFeedback was repaired
)
