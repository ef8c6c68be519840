"""Ratings that the source row already carries for its answers: `column` names one of them.

    rewards: {helpful: [{kind: precomputed, column: helpfulness, range: [1, 5]}]}

value = (x - low) / (high - low); raw is x, or -x where `invert` says that higher is worse. Only
answers of the source have ratings, so this goes with `--engine recorded`. A rating is what it is:
asking for it again gives the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import SettingsError
from ..settings import Settings as PluginSettings
from ..text import digest
from ..types import Messages, Score
from . import NOT_RATED, Ask, RewardClient, RewardContext, missing


class Precomputed:
    """A rating of the source row."""

    class Settings(PluginSettings):
        """Settings of the kind `precomputed`."""

        column: str | None = None
        """Name of the rating in the source row."""
        range: tuple[float, float] | None = None
        """Lowest and highest value of the rating's scale."""
        invert: bool = False
        """Higher is worse."""

    pass_threshold: float | None = 0.75
    calibration = "identity"
    asks_model = False

    def __init__(self, dimension: str, options: Settings, context: RewardContext) -> None:
        if not options.column or not options.range or options.range[0] >= options.range[1]:
            raise SettingsError(
                f"reward of {dimension}: precomputed needs `column` and a rising `range`, as in "
                "column: helpfulness, range: [1, 5]"
            )
        if not context.recorded:
            raise SettingsError(
                f"reward of {dimension}: a precomputed rating belongs to the source's own answers: "
                "give --engine recorded"
            )
        self.dimension = dimension
        self._column = options.column
        self._low, self._high = options.range
        self._invert = options.invert
        self.name = f"precomputed:{options.column}"
        # ratings are whole numbers, if wide
        self.step = 1 / (self._high - self._low) if self._high - self._low >= 1 else 0.0
        self.fingerprint = digest(
            "precomputed", options.column, str(options.range), str(options.invert)
        )

    async def scores(
        self, ask: Ask, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        ratings = ask.ratings if isinstance(ask, RewardClient) else {}
        return [self._score(ratings.get(a, {}).get(self._column)) for a in answers]

    def _score(self, x: float | None) -> Score:
        if x is None:
            return missing(self, NOT_RATED)
        if not math.isfinite(x):
            return missing(self, "not_finite")
        raw = -x if self._invert else x
        if not self._low <= x <= self._high:
            return missing(self, "out_of_range", raw)
        value = (x - self._low) / (self._high - self._low)
        return Score(self.dimension, self.name, 1 - value if self._invert else value, raw)
