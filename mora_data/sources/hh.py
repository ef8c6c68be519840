r"""Anthropic/hh-rlhf: two whole transcripts, alike up to the last assistant turn.

    {"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello.",
     "rejected": "\n\nHuman: Hi.\n\nAssistant: What?"}

The context is what both sides share, split only on the exact markers, the first with or without
the blank lines before it; `red-team-attempts` has one `transcript` instead. Left out:
context_mismatch (the sides differ before the last reply), no_marker, ends_on_human (which turn is
the prompt is not certain), stray_marker (a speaker's name inside a context turn: two turns run
together), and what checked_context refuses: same_speaker, empty_turn, empty_prompt,
starts_without_user, ends_without_user.
Noted: reply_empty, reply_truncated, reply_stray_marker, replies_identical, rating_missing.
Stratum: the data_dir, where the file's folder or `source.config` says it.
"""

from __future__ import annotations

from ..errors import DropRow
from ..types import Messages, Row
from . import Layout, ParsedRow, number_in, reply_notes, text_in
from .turns import checked_context, marked, split_turns

PAIRS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
RED_TEAM = "red-team-attempts"
_ASSISTANT = "\n\nAssistant: "
_EMPTY_REPLY = "\n\nAssistant:"
_HUMAN = "\n\nHuman: "
_BETTER, _WORSE = {"preferred": 1.0}, {"preferred": 0.0}


def _read(row: Row) -> ParsedRow:
    """The shared context of a pair, and both replies: preferred 1 or 0; or the context of a
    red-team transcript."""
    if "transcript" in row and "chosen" not in row:
        return _red_team(row)
    messages, chosen, rejected = _pair(text_in(row, "chosen"), text_in(row, "rejected"))
    return ParsedRow(
        messages, notes=_notes(chosen, rejected), answers=((chosen, _BETTER), (rejected, _WORSE))
    )


def _pair(chosen: str, rejected: str) -> tuple[Messages, str, str]:
    """The context and both replies."""
    context, reply = _cut(chosen)
    other_context, other = _cut(rejected)
    if context != other_context:
        raise DropRow("context_mismatch")
    return _turns(context), reply, other


def _cut(transcript: str) -> tuple[str, str]:
    """The transcript before and after its last assistant marker."""
    at = transcript.rfind(_ASSISTANT)
    if transcript.endswith(_EMPTY_REPLY):
        at = len(transcript) - len(_EMPTY_REPLY)
    if transcript.find(_HUMAN, max(at, 0)) > at:
        raise DropRow("ends_on_human")
    if at < 0:
        raise DropRow("no_marker" if transcript.strip() else "empty_prompt")
    return transcript[:at], transcript[at + len(_EMPTY_REPLY) :].removeprefix(" ")


def _turns(context: str) -> Messages:
    checked = checked_context(split_turns(context, "HH"))
    if context.count("Human:") + context.count("Assistant:") > len(checked):
        raise DropRow("stray_marker")
    return checked


def _notes(chosen: str, rejected: str) -> tuple[str, ...]:
    notes = tuple(reply_notes(chosen, rejected))
    both = f"{chosen}\n{rejected}"
    return (*notes, "reply_stray_marker") if "Human:" in both or "Assistant:" in both else notes


def _red_team(row: Row) -> ParsedRow:
    """`rating` is the attacker's own success from 0 to 4."""
    context, reply = _cut(text_in(row, "transcript"))
    rating = number_in(row.get("rating"))
    known = rating is not None and 0 <= rating <= 4
    tags = row.get("tags")
    category = (
        next((t for t in tags if isinstance(t, str)), None) if isinstance(tags, list) else None
    )
    notes = (*reply_notes(reply), *(() if known else ("rating_missing",)))
    return ParsedRow(_turns(context), RED_TEAM, category, notes)


def _is_marked(value: object) -> bool:
    return isinstance(value, str) and marked(value) == "HH"


def is_pair(row: Row) -> bool:
    """Whether a row is two transcripts."""
    return _is_marked(row.get("chosen")) and _is_marked(row.get("rejected"))


def is_red_team(row: Row) -> bool:
    """Whether a row is one transcript."""
    return _is_marked(row.get("transcript"))


HH_RLHF = Layout(
    "hh",
    "HH-RLHF transcripts, chosen and rejected",
    "`chosen` and `rejected`, or `transcript`: texts with `Human:` and `Assistant:`",
    lambda row: is_pair(row) or is_red_team(row),
    _read,
    patterns=lambda settings: [
        f"{folder}/{settings.split}.jsonl*"
        for folder in (PAIRS if settings.config == "default" else [settings.config])
    ],
    folders=frozenset((*PAIRS, RED_TEAM)),
    sft="refused: the card of HH-RLHF forbids supervised training on its replies",
)
