"""Figures about prompts, arms and answers, drawn from report.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .svg import (
    Figure,
    Frame,
    arm_style,
    axes,
    box,
    dot,
    interval,
    interval_rows,
    line,
    panel,
    percent,
    shown,
)
from .values import ArmDifference, ArmsReport, Plane, Profile, ProfilePanel, Report

BOOT = "95 % interval by cluster bootstrap over source prompts"
METRIC_NAMES = {
    "dominance_rate": "dominance rate",
    "joint_pass": "joint pass",
    "hypervolume": "hypervolume",
    "erd": "effective dimensions",
}


def profile(r: ArmsReport | Report) -> Figure:
    """The paper's Fig. 2 on this run."""
    data, dims = r["figures"]["profile"], r["settings"]["dimensions"]
    passed = [(d, f"d{dims.index(d)}") for d in data["passed"]]
    rows = [
        [
            *(p["class"], p["arm"], q["k"], q["n"]),
            *(map(percent, q["grades"]) if q["grades"] else ["–"] * 5),
            *(interval(cells[d]) for d, _ in passed for cells in (q["any_pass"], q["all_pass"])),
        ]
        for p in data["panels"]
        for q in p["points"]
    ]
    legend: list[tuple[str, int | None, str]] = [
        (f"q{i}", None, f"best {data['graded']} grade {i + 1}") for i in range(5)
    ]
    legend += [(style, 0, f"{d}: one of k passes (dashed: all k pass)") for d, style in passed]
    return Figure(
        "profile",
        "Do more samples of a prompt bring better answers, before and after fusion?",
        "unit: source prompt; classes by the dimension that a prompt carries",
        [_profile_panel(p, data, dims) for p in data["panels"]],
        [
            *("carries", "arm", "k", "prompts"),
            *(f"grade {i + 1}" for i in range(5)),
            *(f"{d} {how}" for d, _ in passed for how in ("any", "all")),
        ],
        rows,
        f"Bars: {data['graded']} of the best of k answers, in fifths of the scale. Lines: share of"
        " prompts with one of k (solid) and all k (dashed) answers at or above the floor; k up to"
        f" three quarters of the {r['settings']['rollouts']} answers of an arm, on the same prompts"
        f" at every k. {BOOT}.",
        legend,
    )


def _profile_panel(p: ProfilePanel, data: Profile, dims: Sequence[str]) -> str:
    points = p["points"]
    f = Frame((0, max(len(points), 1)), (0, 1))
    ticks = [(i + 0.5, str(q["k"])) for i, q in enumerate(points)]
    marks = axes(f, "samples k", "share of prompts", ticks)
    for i, q in enumerate(points):
        low, left = 0.0, f.px(i + 0.2)
        for grade, share in enumerate(q["grades"] or []):
            y, tip = f.py(low + share), f"k = {q['k']}, grade {grade + 1}: {percent(share)}"
            size = f.px(i + 0.8) - left, f.py(low) - y
            marks.append(box(left, y, *size, f"q{grade}", tip=tip))
            low += share
    for d in data["passed"]:
        style = f"d{dims.index(d)}"
        for how, dash, mark in (("any", "", 0), ("all", " dash", 5)):
            cells = [q["any_pass" if how == "any" else "all_pass"][d]["value"] for q in points]
            line_points = [(i + 0.5, v) for i, v in enumerate(cells) if v is not None]
            marks += [line(f, line_points, "halo"), line(f, line_points, style + dash)]
            marks += [
                dot(f.px(x), f.py(y), style, mark, f"{d}, {how} pass: {percent(y)}")
                for x, y in line_points
            ]
    description = "no data"
    if points:
        last = points[-1]
        description = "; ".join(
            f"{d}: any of {last['k']} pass {percent(last['any_pass'][d]['value'])}, all"
            f" {percent(last['all_pass'][d]['value'])}"
            for d in data["passed"]
        )
    n = points[0]["n"] if points else 0
    return panel(f"carries {p['class']} · {p['arm']} · n = {n:,}", description, f, marks)


def rewards(r: ArmsReport | Report) -> Figure:
    """The paper's Fig. 6 on this run: identity against fused."""
    data, dims = r["figures"]["rewards"], r["settings"]["dimensions"]
    arms = _before_and_fused(data["arms"])
    base = ("identity", "before")
    moved = {(x["arm"], x["metric"]): x for x in reversed(r["differences"]) if x["minus"] in base}
    rows = [
        [
            *(a, d, interval(r["arms"][a]["metrics"][f"reward_{d}"])),
            interval(moved.get((a, f"reward_{d}"))),
            data["wasserstein_to_before"].get(a, {}).get(d),
            *map(percent, _fifths(data["arms"][a][d])),
        ]
        for a in data["arms"]
        for d in dims
    ]
    return Figure(
        "rewards",
        "How do the rewards of the answers move?",
        f"unit: source prompt (each counts once), {_most(r):,} prompts",
        [_rewards_panel(r, arms, d) for d in dims],
        [
            *("arm", "dimension", "mean", "paired difference to identity", "Wasserstein-1"),
            *(f"about {i / 4:g}" for i in range(5)),
        ],
        rows,
        f"Fresh answers only, never the presamples that chose the prompts. {BOOT}.",
        [(arm_style(a)[0], None, a) for a in arms],
    )


def _before_and_fused(arms: Iterable[str]) -> list[str]:
    names = list(arms)
    return [a for a in ("identity", "before", "fused") if a in names] or names[:2]


def _rewards_panel(r: ArmsReport | Report, arms: Sequence[str], d: str) -> str:
    fifths = {a: _fifths(r["figures"]["rewards"]["arms"][a][d]) for a in arms}
    f = Frame((0, 5), (0, max(0.1, *map(max, fifths.values())) * 1.05))
    ticks = [(i + 0.5, f"{i / 4:g}") for i in range(5)]
    marks = axes(f, f"reward, {d}", "share of answers", ticks)
    width = (f.px(0.7) - f.px(0)) / len(arms) - 1
    for j, (a, shares) in enumerate(fifths.items()):
        for i, v in enumerate(shares):
            x, tip = f.px(i + 0.15 + 0.7 * j / len(arms)), f"{a}, reward about {i / 4:g}: "
            size = width, f.py(0) - f.py(v)
            marks.append(box(x, f.py(v), *size, arm_style(a)[0], tip=tip + percent(v)))
    means = (f"{a} mean {shown(r['arms'][a]['metrics'][f'reward_{d}']['value'])}" for a in arms)
    return panel(d, ", ".join(means), f, marks)


def _most(r: ArmsReport | Report) -> int:
    return max(v["n"] for v in r["arms"].values())


def _fifths(levels: Sequence[float | None]) -> list[float]:
    out = [0.0] * 5
    for i, v in enumerate(levels):
        out[round(i / (len(levels) - 1) * 4)] += v or 0.0
    return out


def arms(r: ArmsReport | Report) -> Figure:
    """Each arm's level of the primary and secondary metrics."""
    panels = []
    for m in METRIC_NAMES:
        cells = [(a, v["metrics"][m]) for a, v in r["arms"].items()]
        top = max([1e-9, *(c["high"] or c["value"] or 0 for _, c in cells)]) * 1.05
        panels.append(interval_rows(_title(m, r), [(a, c, a) for a, c in cells], (0, top)))
    columns = (*METRIC_NAMES, "eigen_entropy", "scored", "refusal", "repeats")
    return Figure(
        "arms",
        "Are prompts single-reward, and does fusion change that?",
        f"unit: source prompt, {_most(r):,} prompts, the same in every arm",
        panels,
        [
            *("arm", "prompts", *METRIC_NAMES.values()),
            *("exp(H) of eigenvalues", "answers scored", "refusals", "repeats", "prompt words"),
        ],
        [
            [
                *(a, v["n"], *(interval(v["metrics"][m]) for m in columns)),
                shown(v["prompt_length"]["words"]),
            ]
            for a, v in r["arms"].items()
        ],
        "Dominance rate: pairs of answers in which one beats the other by two sigma in every"
        " dimension. Joint pass: one of k answers reaches every floor. Hypervolume: volume under"
        f" the front of k answers. k = {r['settings']['k']} in every arm. {BOOT}, BCa for rare"
        " shares.",
    )


def forest(r: ArmsReport | Report) -> Figure:
    """Fused minus each control."""
    panels = []
    found = [d for d in r["differences"] if d["metric"] in METRIC_NAMES]
    for m in METRIC_NAMES:
        cells = [d for d in found if d["metric"] == m]
        if cells:
            ends = [v for c in cells for v in (c["low"], c["high"], c["value"]) if v is not None]
            span = max(0.03, *(abs(v) for v in ends)) * 1.08 if ends else 1.0
            low = -span if min([*ends, 0]) < -0.15 * span else -0.15 * span
            marks = [(_minus(d), d, d["minus"]) for d in cells]
            panels.append(interval_rows(_title(m, r), marks, (low, span), "difference", (0.0, "a")))
    p_holm = {(c["metric"], c["control"]): f"{c['p_holm']:.4f}" for c in r["comparisons"]}
    rows = [
        [
            *(_minus(d), METRIC_NAMES[d["metric"]], d["n"], interval(d)),
            p_holm.get((d["metric"], d["minus"]), "–") if d["arm"] == "fused" else "–",
        ]
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
        if panels
        else "Not drawn: the run has one arm only. A build with fuse.arms: [identity, single,"
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


def _minus(d: ArmDifference) -> str:
    return f"{d['arm']} − {d['minus']}"


def _title(metric: str, r: ArmsReport | Report) -> str:
    title = METRIC_NAMES[metric]
    return f"{title} in {r['settings']['k']}" if metric in ("joint_pass", "hypervolume") else title


def planes(r: ArmsReport | Report) -> Figure:
    """Where answers lie in the plane of two rewards."""
    panels, rows, found = [], [], r["figures"]["correlations"]
    for p in r["figures"]["planes"]["pairs"]:
        panels += [_plane(p, a) for a in _before_and_fused(p["arms"])]
        n = p["cells"]
        high = [i for i in range(n) if i >= 0.7 * (n - 1)]
        for a, v in p["arms"].items():
            both = sum(v["cells"][i][j] or 0.0 for i in high for j in high)
            corners = [(i, c) for i, c in enumerate(v["staircase"]) if c >= 0]
            stairs = " ".join(f"{i / (n - 1):g}→{c / (n - 1):g}" for i, c in corners)
            together = (p["x"], p["y"], a)
            r_xy = next((c for c in found if (c["x"], c["y"], c["arm"]) == together), None)
            rows.append([f"{p['x']} × {p['y']}", a, percent(both), interval(r_xy), stairs])
    c = r["coverage"]
    coverage = (
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
        ["dimensions", "arm", "both at 0.7 or more", "correlation", "staircase (x → y)"],
        rows,
        "Stronger colour: more answers. Staircase: one answer in four has both rewards at least"
        " there; the further out, the better. Correlation: over the answers to one prompt."
        + coverage,
    )


def _plane(p: Plane, arm: str) -> str:
    f, n = Frame((-0.125, 1.125), (-0.125, 1.125), height=300, right=20), p["cells"]
    cells = [[v or 0.0 for v in row] for row in p["arms"][arm]["cells"]]
    # a scale of five levels
    between = any(v for i, row in enumerate(cells) for j, v in enumerate(row) if i % 2 or j % 2)
    wide = 1 if between else 2
    most = max(max(row) for row in cells) or 1.0
    marks = axes(f, f"reward, {p['x']}", f"reward, {p['y']}")
    side = f.px(wide / (n - 1)) - f.px(0)
    tall = f.py(0) - f.py(wide / (n - 1))
    for i, row in enumerate(cells):
        for j, v in enumerate(row):
            if v:
                x, y = i / (n - 1), j / (n - 1)
                corner = f.px(x) - side / 2, f.py(y) - tall / 2
                shade, tip = 0.08 + 0.92 * (v / most) ** 0.6, f"{x:g}, {y:g}: {percent(v)}"
                marks.append(box(*corner, side, tall, arm_style(arm)[0], shade, tip))
    corners = [
        (i / (n - 1), c / (n - 1)) for i, c in enumerate(p["arms"][arm]["staircase"]) if c >= 0
    ]
    heights = [*(y for _, y in corners[1:]), -0.125]
    steps = [q for (x, y), down in zip(corners, heights, strict=False) for q in ((x, y), (x, down))]
    path = [(-0.125, corners[0][1]), *steps] if corners else []
    marks += [line(f, path, "halo"), line(f, path, "ink")]
    description = f"staircase of one answer in four: {corners or 'none'}"
    return panel(f"{p['x']} × {p['y']} · {arm}", description, f, marks)
