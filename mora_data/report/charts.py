"""The figures of the report, drawn from report.json: about prompts, arms and answers; about pairs,
scorers and the run itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..text import commonest_first
from .markup import (
    Figure,
    Frame,
    arm_style,
    axes,
    band,
    box,
    cut_label,
    dot,
    fitting,
    interval,
    interval_rows,
    line,
    panel,
    percent,
    shown,
    text,
    upright,
)
from .values import (
    ArmDifference,
    ArmsReport,
    LengthFigure,
    MarginNumbers,
    PairNumbers,
    Plane,
    Profile,
    ProfilePanel,
    Repeats,
    Report,
    ScorerNoise,
)

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


# pairs, scorers, the run

NO_PAIRS = "Not drawn: the run has no pairs (it was not built to the end, or nothing was selected)."


def margins(r: Report) -> Figure:
    """Distribution of the margins, as selected and as scored once more."""
    p, noise = r["pairs"], r["judge"]["dimensions"]
    drawn = list(enumerate(r["settings"]["dimensions"] if p["n"] else []))
    shrink = r["figures"]["margins"]["shrinkage"]
    note = NO_PAIRS
    if p["n"]:
        note = (
            f"Before any pair was dropped for it, the best pair of each of {shrink['n']:,} prompts"
            f" and arms kept {percent(shrink['ratio'])} of its margins when scored once more. "
            if shrink
            else "No pair was scored once more. "
        )
        note += (
            f"Pairs that lose in some dimension: {percent(p['neg_dim_rate']['value'])} as selected,"
            f" {percent(p['neg_dim_rate_confirmed']['value'])} as scored once more."
        )
    return Figure(
        "margins",
        "Are the margins large, in which dimensions, and are they real?",
        f"unit: pair; intervals over {p.get('prompts', 0):,} source prompts",
        [_margin_panel(d, j, p["margins"][d], noise[d]["sigma"] or 0.0) for j, d in drawn],
        ["dimension", "pairs", "mean margin", "scored once more", "share above 2 sigma"],
        [
            [d, m["mean"]["n"], *map(interval, (m["mean"], m["confirmed"], m["above_noise"]))]
            for d, m in ((d, p["margins"][d]) for _, d in drawn)
        ],
        note,
        [("ink", 0, "as selected (solid)"), ("ink", 5, "scored once more (dashed)")],
    )


def _margin_panel(d: str, j: int, m: MarginNumbers, sigma: float) -> str:
    curves = (m["quantiles"], ""), (m["quantiles_confirmed"], " dash")
    known = [([v for v in q if v is not None], dash) for q, dash in curves]
    f = Frame((min([-0.25, *(v for q, _ in known for v in q[:1])]), 1), (0, 1))
    marks = [*axes(f, f"margin, {d}", "share of pairs with at least this"), upright(f, 0, "a")]
    if 0 < 2 * sigma < 1:
        marks += [upright(f, 2 * sigma, "z"), text(f.px(2 * sigma) + 3, f.top + 10, "2σ", "s")]
    for q, dash in known:
        steps = [(v, 1 - i / (len(q) - 1)) for i, v in enumerate(q)]
        after = [(q[min(i + 1, len(q) - 1)], y) for i, (_, y) in enumerate(steps)]
        points = [point for both in zip(steps, after, strict=True) for point in both]
        marks.append(line(f, points, f"d{j % 3}{dash}"))
    description = f"mean {interval(m['mean'])}, scored once more {interval(m['confirmed'])}"
    return panel(f"{d} · n = {m['mean']['n']:,}", description, f, marks)


def length(r: Report) -> Figure:
    """Length and refusals of the two sides."""
    p, data = r["pairs"], r["figures"]["length"]
    question = "Is the chosen answer just longer, or just not a refusal?"
    unit = f"unit: pair, {p['n']:,} pairs"
    if not p["n"] or data is None:
        return Figure("length", question, unit, [], [], [], NO_PAIRS)
    size, refusal = p["length"], p["refusal"]
    rows = [
        ["mean log length ratio", interval(size["log_ratio"])],
        ["chosen longer", interval(size["chosen_longer"])],
        ["equal length", interval(size["equal"])],
        ["AUC of length alone", shown(size["auc"])],
        ["rank correlation of length ratio and margin", shown(size["margin_correlation"])],
        ["chosen refuses", interval(refusal["chosen"])],
        ["rejected refuses", interval(refusal["rejected"])],
        [
            "refusal is rejected, where one side refuses",
            interval(refusal["rejected_where_one_refuses"]),
        ],
        *(
            [f"{side} refuses, prompts that carry {c}", interval(v[side])]
            for c, v in refusal["by_class"].items()
            for side in ("chosen", "rejected")
        ),
        [
            "AUC of wording alone (unseen prompts)",
            shown(p["wording"]["auc"] if p["wording"] else None),
        ],
    ]
    return Figure(
        "length",
        question,
        unit,
        [_length_panel(p, data), _short_cuts_panel(p)],
        ["", "value [95 % interval]"],
        rows,
        "A bar at 0.5 means that length, or refusing, gives nothing away. Refusals are those that"
        " the rules see. Intervals of shares: 95 %; wording: logistic regression on hashed words,"
        " tested on prompts that it has not seen.",
    )


def _length_panel(p: PairNumbers, data: LengthFigure) -> str:
    f = Frame((-2, 2), (0, data["y_max"]), height=260)
    n = len(data["counts"])
    most = max(max(row) for row in data["counts"]) or 1
    side, tall = (f.px(2) - f.px(-2)) / n, (f.py(0) - f.py(data["y_max"])) / n
    ratios = [(-2.0, "¼"), (-1.0, "½"), (0.0, "1"), (1.0, "2"), (2.0, "4")]
    marks = axes(f, "chosen length / rejected length", "total margin", ratios)
    for i, row in enumerate(data["counts"]):
        for j, v in enumerate(row):
            if v:
                x, y, shade = f.px(-2) + i * side, f.py(0) - (j + 1) * tall, (v / most) ** 0.5
                marks.append(box(x, y, side, tall, "a4", 0.1 + 0.9 * shade, f"{v} pairs"))
    marks.append(upright(f, 0, "a"))
    size = p["length"]
    description = (
        f"mean log ratio {interval(size['log_ratio'])}, rank correlation"
        f" {shown(size['margin_correlation'])}"
    )
    return panel("length against margin", description, f, marks)


def _short_cuts_panel(p: PairNumbers) -> str:
    cells = {
        "chosen longer": p["length"]["chosen_longer"],
        "chosen refuses": p["refusal"]["chosen"],
        "rejected refuses": p["refusal"]["rejected"],
        "refusal loses": p["refusal"]["rejected_where_one_refuses"],
    }
    if p["wording"]:
        cells["wording ranks right"] = p["wording"]["pairs_right"]
    rows = [(name, c, "pairs") for name, c in cells.items()]
    title, half = "what would be a short cut", (0.5, "z")
    return interval_rows(title, rows, (0, 1), "share of pairs", half, step=26, left=138)


def judges(r: Report) -> Figure:
    """Reliability of each dimension and how second scores follow the first."""
    panels, rows = [], []
    for j, d in enumerate(r["settings"]["dimensions"]):
        v, again = r["judge"]["dimensions"][d], r["figures"]["repeats"].get(d)
        row: list[object] = [d, shown(v["reliability"]), shown(v["sigma"]), v["scored_twice"]]
        if again:
            panels.append(_repeat_panel(d, again, v, j))
            row += [again["n"], interval(again["same"]), shown(again["kappa"])]
        rows.append(row if again else [*row, 0, "–", "–"])
    return Figure(
        "judges",
        "Can the scorers be trusted?",
        "unit: answer that was scored twice",
        panels,
        [
            *("dimension", "reliability", "sigma of one score", "scored twice at random"),
            *("confirmed", "same score", "weighted kappa"),
        ],
        rows,
        "Reliability = 1 − noise / variance between answers of a prompt, from a random share of the"
        " first prompts' answers: the fair figure. Squares: first against second score of the"
        " selected answers only. They were picked for extreme first scores, so that second scores"
        " lie nearer the middle even with a sound scorer."
        + ("" if panels else " Not drawn: nothing was scored once more."),
    )


def _repeat_panel(d: str, again: Repeats, v: ScorerNoise, j: int) -> str:
    f = Frame((-0.125, 1.125), (-0.125, 1.125), height=300, right=20)
    levels = [(i / 4, f"{i / 4:g}") for i in range(5)]
    marks = axes(f, "first score", "second score", levels, levels)
    side, tall = f.px(0.25) - f.px(0), f.py(0) - f.py(0.25)
    for i, row in enumerate(again["counts"]):
        for k, n in enumerate(row):
            if n:
                x, y, shade = f.px(i / 4), f.py(k / 4), 0.06 + 0.64 * n / sum(row)
                tip = f"{i / 4:g} then {k / 4:g}: {n}"
                corner = x - side / 2, y - tall / 2
                marks.append(box(*corner, side, tall, f"d{j % 3}", shade, tip))
                marks.append(text(x, y + 4, f"{n}", "m"))
    description = (
        f"same score {interval(again['same'])}, weighted kappa {shown(again['kappa'])},"
        f" n = {again['n']}"
    )
    return panel(f"{d} · reliability {shown(v['reliability'])}", description, f, marks)


def composition(r: Report) -> Figure:
    """Category by kind of the pairs, and what was mined."""
    data, p, pairs = r["figures"]["composition"], r["prompts"], r["pairs"]
    diversity = p["diversity"].items()
    of_pairs: dict[str, dict[str, int]] = {}
    if pairs["n"]:
        of_pairs = {"source": pairs["source"], "arm": pairs["arm"], "carried": pairs["carried"]}
    rows: list[list[object]] = [
        *([f"mined, kind {k}", n] for k, n in p["kinds"].items()),
        *([f"mined, category {c}", n] for c, n in p["categories"].items()),
        *([f"pairs, {k} {v}", n] for k, counts in of_pairs.items() for v, n in counts.items()),
    ]
    for a, v in diversity:
        rows += [
            [f"prompts, {a}: distinct words", shown(v["distinct_1"])],
            [f"prompts, {a}: distinct word pairs", shown(v["distinct_2"])],
            [f"prompts, {a}: compression", shown(v["compression"])],
            [f"prompts, {a}: near-duplicates", interval(v["near_duplicates"])],
        ]
    rows += [
        [f"prompts, {a}: Vendi score of {v['vendi_n']}", shown(v["vendi"])] for a, v in diversity
    ]
    note = NO_PAIRS
    if data:
        note = (
            f"The mined categories weigh as much as {shown(p['category_entropy'])} equal ones"
            " (exp of the entropy)."
        )
        if data["left_out"]:
            note += f" {data['left_out']} smaller categories are in the table."
    return Figure(
        "composition",
        "What is in it?",
        f"unit: pair, {pairs['n']:,} pairs; prompts for diversity",
        [_composition_panel(r)] if data else [],
        ["", "number"],
        rows,
        note,
    )


def _composition_panel(r: Report) -> str:
    data = r["figures"]["composition"]
    assert data is not None
    names, kinds, cells = data["rows"], data["columns"], data["counts"]
    f = Frame((0, len(kinds)), (0, 1), height=82 + 24 * len(names), left=138, right=16, bottom=50)
    most = max((max(row) for row in cells), default=0) or 1
    marks = axes(f, "kind of the prompt", "", [], [])
    for i, kind in enumerate(kinds):  # by turns lower, as neighbours would touch
        marks.append(text(f.px(i + 0.5), f.height - 35 + 13 * (i % 2), cut_label(kind, 12), "m"))
    for i, (name, row) in enumerate(zip(names, cells, strict=True)):
        y = f.top + 24 * i
        marks.append(text(f.left - 8, y + 15, fitting(name, f.left - 8), "e"))
        for j, n in enumerate(row):
            if n:
                x, width = f.px(j) + 1, f.px(j + 1) - f.px(j) - 2
                shade, tip = 0.1 + 0.6 * n / most, f"{name}, {kinds[j]}: {n}"
                marks.append(box(x, y, width, 22, "a1", shade, tip))
                marks.append(text(f.px(j + 0.5), y + 15, f"{n}", "m"))
    description = f"{r['pairs']['n']} pairs in {len(names)} categories"
    return panel("pairs by category and kind", description, f, marks)


def scaling(r: Report) -> Figure:
    """The paper's Fig. 5, only with evaluation results given."""
    data = r["figures"]["scaling"]
    by: dict[str, dict[float, list[float]]] = {}
    for e in data["evaluations"]:
        by.setdefault(e["metric"], {}).setdefault(e["fraction"], []).append(e["value"])
    drawn = sorted(by.items())
    note = (
        "Line: mean over seeds; area: from the lowest to the highest seed."
        if drawn
        else "Not drawn: no evaluation results (mora-data evaluate --scaling brings them)."
    )
    return Figure(
        "scaling",
        "What do more pairs buy?",
        "unit: training run (seed)",
        [_scaling_panel(metric, points, f"d{j % 3}") for j, (metric, points) in enumerate(drawn)],
        ["metric", "fraction", "seeds", "mean", "lowest", "highest"],
        [
            [metric, x, len(v), *map(shown, (sum(v) / len(v), min(v), max(v)))]
            for metric, points in drawn
            for x, v in sorted(points.items())
        ],
        f"{note} This run gives {shown(data['pairs_per_1000_prompts'])} pairs per 1,000 mined"
        " prompts, which says nothing about a model.",
    )


def _scaling_panel(metric: str, points: Mapping[float, list[float]], style: str) -> str:
    xs = sorted(points)
    values = [v for vs in points.values() for v in vs]
    pad = (max(values) - min(values)) * 0.1 or 0.1
    f = Frame((0, max(xs) or 1), (min(values) - pad, max(values) + pad))
    lows, highs = ([(x, pick(points[x])) for x in xs] for pick in (min, max))
    means = [(x, sum(points[x]) / len(points[x])) for x in xs]
    marks = [
        *axes(f, "fraction of the pairs added", metric),
        band(f, lows, highs, style),
        line(f, means, style),
        *(dot(f.px(x), f.py(y), style, 0, f"{x:g}: {y:.3f}") for x, y in means),
    ]
    description = f"mean {means[0][1]:.3f} at {xs[0]:g}, {means[-1][1]:.3f} at {xs[-1]:g}"
    return panel(metric, description, f, marks)


def funnel(r: Report) -> Figure:
    """What every stage kept and dropped, and how rewriting went per category."""
    stages = {s: c for s, c in r["figures"]["cost"]["stages"].items() if c["in"]}
    panels = [_stages_panel(stages)] if stages else []
    rows: list[list[object]] = []
    for stage, c in stages.items():
        dropped = sorted(c["dropped"].items(), key=lambda kv: -kv[1])
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in dropped)
        rows.append([stage, c["in"], c["kept"], reasons or "–"])
    by_category = r["figures"]["funnel"]["by_category"]
    for arm, by in by_category.items():
        if arm == "fused" or len(by_category) == 1:
            marks = [(c, v["accepted"], arm) for c, v in list(by.items())[:12]]
            title = f"rewrites accepted · {arm}"
            panels.append(interval_rows(title, marks, (0, 1), "accepted share", left=138))
        for category, shares in by.items():
            a, refused = shares["accepted"], percent(shares["refused"]["value"])
            kept = round((a["value"] or 0) * a["n"])
            rows.append([f"fuse, {arm}, {category}", a["n"], kept, f"rewriter refused {refused}"])
    return Figure(
        "funnel",
        "Where do prompts and answers go?",
        "unit of each stage: see the table (mine: rows; presample, fuse: prompts; "
        "rollout, score: answers; select: prompt and arm; publish: pairs)",
        panels,
        ["stage", "in", "kept", "dropped"],
        rows,
        "In each stage what goes in is what is kept and what is dropped. Intervals of shares:"
        " 95 %.",
        [
            ("q3", None, "kept"),
            ("x0", None, "dropped, commonest reason"),
            ("x1", None, "dropped, second reason"),
            ("x2", None, "dropped, other reason"),
        ],
    )


def _stages_panel(stages: Mapping[str, Mapping[str, Any]]) -> str:
    f = Frame((0, 1), (0, 1), height=66 + 26 * len(stages), left=84, right=16)
    marks = axes(f, "share of what went in", "", None, [])
    for i, (stage, c) in enumerate(stages.items()):
        y, x = f.top + 3 + 26 * i, 0.0
        dropped = list(commonest_first(c["dropped"]).items())
        rest = sum(n for _, n in dropped[2:])
        segments = [("kept", c["kept"], "q3")]
        segments += [(reason, n, f"x{j}") for j, (reason, n) in enumerate(dropped[:2])]
        segments += [("other reasons", rest, "x2")] if rest else []
        marks.append(text(f.left - 6, y + 13, stage, "e"))
        for reason, n, style in segments:
            width = f.px(n / c["in"]) - f.px(0)
            tip = f"{stage}: {n:,} {reason} of {c['in']:,}"
            marks.append(box(f.px(x), y, width, 18, style, tip=tip))
            x += n / c["in"]
        marks.append(text(f.left + 6, y + 13, f"{c['kept']:,} of {c['in']:,}", "s i"))
    description = "; ".join(f"{s}: {c['kept']:,} of {c['in']:,} kept" for s, c in stages.items())
    return panel("stages", description, f, marks)


def cost(r: Report) -> Figure:
    """What the run took."""
    c = r["figures"]["cost"]
    currency = f", {c['currency']}" if c["currency"] else ""
    return Figure(
        "cost",
        "What did it take, and what failed?",
        "unit: the run",
        [],
        ["", "number"],
        [
            ["tokens in", shown(c["tokens"].get("in"))],
            ["tokens out", shown(c["tokens"].get("out"))],
            ["rows that failed", shown(c["errors"])],
            ["tokens per pair", shown(c["tokens_per_pair"])],
            [f"money{currency}", shown(c["money"])],
            [f"money per pair{currency}", shown(c["money_per_pair"])],
        ],
        "The numbers of the manifest. Money is what all builds of the run folder took; it is not"
        " known where a model has no price.",
    )
