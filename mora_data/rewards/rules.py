"""Rules that need no model: what is wrong with a rollout as text.

    flags("I'm sorry, but I can't help with that.", "stop") == ("refusal",)
"""

from __future__ import annotations

import re

DEGENERATE = frozenset({"empty", "truncated", "repetition"})
"""Flags that keep a rollout out of every pair. A refusal is an answer like any other."""

MAX_DUPLICATE_RATIO = 0.4  # share of 4-grams seen before, above which a text repeats itself
_MIN_WORDS = 12  # shorter texts have too few 4-grams to tell

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'", "´": "'"})
_NOT_ABLE = (
    r"(?:can't|cannot|can not|won't|will not|couldn't|could not|must not|mustn't|am not able to|'m not able to|am unable to|'m unable to|"
    r"won't be able to|will not be able to|'m not going to|am not going to|'m not comfortable|am not comfortable|don't feel comfortable|do not feel comfortable|"
    r"have to decline|must decline|need to decline|decline to|refuse to|shouldn't|should not)"
)
_DONE = (
    r"(?:help|assist|support|provide|give|offer|share|answer|respond|reply|comply|fulfil|do (?:that|this|it)|discuss|engage|generate|create|write|produce|"
    r"advise|explain|recommend|tell you|describe|encourage|condone|promote|participate|continue|talk about|go into|be able to|with|in good conscience|"
    r"(?:providing|helping|answering|discussing|sharing|writing))"
)
_REFUSAL = re.compile(
    r"\W*(?:(?:oh|hi|hello|hey|well|no|okay|ok|thanks? (?:you )?for (?:asking|your question)|as an ai(?: language model| assistant)?|as a (?:large )?language model)\b\W*)*"
    r"(?:(?:i(?: am|'m)(?: really| very| so| truly)? sorry|(?:my )?(?:sincere )?apolog(?:ies|y|i[sz]e)|i (?:sincerely )?apologi[sz]e|sorry|unfortunately|i(?: am|'m) afraid|regrettably|i understand[^.!?\n]{0,80}?)"
    r"(?: (?:for|about) [^.!?\n,]{0,40})?\W*(?:but|that|however|and)?\W*)?"
    r"(?:as an ai[^.,]{0,30},? )?"
    rf"(?:i ?(?:really |simply |just )?{_NOT_ABLE} (?:\w+ ){{0,3}}?{_DONE}\b"
    r"|(?:that|this|it)(?: is|'s)? (?:is )?(?:not something|nothing) (?:that )?i(?: can|'m able to|'m willing to| am willing to|'m comfortable| will)"
    r"|(?:that|this|your) (?:request|question|topic) (?:is (?:not|against|something i can't)|goes against|violates)"
    r"|(?:it is|it's|it would be|it wouldn't be) (?:not|in|un|ir|il)?-?\s?(?:appropriate|ethical|possible for me|responsible|legal)[^.!?]{0,40}\b(?:to|for me)\b"
    r"|(?:helping|assisting|providing|answering)(?: you)?(?: with)? (?:that|this)\b[^.!?]{0,40}\b(?:not|against|can't|won't)\b"
    r"|we can't (?:help|assist|provide)"
    r"|no(?:,|\.)? i (?:won't|can't|will not|cannot)\b"
    r"|absolutely not\b)"
)


def flags(text: str, finish_reason: str) -> tuple[str, ...]:
    """What the rules see in an answer, among empty, truncated, repetition, refusal; in this order.

    `finish_reason` is the endpoint's: "length" means that the answer was cut.
    """
    out = []
    if not text.strip():
        out.append("empty")
    if finish_reason == "length":
        out.append("truncated")
    if is_repetitive(text):
        out.append("repetition")
    if is_refusal(text):
        out.append("refusal")
    return tuple(out)


def is_repetitive(text: str) -> bool:
    """Do more than `MAX_DUPLICATE_RATIO` of the 4-grams of words repeat an earlier one?"""
    return duplicate_ratio(text) > MAX_DUPLICATE_RATIO


def duplicate_ratio(text: str) -> float:
    """Share of 4-grams (white-space words, lower case) that occurred before; 0 for texts under 12 words."""
    tokens = text.lower().split()
    if len(tokens) < _MIN_WORDS:
        return 0.0
    n = len(tokens) - 3
    return 1 - len(set(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))) / n


def is_refusal(text: str) -> bool:
    """Does the answer open by declining? Apologies that go on to help do not count."""
    head = text[:300].lower()
    if not head.isascii():
        head = head.translate(_APOSTROPHES)
    return _REFUSAL.match(head) is not None
