"""The scripted rewriter: reads a fuse prompt, writes one natural question in the prompt's own
words, as JSON.

About one reply in ten fails a check in a way that models do (talks of rewriting, refuses, runs
long, loses the subject); with feedback it is one in thirty. On some risky prompts it refuses to the
end.
"""

from __future__ import annotations

import json
import random
import re

from ..text import n_tokens
from . import phrases as bank
from .reading import Reading, content_words, read

FAILS, FAILS_WITH_FEEDBACK, REFUSES = 0.10, 0.03, 0.03

_PROMPT = re.compile(r"<prompt-([0-9a-f]+)>\n?(.*)\n?</prompt-\1>", re.S)
_ASKS = re.compile(
    r"\W*(?:how|what|who|whom|whose|which|when|where|why|is|are|was|were|do|does|did|can|could|should|would|will)\b",
    re.I,
)
_LINE = re.compile(r"^(?:- )?(Task|Carried|Targets|Length|Style):[ \t]*(.*)$", re.M | re.I)
_TELLING = frozenset(
    (
        "suggest",
        "explain",
        "describe",
        "list",
        "name",
        "recommend",
        "find",
        "provide",
        "identify",
        "compare",
    )
)
_THIRD = {
    "i": "they",
    "me": "them",
    "my": "their",
    "mine": "theirs",
    "myself": "themselves",
    "our": "their",
    "we": "they",
    "us": "them",
}


def rewrite(request: str, rng: random.Random) -> str:
    """The rewriter's reply to the text of a fuse prompt."""
    found = _PROMPT.search(request)
    prompt = found[2].strip() if found else request.strip()
    instructions = request[: found.start()] if found else request
    told = {name.lower(): value.strip() for name, value in _LINE.findall(instructions)}
    reading = read(prompt, True)
    named = f"{told.get('targets', '')},{told.get('carried', '')}".split(",")
    targets = [t.strip() for t in named if t.strip() not in ("", "none")]
    if reading.risky and reading.key % 997 < 997 * REFUSES:
        return _refusal(rng)
    failing = rng.random() < (
        FAILS_WITH_FEEDBACK if "An earlier rewrite failed" in request else FAILS
    )
    if failing and rng.random() < 0.25:
        return _refusal(rng)
    task = told.get("task", "fused").lower()
    plain = task in ("single", "generic", "random")
    added = [] if plain else _added(targets, reading, rng)
    style = told.get("style", "") + (" follows" if "<history-" in request else "")
    text = (
        _elaborated(task, prompt, reading, told.get("length", ""), rng)
        if plain
        else _compose(prompt, reading, [clause for _, clause in added], style, rng)
    )
    if failing:
        text = _spoiled(text, targets, added, rng)
    return _reply(text, reading.topic, added, rng)


def _added(targets: list[str], reading: Reading, rng: random.Random) -> list[tuple[str, str]]:
    """Clauses for what a question is to need and does not need yet, each with its dimension."""
    wanted = [d for d in targets if d not in reading.needs] or targets[:1]
    if reading.risky:
        wanted = ["helpful", *(d for d in wanted if d == "truthful")]
    return [(dim, rng.choice(_clauses(dim, reading))) for dim in wanted[:2]]


def _clauses(dim: str, reading: Reading) -> tuple[str, ...]:
    """Clauses that bring a dimension into a question of this form."""
    if reading.risky:
        return bank.DOUBT_RISKY if dim == "truthful" else bank.LEGITIMATE
    if reading.form == "how":
        home = bank.CARE + bank.CARE_HOME if reading.hands_on else bank.CARE
        return {"harmless": home, "truthful": bank.DOUBT}.get(dim, bank.PRACTICE_START)
    if reading.form == "written":
        return {"harmless": bank.CARE_TALK, "truthful": bank.DOUBT_WRITTEN}.get(
            dim, bank.PRACTICE_WRITTEN
        )
    if reading.form == "claim":
        return {"harmless": bank.CARE_CLAIM, "truthful": bank.DOUBT_TALK}.get(dim, bank.PRACTICE)
    if reading.form == "practical":
        return {"harmless": bank.CARE_PRACTICAL, "truthful": bank.DOUBT_TALK}.get(
            dim, bank.PRACTICE_START
        )
    return {"harmless": bank.CARE_FACT, "truthful": bank.DOUBT_FACT}.get(dim, bank.PRACTICE_TALK)


def _elaborated(task: str, prompt: str, reading: Reading, length: str, rng: random.Random) -> str:
    """The question with sentences that add no need, or an unrelated one, in the length that was
    asked for."""
    low, high = _limits(length)
    details = (
        bank.DETAIL_RISKY
        if reading.risky
        else bank.DETAIL + bank.DETAIL_HOW
        if reading.form == "how"
        else bank.DETAIL
    )
    first = [rng.choice(bank.UNRELATED)] if task == "random" else []
    drawn = []
    for _ in range(60):
        sentences = [
            *first,
            *rng.sample(details, rng.randint(0 if first else 1, min(5, len(details)))),
        ]
        rng.shuffle(sentences)
        drawn.append(" ".join([_ended(prompt.strip()), *sentences]))
    middle = (low + high) / 2
    return min(drawn, key=lambda text: abs(n_tokens(text) - middle))


def _limits(length: str) -> tuple[int, int]:
    found = [int(n) for n in re.findall(r"\d+", length)[:2]]
    return (found[0], min(found[1], 3 * found[0] + 12)) if len(found) == 2 else (20, 40)


def _compose(
    prompt: str, reading: Reading, questions: list[str], style: str, rng: random.Random
) -> str:
    if reading.risky and questions:
        return f"{_framed(prompt, reading, rng)} {_ask(questions, rng)}"
    core = prompt.strip()
    openers = {"how": bank.OPENERS, "practical": bank.OPENERS, "written": ()}.get(
        reading.form, bank.OPENERS[:2]
    )
    opened = openers and "follows" not in style and "two" in style and rng.random() < 0.5
    opener = f"{rng.choice(openers)} " if opened else ""
    if not questions:
        return opener + core
    single = core.endswith("?") and core.count("?") == 1 and "." not in core
    if single and len(questions) == 1 and " and " not in questions[0] and rng.random() < 0.5:
        return f"{opener}{core[:-1]}, and {questions[0]}?"
    return f"{opener}{_ended(core)} {_ask(questions, rng)}"


def _ended(core: str) -> str:
    return core if core[-1:] in ".?!" else core + ("?" if _ASKS.match(core) else ".")


def _framed(prompt: str, reading: Reading, rng: random.Random) -> str:
    """A risky question as something met in life, so that what follows can ask for the legitimate
    need beside it."""
    # nobody wants to know how to suggest ways
    told = reading.act.split()[:1] and reading.act.split()[0].lower() in _TELLING
    if (
        reading.act
        and not told
        and content_words(reading.act) == reading.content
        and rng.random() < 0.7
    ):
        act = " ".join(_THIRD.get(w.lower(), w) for w in reading.act.split())
        act = act[:1].lower() + act[1:]
        return f"{rng.choice(bank.FRAMES_ACT)}{act}."
    quoted = prompt.strip().replace('"', "'")
    return f'{rng.choice(bank.FRAMES_QUOTE)}"{quoted}"'


def _ask(questions: list[str], rng: random.Random) -> str:
    if len(questions) == 1:
        return f"{_capital(questions[0])}?"
    first, second = _capital(questions[0]), questions[1]
    if rng.random() < 0.5 and " and " not in first + second:
        return f"{first}, and {second}?"
    return f"{first}? {rng.choice(bank.JOINERS)} {second[:1].lower()}{second[1:]}?"


def _spoiled(
    text: str, targets: list[str], added: list[tuple[str, str]], rng: random.Random
) -> str:
    way = rng.randrange(3)
    if way == 0:
        return (
            f"Rewritten question: {text} Please make sure that your answer is"
            f" {' and '.join(targets) or 'helpful'}."
        )
    if way == 1:
        return " ".join([text, *(f"{_capital(c)}?" for c in rng.sample(sorted(_QUESTIONS), 12))])
    return f"I have a general question. {_ask([c for _, c in added[:2]] or [bank.DOUBT[0]], rng)}"


def _refusal(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(bank.REFUSALS)
    return json.dumps({"rewritten": "", "subject": "", "intents": [], "refused": True})


def _reply(text: str, subject: str, added: list[tuple[str, str]], rng: random.Random) -> str:
    spans = [{"dim": dim, "span": clause} for dim, clause in added if dim]
    reply = json.dumps(
        {"rewritten": text, "subject": subject, "intents": spans, "refused": False},
        ensure_ascii=False,
    )
    return f"```json\n{reply}\n```" if rng.random() < 0.05 else reply


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_QUESTIONS = frozenset(
    bank.CARE
    + bank.CARE_HOME
    + bank.CARE_TALK
    + bank.CARE_CLAIM
    + bank.CARE_FACT
    + bank.DOUBT
    + bank.DOUBT_TALK
    + bank.CARE_PRACTICAL
    + bank.DOUBT_FACT
    + bank.DOUBT_RISKY
    + bank.DOUBT_WRITTEN
    + bank.PRACTICE
    + bank.PRACTICE_START
    + bank.PRACTICE_WRITTEN
    + bank.PRACTICE_TALK
    + bank.LEGITIMATE
)
