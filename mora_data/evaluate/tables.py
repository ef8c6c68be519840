"""An evaluation as Markdown: a table per set of prompts, and under each what it supports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .inputs import SAFE

OVER_REFUSAL = (SAFE, "xstest")


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, one per set of prompts, and under each what it supports."""
    lines = [
        "# Evaluation",
        "",
        *(f"> {note}" for note in found["notes"]),
        "",
        (
            f"Reference: {found['reference']}. Judge: {found['judge']}. Rewards and rates in [0,"
            " 1], length in tokens; difference to the reference in points with its 95 % interval,"
            " paired by prompt, over seeds and prompts; p by Holm over models and dimensions."
        ),
        "",
    ]
    for part, s in found["sets"].items():
        lines += [
            f"## {part}: {s['prompts']} prompts"
            + (" (refusals here are over-refusals)" if part in OVER_REFUSAL else ""),
            "",
            "| model | seeds | metric | mean | points | relative | p |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, model in s["models"].items():
            lines += [
                f"| {name} | {model['seeds']} | {metric} | {_ends(e['mean'], e['interval'])} |"
                f" {_ends(e.get('points'), e.get('points_interval'), '+')} |"
                f" {_percent(e.get('relative_percent'))} | {_number(e.get('p_holm'))} |"
                for metric, e in model["metrics"].items()
            ]
            if w := model.get("win_rate"):
                lines.append(
                    f"| {name} | {model['seeds']} | win rate, both orders |"
                    f" {_ends(w['rate'], w['interval'])} | | | |"
                )
                lines.append(
                    f"| {name} | {model['seeds']} | win rate at equal length | "
                    f"{_ends(w['length_controlled'], w['length_controlled_interval'])} | | | |"
                )
        lines += ["", *(f"- {m['statement']}" for m in s["models"].values() if "statement" in m)]
        lines += [
            *(
                f"- Choices of {m} were read by {' and '.join(how)}."
                for m, how in s.get("read_by", {}).items()
                if how
            ),
            "",
        ]
    for sequence in found.get("sequences", ()):
        lines += _sequence(sequence)
    if len(found.get("sequences", ())) > 1:
        lines += _orders(found["sequences"])
    for curve in found.get("scaling", ()):
        lines += _curve(curve)
    return "\n".join([*lines, found["paper"], ""])


def _sequence(q: Mapping[str, Any]) -> Iterator[str]:
    dims = list(q["final_gain"])
    yield from (
        f"## Sequence: {' -> '.join(q['stages'])}",
        "",
        f"| after | {' | '.join(dims)} |",
        "|---|" + "---|" * len(dims),
    )
    for name, values in q["matrix"].items():
        yield f"| {name} | {' | '.join(_number(values[d]) for d in dims)} |"
    for name, key in (("final gain", "final_gain"), ("backward transfer", "backward_transfer")):
        yield (
            f"| {name} |"
            f" {' | '.join(_ends(q[key][d], q[key + '_interval'][d], '+') for d in dims)} |"
        )
    yield ""


def _orders(sequences: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (
        "## Orders",
        "",
        "Means over dimensions.",
        "",
        "| order | final gain | backward transfer |",
        "|---|---|---|",
    )
    for q in sequences:
        means = [
            _ends(q[k], q[k + "_interval"], "+")
            for k in ("mean_final_gain", "mean_backward_transfer")
        ]
        yield f"| {' -> '.join(q['stages'])} | {' | '.join(means)} |"
    yield ""


def _curve(curve: Mapping[str, Any]) -> Iterator[str]:
    sizes = ", ".join(f"{n:g}" for n in curve["pairs"])
    yield from (
        f"## Scaling{': ' + curve['name'] if curve['name'] else ''}",
        "",
        f"a + b (1 - exp(-n / n0)) over {sizes} pairs; three sizes at least. Saturation: a + b.",
        "",
        "| metric | a | b | saturation | n0 |",
        "|---|---|---|---|---|",
    )
    for name, f in curve["fits"].items():
        if f:
            edge = " (at the end of the search: no saturation seen)" if f["at_edge"] else ""
            yield (
                f"| {name} | {_number(f['a'])} | {_ends(f['b'], f['b_interval'])} |"
                f" {_ends(f['saturation'], f['saturation_interval'])} |"
                f" {_ends(f['n0'], f['n0_interval'])}{edge} |"
            )
    yield ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f} %"


def _ends(value: float | None, ends: Sequence[float] | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.3g}" + (f" [{ends[0]:{sign}.3g}, {ends[1]:{sign}.3g}]" if ends else "")
