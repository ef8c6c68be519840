"""Rewards without a model, for tests of calibration and noise; named by `rewards.<dim>[].kind:
support.fake_rewards:Offset`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

from mora_data.types import Messages, Score


def uniform(*parts: str) -> float:
    """A number in [0, 1) that the texts alone decide."""
    return int.from_bytes(hashlib.sha256("\x1f".join(parts).encode()).digest()[:6], "big") / 2**48


class Offset:
    """A Bradley-Terry score: what the answer is worth plus an offset of the prompt, on no absolute
    scale."""

    calibration = "anchored"
    pass_threshold: float | None = None
    step = 0.0
    noise = 0.1

    def __init__(self, dimension: str, options: Any, context: Any) -> None:
        self.dimension, self.name, self.fingerprint = (
            dimension,
            type(self).__name__.lower(),
            type(self).__name__,
        )

    def raw(self, prompt_id: str, answer: str, purpose: str) -> float | None:
        """The score; fresh measurements differ by noise."""
        fresh = (
            self.noise * (uniform(purpose, answer) - 0.5)
            if not purpose.startswith("score")
            else 0.0
        )
        return 20 * uniform(prompt_id) + len(answer.split()) / 10 + fresh

    async def scores(
        self, ask: Any, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        found = [self.raw(prompt_id, a, purpose) for a in answers]
        return [Score(self.dimension, self.name, None, r, "uncalibrated") for r in found]


class Ranked(Offset):
    """The same without its offset, mapped by rank; some answers have no number."""

    calibration = "ecdf"
    pass_threshold = 0.3
    bad: ClassVar[list[float | None]] = [float("nan"), float("inf"), None]

    def raw(self, prompt_id: str, answer: str, purpose: str) -> float | None:
        draw = uniform("bad", answer)
        return self.bad[int(draw * 300)] if draw < 0.01 else len(answer.split()) / 10


class Level(Offset):
    """Values of its own, 0 to 1 by the answer's text."""

    calibration = "identity"
    pass_threshold = 0.3
    shift = 0.0  # tests move it for one end of the run

    def value(self, prompt_id: str, answer: str, purpose: str) -> float:
        """The score."""
        moved = self.shift if "canary:end" in purpose else 0.0
        return min(max(0.1 + 0.8 * uniform(answer) + moved, 0.0), 1.0)

    async def scores(
        self, ask: Any, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        return [
            Score(self.dimension, self.name, self.value(prompt_id, a, purpose)) for a in answers
        ]


class Dice(Level):
    """A scorer that throws dice: two measurements have nothing in common."""

    pass_threshold = 0.0

    def value(self, prompt_id: str, answer: str, purpose: str) -> float:
        return uniform(purpose, answer)
