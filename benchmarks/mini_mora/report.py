"""The tables of results/*.csv: means of every method, and the differences that the predictions
name, with intervals over seeds and topics."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mora_data.evaluate.report import bootstrap_p, draws_interval, hierarchical_bootstrap

from .scale import FORMS, TEST_ANSWERS
from .world import DIMENSIONS

SHOWN = ("joint", "joint_H", "joint_Q", "harmful_S", "refusal", *DIMENSIONS, "words", "kl")
ORDERS = [" ".join(o) for o in itertools.permutations(DIMENSIONS)]
DRAWS = 4000
# a method less another; several, whose mean is taken
COMPARED: dict[str, list[tuple[str, str]]] = {
    f"{a} - {b}": [(a, b)]
    for a, b in (
        ("plain", "base"),
        ("plain+fused", "base"),
        ("plain+fused", "plain"),
        ("plain+fused", "plain+plain"),
        ("plain+plain", "plain"),
        ("fused", "plain"),
        ("plain+generic", "plain"),
        ("plain+fused", "plain+generic"),
        ("plain+distilled", "plain"),
        ("plain+half", "plain"),
        ("plain, sum", "plain"),
        ("plain, sum", "base"),
        ("plain, dominance_hv", "plain"),
        ("plain+fused, sum", "plain+fused"),
        ("plain+fused, each wins", "plain+fused"),
        ("plain+fused, each wins", "plain"),
        ("dims", "base"),
        ("dims+fused", "dims"),
        ("dims+plain", "dims"),
        ("dims+fused", "dims+plain"),
        ("plain", "dims"),
    )
} | {
    f"sequence, {a} - {b}": [
        (x if x == "base" else f"sequence {x}: {o}", y if y == "base" else f"sequence {y}: {o}")
        for x, y, o in ((a, b, o) for o in ORDERS)
    ]
    for a, b in (
        ("mora", "alone"),
        ("more", "alone"),
        ("mora", "more"),
        ("alone", "base"),
        ("mora", "base"),
    )
}


def done(results: Path) -> list[dict[str, str]]:
    """The rows that are there."""
    if not results.is_file():
        return []
    with results.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def gap(
    rows: Sequence[dict[str, str]],
    pairs: Sequence[tuple[str, str]],
    n: str,
    form: str,
    q: str,
    at: str = "",
) -> dict[str, Any] | None:
    """Joint pass of methods less others', mean of the pairs, with its 95 % interval and p over
    seeds and topics; None where no seed has them all. `at`: the learning rate, in the names."""
    of = {(r["method"], r["n"], r["seed"]): r for r in rows if (r["form"], r["q"]) == (form, q)}

    def row(method: str, seed: str) -> dict[str, str] | None:
        return of.get(("base", "0", seed) if method == "base" else (method + at, n, seed))

    values = []
    for seed in sorted({s for _, _, s in of}, key=int):
        both = [(row(a, seed), row(b, seed)) for a, b in pairs]
        there = [(_passed(a), _passed(b)) for a, b in both if a and b]
        if len(there) == len(pairs):
            values.append(np.mean([a - b for a, b in there], axis=0))
    if not values:
        return None
    return _drawn(np.array(values) / (TEST_ANSWERS * (3 if form == "fused" else 2)))


def kept(
    rows: Sequence[dict[str, str]], kinds: tuple[str, str], n: str, form: str, q: str, at: str = ""
) -> dict[str, Any] | None:
    """What one kind of sequence keeps, more than another, of the reward in the dimensions trained
    before the last stage, mean of these dimensions and of the orders; the interval is over seeds
    alone."""
    of = {(r["method"], r["n"], r["seed"]): r for r in rows if (r["form"], r["q"]) == (form, q)}
    values = []
    for seed in sorted({s for _, _, s in of}, key=int):
        both = [[of.get((f"sequence {k}: {o}{at}", n, seed)) for k in kinds] for o in ORDERS]
        earlier = [
            float(a[d]) - float(b[d])
            for (a, b), o in zip(both, ORDERS, strict=True)
            for d in o.split()[:-1]
            if a and b
        ]
        if len(earlier) == 2 * len(ORDERS):
            values.append([np.mean(earlier)])
    return _drawn(np.array(values)) if values else None


def _drawn(values_S_P: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The mean over seeds and topics, its interval and p, and each seed's own."""
    drawn = hierarchical_bootstrap([values_S_P[:, :, None]], None, DRAWS)[0]
    return {
        "seeds": len(values_S_P),
        "value": float(drawn.estimate_M[0]),
        "interval": draws_interval(drawn.draws_B_M[:, 0]),
        "p": bootstrap_p(drawn.draws_B_M[:, 0]),
        "by_seed": [round(float(v.mean()), 4) for v in values_S_P],
    }


def _passed(row: dict[str, str]) -> np.ndarray[Any, Any]:
    return np.array([int(c, 16) for c in row["joint_by_topic"]], float)


def report(results: Path) -> Iterator[str]:
    """Markdown: every method's means, then the differences."""
    rows, seen = done(results), dict[tuple[str, str, str, str], list[dict[str, str]]]()
    for r in rows:
        seen.setdefault((r["q"], r["method"], r["n"], r["form"]), []).append(r)
    yield f"| q | trained on | n | questions | seeds | {' | '.join(SHOWN)} |"
    yield "|" + "---|" * (5 + len(SHOWN))
    for (q, method, n, form), some in seen.items():
        cells = " | ".join(f"{np.mean([float(r[m]) for r in some]):.3f}" for m in SHOWN)
        yield f"| {q} | {method} | {n} | {form} | {len(some)} | {cells} |"
    yield "\n| difference in joint pass | n | q | questions | seeds | value | 95 % | p |"
    yield "|---|---|---|---|---|---|---|---|"
    settings = sorted({(q, n, _rate(m)) for q, m, n, _ in seen if n != "0"})
    for (q, n, at), form in itertools.product(settings, FORMS):
        each = {name: gap(rows, pairs, n, form, q, at) for name, pairs in COMPARED.items()}
        for a, b in (("mora", "alone"), ("mora", "more")):
            each[f"sequence, reward kept: {a} - {b}"] = kept(rows, (a, b), n, form, q, at)
        for name, g in each.items():
            if g:
                low, high = g["interval"] or (float("nan"), float("nan"))
                p = "" if g["p"] is None else "< 0.001" if g["p"] < 1e-3 else f"{g['p']:.3f}"
                ends = f"{low:+.3f} to {high:+.3f}"
                cells = f"{n} | {q} | {form} | {g['seeds']} | {g['value']:+.3f} | {ends} | {p}"
                yield f"| {name}{at} | {cells} |"


def _rate(method: str) -> str:
    """The end of a method's name that says its learning rate, where it has one."""
    return method[method.find(" at ") :] if " at " in method else ""
