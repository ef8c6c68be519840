"""CHANGELOG.md of a repository: what each tag changed in the rows, against the tag before it.

    text = changelog("v0.2.0", "v0.1.0", compare(old, new), previous_text)

A pure function of both releases: a repeated push writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import card
from .diff import Delta

TITLE = "# Changelog\n\nRows by `pair_id`; where a config has none, by prompt, arm and answer.\n"


def changelog(tag: str, previous: str | None, deltas: Mapping[str, Delta], older: str = "") -> str:
    """The whole file: this tag's section, then those of the file at the previous tag."""
    sections = older[older.index("\n## ") + 1 :] if "\n## " in older else ""
    return f"{TITLE}\n{_section(tag, previous, deltas)}" + (f"\n{sections}" if sections else "")


def step(deltas: Mapping[str, Delta]) -> str:
    """Which part of a semantic version the change calls for: major where a column is gone or means
    something else, minor where rows or configs differ, else patch."""
    if any(": none ->" not in column for d in deltas.values() for column in d.columns):
        return "major"
    return "minor" if any(deltas.values()) else "patch"


def _section(tag: str, previous: str | None, deltas: Mapping[str, Delta]) -> str:
    against = (
        f"Against {card.escape(previous)}. A {step(deltas)} step." if previous else "First release."
    )
    rows = [
        f"| {card.code(name)} | {card.shown(d.added)} | {card.shown(d.removed)} |"
        f" {card.shown(d.changed)} |"
        for name, d in deltas.items()
        if d
    ]
    table = (
        ["| config | added | removed | changed |", "|---|---:|---:|---:|", *rows]
        if rows
        else ["No row changed."]
    )
    columns = [
        f"- Columns of {card.code(name)}: {card.escape('; '.join(d.columns))}"
        for name, d in deltas.items()
        if d.columns
    ]
    return (
        "\n".join(
            [
                f"## {card.escape(tag)}",
                "",
                against,
                "",
                *table,
                *([""] if columns else []),
                *columns,
            ]
        )
        + "\n"
    )
