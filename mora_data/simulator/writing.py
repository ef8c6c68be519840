"""Prompts of the simulator's own, and its rewriter.

    for row in generated_prompts(1000, seed=0): row == {"prompt": "How do I ...?", "category":
        "household"}
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

from ..text import n_tokens
from ..types import Messages, Row
from . import CLAUSES, PROMPTS, SENTENCES, TURNED, WORDS
from .reading import Reading, content_words, interpret

MIX = {"flat": 0.30, "one_dim": 0.30, "conflict": 0.25, "multi": 0.15}
"""Kinds of the generated prompts and their shares."""
FAILS, FAILS_WITH_FEEDBACK, REFUSES = 0.10, 0.03, 0.03

_PROMPT = re.compile(r"<prompt-([a-z]{8})>\n?(.*)\n?</prompt-\1>", re.S)
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
