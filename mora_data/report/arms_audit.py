"""What became of the rewrites: numbers over the sealed partitions' `fusions` tables, nothing asked.

funnel(parts)["arms"]["fused"]["checks"]["subject"]     {"seen": 410, "failed": 31, "last": 2}
arms_audit(parts, ["single"])["single"]                 {"n": 97, "mean_log_gap": 0.004,
"worst": 0.11, "matched": True}
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from ..run.partitions import Partition
from ..text import n_tokens

MAX_GAP = 0.05  # mean log length ratio to fused, up to which an arm counts as matched (METHOD (c))

Row = Mapping[str, Any]


@dataclass
class _Arm:
    """Sums of one arm."""

    prompts: int = 0
    accepted: int = 0
    tries: int = 0
    first_try: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    last: Counter[str] = field(default_factory=Counter)
    categories: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def funnel(parts: Iterable[Partition]) -> dict[str, Any]:
    """Per arm that rewrites: prompts, acceptance, what each check failed, refusals by category,
    harm before and after.

    Returns:
        {"arms": {arm: {
            "prompts", "accepted", "tries", "first_try": prompts tried, accepted, rewrites made,
            accepted at the first attempt; "checks": {check: {"seen", "failed", "last"}}: rewrites
            that came to it, that it failed, and prompts lost for good
                whose last rewrite failed it first;
            "categories": {category: {"prompts", "accepted", "refused"}}: refused = the last rewrite
            was a refusal; "values": {check: {"n", "mean"}}: mean value of the accepted rewrites,
            where a check has one; "harm_shift": {"n", "before", "after", "mean"} or None: mean
            P(harmful request) of accepted rewrites and their origins
        }}}
    """
    sums: dict[str, _Arm] = defaultdict(_Arm)
    for part in parts:
        category_of = {p.prompt_id: p.category or "none" for p in part.prompts()}
        for (prompt_id, arm), tries in groupby(
            _rows(part), key=lambda r: (r["prompt_id"], r["arm"])
        ):
            _add(sums[arm], list(tries), category_of[prompt_id])
    return {"arms": {arm: _told(s) for arm, s in sorted(sums.items())}}


def arms_audit(parts: Iterable[Partition], arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per control: over prompts that have both, the mean of log(tokens / tokens of the fused
    prompt), and whether it is matched.

    Returns:
        {arm: {"n", "mean_log_gap", "worst": largest distance of one prompt, "matched"}}; None where
        there is nothing to compare.
    """
    gaps: dict[str, list[float]] = {arm: [] for arm in arms}
    for part in parts if arms else ():
        for _, rows in groupby(
            (r for r in _rows(part) if r["accepted"]), key=lambda r: r["prompt_id"]
        ):
            length = {r["arm"]: n_tokens(r["text"]) for r in rows}
            for arm in arms:
                if arm in length and "fused" in length:
                    gaps[arm].append(math.log(length[arm] / length["fused"]))
    return {
        arm: {
            "n": len(g),
            "mean_log_gap": math.fsum(g) / len(g) if g else None,
            "worst": max(map(abs, g), default=None),
            "matched": abs(math.fsum(g) / len(g)) <= MAX_GAP if g else None,
        }
        for arm, g in gaps.items()
    }


def _rows(part: Partition) -> Iterable[Row]:
    columns = part.table("fusions").to_pydict()
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _add(sums: _Arm, tries: Sequence[Row], category: str) -> None:
    sums.prompts += 1
    sums.tries += len(tries)
    accepted = next((t for t in tries if t["accepted"]), None)
    for t in tries:
        sums.seen.update(c["name"] for c in t["checks"])
        sums.failed.update(t["failed"])
    by_category = sums.categories[category]
    by_category["prompts"] += 1
    if accepted is None:
        sums.last[tries[-1]["failed"][0]] += 1
        by_category["refused"] += tries[-1]["failed"][0] == "rewriter_refusal"
        return
    sums.accepted += 1
    sums.first_try += accepted["attempt"] == 0
    by_category["accepted"] += 1
    for c in accepted["checks"]:
        if c["value"] is not None:
            sums.values[c["name"]].append(c["value"])


def _told(s: _Arm) -> dict[str, Any]:
    before, after = s.values.pop("harm_before", []), s.values.pop("harm", [])
    shift = None
    if before and len(before) == len(after):
        a, b = math.fsum(before) / len(before), math.fsum(after) / len(after)
        shift = {"n": len(before), "before": a, "after": b, "mean": b - a}
    return {
        "prompts": s.prompts,
        "accepted": s.accepted,
        "tries": s.tries,
        "first_try": s.first_try,
        "checks": {
            c: {"seen": n, "failed": s.failed[c], "last": s.last[c]} for c, n in s.seen.items()
        },
        "categories": {
            c: {k: n[k] for k in ("prompts", "accepted", "refused")}
            for c, n in sorted(s.categories.items())
        },
        "values": {c: {"n": len(v), "mean": math.fsum(v) / len(v)} for c, v in s.values.items()},
        "harm_shift": shift,
    }
