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

from ..types import Row
from . import Layout, ParsedRow, prompt_in, reply_notes, score_in
from .turns import checked_context, split_turns

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def _read(row: Row) -> ParsedRow:
    """The conversation before the reply, and the reply with its ratings of 0 to 4."""
    found = {a: score_in(row.get(a)) for a in ATTRIBUTES}
    ratings = {a: v for a, v in found.items() if v is not None and 0 <= v <= 4}
    response = row.get("response")
    missing = () if len(ratings) == len(ATTRIBUTES) else ("rating_missing",)
    turns = split_turns(f"<extra_id_1>User\n{prompt_in(row, 'prompt')}", "extra_id")
    return ParsedRow(
        checked_context(turns),
        notes=(*reply_notes(response), *missing),
        answers=((response, ratings),) if isinstance(response, str) else (),
    )


HELPSTEER = Layout(
    "helpsteer",
    "HelpSteer, one reply with attribute ratings",
    "`prompt`, `response`, `helpfulness`, `correctness`",
    frozenset({"prompt", "response", "helpfulness", "correctness"}).issubset,
    _read,
    absolute=True,
    scales=dict.fromkeys(ATTRIBUTES, (0, 4)),
    patterns=lambda settings: [f"{settings.split}.jsonl*"],
)
