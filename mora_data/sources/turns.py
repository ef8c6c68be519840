r"""Conversations: in lists of turns, in texts whose turns are marked, in the columns of a row.

    [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    Human: Hi.\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:
    <|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n

A text is a transcript where it *begins* with a mark, and, where the mark is a plain word, a reply
is marked, too; a prompt that only speaks of marks stays a prompt. Whatever is not as it should be
is a `DropRow` with a reason.
"""

from __future__ import annotations

import json
import re
from ast import literal_eval
from collections.abc import Mapping, Sequence
from itertools import pairwise

from ..errors import DropRow
from ..text import pattern
from ..types import Message, Messages, Row
from . import ParsedRow, RatedAnswer, prompt_in, text_in, user_turn

# columns by what they mean; the first that a row has counts
QUESTIONS = (
    "prompt question instruction query goal behavior user_prompt Prompt Question Instruction Query"
    " Goal Behavior problem"
).split()
ANY_QUESTION = (*QUESTIONS, "input", "inputs", "text")
TALKS = "messages conversations conversation chat dialogue dialog context turns data".split()
SYSTEM = "system system_prompt".split()
BESIDE = "input context ContextString".split()
TOPICS = "category Category topic subset SemanticCategory risk_area".split()
NULLS = frozenset("nan NaN NA N/A n/a null NULL None none <NA>".split())
# in Alpaca rows
_NO_INPUT = re.compile(r"[<(\[\s]*(?:no[ _-]?input|n/a|none|null)[>)\]\s.!]*", re.I)
_ROLES = {
    **dict.fromkeys("user human prompter instruction".split(), "user"),
    **dict.fromkeys("assistant gpt bot chatbot model ai response".split(), "assistant"),
    **dict.fromkeys("system developer".split(), "system"),
}


def turns_in(value: object) -> Messages:
    """A list of {role, content}, {from, value} and the like as messages, blank-stripped; an empty
    system turn is none, and who speaks last is not checked.

    Raises:
        DropRow: wrong_type, null_text, unknown_role, empty_prompt, empty_turn, not_text.
    """
    if not isinstance(value, (list, tuple)):
        raise DropRow("null_text" if value is None else "wrong_type", "messages")
    turns = tuple(_turn(item) for item in value)
    if turns and turns[0] == {"role": "system", "content": ""}:
        turns = turns[1:]
    if not turns:
        raise DropRow("empty_prompt", "messages")
    return turns


def checked_context(turns: Messages) -> Messages:
    """The turns, seen to be a context: an optional system turn, then user and assistant by turns,
    user last.

    Raises:
        DropRow: misplaced_system, starts_without_user, same_speaker, ends_without_user,
            empty_prompt, empty_turn.
    """
    roles = [m["role"] for m in turns]
    if roles[:1] == ["system"]:
        del roles[0]
    if roles != [*(["user", "assistant"] * (len(roles) // 2)), "user"]:
        raise DropRow(_disorder(roles))
    contents = [m["content"] for m in turns]
    if "" in contents:
        raise DropRow("empty_turn" if contents[-1] else "empty_prompt")
    return turns


def _disorder(roles: list[str]) -> str:
    """Why these are not user and assistant by turns, user last."""
    if "system" in roles:
        return "misplaced_system"
    if not roles or roles[0] != "user":
        return "starts_without_user"
    return "same_speaker" if any(a == b for a, b in pairwise(roles)) else "ends_without_user"


def _role(name: str) -> str:
    known = _ROLES.get(name.lower())
    if known is None:
        raise DropRow("unknown_role", name)
    return known


def _turn(item: object) -> Message:
    if not isinstance(item, Mapping):
        raise DropRow("wrong_type", "messages")
    role = text_in(item, "role" if "role" in item else "from" if "from" in item else "role")
    known = _role(role)
    column = next((c for c in ("content", "value", "text", "parts") if c in item), "content")
    if isinstance(parts := item.get(column), (list, tuple)):
        return Message(role=known, content="\n".join(map(_part, parts)).strip())
    return Message(role=known, content=text_in(item, column).strip())


def _part(part: object) -> str:
    """The text of one part of a turn's content."""
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        raise DropRow("not_text", "a part of a turn")
    return text


MARKS = {
    "ChatML": r"<\|im_start\|>\s*(?P<{}>\w+)\n|<\|im_end\|>",
    "Llama 3": r"<\|start_header_id\|>\s*(?P<{}>\w+)\s*<\|end_header_id\|>|<\|eot_id\|>",
    "Zephyr": r"<\|(?P<{}>system|user|assistant)\|>\n?|</s>|<\|end(?:oftext)?\|>",
    "Gemma": r"<start_of_turn>\s*(?P<{}>\w+)\n|<end_of_turn>",
    "extra_id": r"<extra_id_\d>(?P<{}>System|User|Assistant)[ \t]*(?:\n|$)",
    "###": r"###(?<!####) ?(?P<{}>Human|User|Assistant|System|Instruction|Response):\s?",
    "HH": r"(?:^|\n\n)(?P<{}>Human|Assistant):(?: |$|(?=\n))",
    "Vicuna": r"(?:^|\s|</s>)(?P<{}>USER|ASSISTANT|SYSTEM):\s?",
    "User:": r"(?:^|\n)(?P<{}>User|Assistant|System):\s?",
    "Human:": r"(?:^|\n)(?P<{}>Human|Assistant|System):\s?",  # HH with single line breaks
}
# blank lines are put before a text that is split: a pattern that begins with them instead of ^ is
# searched for twice as fast
_SPLIT = {n: pattern(tag.replace("(?:^|", "(?:").format("role")) for n, tag in MARKS.items()}
_PRELUDE = re.compile(
    r"<s>|<\|(?:begin_of_|endof)text\|>|<bos>|BEGINNING OF CONVERSATION:"
    r"|Below is an instruction[^#]*"
)
_OPENS = re.compile(
    r"(?P<inst>\[INST\])|"
    + "|".join(f"(?P<m{i}>{tag.format(f'r{i}')})" for i, tag in enumerate(MARKS.values()))
)
_NEEDS_REPLY = {
    "###": "Assistant|Response",
    "HH": "Assistant",
    "Vicuna": "ASSISTANT",
    "User:": "Assistant",
    "Human:": "Assistant",
}


def marked(text: str) -> str:
    """The kind of marks that a transcript's turns begin with; empty for a plain text."""
    if text[:1].isalpha() and text[0] not in "HUASB":
        return ""
    opened = _OPENS.match(_body(text))
    if opened is None:
        return ""
    if opened["inst"]:
        return "[INST]" if "[/INST]" in text else ""
    name = next(n for i, n in enumerate(MARKS) if opened[f"m{i}"] is not None)
    reply = _NEEDS_REPLY.get(name)
    if reply and re.fullmatch(reply, opened[f"r{list(MARKS).index(name)}"]):
        return ""
    if reply and not re.search(rf"(?:^|\s)(?:### ?)?(?:{reply}):", text):
        return ""
    single = name == "HH" and "\nAssistant:" in text and "\n\nAssistant:" not in text
    return "Human:" if single else name


def _body(text: str) -> str:
    """A text without what may stand before the first mark."""
    text = text.lstrip()
    before = _PRELUDE.match(text)
    return text if before is None else text[before.end() :].lstrip()


def _inst_turns(text: str) -> list[Message]:
    """The turns of a Llama 2 transcript."""
    turns: list[Message] = []
    for part in text.split("[INST]")[1:]:
        user, closed, reply = part.partition("[/INST]")
        if not closed:
            raise DropRow("stray_marker", "[INST] without [/INST]")
        system, closed, rest = user.partition("<</SYS>>")
        if closed and system.lstrip().startswith("<<SYS>>"):
            turns.append({"role": "system", "content": system.lstrip().removeprefix("<<SYS>>")})
            user = rest
        turns.append({"role": "user", "content": user})
        said = reply.rstrip().removesuffix("<s>").replace("</s>", "")
        turns.append({"role": "assistant", "content": said})
    return turns


def split_turns(text: str, marks: str) -> Messages:
    """The turns of a text that begins with a mark, blank-stripped; their order is not checked.

    Raises:
        DropRow: no_marker, unknown_role.
    """
    before, *parts = _SPLIT[marks].split(f"\n\n{text}")
    if before.strip():
        raise DropRow("no_marker", "text before the first marker")
    # a mark without a name ends a turn: what follows it up to the next name is no text
    turns = zip(parts[::2], parts[1::2], strict=True)
    try:
        return tuple(
            [{"role": _ROLES[n.lower()], "content": said.strip()} for n, said in turns if n]
        )
    except KeyError:
        bad = next(n for n in parts[::2] if n and n.lower() not in _ROLES)
        raise DropRow("unknown_role", bad) from None


def transcript_turns(text: str, marks: str) -> Messages:
    """The turns of a transcript; a mark at its end, with no reply behind, is no turn.

    Raises:
        DropRow: unknown_role, stray_marker, as `turns_in`.
    """
    if marks == "[INST]":
        turns = _inst_turns(text)
    else:
        body = _body(text)
        if marks == "###":
            body = re.sub(r"\n### ?Input:\s*", "\n", body)
        turns = [
            {"role": t["role"], "content": t["content"].replace("</s>", "")}
            for t in split_turns(body, marks)
        ]
        names = {
            "HH": ("Human:", "Assistant:"),
            "Human:": ("Assistant:",),
            "User:": ("Assistant:",),
        }
        if any(n in t["content"] for t in turns for n in names.get(marks, ())):
            raise DropRow("stray_marker")
    if turns and not turns[-1]["content"].strip():
        turns.pop()
    return turns_in(turns)


def conversation(value: object) -> Messages:
    """The turns of a conversation in any of its shapes: a list of turns, of exchanges ({input,
    output}), a dict of lists, or a transcript.

    Raises:
        DropRow: as `turns_in`.
    """
    if isinstance(value, str):
        marks = marked(value)
        return transcript_turns(value, marks) if marks else user_turn(question_in(value))
    if isinstance(value, Mapping) and is_lists(value):
        value = [
            dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)
        ]
    if _exchanges(value):
        value = [
            {"role": role, "content": turn[side]}
            for turn in value  # type: ignore[attr-defined]
            for role, side in (("user", "input"), ("assistant", "output"))
            if turn.get(side) is not None
        ]
    return turns_in(value)


def question_in(text: str) -> str:
    """A text that is a question.

    Raises:
        DropRow: empty_prompt, or null_text where it only says that there is none.
    """
    found = text.strip()
    if not found:
        raise DropRow("empty_prompt")
    if found in NULLS:
        raise DropRow("null_text")
    return found


def is_talk(value: object) -> bool:
    """Whether a value is a list of turns or exchanges, or a dict of lists of them."""
    if isinstance(value, Mapping):
        return is_lists(value) and bool(value.keys() & {"role", "from"})
    return _turns(value) or _exchanges(value)


def _turns(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(t, Mapping) and t.keys() & {"role", "from"} for t in value)
    )


def _exchanges(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(t, Mapping) and "input" in t and "role" not in t for t in value)
    )


def is_lists(value: Mapping[str, object]) -> bool:
    """Whether a conversation may be a dict of lists, as Arrow has it."""
    return bool(value) and all(isinstance(v, list) for v in value.values())


def column_in(row: Row, names: Sequence[str]) -> str | None:
    """The first of the columns that the row has."""
    return next((n for n in names if n in row), None)


def talk_column(row: Row) -> str | None:
    """The column that holds a conversation."""
    return next((n for n in (*TALKS, "prompt") if n in row and is_talk(row[n])), None)


def context_of(row: Row) -> tuple[Messages, bool]:
    """The conversation of the row's own columns up to the last user turn, and whether a reply was
    left aside."""
    name = talk_column(row) or column_in(row, ANY_QUESTION)
    if name is None:
        if (name := column_in(row, TALKS)) is None:
            raise DropRow("missing_column", "prompt")
        turns = turns_in(row[name])
    elif is_talk(value := row[name]) or isinstance(value, list):
        turns = conversation(value)
    else:
        asked = conversation(_and_more(row, name, prompt_in(row, name)))
        turns = (*_turns_before(row), *asked)
    return open_end(with_system(row, turns))


def _turns_before(row: Row) -> Messages:
    """What a `history` of turns, or of pairs of question and reply, says before the question."""
    history = row.get("history")
    if isinstance(history, list) and all(isinstance(x, list) and len(x) == 2 for x in history):
        history = [{"input": question, "output": reply} for question, reply in history]
    return conversation(history) if is_talk(history) else ()


def _and_more(row: Row, name: str, text: str) -> str:
    """A question with the text that it is asked of."""
    if name == "prompt":
        more = "input" if "input" in row else None
    else:
        more = column_in(row, BESIDE) if name.lower() in ("instruction", "behavior") else None
    beside = row[more] if more else None
    beside = beside.strip() if isinstance(beside, str) else ""
    none = beside in NULLS or _NO_INPUT.fullmatch(beside)
    return f"{text}\n\n{beside}" if beside and not none else text


def with_system(row: Row, turns: Messages) -> Messages:
    """The turns behind the system turn that a column of the row holds, if any."""
    name = column_in(row, SYSTEM)
    text = row[name] if name else None
    text = text.strip() if isinstance(text, str) else ""
    if not text or text in NULLS:
        return turns
    first: Message = {"role": "system", "content": text}
    if turns and turns[0]["role"] == "system":
        if turns[0] != first:
            raise DropRow("two_system_turns")
        return turns
    return (first, *turns)


def open_end(turns: Messages) -> tuple[Messages, bool]:
    """The turns as a context, a last reply left aside, and whether there was one."""
    ignored = len(turns) > 0 and turns[-1]["role"] == "assistant"
    if ignored and len(turns) == 1:
        raise DropRow("starts_without_user")
    return checked_context(turns[:-1] if ignored else turns), ignored


def parsed_as(
    row: Row,
    context: tuple[Messages, bool],
    answers: Sequence[RatedAnswer] = (),
    notes: Sequence[str] = (),
) -> ParsedRow:
    """What a row says, with the topic that it names; `context` is as `context_of` gives it."""
    turns, ignored = context
    name = column_in(row, TOPICS)
    topic = row[name] if name else None
    topic = topic.strip() or None if isinstance(topic, str) else None
    said = (*notes, *(("reply_ignored",) if ignored else ()))
    return ParsedRow(turns, topic or "all", topic, notes=said, answers=tuple(answers))


def plain(row: Row) -> ParsedRow:
    """A question or a conversation, and nothing about its answers."""
    return parsed_as(row, context_of(row))


def json_in(value: object) -> object:
    """What a text holds as JSON, or as Python writes lists and dicts; the value itself where it is
    neither."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        found = literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return value
    return found if isinstance(found, (list, dict)) else value
