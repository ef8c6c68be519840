"""Any Python function as a reward: `path: module:function`, called as function(messages, answer).

It gives a number in [0, 1], higher is better, or None; it may be async. What it raises, and a
number that is not finite or not in range, is a score of None with the reason.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Sequence

from ..errors import SettingsError
from ..settings import BuildSettings, RewardSettings
from ..text import digest
from ..types import Messages, Score
from .asking import Ask


class Function:
    """A function of yours: module:function of (messages, answer)."""

    floor: float | None = 0.5
    calibration = "identity"
    step = 0.0

    def __init__(self, dimension: str, settings: RewardSettings, build: BuildSettings) -> None:
        module, colon, name = (settings.path or "").partition(":")
        if not colon:
            raise SettingsError(
                f"reward of {dimension}: python needs `path`, as module:function, not"
                f" {settings.path!r}"
            )
        try:
            self._function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as e:
            raise SettingsError(f"reward of {dimension}: can't load {settings.path!r}: {e}") from e
        self.dimension = dimension
        self.name = f"python:{settings.path}"
        try:
            source = inspect.getsource(self._function)
        except (OSError, TypeError):
            source = ""
        self.fingerprint = digest("python", settings.path or "", source)

    async def scores(
        self, ask: Ask, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        return [await self._score(messages, a) for a in answers]

    async def _score(self, messages: Messages, answer: str) -> Score:
        try:
            value = self._function(messages, answer)
            value = await value if inspect.isawaitable(value) else value
        except Exception as e:  # whatever it is, it is this answer's
            return Score(
                self.dimension,
                self.name,
                None,
                None,
                f"raised {type(e).__name__}: {' '.join(str(e).split())[:100]}",
            )
        if value is None:
            return Score(self.dimension, self.name, None, None, "none_given")
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            return Score(
                self.dimension, self.name, None, None, f"not_a_number: {type(value).__name__}"
            )
        number = float(value)
        if not math.isfinite(number):
            return Score(self.dimension, self.name, None, None, "not_finite")
        if not 0 <= number <= 1:
            return Score(self.dimension, self.name, None, number, "out_of_range")
        return Score(self.dimension, self.name, number, number)
