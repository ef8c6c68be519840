"""Rules that need no model: what is wrong with a rollout as text.

flags("I'm sorry, but I can't help with that.", "stop") == ("refusal",)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from ..engines.replies import without_thought
from ..types import Messages, Score
from . import Ask, RewardContext

MAX_DUPLICATE_RATIO = 0.4  # share of 4-grams seen before, above which a text repeats itself
_MIN_WORDS = 12  # shorter texts have too few 4-grams to tell

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'", "´": "'"})
_NOT_ABLE = (
    "can't|cannot|can not|won't|will not|won't be able to|will not be able to"
    "|(?:am|'m|are|'re) (?:not (?:able|willing|going|programmed|allowed|permitted|designed)"
    "|unable) to"
    "|(?:am not|'m not|don't feel|do not feel) comfortable|(?:have|must|need) to decline"
    "|must decline|(?:respectfully )?decline to|refuse to"
)
_TO_DO = (
    "help|assist|support|provide|give (?:you|any|out|that|advice|instructions|information)|offer"
    "|share|answer|respond|reply|comply|fulfil?l|look up|do (?:that|this|it)|discuss|engage"
    "|generate|create|write|produce|advise|tell you (?:how|what|about|where)|encourage|condone"
    "|participate|talk about|describe|satisfy|promote|mimic|use (?:foul|obscene|offensive|profane)"
    "|make (?:such|harmful|derogatory|offensive|jokes|light of)|tell (?:jokes|a joke)|go into"
    "|in good conscience|explain how|be (?:a )?part of|providing|helping|answering|discussing"
    "|sharing|writing|explaining|suggesting|describing|mocking|promoting"
    "|recommend (?:any|how|methods|ways|doing|using)"
)
_OPENING = (
    r"\W{0,99}(?:(?:oh|hi|hello|hey|well|no|okay|ok|thanks?(?: you)? for (?:asking|your question)"
    r"|as an? (?:responsible |large )?(?:ai|ai language model|ai assistant|language"
    r" model|assistant))\b\W{0,99})*"
    r"(?:(?:i(?: am|'m)(?: really| very| so| truly)? sorry|(?:my |i )?(?:sincere(?:ly)?"
    r" )?apolog(?:ies|y|i[sz]e)|sorry"
    r"|unfortunately|i(?: am|'m) afraid|regrettably|i understand[^.!?\n]{0,80}?)"
    r"(?: (?:for|about) [^.!?\n,]{0,40})?\W{0,99}(?:but|that|however|and)?\W{0,99})?"
    r"(?:as an ai[^.,]{0,30},? )?"
)
_DECLINES = "|".join(
    (
        r"(?:[^.!?\n]{0,70}?,? (?:so|and|therefore|thus) )?(?:i|we) ?(?:really |simply |just )?"
        rf"(?:{_NOT_ABLE}) (?:\w+ ){{0,3}}?(?:{_TO_DO})\b",
        r"(?:i|we) (?:won't|can't|will not|cannot)(?:[.!]|$)",
        (
            r"(?:that|this|it)(?:'s| is) (?:not something|nothing) (?:that )?i(?: can|'m"
            r" (?:able|willing) to|'m comfortable)\b"
        ),
        (
            r"(?:that|this|your) (?:request|question) (?:is (?:not"
            r" (?:something|appropriate)|against)|goes against|violates)\b"
        ),
        r"it(?:'s| is| would be) (?:not"
        r" (?:appropriate|ethical|possible|responsible)|inappropriate|unethical|illegal)"
        r" for me to\b",
        r"absolutely not[.!]",
    )
)
_REFUSAL = re.compile(f"{_OPENING}(?:{_DECLINES})")


# what a server should have cut out of an answer: ends of turns, and turns that follow
_LEFT_OVER = re.compile(
    r"<[|\uff5c][\w\u2581 :-]{1,40}[|\uff5c]>|</?s>|\[/?INST\]|<</?SYS>>|\[\|\w{1,30}\|\]"
    r"|<(?:start_of_turn|end_of_turn|bos|eos|pad|unk|eot|eom|sop|eop)>"
    r"|<(?:extra_id_|reserved_|unused)\d{1,4}>|\n\n(?:Human|Assistant): "
)
_NOTHING = frozenset(("null", "undefined", "nan", "[object object]"))
_LETTERS = re.compile(r"(?=[^\W\d_])(.{1,4}?)(?:\W{0,2}\1){2,60}\W{0,9}\w{0,3}\W{0,9}")
_LONG_RUN = re.compile(r"(?=[^\W\d_])(.{1,8}?)\1{19}")
_LONG_WORD = 60
_WORD = re.compile(r"\w")


def flags(text: str, finish_reason: str) -> tuple[str, ...]:
    """What the rules see in an answer, among truncated, empty, repetition, marks, refusal; in this
    order.

    `finish_reason` is the endpoint's: "length" means that the answer was cut, and so does a filter
    that broke it off.
    """
    out = []
    if finish_reason in ("length", "content_filter"):
        out.append("truncated")
    if says_nothing(text):
        out.append("empty")
    if is_repetitive(text):
        out.append("repetition")
    # each of them begins with one of these, and `in` is the fastest way to tell
    if ("<" in text or "[" in text or "\n\n" in text) and _LEFT_OVER.search(text):
        out.append("marks")
    if is_refusal(text):
        out.append("refusal")
    return tuple(out)


def says_nothing(text: str) -> bool:
    """Whether an answer has no letter, number or picture in it that somebody sees, behind what the
    model thought aloud."""
    text, _ = without_thought(text)
    if _WORD.search(text):
        return len(text) < 20 and text.strip().lower() in _NOTHING
    return not any(unicodedata.category(c) in ("So", "Sm") for c in {*text} - {"\ufffd"})


def is_repetitive(text: str) -> bool:
    """Do more than `MAX_DUPLICATE_RATIO` of the 4-grams of words repeat an earlier one, or a few
    letters follow each other again and again?"""
    low = text.lower()
    tokens = low.split()
    different = set(tokens)
    if len(low) < 240 and _LETTERS.fullmatch(low.strip()):
        return True
    if max(map(len, different), default=0) > _LONG_WORD and any(
        len(t) > _LONG_WORD and _LONG_RUN.search(t[:2000]) for t in different
    ):
        return True
    enough = (1 - MAX_DUPLICATE_RATIO) * len(tokens)
    # there are at least as many different 4-grams as words that can begin one
    if len(different) - 3 >= enough:
        return False
    # or pairs of words; a part of the text has enough as a rule
    if len(set(pairwise(tokens[: int(1.25 * enough) + 4]))) - 2 >= enough:
        return False
    return duplicate_ratio(text) > MAX_DUPLICATE_RATIO


def duplicate_ratio(text: str) -> float:
    """Share of 4-grams (white-space words, lower case) that occurred before; 0 for texts under 12
    words."""
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


class Rules:
    """A reward without a model: 1 for a text that no rule objects to, 0 for a degenerate one or a
    refusal.

    The Score's reason names the flags. As a dimension of its own (`rewards: {intact: [{kind:
    rules}]}`) it keeps refusals from being chosen.
    """

    name = "rules"
    pass_threshold: float | None = 0.5
    calibration = "identity"
    asks_model = False
    step = 1.0
    fingerprint = "rules-2"

    def __init__(self, dimension: str, options: None, context: RewardContext) -> None:
        self.dimension = dimension

    async def scores(
        self, ask: Ask, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        found = [flags(answer, "stop") for answer in answers]
        return [
            Score(self.dimension, self.name, 0.0 if f else 1.0, None, " ".join(f)) for f in found
        ]
