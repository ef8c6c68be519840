"""Mini-MORA: fused pairs added to plain ones, in sequence and at once, in one process.

    python -m benchmarks.mini_mora --piece added --seed 0       one piece of one seed
    python -m benchmarks.mini_mora --scale gpu --piece rate     the large scale, on one GPU
    python -m benchmarks.mini_mora --report                     the tables, from results/

What is found lies in results/SCALE.csv, one row per trained model and form of question; a row that
is there is not computed again. What was predicted, and what came out: README.md beside this file.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # who imports this file keeps its own
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from .lab import MEANS, Lab, Pair
from .report import done, report
from .scale import FORMS, SCALES, Scale, without_skill
from .world import DIMENSIONS

HEAD = ("q", "seed", "method", "n", "steps", "pairs", "form", *MEANS, "joint_by_topic", "cpu_s")
PASSES = 4  # over the plain pairs, whatever is added
Trained = tuple[Any, int, int]  # model, steps, pairs


def first(lab: Lab, n: int, arm: str = "plain", selector: str = "dominance") -> list[Pair]:
    """The arm's first n pairs; more than the scale's n are chosen from four times the answers, four
    a question.

    Raises:
        LookupError: it has fewer.
    """
    answers, each = (8, 2) if n <= lab.scale.n else (32, 4)
    found = lab.pairs(arm, selector, answers, each)
    if len(found) < n:
        raise LookupError(f"{arm} under {selector} has {len(found)} pairs, {n} are wanted")
    return found[:n]


def each_dimension(lab: Lab, n: int, arm: str = "plain") -> list[Pair]:
    """n pairs of the arm, a third chosen for each dimension alone."""
    return [p for d in DIMENSIONS for p in first(lab, n // 3, arm, d)]


def reattached(pairs: Sequence[Pair], every: int = 1) -> list[Pair]:
    """The pairs, every `every`-th with the plain question in place of the fused one."""
    return [replace(p, prompt=p.plain) if i % every == 0 else p for i, p in enumerate(pairs)]


METHODS: dict[str, Callable[[Lab, int], list[Pair]]] = {
    "plain": first,
    "plain+fused": lambda lab, n: first(lab, n) + first(lab, n, "fused"),
    "plain+plain": lambda lab, n: first(lab, n) + first(lab, n, "more"),
    "plain+generic": lambda lab, n: first(lab, n) + first(lab, n, "generic"),
    "fused": lambda lab, n: first(lab, n, "fused"),
    "plain+distilled": lambda lab, n: first(lab, n) + reattached(first(lab, n, "fused")),
    "plain+half": lambda lab, n: first(lab, n) + reattached(first(lab, n, "fused"), 2),
    "plain+fused, each wins": lambda lab, n: first(lab, n) + first(lab, n, "fused", "dominance_hv"),
    "dims": each_dimension,
    "dims+fused": lambda lab, n: each_dimension(lab, n) + first(lab, n, "fused"),
    "dims+plain": lambda lab, n: each_dimension(lab, n) + each_dimension(lab, n, "more"),
    "plain, sum": lambda lab, n: first(lab, n, "plain", "sum"),
    "plain+fused, sum": lambda lab, n: (
        first(lab, n, "plain", "sum") + first(lab, n, "fused", "sum")
    ),
    "plain, dominance_hv": lambda lab, n: first(lab, n, "plain", "dominance_hv"),
}
KINDS = ("alone", "mora", "more")  # of sequence
ADDED = ("plain", "plain+fused", "plain+plain")
PIECES: dict[str, tuple[str, ...]] = {
    "added": (*ADDED, "fused"),
    "distilled": ("plain+distilled", "plain+half"),
    "generic": ("plain+generic",),
    "simultaneous": ("dims", "dims+fused", "dims+plain"),
    "selectors": tuple(name for name in METHODS if name.startswith("plain") and "," in name)[1:],
    "each_wins": ("plain", "plain+fused", "plain+fused, each wins"),
    "sizes": ADDED,
    "sequence": (),
    "rate": (),
}


def sizes_of(piece: str, scale: Scale) -> tuple[int, ...]:
    """The n of a piece."""
    if piece == "sizes":
        return scale.sizes
    return (scale.n_few if piece == "each_wins" else scale.n,)


def steps_of(n: int, scale: Scale) -> int:
    """Steps for n plain pairs, whatever is added."""
    return -(-PASSES * n // scale.batch)


def run(lab: Lab, piece: str, rate: float, results: Path) -> None:
    """Every model of the piece at this seed."""

    def record(method: str, n: int, train: Callable[[], Trained]) -> None:
        at = "" if rate == lab.scale.rate or not n else f" at {rate:g}"
        write(lab, method + at, n, train, results)

    record("base", 0, lambda: (lab.base, 0, 0))
    if piece == "rate":
        print(json.dumps(learning_rate(lab)))
    if piece == "sequence":
        for kind, order in itertools.product(KINDS, itertools.permutations(DIMENSIONS)):
            name = f"sequence {kind}: {' '.join(order)}"
            train = lambda order=order, kind=kind: chain(lab, order, kind, rate)  # noqa: E731
            record(name, lab.scale.n, train)
    for n, method in itertools.product(sizes_of(piece, lab.scale), PIECES[piece]):

        def trained(n: int = n, method: str = method) -> Trained:
            pairs, steps = METHODS[method](lab, n), steps_of(n, lab.scale)
            return lab.dpo(lab.base, pairs, steps, rate), steps, len(pairs)

        record(method, n, trained)


def write(lab: Lab, method: str, n: int, train: Callable[[], Trained], results: Path) -> None:
    """Train and test, unless the rows are there."""
    key = (str(lab.q), str(lab.seed), method, str(n))
    if any((r["q"], r["seed"], r["method"], r["n"]) == key for r in done(results)):
        return
    started = time.process_time()
    try:
        model, steps, pairs = train()
    except LookupError as e:
        print(f"{method}, n = {n}, seed {lab.seed}: not run, {e}", file=sys.stderr)
        return
    rows = [lab.tested(model, form, lab.scale.splits()["test"]) for form in FORMS]
    cpu = round(time.process_time() - started, 1)
    new = not results.is_file()
    results.parent.mkdir(exist_ok=True)
    with results.open("a", encoding="utf-8", newline="") as lines:
        table = csv.DictWriter(lines, HEAD, lineterminator="\n")
        if new:
            table.writeheader()
        for form, row in zip(FORMS, rows, strict=True):
            known = dict(zip(HEAD, (*key, steps, pairs, form), strict=False))
            table.writerow({**known, **row, "cpu_s": cpu})
    print(f"{method}, n = {n}, seed {lab.seed}: joint {[r['joint'] for r in rows]}", flush=True)


def chain(lab: Lab, order: Sequence[str], kind: str, rate: float) -> Trained:
    """One dimension after the other, each stage's reference the stage before, n / 3 pairs a stage.

    The stages after the first also hold, at equal steps, as many fused pairs in which their
    dimension gains and none loses (`mora`), or further plain pairs chosen as theirs are (`more`).
    """
    n = lab.scale.n // 3
    model, steps, total = lab.base, steps_of(n, lab.scale), 0
    for t, d in enumerate(order):
        key = (kind if t else "", *order[: t + 1])
        pairs = first(lab, n, "plain", d)
        if t and kind == "mora":
            pairs = pairs + first(lab, n, "fused", f"kept_{d}")
        elif t and kind == "more":
            pairs = pairs + first(lab, n, "more", d)
        if key not in lab.trained:
            lab.trained[key] = lab.dpo(model, pairs, steps, rate)
        model, total = lab.trained[key], total + len(pairs)
    return model, 3 * steps, total


def learning_rate(lab: Lab) -> dict[float, float]:
    """Joint pass on plain questions of training topics, mean of plain and plain+fused, per rate."""
    scale, out = lab.scale, {}
    topics = without_skill(scale.splits()["train"], scale.n_dev, lab.q)
    for rate in scale.rates:
        models = [
            lab.dpo(lab.base, METHODS[m](lab, scale.n), steps_of(scale.n, scale), rate)
            for m in ("plain", "plain+fused")
        ]
        found = [float(lab.tested(m, "plain", topics)["joint"]) for m in models]
        out[rate] = sum(found) / 2
    return out


def main() -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mini_mora", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--piece", choices=PIECES, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--q", type=float, default=0.1, help="latent skill (default 0.1)")
    parser.add_argument("--rate", type=float, help="learning rate (default: the scale's)")
    parser.add_argument(
        "--n", type=int, help="plain pairs, and as many added (default: the scale's)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mini-mora"))
    parser.add_argument("--results", type=Path, help="CSV file (default: results/SCALE.csv here)")
    parser.add_argument("--report", action="store_true", help="print the tables")
    args = parser.parse_args()
    scale = SCALES[args.scale]
    scale = replace(scale, n=args.n or scale.n)
    results = args.results or Path(__file__).with_name("results") / f"{scale.name}.csv"
    if args.report:
        print("\n".join(report(results)))
        return 0
    torch.set_num_threads(1)
    out = args.out / scale.name
    out.mkdir(parents=True, exist_ok=True)
    lab = Lab(out, scale, args.q, args.seed)
    for piece in args.piece or ["added"]:
        run(lab, piece, args.rate or scale.rate, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
