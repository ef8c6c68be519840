"""A rubric list: weighted criteria, each judged in a call of its own, met or not or on five levels.

    value = sum w v / sum w, with v in {0, 1} (yes_no) or (s - 1) / 4 (levels); raw is the same
    number.

A criterion that cannot be read leaves the answer without a score: a mean over the others would be
another rubric's. The judge's replies are read as in `judge`; yes is {"score": 1}, no {"score": 0}.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from ..errors import SettingsError
from ..resources import load_template, quoted
from ..run.tasks import all_of
from ..settings import Settings as PluginSettings
from ..text import digest
from ..types import Messages, Request, Score
from . import Ask, RewardContext, missing
from .judge import LEVELS, ask_verdict, is_fresh, texts_of, verdict_sampling

VARIABLES = frozenset(
    ("question", "history", "answer", "nonce", "reverse", "dimension", "criterion", "scale")
)


class Criterion(PluginSettings):
    """One criterion of a rubric list."""

    text: str
    """What a good answer does, as a statement."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight among the criteria."""
    scale: Literal["yes_no", "levels"] = "yes_no"
    """yes_no: met or not; levels: 1 to 5."""


class Rubric:
    """Weighted criteria, one call each."""

    class Settings(PluginSettings):
        """Settings of the kind `rubric`."""

        template: str | None = None
        """A template in templates/judge/ (without .j2), or a path."""
        criteria: tuple[Criterion, ...] = ()
        """What is judged, one call each."""

    pass_threshold: float | None = 0.75
    calibration = "identity"

    def __init__(self, dimension: str, options: Settings, context: RewardContext) -> None:
        if not options.criteria:
            raise SettingsError(
                f"rubric of {dimension}: give `criteria`, a list of {{text: ..., weight: ...}}"
            )
        self.dimension, self._context = dimension, context
        self._criteria = options.criteria
        self._template = load_template(
            "judge",
            options.template or "rubric",
            VARIABLES,
            ["answer", "criterion"],
            {"dimension": dimension, "scale": "levels"},
        )
        self.name = f"rubric:{len(options.criteria)}{context.suffix}"
        weights = [c.weight / (1 if c.scale == "yes_no" else LEVELS - 1) for c in options.criteria]
        self.step = min(weights) / math.fsum(c.weight for c in options.criteria)
        self.fingerprint = digest(
            self._template.sha256, *(f"{c.text} {c.weight} {c.scale}" for c in options.criteria)
        )

    async def scores(
        self, ask: Ask, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        return await all_of(self._score(ask, prompt_id, messages, a, purpose) for a in answers)

    async def _score(
        self, ask: Ask, prompt_id: str, messages: Messages, answer: str, purpose: str
    ) -> Score:
        found = await all_of(
            self._one(ask, prompt_id, messages, answer, purpose, c) for c in self._criteria
        )
        for k, (value, reason) in enumerate(found, 1):
            if value is None:
                return missing(self, f"criterion {k}: {reason}")
        total = math.fsum(c.weight for c in self._criteria)
        value = (
            math.fsum(
                c.weight * v
                for c, (v, _) in zip(self._criteria, found, strict=True)
                if v is not None
            )
            / total
        )
        return Score(self.dimension, self.name, value, value)

    async def _one(
        self,
        ask: Ask,
        prompt_id: str,
        messages: Messages,
        answer: str,
        purpose: str,
        criterion: Criterion,
    ) -> tuple[float | None, str]:
        lowest, highest = (0, 1) if criterion.scale == "yes_no" else (1, LEVELS)
        asked = self._template.render(
            {
                **quoted(self._context.secret, messages, answer=answer),
                "dimension": self.dimension,
                "criterion": criterion.text,
                "scale": criterion.scale,
                "reverse": is_fresh(purpose),
            }
        )
        request = Request(
            self._context.role,
            asked,
            verdict_sampling(self._context.model, lowest, highest=highest),
            purpose,
            prompt_id,
        )
        level, reason, _ = await ask_verdict(
            ask, request, texts_of(messages, answer), lowest, highest
        )
        return (None, reason) if level is None else ((level - lowest) / (highest - lowest), "")
