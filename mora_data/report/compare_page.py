"""report-compare.html: drawn from report-compare.json with the report's own marks; what to doubt
stands before any number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts_prompts import METRIC_NAMES
from .figure import Figure, arm_style, interval, shown
from .gather import HEADLINE
from .page import figure, line, table, whole
from .svg import Frame, axes, panel, rule, text, whisker

SAID = {
    "log_length_ratio": "log length ratio",
    "scored": "share scored",
    "refusal": "share refused",
    "tokens": "tokens an answer",
}


def page(t: Mapping[str, Any]) -> str:
    """The whole page."""
    body = [_head(t), _doubts(t), _found(t), _sides(t), "<section><h2>The numbers</h2>"]
    body += [figure(f, "report-compare.json, " + f.name) for f in (arms_figure(t), pairs_figure(t))]
    body += ["</section>", settings_table(t), own_doubts(t), _ending()]
    return whole("comparison · mora-data report", body)


def name_of(metric: str) -> str:
    """A metric as the page says it."""
    if metric.startswith("margin_confirmed_"):
        return f"margin {metric.removeprefix('margin_confirmed_')}, scored once more"
    return SAID.get(metric) or METRIC_NAMES.get(metric) or metric.replace("_", " ")


def summary(t: Mapping[str, Any]) -> list[str]:
    """What differs, in a few sentences, the clearest first."""
    found = sorted(
        (r for r in [*t["arms"], *t["pairs"]] if r["differs"]),
        key=lambda r: (r["p_holm"], r["arm"], r["metric"]),
    )
    return [
        f"{name_of(r['metric'])}, {r['arm'] or 'pairs'}: {shown(r['a']['value'])} in A,"
        f" {shown(r['b']['value'])} in B, difference {interval(r['difference'])}"
        for r in found
    ]


def label(side: Mapping[str, Any]) -> str:
    """A side as it was given."""
    return str(side["where"]) + (f", arm {side['arm']}" if side["arm"] else "")


def _head(t: Mapping[str, Any]) -> str:
    sides = f"A: {line(label(t['a']))} · B: {line(label(t['b']))}"
    return f"<header><h1>What differs between A and B?</h1><p class=dim>{sides}</p></header>"


def _found(t: Mapping[str, Any]) -> str:
    said = summary(t)
    counted = (
        f"{t['differ']} of {t['tested']} numbers differ"
        if t["tested"]
        else "No number could be tested"
    )
    more = "".join(f"<li>{line(x)}</li>" for x in said[:6])
    rest = f"<p class=dim>and {len(said) - 6} more below.</p>" if len(said) > 6 else ""
    paired = (
        "on the prompts that both have"
        if t["prompts"]["shared"]
        else "unpaired: no prompt is in both"
    )
    note = (
        "p under 0.05 after Holm's adjustment over all of them. A difference is B minus A,"
        f" {paired}."
        if t["tested"]
        else "There are no prompts to resample on one side: the differences below have no interval."
    )
    return (
        f'<div class="verdict"><strong>{counted}</strong><p'
        f" class=dim>{note}</p>{f'<ul>{more}</ul>' if more else ''}{rest}</div>"
    )


def _doubts(t: Mapping[str, Any]) -> str:
    said = (
        "".join(f"<li>{line(d)}</li>" for d in t["doubts"])
        or "<li>Nothing else than the numbers was found to differ.</li>"
    )
    return f"<section><h2>What to doubt</h2><ul>{said}</ul></section>"


def _sides(t: Mapping[str, Any]) -> str:
    a, b = t["a"], t["b"]
    rows = [
        ["folder", label(a), label(b)],
        [
            "source",
            *(
                " ".join(str(s["source"].get(k) or "") for k in ("dataset", "config", "split"))
                for s in (a, b)
            ),
        ],
        *(
            [role, *(s["models"].get(role) for s in (a, b))]
            for role in ("policy", "rewriter", "judge")
        ),
        ["selector", a["selector"], b["selector"]],
        ["prompts", t["prompts"]["a"], t["prompts"]["b"]],
        ["of which in both", t["prompts"]["shared"], t["prompts"]["shared"]],
        ["pairs", a["pairs"], b["pairs"]],
        ["verdict", a["verdict"], b["verdict"]],
        *([f"floor, {d}", a["floors"][d], b["floors"][d]] for d in t["dimensions"]),
        *(
            [f"reliability, {d}", a["reliability"].get(d), b["reliability"].get(d)]
            for d in t["dimensions"]
        ),
    ]
    return (
        "<section><h2>The two"
        f" sides</h2>{table(['about', 'A', 'B'], rows, 'the two sides')}</section>"
    )


def arms_figure(t: Mapping[str, Any]) -> Figure:
    """Differences of the answers of each arm."""
    rows = t["arms"]
    drawn = [
        m
        for m in (*HEADLINE, *(f"reward_{d}" for d in t["dimensions"]))
        if any(r["metric"] == m for r in rows)
    ]
    panels = [
        _forest(
            m, [r for r in rows if r["metric"] == m], [r["arm"] for r in rows if r["metric"] == m]
        )
        for m in drawn
    ]
    return Figure(
        "arms",
        "Do the answers differ, arm by arm?",
        f"unit: source prompt, {t['prompts']['shared']:,} in both",
        panels,
        ["arm", *_HEAD],
        [[r["arm"], *_cells(r)] for r in rows],
        (
            "A point right of the line: larger in B. 95 % intervals, cluster bootstrap over source"
            " prompts."
            if panels
            else "Not drawn: the two sides have no arm in common."
        ),
    )


def pairs_figure(t: Mapping[str, Any]) -> Figure:
    """Differences of the published pairs."""
    rows = t["pairs"]
    groups = [
        ("margin", [f"margin_{d}" for d in t["dimensions"]]),
        ("margin, scored once more", [f"margin_confirmed_{d}" for d in t["dimensions"]]),
        (
            "what would be a short cut",
            ["log_length_ratio", "chosen_longer", "refusal_chosen", "refusal_rejected"],
        ),
    ]
    panels = []
    for title, metrics in groups:
        held = [
            r
            for m in metrics
            for r in rows
            if r["metric"] == m and r["difference"]["value"] is not None
        ]
        labels = [
            name_of(r["metric"]).removeprefix("margin ").removesuffix(", scored once more")
            for r in held
        ]
        if held:
            panels.append(_forest(title, held, labels))
    arms = t["a"]["arm"] or t["b"]["arm"]
    return Figure(
        "pairs",
        "Do the published pairs differ?",
        f"unit: source prompt; {t['a']['pairs']:,} pairs in A, {t['b']['pairs']:,} in B",
        panels,
        _HEAD,
        [_cells(r) for r in rows],
        (
            "A point right of the line: larger in B. Margins are means over pairs; log length"
            " ratio: chosen over rejected."
            if panels
            else (
                "Not compared: an arm was named, and pairs belong to whole runs."
                if arms
                else "Not drawn: a side has no pairs."
            )
        ),
    )


_HEAD = ["number", "A", "B", "B − A [95 % interval]", "prompts", "p (Holm)", "differs"]


def _cells(r: Mapping[str, Any]) -> list[Any]:
    d = r["difference"]
    p = "–" if r["p_holm"] is None else f"{r['p_holm']:.4f}"
    verdict = "not tested" if r["differs"] is None else "yes" if r["differs"] else "no"
    return [
        name_of(r["metric"]),
        interval(r["a"]),
        interval(r["b"]),
        interval(d),
        d["n"],
        p,
        verdict,
    ]


def _forest(title: str, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    ends = [
        v
        for r in rows
        for v in (r["difference"]["low"], r["difference"]["value"], r["difference"]["high"])
        if v is not None
    ]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = (high - low or 1.0) * 0.06
    f = Frame((low - room, high + room), (0, 1), height=66 + 24 * len(rows), left=118, right=14)
    marks = [
        *axes(f, "B − A", "", None, []),
        rule(f.px(0), f.top, f.px(0), f.height - f.bottom, "a"),
    ]
    for i, (r, name) in enumerate(zip(rows, labels, strict=True)):
        y, d = f.top + 13 + 24 * i, r["difference"]
        style, mark = arm_style(r["arm"]) if r["arm"] else ("a4", 0)
        marks += [
            text(f.left - 8, y + 4, name[:18], "e"),
            whisker(f, y, d["low"], d["value"], d["high"], style, mark, f"{name}: {interval(d)}"),
        ]
    said = "; ".join(f"{n} {interval(r['difference'])}" for n, r in zip(labels, rows, strict=True))
    return panel(name_of(title), said, f, marks)


def settings_table(t: Mapping[str, Any]) -> str:
    """Which settings differ."""
    if not t["settings"]:
        return "<section><h2>Settings that differ</h2><p>None.</p></section>"
    rows = [[s["setting"], _short(s["a"]), _short(s["b"])] for s in t["settings"]]
    return (
        "<section><h2>Settings that"
        f" differ</h2>{table(['setting', 'A', 'B'], rows, 'settings that differ')}</section>"
    )


def _short(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def own_doubts(t: Mapping[str, Any]) -> str:
    """What each side's report says to doubt."""
    out = [
        f"<h3>{side}: {line(label(s))}</h3><ul>"
        + "".join(f"<li>{line(d)}</li>" for d in s["doubts"])
        + "</ul>"
        for side, s in (("A", t["a"]), ("B", t["b"]))
        if s["doubts"]
    ]
    return (
        f"<section><h2>What each side's own report doubts</h2>{''.join(out)}</section>"
        if out
        else ""
    )


def _ending() -> str:
    return (
        "<section><h2>How to read the numbers</h2><p>A and B are the numbers of each side's"
        " report.json, over all of its prompts and on its own floors. Their difference is taken on"
        " the prompts that both have, resampled for both sides at once (a paired interval); where"
        " they share none, on all, each side resampled by itself. p: the bootstrap's spread taken"
        " as normal, Holm over all numbers of this page. docs/numbers.md has the"
        " formulas.</p></section>"
    )
