"""report.html and report-compare.html: files that open anywhere, print, and need no script; and the
main figures as PNG for the card.

Drawn from report.json and report-compare.json by the templates of templates/report; only the
examples' texts come from the dataset folder. Whatever a source, a model or a setting says is text:
escaped, isolated, never markup (markup.py).

    pictures(report)        {"arms": ("Are prompts ...?", b"...")}

A card's page shows no inline SVG. resvg (`pip install 'mora-data[png]'`) draws the PNG, with the
machine's fonts: these pixels, unlike all else of a dataset folder, may differ between machines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from markupsafe import Markup

from ..errors import RunFolderError
from ..run.files import write_whole
from ..text import transcript
from ..types import may_harm
from . import charts
from .arms import HEADLINE
from .charts import METRIC_NAMES
from .markup import Figure, dot, escape, interval, interval_rows, render, shown
from .pairs import PER_DIMENSION, SIDES, example_rows
from .values import ArmsReport, ComparedNumber, ComparisonReport, Report, SideFacts

CHARTS = {  # each with the place of its numbers in report.json
    charts.arms: "arms",
    charts.forest: "differences",
    charts.profile: "figures.profile",
    charts.rewards: "figures.rewards",
    charts.planes: "figures.planes",
    charts.margins: "pairs.margins",
    charts.length: "pairs.length, pairs.refusal, pairs.wording",
    charts.judges: "judge, figures.repeats",
    charts.funnel: "figures.funnel",
    charts.composition: "figures.composition, prompts",
    charts.scaling: "figures.scaling",
    charts.cost: "figures.cost",
}
STYLES = {"supports expansion": "supports", "not supported": "not"}
EXAMPLES = {
    "random": "Six pairs drawn at random, by their ids",
    "worst": "Six pairs to doubt: smallest confirmed margin, largest length gap",
}
ROLES = ("policy", "rewriter", "judge")
METRIC_TITLES = METRIC_NAMES | {
    "log_length_ratio": "log length ratio",
    "scored": "share scored",
    "refusal": "share refused",
    "repeats": "share that repeats another answer",
    "tokens": "tokens an answer",
}


def write_report(run_dir: Path, report: Report) -> list[Path]:
    """Write RUN_DIR/report.json and report.html; returns the paths."""
    return _write(run_dir / "report", report, report_html(report, run_dir))


def write_comparison(folder: Path, report: ComparisonReport) -> list[Path]:
    """Write report-compare.json and report-compare.html; returns the paths.

    Raises:
        RunFolderError: they can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise RunFolderError(
            f"can't make the folder {folder}: {e.strerror}; give another --out"
        ) from e
    return _write(folder / "report-compare", report, comparison_html(report))


def _write(path: Path, report: Report | ComparisonReport, page: str) -> list[Path]:
    paths = [path.with_suffix(".json"), path.with_suffix(".html")]
    write_whole(paths[0], orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    write_whole(paths[1], page.encode())
    return paths


def style_sheet() -> str:
    """The style of both pages and of the pictures."""
    return (Path(__file__).parent / "style.css").read_text("utf-8")


def report_html(r: Report, run_dir: Path) -> str:
    """report.html."""
    return render(
        "report/report.html",
        title=f"{r['headline']} · mora-data report",
        css=Markup(style_sheet()),
        r=r,
        style="" if r["run"]["simulated"] else STYLES.get(r["verdict"], ""),
        source=_source(r["run"]["source"]),
        tested=_tested_rows(r),
        figures=[(chart(r), f"report.json, {place}") for chart, place in CHARTS.items()],
        examples=[(title, _examples(r, name, run_dir)) for name, title in EXAMPLES.items()],
    )


def _source(source: Mapping[str, Any]) -> str:
    named = (str(source.get(k) or "") for k in ("dataset", "config", "split"))
    return " ".join(dict.fromkeys(filter(None, named)))


def _tested_rows(r: Report) -> list[Sequence[object]]:
    if not r["comparisons"]:
        return []
    gains: list[Sequence[object]] = [
        [
            *(c["metric"].replace("_", " "), f"fused − {c['control']}", c["n"]),
            *(interval({**c, "value": c["gain"]}), f"{c['p_holm']:.4f}"),
        ]
        for c in r["comparisons"]
    ]
    over_best: list[Sequence[object]] = [
        [
            *(m.replace("_", " "), "fused − best control", ""),
            *(f"[{shown(e['low'])}, {shown(e['high'])}]", ""),
        ]
        for m, e in r["over_best"].items()
        if e
    ]
    return [*gains, *over_best]


def _examples(r: Report, name: str, run_dir: Path) -> list[dict[str, object]]:
    """Pairs as the page shows them."""
    dims, floors = r["settings"]["dimensions"], r["settings"]["floors"]
    ids = r["examples"]["random" if name == "random" else "worst"]
    return [
        {
            "pair_id": row["pair_id"],
            "about": ", ".join(str(row[k]) for k in ("arm", "kind", "category") if row[k]),
            "scores": [[d, *(row[f"{k}_{d}"] for k in PER_DIMENSION)] for d in dims],
            "prompt": transcript(row["prompt"]),
            "sides": [
                (
                    side,
                    row[f"len_{side}"],
                    row[side][0]["content"],
                    may_harm(floors.get("harmless"), row.get(f"{side}_reward_harmless")),
                )
                for side in SIDES
            ],
        }
        for row in example_rows(run_dir / "dataset", ids, dims)
    ]


def comparison_html(t: ComparisonReport) -> str:
    """report-compare.html; what to doubt stands before any number."""
    changes = [
        [
            s["setting"],
            *(", ".join(map(str, v)) if isinstance(v, list) else v for v in (s["a"], s["b"])),
        ]
        for s in t["settings"]
    ]
    return render(
        "report/comparison.html",
        title="comparison · mora-data report",
        css=Markup(style_sheet()),
        found=differing_numbers(t),
        sides=_side_rows(t),
        t=t,
        figures=[_arms_figure(t), _pairs_figure(t)],
        labels=[side_label(t["a"]), side_label(t["b"])],
        changes=changes,
    )


def differing_numbers(t: ComparisonReport) -> list[str]:
    """What differs, in a few sentences, the clearest first."""
    found = sorted(
        (r for r in [*t["arms"], *t["pairs"]] if r["differs"]),
        key=lambda r: (r["p_holm"] or 0.0, r["arm"], r["metric"]),
    )
    return [
        f"{_metric_title(r['metric'])}, {r['arm'] or 'pairs'}: {_value(r['a'])} in A,"
        f" {_value(r['b'])} in B, difference {interval(r['difference'])}"
        for r in found
    ]


def _value(cell: Mapping[str, Any] | None) -> str:
    return shown(cell["value"] if cell else None)


def side_label(side: SideFacts) -> str:
    """A side as it was given."""
    return side["where"] + (f", arm {side['arm']}" if side["arm"] else "")


def _metric_title(metric: str) -> str:
    if metric.startswith("margin_confirmed_"):
        return f"margin {metric.removeprefix('margin_confirmed_')}, scored once more"
    return METRIC_TITLES.get(metric) or metric.replace("_", " ")


def _side_rows(t: ComparisonReport) -> list[Sequence[object]]:
    a, b, n = t["a"], t["b"], t["prompts"]
    return [
        ["folder", side_label(a), side_label(b)],
        ["source", _source(a["source"]), _source(b["source"])],
        *([role, *(s["models"].get(role) for s in (a, b))] for role in ROLES),
        ["selector", a["selector"], b["selector"]],
        ["prompts", n["a"], n["b"]],
        ["of which in both", n["shared"], n["shared"]],
        ["pairs", a["pairs"], b["pairs"]],
        ["verdict", a["verdict"], b["verdict"]],
        *([f"floor, {d}", a["floors"][d], b["floors"][d]] for d in t["dimensions"]),
        *(
            [f"reliability, {d}", *(s["reliability"].get(d) for s in (a, b))]
            for d in t["dimensions"]
        ),
    ]


_HEAD = ["number", "A", "B", "B − A [95 % interval]", "prompts", "p (Holm)", "differs"]


def _arms_figure(t: ComparisonReport) -> Figure:
    """Differences of the answers of each arm."""
    panels = []
    for m in (*HEADLINE, *(f"reward_{d}" for d in t["dimensions"])):
        rows = [r for r in t["arms"] if r["metric"] == m]
        if rows:
            panels.append(_differences_panel(m, rows, [r["arm"] for r in rows]))
    return Figure(
        "arms",
        "Do the answers differ, arm by arm?",
        f"unit: source prompt, {t['prompts']['shared']:,} in both",
        panels,
        ["arm", *_HEAD],
        [[r["arm"], *_cells(r)] for r in t["arms"]],
        "A point right of the line: larger in B. 95 % intervals, cluster bootstrap over source"
        " prompts."
        if panels
        else "Not drawn: the two sides have no arm in common.",
    )


def _pairs_figure(t: ComparisonReport) -> Figure:
    """Differences of the published pairs."""
    dims = t["dimensions"]
    groups = {
        "margin": [(f"margin_{d}", d) for d in dims],
        "margin, scored once more": [(f"margin_confirmed_{d}", d) for d in dims],
        "what would be a short cut": [
            (m, _metric_title(m))
            for m in ("log_length_ratio", "chosen_longer", "refusal_chosen", "refusal_rejected")
        ],
    }
    known = {r["metric"]: r for r in t["pairs"] if r["difference"]["value"] is not None}
    panels = []
    for title, metrics in groups.items():
        drawn = [(known[m], label) for m, label in metrics if m in known]
        if drawn:
            rows, labels = [r for r, _ in drawn], [label for _, label in drawn]
            panels.append(_differences_panel(title, rows, labels))
    note = "Not drawn: a side has no pairs."
    if panels:
        note = (
            "A point right of the line: larger in B. Margins are means over pairs; log length"
            " ratio: chosen over rejected."
        )
    elif t["a"]["arm"] or t["b"]["arm"]:
        note = "Not compared: an arm was named, and pairs belong to whole runs."
    return Figure(
        "pairs",
        "Do the published pairs differ?",
        f"unit: source prompt; {t['a']['pairs']:,} pairs in A, {t['b']['pairs']:,} in B",
        panels,
        _HEAD,
        [_cells(r) for r in t["pairs"]],
        note,
    )


def _cells(r: ComparedNumber) -> list[object]:
    p = "–" if r["p_holm"] is None else f"{r['p_holm']:.4f}"
    return [
        *(_metric_title(r["metric"]), interval(r["a"]), interval(r["b"])),
        *(interval(r["difference"]), r["difference"]["n"], p),
        "not tested" if r["differs"] is None else "yes" if r["differs"] else "no",
    ]


def _differences_panel(title: str, numbers: Sequence[ComparedNumber], labels: Sequence[str]) -> str:
    gaps = [r["difference"] for r in numbers]
    ends = [v for d in gaps for v in (d["low"], d["value"], d["high"]) if v is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = (high - low or 1.0) * 0.06
    arms = [r["arm"] or "pairs" for r in numbers]
    return interval_rows(
        _metric_title(title),
        list(zip(labels, gaps, arms, strict=True)),
        (low - room, high + room),
        "B − A",
        (0.0, "a"),
        step=24,
        right=14,
        top=13,
    )


CARD_CHARTS: tuple[Callable[[ArmsReport | Report], Figure], ...] = (
    charts.arms,
    charts.profile,
    charts.rewards,
    charts.planes,
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
    for f in (chart(report) for chart in CARD_CHARTS):
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
