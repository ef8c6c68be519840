"""The engine `scripted`: no server, no waiting, the same log and keys as any other.

A prompt's kind (flat, one_dim, conflict, multi) follows from its own words; the policy draws a
quality level 1..5 per dimension from the kind's distribution and writes it into text; the judge
reads that text. In the world "planted" a question that asks for several virtues is `multi`; in the
null world the clauses that a fusion adds change nothing.

    Simulator(settings, seed=0).answer(request, base_seed)
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from ..engines.engine import OnRecord, Shared, n_per_request
from ..errors import SettingsError
from ..run.log import Record
from ..run.stats import RunStats
from ..settings import REWARD_ROLE, BuildSettings, RoleSettings, ScriptedSettings
from ..text import n_tokens
from ..types import Answer, Messages, Request
from . import BANKS, SENTENCES
from .language import DIMENSIONS, Reading, base_level, clip, interpret, level_of, rewrite

MODEL = "scripted-1"
CHARS_PER_TOKEN = 4
JUDGE_NOISE = 0.35  # standard deviation, in levels, before rounding
GUARD_NOISE = 0.15
UNREADABLE_SHARE = 0.005  # verdicts that are prose
_YIELD_EVERY = 32

_DIMENSION = re.compile(r"^Dimension:[ \t]*(\w+)", re.M | re.I)
_TOGETHER = re.compile(r'\{("\w+": n(?:, "\w+": n)+)\}')
_CHECK = re.compile(r"^Check:[ \t]*(harm|intent|targets)$", re.M)
_YES_NO = re.compile(r"^0 = .*\n+1 = |^1 = .*\n+0 = ", re.M)
_LETTERED = re.compile(r"^([A-Z]): (.+)$", re.M)
_NEED_CUES = {
    "helpful": ("something to act on", "a good way to"),
    "harmless": ("Nobody is hurt", "could go wrong"),
    "truthful": ("What is claimed is right", "is it true"),
    "verse": ("in verse",),
    "arms": ("coat of arms",),
    "sea": ("at sea",),
    "dance": ("of a dance",),
    "chess": ("chess move",),
}
_TOKEN = re.compile(r"\w+|[^\w\s]")  # as text.n_tokens counts
_CLOSING = re.compile(r"</\w+-([a-z]{4,})>")

Write = Callable[[random.Random], Answer]


def open_simulator(
    role: RoleSettings, build: BuildSettings, stats: RunStats, shared: Shared
) -> Simulator:
    """The embedded simulator: no model, no download; for --sample, tests and demos."""
    return Simulator(build.scripted, build.seed, stats, n_per_request(role), role.revision)


class Simulator:
    """Answers at once, in this process. Sample i of a request depends on its messages, sampling,
    role and `base_seed + i` alone.

    Attributes:
        fusion_counts: false in the null world.
    """

    simulated = True
    wants_more = True

    def __init__(
        self,
        settings: ScriptedSettings,
        seed: int,
        stats: RunStats | None = None,
        n_per_request: int = 1 << 30,
        revision: str | None = None,
    ) -> None:
        self.n_per_request, self.revision = n_per_request, revision
        self.model = f"{MODEL}/{settings.world or 'null'}"
        self.extra: Mapping[str, Any] = {}
        self.fusion_counts = settings.world is not None
        self._seed, self._stats = seed, stats or RunStats()

    async def send(
        self, request: Request, request_bytes: bytes, seed: int, on_record: OnRecord
    ) -> Record:
        if request.task != "chat":
            raise SettingsError(
                f"the simulator is no classifier, and {request.role} asks for one: give the reward"
                " an `endpoint`"
            )
        self._stats.simulated += 1
        role = "judge" if request.role.startswith(REWARD_ROLE) else request.role
        answers = self.answer(replace(request, role=role), seed)
        tokens_in = sum(len(m["content"]) for m in request.messages) // CHARS_PER_TOKEN
        record = Record(
            request.n, tuple(answers), (tokens_in, sum(a.tokens_out for a in answers), 0)
        )
        on_record(record)
        if self._stats.simulated % _YIELD_EVERY == 0:
            await asyncio.sleep(0)
        return record

    async def changed(self) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        return None

    def answer(self, request: Request, base_seed: int) -> list[Answer]:
        """`request.n` answers, of indices `request.first` and on."""
        write = self._writer(request)
        salt = _salt(request, self._seed)
        return [
            _cut(write(random.Random(salt ^ ((base_seed + i) * 0x9E3779B97F4A7C15))), request)
            for i in range(request.first, request.first + request.n)
        ]

    def _writer(self, request: Request) -> Write:
        messages = request.messages
        if request.role in ("judge", "heldout_judge"):
            return self._judge(messages)
        if request.role == "rewriter":
            return lambda rng: _whole(rewrite(messages, rng))
        reading = interpret(messages[-1]["content"], self.fusion_counts)
        return lambda rng: _policy(reading, rng)

    def _judge(self, messages: Messages) -> Write:
        rubric, asked = messages[0]["content"], messages[-1]["content"]
        if checked := _CHECK.search(rubric):
            return _guard(checked[1], asked)
        if together := _TOGETHER.search(rubric):
            return self._verdicts(re.findall(r'"(\w+)"', together[1]), asked)
        # in the user's turn the template's own stands last
        named = _DIMENSION.findall(rubric)[:1] or _DIMENSION.findall(asked)[-1:]
        dimension = named[0].lower() if named else "helpful"
        question, answer, _ = _judged(asked)
        level = level_of(answer, interpret(question, self.fusion_counts), dimension)
        yes_no = _YES_NO.search(rubric) is not None
        return lambda rng: _verdict(level, dimension, rng, yes_no=yes_no)

    def _verdicts(self, dimensions: list[str], asked: str) -> Write:
        """A score in each dimension, in one reply."""
        question, answer, _ = _judged(asked)
        reading = interpret(question, self.fusion_counts)
        levels = {d: level_of(answer, reading, d) for d in dimensions}

        def write(rng: random.Random) -> Answer:
            if rng.random() < UNREADABLE_SHARE:
                return _whole("This answer has strengths and weaknesses.")
            seen = {d: clip(level + rng.gauss(0, JUDGE_NOISE)) for d, level in levels.items()}
            return _whole(json.dumps(seen))

        return write


def draw_levels(reading: Reading, rng: random.Random) -> dict[str, int]:
    """Quality levels 1..5 of one answer, by dimension, from the distribution of the prompt's
    kind."""
    taste = random.Random(reading.key)
    skill = taste.uniform(-0.4, 0.4)
    varying = {"flat": (), "conflict": ("helpful", "harmless")}.get(reading.kind, reading.needs)
    neglected = _neglected(reading, varying, taste)
    levels = {}
    for d in DIMENSIONS:  # where this prompt's answers hardly differ
        usual = rng.random() < 0.93
        levels[d] = (1 + usual) if d == neglected else (4 + usual)
    if reading.kind == "multi":
        common = rng.gauss(0, 0.9)
        levels.update({d: clip(3.4 + skill + common + rng.gauss(0, 0.9)) for d in varying})
    elif reading.kind == "conflict":
        levels["helpful"], levels["harmless"] = _at_odds(rng, skill)
    elif reading.kind == "one_dim":
        levels[varying[0]] = clip(3 + 2 * skill + rng.gauss(0, 1.3))
    return levels


def _neglected(reading: Reading, varying: tuple[str, ...], taste: random.Random) -> str | None:
    """The dimension that answers to a single-reward prompt neglect, if any: its words do not ask
    for it."""
    if reading.kind in ("multi", "conflict"):
        return None
    if reading.risky:
        return "helpful"
    shares = {"truthful": 6, "helpful": 4, "harmless": 3 if reading.hands_on else 0, None: 1}
    others = [d for d in shares if d not in varying]
    return taste.choices(others, [shares[d] for d in others])[0]


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
    return _whole(text)


def write(reading: Reading, levels: Mapping[str, int], rng: random.Random) -> str:
    """An answer whose words show these levels to the judge."""
    if reading.risky and levels["helpful"] == 1 and levels["harmless"] >= 4:
        refusal = rng.choice(SENTENCES["refusals"])
        safest = levels["harmless"] == 5
        return f"{refusal} {rng.choice(SENTENCES['redirects'])}" if safest else refusal
    body = _steps(reading, levels["helpful"], rng)
    safe = "safe_risky" if reading.risky else "safe" if reading.hands_on else "safe_talk"
    caution = _marked("harmless", (safe, "careless", "reckless"), reading, levels, rng)
    honesty = _marked("truthful", ("sourced", "bold", "invented"), reading, levels, rng)
    fillers = SENTENCES[
        "fillers_risky" if reading.risky else "fillers" if reading.form == "how" else "fillers_talk"
    ]
    padding = rng.choice((0, 0, 1, 1, 2, 3)) + (rng.randint(1, 4) if levels["helpful"] <= 2 else 0)
    blocks = [body, honesty, rng.sample(fillers, padding), caution]
    if rng.random() < 0.3:
        rng.shuffle(blocks)
    blocks = [[rng.choice(SENTENCES["leads"])], *blocks]
    if len(body) < 3 or rng.random() < 0.7:
        return " ".join(s for block in blocks for s in block if s)
    numbered = "\n".join(f"{i}. {s}" for i, s in enumerate(body, 1))
    return "\n\n".join(filter(None, (numbered if b is body else " ".join(b) for b in blocks)))


def _steps(reading: Reading, level: int, rng: random.Random) -> list[str]:
    """`level - 1` sentences that name the subject and say what to do, or why."""
    if level <= 1:
        return [rng.choice(SENTENCES["aloof"])]
    if reading.risky:
        bank = "shelter" if "helpful" in reading.needs else "blanks"
    elif reading.act:
        bank = "steps"
    else:
        bank = "reasons" if reading.claim else "explains"
    sentences = [s.format(x=reading.topic) for _, s in rng.sample(BANKS[bank], level - 1)]
    return [s[:1].upper() + s[1:] for s in sentences]


def _marked(
    dimension: str,
    banks: tuple[str, str, str],
    reading: Reading,
    levels: Mapping[str, int],
    rng: random.Random,
) -> list[str]:
    """Sentences that move the judge's reading of a dimension to its level, from the banks (good,
    mild, strong); a strong one counts two down."""
    delta = levels[dimension] - base_level(reading, dimension)
    good, mild, strong = (BANKS[name] for name in banks)
    if delta >= 0:
        return [s for _, s in rng.sample(good, delta)]
    drawn = [*rng.sample(strong, -delta // 2), *rng.sample(mild, -delta % 2)]
    return [s for _, s in drawn]


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


def _guard(check: str, asked: str) -> Write:
    """What the judge finds in a question alone, by its words in any world: how harmful it is, or
    what it needs."""
    question, _, rest = _judged(asked)
    reading = interpret(question, True)
    if check == "harm":
        level = (2 if "helpful" in reading.needs else 5) if reading.risky else 1
        return lambda rng: _verdict(level, check, rng, GUARD_NOISE)
    if check == "targets":
        asks = {letter: _needed(text, reading) > 2 for letter, text in _LETTERED.findall(rest)}
        said = json.dumps({letter: "yes" if yes else "no" for letter, yes in asks.items()})
        return lambda rng: _whole(said)
    needs = {letter: _needed(text, reading) for letter, text in _LETTERED.findall(rest)}
    return lambda rng: _whole(
        json.dumps({letter: clip(n + rng.gauss(0, GUARD_NOISE)) for letter, n in needs.items()})
    )


def _needed(need: str, reading: Reading) -> int:
    """Level at which the question needs what a line of the intent check describes; a dimension of
    the user's own always."""
    named = next((d for d, cues in _NEED_CUES.items() if any(c in need for c in cues)), "")
    if named in DIMENSIONS:
        return 5 if named in reading.needs else 2
    return 1 if named else 5


def _judged(text: str) -> tuple[str, str, str]:
    """Question and answer of a judge message, and what stands below: between their tags, else the
    whole text is the answer."""
    closing = list(_CLOSING.finditer(text))
    if not closing:
        return "", text, ""
    # the template's own: what the answer may hold of the kind stands before it
    nonce, end = closing[-1][1], closing[-1].end()
    return _between(text, "question", nonce), _between(text, "answer", nonce), text[end:]


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
    for nonce in sorted(set(_CLOSING.findall(text))):  # two runs of the same prompts draw the same
        text = re.sub(rf"\b{nonce}\b", "", text)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _whole(text: str) -> Answer:
    return Answer(text=text, tokens_out=n_tokens(text))


def _cut(answer: Answer, request: Request) -> Answer:
    """The answer as the request's stop strings and token limit leave it."""
    text, limit = answer.text, request.sampling.max_tokens
    ends = [at for s in request.sampling.stop if (at := text.find(s)) >= 0]
    if ends:
        answer = _whole(text[: min(ends)])
    if answer.tokens_out <= limit:
        return answer
    *_, last = islice(_TOKEN.finditer(answer.text), limit)
    return Answer(text=answer.text[: last.end()], finish_reason="length", tokens_out=limit)
