"""What the pages of the viewer and the report are made of: escaped text, HTML from the Jinja
templates of templates/, and inline SVG, a frame with two scales and a dozen marks.

    render("viewer/pairs.html", page=page)
    f = Frame((0, 1), (0, 1)); panel("share by k", "what it shows", f, [*axes(f, "k", "share"),
    line(f, points, "d0")])

Whatever a source, a model or a URL says is text. Every value that a template prints is escaped, and
characters that hide or turn others around are shown by their code; only `Markup` goes through as
it is. Colours and dashes are CSS classes (style.css). A panel is 350 wide, so that it stands at its
own size on a telephone; a page shows several side by side.

Filters: `text(most)` cuts a text, `line(most)` puts a value on one line, `number`, `percent` and
`interval` format numbers. Function: `url(path, query, anchor)`.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment
from markupsafe import Markup

from .. import resources
from .values import Estimate, PairedDifference

TEXT_CHARS = 1200
LINE_CHARS = 300
# control characters, and those that hide, or turn others around
_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_HIDES = re.compile(f"[{_HIDDEN}]")
_SPECIAL = re.compile(f"[&<>\"'{_HIDDEN}]")


def escape(text: str) -> str:
    """Text for markup; characters that hide or turn others around are shown by their code."""
    if not _SPECIAL.search(text):  # few have any
        return text
    text = text.replace("\r\n", "\n")
    return html.escape(_HIDES.sub(lambda m: f"⟦U+{ord(m[0]):04X}⟧", text))


def escape_json(text: str) -> str:
    """JSON in which those characters are shown by their code; its values are the same."""
    return _HIDES.sub(lambda m: json.dumps(m[0])[1:-1], text)


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


def render(name: str, **values: Any) -> str:
    """The template `name` of templates/ with these values."""
    return environment().get_template(name).render(values)


@cache
def environment() -> Environment:
    """The one environment of all pages; a template is read once."""
    env = resources.document_environment(
        "templates",
        autoescape=True,
        finalize=escape_value,
        extensions=["jinja2.ext.do"],
        auto_reload=False,
        cache_size=-1,
    )
    env.filters |= {
        "text": escape_text,
        "line": escape_line,
        "number": shown,
        "percent": percent,
        "interval": interval,
    }
    env.globals["url"] = url
    return env


def escape_value(value: object) -> Markup:
    """Any value as escaped text; markup stays as it is."""
    if isinstance(value, Markup):
        return value
    return Markup(escape(str(value)))


def escape_text(text: str, most: int = TEXT_CHARS) -> Markup:
    """Text that may be hostile, escaped; what is longer than `most` characters is cut."""
    return escape_value(text if len(text) <= most else text[:most].rstrip() + " … [cut]")


def escape_line(value: object, most: int = LINE_CHARS) -> Markup:
    """A short value on one line, numbers formatted; markup stays as it is."""
    if isinstance(value, Markup):
        return value
    return escape_text(" ".join(shown(value).split()), most)


def url(path: str, query: Mapping[str, str] | None = None, anchor: str = "") -> str:
    """A link; a template escapes it as it prints it."""
    return (
        quote(path, safe="/")
        + (f"?{urlencode(query)}" if query else "")
        + (f"#{quote(anchor)}" if anchor else "")
    )


# SVG

Point = tuple[float, float]
MARKS = ("circle", "square", "triangle", "diamond", "cross", "ring")


@dataclass(frozen=True, slots=True)
class Frame:
    """Where data stand on a panel. `x`, `y`: first and last value of each scale."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = 350
    height: int = 220
    left: int = 46
    right: int = 12
    top: int = 26
    bottom: int = 38

    def px(self, v: float) -> float:
        """Horizontal place of a value."""
        return _place(v, self.x, self.left, self.width - self.right)

    def py(self, v: float) -> float:
        """Vertical place of a value; larger is higher."""
        return _place(v, self.y, self.height - self.bottom, self.top)


def panel(title: str, description: str, f: Frame, marks: Sequence[str], role: str = "img") -> str:
    """One picture: its title is drawn and read aloud, `description` tells those who can't see it
    what is in it.

    `role`: `group` where its marks are links.
    """
    head = f'<text class="t" x="{f.left if f.left < 60 else 4}" y="15">{escape(title)}</text>'
    return (
        f'<svg viewBox="0 0 {f.width} {f.height}" width="{f.width}" height="{f.height}"'
        f' role="{role}" aria-label="{escape(title)}. '
        f'{escape(description)}"><title>{escape(title)}</title><desc>{escape(description)}</desc>{head}{"".join(marks)}</svg>'
    )


def axes(
    f: Frame,
    x: str,
    y: str,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    y_ticks: Sequence[tuple[float, str]] | None = None,
) -> list[str]:
    """Grid lines, tick labels and the names of the axes."""
    out = []
    for v, name in ticks(*f.y) if y_ticks is None else y_ticks:
        out += [
            rule(f.left, f.py(v), f.width - f.right, f.py(v), "g"),
            text(f.left - 5, f.py(v) + 4, name, "e"),
        ]
    for v, name in ticks(*f.x) if x_ticks is None else x_ticks:
        out += [
            rule(f.px(v), f.height - f.bottom, f.px(v), f.height - f.bottom + 3, "a"),
            text(f.px(v), f.height - f.bottom + 15, name, "m"),
        ]
    out.append(rule(f.left, f.height - f.bottom, f.width - f.right, f.height - f.bottom, "a"))
    middle = (f.top + f.height - f.bottom) / 2
    if x:
        out.append(text((f.left + f.width - f.right) / 2, f.height - 6, x, "m n"))
    if y:
        out.append(
            f'<text class="m n" transform="translate(11 {_n(middle)})'
            f' rotate(-90)">{escape(y)}</text>'
        )
    return out


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Three to six round values of a scale with their labels."""
    span = high - low
    if span <= 0:
        return [(low, f"{low:g}")]
    step = 10.0 ** int(f"{span:e}".split("e")[1])
    step = next(s for s in (step / 5, step / 2, step, step * 2) if span / s <= 5.01)
    first = -(-low // step)
    out = []
    while first * step <= high + span * 1e-9:
        at = round(first * step, 9) + 0.0  # no minus zero
        out.append((at, f"{at:g}"))
        first += 1
    return out


def line(f: Frame, points: Sequence[Point], style: str) -> str:
    """A line through points."""
    return _through("polyline", f"l {style}", f, points) if len(points) > 1 else ""


def band(f: Frame, lows: Sequence[Point], highs: Sequence[Point], style: str) -> str:
    """The area between two lines."""
    points = [*lows, *reversed(highs)]
    return _through("polygon", f"b {style}", f, points) if len(lows) > 1 else ""


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    style: str,
    opacity: float | None = None,
    tip: str = "",
) -> str:
    """A rectangle in pixels; `tip` is shown when pointed at."""
    size = f'width="{_n(max(width, 0))}" height="{_n(max(height, 0))}"'
    shade = f' fill-opacity="{_n(opacity)}"' if opacity is not None else ""
    return _mark("rect", f"f {style}", f'x="{_n(x)}" y="{_n(y)}" {size}{shade}', tip)


def dot(x: float, y: float, style: str, mark: int = 0, tip: str = "") -> str:
    """A mark of one of six shapes, in pixels, so that colour is not needed to tell series apart."""
    x, y = round(x, 1), round(y, 1)
    shape = MARKS[mark % len(MARKS)]
    if shape in ("circle", "ring"):
        kind = "r" if shape == "ring" else "f"
        return _mark("circle", f"{kind} {style}", f'cx="{_n(x)}" cy="{_n(y)}" r="4"', tip)
    path = {
        "square": f"M{_n(x - 3.6)} {_n(y - 3.6)}h7.2v7.2h-7.2z",
        "triangle": f"M{_n(x)} {_n(y - 4.8)}l4.6 8h-9.2z",
        "diamond": f"M{_n(x)} {_n(y - 5)}l5 5l-5 5l-5-5z",
        "cross": f"M{_n(x - 4)} {_n(y - 4)}l8 8m0-8l-8 8",
    }[shape]
    return _mark("path", f"{'l' if shape == 'cross' else 'f'} {style}", f'd="{path}"', tip)


def rule(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line in pixels."""
    return _mark("line", style, f'x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"')


def upright(f: Frame, x: float, style: str) -> str:
    """A straight line from top to bottom at a value."""
    return rule(f.px(x), f.top, f.px(x), f.height - f.bottom, style)


def text(x: float, y: float, words: str, style: str) -> str:
    """Words in pixels; style `m` centred, `e` ending there, `s` starting there."""
    return f'<text class="{style}" x="{_n(x)}" y="{_n(y)}">{escape(words)}</text>'


def cut_label(words: str, most: int) -> str:
    """A label cut to `most` characters."""
    return words if len(words) <= most else words[: most - 1] + "…"


def fitting(words: str, pixels: float) -> str:
    """A label cut to a width, by letters of a middling one."""
    return cut_label(words, int(pixels / 6.8))


def _mark(tag: str, style: str, place: str, tip: str = "") -> str:
    """An element; `tip` is shown when pointed at."""
    inside = f"<title>{escape(tip)}</title></{tag}>" if tip else ""
    return f'<{tag} class="{style}" {place}{">" if tip else "/>"}{inside}'


def _through(tag: str, style: str, f: Frame, points: Sequence[Point]) -> str:
    path = " ".join(f"{_n(f.px(x))},{_n(f.py(y))}" for x, y in points)
    return _mark(tag, style, f'points="{path}"')


def _place(v: float, domain: tuple[float, float], start: float, stop: float) -> float:
    span = domain[1] - domain[0]
    share = (v - domain[0]) / span if span else 0.5
    return start + min(max(share, -0.02), 1.02) * (stop - start)


def _n(v: float) -> str:
    return f"{v:.1f}".removesuffix(".0")


# what a figure of the page is: a question, its panels, a legend, a table of the same numbers

ARM_STYLES = {  # colour class and mark
    "before": ("a0", 0),
    "identity": ("a0", 0),
    "single": ("a1", 1),
    "generic": ("a2", 2),
    "random": ("a3", 4),
    "concat": ("a5", 5),
    "fused": ("a4", 3),
    "pairs": ("a4", 0),  # no arm: what the pairs of all of them say
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


def interval_rows(
    title: str,
    rows: Sequence[tuple[str, Estimate | PairedDifference, str]],
    x: tuple[float, float],
    axis: str = "",
    zero: tuple[float, str] | None = None,
    *,
    step: int = 22,
    left: int = 132,
    right: int = 16,
    top: int = 12,
) -> str:
    """A panel with a row for each (label, value, arm whose style it has); `zero`: place and style
    of an upright line. A missing value says so."""
    f = Frame(x, (0, 1), height=66 + step * len(rows), left=left, right=right)
    marks = axes(f, axis, "", None, [])
    if zero is not None:
        marks.append(upright(f, *zero))
    for i, (label, c, arm) in enumerate(rows):
        y, (style, mark) = f.top + top + step * i, arm_style(arm)
        marks.append(text(f.left - 8, y + 4, fitting(label, left - 8), "e"))
        value, low, high = c["value"], c["low"], c["high"]
        if value is None:
            marks.append(text(f.left + 4, y + 4, "not measured", "s"))
            continue
        if low is not None and high is not None:
            marks.append(rule(f.px(low), y, f.px(high), y, f"w {style}"))
        tip = f"{label}: {interval(c)}" + ("" if c["n"] is None else f", n = {c['n']}")
        marks.append(dot(f.px(value), y, style, mark, tip))
    description = "; ".join(f"{label} {interval(c)}" for label, c, _ in rows)
    return panel(title, description, f, marks)


def arm_style(arm: str) -> tuple[str, int]:
    """Colour class and mark of an arm; the same in every figure."""
    return ARM_STYLES.get(arm, ("a5", 5))
