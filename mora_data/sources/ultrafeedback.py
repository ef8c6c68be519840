"""openbmb/UltraFeedback: one instruction and the rated replies of several models.

    {"source": "flan_v2_niv2", "instruction": "...", "models": [...],
     "completions": [{"model": ..., "response": ...,
                      "annotations": {"helpfulness": {"Rating": "4", ...}, ...},
                      "overall_score": 7.5, "fine-grained_score": 4.25}, ...],
     "correct_answers": ["None"], "incorrect_answers": ["None"]}

Left out: truthfulqa and false_qa by their `source` (a benchmark's questions; mining drops these by
text as well, see benchmarks.py), and an unreadable or empty instruction. Noted: too_few_completions
(fewer than four), rating_missing ("N/A", null, out of 1-5), fine_grained_missing (null or NaN),
overall_score_bug (a 10 that stands for a 1), tie (two best by mean rating), and defects of the
replies. Replies answer the instruction under a hidden system prompt: a reason to use them only as
`recorded` answers. Stratum: `source`. Priors: mean helpfulness and truthfulness rating over the
replies, 1-5 scaled to 0-1.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import DropRow
from ..types import Row
from . import Layout, ParsedRow, number_in, prompt_in, reply_notes, score_in, text_in, user_turn

_BENCHMARKS = {"truthful_qa": "truthfulqa", "false_qa": "false_qa"}
_ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
_N_COMPLETIONS = 4


def _read(row: Row) -> ParsedRow:
    """The instruction, and the completions, each with its aspect ratings of 1 to 5."""
    source = text_in(row, "source")
    if source in _BENCHMARKS:
        raise DropRow(_BENCHMARKS[source])
    instruction = prompt_in(row, "instruction")
    found = row.get("completions")
    listed = [c for c in found if isinstance(c, Mapping)] if isinstance(found, list) else []
    ratings = [_ratings(c) for c in listed]
    replies = [c.get("response") for c in listed]
    notes = ["too_few_completions"] if len(listed) < _N_COMPLETIONS else []
    notes += reply_notes(*replies)
    fine = [number_in(c.get("fine-grained_score")) for c in listed]
    overall = [number_in(c.get("overall_score")) for c in listed]
    if any(len(r) < len(_ASPECTS) for r in ratings):
        notes.append("rating_missing")
    if None in fine:
        notes.append("fine_grained_missing")
    if any(o == 10 and f is not None and f <= 4 for o, f in zip(overall, fine, strict=True)):
        notes.append("overall_score_bug")
    means = sorted(sum(r.values()) / len(r) for r in ratings if r)
    if len(means) > 1 and means[-1] == means[-2]:
        notes.append("tie")
    answers = [(t, r) for t, r in zip(replies, ratings, strict=True) if isinstance(t, str)]
    return ParsedRow(
        user_turn(instruction),
        source or "all",
        notes=tuple(notes),
        answers=tuple(answers),
    )


def _ratings(completion: Row) -> dict[str, float]:
    """Aspect -> rating 1-5; aspects without a number are left out."""
    annotations = completion.get("annotations")
    found = {}
    for aspect in _ASPECTS:
        entry = annotations.get(aspect) if isinstance(annotations, Mapping) else None
        rating = entry.get("Rating") if isinstance(entry, Mapping) else None
        if (value := score_in(rating)) is not None and 1 <= value <= 5:
            found[aspect] = value
    return found


def _matches(row: Row) -> bool:
    listed = row.get("completions")
    if not isinstance(listed, list) or not {"source", "instruction"} <= row.keys():
        return False
    return any(isinstance(x, Mapping) for x in listed)


ULTRAFEEDBACK = Layout(
    "ultrafeedback",
    "UltraFeedback, completions with aspect ratings",
    "`source`, `instruction`, and `completions` with `annotations`",
    _matches,
    _read,
    absolute=True,
    scales=dict.fromkeys(_ASPECTS, (1, 5)),
    # JSON lines at the root, one file per source; there is only a train split
    patterns=lambda settings: [
        "*.jsonl" if settings.config == "default" else f"{settings.config}.jsonl"
    ],
)
