"""Figures about prompts, arms and answers, drawn from report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figure import Figure, arm_style, interval, percent, shown
from .svg import Frame, axes, box, dot, line, panel, rule, short, text, whisker

BOOT = "95 % interval by cluster bootstrap over source prompts"
METRIC_NAMES = {
    "dominance_rate": "dominance rate",
    "joint_pass": "joint pass",
    "hypervolume": "hypervolume",
    "erd": "effective dimensions",
}


def profile(r: Mapping[str, Any]) -> Figure:
    """The paper's Fig. 2 on this run."""
    data, dims = r["figures"]["profile"], r["settings"]["dimensions"]
    panels, rows = [], []
    for p in data["panels"]:
        panels.append(_profile_panel(p, data, dims))
        for point in p["points"]:
            rows.append(
                [
                    p["class"],
                    p["arm"],
                    point["k"],
                    point["n"],
                    *map(percent, point["grades"] or [None] * 5),
                    *(
                        interval(point[how][d])
                        for d in data["passed"]
                        for how in ("any_pass", "all_pass")
                    ),
                ]
            )
    legend: list[tuple[str, int | None, str]] = [
        (f"q{i}", None, f"best {data['graded']} grade {i + 1}") for i in range(5)
    ]
    legend += [
        (f"d{dims.index(d)}", 0, f"{d}: one of k passes (dashed: all k pass)")
        for d in data["passed"]
    ]
    return Figure(
        "profile",
        "Do more samples of a prompt bring better answers, before and after fusion?",
        "unit: source prompt; classes by the dimension that a prompt carries",
        panels,
        [
            "carries",
            "arm",
            "k",
            "prompts",
            *(f"grade {i + 1}" for i in range(5)),
            *(f"{d} {how}" for d in data["passed"] for how in ("any", "all")),
        ],
        rows,
        f"Bars: {data['graded']} of the best of k answers, in fifths of the scale. Lines: share of"
        " prompts with one of k (solid) and all k (dashed) answers at or above the floor; k up to"
        f" three quarters of the {r['settings']['rollouts']} answers of an arm, on the same prompts"
        f" at every k. {BOOT}.",
        legend,
    )


def _profile_panel(p: Mapping[str, Any], data: Mapping[str, Any], dims: Sequence[str]) -> str:
    points = p["points"]
    f = Frame((0, max(len(points), 1)), (0, 1))
    marks = axes(
        f, "samples k", "share of prompts", [(i + 0.5, str(q["k"])) for i, q in enumerate(points)]
    )
    for i, q in enumerate(points):
        low = 0.0
        for grade, share in enumerate(q["grades"] or []):
            y = f.py(low + share)
            marks.append(
                box(
                    f.px(i + 0.2),
                    y,
                    f.px(i + 0.8) - f.px(i + 0.2),
                    f.py(low) - y,
                    f"q{grade}",
                    said=f"k = {q['k']}, grade {grade + 1}: {percent(share)}",
                )
            )
            low += share
    for d in data["passed"]:
        style = f"d{dims.index(d)}"
        for how, dash in (("any_pass", ""), ("all_pass", " dash")):
            line_points = [
                (i + 0.5, q[how][d]["value"])
                for i, q in enumerate(points)
                if q[how][d]["value"] is not None
            ]
            marks += [line(f, line_points, "halo"), line(f, line_points, style + dash)]
            marks += [
                dot(
                    f.px(x),
                    f.py(y),
                    style,
                    0 if how == "any_pass" else 5,
                    f"{d}, {how.replace('_', ' ')}: {percent(y)}",
                )
                for x, y in line_points
            ]
    n = points[0]["n"] if points else 0
    last = points[-1] if points else None
    said = (
        "; ".join(
            f"{d}: any of {last['k']} pass {percent(last['any_pass'][d]['value'])}, all"
            f" {percent(last['all_pass'][d]['value'])}"
            for d in data["passed"]
        )
        if last
        else "no data"
    )
    return panel(f"carries {p['class']} · {p['arm']} · n = {n:,}", said, f, marks)


def rewards(r: Mapping[str, Any]) -> Figure:
    """The paper's Fig. 6 on this run: identity against fused."""
    data, dims = r["figures"]["rewards"], r["settings"]["dimensions"]
    arms = [a for a in ("identity", "before", "fused") if a in data["arms"]] or list(data["arms"])[
        :2
    ]
    panels, rows = [], []
    for d in dims:
        f = Frame((0, 5), (0, max(0.1, *(max(_fifths(data["arms"][a][d])) for a in arms)) * 1.05))
        marks = axes(
            f, f"reward, {d}", "share of answers", [(i + 0.5, f"{i / 4:g}") for i in range(5)]
        )
        for j, a in enumerate(arms):
            style, _ = arm_style(a)
            for i, v in enumerate(_fifths(data["arms"][a][d])):
                x, w = f.px(i + 0.15 + 0.7 * j / len(arms)), (f.px(0.7) - f.px(0)) / len(arms)
                marks.append(
                    box(
                        x,
                        f.py(v),
                        w - 1,
                        f.py(0) - f.py(v),
                        style,
                        said=f"{a}, reward about {i / 4:g}: {percent(v)}",
                    )
                )
        means = ", ".join(
            f"{a} mean {shown(r['arms'][a]['metrics'][f'reward_{d}']['value'])}" for a in arms
        )
        panels.append(panel(d, means, f, marks))
    for a in data["arms"]:
        for d in dims:
            moved = next(
                (
                    x
                    for x in r["differences"]
                    if x["arm"] == a
                    and x["metric"] == f"reward_{d}"
                    and x["minus"] in ("identity", "before")
                ),
                None,
            )
            rows.append(
                [
                    a,
                    d,
                    interval(r["arms"][a]["metrics"][f"reward_{d}"]),
                    interval(moved),
                    data["wasserstein_to_before"].get(a, {}).get(d),
                    *map(percent, _fifths(data["arms"][a][d])),
                ]
            )
    return Figure(
        "rewards",
        "How do the rewards of the answers move?",
        f"unit: source prompt (each counts once), {_most(r):,} prompts",
        panels,
        [
            "arm",
            "dimension",
            "mean",
            "paired difference to identity",
            "Wasserstein-1",
            *(f"about {i / 4:g}" for i in range(5)),
        ],
        rows,
        f"Fresh answers only, never the presamples that chose the prompts. {BOOT}.",
        [(arm_style(a)[0], None, a) for a in arms],
    )


def _most(r: Mapping[str, Any]) -> int:
    return max(int(v["n"]) for v in r["arms"].values())


def _fifths(levels: Sequence[float]) -> list[float]:
    out = [0.0] * 5
    for i, v in enumerate(levels):
        out[round(i / (len(levels) - 1) * 4)] += v or 0.0
    return out


def arms(r: Mapping[str, Any]) -> Figure:
    """Each arm's level of the primary and secondary metrics."""
    panels, rows = [], []
    names = list(r["arms"])
    for m, title in METRIC_NAMES.items():
        cells = [(a, r["arms"][a]["metrics"][m]) for a in names]
        top = max([1e-9, *(c["high"] or c["value"] or 0 for _, c in cells)]) * 1.05
        panels.append(_rows_panel(_title(m, title, r), cells, (0, top), None, ""))
    for a in names:
        v = r["arms"][a]
        rows.append(
            [
                a,
                v["n"],
                *(
                    interval(v["metrics"][m])
                    for m in (*METRIC_NAMES, "eigen_entropy", "scored", "refusal")
                ),
                shown(v["prompt_length"]["words"]),
            ]
        )
    return Figure(
        "arms",
        "Are prompts single-reward, and does fusion change that?",
        f"unit: source prompt, {_most(r):,} prompts, the same in every arm",
        panels,
        [
            "arm",
            "prompts",
            *METRIC_NAMES.values(),
            "exp(H) of eigenvalues",
            "answers scored",
            "refusals",
            "prompt words",
        ],
        rows,
        "Dominance rate: pairs of answers in which one beats the other by two sigma in every"
        " dimension. Joint pass: one of k answers reaches every floor. Hypervolume: volume under"
        f" the front of k answers. k = {r['settings']['k']} in every arm. {BOOT}, BCa for rare"
        " shares.",
    )


def forest(r: Mapping[str, Any]) -> Figure:
    """Fused minus each control."""
    panels = []
    found = [d for d in r["differences"] if d["metric"] in METRIC_NAMES]
    for m, title in METRIC_NAMES.items():
        cells = [(f"{d['arm']} − {d['minus']}", d) for d in found if d["metric"] == m]
        if not cells:
            continue
        ends = [v for _, c in cells for v in (c["low"], c["high"], c["value"]) if v is not None]
        span = max(0.03, *(abs(v) for v in ends)) * 1.08 if ends else 1.0
        low = -span if min([*ends, 0]) < -0.15 * span else -0.15 * span
        panels.append(_rows_panel(_title(m, title, r), cells, (low, span), 0.0, "difference"))
    rows = [
        [f"{d['arm']} − {d['minus']}", METRIC_NAMES[d["metric"]], d["n"], interval(d), _holm(r, d)]
        for d in found
    ]
    gaps = {
        a: v["prompt_length"]["log_ratio_to_fused"] for a, v in r["arms"].items() if a != "fused"
    }
    matched = ", ".join(f"{a} {shown(g)}" for a, g in gaps.items() if g is not None)
    note = (
        "single and generic have the length of the fused prompt where they are matched, so that a"
        " gain over them is not one of length (mean log length ratio to fused:"
        f" {matched or 'none'}; within ±0.05 counts as matched). p by 10,000 sign flips, adjusted"
        " by Holm."
    )
    if not panels:
        note = (
            "Not drawn: the run has one arm only. A build with fuse.arms: [identity, single,"
            " generic, random, fused] has it."
        )
    return Figure(
        "forest",
        "Is it the dimensions, or only length and elaboration?",
        f"unit: source prompt, {_most(r):,} prompts, paired",
        panels,
        ["difference", "metric", "prompts", "value", "p (Holm)"],
        rows,
        note,
    )


def _holm(r: Mapping[str, Any], d: Mapping[str, Any]) -> str:
    return next(
        (
            f"{c['p_holm']:.4f}"
            for c in r["comparisons"]
            if d["arm"] == "fused" and (c["metric"], c["control"]) == (d["metric"], d["minus"])
        ),
        "–",
    )


def _title(metric: str, title: str, r: Mapping[str, Any]) -> str:
    return f"{title} in {r['settings']['k']}" if metric in ("joint_pass", "hypervolume") else title


def _rows_panel(
    title: str,
    cells: Sequence[tuple[str, Mapping[str, Any]]],
    x: tuple[float, float],
    zero: float | None,
    label: str,
) -> str:
    f = Frame(x, (0, 1), height=66 + 22 * len(cells), left=118, right=16)
    marks = axes(f, label, "", None, [])
    if zero is not None:
        marks.append(rule(f.px(zero), f.top, f.px(zero), f.height - f.bottom, "a"))
    for i, (name, c) in enumerate(cells):
        y = f.top + 12 + 22 * i
        style, mark = arm_style(name.split(" − ")[0] if zero is None else name.split(" − ")[-1])
        marks += [
            text(f.left - 8, y + 4, short(name, 20), "e"),
            whisker(
                f,
                y,
                c["low"],
                c["value"],
                c["high"],
                style,
                mark,
                f"{name}: {interval(c)}, n = {c['n']}",
            ),
        ]
    return panel(title, "; ".join(f"{n} {interval(c)}" for n, c in cells), f, marks)


def planes(r: Mapping[str, Any]) -> Figure:
    """Where answers lie in the plane of two rewards."""
    panels, rows = [], []
    for p in r["figures"]["planes"]["pairs"]:
        arms = [a for a in ("identity", "before", "fused") if a in p["arms"]] or list(p["arms"])[:2]
        n = p["cells"]
        for a in arms:
            panels.append(_plane(p, a, n))
        for a, v in p["arms"].items():
            both = sum(
                v["cells"][i][j]
                for i in range(n)
                for j in range(n)
                if i >= 0.7 * (n - 1) and j >= 0.7 * (n - 1)
            )
            rows.append(
                [
                    f"{p['x']} × {p['y']}",
                    a,
                    percent(both),
                    " ".join(
                        f"{i / (n - 1):g}→{c / (n - 1):g}"
                        for i, c in enumerate(v["staircase"])
                        if c >= 0
                    ),
                ]
            )
    c = r["coverage"]
    said = (
        f" Coverage: {interval(c['fused_over_identity'])} of the identity answers are dominated by"
        f" a fused one, {interval(c['identity_over_fused'])} the other way round."
        if c
        else ""
    )
    return Figure(
        "planes",
        "What is the trade-off between two rewards?",
        f"unit: source prompt (each counts once), {_most(r):,} prompts",
        panels,
        ["dimensions", "arm", "answers with both at 0.7 or more", "staircase (x → y)"],
        rows,
        "Darker: more answers. Staircase: one answer in four has both rewards at least there; the"
        " further out, the better." + said,
    )


def _plane(p: Mapping[str, Any], arm: str, n: int) -> str:
    f = Frame((-0.125, 1.125), (-0.125, 1.125), height=300, right=20)
    cells, stairs = p["arms"][arm]["cells"], p["arms"][arm]["staircase"]
    # a scale of five levels
    wide = (
        1 if any(row[j] for i, row in enumerate(cells) for j in range(n) if i % 2 or j % 2) else 2
    )
    most = max(max(row) for row in cells) or 1.0
    marks = axes(f, f"reward, {p['x']}", f"reward, {p['y']}")
    side = f.px(wide / (n - 1)) - f.px(0)
    tall = f.py(0) - f.py(wide / (n - 1))
    for i, row in enumerate(cells):
        for j, v in enumerate(row):
            if v:
                marks.append(
                    box(
                        f.px(i / (n - 1)) - side / 2,
                        f.py(j / (n - 1)) - tall / 2,
                        side,
                        tall,
                        arm_style(arm)[0],
                        0.08 + 0.92 * (v / most) ** 0.6,
                        f"{i / (n - 1):g}, {j / (n - 1):g}: {percent(v)}",
                    )
                )
    corner = [(i / (n - 1), c / (n - 1)) for i, c in enumerate(stairs) if c >= 0]
    steps = [
        q
        for (x, y), after in zip(corner, [*corner[1:], (None, -0.125)], strict=True)
        for q in ((x, y), (x, after[1]))
    ]
    path = [(-0.125, corner[0][1]), *steps] if corner else []
    marks += [line(f, path, "halo"), line(f, path, "ink")]
    return panel(
        f"{p['x']} × {p['y']} · {arm}",
        f"staircase of one answer in four: {corner or 'none'}",
        f,
        marks,
    )
