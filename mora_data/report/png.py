"""The main figures as PNG for the card, where `pip install 'mora-data[png]'` is there: a card's
page shows no inline SVG.

    pictures(report)        {"arms": ("Are prompts ...?", b"...")}

resvg draws them: one wheel of 1.4 MB without dependencies. Letters come from the machine's fonts,
so pixels, unlike everything else of a dataset folder, may differ between machines.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from . import charts_prompts
from .page import style_sheet
from .svg import Figure, dot, escape
from .values import ArmsReport, Report

CHARTS: tuple[Callable[[ArmsReport | Report], Figure], ...] = (
    charts_prompts.arms,
    charts_prompts.profile,
    charts_prompts.rewards,
    charts_prompts.planes,
)
COLUMNS, GAP, MARGIN = 3, 22, 16
ZOOM = 1.25
MOST_PANELS = 12
_SIZE = re.compile(r'<svg viewBox="0 0 (\d+) (\d+)" width="\d+" height="\d+"')


def pictures(report: ArmsReport | Report) -> dict[str, tuple[str, bytes]]:
    """Name -> question and PNG of each main figure that has something to show; empty without the
    extra, or without any font."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        return {}
    if svg_to_bytes(svg_string=_letters("A")) == svg_to_bytes(svg_string=_letters(" ")):
        return {}  # a machine without fonts: figures without words say nothing
    out = {}
    for f in (chart(report) for chart in CHARTS):
        if f.panels:
            png = svg_to_bytes(svg_string=sheet(f), background="#ffffff", zoom=ZOOM)
            out[f.name] = f.question, bytes(png)
    return out


def sheet(f: Figure) -> str:
    """A figure as one SVG: question, legend, panels in rows; colours as plain values, light."""
    placed, y = [], 62 + 22 * _legend(f)[1]
    panels = [(p, int(m[1]), int(m[2])) for p in f.panels[:MOST_PANELS] if (m := _SIZE.match(p))]
    for start in range(0, len(panels), COLUMNS):
        row, x = panels[start : start + COLUMNS], MARGIN
        for panel, width, _ in row:
            placed.append(panel.replace("<svg ", f'<svg x="{x}" y="{y}" ', 1))
            x += width + GAP
        y += max(height for *_, height in row) + GAP
    width = 2 * MARGIN + COLUMNS * 350 + (COLUMNS - 1) * GAP
    head = f'<text class="h" x="{MARGIN}" y="28">{escape(f.question)}</text>'
    unit = f'<text class="n" x="{MARGIN}" y="48">{escape(f.unit)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}"'
        f' height="{y}"><style>{svg_style()}</style>'
        f"{head}{unit}{_legend(f)[0]}{''.join(placed)}</svg>"
    )


def svg_style() -> str:
    """The report's rules for SVG, light, with their variables put in: resvg knows classes, no
    variables."""
    css = style_sheet()
    values = dict(re.findall(r"--([\w]+):([^;}]+)", css.split("@media", 1)[0]))
    rules = re.findall(
        r"((?:svg )?(?:text|\.\w+)(?:,[^{}]+)?)\{([^{}]*)\}", css.split("@media print")[0]
    )
    kept = [
        f"{name.removeprefix('svg ')}{{{body}}}"
        for name, body in rules
        if name.startswith("svg ") or _is_mark(body)
    ]
    whole = re.sub(r"var\(--(\w+)\)", lambda m: values[m[1]], "".join(kept))
    whole = re.sub(
        r"font:([\d.]+px) [^;}]+", r"font-size:\1;font-family:DejaVu Sans,Arial,sans-serif", whole
    )
    return whole + ".h{font-size:17px;font-weight:600}"


def _letters(words: str) -> str:
    place = 'width="20" height="20"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {place}><style>{svg_style()}</style><text x="2"'
        f' y="18">{words}</text></svg>'
    )


def _is_mark(body: str) -> bool:
    return (
        any(word in body for word in ("stroke", "fill"))
        or re.fullmatch(r"color:var\(--\w+\)", body) is not None
    )


def _legend(f: Figure) -> tuple[str, int]:
    """The legend and how many lines it takes."""
    out, x, line = [], MARGIN, 0
    for style, mark, name in f.legend:
        width = 26 + 7 * len(name)
        if x + width > COLUMNS * 350 and x > MARGIN:
            x, line = MARGIN, line + 1
        y = 68 + 22 * line
        box = f'<rect class="f {style}" x="{x}" y="{y - 10}" width="12" height="12"/>'
        out.append(
            (box if mark is None else dot(x + 6, y - 4, style, mark))
            + f'<text x="{x + 18}" y="{y}">{escape(name)}</text>'
        )
        x += width + 10
    return "".join(out), line + 1 if f.legend else 0
