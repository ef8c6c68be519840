"""Figures about pairs, scores and the run itself, drawn from report.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .figure import Figure, interval, percent, shown
from .svg import Frame, axes, box, line, panel, rule, short, text, whisker

NO_PAIRS = "Not drawn: the run has no pairs (it was not built to the end, or nothing was selected)."


def margins(r: Mapping[str, Any]) -> Figure:
    """Distribution of the margins, as selected and as scored once more."""
    p, panels, rows = r["pairs"], [], []
    dims = r["settings"]["dimensions"]
    for j, d in enumerate(dims if p["n"] else []):
        m, sigma = p["margins"][d], r["judge"]["dimensions"][d]["sigma"]
        f = Frame((min(-0.25, *m["quantiles"][:1], *m["quantiles_confirmed"][:1]), 1), (0, 1))
        marks = [
            *axes(f, f"margin, {d}", "share of pairs with at least this"),
            rule(f.px(0), f.top, f.px(0), f.height - f.bottom, "a"),
        ]
        if 0 < 2 * sigma < 1:
            marks += [
                rule(f.px(2 * sigma), f.top, f.px(2 * sigma), f.height - f.bottom, "z"),
                text(f.px(2 * sigma) + 3, f.top + 10, "2σ", "s"),
            ]
        for q, dash in ((m["quantiles"], ""), (m["quantiles_confirmed"], " dash")):
            marks.append(
                line(
                    f,
                    [
                        (x, 1 - i / (len(q) - 1))
                        for i, v in enumerate(q)
                        for x in (v, q[min(i + 1, len(q) - 1)])
                    ],
                    f"d{j % 3}{dash}",
                )
            )
        panels.append(
            panel(
                f"{d} · n = {m['mean']['n']:,}",
                f"mean {interval(m['mean'])}, scored once more {interval(m['confirmed'])}",
                f,
                marks,
            )
        )
        rows.append(
            [
                d,
                m["mean"]["n"],
                interval(m["mean"]),
                interval(m["confirmed"]),
                interval(m["above_noise"]),
            ]
        )
    shrink = r["figures"]["margins"]["shrinkage"]
    said = (
        f"Before any pair was dropped for it, the best pair of each of {shrink['n']:,} prompts and"
        f" arms kept {percent(shrink['ratio'])} of its margins when scored once more. "
        if shrink
        else "No pair was scored once more. "
    )
    if p["n"]:
        said += (
            f"Pairs that lose in some dimension: {percent(p['neg_dim_rate']['value'])} as selected,"
            f" {percent(p['neg_dim_rate_confirmed']['value'])} as scored once more."
        )
    return Figure(
        "margins",
        "Are the margins large, in which dimensions, and are they real?",
        f"unit: pair; intervals over {p.get('prompts', 0):,} source prompts",
        panels,
        ["dimension", "pairs", "mean margin", "scored once more", "share above 2 sigma"],
        rows,
        said if p["n"] else NO_PAIRS,
        [("ink", 0, "as selected (solid)"), ("ink", 5, "scored once more (dashed)")],
    )


def length(r: Mapping[str, Any]) -> Figure:
    """Length and refusals of the two sides."""
    p, data = r["pairs"], r["figures"]["length"]
    unit = f"unit: pair, {p['n']:,} pairs"
    if not p["n"] or data is None:
        return Figure(
            "length",
            "Is the chosen answer just longer, or just not a refusal?",
            unit,
            [],
            [],
            [],
            NO_PAIRS,
        )
    f = Frame((-2, 2), (0, data["y_max"]), height=260)
    n = len(data["counts"])
    most = max(max(row) for row in data["counts"]) or 1
    side, tall = (f.px(2) - f.px(-2)) / n, (f.py(0) - f.py(data["y_max"])) / n
    marks = axes(
        f,
        "chosen length / rejected length",
        "total margin",
        [(-2, "¼"), (-1, "½"), (0, "1"), (1, "2"), (2, "4")],
    )
    for i, row in enumerate(data["counts"]):
        for j, v in enumerate(row):
            if v:
                marks.append(
                    box(
                        f.px(-2) + i * side,
                        f.py(0) - (j + 1) * tall,
                        side,
                        tall,
                        "a4",
                        0.1 + 0.9 * (v / most) ** 0.5,
                        f"{v} pairs",
                    )
                )
    marks.append(rule(f.px(0), f.top, f.px(0), f.height - f.bottom, "a"))
    gap = p["length"]["log_ratio"]
    panels = [
        panel(
            "length against margin",
            f"mean log ratio {interval(gap)}, rank correlation"
            f" {shown(p['length']['margin_correlation'])}",
            f,
            marks,
        ),
        _shares_panel(p),
    ]
    rows = [
        ["mean log length ratio", interval(gap)],
        ["chosen longer", interval(p["length"]["chosen_longer"])],
        ["equal length", interval(p["length"]["equal"])],
        ["AUC of length alone", shown(p["length"]["auc"])],
        ["rank correlation of length ratio and margin", shown(p["length"]["margin_correlation"])],
        ["chosen refuses", interval(p["refusal"]["chosen"])],
        ["rejected refuses", interval(p["refusal"]["rejected"])],
        [
            "refusal is rejected, where one side refuses",
            interval(p["refusal"]["rejected_where_one_refuses"]),
        ],
        *(
            [f"{side} refuses, prompts that carry {c}", interval(v[side])]
            for c, v in p["refusal"]["by_class"].items()
            for side in ("chosen", "rejected")
        ),
        ["AUC of wording alone (unseen prompts)", shown((p["wording"] or {}).get("auc"))],
    ]
    return Figure(
        "length",
        "Is the chosen answer just longer, or just not a refusal?",
        unit,
        panels,
        ["", "value [95 % interval]"],
        rows,
        "A bar at 0.5 means that length, or refusing, gives nothing away. Refusals are those that"
        " the rules see. Intervals of shares: 95 %; wording: logistic regression on hashed words,"
        " tested on prompts that it has not seen.",
    )


def _shares_panel(p: Mapping[str, Any]) -> str:
    cells = [
        ("chosen longer", p["length"]["chosen_longer"]),
        ("chosen refuses", p["refusal"]["chosen"]),
        ("rejected refuses", p["refusal"]["rejected"]),
        ("refusal loses", p["refusal"]["rejected_where_one_refuses"]),
    ]
    if p["wording"]:
        cells.append(("wording ranks right", p["wording"]["pairs_right"]))
    f = Frame((0, 1), (0, 1), height=66 + 26 * len(cells), left=128, right=16)
    marks = [
        *axes(f, "share of pairs", "", None, []),
        rule(f.px(0.5), f.top, f.px(0.5), f.height - f.bottom, "z"),
    ]
    for i, (name, c) in enumerate(cells):
        y = f.top + 12 + 26 * i
        marks += [
            text(f.left - 8, y + 4, name, "e"),
            whisker(
                f,
                y,
                c["low"],
                c["value"],
                c["high"],
                "a4",
                0,
                f"{name}: {interval(c)}, n = {c['n']}",
            ),
        ]
    return panel(
        "what would be a short cut", "; ".join(f"{n} {interval(c)}" for n, c in cells), f, marks
    )


def judges(r: Mapping[str, Any]) -> Figure:
    """Reliability of each dimension and how second scores follow the first."""
    panels, rows = [], []
    data = r["figures"]["repeats"]
    for j, d in enumerate(r["settings"]["dimensions"]):
        v, again = r["judge"]["dimensions"][d], data.get(d)
        rows.append(
            [
                d,
                shown(v["reliability"]),
                shown(v["sigma"]),
                v["scored_twice"],
                again["n"] if again else 0,
                interval(again["same"]) if again else "–",
                shown(again["kappa"]) if again else "–",
            ]
        )
        if again:
            panels.append(_repeat_panel(d, again, v, j))
    return Figure(
        "judges",
        "Can the scorers be trusted?",
        "unit: answer that was scored twice",
        panels,
        [
            "dimension",
            "reliability",
            "sigma of one score",
            "scored twice at random",
            "confirmed",
            "same score",
            "weighted kappa",
        ],
        rows,
        "Reliability = 1 − noise / variance between answers of a prompt, from a random share of the"
        " first prompts' answers: the fair figure. Squares: first against second score of the"
        " selected answers only. They were picked for extreme first scores, so that second scores"
        " lie nearer the middle even with a sound scorer."
        + ("" if panels else " Not drawn: nothing was scored once more."),
    )


def _repeat_panel(d: str, again: Mapping[str, Any], v: Mapping[str, Any], j: int) -> str:
    f = Frame((-0.125, 1.125), (-0.125, 1.125), height=300, right=20)
    names = [(i / 4, f"{i / 4:g}") for i in range(5)]
    marks = axes(f, "first score", "second score", names, names)
    side, tall = f.px(0.25) - f.px(0), f.py(0) - f.py(0.25)
    for i, row in enumerate(again["counts"]):
        total = sum(row)
        for k, n in enumerate(row):
            if n:
                marks += [
                    box(
                        f.px(i / 4) - side / 2,
                        f.py(k / 4) - tall / 2,
                        side,
                        tall,
                        f"d{j % 3}",
                        0.06 + 0.64 * n / total,
                        f"{i / 4:g} then {k / 4:g}: {n}",
                    ),
                    text(f.px(i / 4), f.py(k / 4) + 4, f"{n}", "m"),
                ]
    rho = v["reliability"]
    return panel(
        f"{d} · reliability {shown(rho)}",
        f"same score {interval(again['same'])}, weighted kappa {shown(again['kappa'])}, n ="
        f" {again['n']}",
        f,
        marks,
    )


def composition(r: Mapping[str, Any]) -> Figure:
    """Category by kind of the pairs, and what was mined."""
    data, panels, rows = r["figures"]["composition"], [], []
    if data:
        cells = data["counts"]
        f = Frame(
            (0, len(data["columns"])),
            (0, 1),
            height=70 + 24 * len(data["rows"]),
            left=138,
            right=16,
        )
        most = max((max(row) for row in cells), default=0) or 1
        marks = axes(
            f,
            "kind of the prompt",
            "",
            [(i + 0.5, short(k, 10)) for i, k in enumerate(data["columns"])],
            [],
        )
        for i, (name, row) in enumerate(zip(data["rows"], cells, strict=True)):
            y = f.top + 24 * i
            marks.append(text(f.left - 8, y + 15, short(name, 21), "e"))
            for j, n in enumerate(row):
                if n:
                    marks += [
                        box(
                            f.px(j) + 1,
                            y,
                            f.px(j + 1) - f.px(j) - 2,
                            22,
                            "a1",
                            0.1 + 0.6 * n / most,
                            f"{name}, {data['columns'][j]}: {n}",
                        ),
                        text(f.px(j + 0.5), y + 15, f"{n}", "m"),
                    ]
        panels.append(
            panel(
                "pairs by category and kind",
                f"{r['pairs']['n']} pairs in {len(data['rows'])} categories",
                f,
                marks,
            )
        )
    p, diversity = r["prompts"], r["prompts"]["diversity"]
    rows += [[f"mined, kind {k}", n] for k, n in p["kinds"].items()] + [
        [f"mined, category {c}", n] for c, n in p["categories"].items()
    ]
    rows += [
        [f"pairs, {what} {k}", n]
        for what in ("source", "arm", "carried")
        for k, n in (r["pairs"].get(what) or {}).items()
    ]
    rows += [
        [f"prompts, {a}: {what}", shown(v[key]) if key != "near_duplicates" else interval(v[key])]
        for a, v in diversity.items()
        for what, key in (
            ("distinct words", "distinct_1"),
            ("distinct word pairs", "distinct_2"),
            ("compression", "compression"),
            ("near-duplicates", "near_duplicates"),
        )
    ]
    rows += [
        [f"prompts, {a}: Vendi score of {v['vendi_n']}", shown(v["vendi"])]
        for a, v in diversity.items()
    ]
    more = (
        f" {data['left_out']} smaller categories are in the table."
        if data and data["left_out"]
        else ""
    )
    return Figure(
        "composition",
        "What is in it?",
        f"unit: pair, {r['pairs']['n']:,} pairs; prompts for diversity",
        panels,
        ["", "number"],
        rows,
        (
            (
                f"The mined categories weigh as much as {shown(p['category_entropy'])} equal ones"
                " (exp of the entropy)." + more
            )
            if data
            else NO_PAIRS
        ),
    )
