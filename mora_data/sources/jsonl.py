"""Anyone's rows: `prompt` (a string, or a list of turns) or `messages` (a list of {role, content});
maybe a `category`.

    {"prompt": "How do I bleed a radiator?", "category": "home"}
    {"messages": [{"role": "system", "content": "..."}, {"role": "user", "content": "..."}]}

Other column names are mapped in the YAML: `columns: {prompt: question, category: topic}`. A list of
turns that ends with an assistant turn is a finished chat: its reply is left aside (note
reply_ignored). `category` is the stratum, too. For `--engine recorded`, `answers` or `chosen` and
`rejected` (strings) are the row's own answers.
Files: .jsonl, .json, .csv and .parquet, each also .gz.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import DropRow, SettingsError
from ..settings import SourceSettings, nearest
from ..types import Messages, Recorded, Row
from . import ParsedRow, checked_context, number_in, prompt_in, turns_in, user_turn

_COLUMNS = ("prompt", "messages", "category", "chosen", "rejected", "answers")


class Jsonl:
    """Rows with a prompt or messages column."""

    absolute = False
    sft = ""

    def __init__(self, settings: SourceSettings) -> None:
        for ours in settings.columns:
            if ours not in _COLUMNS:
                raise SettingsError(
                    f"unknown source.columns key {ours!r}: {nearest(ours, _COLUMNS)}"
                )
        self._prompt, self._messages, self._category, *sides, self._answers = (
            settings.columns.get(c, c) for c in _COLUMNS
        )
        self._sides = tuple(sides)
        mapped = [c for c in _COLUMNS[:2] if c in settings.columns] or _COLUMNS[:2]
        self.required = tuple(frozenset({settings.columns.get(c, c)}) for c in mapped)
        self._files = settings.files

    def files(self) -> list[str]:
        """No layout of its own: `source.files`, or every data file."""
        return self._files

    def parse(self, row: Row, file: str) -> ParsedRow:
        """The row's conversation up to its last user turn."""
        category = row.get(self._category)
        topic = category.strip() or None if isinstance(category, str) else None
        messages, ignored = self._context(row)
        return ParsedRow(
            messages, topic or "all", topic, notes=("reply_ignored",) if ignored else ()
        )

    def recorded(self, row: Row) -> tuple[Recorded, ...]:
        """`answers`, a list of {text, ratings: {name: number}}; or `chosen` and `rejected`, with
        `preferred` 1 and 0."""
        answers = row.get(self._answers)
        if isinstance(answers, list):
            return tuple(
                _rated(a)
                for a in answers
                if isinstance(a, Mapping) and isinstance(a.get("text"), str)
            )
        sides = [row.get(side) for side in self._sides]
        return tuple(
            Recorded(text, {"preferred": float(i == 0)})
            for i, text in enumerate(sides)
            if isinstance(text, str)
        )

    def _context(self, row: Row) -> tuple[Messages, bool]:
        value = row.get(self._messages)
        if value is None:
            value = row.get(self._prompt)
            if not isinstance(value, list):
                return user_turn(prompt_in(row, self._prompt)), False
        turns = turns_in(value)
        ignored = turns[-1]["role"] == "assistant"
        if ignored and len(turns) == 1:
            raise DropRow("starts_without_user")
        return checked_context(turns[:-1] if ignored else turns), ignored


def _rated(answer: Row) -> Recorded:
    ratings = answer.get("ratings")
    found = (
        {str(k): number_in(v) for k, v in ratings.items()} if isinstance(ratings, Mapping) else {}
    )
    return Recorded(str(answer["text"]), {k: v for k, v in found.items() if v is not None})
