"""What a rewriter has to reply, and how its reply is read.

    {"rewritten": "How do I ...?"}          an empty text declines

A server that knows JSON schemas gets `SCHEMA`. Where it does not, a fenced object, one in prose, or
the tags `<rewritten>...</rewritten>` are read just as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..engines.replies import json_objects, reads_reply
from ..rewards.rules import is_refusal
from . import patterns

SCHEMA: Mapping[str, object] = {
    "type": "object",
    "properties": {"rewritten": {"type": "string"}},
    "required": ["rewritten"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What a rewriter returned."""

    text: str
    refused: bool = False


def as_reply(rewritten: str) -> str:
    """The reply that a rewriter is meant to give."""
    return json.dumps({"rewritten": rewritten}, ensure_ascii=False)


@reads_reply("no_rewrite")
def parse_rewrite(text: str, finish_reason: str = "stop") -> Rewrite | str:
    """The rewrite in a reply: JSON, fenced or in prose, or `<rewritten>` tags; else the reason why
    there is none.

    Reasons: empty, cut_off, no_rewrite, wrong_fields. A refusal is a `Rewrite` with `refused` set.
    """
    if not text.strip():
        return "empty"
    found, objects = _json_object(text)
    if found is None:
        return _without_object(text, finish_reason, objects)
    rewritten, refused = found["rewritten"], found.get("refused", False)
    if not isinstance(rewritten, str) or not isinstance(refused, bool) or not _encodable(rewritten):
        return "wrong_fields"
    return Rewrite(rewritten.strip(), refused or not rewritten.strip())


def _without_object(text: str, finish_reason: str, objects: int) -> Rewrite | str:
    """What a reply says in which no object has the wanted field."""
    tagged = patterns.TAGGED.search(text)
    if tagged and _encodable(text):
        return Rewrite(tagged[1].strip())
    if not objects and is_refusal(text):
        return Rewrite("", refused=True)
    if finish_reason == "length":
        return "cut_off"
    return "wrong_fields" if objects else "no_rewrite"


def _json_object(text: str) -> tuple[dict[str, Any] | None, int]:
    """The first JSON object in the text that has a `rewritten` field, and how many objects were
    seen. An object inside a cut one is not the reply."""
    objects = 0
    for value, _, _ in islice(json_objects(text, json.JSONDecoder()), 8):
        objects += 1
        if "rewritten" in value:
            return value, objects
    return None, objects


def _encodable(text: str) -> bool:
    """Whether a text can be sent on: JSON may hold half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
