"""Reads columns of a row and conversations in them; whatever is not as it should be is a `DropRow`
with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from ..errors import DropRow
from ..types import Message, Messages, Row

_ROLES = ("system", "user", "assistant")
_SENTENCE_ENDS = frozenset(["", *".!?:;…。！？\"'`”’»)]}>*|_~0123456789"])


def text(row: Row, column: str) -> str:
    """The string in `column`; it may be empty.

    Raises:
        DropRow: missing_column, null_text, wrong_type.
    """
    value = row.get(column, _MISSING)
    if isinstance(value, str):
        return value
    if value is _MISSING:
        raise DropRow("missing_column", column)
    raise DropRow("null_text" if value is None else "wrong_type", column)


def prompt(row: Row, column: str) -> str:
    """The prompt in `column`, without the white space around it.

    Raises:
        DropRow: empty_prompt, or as `text`.
    """
    found = text(row, column).strip()
    if not found:
        raise DropRow("empty_prompt", column)
    return found


def user(content: str) -> Messages:
    """A conversation of one user turn."""
    return (Message(role="user", content=content),)


def number(value: object) -> float | None:
    """The finite number in a label, or None: a bool, a text, NaN and infinity are not numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < float("inf") else None


def conversation(value: object) -> Messages:
    """A list of {role, content} as messages, blank-stripped; who speaks last is not checked.

    Raises:
        DropRow: wrong_type, null_text, unknown_role, empty_prompt, empty_turn.
    """
    if not isinstance(value, (list, tuple)):
        raise DropRow("null_text" if value is None else "wrong_type", "messages")
    turns = tuple(_turn(item) for item in value)
    if not turns:
        raise DropRow("empty_prompt", "messages")
    return turns


def context(turns: Messages) -> Messages:
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


def reply_notes(*replies: object) -> Iterable[str]:
    """Defects of the replies to one prompt: reply_missing, reply_empty, reply_truncated,
    replies_identical."""
    texts = [r.strip() for r in replies if isinstance(r, str)]
    if len(texts) < len(replies):
        yield "reply_missing"
    if "" in texts:
        yield "reply_empty"
    if any(t[-1:] not in _SENTENCE_ENDS for t in texts):
        yield "reply_truncated"
    if len(set(texts)) < len(texts):
        yield "replies_identical"


def _disorder(roles: list[str]) -> str:
    """Why these are not user and assistant by turns, user last."""
    if "system" in roles:
        return "misplaced_system"
    if not roles or roles[0] != "user":
        return "starts_without_user"
    return "same_speaker" if any(a == b for a, b in pairwise(roles)) else "ends_without_user"


def _turn(item: object) -> Message:
    if not isinstance(item, Mapping):
        raise DropRow("wrong_type", "messages")
    role = text(item, "role")
    if role not in _ROLES:
        raise DropRow("unknown_role", role)
    return Message(role=role, content=text(item, "content").strip())


_MISSING = object()
