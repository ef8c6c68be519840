"""What a figure of the page is (a question, its panels, a legend, a table with the same numbers, a
note on how to read it), and how numbers are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from .svg import Frame, axes, dot, panel, short, text, upright, whisker
from .values import Estimate, PairedDifference

ARM_STYLES = {  # colour class and mark
    "before": ("a0", 0),
    "identity": ("a0", 0),
    "single": ("a1", 1),
    "generic": ("a2", 2),
    "random": ("a3", 4),
    "concat": ("a5", 5),
    "fused": ("a4", 3),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the page.

    Attributes:
        question: its title.
        unit: what is counted and resampled, and how many.
        panels: SVG texts; empty when there is nothing to draw, then `note` says why.
        legend: (CSS class, mark or None for a box, name).
        head, rows: the data table; cells are text or numbers.
    """

    name: str
    question: str
    unit: str
    panels: Sequence[str]
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str
    legend: Sequence[tuple[str, int | None, str]] = ()

    def drawing(self) -> Markup:
        """The panels as markup."""
        return Markup("".join(self.panels))

    def legend_marks(self) -> list[tuple[Markup, str]]:
        """The legend as SVG marks with their names."""
        marks = (
            f'<rect class="f {style}" width="13" height="13" y=".5"/>'
            if mark is None
            else dot(7, 7, style, mark)
            for style, mark, _ in self.legend
        )
        return [(Markup(m), name) for m, (*_, name) in zip(marks, self.legend, strict=True)]


class IntervalRow(NamedTuple):
    """A value with its interval on a row of its own; `tip` is shown when pointed at."""

    label: str
    cell: Estimate | PairedDifference
    style: str
    mark: int
    tip: str


def interval_rows(
    title: str,
    rows: Sequence[IntervalRow],
    x: tuple[float, float],
    label: str = "",
    zero: tuple[float, str] | None = None,
    *,
    step: int = 22,
    left: int = 118,
    right: int = 16,
    top: int = 12,
    letters: int = 20,
    description: str | None = None,
) -> str:
    """A panel with a row for each value; `zero`: place and style of an upright line."""
    f = Frame(x, (0, 1), height=66 + step * len(rows), left=left, right=right)
    marks = axes(f, label, "", None, [])
    if zero is not None:
        marks.append(upright(f, *zero))
    for i, (name, c, style, mark, tip) in enumerate(rows):
        y = f.top + top + step * i
        marks += [
            text(f.left - 8, y + 4, short(name, letters), "e"),
            whisker(f, y, c["low"], c["value"], c["high"], style, mark, tip),
        ]
    if description is None:
        description = "; ".join(f"{r.label} {interval(r.cell)}" for r in rows)
    return panel(title, description, f, marks)


def shown(value: object) -> str:
    """A number as the page prints it; a dash for a missing one."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def percent(value: float | None) -> str:
    """A share in per cent."""
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(cell: Mapping[str, Any] | None) -> str:
    """Value and 95 % interval."""
    if cell is None or cell.get("value") is None:
        return "–"
    ends = f" [{shown(cell['low'])}, {shown(cell['high'])}]" if cell.get("low") is not None else ""
    return shown(cell["value"]) + ends


def arm_style(arm: str) -> tuple[str, int]:
    """Colour class and mark of an arm; the same in every figure."""
    return ARM_STYLES.get(arm, ("a5", 5))
