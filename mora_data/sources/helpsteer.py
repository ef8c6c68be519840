r"""nvidia/HelpSteer2 and HelpSteer: one reply per row, rated 0-4 in five attributes; the replies to
a prompt are neighbours.

    {"prompt": "...", "response": "...", "helpfulness": 3, "correctness": 4, "coherence": 4,
     "complexity": 2, "verbosity": 2}

Conversations of several turns are packed into `prompt`, with `<extra_id_1>Assistant\n` and
`<extra_id_1>User\n` before the later turns: the marks of the toolkit that the data was made for; no
row was at hand to check them on. Left out: an unreadable or empty prompt, turns out of order.
Noted: rating_missing, and defects of the reply. One stratum. Priors: helpful = helpfulness / 4,
truthful = correctness / 4.
"""

from __future__ import annotations

from ..settings import SourceSettings
from ..types import Recorded, Row
from . import ParsedRow, checked_context, number_in, prompt_in, reply_notes, split_turns

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_PRIORS = {"helpful": "helpfulness", "truthful": "correctness"}


class HelpSteer:
    """Rows of the main configuration, which carry ratings."""

    required = (frozenset({"prompt", "response", "helpfulness", "correctness"}),)
    absolute = True
    sft = ""

    def __init__(self, settings: SourceSettings) -> None:
        self._split = settings.split

    def files(self) -> list[str]:
        """`<split>.jsonl.gz` at the root."""
        return [f"{self._split}.jsonl*"]

    def parse(self, row: Row, file: str) -> ParsedRow:
        """The conversation before the reply."""
        ratings = _ratings(row)
        notes = (
            *reply_notes(row.get("response")),
            *(() if len(ratings) == len(ATTRIBUTES) else ("rating_missing",)),
        )
        priors = {d: ratings[a] / 4 for d, a in _PRIORS.items() if a in ratings}
        turns = split_turns(f"<extra_id_1>User\n{prompt_in(row, 'prompt')}", "extra_id")
        return ParsedRow(checked_context(turns), priors=priors, notes=notes)

    def recorded(self, row: Row) -> tuple[Recorded, ...]:
        """The reply with its ratings of 0 to 4."""
        response = row.get("response")
        return (Recorded(response, _ratings(row)),) if isinstance(response, str) else ()


def _ratings(row: Row) -> dict[str, float]:
    found = {a: number_in(row.get(a)) for a in ATTRIBUTES}
    return {a: v for a, v in found.items() if v is not None and 0 <= v <= 4}
