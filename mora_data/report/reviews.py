"""What people think of pairs, blindly, and whether the scores agree with them: reviews.jsonl of a
run folder, a line a vote.

    {"pair_id": "c1760df9722a3a0e", "reviewer": "ada", "first": "rejected", "vote": "second", "at":
    "2026-11-21T17:34:47+00:00"}

`first` is the side that was shown first; the later of two votes of one person on one pair counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import orjson

from ..statistics.inference import cluster_bootstrap
from ..statistics.judges import AgreementSums
from .pairs import PairTable
from .values import Estimate, ReviewNumbers, cell, rounded, share

if TYPE_CHECKING:
    from ..statistics import Floats

FILE = "reviews.jsonl"
VOTES = ("first", "second", "equal", "neither")
DRAWS = 2000


class Vote(TypedDict):
    """A line of reviews.jsonl."""

    pair_id: str
    reviewer: str
    first: str
    vote: str
    at: str


def read_reviews(run_dir: Path) -> list[Vote]:
    """The votes that count, in the order of their pairs' last votes; damaged lines are left out."""
    found: dict[tuple[str, str], Vote] = {}
    try:
        lines = (run_dir / FILE).read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = orjson.loads(line)
            key = str(row["reviewer"]), str(row["pair_id"])
            good = row["vote"] in VOTES and row["first"] in ("chosen", "rejected")
        except (ValueError, KeyError, TypeError):
            continue
        if good:
            found.pop(key, None)
            found[key] = row
    return list(found.values())


def prefers(row: Vote) -> str | None:
    """The side that a vote is for; None for equal and neither."""
    if row["vote"] not in ("first", "second"):
        return None
    other = {"chosen": "rejected", "rejected": "chosen"}
    return str(row["first"]) if row["vote"] == "first" else other[row["first"]]


def agreement(run_dir: Path, p: PairTable, seed: int) -> ReviewNumbers | None:
    """`reviews` of report.json: people against scores; None without a vote on a pair that is in the
    dataset."""
    prompt_of = {
        f"{i:016x}": prompt
        for i, prompt in zip(p.ids_Q.tolist(), p.prompts_Q.tolist(), strict=True)
    }
    rows = [r for r in read_reviews(run_dir) if r["pair_id"] in prompt_of]
    if not rows:
        return None
    decided = [r for r in rows if prefers(r) is not None]
    agree = sum(prefers(r) == "chosen" for r in decided)
    return {
        "votes": len(rows),
        "pairs": len({r["pair_id"] for r in rows}),
        "reviewers": len({r["reviewer"] for r in rows}),
        "equal": sum(r["vote"] == "equal" for r in rows),
        "neither": sum(r["vote"] == "neither" for r in rows),
        "agree": share(agree, len(decided)),
        "kappa": _kappa(decided, [prompt_of[r["pair_id"]] for r in decided], seed),
        "first": share(sum(r["vote"] == "first" for r in decided), len(decided)),
        "between_people": _between(decided),
    }


def _kappa(rows: Sequence[Vote], prompts: Sequence[str], seed: int) -> Estimate | None:
    """Cohen's kappa (1960) of the side that people took and the side that the scores chose;
    interval over prompts."""
    if not rows:
        return None
    human = np.array([r["vote"] == "first" for r in rows])
    judge = np.array([r["first"] == "chosen" for r in rows])
    cells_V_4 = np.stack(
        [human & judge, human & ~judge, ~human & judge, ~human & ~judge], axis=1
    ).astype(float)
    boot = cluster_bootstrap(
        cells_V_4, np.unique(np.array(prompts), return_inverse=True)[1], DRAWS, seed
    )
    value, draws = _of_cells(boot.estimate_M[None])[0], _of_cells(boot.draws_B_M)
    known = draws[~np.isnan(draws)]
    low, high = (
        np.quantile(known, [0.025, 0.975]) if len(known) and boot.n_M[0] > 1 else (np.nan, np.nan)
    )
    return cell(value, low, high, len(rows))


def _of_cells(shares_B_4: Floats) -> Floats:
    both, human, judge, none = shares_B_4.T
    agree = both + none
    chance = (both + human) * (both + judge) + (judge + none) * (human + none)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(chance < 1 - 1e-12, (agree - chance) / (1 - chance), np.nan))


def _between(rows: Sequence[Vote]) -> dict[str, float | int | None] | None:
    """Krippendorff's alpha of the people among themselves, over pairs that two of them decided."""
    by_pair: dict[str, list[float]] = {}
    for r in rows:
        by_pair.setdefault(r["pair_id"], []).append(float(prefers(r) == "chosen"))
    twice = sum(len(votes) > 1 for votes in by_pair.values())
    if not twice:
        return None
    sums = AgreementSums()
    for votes in by_pair.values():
        sums.add(votes)
    return {"alpha": rounded(sums.alpha()), "pairs": twice}
