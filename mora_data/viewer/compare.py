"""Two runs side by side, joined by source prompt: whose pair is there, whose margin moved, and one
prompt in both.

The other folder is given on the command line (`--with OTHER`), so that no address can read a folder
of its choice. The numbers with their intervals are those of `mora-data report --compare`, computed
when asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..report.compare import compare_sides, side_of
from ..report.page import comparison_details, differing_numbers
from ..text import one_line
from .folder import Page, Query, ViewedFolder
from .index import read_pair
from .provenance import read_provenance
from .search import PairSearch

PAGE_ROWS = 50
SHOW = {
    "all": "every prompt with a pair",
    "only_a": "a pair in A only",
    "only_b": "a pair in B only",
    "kind": "of another kind",
    "up": "larger margin in B",
    "down": "smaller margin in B",
}


NOTHING = Page("viewer/compare.html", {"on": False})  # of a viewer without another folder


@dataclass(frozen=True, slots=True)
class ComparedPrompt:
    """A prompt in A and in B: state ("pair", "no pair", "not in it"), and total margin and kind of
    its best pair."""

    prompt_id: str
    state: tuple[str, str]
    margin: tuple[float | None, float | None]
    kind: tuple[str | None, str | None]
    change: float | None

    def is_listed(self, show: str) -> bool:
        """Whether the prompt belongs to this part of SHOW."""
        has, change = tuple(s == "pair" for s in self.state), self.change or 0
        return {
            "all": True,
            "only_a": has == (True, False),
            "only_b": has == (False, True),
            "kind": all(has) and self.kind[0] != self.kind[1],
            "up": change > 0,
            "down": change < 0,
        }[show]


def comparison_page(a: PairSearch, b: PairSearch | None, query: Query) -> Page:
    """The prompts of both folders. `numbers`: the report that compares them, where asked for."""
    if b is None:
        return NOTHING
    show = query.get("show", "all")
    show = show if show in SHOW else "all"
    rows = _join(a, b)
    listed = [r for r in rows if r.is_listed(show)]
    start = query.get("from", "")[:9]
    first = int(start) if start.isdecimal() else 0
    numbers = None
    helpers: dict[str, Any] = {"parts": SHOW, "page_rows": PAGE_ROWS}
    if query.get("numbers") == "1":
        numbers = compare_sides(*(side_of(str(p.folder.root)) for p in (a, b)))
        helpers["differences"] = differing_numbers(numbers)[:6]
        helpers["figures"] = comparison_details(numbers)
    fields = {
        "names": _names(a, b),
        "dimensions": _shared_dims(a, b),
        "show": show,
        "counts": {name: sum(r.is_listed(name) for r in rows) for name in SHOW},
        "first": first,
        "total": len(listed),
        "rows": (shown := listed[first : first + PAGE_ROWS]),
        "texts": {r.prompt_id: _asked(r.prompt_id, a, b) for r in shown},
        "numbers": numbers,
        "query": {"show": show} if show != "all" else {},
        "on": True,
    }
    return Page("viewer/compare.html", fields, helpers)


def _names(*both: PairSearch) -> list[str]:
    return [p.folder.root.name or str(p.folder.root) for p in both]


def _shared_dims(a: PairSearch, b: PairSearch) -> list[str]:
    return [d for d in a.folder.dims if d in b.folder.dims]


def _join(a: PairSearch, b: PairSearch) -> list[ComparedPrompt]:
    """Every prompt that has a pair in either, the largest change first."""
    best = _best_pairs(a), _best_pairs(b)
    mined = _mined(a.folder), _mined(b.folder)
    rows = []
    for prompt_id in dict.fromkeys([*best[0], *best[1]]):
        sides = [found.get(prompt_id) for found in best]
        state_a, state_b = (
            "pair" if side else "no pair" if prompt_id in known else "not in it"
            for side, known in zip(sides, mined, strict=True)
        )
        (margin_a, kind_a), (margin_b, kind_b) = (side or (None, None) for side in sides)
        change = None if margin_a is None or margin_b is None else margin_b - margin_a
        rows.append(
            ComparedPrompt(
                prompt_id, (state_a, state_b), (margin_a, margin_b), (kind_a, kind_b), change
            )
        )
    return sorted(rows, key=lambda r: (r.change is None, -abs(r.change or 0), r.prompt_id))


def _asked(prompt_id: str, *both: PairSearch) -> str:
    """The first question of a prompt's pairs in either folder, cut."""
    at, rows = next((p.index, rows) for p in both if (rows := p.index.of_prompt(prompt_id)))
    text = one_line(read_pair(at, rows[0])["prompt"][-1]["content"], 150)
    return text if len(text) < 150 else text[:149] + "…"


def _best_pairs(pairs: PairSearch) -> dict[str, tuple[float | None, str]]:
    """Prompt -> total margin of its best pair (None where it is not known), and its kind."""
    ix = pairs.index
    if not ix.n:
        return {}
    margin = ix.numbers["margin_total"]
    order = np.lexsort((-margin, ix.prompt_Q))
    _, first = np.unique(ix.prompt_Q[order], return_index=True)
    names, kinds = list(ix.groups), ix.labels["kind"]
    return {
        names[ix.prompt_Q[i]]: (
            None if np.isnan(margin[i]) else float(margin[i]),
            kinds.names[int(kinds.code_Q[i])],
        )
        for i in order[first]
    }


def _mined(folder: ViewedFolder) -> set[str]:
    """Ids of the prompts that a run was made from; none are known of a dataset alone."""
    found = set()
    for part in folder.partitions():
        try:
            lines = (part.folder / "prompts.jsonl").read_bytes().splitlines()
        except OSError:  # being mined
            continue
        found |= {line[14:].split(b'"', 1)[0].decode() for line in lines}
    return found


def prompt_comparison_page(
    a: PairSearch, b: PairSearch | None, query: Query, prompt_id: str
) -> Page | None:
    """One prompt in both folders; None where neither has it."""
    if b is None:
        return NOTHING
    sides = [_side(p, prompt_id) for p in (a, b)]
    if all(s["lineage"] is None and not s["pairs"] for s in sides):
        return None
    fields = {
        "names": _names(a, b),
        "dimensions": _shared_dims(a, b),
        "prompt_id": prompt_id,
        "sides": sides,
        "query": {k: query[k] for k in ("x", "y") if query.get(k)},
        "on": True,
    }
    return Page("viewer/compare_prompt.html", fields)


def _side(pairs: PairSearch, prompt_id: str) -> dict[str, object]:
    """What one of the two folders has of a prompt."""
    ix, floors = pairs.index, pairs.folder.floors
    rows = ix.of_prompt(prompt_id)
    found = [read_pair(ix, i) for i in rows]
    return {
        "lineage": read_provenance(pairs.folder, prompt_id, found),
        "pairs": found,
        "floors": floors,
        "dimensions": list(pairs.folder.dims),
        "unsafe": {ix.ids[i]: ix.unsafe_sides(i) for i in rows},
    }
