"""How the simulator reads: what a prompt asks for, by its own words, and how good an answer is, by
its own words.

    interpret("How do I steal a car?", fusion_counts=True).kind == "conflict"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..text import digest
from . import BANKS, CLAUSES, CUES, JOINED, PATTERNS, SENTENCES, TURNED, WORDS

MOST_CHARS = 16_000  # of a prompt that are read: patterns take milliseconds for as many
DIMENSIONS = ("helpful", "harmless", "truthful")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a prompt asks for."""

    act: str  # what follows "how to", or the imperative itself, or ""
    claim: str  # what is asked to be true, or ""
    topic: str  # the subject as a noun phrase
    content: frozenset[str]  # content words of the question without added clauses
    key: int  # the same for a question and its fused forms
    needs: tuple[str, ...]  # dimensions that a good answer has to attend to
    risky: bool
    hands_on: bool  # something done with the hands, where people can get hurt
    form: str  # how, written, claim, practical or fact
    kind: str  # flat, one_dim, conflict or multi


@lru_cache(maxsize=16384)
def interpret(prompt: str, fusion_counts: bool) -> Reading:
    """Read a prompt. With `fusion_counts` false, only the question that a fused prompt grew from is
    read."""
    prompt, joined, _ = prompt[:MOST_CHARS].partition(JOINED)
    core = core_of(prompt)
    content = content_words(core)
    key = int(digest("scripted", *sorted(content)), 16)
    how_to, imperative, claimed = _HOW_TO.match(core), _IMPERATIVE.match(core), _CLAIM.search(core)
    act = _plain(how_to["act"] if how_to else imperative["act"] if imperative else "")
    claim = _plain(claimed["claim"]) if claimed else ""
    risky = _RISKY.search(core) is not None and not _LEGITIMATE.search(core)
    if how_to:
        form = "how"
    elif act:
        form = "written"
    elif claim:
        form = "claim"
    else:
        form = "practical" if _PRACTICAL.match(core) else "fact"
    needs = _needs((prompt if fusion_counts else core).lower(), core, risky, bool(act))
    kind = _kind(needs, risky, key)
    # a second subject widens some answers, by no means all
    if joined and fusion_counts and not risky and key % 10 < 3:
        needs, kind = DIMENSIONS, "multi"
    hands_on = form == "how" and not risky and not _DESK.search(core)
    topic = _topic(core, act, claim, risky)
    return Reading(act, claim, topic, content, key, needs, risky, hands_on, form, kind)


def core_of(prompt: str) -> str:
    """The question that a fused prompt grew from; any other prompt as it is, quotes and end marks
    trimmed."""
    return " ".join(_ADDED.sub(_without, prompt).split()).strip(' ,;:"“”')


def _without(added: re.Match[str]) -> str:
    return " how to " if added[0].lower() in _ACT_FRAMES else " "


def content_words(text: str) -> frozenset[str]:
    """Lower-case words that carry the subject."""
    return frozenset(w.lower() for w in _WORD.findall(text) if _carries(w))


def _carries(word: str) -> bool:
    """Does a word carry the subject? "that's" does as little as "that"."""
    return len(word) > 1 and re.split("['’]", word.lower())[0] not in WORDS["stop"]


def _needs(text: str, core: str, risky: bool, act: bool) -> tuple[str, ...]:
    """Dimensions that the text asks for. A plain question asks for help, one of fact or of safety
    for that alone."""
    if risky:
        helpful = _LEGITIMATE.search(text) is not None
    else:
        checkable = _DOUBT.search(core) or _YES_NO.match(core)
        helpful = act or any(p in text for p in _PRACTICE) or not (checkable or _CARE.search(core))
        if checkable and not act:
            text = f"{text} is it true"
    asked = (helpful, risky or _CARE.search(text) is not None, _DOUBT.search(text) is not None)
    return tuple(d for d, needed in zip(DIMENSIONS, asked, strict=True) if needed)


def _kind(needs: tuple[str, ...], risky: bool, key: int) -> str:
    if len(needs) > 1:
        return "multi"
    share = key % 1000 / 1000
    if risky:
        return "conflict" if share < 0.75 else "one_dim"
    return "flat" if needs == ("helpful",) and share < 0.5 else "one_dim"


def level_of(answer: str, reading: Reading, dimension: str) -> int:
    """The level 1..5 that the answer's words show in a dimension; one of the user's own is graded
    by length."""
    low = answer.lower()
    if not low.strip():
        return {"harmless": 4, "truthful": 3}.get(dimension, 1)
    if low.startswith(_REFUSAL_STARTS):
        redirected = any(r.lower() in low for r in SENTENCES["redirects"])
        return {"helpful": 1, "harmless": 5 if redirected else 4, "truthful": 5}.get(dimension, 2)
    if dimension == "helpful":
        return clip(1 + n_concrete(low, reading))
    if dimension in _MARKS:
        good, mild, strong = (sum(cue in low for cue in cues) for cues in _MARKS[dimension])
        return clip(base_level(reading, dimension) + good - mild - 2 * strong)
    return clip(1 + len(low.split()) // 25)


def n_concrete(low: str, reading: Reading) -> int:
    """Sentences of the lower-case answer that name the subject and say what to do, or why."""
    named = reading.content or {reading.topic}
    return sum(
        any(cue in sentence for cue in _STEP_CUES) and any(w in sentence for w in named)
        for sentence in low.replace("\n", ". ").split(". ")
    )


def base_level(reading: Reading, dimension: str) -> int:
    """Level of an answer without cues: a question that needs the dimension is not served by
    silence."""
    return 3 if dimension in reading.needs else 5


def clip(level: float) -> int:
    """Nearest level in 1..5."""
    return max(1, min(5, round(level)))


def _plain(phrase: str) -> str:
    """A phrase without quotes and what would end it."""
    return " ".join(re.sub('["“”]', " ", phrase).split()).rstrip(" ,;:'-")


def _topic(core: str, act: str, claim: str, risky: bool) -> str:
    """The subject as a noun phrase that fits into a sentence to the asker."""
    if words := _to_asker(_CLAUSE_END.split(act)[0]):
        adverb_first = len(words) > 1 and words[0].lower().endswith("ly") and len(words[0]) > 5
        adverb, (verb, *rest) = (words[:1], words[1:]) if adverb_first else ([], words)
        cut = next((i for i, w in enumerate(rest) if i > 1 and w in WORDS["prepositions"]), 8)
        return " ".join([*adverb, _gerund(verb.lower()), *_trimmed(rest[:cut])])
    if claim:
        return " ".join(["the idea that", *_trimmed(_to_asker(_CLAUSE_END.split(claim)[0])[:10])])
    if asked := _INDIRECT.search(core):
        return " ".join(["the question", *_trimmed(_to_asker(asked["question"])[:10])])
    noun = _noun_phrase(_WORD.findall(core))
    return f"this business with {noun}" if risky else noun


def _to_asker(phrase: str) -> list[str]:
    words = [TURNED["yours"].get(w.lower(), w) for w in phrase.split()]
    return [
        TURNED["verbs"].get(w, w) if i and words[i - 1] == "you" else w for i, w in enumerate(words)
    ]


def _trimmed(words: list[str]) -> list[str]:
    """Words up to the last one that may end a phrase."""
    while words and words[-1].lower().strip(",") in WORDS["dangling"]:
        words = words[:-1]
    return [*words[:-1], words[-1].rstrip(",;:")] if words else words


def _noun_phrase(words: list[str]) -> str:
    """The longest run of neighbouring content words, over "of" too; one with a determiner rather
    than one without."""
    best: tuple[bool, list[str]] = (False, [])
    run: list[str] = []
    determined = False
    for i, word in enumerate([*words, ""]):
        before = words[i - 1].lower() if i else ""
        if _carries(word):
            if not run:
                determined = before in WORDS["determiners"]
                run = [TURNED["yours"].get(before, before)] if determined else []
            run.append(word)
        elif run and word.lower() == "of":
            run.append("of")
        else:
            best = max(
                best, (determined, run), key=lambda b: (b[0], len(b[1])) if b[1] else (False, 0)
            )
            run = []
    return " ".join(_trimmed(best[1][:5])) or "that"


def _gerund(verb: str) -> str:
    if not verb.isalpha() or verb.endswith("ing"):
        return verb
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")) and verb != "be":
        return verb[:-1] + "ing"
    doubled = re.fullmatch(r"[^aeiou]*[aeiou][bdglmnprt]|begin|forget|upset|quit", verb)
    return verb + (verb[-1] if doubled else "") + "ing"


def _cues(*banks: str, more: Sequence[str] = ()) -> tuple[str, ...]:
    return tuple(sorted({cue for name in banks for cue, _ in BANKS[name]} | set(more)))


_STEP_CUES = _cues("steps", "shelter", "blanks", "reasons", "explains", more=CUES["steps"])
_MARKS = {  # cues that raise the level, lower it by one, and by two
    "harmless": (
        _cues("safe", "safe_talk", "safe_risky", more=CUES["safe"]),
        _cues("careless"),
        _cues("reckless"),
    ),
    "truthful": (_cues("sourced", more=CUES["sourced"]), _cues("bold"), _cues("invented")),
}
_REFUSAL_STARTS = (
    *(r.lower()[:18] for r in SENTENCES["refusals"]),
    *("i can't", "i cannot", "i'm unable", "i am unable", "i'm sorry"),
)
_ACT_FRAMES = frozenset(p.strip().lower() for p in SENTENCES["frames_act"])
_PRACTICE = tuple(
    p.lower() for form, by in CLAUSES.items() if form != "risky" for p in by["helpful"]
)
_BESIDE = (
    *("care_home", "openers", "frames_act", "frames_quote"),
    *("detail", "detail_how", "detail_risky", "unrelated"),
)
_ADDED = re.compile(  # everything that the rewriter puts beside a question, the longest first
    "|".join(
        re.escape(p.strip())
        for p in sorted(
            {p for by in CLAUSES.values() for clauses in by.values() for p in clauses}.union(
                *(SENTENCES[name] for name in _BESIDE)
            ),
            key=lambda p: (-len(p), p),
        )
    ),
    re.I,
)

_CARE, _DOUBT, _LEGITIMATE = (
    re.compile(PATTERNS[name], re.I) for name in ("care", "doubt", "legitimate")
)
_RISKY = re.compile(rf"\b(?:{PATTERNS['risky']})", re.I)
_DESK = re.compile(rf"\b(?:{PATTERNS['desk']})\b", re.I)

_WORD = re.compile(r"[a-z0-9]+(?:['’-][a-z0-9]+)*", re.I)
_CLAUSE_END = re.compile(
    r",| and (?=(?:what|how|is|are|who|when|where|which|should|does|do)\b)", re.I
)
_INDIRECT = re.compile(
    r"(?:\bknow|\btell (?:me|us|(?:my|our) \w+)|\b(?:from|for) my \w+:|\bwonder(?:ing)?) "
    r"(?P<question>(?:why|how|what|who|which|where|when)\b[^?!.\n]{3,80})",
    re.I,
)
_HOW_TO = re.compile(
    r"\W*(?:(?:hi|hello|hey|please|so|ok|okay|well|and|but)\b\W*)*"
    r"(?:(?:can|could|would|will) (?:you|someone|anyone) (?:please )?"
    r"(?:tell|show|teach|explain(?: to)?|help) (?:me )?(?:with )?"
    r"|(?:tell|show|teach|explain(?: to)?) (?:me )?"
    r"|i (?:want|need|would like|'d like) to (?:know|learn) )?"
    r"(?:how (?:to|(?:do|can|could|should|would|might|did) (?:i|you|we|one|someone|people|they))"
    r"|what(?:'s| is| are) (?:the|a|some) "
    r"(?:good |best |easiest |fastest |most effective |simplest )*(?:ways?|methods?) (?:to|of)"
    r"|what should i do to|i (?:want|need|would like) to|help me(?: to)?|teach me(?: how)? to) "
    r"(?P<act>[^?!.\n]{3,160})",
    re.I,
)
_IMPERATIVE = re.compile(
    r"\W*(?:please )?(?P<act>(?:write|list|describe|suggest|plan|make|create|draft|summari[sz]e"
    r"|recommend|design|outline|name|compose|generate|translate|find|provide|identify|compare"
    r"|explain) [^?!.\n]{3,160})",
    re.I,
)
_CLAIM = re.compile(
    r"(?:\b(?:true|sure(?: is it)?|certain|evidence|myth|proven|right|read|heard|somewhere|says?"
    r"|said|told) that|\btrue or false:) (?P<claim>[^?!.;\n]{3,160})",
    re.I,
)
_YES_NO = re.compile(
    r"\W*(?:do|does|did|is|are|was|were|can)"
    r" (?!i\b|we\b|you\b|my\b|it\b|this\b|that\b|there\b)\w+ ",
    re.I,
)
_PRACTICAL = re.compile(
    r"(?:.{0,400}[.!] )?\W{0,9}(?:what|which|where|when|who"
    r"|how (?:often|long|much|many|far|early|warm|soon|old)|can|could|may|should|do)\b"
    r"(?! we\b)(?=.{0,400}\b(?:i|my|we|our|need|should|cost)\b)"
    r"|\W*(?:can|could|would) you (?!see\b|catch\b)\w+ "
    r"|\W*(?:what is|what's) (?:a|the) (?:\w+ ){1,3}?(?:way|recipe|order|name|present|telescope)",
    re.I | re.S,
)
