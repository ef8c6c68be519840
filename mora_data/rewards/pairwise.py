"""A judge that compares: every answer against some of the prompt's other answers, each pair in both
orders.

A pair that comes out differently in the two orders is a tie. An answer's value is its win rate over
the games that could be read, ties half:

    value = (wins + ties / 2) / games, at least half of its games read; raw is the same number

So it says how an answer stands among those it was compared with, and nothing across prompts: no
floor. Equal answers play as one. The tournament is bounded: answers stand in a circle in the order
of the hash of their texts, and each meets its `opponents` nearest neighbours (half on each side;
everybody meets everybody where there are no more). That is n * opponents / 2 pairs, two calls each.
What each order said goes along (`Score.orders`): how often a judge names the same place twice is in
feedback.json. The circle is drawn anew for each call of `scores`: presamples of a later step, or
confirmations, are ranked among themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from ..resources import load_template, quoted
from ..run.tasks import all_of
from ..settings import Settings as PluginSettings
from ..text import digest
from ..types import Messages, Request, Score
from . import NO_OPPONENT, Ask, RewardContext, missing
from .judge import ask_verdict, texts_of, verdict_sampling

VARIABLES = frozenset(("question", "history", "first", "second", "nonce", "dimension"))


class Pairwise:
    """Win rate among the prompt's other answers, judged pair by pair in both orders."""

    class Settings(PluginSettings):
        """Settings of the kind `pairwise`."""

        template: str | None = None
        """A template in templates/judge/ (without .j2), or a path."""
        opponents: Annotated[int, Field(ge=2, le=64)] = 4
        """Other answers of the prompt that each answer is compared with."""

    pass_threshold: float | None = None
    calibration = "identity"

    def __init__(self, dimension: str, options: Settings, context: RewardContext) -> None:
        self.dimension, self._context = dimension, context
        self._template = load_template(
            "judge",
            options.template or "pairwise",
            VARIABLES,
            ["first", "second"],
            {"dimension": dimension},
        )
        self.name = f"pairwise:{self._template.name.rpartition('/')[2]}{context.suffix}"
        self._opponents = options.opponents
        self.step = 0.5 / options.opponents
        self.fingerprint = digest(self._template.sha256, str(options.opponents))
        self._sampling = verdict_sampling(context.model, 0, highest=2)

    async def scores(
        self, ask: Ask, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        texts = list(dict.fromkeys(answers))
        games = circle([digest(t) for t in texts], self._opponents)
        results = await all_of(
            self._game(ask, prompt_id, messages, texts[i], texts[j], purpose) for i, j in games
        )
        points: list[list[float]] = [[] for _ in texts]
        played = [0] * len(texts)
        reasons = [""] * len(texts)
        orders: list[list[tuple[int | None, int | None]]] = [[] for _ in texts]
        for (i, j), (said, reason) in zip(games, results, strict=True):
            won = (
                None if None in said else 1.0 if said == (1, 2) else 0.0 if said == (2, 1) else 0.5
            )
            orders[i].append(said)
            for side, share in ((i, won), (j, None if won is None else 1 - won)):
                played[side] += 1
                reasons[side] = reason or reasons[side]
                points[side] += [share] if share is not None else []
        if len(texts) == 1 < len(answers):
            points, played = [[0.5]], [1]  # they tie with each other
        found = {t: self._scored(points[i], played[i], reasons[i]) for i, t in enumerate(texts)}
        # a game is counted with one answer, whatever repeats it
        games_of = dict(zip(texts, map(tuple, orders), strict=True))
        return [replace(found[a], orders=games_of.pop(a, ())) for a in answers]

    def _scored(self, points: Sequence[float], played: int, reason: str) -> Score:
        if not played:
            return missing(self, NO_OPPONENT)
        if 2 * len(points) < played:
            return missing(self, reason)
        value = sum(points) / len(points)
        return Score(self.dimension, self.name, value, value)

    async def _game(
        self, ask: Ask, prompt_id: str, messages: Messages, a: str, b: str, purpose: str
    ) -> tuple[tuple[int | None, int | None], str]:
        """The better place when `a` stands first, and when it stands second; with the reason where
        one could not be read."""
        (one, why), (two, why_two) = await all_of(
            self._order(ask, prompt_id, messages, first, second, purpose)
            for first, second in ((a, b), (b, a))
        )
        return (one, two), why or why_two

    async def _order(
        self, ask: Ask, prompt_id: str, messages: Messages, first: str, second: str, purpose: str
    ) -> tuple[int | None, str]:
        asked = self._template.render(
            {
                **quoted(self._context.secret, messages, first=first, second=second),
                "dimension": self.dimension,
            }
        )
        level, reason, _ = await ask_verdict(
            ask,
            Request(self._context.role, asked, self._sampling, purpose, prompt_id),
            texts_of(messages, first, second),
            0,
            2,
        )
        return level, reason


def circle(names: Sequence[str], opponents: int) -> list[tuple[int, int]]:
    """Pairs of positions that meet: each with its neighbours up to `opponents` / 2 places on, in
    the order of the names."""
    order = sorted(range(len(names)), key=lambda i: (names[i], i))
    n = len(order)
    found = {
        tuple(sorted((order[k], order[(k + step) % n])))
        for k in range(n)
        for step in range(1, opponents // 2 + 1)
    }
    return sorted((i, j) for i, j in found if i != j)
