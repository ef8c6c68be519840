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

from collections.abc import Iterable, Mapping, Sequence

from ..errors import DropRow
from ..settings import SourceSettings
from ..types import Recorded, Row
from . import (
    ParsedRow,
    number_in,
    prompt_in,
    reply_notes,
    score_in,
    text_in,
    user_turn,
)

_BENCHMARKS = {"truthful_qa": "truthfulqa", "false_qa": "false_qa"}
_ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
_PRIORS = {"helpful": "helpfulness", "truthful": "truthfulness"}
_N_COMPLETIONS = 4

Ratings = Mapping[str, float]


class UltraFeedback:
    """openbmb/UltraFeedback: rows with completions and per-aspect ratings."""

    required = (frozenset({"source", "instruction", "completions"}),)
    absolute = True
    sft = ""

    def __init__(self, settings: SourceSettings) -> None:
        self._all = settings.config == "default"
        self._name = settings.config

    def files(self) -> list[str]:
        """JSON lines at the root, one file per source; `config` names one of them. There is only a
        train split."""
        return ["*.jsonl"] if self._all else [f"{self._name}.jsonl"]

    def parse(self, row: Row, file: str) -> ParsedRow:
        """The instruction, with the ratings' means as priors."""
        source = text_in(row, "source")
        if source in _BENCHMARKS:
            raise DropRow(_BENCHMARKS[source])
        instruction = prompt_in(row, "instruction")
        completions = _completions(row)
        ratings = [_ratings(c) for c in completions]
        notes = (*_reply_notes(completions), *_rating_notes(completions, ratings))
        return ParsedRow(
            user_turn(instruction), source or "all", priors=_priors(ratings), notes=notes
        )

    def recorded(self, row: Row) -> tuple[Recorded, ...]:
        """The completions, each with its aspect ratings of 1 to 5."""
        return tuple(
            Recorded(text, _ratings(c))
            for c in _completions(row)
            if isinstance(text := c.get("response"), str)
        )


def _completions(row: Row) -> list[Row]:
    found = row.get("completions")
    return [c for c in found if isinstance(c, Mapping)] if isinstance(found, list) else []


def _ratings(completion: Row) -> Ratings:
    """Aspect -> rating 1-5; aspects without a number are left out."""
    annotations = completion.get("annotations")
    found = {}
    for aspect in _ASPECTS:
        entry = annotations.get(aspect) if isinstance(annotations, Mapping) else None
        rating = entry.get("Rating") if isinstance(entry, Mapping) else None
        if (value := score_in(rating)) is not None and 1 <= value <= 5:
            found[aspect] = value
    return found


def _priors(ratings: Sequence[Ratings]) -> dict[str, float]:
    means = {}
    for dimension, aspect in _PRIORS.items():
        values = [(r[aspect] - 1) / 4 for r in ratings if aspect in r]
        if values:
            means[dimension] = sum(values) / len(values)
    return means


def _reply_notes(completions: Sequence[Row]) -> Iterable[str]:
    if len(completions) < _N_COMPLETIONS:
        yield "too_few_completions"
    yield from reply_notes(*(c.get("response") for c in completions))


def _rating_notes(completions: Sequence[Row], ratings: Sequence[Ratings]) -> Iterable[str]:
    fine = [number_in(c.get("fine-grained_score")) for c in completions]
    overall = [number_in(c.get("overall_score")) for c in completions]
    if any(len(r) < len(_ASPECTS) for r in ratings):
        yield "rating_missing"
    if None in fine:
        yield "fine_grained_missing"
    if any(o == 10 and f is not None and f <= 4 for o, f in zip(overall, fine, strict=True)):
        yield "overall_score_bug"
    means = sorted(sum(r.values()) / len(r) for r in ratings if r)
    if len(means) > 1 and means[-1] == means[-2]:
        yield "tie"
