"""Pictures as inline SVG: a prompt's answers in reward space, the scores of a pair, a histogram
whose bars are links. Templates call these functions as `pictures.NAME(...)`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from markupsafe import Markup

from ..report.markup import (
    Frame,
    Point,
    axes,
    cut_label,
    dot,
    escape,
    panel,
    rule,
    shown,
    text,
    upright,
    url,
)
from .folder import PairRow
from .pairs import PairQuery
from .provenance import BEFORE, PromptProvenance, ScoredAnswer

RADIUS = 4.6
CROWD = 25.0  # half the distance of two levels of a five-point scale
TURN = math.pi * (3 - math.sqrt(5))
UNUSABLE = frozenset({"empty", "truncated", "repetition", "marks", "duplicate"})
TICKS = [(v, f"{v:g}") for v in (0, 0.25, 0.5, 0.75, 1)]
TITLES = {
    "identity": "Before fusion",
    "before": "Before fusion",
    "presample": "Before fusion (presamples)",
    "fused": "After fusion",
}
Plane = tuple[str, str]  # the dimensions across and up


class RewardSpaces(NamedTuple):
    """The pictures of a prompt's answers in one plane, and the planes to choose from.

    `linked`: whether a point is a link to its answer.
    """

    panels: list[Markup]
    plane: Plane
    planes: list[Plane]
    linked: bool


def reward_spaces(
    prompt: PromptProvenance,
    dims: Sequence[str],
    floors: Mapping[str, float],
    wanted: tuple[str | None, str | None],
    link: str | None,
) -> RewardSpaces | None:
    """The prompt's answers before fusion and after it; None where there is no plane to draw.

    `link`: page on which the answers are, empty for the page itself, None for none.
    """
    if len(dims) < 2:
        return None
    plane = _plane(prompt, dims, wanted)
    arms = {arm.name: arm for arm in prompt.arms}
    before = next((b for b in BEFORE if b in arms), None)
    names = [*([before] if before else []), *(n for n in arms if n not in BEFORE)]
    panels = [
        reward_space(
            TITLES.get(n, f"Arm {n}"),
            arms[n].answers,
            plane,
            floors,
            [(p["chosen"], p["rejected"]) for p in arms[n].selected],
            None if link is None else f"{link}#{n}-",
        )
        for n in names
    ]
    planes = [plane if set(p) == set(plane) else p for p in combinations(dims, 2)]
    return RewardSpaces([Markup(p) for p in panels], plane, planes, link is not None)


def _plane(
    prompt: PromptProvenance, dims: Sequence[str], wanted: tuple[str | None, str | None]
) -> Plane:
    x, y = wanted
    if x in dims and y in dims and x != y:
        return str(x), str(y)
    profile = prompt.profile or {}
    carried = profile.get("carried_dim")
    x = str(carried) if carried in dims else dims[0]
    added, binding = (profile.get(k) or () for k in ("target_dims", "binding_dims"))
    return x, next(d for d in (*added, *binding, *dims) if d in dims and d != x)


def reward_space(
    title: str,
    answers: Sequence[ScoredAnswer],
    plane: Plane,
    floors: Mapping[str, float],
    pairs: Sequence[tuple[int, int]],
    link: str | None,
) -> str:
    """One panel: answers, pass thresholds, Pareto staircase, the pairs ringed.

    Rewards lie on few levels, so answers of one place are laid out round it. `pairs`: (chosen,
    rejected) by answer index; answer 3 links to `link` + "3", to nothing where that is None.
    """
    f = Frame((-0.14, 1.14), (-0.14, 1.14), 400, 360, 52, 10, 28, 40)
    placed = _place(f, answers, plane)
    drawn = [a for a in answers if a.index in placed]
    usable = [_at(a, plane) for a in drawn if not UNUSABLE & set(a.flags)]
    chosen, rejected = ({p[side] for p in pairs} for side in (0, 1))
    marks = [
        *axes(f, plane[0], plane[1], TICKS, TICKS),
        *_thresholds(f, plane, floors),
        _staircase(f, usable),
        *(rule(*placed[c], *placed[r], "tie") for c, r in pairs if c in placed and r in placed),
        *(_point(a, placed[a.index], link, a.index in chosen, a.index in rejected) for a in drawn),
    ]
    above = sum(
        all((v := a.rewards.get(d)) is not None and v >= floors.get(d, 0.0) - 1e-9 for d in plane)
        for a in answers
    )
    left_out = len(answers) - len(placed)
    description = (
        f"{len(placed)} answers by {plane[0]} (across) and {plane[1]} (up), {above} at or above"
        " both floors" + (f", {left_out} without both scores left out" if left_out else "")
    )
    role = "img" if link is None else "group"
    shown_of = f"{len(placed)} of {len(answers)}" if left_out else f"{len(placed)}"
    return panel(f"{title}: {shown_of} answers", description, f, marks, role)


def _place(f: Frame, answers: Sequence[ScoredAnswer], plane: Plane) -> dict[int, Point]:
    """Where each answer stands, in pixels; those of the same rewards spiral outwards, within CROWD
    of their place."""
    at = {
        a.index: _at(a, plane) for a in answers if all(a.rewards.get(d) is not None for d in plane)
    }
    total, seen = Counter(at.values()), Counter[Point]()
    out = {}
    for index, (x, y) in at.items():
        k = seen[x, y]
        seen[x, y] += 1
        r, angle = math.sqrt(k) * min(RADIUS * 1.75, CROWD / math.sqrt(total[x, y])), k * TURN
        out[index] = (f.px(x) + r * math.cos(angle), f.py(y) + r * math.sin(angle))
    return out


def _at(a: ScoredAnswer, plane: Plane) -> Point:
    x, y = (a.rewards[d] for d in plane)
    return x or 0.0, y or 0.0  # an answer without both scores has no place


def _thresholds(f: Frame, plane: Plane, floors: Mapping[str, float]) -> list[str]:
    x, y = (floors.get(d) for d in plane)
    out = []
    if x is not None and y is not None:
        width, height = f.width - f.right - f.px(x), f.py(y) - f.top
        out.append(
            f'<rect class="good" x="{f.px(x):.1f}" y="{f.top}" width="{width:.1f}"'
            f' height="{height:.1f}"/>'
        )
    if x is not None:
        out += [upright(f, x, "z"), text(f.px(x) + 4, f.height - f.bottom - 5, "floor", "n")]
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
    points_ = " ".join(f"{f.px(x):.1f},{f.py(y):.1f}" for x, y in path)
    return f'<polyline class="stairs" points="{points_}"/>'


def _point(a: ScoredAnswer, at: Point, link: str | None, chosen: bool, rejected: bool) -> str:
    x, y = at
    usable = "unusable" if UNUSABLE & set(a.flags) else "usable"
    role = "chosen" if chosen else "rejected" if rejected else usable
    ring = {
        "chosen": f'<circle class="chosen ring" cx="{x:.1f}" cy="{y:.1f}" r="9.5"/>',
        "rejected": f'<path class="rejected ring" d="M{x - 9:.1f} {y - 9:.1f}h18v18h-18z"/>',
    }.get(role, "")
    mark = f'{ring}<circle class="dot {role}" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}"/>'
    if link is None:
        return mark
    label = escape(
        f"answer {a.index}, {role}: "
        + ", ".join(f"{d} {v:.2f}" for d, v in a.rewards.items() if v is not None)
    )
    href = escape(link) + str(a.index)
    return f'<a href="{href}" aria-label="{label}"><title>{label}</title>{mark}</a>'


def pair_scores(row: PairRow, dims: Sequence[str], floors: Mapping[str, float]) -> Markup:
    """The rewards of both sides of a pair, dimension by dimension, against the pass thresholds."""
    f = Frame((0, 1), (0, 1), 420, 62 + 34 * len(dims), 110, 16, 28, 36)
    marks, numbers = axes(f, "reward", "", TICKS, []), []
    for i, d in enumerate(dims):
        y = f.top + 17 + 34 * i
        chosen, rejected = row[f"chosen_reward_{d}"], row[f"rejected_reward_{d}"]
        marks.append(text(f.left - 8, y + 4, cut_label(d, 14), "e"))
        if d in floors:
            marks.append(rule(f.px(floors[d]), y - 13, f.px(floors[d]), y + 13, "z"))
        if chosen is None or rejected is None:
            marks.append(text(f.left + 4, y + 4, "not measured", "s"))
            continue
        marks += [
            rule(f.px(rejected), y, f.px(chosen), y, "tie"),
            dot(f.px(rejected), y, "down", 1, f"rejected {rejected:.2f}"),
            dot(f.px(chosen), y, "up", 0, f"chosen {chosen:.2f}"),
        ]
        numbers.append(f"{d}: chosen {chosen:.2f}, rejected {rejected:.2f}")
    title = "Rewards: circle chosen, square rejected, dashed the floor"
    return Markup(panel(title, "; ".join(numbers), f, marks))


def histogram(
    bins: Sequence[tuple[float, float, int]], query: PairQuery, title: str, keep: Mapping[str, str]
) -> Markup | str:
    """Bars that open the pairs of `query` in their range, `keep` in their links; a sentence where
    there is nothing to draw."""
    if not bins:
        return f"{title}: none is known."
    start, stop, most = bins[0][0], bins[-1][1], max(n for *_, n in bins)
    if start == stop:
        return f"{title}: {shown(start)} for all {bins[0][2]:,}."
    f = Frame((start, stop), (0, most * 1.05), 400, 150, 46, 10, 24, 34)
    marks = axes(f, "", "pairs")
    for left, right, n in bins:
        if n:
            current = query.low is not None and abs(query.low - left) < 1e-5
            state = query.params(low=round(left, 5), high=round(right, 5))
            link = url("/pairs", {**keep, **state})
            marks.append(_bar(f, (left, right), n, link, current))
    description = (
        f"{sum(n for *_, n in bins):,} pairs from {start:.2f} to {stop:.2f}; each bar is a link"
    )
    return Markup(f'<div class="hist">{panel(title, description, f, marks, "group")}</div>')


def _bar(f: Frame, ends: tuple[float, float], n: int, href: str, current: bool) -> str:
    """A bar, and over its whole height a place to point at."""
    x, y, width, bottom = f.px(ends[0]), f.py(n), f.px(ends[1]) - f.px(ends[0]), f.height - f.bottom
    label = f"{ends[0]:.2f} to {ends[1]:.2f}: {n:,} pairs"
    return (
        f'<a href="{escape(href)}" aria-label="{label}"{" aria-current=true" if current else ""}>'
        f'<title>{label}</title><rect class="h" x="{x + 0.7:.1f}" y="{y:.1f}"'
        f' width="{width - 1.4:.1f}" height="{max(bottom - y, 1.5):.1f}"/><rect class="hit"'
        f' x="{x:.1f}" y="{f.top}" width="{width:.1f}" height="{bottom - f.top}"/></a>'
    )
