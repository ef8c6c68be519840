"""Any Python function as a reward: `path: module:function`, called as function(messages, answer).

It gives a number in [0, 1], higher is better, or None; it may be async. What it raises, and a
number that is not finite or not in range, is a score of None with the reason.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

from .. import plugins
from ..errors import SettingsError
from ..settings import Settings as PluginSettings
from ..text import digest, one_line
from ..types import Messages, Score
from . import Ask, RewardContext, missing


class Function:
    """A function of yours: module:function of (messages, answer)."""

    class Settings(PluginSettings):
        """Settings of the kind `python`."""

        path: str | None = None
        """module:function of (messages, answer), giving a number in [0, 1] or null."""

    pass_threshold: float | None = 0.5
    calibration = "identity"
    asks_model = False
    step = 0.0

    def __init__(self, dimension: str, options: Settings, context: RewardContext) -> None:
        if options.path is None:
            raise SettingsError(f"reward of {dimension}: python needs `path`, as module:function")
        plugin = plugins.load({}, options.path, f"rewards.{dimension}.path")
        self._function = plugin.target
        if not callable(self._function):
            raise SettingsError(
                f"rewards.{dimension}.path {options.path!r} is no function of (messages, answer)"
            )
        self.dimension = dimension
        self.name = f"python:{options.path}"
        self.fingerprint = digest("python", options.path, plugin.code_hash)

    async def scores(
        self, ask: Ask, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        return [await self._score(messages, a) for a in answers]

    async def _score(self, messages: Messages, answer: str) -> Score:
        try:
            value = self._function(messages, answer)
            value = await value if inspect.isawaitable(value) else value
        except plugins.FAULTS as e:  # whatever it is, it is this answer's
            return missing(self, f"raised {type(e).__name__}: {one_line(e, 100)}")
        if value is None:
            return missing(self, "none_given")
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            return missing(self, f"not_a_number: {type(value).__name__}")
        number = float(value)
        if not math.isfinite(number):
            return missing(self, "not_finite")
        if not 0 <= number <= 1:
            return missing(self, "out_of_range", number)
        return Score(self.dimension, self.name, number, number)
