"""What the commands print about a run, and the lists of what there is to choose from.

`python -m mora_data.cli.show RUN_DIR` shows what a run made: its counts, one pair side by side, and
how to load it.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DropRow
from ..plugins import load
from ..run.folder import shortfalls
from ..text import commonest_first, one_line

if TYPE_CHECKING:
    from ..prompts.judge_audit import AuditResult
    from ..report.values import ComparisonReport, Report
    from ..run import AuditRow, SourceCounts, StageCounts
    from ..run.folder import Summary
    from ..settings import BuildSettings
    from ..sources.mine import OpenedSource
    from .dry_run import BuildEstimate, CapacityRow, Ends, RoleEstimate

WIDTH = 54


def counts_table(counts: Mapping[str, StageCounts]) -> str:
    """Counts per stage as aligned text: in, kept, and what was dropped for which reason."""
    lines = [f"{'stage':<10} {'in':>8} {'kept':>8}  dropped"]
    for stage, c in counts.items():
        dropped = commonest_first(c["dropped"])
        reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        lines.append(f"{stage:<10} {c['in']:>8} {c['kept']:>8}  {reasons or '-'}")
    return "\n".join(lines)


def money_line(
    cost: float | None, spent: float | None, currency: str, unpriced: Sequence[str], pairs: int
) -> str:
    """What a command cost, all of a run folder's and each of its pairs; empty where nothing was
    asked or nothing costs money."""
    if unpriced:
        return f"cost not known: no price for {', '.join(unpriced)} (limits.prices: PATH)"
    if not spent:
        return ""
    now = "" if cost is None else f"{cost:.4g} {currency}, "
    per_pair = f", {spent / pairs:.3g} a pair" if pairs else ""
    return f"cost {now}{spent:.4g} {currency} in this run folder{per_pair}"


def sources_lines(sources: Sequence[SourceCounts]) -> list[str]:
    """What was mined of each source of a mix, and which of them ended before its share."""
    if not sources:
        return []
    names = [f"{s['name']} ({s['split']})" for s in sources]
    width = max(map(len, names))
    heads = ("share", "in", "mine", "presample", "fuse", "pairs")
    lines = [f"\n{'source':<{width}} {' '.join(f'{h:>9}' for h in heads)}  dropped while mining"]
    for name, s in zip(names, sources, strict=True):
        stages = s.get("stages", {})
        kept = [stages[x]["kept"] if x in stages else "-" for x in ("presample", "fuse")]
        share = "-" if s["share"] is None else format(s["share"], "g")
        cells = (share, s["in"], s["kept"], *kept, s.get("pairs", "-"))
        reasons = ", ".join(f"{n} {why}" for why, n in commonest_first(s["dropped"]).items())
        row = " ".join(f"{cell:>9}" for cell in cells)
        lines.append(f"{name:<{width}} {row}  {reasons or '-'}")
    return [*lines, *shortfalls(sources)]


def report_lines(report: Report) -> list[str]:
    """The verdict, the arms with their intervals, and what to doubt, as text."""
    from ..report.arms import HEADLINE
    from ..report.markup import interval

    k = report["settings"]["k"]
    lines = [
        f"verdict: {report['verdict']} (data level only, not training)",
        *(f"  because {r}" for r in report["reasons"]),
        "",
        (
            f"{'arm':<10} {'prompts':>8}  {'dominance rate':<24} {f'joint pass in {k}':<24}"
            f" {'hypervolume':<24} {'ERD':<24}"
        ),
    ]
    for arm, v in report["arms"].items():
        cells = [interval(v["metrics"][m]) for m in HEADLINE]
        lines.append(f"{arm:<10} {v['n']:>8}  " + " ".join(f"{c:<24}" for c in cells).rstrip())
    pairs: dict[str, list[str]] = {}
    for c in report["figures"]["correlations"]:
        pairs.setdefault(f"{c['x']} x {c['y']}", []).append(f"{c['arm']} {interval(c)}")
    if pairs:
        lines += ["", "correlation of two rewards over the answers to one prompt:"]
        lines += [f"  {pair}: {', '.join(by_arm)}" for pair, by_arm in pairs.items()]
    if report["comparisons"]:
        lines += ["", "fused minus each control (p by sign flips, Holm over all):"]
        lines += [
            f"  {c['metric']:<16} {c['control']:<10} {interval({**c, 'value': c['gain']}):<26} p ="
            f" {c['p_holm']:.4f}   n = {c['n']}"
            for c in report["comparisons"]
        ]
    if report["doubts"]:
        lines += ["", "what to doubt:", *(f"- {d}" for d in report["doubts"])]
    return [*lines, ""]


def audit_lines(found: AuditResult) -> list[str]:
    """A table of the judges against labels, then what each row says in words."""
    lines: list[str] = []
    for name, audit in (("", found.audit), ("second: ", found.other)):
        if audit is None:
            continue
        if audit["simulated"]:
            lines.append("the judge is the built-in simulator: this says nothing of a real one")
        head = "source dimension pairs read agreement length over-length ties noise flips".split()
        table = [head, *(_audit_cells(name, row) for row in audit["rows"])]
        lines += aligned(table)
        lines += ["", *(row["sentence"] for row in audit["rows"])]
        lines += [f"{d} was not audited: {why}." for d, why in audit["without"].items()]
        if audit["owed"]:
            lines.append(f"{audit['owed']} pairs could not be asked now: run the command again.")
        lines.append("")
    cost = "" if found.cost is None else f"   cost {found.cost:.4g}"
    return [
        *lines,
        *(d["sentence"] for d in found.differences),
        f"requests {found.requests}   replayed {found.replayed}   tokens {found.tokens['in']} in,"
        f" {found.tokens['out']} out{cost}   {found.run_dir}/judge_audit.json",
    ]


def _audit_cells(name: str, row: AuditRow) -> list[str]:
    def number(value: object, form: str = ".3f") -> str:
        return "-" if value is None else format(value, form)

    def within(v: Mapping[str, object], value: str, form: str) -> str:
        ends = f" [{number(v['low'], form)}, {number(v['high'], form)}]"
        return number(v[value], form) + (ends if v[value] is not None else "")

    return [
        name + row["source"],
        row["dimension"],
        str(row["pairs"]),
        number(row["parse_rate"]),
        within(row["agreement"], "rate", ".3f"),
        within(row["length"], "rate", ".3f"),
        within(row["over_length"], "gain", "+.3f"),
        number(row["ties"]),
        number(row["sigma"]) + (f" ({row['scored_twice']})" if row["scored_twice"] else ""),
        number(row["position"]["flips"]["rate"] if row["position"] else None),
    ]


def compare_lines(tree: ComparisonReport) -> list[str]:
    """What to doubt of a comparison, then which numbers differ, as text."""
    from ..report.page import differing_numbers, side_label

    differences = differing_numbers(tree)
    lines = [
        f"A: {side_label(tree['a'])}",
        f"B: {side_label(tree['b'])}",
        "",
        *(f"- {d}" for d in tree["doubts"]),
        "",
        f"{tree['differ']} of {tree['tested']} numbers differ (p < 0.05, Holm)",
        *(f"  {d}" for d in differences[:12]),
    ]
    more = len(differences) - 12
    return [*lines, *([f"  and {more} more"] if more > 0 else []), ""]


def look(
    opened: OpenedSource, settings: BuildSettings, n_shown: int | None
) -> tuple[dict[str, Any], list[str]]:
    """What a source's rows are read as, as a tree and as text; the first `n_shown` rows of each
    file, None for all.

    Raises:
        SourceError: the rows can't be read.
    """
    from ..sources.mine import MineCounts, by_file, checked_text

    counts = MineCounts()
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    of_file: dict[str, int] = {}
    for number, file, row in by_file(opened, settings, counts):
        if file not in of_file:
            lines += ["", f"{file}: {counts.layouts.get(file, settings.source.kind)}"]
        counts.rows += 1
        of_file[file] = of_file.get(file, 0) + 1
        shown: dict[str, Any] = {"row": number, "file": file}
        try:
            if isinstance(row, DropRow):
                raise row
            parsed = opened.source.parse(row, file)
            checked_text(parsed.messages)
            counts.kept += 1
            counts.notes.update(parsed.notes)
            if n_shown is not None and of_file[file] > n_shown:
                continue
            shown["messages"] = list(parsed.messages)
            shown["answers"] = [
                {"text": text, "ratings": dict(ratings)} for text, ratings in parsed.answers
            ]
            shown["category"], shown["notes"] = parsed.category, list(parsed.notes)
        except DropRow as drop:
            counts.dropped[drop.reason] += 1
            shown["dropped"] = drop.reason
        if n_shown is None or of_file[file] <= n_shown:
            rows.append(shown)
            lines += _row_lines(shown)
    left = list(opened.left_out)
    tree = {"layouts": counts.layouts, "left_out": left, **counts.as_dict()}
    tree |= {"notes": dict(sorted(counts.notes.items())), "rows": rows}
    table = counts_table({"read": counts.as_dict()})
    return tree, [*lines[1:], "", table, *opened.not_read()]


def _row_lines(row: Mapping[str, Any]) -> list[str]:
    if "dropped" in row:
        return [f"{row['row']:>6}  dropped: {row['dropped']}"]
    lines = [f"{m['role']}: {one_line(m['content'], 2 * WIDTH)}" for m in row["messages"]]
    for answer in row["answers"]:
        rated = ", ".join(f"{k} {v:g}" for k, v in sorted(answer["ratings"].items()))
        lines.append(f"answer ({rated or 'not rated'}): {one_line(answer['text'], 2 * WIDTH)}")
    return [f"{row['row'] if i == 0 else '':>6}  {line}" for i, line in enumerate(lines)]


def estimate_lines(found: BuildEstimate) -> list[str]:
    """The estimate as text: a table by role, then pairs, money and time."""
    basis = (
        f"measured on {found.probe.finished} of {found.probe.prompts} prompts that were asked"
        if found.probe
        else f"{found.rehearsed} of them rehearsed with the simulator, nothing asked"
    )
    head = ["role", "model", "requests", "tokens in", "computed", "tokens out", "money"]
    rows = [_cells(r, found.currency) for r in found.roles]
    if a := found.audit:
        money = "?" if a.cost is None else f"{short(a.cost)} {found.currency}"
        rows.append(
            ["audit", "", short(a.requests), short(a.tokens_in), "", short(a.tokens_out), money]
        )
    total = [
        span(e) for e in (found.requests, found.tokens_in, found.tokens_computed, found.tokens_out)
    ]
    money = "?" if found.cost is None else f"{span(found.cost)} {found.currency}"
    rows.append(["all but the audit" if found.audit else "all", "", *total, money])
    out = [
        f"{found.prompts:,} prompts of {found.rows:,} rows, until {found.until}: {basis}",
        "",
        *aligned([head, *rows]),
        "",
        f"pairs        {span(found.pairs)}" + _per_pair(found),
        f"time         {_time(found)}",
    ]
    if found.prompts_needed:
        few, many = found.prompts_needed
        said = f"{few:,} or more (--probe tells)" if many is None else f"{few:,} to {many:,}"
        out.append(f"prompts      {said} for {found.pairs_wanted:,} pairs")
    out += [f"money        not known: {why}" for why in _without_price(found)]
    if p := found.probe:
        cost = "" if p.cost is None else f", {short(p.cost)} {found.currency}"
        out.append(
            f"probe        {p.requests:,} requests, {p.tokens_in + p.tokens_out:,} tokens{cost};"
            f" {p.replayed:,} answers were there before"
        )
    if found.failure:
        out.append(f"probe        ended early: {found.failure}")
    return [*out, *sources_lines(found.sources or ())]


def _cells(r: RoleEstimate, currency: str) -> list[str]:
    money = "?" if r.cost is None else f"{span(r.cost)} {currency}"
    if r.where in ("local", "batch"):
        money += f" ({r.where})"
    counts = (r.requests, r.tokens_in, r.tokens_computed, r.tokens_out)
    return [r.role, r.model or "-", *map(span, counts), money]


def _per_pair(found: BuildEstimate) -> str:
    """Tokens and money for a pair, at the ends that belong together."""
    if not min(found.pairs):
        return ""
    tokens = [
        (i + o) / n
        for i, o, n in zip(found.tokens_in, found.tokens_out, reversed(found.pairs), strict=True)
    ]
    said = f", {span((tokens[0], tokens[1]))} tokens a pair"
    if found.cost and found.cost[1]:
        money = found.cost[0] / found.pairs[1], found.cost[1] / found.pairs[0]
        said += f", {span(money)} {found.currency} a pair"
    return said


def _time(found: BuildEstimate) -> str:
    hours = span((found.seconds[0] / 3600, found.seconds[1] / 3600)) + " h"
    if found.given_tokens_per_s is not None:
        return f"{hours} at {found.given_tokens_per_s:,.0f} tokens/s, in and out together"
    if found.assumed_tokens_per_s is not None:
        return (
            f"{hours} if the servers do {found.assumed_tokens_per_s:,.0f} tokens/s, in and out"
            " together (--tokens-per-s N: what yours do)"
        )
    return f"{hours}, as fast as the probe or with every permit in use"


def _without_price(found: BuildEstimate) -> Iterator[str]:
    for r in found.roles:
        if r.cost is None:
            if not r.where:
                yield f"{r.role} has no endpoint yet (--base-url, --model)"
            elif r.model is None:
                yield f"the name of the {r.role}'s model is not given (--set {r.role}.model=NAME)"
            else:
                yield f"model {r.model} of {r.role} has no price (limits.prices: PATH)"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as columns of one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]


def span(ends: Ends) -> str:
    low, high = (short(v) for v in ends)
    return low if low == high else f"{low} to {high}"


def capacity_table(rows: Sequence[CapacityRow], tokens_per_s: float) -> str:
    """The rows as Markdown; a range where low and high differ."""
    cells = [
        {
            "prompts": f"{r.prompts:,}",
            "GPUs": str(r.gpus),
            "requests": span(r.requests),
            "answers": span(r.answers),
            "tokens": span(r.tokens),
            "hours": span(r.hours),
            "GPU-hours": span(r.gpu_hours),
            "requests/s": span(r.requests_per_s),
            "clients": span(r.clients),
            "storage": span(r.storage_gb) + " GB",
            "core-hours after": short(r.after_hours),
            **({"cost": span(r.cost)} if r.cost else {}),
        }
        for r in rows
    ]
    lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(c.values()) for c in cells)]
    return "\n".join(
        [
            f"At {tokens_per_s:,.0f} tokens/s a GPU, prompt and output tokens together:",
            "",
            *(f"| {' | '.join(line)} |" for line in lines),
        ]
    )


def short(value: float) -> str:
    """Two digits that count: 0.43, 7.5, 86, 1,300, 2.1 M."""
    for unit, size in ((" G", 1e9), (" M", 1e6)):
        if value >= size:
            return f"{float(f'{value / size:.2g}'):,.12g}{unit}"
    return f"{float(f'{value:.2g}'):,.12g}"


def names_of(what: str) -> list[str]:
    """One line for each thing of a kind: sources, engines, rewards, ..."""
    from . import recipes

    if what == "sources":
        return [
            f"{name:<24} {_builder_line(path)}" for name, path in recipes.shipped_builders().items()
        ]
    if what == "layouts":
        from ..sources.layouts import LAYOUTS

        return [f"{x.name:<18} {x.what}: {x.known_by}" for x in LAYOUTS]
    if what in ("engines", "rewards", "selectors"):
        from ..engines.engine import ENGINES
        from ..rewards import REWARDS
        from ..selection import SELECTORS

        known = {"engines": ENGINES, "rewards": REWARDS, "selectors": SELECTORS}[what]
        texts = {name: load(known, name, what).target.__doc__ or "" for name in known}
        return [f"{name:<14} {text.strip().partition(chr(10))[0]}" for name, text in texts.items()]
    if what == "templates":
        return [f"{name:<28} {path}" for name, path in recipes.templates().items()]
    return [f"{r.name:<12} {r.summary}  [{', '.join(r.configs)}]" for r in recipes.list_recipes()]


def _builder_line(path: Path) -> str:
    import yaml

    tree = yaml.safe_load(path.read_text("utf-8"))
    source = tree.get("source", {})
    return f"{source.get('dataset') or 'your own rows'} ({source.get('licence', 'unknown')})"


def show_run(run_dir: Path) -> None:
    """Print the run's counts, its best pair and the lines that load it."""
    from ..run.folder import run_status

    print(counts_table(run_status(run_dir).counts))
    row = best_pair(run_dir / "dataset")
    if row is not None:
        print(
            f"\nthe pair with the largest margin (arm {row['arm']}, kind {row['kind']}, carried"
            f" {row['carried_dim']}, added {', '.join(row['target_dims'] or []) or '-'})\n"
        )
        print(textwrap.fill("prompt: " + row["prompt"][-1]["content"], 2 * WIDTH + 3), "\n")
        print(_side_by_side(row))
    print(
        "\nload it:\n\n    from datasets import load_dataset\n"
        f'    pairs = load_dataset({str(run_dir / "dataset")!r}, split="train")\n'
        '    print(pairs[0]["prompt"], pairs[0]["chosen"], pairs[0]["rejected"])'
    )


def print_preview(summary: Summary, as_json: bool, html: bool) -> None:
    """Print what came of each prompt of a preview, and what it took; `html` writes the page."""
    import json
    from dataclasses import asdict

    from ..run.files import write_whole
    from ..viewer.stories import prompts_html, stories, story_lines

    run_dir = Path(summary.run_dir)
    folder, found = stories(run_dir)
    page = run_dir / "preview.html"
    if html:
        title = f"Preview of {len(found)} prompts"
        write_whole(page, prompts_html(run_dir, title).encode())
    if as_json:
        print(json.dumps({**asdict(summary), "prompts": [asdict(s) for s in found]}))
        return
    for i, story in enumerate(found, 1):
        print(f"-- {i} of {len(found)} -- {story.prompt_id}")
        print("\n".join(story_lines(story, folder.dims)), end="\n\n")
    print(counts_table(summary.counts))
    print(
        f"requests {summary.requests}   replayed {summary.replayed}   tokens"
        f" {summary.tokens['in']} in, {summary.tokens['out']} out   {summary.seconds:.1f} s  "
        f" {page if html else run_dir}"
    )


def best_pair(dataset: Path) -> dict[str, Any] | None:
    """The row of `preference` with the largest total margin; None when there is none."""
    import pyarrow.parquet as pq

    rows = [
        r
        for path in sorted(dataset.glob("preference/*.parquet"))
        for r in pq.read_table(path).to_pylist()
    ]
    return max(rows, key=lambda r: (r["margin_total"], r["prompt_id"]), default=None)


def _side_by_side(row: Mapping[str, Any]) -> str:
    """Chosen and rejected in two columns, scores on top."""
    columns = []
    for side in ("chosen", "rejected"):
        scores = "  ".join(f"{d} {row[f'{side}_reward_{d}']:.2f}" for d in row["dims"])
        head = textwrap.wrap(f"{side.upper()}  {scores}", WIDTH)
        columns.append([*head, "-" * WIDTH, *textwrap.wrap(row[side][-1]["content"], WIDTH)])
    return "\n".join(f"{a or '':<{WIDTH}} | {b or ''}" for a, b in zip_longest(*columns))


if __name__ == "__main__":
    show_run(Path(sys.argv[1]))
