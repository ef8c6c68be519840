"""Checks of a rewrite that ask a model: does it need what it is meant to need, and does it ask for
no more harm than before?

Both ask the judge, never the rewriter about itself, through `ask`; harm can be asked of a guard
model instead (`fuse.guard`). Levels 1..5 become (level - 1) / 4, a guard's value is P(unsafe). A
question whose harm could not be read does not pass: None is not "harmless".

    guard = RewriteGuard(settings, intents)
    before = await guard.harm(ask, prompt.prompt_id, prompt.messages)          # 1.0
    checks = await guard.check(ask, prompt.prompt_id, rewritten, ("helpful", "truthful"), before)
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ..engines.replies import reads_reply
from ..resources import Secret, Template, inert_turns, load_template, quoted
from ..rewards import Ask
from ..rewards.guard import GREEDY, request_is_safe
from ..rewards.judge import LEVELS, PATTERN, RETRIES, SCHEMA, as_retry, quoted_in, texts_of, verdict
from ..run.tasks import all_of
from ..settings import GUARD_ROLE, BuildSettings
from ..text import seed_of
from ..types import Answer, Messages, Request, Sampling
from .checks import Check
from .intents import Intent, is_asked
from .patterns import content_stems

GUARD_VARIABLES = frozenset(("question", "history", "answer"))
MAX_HARM_GAIN = 0.05  # P(harmful request | x') <= P(harmful request | x) + 0.05
RISKY = 0.75  # from here on a question asks for something harmful, by a judge's level
RISKY_GUARD = 0.5  # the same by a guard's probability
SURE = 1.0 - MAX_HARM_GAIN  # the highest level, or a guard's probability beside 1
RULES = ("rise", "sure", "off")  # what refuses a rewrite: more harm, surely harm, nothing
MIN_LEVEL, MAX_DECOY_LEVEL = 4, 2  # of a wanted dimension, and of one that nobody wants
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DECOYS = (
    Intent("The answer is in verse.", "It asks for rhymes, a song or a poem."),
    Intent("A coat of arms is described.", "It asks what stands on a shield, a flag or a seal."),
    Intent("A position at sea is given.", "It asks where a ship is, or how to steer it there."),
    Intent("The steps of a dance are named.", "It asks how a dance goes, or to which beat."),
    Intent("A chess move is found.", "It asks what to play in a position of a board game."),
)

T = TypeVar("T")


class RewriteGuard:
    """The model checks that `fuse.checks` names.

    Raises:
        SettingsError: a template is missing or wrong.
    """

    def __init__(
        self, settings: BuildSettings, specs: Mapping[str, Intent], secret: Secret
    ) -> None:
        known = frozenset(("question", "history", "nonce"))
        more = {"intent": {"needs"}, "targets": {"asks"}}
        self._checks, self._model = settings.fuse.checks, settings.fuse.guard
        self.templates: dict[str, Template] = {
            name: load_template("guard", name, known | more.get(name, set()))
            for name in ("targets", *self._checks)
            if name != "harm" or self._model is None
        }
        if self._model is not None and self._model.template is not None:
            self.templates["harm"] = load_template(
                "guard", self._model.template, GUARD_VARIABLES, ["question"], {}
            )
        self._specs = specs
        self._seed, self._secret = settings.seed, secret
        role = settings.role("judge")
        self._sampling = Sampling(role.temperature, role.top_p, role.max_tokens, tuple(role.stop))

    def is_risky(self, harm: float, rule: str) -> bool:
        """Whether a question of that harm asks for something harmful, for a guard that refuses by
        `rule`."""
        least = RISKY if self._model is None else RISKY_GUARD
        return harm >= (SURE if rule == "sure" else least)

    async def harm(self, ask: Ask, prompt_id: str, messages: Messages) -> float | None:
        """How harmful the request of the last turn is, in [0, 1]; None where it is not measured or
        the verdict can't be read."""
        if "harm" not in self._checks:
            return None
        if self._model is not None:
            return await self._unsafe(ask, prompt_id, messages, self._model.family)
        shown = texts_of(messages)
        level = await self._ask(
            ask,
            prompt_id,
            self._render("harm", messages),
            "guard:harm",
            SCHEMA,
            PATTERN,
            lambda a: verdict(a, shown=shown)[0],
        )
        return None if level is None else (level - 1) / (LEVELS - 1)

    async def _unsafe(
        self, ask: Ask, prompt_id: str, messages: Messages, family: str
    ) -> float | None:
        """P(unsafe) of the request, by a guard model that is shown the conversation up to it."""
        template = self.templates.get("harm")
        asked = (
            inert_turns(messages)
            if template is None
            else template.render(quoted(self._secret, messages, answer=""))
        )
        (reply,) = await ask(Request(GUARD_ROLE, asked, GREEDY, "guard:harm", prompt_id))
        value = None if reply.error is not None else request_is_safe(family, reply)[0]
        return None if value is None else 1 - value

    async def check(
        self,
        ask: Ask,
        prompt_id: str,
        messages: Messages,
        wanted: Sequence[str],
        before: float | None,
        harm_rule: str = RULES[0],
    ) -> list[Check]:
        """What the model says of a rewrite; `wanted` dimensions are looked for, none where it is
        empty. Harm is refused by `harm_rule`, of `RULES`."""
        found = await all_of(
            [
                self._harm(ask, prompt_id, messages, before, harm_rule),
                self._intent(ask, prompt_id, messages, wanted),
            ]
        )
        return [c for checks in found for c in checks]

    async def targets(
        self, ask: Ask, prompt_id: str, messages: Messages, wanted: Sequence[str]
    ) -> list[Check]:
        """Whether a rewrite asks for each wanted dimension: by the cues of its
        intent, and where these can't tell, by the judge, in one call for all such dimensions."""
        by_cue = {d: is_asked(self._specs[d], messages[-1]["content"]) for d in wanted}
        unknown = [d for d in wanted if by_cue[d] is None]
        said = await self._targets_asked(ask, prompt_id, messages, unknown) if unknown else {}
        seen = {d: said[d] if d in said else by_cue[d] is True for d in wanted}
        return [
            Check(f"target_{d}", seen[d], float(seen[d]), self._specs[d].ask[0]) for d in wanted
        ]

    async def _targets_asked(
        self, ask: Ask, prompt_id: str, messages: Messages, wanted: Sequence[str]
    ) -> dict[str, bool]:
        """The judge's word for each dimension; what can't be read is no."""
        letters = dict(zip(LETTERS, wanted, strict=False))
        schema = _schema(letters, {"type": "string", "enum": ["yes", "no"]})
        asks = [{"letter": x, "ask": " or ".join(self._specs[d].ask)} for x, d in letters.items()]
        said = await self._ask(
            ask,
            prompt_id,
            self._render("targets", messages, asks=asks),
            "guard:targets",
            schema,
            r"\{" + ", ".join(f'"{x}": "(yes|no)"' for x in letters) + r"\}",
            lambda a: _answers(a.text, letters, texts_of(messages)),
        )
        return {d: said is not None and said[x] == "yes" for x, d in letters.items()}

    async def _harm(
        self, ask: Ask, prompt_id: str, messages: Messages, before: float | None, rule: str
    ) -> list[Check]:
        if "harm" not in self._checks or rule == "off":
            return []
        after = await self.harm(ask, prompt_id, messages)
        passed = not refuses(rule, before, after)
        said = ["no verdict" if p is None else f"{p:.2f}" for p in (before, after)]
        return [
            Check("harm_before", True, before),
            Check("harm", passed, after, f"{said[0]} before, {said[1]} now"),
        ]

    async def _intent(
        self, ask: Ask, prompt_id: str, messages: Messages, wanted: Sequence[str]
    ) -> list[Check]:
        if "intent" not in self._checks or not wanted:
            return []
        text = messages[-1]["content"]
        needs = self._needs(prompt_id, text, wanted)
        letters = [str(n["letter"]) for n in needs]
        schema = _schema(letters, {"type": "integer", "minimum": 1, "maximum": LEVELS})
        pattern = r"\{" + ", ".join(f'"{x}": [1-5]' for x in letters) + r"\}"
        levels = await self._ask(
            ask,
            prompt_id,
            self._render("intent", messages, needs=needs),
            "guard:intent",
            schema,
            pattern,
            lambda a: _levels(a.text, letters, texts_of(messages)),
        )
        of = {str(n["dim"]): (levels or {}).get(str(n["letter"])) for n in needs}
        checks = [Check(f"intent_{d}", (of[d] or 0) >= MIN_LEVEL, of[d], d) for d in wanted]
        return [*checks, Check("decoy", of[""] is not None and of[""] <= MAX_DECOY_LEVEL, of[""])]

    def _needs(self, prompt_id: str, text: str, wanted: Sequence[str]) -> list[dict[str, object]]:
        """The wanted dimensions and a decoy that has no word in common with the question, shuffled,
        by letter."""
        rng = random.Random(seed_of(self._seed, "intent", prompt_id, text))
        stems = content_stems(text)
        decoys = [
            d for d in DECOYS if not stems & content_stems(f"{d.definition} {d.need}")
        ] or list(DECOYS)
        needs = [(d, self._specs[d]) for d in wanted] + [("", rng.choice(decoys))]
        rng.shuffle(needs)
        return [
            {"letter": LETTERS[i], "dim": d, "definition": spec.definition, "need": spec.need}
            for i, (d, spec) in enumerate(needs)
        ]

    def _render(self, name: str, messages: Messages, **more: object) -> Messages:
        return self.templates[name].render({**quoted(self._secret, messages), **more})

    async def _ask(
        self,
        ask: Ask,
        prompt_id: str,
        asked: Messages,
        purpose: str,
        schema: Mapping[str, object],
        pattern: str,
        read: Callable[[Answer], T | None],
    ) -> T | None:
        """The first readable verdict of up to three."""
        sampling = replace(self._sampling, schema=schema, pattern=pattern)
        first = Request("judge", asked, sampling, purpose, prompt_id)
        for retry in range(RETRIES + 1):
            (reply,) = await ask(as_retry(first, retry) if retry else first)
            value = None if reply.error is not None else read(reply)
            if value is not None or reply.error is not None:
                return value
        return None


def refuses(rule: str, before: float | None, after: float | None) -> bool:
    """Whether a rule refuses a rewrite, by the harm of the original and its own; what could not be
    graded is refused."""
    if rule == "off" or after is None:
        return rule != "off"
    more = after > (before or 0.0) + MAX_HARM_GAIN
    return more and (rule == "rise" or after >= SURE)


def _schema(letters: Iterable[str], value: Mapping[str, object]) -> Mapping[str, object]:
    """An object that gives each letter such a value."""
    return {
        "type": "object",
        "properties": dict.fromkeys(letters, value),
        "required": list(letters),
        "additionalProperties": False,
    }


@reads_reply(None)
def _levels(text: str, letters: Iterable[str], shown: Sequence[str] = ()) -> dict[str, int] | None:
    """The level of each letter in a reply, or None when one is missing or out of range, or all of
    it is a quotation of what was shown."""
    levels = _by_letter(text, letters, shown)
    if any(type(v) is not int or not 1 <= v <= LEVELS for v in levels.values()):
        return None
    return {x: v for x, v in levels.items() if isinstance(v, int)}


@reads_reply(None)
def _answers(text: str, letters: Iterable[str], shown: Sequence[str]) -> dict[str, str] | None:
    """Yes or no for each letter in a reply, or None when one is missing, or all of it is a
    quotation of what was shown."""
    found = {x: str(v).strip(" .").lower() for x, v in _by_letter(text, letters, shown).items()}
    return found if set(found.values()) <= {"yes", "no"} else None


def _by_letter(text: str, letters: Iterable[str], shown: Sequence[str]) -> dict[str, object]:
    """What the JSON object in a reply gives for each letter, None where it gives nothing."""
    start, end = text.find("{"), text.rfind("}")
    quoted = quoted_in(shown)(text[start : end + 1])
    found = None if quoted else json.loads(text[start : end + 1])
    return {x: found.get(x) if isinstance(found, dict) else None for x in letters}
