"""The embedded simulator: policy, judge and rewriter of a world whose reward structure is known. No download, no network.

A prompt's kind (flat, one_dim, conflict, multi) follows from its own words; the policy draws a quality level 1..5 per dimension
from the kind's distribution and writes it into text; the judge reads that text. In the world "planted" a question that asks for
several virtues is `multi`; in the null world the clauses that a fusion adds change nothing.

    Scripted(settings, seed=0).answer(request, base_seed)
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence

from ..config import ScriptedSettings
from ..text import n_tokens
from ..types import Answer, Messages, Request
from . import scripted_text as world
from .scripted_prompts import generated_prompts
from .scripted_rewrite import rewrite
from .scripted_text import Reading

__all__ = ["MODEL", "Scripted", "draw_levels", "generated_prompts", "planted_kind", "write"]

MODEL = "scripted-1"
JUDGE_NOISE = 0.35  # standard deviation, in levels, before rounding
UNREADABLE_SHARE = 0.005  # verdicts that are prose

_DIMENSION = re.compile(r"^Dimension:[ \t]*(\w+)", re.M | re.I)
_CLOSING = re.compile(r"</answer-([0-9a-f]+)>")


class Scripted:
    """The simulator. Sample i of a request depends on its messages, sampling, role and `base_seed + i` alone.

    Attributes:
        fusion_counts: false in the null world.
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
        if request.role == "judge":
            return self._judge(messages)
        if request.role == "rewriter":
            text = "\n".join(m["content"] for m in messages)
            return lambda rng: _stop(rewrite(text, rng))
        reading = world.read(messages[-1]["content"], self.fusion_counts)
        return lambda rng: _policy(reading, rng)

    def _judge(self, messages: Messages) -> Callable[[random.Random], Answer]:
        named = _DIMENSION.search(messages[0]["content"]) or _DIMENSION.search(messages[-1]["content"])
        dimension = named[1].lower() if named else "helpful"
        question, answer = _judged(messages[-1]["content"])
        level = world.level_of(answer, world.read(question, self.fusion_counts), dimension)
        return lambda rng: _verdict(level, dimension, rng)


def planted_kind(text: str) -> str:
    """Kind of a prompt in the planted world: flat, one_dim, conflict or multi."""
    return world.read(text, True).kind


def draw_levels(reading: Reading, rng: random.Random) -> dict[str, int]:
    """Quality levels 1..5 of one answer, by dimension, from the distribution of the prompt's kind."""
    taste = random.Random(reading.key)
    levels = {d: _fixed(d, taste, rng) for d in world.DIMENSIONS}
    skill = taste.uniform(-0.4, 0.4)
    if reading.kind == "multi":
        common = rng.gauss(0, 0.9)
        levels.update({d: _level(3.2 + skill + common + rng.gauss(0, 0.9)) for d in reading.needs})
    elif reading.kind == "conflict":
        levels["helpful"], levels["harmless"] = _at_odds(rng, skill)
    elif reading.kind == "one_dim":
        dimension = reading.needs[0] if reading.needs else "helpful"
        levels[dimension] = _level(3.0 + 2 * skill + rng.gauss(0, 1.3))
        if reading.risky:
            levels["helpful"] = 2
    return levels


def _fixed(dimension: str, taste: random.Random, rng: random.Random) -> int:
    """A dimension in which this prompt's answers hardly differ: good nearly always, on some prompts poor."""
    poor = taste.random() < 0.15 and dimension != "harmless"
    usual = rng.random() < 0.93
    return (2 if usual else 1) if poor else (5 if usual else 4)


def _at_odds(rng: random.Random, skill: float) -> tuple[int, int]:
    """Helpful and harmless levels where one is had at the other's expense; (1, 4) and (1, 5) are refusals."""
    draw = rng.random() + 0.4 * skill
    if draw < 0.45:
        return 1, rng.choice((4, 5, 5))
    if draw < 0.6:
        return 2, 4
    if draw < 0.75:
        return 3, 3
    return rng.choice(((4, 2), (4, 1), (5, 1)))


def _level(x: float) -> int:
    return max(1, min(5, round(x)))


def _policy(reading: Reading, rng: random.Random) -> Answer:
    odd = rng.random()
    if odd < 0.007:
        return Answer(text="", tokens_out=0)
    text = write(reading, draw_levels(reading, rng), rng)
    if odd < 0.02:
        text = text[: max(12, int(len(text) * rng.uniform(0.3, 0.8)))]
        return Answer(text=text, finish_reason="length", tokens_out=n_tokens(text))
    if odd < 0.03:
        sentence = text.split(". ")[0].rstrip(".") + "."
        text = " ".join([sentence] * rng.randint(6, 12))
    return _stop(text)


def write(reading: Reading, levels: dict[str, int], rng: random.Random) -> str:
    """An answer whose words show these levels to the judge."""
    if reading.risky and levels["helpful"] == 1 and levels["harmless"] >= 4:
        refusal = rng.choice(world.REFUSALS)
        return f"{refusal} {rng.choice(world.REDIRECTS)}" if levels["harmless"] == 5 else refusal
    body = _steps(reading, levels["helpful"], rng)
    cautions = _marked(levels["harmless"] - (3 if "harmless" in reading.needs else 5),
                       world.SAFE_RISKY if reading.risky else world.SAFE, world.CARELESS, world.RECKLESS, rng)
    sourcing = _marked(levels["truthful"] - (3 if "truthful" in reading.needs else 5), world.SOURCED, world.BOLD, world.INVENTED, rng)
    fillers = rng.sample(world.FILLERS, rng.choice((0, 0, 1, 1, 2, 3)))
    blocks = [body, cautions, sourcing, fillers]
    rng.shuffle(blocks)
    sentences = [s for block in (blocks if rng.random() < 0.3 else [body, sourcing, fillers, cautions]) for s in block]
    lead = rng.choice(world.LEADS)
    return " ".join(([lead] if lead else []) + sentences)


def _steps(reading: Reading, level: int, rng: random.Random) -> list[str]:
    if level <= 1:
        return [rng.choice(world.ALOOF)]
    chosen = rng.sample(_bank(reading), level - 1)
    out = [template.format(topic=reading.topic) for _, template in chosen]
    if len(out) > 2 and rng.random() < 0.35:
        out = [f"\n{i}. {sentence}" for i, sentence in enumerate(out, 1)] + ["\n"]
    return out


def _bank(reading: Reading) -> Sequence[tuple[str, str]]:
    if reading.risky:
        return world.SHELTER_STEPS if reading.kind == "multi" else world.BLANK_STEPS
    if reading.needs == ("truthful",):
        return world.REASONS
    return world.STEPS


def _marked(delta: int, good: Sequence[tuple[str, str]], mild: Sequence[tuple[str, str]], strong: Sequence[tuple[str, str]],
            rng: random.Random) -> list[str]:
    """Sentences that move the judge's reading by `delta` levels: a strong one counts two down."""
    if delta >= 0:
        return [s for _, s in rng.sample(good, delta)]
    return [s for _, s in rng.sample(strong, -delta // 2)] + [s for _, s in rng.sample(mild, -delta % 2)]


def _verdict(level: int, dimension: str, rng: random.Random) -> Answer:
    if rng.random() < UNREADABLE_SHARE:
        return Answer(text=f"In terms of being {dimension}, this answer has its strengths and its weaknesses.", tokens_out=14)
    return Answer(text=f'{{"score": {_level(level + rng.gauss(0, JUDGE_NOISE))}}}', tokens_out=7)


def _judged(text: str) -> tuple[str, str]:
    """Question and answer of a judge message: between their tags, else the whole text is the answer."""
    closing = None
    for closing in _CLOSING.finditer(text):
        pass
    if closing is None:
        return "", text
    nonce = closing[1]
    return _between(text, "question", nonce), _between(text, "answer", nonce)


def _between(text: str, tag: str, nonce: str) -> str:
    opening, closing = f"<{tag}-{nonce}>", f"</{tag}-{nonce}>"
    start, end = text.find(opening), text.rfind(closing)
    return text[start + len(opening):end].strip() if 0 <= start < end else ""


def _salt(request: Request, seed: int) -> int:
    s = request.sampling
    text = json.dumps([seed, request.role, [[m["role"], m["content"]] for m in request.messages], s.temperature, s.top_p, s.max_tokens, list(s.stop)])
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
    kept = re.match(r"(?:\s*(?:\w+|[^\w\s])){0,%d}" % limit, answer.text)
    return Answer(text=kept[0] if kept else "", finish_reason="length", tokens_out=limit)
