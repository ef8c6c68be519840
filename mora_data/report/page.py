"""report.html: one file that opens anywhere, prints, and needs no script. Drawn from report.json;
only the examples' texts come from the dataset folder. Whatever a source, a model or a setting says
is text: escaped, isolated, never markup."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import charts_pairs, charts_prompts, charts_run
from .figure import Figure, interval, percent, shown
from .pairs import rows_of
from .svg import dot

CHARTS = (
    charts_prompts.arms,
    charts_prompts.forest,
    charts_prompts.profile,
    charts_prompts.rewards,
    charts_prompts.planes,
    charts_pairs.margins,
    charts_pairs.length,
    charts_pairs.judges,
    charts_run.funnel,
    charts_pairs.composition,
    charts_run.scaling,
    charts_run.cost,
)
HELD = {  # where report.json holds a figure's numbers
    "arms": "arms",
    "forest": "differences",
    "margins": "pairs.margins",
    "length": "pairs.length, pairs.refusal, pairs.wording",
    "judges": "judge, figures.repeats",
    "composition": "figures.composition, prompts",
}
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action"
    " 'none'"
)
TEXT_CHARS = 1200
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_SAID = {"supports expansion": "supports", "not supported": "not"}


def page(report: Mapping[str, Any], run_dir: Path) -> str:
    """The whole page."""
    figures = [chart(report) for chart in CHARTS]
    body = [
        _head(report),
        _doubts(report),
        _tiles(report),
        "<section><h2>The figures</h2>",
        *(figure(f, f"report.json, {HELD.get(f.name, 'figures.' + f.name)}") for f in figures),
        "</section>",
        _people(report.get("reviews")),
        _examples(report, run_dir),
        _ending(report),
    ]
    return whole(f"{report['verdict']} · mora-data report", body)


def whole(title: str, body: Sequence[str]) -> str:
    """A page in one file: style inside, no script, nothing fetched."""
    css = (Path(__file__).parent / "style.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width, initial-scale=1"><meta http-equiv="Content-Security-Policy"'
        f' content="{POLICY}"><meta name="color-scheme" content="light'
        f' dark"><title>{line(title)}</title><style>\n{css}</style></head><body><main>\n'
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def told(text: str, most: int = TEXT_CHARS) -> str:
    """Hostile text as it is: escaped, cut, with characters that hide or turn others around shown by
    their code."""
    cut = text if len(text) <= most else text[:most].rstrip() + " … [cut]"
    return escape(_HIDDEN.sub(lambda m: f"⟦U+{ord(m[0]):04X}⟧", cut.replace("\r\n", "\n")))


def line(value: Any) -> str:
    """A value as hostile text on one line."""
    return told(" ".join(str(value).split()), 300)


def _head(r: Mapping[str, Any]) -> str:
    run = r["run"]
    source = " ".join(str(run["source"].get(k) or "") for k in ("dataset", "config", "split"))
    rows = [
        [
            c["metric"].replace("_", " "),
            f"fused − {c['control']}",
            c["n"],
            interval({**c, "value": c["gain"]}),
            f"{c['p_holm']:.4f}",
        ]
        for c in r["comparisons"]
    ]
    over = [
        [
            m.replace("_", " "),
            "fused − best control",
            "",
            f"[{shown(e['low'])}, {shown(e['high'])}]",
            "",
        ]
        for m, e in r["over_best"].items()
        if e
    ]
    head = ["metric", "difference", "prompts", "value [95 % interval]", "p (Holm)"]
    tested = table(head, [*rows, *over], "comparisons") if rows else ""
    return (
        f"<header><h1>Does fusion help? What is in these pairs?</h1><p class=dim>{line(source)},"
        f" {run['prompts']:,} "
        f"prompts, {r['pairs']['n']:,} pairs"
        f"{', simulated' if run['simulated'] else ''}</p></header>"
        '<div class="verdict'
        f' {_SAID.get(r["verdict"], "")}"><strong>{line(r["verdict"][0].upper() + r["verdict"][1:])}</strong>'  # noqa: E501
        + "".join(f"<p>Because {line(x)}.</p>" for x in r["reasons"])
        + f"<p class=dim>{line(r['claim'])}</p>{tested}</div>"
    )


def _doubts(r: Mapping[str, Any]) -> str:
    said = (
        "".join(f"<li>{line(d)}</li>" for d in r["doubts"])
        or "<li>None of the checks of this page found anything.</li>"
    )
    return f"<section><h2>What to doubt</h2><ul>{said}</ul></section>"


def _tiles(r: Mapping[str, Any]) -> str:
    p, run = r["pairs"], r["run"]
    shrink = r["figures"]["margins"]["shrinkage"]
    tiles = [
        ("prompts", shown(run["prompts"])),
        ("pairs", shown(p["n"])),
        *(
            (f"reliability, {d}", shown(v["reliability"]))
            for d, v in r["judge"]["dimensions"].items()
        ),
        ("margins kept when scored again", percent(shrink["ratio"]) if shrink else "–"),
        ("chosen longer", percent(p["length"]["chosen_longer"]["value"]) if p["n"] else "–"),
        ("policy", run["models"].get("policy") or "–"),
        ("judge", run["models"].get("judge") or "–"),
        ("selector", run["selector"]),
        ("tokens", shown(sum(v or 0 for v in r["figures"]["cost"]["tokens"].values()))),
    ]
    return (
        '<dl class="tiles">'
        + "".join(f"<div><dt>{line(k)}</dt><dd>{line(v)}</dd></div>" for k, v in tiles)
        + "</dl>"
    )


def figure(f: Figure, held: str) -> str:
    """A figure with its question, legend, panels, reading and table. `held`: where its numbers
    are."""
    keys = "".join(
        '<li><svg width="14" height="14"'
        f' aria-hidden="true">{_key(style, mark)}</svg>{line(name)}</li>'
        for style, mark, name in f.legend
    )
    legend = f'<ul class="legend">{keys}</ul>' if keys and f.panels else ""
    panels = f'<div class="panels">{"".join(f.panels)}</div>' if f.panels else ""
    numbers = table(f.head, f.rows, f"numbers of {f.name}")
    data = (
        f'<details class="data"><summary>The numbers ({len(f.rows)}'
        f" rows)</summary>{numbers}</details>"
        if f.rows
        else ""
    )
    return (
        f'<figure id="{f.name}"><h2>{line(f.question)}</h2><p'
        f' class="unit">{line(f.unit)}</p>{legend}{panels}<figcaption>{told(f.note)} Data:'
        f" {held}.</figcaption>{data}</figure>"
    )


def _key(style: str, mark: int | None) -> str:
    return (
        f'<rect class="f {style}" width="13" height="13" y=".5"/>'
        if mark is None
        else dot(7, 7, style, mark)
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], label: str = "table") -> str:
    """Cells are text or numbers."""
    top = "".join(f"<th scope=col>{line(h)}</th>" if h else "<td></td>" for h in head)
    lines = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=w' if isinstance(c, str) and len(c) > 50 else ''}>{told(shown(c), 400)}</td>"  # noqa: E501
            for c in row
        )
        + "</tr>"
        for row in rows
    )
    frame = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
    return f"{frame}<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"


def _examples(r: Mapping[str, Any], run_dir: Path) -> str:
    dims = r["settings"]["dimensions"]
    out = []
    for name, said in (
        ("random", "Six pairs drawn at random, by their ids"),
        ("worst", "Six pairs to doubt: smallest confirmed margin, largest length gap"),
    ):
        rows = list(rows_of(run_dir / "dataset", r["examples"][name], dims))
        if rows:
            out.append(
                f"<section><h2>{said}</h2>"
                + "".join(_pair(row, dims, r["settings"]["floors"]) for row in rows)
                + "</section>"
            )
    return "".join(out)


def _pair(row: Mapping[str, Any], dims: Sequence[str], floors: Mapping[str, float]) -> str:
    numbers = [
        [
            d,
            *(
                row[f"{k}_{d}"]
                for k in ("chosen_reward", "rejected_reward", "margin", "margin_confirmed")
            ),
        ]
        for d in dims
    ]
    asked = "\n".join(
        f"{m['role']}: {m['content']}" if len(row["prompt"]) > 1 else m["content"]
        for m in row["prompt"]
    )
    sides = "".join(
        f"<div><h3>{side} ({row[f'len_{side}']} tokens)</h3><div"
        f" class=said>{told(row[side][0]['content'])}</div></div>"
        for side in ("chosen", "rejected")
    )
    texts = f"<h3>prompt</h3><div class=said>{told(asked)}</div><div class=sides>{sides}</div>"
    if _may_harm(row, floors):
        texts = f"<details><summary>Show the texts (they may be harmful)</summary>{texts}</details>"
    about = ", ".join(str(row[k]) for k in ("arm", "kind", "category") if row[k])
    scores = table(
        ["", "chosen", "rejected", "margin", "scored once more"],
        numbers,
        f"scores of {row['pair_id']}",
    )
    return (
        f'<article class="pair"><p class=dim>{line(row["pair_id"])} ·'
        f" {line(about)}</p>{scores}{texts}</article>"
    )


def _may_harm(row: Mapping[str, Any], floors: Mapping[str, float]) -> bool:
    """Whether a text must be unfolded by hand: a side is not known to be harmless. The card's
    example follows the same rule."""
    if "harmless" not in floors:
        return True
    rewards = [row[f"{side}_reward_harmless"] for side in ("chosen", "rejected")]
    return any(v is None or v < floors["harmless"] for v in rewards)


def _people(v: Mapping[str, Any] | None) -> str:
    if v is None:
        return ""
    rows = [
        ["votes", shown(v["votes"])],
        ["pairs", shown(v["pairs"])],
        ["people", shown(v["reviewers"])],
        ["prefer the chosen answer", interval(v["agree"])],
        ["kappa, people and scores", interval(v["kappa"])],
        ["alpha, people among themselves", shown((v["between_people"] or {}).get("alpha"))],
        ["took the first answer (0.5 where the place plays no part)", interval(v["first"])],
        ["equally good", shown(v["equal"])],
        ["neither will do", shown(v["neither"])],
    ]
    numbers = table(["of the blind votes", "value [95 % interval]"], rows, "reviews")
    return (
        f'<section><h2>Do people agree with the scores?</h2>{numbers}<p class="dim">Blind votes on'
        " two answers whose places were drawn by chance; kappa counts those for one side, its"
        " interval resamples source prompts. Data: report.json, reviews.</p></section>"
    )


def _ending(r: Mapping[str, Any]) -> str:
    s = r["settings"]
    missing = (
        "".join(f"<li>{line(x)}</li>" for x in r["not_measured"])
        or "<li>nothing on the list of this page</li>"
    )
    return (
        f"<section><h2>Not measured</h2><ul>{missing}</ul></section><section><h2>How to read the"
        f" numbers</h2><p>Intervals and tests resample source prompts ({s['bootstrap_draws']:,}"
        f" draws, seed {s['seed']}), never answers; arms are compared on the same prompts."
        ' "Before" numbers come from'
        f" {line(s['before'] or 'nowhere: the run has neither an identity arm nor split presamples')},"  # noqa: E501
        " never from the samples that chose the prompts. Formulas and defaults are this project's,"
        " an independent implementation, not by the authors of the paper; docs/numbers.md has"
        f" them. Settings {line(shown(r['run']['settings_hash']))}, data"
        f" {line(shown(r['run']['fingerprint']))}.</p></section>"
    )
