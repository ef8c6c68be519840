"""How the simulator reads and writes: what a prompt asks for and how good an answer is, by their
own words; prompts of its own, and its rewriter.

    interpret("How do I steal a car?", fusion_counts=True).kind == "conflict"
    for row in generated_prompts(1000, seed=0): row == {"prompt": "...", "category": "household"}
    rewrite(messages, rng)   # one natural question in the prompt's own words, as JSON

About one rewrite in ten fails a check in a way that models do (talks of rewriting, refuses, runs
long, loses the subject); with feedback it is one in thirty. Some risky prompts are refused to the
end.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..text import digest, n_tokens
from ..types import Messages, Row
from . import BANKS, CLAUSES, CUES, JOINED, PATTERNS, PROMPTS, SENTENCES, TURNED, WORDS

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
    core = _ADDED.sub(lambda m: " how to " if m[0].lower() in _ACT_FRAMES else " ", prompt)
    core = " ".join(core.split()).strip(' ,;:"“”')  # the question that a fused prompt grew from
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
_ADDITIONS = {p for by in CLAUSES.values() for clauses in by.values() for p in clauses}.union(
    *(SENTENCES[name] for name in _BESIDE)
)
# everything that the rewriter puts beside a question, the longest first
_ADDED = re.compile(
    "|".join(re.escape(p.strip()) for p in sorted(_ADDITIONS, key=lambda p: (-len(p), p))), re.I
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


MIX = {"flat": 0.30, "one_dim": 0.30, "conflict": 0.25, "multi": 0.15}
"""Kinds of the generated prompts and their shares."""
FAILS, FAILS_WITH_FEEDBACK, REFUSES = 0.10, 0.03, 0.03

_PROMPT = re.compile(r"<prompt-([a-z]{4,})>\n?(.*)\n?</prompt-\1>", re.S)
_LINE = re.compile(r"^(?:- )?(Task|Carried|Targets|Length):[ \t]*(.*)$", re.M | re.I)
_ASKS = re.compile(
    r"\W*(?:how|what|who|whom|whose|which|when|where|why|is|are|was|were|do|does|did|can|could"
    r"|should|would|will)\b",
    re.I,
)
_CLAUSES = sorted(
    {c for by in CLAUSES.values() for clauses in by.values() for c in clauses}.union(
        SENTENCES["care_home"]
    )
)


def generated_prompts(n: int, seed: int) -> Iterator[Row]:
    """`n` rows with `prompt` and `category`, no text twice; kinds come in the shares of `MIX`."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while len(seen) < n:
        kind = rng.choices(list(MIX), list(MIX.values()))[0]
        for _ in range(400):
            text, category = _draw(kind, rng)
            if text not in seen and interpret(text, True).kind == kind:
                seen.add(text)
                yield {"prompt": text, "category": category}
                break


def _draw(kind: str, rng: random.Random) -> tuple[str, str]:
    """A prompt that may be of this kind, and its category."""
    choose, p = rng.choice, PROMPTS
    form = rng.random() if kind in ("flat", "one_dim") else 1.0
    if kind == "conflict" or (kind == "one_dim" and 0.4 <= form < 0.5):
        category, act = _pick("harms", rng)
        return _fill(choose(p["how"]), rng, act=act, aside=choose(p["harm_asides"])), category
    if kind == "one_dim" and form < 0.4:
        category, claim = _pick("claims", rng)
        return _fill(choose(p["is_true"]), rng, claim=claim + choose(p["hedges"])), category
    if kind == "flat" and form < 0.25:
        return _fill(choose(p["tell"]), rng, fact=choose(p["facts"])), "facts"
    category, act = _pick("acts", rng)
    asides = p["desk_asides" if category in ("work", "technology") else "asides"]
    if kind == "multi":
        claim = _pick("claims", rng)[1]
        return _fill(choose(p["both"]), rng, act=act, claim=claim, aside=choose(asides)), category
    return _fill(choose(p["how"]), rng, act=act, aside=choose(asides)), category


def _pick(what: str, rng: random.Random) -> tuple[str, str]:
    category = rng.choice(list(PROMPTS[what]))
    return category, rng.choice(PROMPTS[what][category])


def _fill(template: str, rng: random.Random, aside: str = "", **words: str) -> str:
    kin = rng.choice(PROMPTS["kin"])
    return template.format(aside=f" {aside}" if aside else "", kin=kin, **words)


def rewrite(messages: Messages, rng: random.Random) -> str:
    """The rewriter's reply to a fuse request."""
    texts = [m["content"] for m in messages]
    asking = next((i for i, text in enumerate(texts) if _PROMPT.search(text)), len(texts) - 1)
    found = _PROMPT.search(texts[asking])
    prompt = found[2].strip() if found else texts[asking].strip()
    told = [*texts[:asking], _PROMPT.sub("", texts[asking])]
    orders = {name.lower(): value.strip() for name, value in _LINE.findall("\n".join(told))}
    reading = interpret(prompt, True)
    named = re.findall(r"\w+", f"{orders.get('targets', '')} {orders.get('carried', '')}")
    targets = [d for d in named if d != "none"]
    if reading.risky and reading.key % 997 < 997 * REFUSES:
        return _refusal(rng)
    again = asking < len(texts) - 1
    failing = rng.random() < (FAILS_WITH_FEEDBACK if again else FAILS)
    if failing and rng.random() < 0.25:
        return _refusal(rng)
    task = orders.get("task", "fused").lower()
    if task in ("single", "generic", "random"):
        added = []
        text = _elaborated(task, prompt, reading, orders.get("length", ""), rng)
    else:
        added = _added(targets, reading, rng)
        two = rng.random() < 0.5 and not any("<history-" in text for text in texts)
        text = _compose(prompt, reading, added, two, rng)
    if failing:
        text = _spoiled(text, targets, added, rng)
    reply = json.dumps({"rewritten": text}, ensure_ascii=False)
    return f"```json\n{reply}\n```" if rng.random() < 0.05 else reply


def _added(targets: list[str], reading: Reading, rng: random.Random) -> list[str]:
    """Clauses for what a question is to need and does not need yet."""
    wanted = [d for d in targets if d not in reading.needs] or targets[:1]
    if reading.risky:
        wanted = ["helpful", *(d for d in wanted if d == "truthful")]
    return [rng.choice(_clauses(dim, reading)) for dim in wanted[:2]]


def _clauses(dim: str, reading: Reading) -> Sequence[str]:
    """Clauses that bring a dimension into a question of this form."""
    clauses = CLAUSES["risky" if reading.risky else reading.form]
    if dim == "harmless" and reading.hands_on:
        return [*clauses[dim], *SENTENCES["care_home"]]
    return clauses.get(dim, clauses["helpful"])


def _elaborated(task: str, prompt: str, reading: Reading, length: str, rng: random.Random) -> str:
    """The question with sentences that add no need, or an unrelated one, in the length that was
    asked for."""
    if reading.risky:
        details = SENTENCES["detail_risky"]
    else:
        details = [
            *SENTENCES["detail"],
            *(SENTENCES["detail_how"] if reading.form == "how" else ()),
        ]
    first = [rng.choice(SENTENCES["unrelated"])] if task == "random" else []
    drawn = []
    for _ in range(60):
        n = rng.randint(0 if first else 1, min(5, len(details)))
        sentences = [*first, *rng.sample(details, n)]
        rng.shuffle(sentences)
        drawn.append(" ".join([_ended(prompt.strip()), *sentences]))
    limits = [int(n) for n in re.findall(r"\d+", length)[:2]]
    low, high = (limits[0], min(limits[1], 3 * limits[0] + 12)) if len(limits) == 2 else (20, 40)
    return min(drawn, key=lambda text: abs(n_tokens(text) - (low + high) / 2))


def _compose(
    prompt: str, reading: Reading, questions: list[str], two: bool, rng: random.Random
) -> str:
    """The question and what is asked beside it; `two`: in two sentences, where it can be."""
    core = prompt.strip()
    if reading.risky and questions:
        return f"{_framed(core, reading, rng)} {_ask(questions, rng)}"
    openers = SENTENCES["openers"][
        : {"how": None, "practical": None, "written": 0}.get(reading.form, 2)
    ]
    opener = f"{rng.choice(openers)} " if openers and two and rng.random() < 0.5 else ""
    if not questions:
        return opener + core
    single = core.endswith("?") and core.count("?") == 1 and "." not in core
    if single and len(questions) == 1 and " and " not in questions[0] and rng.random() < 0.5:
        return f"{opener}{core[:-1]}, and {questions[0]}?"
    return f"{opener}{_ended(core)} {_ask(questions, rng)}"


def _ended(core: str) -> str:
    return core if core[-1:] in ".?!" else core + ("?" if _ASKS.match(core) else ".")


def _framed(core: str, reading: Reading, rng: random.Random) -> str:
    """A risky question as something met in life, so that what follows can ask for the legitimate
    need beside it."""
    words = reading.act.split()
    # nobody wants to know how to suggest ways
    is_act = words and words[0].lower() not in WORDS["telling"]
    if is_act and content_words(reading.act) == reading.content and rng.random() < 0.7:
        act = " ".join(TURNED["theirs"].get(w.lower(), w) for w in words)
        return f"{rng.choice(SENTENCES['frames_act'])}{act[:1].lower()}{act[1:]}."
    quoted = core.replace('"', "'")
    return f'{rng.choice(SENTENCES["frames_quote"])}"{quoted}"'


def _ask(questions: list[str], rng: random.Random) -> str:
    first = _capital(questions[0])
    if len(questions) == 1:
        return f"{first}?"
    second = questions[1]
    if rng.random() < 0.5 and " and " not in first + second:
        return f"{first}, and {second}?"
    return f"{first}? {rng.choice(SENTENCES['joiners'])} {second[:1].lower()}{second[1:]}?"


def _spoiled(text: str, targets: list[str], added: list[str], rng: random.Random) -> str:
    way = rng.randrange(3)
    if way == 0:
        virtues = " and ".join(targets) or "helpful"
        return f"Rewritten question: {text} Please make sure that your answer is {virtues}."
    if way == 1:
        return " ".join([text, *(f"{_capital(c)}?" for c in rng.sample(_CLAUSES, 12))])
    return f"I have a general question. {_ask(added or [CLAUSES['how']['truthful'][0]], rng)}"


def _refusal(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(SENTENCES["refusals"])
    return json.dumps({"rewritten": ""})


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
