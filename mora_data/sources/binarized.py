"""HuggingFaceH4/ultrafeedback_binarized, turns of {role, content}, and its relatives:

    {"prompt": "...", "prompt_id": "...", "chosen": [...], "rejected": [...], "messages": [...],
     "score_chosen": 8.0, "score_rejected": 6.5}

The rows are read as the layout `preference` (layouts.py): the context is `chosen` without its last
turn; sides that are plain texts answer `prompt`. Left out: context_mismatch (the sides differ
before the reply, or `prompt` is none of the user turns), turns out of order, unreadable or empty
text. Noted: tie (equal scores), score_missing, and defects of the replies. The rows carry no topic:
one stratum, no priors. Split `train` is read as `train_prefs`.
"""

from __future__ import annotations

from ..errors import SettingsError
from ..settings import SourceSettings
from ..types import Recorded, Row
from . import ParsedRow, prompt_in
from .layouts import preference

_WITHDRAWN = "292c1632"  # scored before the overall_score bug of UltraFeedback was repaired
_SHORT = {"train": "train_prefs", "test": "test_prefs"}


class UltraFeedbackBinarized:
    """Rows of the `_prefs`, `_sft` and `_gen` splits, which share their columns."""

    required = (frozenset({"prompt", "chosen", "rejected"}),)
    absolute = True
    sft = ""

    def __init__(self, settings: SourceSettings) -> None:
        if (settings.revision or "").startswith(_WITHDRAWN):
            raise SettingsError(
                f"source.revision {settings.revision} holds wrong scores: use a later commit"
            )
        self._split = _SHORT.get(settings.split, settings.split)

    def files(self) -> list[str]:
        """`data/<split>-00000-of-0000N-<hash>.parquet`."""
        return [f"data/{self._split}-*.parquet"]

    def parse(self, row: Row, file: str) -> ParsedRow:
        """The context that both sides share."""
        if not isinstance(row.get("prompt"), list):
            prompt_in(row, "prompt")
        return preference({k: v for k, v in row.items() if k != "messages"})

    def recorded(self, row: Row) -> tuple[Recorded, ...]:
        """Both replies with their overall score of 1 to 10."""
        return self.parse(row, "").answers
