"""What a rewriter has to reply, and how its reply is read.

    {"rewritten": "How do I ...?", "subject": "knives",
     "intents": [{"dim": "harmless", "span": "watch out"}], "refused": false}

A server that knows JSON schemas gets `SCHEMA`. Where it does not, a fenced object, one in prose, or
the tags `<rewritten>...</rewritten>` (with `<subject>` and `<intent dim="...">` beside them) are
read just as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ..rewards.rules import is_refusal
from . import patterns

_INTENT = {
    "type": "object",
    "properties": {"dim": {"type": "string"}, "span": {"type": "string"}},
    "required": ["dim", "span"],
    "additionalProperties": False,
}
SCHEMA: Mapping[str, object] = {
    "type": "object",
    "properties": {
        "rewritten": {"type": "string"},
        "subject": {"type": "string"},
        "intents": {"type": "array", "items": _INTENT},
        "refused": {"type": "boolean"},
    },
    "required": ["rewritten", "subject", "intents", "refused"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What a rewriter returned."""

    text: str
    subject: str = ""
    intents: tuple[tuple[str, str], ...] = ()  # (dimension, span)
    refused: bool = False


def parse_rewrite(text: str, finish_reason: str = "stop") -> Rewrite | str:
    """The rewrite in a reply: JSON, fenced or in prose, or `<rewritten>` tags; else the reason why
    there is none.

    Reasons: empty, cut_off, no_rewrite, wrong_fields. A refusal is a `Rewrite` with `refused` set.
    """
    if not text.strip():
        return "empty"
    found = _json_object(text)
    if found is None:
        tagged = patterns.TAGGED.search(text)
        if tagged:
            named = patterns.TAGGED_SUBJECT.search(text)
            return Rewrite(
                tagged[1].strip(),
                named[1] if named else "",
                tuple(patterns.TAGGED_INTENT.findall(text)),
            )
        if is_refusal(text):
            return Rewrite("", refused=True)
        return "cut_off" if finish_reason == "length" else "no_rewrite"
    rewritten, subject, refused = (
        found.get("rewritten"),
        found.get("subject", ""),
        found.get("refused", False),
    )
    if (
        not isinstance(rewritten, str)
        or not isinstance(subject, str)
        or not isinstance(refused, bool)
    ):
        return "wrong_fields"
    return Rewrite(rewritten.strip(), subject.strip(), _intents(found.get("intents")), refused)


def _json_object(text: str) -> dict[str, object] | None:
    """The first JSON object in the text that has a `rewritten` field, else the first object."""
    decoder = json.JSONDecoder()
    found: list[dict[str, object]] = []
    at = text.find("{")
    while at >= 0 and len(found) < 8:
        try:
            value, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            at = text.find("{", at + 1)
            continue
        if isinstance(value, dict):
            found.append(value)
        at = text.find("{", end)
    return next((f for f in found if "rewritten" in f), found[0] if found else None)


def _intents(value: object) -> tuple[tuple[str, str], ...]:
    """Pairs of dimension and span; what is not of that form is left out, for it decides nothing."""
    if not isinstance(value, list):
        return ()
    return tuple(
        (str(i["dim"]), str(i["span"]))
        for i in value
        if isinstance(i, dict) and "dim" in i and "span" in i
    )
