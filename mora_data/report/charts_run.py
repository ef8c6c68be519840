"""Figures about the run: its funnel, what it took, and what training on its pairs brought, drawn
from report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figure import Figure, arm_style, interval, percent, shown
from .svg import Frame, axes, band, box, dot, line, panel, short, text, ticks, whisker


def scaling(r: Mapping[str, Any]) -> Figure:
    """The paper's Fig. 5, only with evaluation results given."""
    data = r["figures"]["scaling"]
    proxy = (
        f"This run gives {shown(data['pairs_per_1000_prompts'])} pairs per 1,000 mined prompts,"
        " which says nothing about a model."
    )
    by: dict[str, dict[float, list[float]]] = {}
    for e in data["evaluations"]:
        by.setdefault(e["metric"], {}).setdefault(e["fraction"], []).append(e["value"])
    panels, rows = [], []
    for j, (metric, points) in enumerate(sorted(by.items())):
        xs = sorted(points)
        values = [v for vs in points.values() for v in vs]
        pad = (max(values) - min(values)) * 0.1 or 0.1
        f = Frame((0, max(xs) or 1), (min(values) - pad, max(values) + pad))
        style = f"d{j % 3}"
        lows, highs = ([(x, pick(points[x])) for x in xs] for pick in (min, max))
        means = [(x, sum(points[x]) / len(points[x])) for x in xs]
        panels.append(
            panel(
                metric,
                f"mean {means[0][1]:.3f} at {xs[0]:g}, {means[-1][1]:.3f} at {xs[-1]:g}",
                f,
                [
                    *axes(f, "fraction of the pairs added", metric),
                    band(f, lows, highs, style),
                    line(f, means, style),
                    *(dot(f.px(x), f.py(y), style, 0, f"{x:g}: {y:.3f}") for x, y in means),
                ],
            )
        )
        rows += [
            [
                metric,
                x,
                len(points[x]),
                shown(sum(points[x]) / len(points[x])),
                shown(min(points[x])),
                shown(max(points[x])),
            ]
            for x in xs
        ]
    note = (
        f"Line: mean over seeds; area: from the lowest to the highest seed. {proxy}"
        if panels
        else (
            "Not drawn: no evaluation results (evals.jsonl in the run folder, one {fraction,"
            f" seed, metric, value}} a line). {proxy}"
        )
    )
    return Figure(
        "scaling",
        "What do more pairs buy?",
        "unit: training run (seed)",
        panels,
        ["metric", "fraction", "seeds", "mean", "lowest", "highest"],
        rows,
        note,
    )


def funnel(r: Mapping[str, Any]) -> Figure:
    """What every stage kept and dropped, and how rewriting went per category."""
    stages = {s: c for s, c in r["figures"]["cost"]["stages"].items() if c["in"]}
    panels = [_stages(stages)] if stages else []
    rows: list[list[Any]] = [
        [
            s,
            c["in"],
            c["kept"],
            ", ".join(
                f"{n:,} {why}" for why, n in sorted(c["dropped"].items(), key=lambda kv: -kv[1])
            )
            or "–",
        ]
        for s, c in stages.items()
    ]
    for arm, by in r["figures"]["funnel"]["by_category"].items():
        shown_rows = list(by.items())[:12]
        f = Frame((0, 1), (0, 1), height=66 + 22 * len(shown_rows), left=138, right=16)
        style, mark = arm_style(arm)
        marks = axes(f, "accepted share", "", None, [])
        for i, (category, c) in enumerate(shown_rows):
            y = f.top + 12 + 22 * i
            a = c["accepted"]
            marks += [
                text(f.left - 8, y + 4, short(category, 21), "e"),
                whisker(
                    f,
                    y,
                    a["low"],
                    a["value"],
                    a["high"],
                    style,
                    mark,
                    f"{category}: {interval(a)}, n = {a['n']}",
                ),
            ]
        if arm == "fused" or len(r["figures"]["funnel"]["by_category"]) == 1:
            panels.append(
                panel(
                    f"rewrites accepted · {arm}",
                    "; ".join(f"{c} {percent(v['accepted']['value'])}" for c, v in shown_rows),
                    f,
                    marks,
                )
            )
        rows += [
            [
                f"fuse, {arm}, {c}",
                v["accepted"]["n"],
                round(v["accepted"]["value"] * v["accepted"]["n"]),
                f"rewriter refused {percent(v['refused']['value'])}",
            ]
            for c, v in by.items()
        ]
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
            *(
                (f"x{i}", None, f"dropped, {name} reason")
                for i, name in enumerate(("commonest", "second", "other"))
            ),
        ],
    )


def _stages(stages: Mapping[str, Any]) -> str:
    f = Frame((0, 1), (0, 1), height=66 + 26 * len(stages), left=84, right=16)
    marks = axes(f, "share of what went in", "", None, [])
    for i, (stage, c) in enumerate(stages.items()):
        y, x = f.top + 3 + 26 * i, 0.0
        dropped = sorted(c["dropped"].items(), key=lambda kv: (-kv[1], kv[0]))
        rest = sum(n for _, n in dropped[2:])
        segments = [
            ("kept", c["kept"], "q3"),
            *((why, n, f"x{j}") for j, (why, n) in enumerate(dropped[:2])),
        ]
        segments += [("other reasons", rest, "x2")] if rest else []
        marks.append(text(f.left - 6, y + 13, stage, "e"))
        for why, n, style in segments:
            width = f.px(n / c["in"]) - f.px(0)
            marks.append(
                box(f.px(x), y, width, 18, style, said=f"{stage}: {n:,} {why} of {c['in']:,}")
            )
            x += n / c["in"]
        marks.append(text(f.left + 6, y + 13, f"{c['kept']:,} of {c['in']:,}", "s i"))
    return panel(
        "stages",
        "; ".join(f"{s}: {c['kept']:,} of {c['in']:,} kept" for s, c in stages.items()),
        f,
        marks,
    )


def cost(r: Mapping[str, Any]) -> Figure:
    """What the run took."""
    c = r["figures"]["cost"]
    rows = [
        ["tokens in", c["tokens"].get("in")],
        ["tokens out", c["tokens"].get("out")],
        ["rows that failed", c["errors"]],
        ["tokens per pair", c["tokens_per_pair"]],
        ["money", c["money"]],
    ]
    stages = [(s, v) for s, v in c["stages"].items() if v["in"]]
    f = Frame(
        (0, max([1.0, *(float(v["in"]) for _, v in stages)])),
        (0, 1),
        height=66 + 22 * len(stages),
        left=84,
        right=30,
    )
    marks = axes(f, "rows handled", "", _thousands(f.x[1]), [])
    for i, (s, v) in enumerate(stages):
        y = f.top + 2 + 22 * i
        marks += [
            text(f.left - 6, y + 12, s, "e"),
            box(f.px(0), y, f.px(v["in"]) - f.px(0), 16, "a0", said=f"{s}: {v['in']:,}"),
        ]
    return Figure(
        "cost",
        "What did it take, and what failed?",
        "unit: the run",
        [panel("rows per stage", "see the table", f, marks)] if stages else [],
        ["", "number"],
        [[k, shown(v)] for k, v in rows],
        "The numbers of the manifest. Money is not measured without a price table.",
    )


def _thousands(most: float) -> Sequence[tuple[float, str]]:
    return [(v, f"{v / 1000:g}k" if most >= 2000 else f"{v:g}") for v, _ in ticks(0, most)][:5]
