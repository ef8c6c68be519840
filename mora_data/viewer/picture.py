"""A prompt's answers in reward space, as inline SVG: before fusion and after, floors, Pareto
staircase, the pair ringed.

    svg = space("after fusion: fused", answers, ("helpful", "harmless"), floors, [(3, 7)],
    "#fused-")

Rewards lie on few levels, so answers of one place are laid out round it; each is a link to its
text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..report.svg import Frame, axes, panel, rule, text

RADIUS = 4.6
CROWD = 25.0  # half the distance of two levels of a five-point scale
TURN = math.pi * (3 - math.sqrt(5))
UNUSABLE = frozenset({"empty", "truncated", "repetition", "duplicate"})
TICKS = [(v, f"{v:g}") for v in (0, 0.25, 0.5, 0.75, 1)]
Point = tuple[float, float]


def space(
    title: str,
    answers: Sequence[Mapping[str, Any]],
    dims: tuple[str, str],
    floors: Mapping[str, float],
    pairs: Sequence[tuple[int, int]],
    link: str | None,
) -> str:
    """One panel. `pairs`: (chosen, rejected) by answer index; answer 3 links to `link` + "3", to
    nothing where that is None."""
    f = Frame((-0.14, 1.14), (-0.14, 1.14), 400, 360, 52, 10, 28, 40)
    placed = _placed(f, answers, dims)
    usable = [
        _at(a, dims) for a in answers if a["index"] in placed and not UNUSABLE & set(a["flags"])
    ]
    marks = [
        *axes(f, dims[0], dims[1], TICKS, TICKS),
        *_floors(f, dims, floors),
        _staircase(f, usable),
    ]
    chosen, rejected = ({p[side] for p in pairs} for side in (0, 1))
    marks += [rule(*placed[c], *placed[r], "tie") for c, r in pairs if c in placed and r in placed]
    marks += [
        _point(a, placed[a["index"]], link, a["index"] in chosen, a["index"] in rejected)
        for a in answers
        if a["index"] in placed
    ]
    left_out = len(answers) - len(placed)
    said = (
        f"{len(placed)} answers by {dims[0]} (across) and {dims[1]} (up),"
        f" {_above(answers, dims, floors)} at or above both floors"
        + (f", {left_out} without both scores left out" if left_out else "")
    )
    return panel(
        f"{title}: {len(placed)} answers", said, f, marks, "img" if link is None else "group"
    )


def _placed(
    f: Frame, answers: Sequence[Mapping[str, Any]], dims: tuple[str, str]
) -> dict[int, Point]:
    """Where each answer stands, in pixels; those of the same rewards spiral outwards, within CROWD
    of their place."""
    at = {
        a["index"]: _at(a, dims)
        for a in answers
        if all(a["rewards"].get(d) is not None for d in dims)
    }
    total, seen = Counter(at.values()), Counter[Point]()
    out = {}
    for index, (x, y) in at.items():
        k = seen[x, y]
        seen[x, y] += 1
        r, angle = math.sqrt(k) * min(RADIUS * 1.75, CROWD / math.sqrt(total[x, y])), k * TURN
        out[index] = (f.px(x) + r * math.cos(angle), f.py(y) + r * math.sin(angle))
    return out


def _at(a: Mapping[str, Any], dims: tuple[str, str]) -> Point:
    return a["rewards"][dims[0]], a["rewards"][dims[1]]


def _floors(f: Frame, dims: tuple[str, str], floors: Mapping[str, float]) -> list[str]:
    x, y = (floors.get(d) for d in dims)
    out = []
    if x is not None and y is not None:
        width, height = f.width - f.right - f.px(x), f.py(y) - f.top
        out.append(
            f'<rect class="good" x="{f.px(x):.1f}" y="{f.top}" width="{width:.1f}"'
            f' height="{height:.1f}"/>'
        )
    if x is not None:
        out += [
            rule(f.px(x), f.top, f.px(x), f.height - f.bottom, "z"),
            text(f.px(x) + 4, f.height - f.bottom - 5, "floor", "n"),
        ]
    if y is not None:
        out += [
            rule(f.left, f.py(y), f.width - f.right, f.py(y), "z"),
            text(f.left + 4, f.py(y) - 5, "floor", "n"),
        ]
    return out


def _staircase(f: Frame, points: Sequence[Point]) -> str:
    """The boundary of what is dominated: answers on it are beaten by none in both dimensions."""
    front: list[Point] = []
    for x, y in sorted(set(points), key=lambda p: (-p[0], -p[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    if not front:
        return ""
    path = [(front[0][0], f.y[0])]
    for (x, y), after in zip(front, [*front[1:], (f.x[0], front[-1][1])], strict=True):
        path += [(x, y), (after[0], y)]
    return (
        '<polyline class="stairs" points="'
        + " ".join(f"{f.px(x):.1f},{f.py(y):.1f}" for x, y in path)
        + '"/>'
    )


def _point(a: Mapping[str, Any], at: Point, link: str | None, chosen: bool, rejected: bool) -> str:
    x, y = at
    role = (
        "chosen"
        if chosen
        else "rejected"
        if rejected
        else "usable"
        if not UNUSABLE & set(a["flags"])
        else "unusable"
    )
    said = f"answer {a['index']}, {role}: " + ", ".join(
        f"{d} {v:.2f}" for d, v in a["rewards"].items() if v is not None
    )
    shape = {
        "chosen": f'<circle class="chosen ring" cx="{x:.1f}" cy="{y:.1f}" r="9.5"/>',
        "rejected": f'<path class="rejected ring" d="M{x - 9:.1f} {y - 9:.1f}h18v18h-18z"/>',
    }.get(role, "")
    mark = f'{shape}<circle class="dot {role}" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}"/>'
    if link is None:
        return mark
    return (
        f'<a href="{escape(link)}{a["index"]}"'
        f' aria-label="{escape(said)}"><title>{escape(said)}</title>{mark}</a>'
    )


def _above(
    answers: Sequence[Mapping[str, Any]], dims: tuple[str, str], floors: Mapping[str, float]
) -> int:
    return sum(
        all((v := a["rewards"].get(d)) is not None and v >= floors.get(d, 0.0) - 1e-9 for d in dims)
        for a in answers
    )
