"""The embedded simulator: policy, judge and rewriter of a world whose reward structure is known. No
download.

A prompt's kind (flat, one_dim, conflict, multi) follows from its own words; the policy draws a
quality level 1..5 per dimension from the kind's distribution and writes it into text; the judge
reads that text. In the world "planted" a question that asks for several virtues is `multi`; in the
null world the clauses that a fusion adds change nothing.

    Scripted(settings, seed=0).answer(request, base_seed)
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from itertools import islice

from ..settings import ScriptedSettings
from ..text import n_tokens
from ..types import Answer, Messages, Request
from . import phrases as bank
from .prompts import generated_prompts
from .reading import DIMENSIONS, Reading, base_level, clip, level_of, read
from .rewriter import rewrite

__all__ = ["MODEL", "Scripted", "draw_levels", "generated_prompts", "planted_kind", "write"]

MODEL = "scripted-1"
JUDGE_NOISE = 0.35  # standard deviation, in levels, before rounding
GUARD_NOISE = 0.15
UNREADABLE_SHARE = 0.005  # verdicts that are prose

_DIMENSION = re.compile(r"^Dimension:[ \t]*(\w+)", re.M | re.I)
_CHECK = re.compile(r"^Check:[ \t]*(harm|intent)$", re.M)
_YES_NO = re.compile(r"^0 = .*\n+1 = |^1 = .*\n+0 = ", re.M)
_LETTERED = re.compile(r"^([A-Z]): (.+)$", re.M)
_NEED_CUES = {
    "helpful": "something to act on",
    "harmless": "Nobody is hurt",
    "truthful": "What is claimed is right",
    "verse": "in verse",
    "arms": "coat of arms",
    "sea": "at sea",
    "dance": "of a dance",
    "chess": "chess move",
}
_TOKEN = re.compile(r"\w+|[^\w\s]")  # as text.n_tokens counts
_CLOSING = re.compile(r"</(?:answer|question)-([0-9a-f]+)>")


class Scripted:
    """The simulator. Sample i of a request depends on its messages, sampling, role and `base_seed +
    i` alone.

    Attributes:
        fusion_counts: false in the null bank.
    """

    def __init__(self, settings: ScriptedSettings, seed: int) -> None:
        self.fusion_counts = settings.world is not None
        self._seed = seed

    def answer(self, request: Request, base_seed: int) -> list[Answer]:
        """`request.n` answers, of indices `request.first` and on."""
        write = self._writer(request)
        salt = _salt(request, self._seed)
        out = []
        for i in range(request.first, request.first + request.n):
            answer = write(random.Random(salt ^ ((base_seed + i) * 0x9E3779B97F4A7C15)))
            out.append(_cut(answer, request))
        return out

    def _writer(self, request: Request) -> Callable[[random.Random], Answer]:
        messages = request.messages
        if request.role in ("judge", "heldout_judge"):
            return self._judge(messages)
        if request.role == "rewriter":
            text = "\n".join(m["content"] for m in messages)
            return lambda rng: _stop(rewrite(text, rng))
        reading = read(messages[-1]["content"], self.fusion_counts)
        return lambda rng: _policy(reading, rng)

    def _judge(self, messages: Messages) -> Callable[[random.Random], Answer]:
        if checked := _CHECK.search(messages[0]["content"]):
            return _guard(checked[1], messages)
        named = _DIMENSION.search(messages[0]["content"]) or _DIMENSION.search(
            messages[-1]["content"]
        )
        dimension = named[1].lower() if named else "helpful"
        question, answer = _judged(messages[-1]["content"])
        level = level_of(answer, read(question, self.fusion_counts), dimension)
        yes_no = _YES_NO.search(messages[0]["content"]) is not None
        return lambda rng: _verdict(level, dimension, rng, yes_no=yes_no)


def planted_kind(text: str) -> str:
    """Kind of a prompt in the planted world: flat, one_dim, conflict or multi."""
    return read(text, True).kind


def draw_levels(reading: Reading, rng: random.Random) -> dict[str, int]:
    """Quality levels 1..5 of one answer, by dimension, from the distribution of the prompt's
    kind."""
    taste = random.Random(reading.key)
    skill = taste.uniform(-0.4, 0.4)
    varying = _varying(reading)
    starved = _starved(reading, varying, taste)
    levels = {d: _steady(d == starved, rng) for d in DIMENSIONS}
    if reading.kind == "multi":
        common = rng.gauss(0, 0.9)
        levels.update({d: clip(3.4 + skill + common + rng.gauss(0, 0.9)) for d in varying})
    elif reading.kind == "conflict":
        levels["helpful"], levels["harmless"] = _at_odds(rng, skill)
    elif reading.kind == "one_dim":
        levels[varying[0]] = clip(3 + 2 * skill + rng.gauss(0, 1.3))
    return levels


def _varying(reading: Reading) -> tuple[str, ...]:
    """Dimensions in which answers to this prompt differ."""
    if reading.kind == "flat":
        return ()
    return ("helpful", "harmless") if reading.kind == "conflict" else reading.needs


def _starved(reading: Reading, varying: tuple[str, ...], taste: random.Random) -> str | None:
    """The dimension that answers to a single-reward prompt neglect, if any: its words do not ask
    for it."""
    if reading.kind in ("multi", "conflict"):
        return None
    if reading.risky:
        return "helpful"
    shares = {"truthful": 6, "helpful": 4, "harmless": 3 if reading.hands_on else 0, None: 1}
    neglected = [d for d in shares if d not in varying]
    return taste.choices(neglected, [shares[d] for d in neglected])[0]


def _steady(starved: bool, rng: random.Random) -> int:
    """Level in a dimension where this prompt's answers hardly differ."""
    usual = rng.random() < 0.93
    return (2 if usual else 1) if starved else (5 if usual else 4)


def _at_odds(rng: random.Random, skill: float) -> tuple[int, int]:
    """Helpful and harmless levels where one is had at the other's expense; (1, 4) and (1, 5) are
    refusals."""
    draw = rng.random() + 0.4 * skill
    if draw < 0.45:
        return 1, rng.choice((4, 5, 5))
    if draw < 0.6:
        return 2, 4
    if draw < 0.75:
        return 3, 3
    return rng.choice(((4, 2), (4, 1), (5, 1)))


def _policy(reading: Reading, rng: random.Random) -> Answer:
    odd = rng.random()
    if odd < 0.007:
        return Answer(text="", tokens_out=0)
    text = write(reading, draw_levels(reading, rng), rng)
    if odd < 0.02:
        text = text[: max(12, int(len(text) * rng.uniform(0.3, 0.8)))]
        return Answer(text=text, finish_reason="length", tokens_out=n_tokens(text))
    if odd < 0.03:
        sentence = max(text.split(". "), key=len).rstrip(".") + "."
        text = " ".join([sentence] * rng.randint(6, 12))
    return _stop(text)


def write(reading: Reading, levels: dict[str, int], rng: random.Random) -> str:
    """An answer whose words show these levels to the judge."""
    if reading.risky and levels["helpful"] == 1 and levels["harmless"] >= 4:
        refusal = rng.choice(bank.REFUSALS)
        return f"{refusal} {rng.choice(bank.REDIRECTS)}" if levels["harmless"] == 5 else refusal
    body = _steps(reading, levels["helpful"], rng)
    safe = bank.SAFE_RISKY if reading.risky else bank.SAFE if reading.hands_on else bank.SAFE_TALK
    caution = _marked(
        levels["harmless"] - base_level(reading, "harmless"),
        safe,
        bank.CARELESS,
        bank.RECKLESS,
        rng,
    )
    honesty = _marked(
        levels["truthful"] - base_level(reading, "truthful"),
        bank.SOURCED,
        bank.BOLD,
        bank.INVENTED,
        rng,
    )
    fillers = (
        bank.FILLERS_RISKY
        if reading.risky
        else bank.FILLERS
        if reading.how_to
        else bank.FILLERS_TALK
    )
    padding = rng.choice((0, 0, 1, 1, 2, 3)) + (rng.randint(1, 4) if levels["helpful"] <= 2 else 0)
    blocks = [body, honesty, rng.sample(fillers, padding), caution]
    if rng.random() < 0.3:
        rng.shuffle(blocks)
    return _laid_out([rng.choice(bank.LEADS)], body, blocks, rng)


def _laid_out(lead: list[str], body: list[str], blocks: list[list[str]], rng: random.Random) -> str:
    """One paragraph, or paragraphs with the steps as a numbered list."""
    if len(body) < 3 or rng.random() < 0.7:
        return " ".join(s for block in [lead, *blocks] for s in block if s)
    numbered = "\n".join(f"{i}. {s}" for i, s in enumerate(body, 1))
    return "\n\n".join(
        filter(None, (numbered if b is body else " ".join(b) for b in [lead, *blocks]))
    )


def _steps(reading: Reading, level: int, rng: random.Random) -> list[str]:
    """`level - 1` sentences that name the subject and say what to do, or why."""
    if level <= 1:
        return [rng.choice(bank.ALOOF)]
    return [
        _start(template.format(x=reading.topic))
        for _, template in rng.sample(_bank(reading), level - 1)
    ]


def _start(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _bank(reading: Reading) -> bank.Bank:
    if reading.risky:
        return bank.SHELTER if "helpful" in reading.needs else bank.BLANKS
    if reading.act:
        return bank.STEPS
    return bank.REASONS if reading.claim else bank.EXPLAINS


def _marked(
    delta: int, good: bank.Bank, mild: bank.Bank, strong: bank.Bank, rng: random.Random
) -> list[str]:
    """Sentences that move the judge's reading by `delta` levels; a strong one counts two down."""
    if delta >= 0:
        return [s for _, s in rng.sample(good, delta)]
    return [s for _, s in rng.sample(strong, -delta // 2)] + [
        s for _, s in rng.sample(mild, -delta % 2)
    ]


def _verdict(
    level: int, dimension: str, rng: random.Random, noise: float = JUDGE_NOISE, yes_no: bool = False
) -> Answer:
    if rng.random() < UNREADABLE_SHARE:
        return Answer(
            text=f"In terms of being {dimension}, this answer has strengths and weaknesses.",
            tokens_out=12,
        )
    seen = clip(level + rng.gauss(0, noise))
    return Answer(text=f'{{"score": {int(seen >= 4) if yes_no else seen}}}', tokens_out=7)


def _guard(check: str, messages: Messages) -> Callable[[random.Random], Answer]:
    """What the judge says of a question alone, by its words in any world: how harmful it is, or
    what it needs."""
    reading = read(_judged(messages[-1]["content"])[0], True)
    if check == "harm":
        level = (2 if "helpful" in reading.needs else 5) if reading.risky else 1
        return lambda rng: _verdict(level, check, rng, GUARD_NOISE)
    needs = {
        letter: _needed(text, reading) for letter, text in _LETTERED.findall(messages[0]["content"])
    }
    return lambda rng: _stop(
        json.dumps({letter: clip(n + rng.gauss(0, GUARD_NOISE)) for letter, n in needs.items()})
    )


def _needed(need: str, reading: Reading) -> int:
    """Level at which the question needs what a line of the intent check describes; a dimension of
    the user's own always."""
    named = next((d for d, cue in _NEED_CUES.items() if cue in need), "")
    if named in DIMENSIONS:
        return 5 if named in reading.needs else 2
    return 1 if named else 5


def _judged(text: str) -> tuple[str, str]:
    """Question and answer of a judge message: between their tags, else the whole text is the
    answer."""
    nonces = _CLOSING.findall(text)
    if not nonces:
        return "", text
    nonce = nonces[-1]  # the template's own: what the answer may hold of the kind stands before it
    return _between(text, "question", nonce), _between(text, "answer", nonce)


def _between(text: str, tag: str, nonce: str) -> str:
    opening, closing = f"<{tag}-{nonce}>", f"</{tag}-{nonce}>"
    start, end = text.find(opening), text.rfind(closing)
    return text[start + len(opening) : end].strip() if 0 <= start < end else ""


def _salt(request: Request, seed: int) -> int:
    s = request.sampling
    turns = [[m["role"], m["content"]] for m in request.messages]
    text = json.dumps(
        [seed, request.role, turns, s.temperature, s.top_p, s.max_tokens, list(s.stop)]
    )
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _stop(text: str) -> Answer:
    return Answer(text=text, tokens_out=n_tokens(text))


def _cut(answer: Answer, request: Request) -> Answer:
    """The answer as the request's stop strings and token limit leave it."""
    text, limit = answer.text, request.sampling.max_tokens
    ends = [at for s in request.sampling.stop if (at := text.find(s)) >= 0]
    if ends:
        answer = _stop(text[: min(ends)])
    if answer.tokens_out <= limit:
        return answer
    *_, last = islice(_TOKEN.finditer(answer.text), limit)
    return Answer(text=answer.text[: last.end()], finish_reason="length", tokens_out=limit)
