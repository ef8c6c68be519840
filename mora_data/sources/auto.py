"""A source of any layout: the first rows of each file are looked at, their layout is found in the
table (layouts.py) and named in one line, and the rows are read by it.

Rows of other columns are looked at when they come, so a file may hold several layouts. Where the
columns say no layout, or several, nothing is guessed: the error names the columns, two values, and
what to type.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import NamedTuple

from ..errors import DropRow, SettingsError, SourceError
from ..settings import SourceSettings, nearest
from ..text import one_line
from ..types import Row
from . import Layout, ParsedRow
from .layouts import ANSWERS, BY_NAME, JSON_COLUMNS, LAYOUTS, at, is_texts, means_turns
from .turns import BESIDE, NULLS, QUESTIONS, TALKS, is_talk, json_in, marked

COLUMNS = tuple(
    "prompt messages system input category chosen rejected score_chosen score_rejected answers"
    " ranked".split()
)
_MISSING = object()
_SHOWN = 60  # characters of a value in a message
_MOST_PLANS = 1000  # rows of ever other columns must not fill the memory
_KNOWN = "or give --layout NAME (`mora-data list layouts`)"


class _Plan(NamedTuple):
    """How rows with certain columns are read."""

    layout: Layout | None
    packed: tuple[str, ...]  # columns whose texts are JSON


class Auto:
    """Anyone's rows, in any layout of the table."""

    required: tuple[frozenset[str], ...] = ()
    sft = ""

    def __init__(self, settings: SourceSettings) -> None:
        for ours in settings.columns:
            if ours not in COLUMNS:
                raise SettingsError(
                    f"unknown source.columns key {ours!r}: {nearest(ours, COLUMNS)}"
                )
        if settings.layout is not None and settings.layout not in BY_NAME:
            raise SettingsError(
                f"unknown source.layout {settings.layout!r}: {nearest(settings.layout, BY_NAME)}"
            )
        self._columns = settings.columns
        self._fixed = BY_NAME[settings.layout] if settings.layout else None
        self._files = settings.files
        self._plans: dict[tuple[str, ...], _Plan] = {}
        asks = settings.columns.keys() & {"prompt", "messages"}
        with_input = settings.columns.get("prompt") == "instruction" or not asks
        # with a mapped question no other column can stand for it, or be part of it
        self._kept = tuple(
            c for c in COLUMNS if c not in ("prompt", "messages") and (c != "input" or with_input)
        )
        self._asks = bool(asks)
        self.absolute = False

    def files(self) -> list[str]:
        """`source.files`, or every data file."""
        return self._files

    def look(self, rows: Sequence[Row], file: str) -> str:
        """What these first rows of a file are, in a line.

        Raises:
            SourceError: their columns say no layout, or several; the text says what to type.
        """
        self._check_columns(rows, file)
        found: dict[tuple[str, ...], Counter[_Plan]] = {}
        for row in rows:
            view = self._view(row)
            plan = self._plan(view)
            found.setdefault(tuple(row), Counter())[plan] += 1
            if plan.layout and plan.layout.asks_in_a_column and not self._fixed:
                self._check_doubt(view, file)
        for columns, plans in found.items():
            known = Counter({p: n for p, n in plans.items() if p.layout}) or plans
            self._plans[columns] = known.most_common(1)[0][0]
        if self._fixed and not any(self._fits(row) for row in rows):
            raise SourceError(
                f"no first row of {file} is of the layout {self._fixed.name}, which is known by"
                f" {self._fixed.known_by}: leave source.layout out, {_KNOWN}"
            )
        here = {x.name: x for c in found if (x := self._plans[c].layout)}
        if not here:
            raise SourceError(self._unknown(rows[0], file))
        self.absolute = all(x.absolute for x in here.values())
        return "; ".join(self._described(layout, rows, file) for layout in here.values())

    def check_ratings(self, rows: Sequence[Row], wanted: frozenset[str], file: str) -> None:
        """That answers of the rows have one of the ratings that are wanted.

        Raises:
            SourceError: they have none, or others; the text says what to type.
        """
        values: dict[str, list[float]] = {}
        scales: dict[str, tuple[float, float]] = {}
        for row in rows:
            try:
                answers, layout = self.parse(row, file).answers, self._laid_out(row)[0]
            except DropRow:
                continue
            scales |= {**layout.scales}
            for _, ratings in answers:
                for name, value in ratings.items():
                    values.setdefault(name, []).append(value)
        if not wanted or wanted & values.keys():
            return
        if not values:
            lists = [k for k, v in rows[0].items() if is_texts(v) and len(v) > 1 and k not in TALKS]
            way = (
                f"give {_typed(f'ranked={lists[0]}')} where {lists[0]!r} has the best first"
                if lists
                else "name them by source.columns.chosen and .rejected, or leave --engine recorded"
                " out"
            )
            raise SourceError(f"the rows of {file} carry no rated answers: {way}")
        name = max(values, key=lambda k: (k in scales, len(values[k])))
        seen = math.floor(min(values[name])), math.ceil(max(values[name]))
        low, high = scales.get(name, seen)
        if not low <= seen[0] <= seen[1] <= high:
            low, high = seen
        reward = f"{{kind: precomputed, column: {name}, range: [{low:g}, {high:g}]}}"
        way = quote(f"recorded={{dimensions: [{name}], rewards: {{{name}: [{reward}]}}}}")
        raise SourceError(
            f"the answers in {file} are rated by {', '.join(sorted(values))}, not by"
            f" {', '.join(sorted(wanted))}: give --set {way}"
        )

    def parse(self, row: Row, file: str) -> ParsedRow:
        """What the row says by its layout."""
        layout, view = self._laid_out(row)
        return layout.read(view)

    def _laid_out(self, row: Row) -> tuple[Layout, Row]:
        columns, view = tuple(row), self._view(row)
        plan = self._plans.get(columns)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[columns] = self._plan(view)
        if plan.layout is None:
            raise DropRow("missing_column", "prompt")
        return plan.layout, _unpacked(view, plan.packed) if plan.packed else view

    def _view(self, row: Row) -> Row:
        """The row under our names for the columns that are mapped."""
        if not self._columns:
            return row
        mapped = {
            ours: value
            for ours, theirs in self._columns.items()
            if (value := at(row, theirs, _MISSING)) is not _MISSING
        }
        if self._asks:
            rest = {k: row[k] for k in self._kept if k in row}
        else:
            theirs = set(self._columns.values())
            rest = {k: v for k, v in row.items() if k not in theirs}
        return {**rest, **mapped}

    def _plan(self, view: Row) -> _Plan:
        packed = tuple(
            k
            for k, v in view.items()
            if k in JSON_COLUMNS and isinstance(v, str) and means_turns(k, json_in(v))
        )
        row = _unpacked(view, packed) if packed else view
        return _Plan(self._fixed or next((x for x in LAYOUTS if x.matches(row)), None), packed)

    def _fits(self, row: Row) -> bool:
        layout, view = self._laid_out(row)
        return bool(layout.matches(view))

    def _described(self, layout: Layout, rows: Sequence[Row], file: str) -> str:
        """A layout, and how its first readable row looks, in words."""
        for row in rows:
            if self._plans[tuple(row)].layout is not layout:
                continue
            try:
                messages, *_, answers = self.parse(row, file)
            except DropRow:
                continue
            turns = len([m for m in messages if m["role"] != "system"])
            said = [layout.what, *([f"{turns} turns"] if turns > 1 else [])]
            if messages[0]["role"] == "system":
                said.append("system in the first")
            if answers:
                names = sorted({name for _, ratings in answers for name in ratings})
                rated = f" rated by {', '.join(names)}" if names else ""
                said.append(f"{len(answers)} answer{'s' * (len(answers) > 1)}{rated}")
            return ", ".join(said)
        return layout.what

    def _check_columns(self, rows: Sequence[Row], file: str) -> None:
        """That the mapping names columns that are there, and no answers as questions."""
        for ours, theirs in self._columns.items():
            if all(at(row, theirs, _MISSING) is _MISSING for row in rows):
                raise SourceError(
                    f"{file} has no column {theirs!r}, which source.columns.{ours} names:"
                    f" {nearest(theirs, map(str, rows[0]))}"
                )
        asked = self._columns.get("prompt")
        values = [row.get(asked) for row in rows] if asked in ANSWERS else []
        if any(isinstance(v, str) and not marked(v) for v in values):
            others = [k for k in _candidates(rows[0]) if k != asked]
            way = _typed(f"prompt={others[0]}") if others else "there is none"
            raise SourceError(
                f"source.columns.prompt={asked}: that column of {file} holds answers; name the"
                f" question's: {way}"
            )

    def _check_doubt(self, view: Row, file: str) -> None:
        """That no second column may be the question, or part of it."""
        said = {k: v.strip() for k, v in view.items() if isinstance(v, str) and v.strip()}
        asked = [k for k in QUESTIONS if k in said]
        if not asked or self._asks:
            return
        first = asked[0]
        other = next((k for k in asked[1:] if said[k] != said[first]), None)
        if other:
            raise SourceError(
                f"{file} may ask in {first!r} ({_cut(said[first])}) or in {other!r}"
                f" ({_cut(said[other])}): give --set source.columns.prompt={first} or --set"
                f" source.columns.prompt={other}"
            )
        beside = next((k for k in (*BESIDE, "passage", "document") if k in said), None)
        if beside and beside != "ContextString" and "input" not in self._columns:
            raise SourceError(
                f"{file} asks in {first!r} ({_cut(said[first])}), and {beside!r}"
                f" ({_cut(said[beside])}) may belong to it: give --set"
                f" source.columns.prompt={first}, or --set source.columns.prompt={first} --set"
                f" source.columns.input={beside}"
            )

    def _unknown(self, row: Row, file: str) -> str:
        columns = ", ".join(one_line(k, 40) for k in list(row)[:12]) or "none"
        found = list(_candidates(row).items())[:2]
        if not found:
            return (
                f"{file} has no layout that is known, and no text that could be a question: its"
                f" columns are {columns}. Give --set source.columns.prompt=COLUMN, {_KNOWN}"
            )
        values = ", ".join(f"{one_line(k, 40)} is {_cut(v)}" for k, v in found)
        ways = (f"{'messages' if isinstance(v, list) else 'prompt'}={k}" for k, v in found)
        bare = any(len(k.split()) > 3 or k.isdigit() for k in row)
        header = (
            "; if these names are a row, write `prompt` and the like above them" if bare else ""
        )
        return (
            f"{file} has no layout that is known: its columns are {columns}, where {values}. Give"
            f" {' or '.join(map(_typed, ways))}, {_KNOWN}{header}"
        )


def _typed(way: str) -> str:
    """A mapping as it is typed in a shell; a stranger has named the column."""
    return f"--set {quote(f'source.columns.{way}')}"


def _candidates(row: Row) -> dict[str, object]:
    """Columns that may hold the question, one level deep: lists of turns, then texts, those that
    ask first, then the longest."""
    flat: dict[str, object] = {}
    for k, v in row.items():
        flat |= {f"{k}.{i}": w for i, w in v.items()} if isinstance(v, Mapping) else {k: v}
    talks = {k: v for k, v in flat.items() if is_talk(v)}
    texts = {
        k: v
        for k, v in flat.items()
        if isinstance(v, str) and v.strip() and k not in ANSWERS and v not in NULLS
    }
    asking = sorted(texts, key=lambda k: ("?" not in texts[k], -len(texts[k])))
    return {**talks, **{k: texts[k] for k in asking}}


def _cut(value: object) -> str:
    text = one_line(value, _SHOWN + 1)
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")


def _unpacked(view: Row, packed: Sequence[str]) -> Row:
    return {**view, **{k: json_in(view[k]) for k in packed if k in view}}
