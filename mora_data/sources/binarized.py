"""HuggingFaceH4/ultrafeedback_binarized: a chosen and a rejected conversation of {role, content}
turns.

    {"prompt": "...", "prompt_id": "...", "chosen": [...], "rejected": [...], "messages": [...],
     "score_chosen": 8.0, "score_rejected": 6.5}

The context is `chosen` without its last turn; a system turn stays. Left out: context_mismatch (the
sides differ before the reply, or `prompt` is none of the user turns), turns out of order,
unreadable or empty text.
Noted: tie (equal scores), score_missing, and defects of the replies. The rows carry no topic: one
stratum, no priors. Split `train` is read as `train_prefs`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import DropRow, SettingsError
from ..settings import SourceSettings
from ..types import Recorded, Row
from . import ParsedRow, columns

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
        prompt = columns.prompt(row, "prompt")
        chosen, rejected = (columns.conversation(row.get(side)) for side in ("chosen", "rejected"))
        context = columns.context(chosen[:-1])
        if context != rejected[:-1] or all(
            prompt != m["content"] for m in context if m["role"] == "user"
        ):
            raise DropRow("context_mismatch")
        if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
            raise DropRow("same_speaker")
        replies = columns.reply_notes(chosen[-1]["content"], rejected[-1]["content"])
        return ParsedRow(context, notes=(*replies, *_score_notes(row)))

    def recorded(self, row: Row) -> tuple[Recorded, ...]:
        """Both replies with their overall score of 1 to 10."""
        out = []
        for side in ("chosen", "rejected"):
            score = columns.number(row.get(f"score_{side}"))
            out.append(
                Recorded(
                    columns.conversation(row.get(side))[-1]["content"],
                    {} if score is None else {"score": score},
                )
            )
        return tuple(out)


def _score_notes(row: Row) -> Iterable[str]:
    chosen, rejected = (
        columns.number(row.get("score_chosen")),
        columns.number(row.get("score_rejected")),
    )
    if chosen is None or rejected is None:
        yield "score_missing"
    elif chosen == rejected:
        yield "tie"
