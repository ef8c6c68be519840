"""What a figure of the page is: a question, its panels, a legend, a table with the same numbers, a
note on how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ARM_STYLE = {
    "before": "a0",
    "identity": "a0",
    "single": "a1",
    "generic": "a2",
    "random": "a3",
    "concat": "a5",
    "fused": "a4",
}
ARM_MARK = {
    "before": 0,
    "identity": 0,
    "single": 1,
    "generic": 2,
    "random": 4,
    "concat": 5,
    "fused": 3,
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
    rows: Sequence[Sequence[Any]]
    note: str
    legend: Sequence[tuple[str, int | None, str]] = ()


def shown(value: Any) -> str:
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
    return ARM_STYLE.get(arm, "a5"), ARM_MARK.get(arm, 5)
