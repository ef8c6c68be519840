"""Two runs side by side, joined by source prompt: whose pair is there, whose margin moved, and one
prompt in both.

The other folder is given on the command line (`--with OTHER`), so that no address can read a folder
of its choice. The numbers with their intervals are those of `mora-data report --compare`, computed
when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..report.compare import compared
from ..report.compare_page import arms_figure, own_doubts, pairs_figure, settings_table, summary
from ..report.page import figure
from ..report.sides import side_of
from .html import Html, a, document, folded, said, table, unfold, word
from .index import full
from .place import Place
from .prompt import spaces
from .provenance import lineage, mark_selected
from .query import Pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .server import View

SIZE = 50
SHOW = {
    "all": "every prompt with a pair",
    "only_a": "a pair in A only",
    "only_b": "a pair in B only",
    "kind": "of another kind",
    "up": "larger margin in B",
    "down": "smaller margin in B",
}


def data(view: View, query: dict[str, str], prompt_id: str = "") -> dict[str, Any] | None:
    """The page's JSON twin; None where neither folder has the prompt."""
    if view.other is None:
        return {"on": False}
    held = (view.pairs(), view.other.pairs())
    names = [v.path.name or str(v.path) for v in (view, view.other)]
    base = {
        "on": True,
        "names": names,
        "dimensions": [d for d in held[0].place.dims if d in held[1].place.dims],
    }
    if prompt_id:
        return _one(held, prompt_id, query, base)
    rows = _joined(held[0], held[1])
    show = query.get("show") if query.get("show") in SHOW else "all"
    kept = [r for r in rows if _shown(r, str(show))]
    first = max(0, int(given) if (given := query.get("from", "")[:9]).isdecimal() else 0)
    numbers = (
        compared(side_of(str(view.path)), side_of(str(view.other.path)))
        if query.get("numbers") == "1"
        else None
    )
    return {
        **base,
        "show": show,
        "counts": {name: sum(_shown(r, name) for r in rows) for name in SHOW},
        "first": first,
        "total": len(kept),
        "rows": kept[first : first + SIZE],
        "numbers": numbers,
        "query": {"show": show} if show != "all" else {},
    }


def _joined(one: Pairs, two: Pairs) -> list[dict[str, Any]]:
    """A row per prompt that has a pair in either: largest margin and kind in each, the largest
    change first."""
    best = [_best(p) for p in (one, two)]
    mined = [_mined(p.place) for p in (one, two)]
    rows = []
    for prompt_id in dict.fromkeys([*best[0], *best[1]]):
        sides = [b.get(prompt_id) for b in best]
        states = [
            "pair" if s else "no pair" if prompt_id in m else "not in it"
            for s, m in zip(sides, mined, strict=True)
        ]
        margins = [s[0] if s else None for s in sides]
        change = (
            margins[1] - margins[0] if margins[0] is not None and margins[1] is not None else None
        )
        rows.append(
            {
                "prompt_id": prompt_id,
                "state": states,
                "margin": margins,
                "kind": [s[1] if s else None for s in sides],
                "change": change,
            }
        )
    return sorted(rows, key=lambda r: (r["change"] is None, -abs(r["change"] or 0), r["prompt_id"]))


def _best(p: Pairs) -> dict[str, tuple[float | None, str]]:
    """Prompt -> total margin of its best pair (None where it is not known), and its kind."""
    ix = p.index
    if not ix.n:
        return {}
    margin: NDArray[np.float32] = ix.numbers["margin_total"]
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


def _mined(place: Place) -> set[str]:
    """Ids of the prompts that a run was made from; none are known of a dataset alone."""
    found = set()
    for part in place.parts():
        try:
            found |= {
                line[14:].split(b'"', 1)[0].decode()
                for line in (part.folder / "prompts.jsonl").read_bytes().splitlines()
            }
        except OSError:  # being mined
            continue
    return found


def _shown(r: Mapping[str, Any], show: str) -> bool:
    has = [s == "pair" for s in r["state"]]
    return {
        "all": True,
        "only_a": has == [True, False],
        "only_b": has == [False, True],
        "kind": all(has) and r["kind"][0] != r["kind"][1],
        "up": (r["change"] or 0) > 0,
        "down": (r["change"] or 0) < 0,
    }[show]


def _one(
    held: tuple[Pairs, Pairs], prompt_id: str, query: Mapping[str, str], base: dict[str, Any]
) -> dict[str, Any] | None:
    sides = []
    for p in held:
        story = lineage(p.place, prompt_id)
        pairs = [full(p.index, i) for i in p.index.of_prompt(prompt_id)]
        if story is not None:
            mark_selected(story, pairs)
        harm = bool(p.index.n) and any(
            p.index.flags["harm"][i] for i in p.index.of_prompt(prompt_id)
        )
        sides.append(
            {
                "lineage": story,
                "pairs": pairs,
                "floors": dict(p.place.floors),
                "dimensions": list(p.place.dims),
                "may_harm": harm or not p.place.floors,
            }
        )
    if all(s["lineage"] is None and not s["pairs"] for s in sides):
        return None
    state = {k: query[k] for k in ("x", "y", "texts") if query.get(k)}
    return {**base, "prompt_id": prompt_id, "sides": sides, "query": state}


def html(tree: dict[str, Any]) -> str:
    """The page."""
    if not tree["on"]:
        note = (
            "Start the viewer with --with OTHER, another run or dataset folder, to see here which"
            " prompts have a pair in one only, whose margins moved, and one prompt in both."
            " mora-data report --compare A B writes the numbers into a file."
        )
        return document(
            "Compare", [f'<h1>Compare</h1><p class="note">{note}</p>'], "/compare", "/compare.json"
        )
    if "prompt_id" in tree:
        return _prompt_html(tree)
    counts = tree["counts"]
    chips = "".join(
        f"<li>{a('/compare', f'{name} ({counts[key]:,})', {'show': key}, current=key == tree['show'])}</li>"  # noqa: E501
        for key, name in SHOW.items()
    )
    body = [
        f"<h1>{word(tree['names'][0])} (A) and {word(tree['names'][1])} (B)</h1>",
        _numbers(tree),
        "<section><h2>Prompt by prompt: total margin of the best pair</h2>",
        f'<ul class="chips" aria-label="which prompts">{chips}</ul>',
        _rows(tree),
        _pager(tree),
        "</section>",
    ]
    return document("Compare", body, "/compare", "/compare.json")


def _numbers(tree: Mapping[str, Any]) -> str:
    found = tree["numbers"]
    if found is None:
        more = a(
            "/compare",
            "Which numbers differ, with intervals (computed now)",
            {**tree["query"], "numbers": "1"},
        )
        return f'<p class="pager">{more}</p>'
    doubts = "".join(f"<li>{word(d)}</li>" for d in found["doubts"])
    differ = "".join(f"<li>{word(d)}</li>" for d in summary(found)[:6])
    figures = "".join(
        figure(f, "report-compare.json, " + f.name)
        for f in (arms_figure(found), pairs_figure(found))
    )
    rest = figures + settings_table(found) + own_doubts(found)
    return (
        f"<section><h2>What to doubt</h2><ul>{doubts}</ul></section><div"
        f' class="verdict"><strong>{found["differ"]} of '
        f"{found['tested']} numbers"
        f" differ</strong><ul>{differ}</ul></div>{folded('All figures and numbers', rest)}"
    )


def _rows(tree: Mapping[str, Any]) -> str:
    rows = [
        [
            a(f"/compare/{r['prompt_id']}", r["prompt_id"]),
            *(s if m is None else m for s, m in zip(r["state"], r["margin"], strict=True)),
            None if r["change"] is None else Html(f"{r['change']:+.3f}"),
            (
                r["kind"][0]
                if r["kind"][0] == r["kind"][1]
                else " / ".join(str(k or "–") for k in r["kind"])
            ),
        ]
        for r in tree["rows"]
    ]
    if not rows:
        return '<p class="note">No prompt of this sort.</p>'
    return table(["prompt", "A", "B", "B − A", "kind"], rows, "prompts")


def _pager(tree: Mapping[str, Any]) -> str:
    first, total = tree["first"], tree["total"]
    links = []
    if first:
        links.append(
            a("/compare", "‹ back", {**tree["query"], "from": str(max(0, first - SIZE))}, key="b")
        )
    if first + SIZE < total:
        links.append(a("/compare", "next ›", {**tree["query"], "from": str(first + SIZE)}, key="n"))
    shown = f"{first + 1:,} to {min(first + SIZE, total):,} of {total:,}" if total else ""
    return f'<p class="pager"><span>{shown}</span> {" ".join(links)}</p>'


def _prompt_html(tree: dict[str, Any]) -> str:
    here = f"/compare/{tree['prompt_id']}"
    columns = "".join(
        f"<div><h2>{side}: {word(name)}</h2>{_side(s, tree, here)}</div>"
        for side, name, s in zip("AB", tree["names"], tree["sides"], strict=True)
    )
    story = (
        a(f"/prompt/{tree['prompt_id']}", "its whole story in A")
        if tree["sides"][0]["lineage"] is not None
        else ""
    )
    links = " ".join([a("/compare", "to the list"), story, unfold(here, tree["query"])])
    body = [
        f'<h1>Prompt {word(tree["prompt_id"])}</h1><p class="pager">{links}</p><div'
        f' class="two">{columns}</div>'
    ]
    return document(f"Compare {tree['prompt_id']}", body, "/compare", here + ".json")


def _side(s: Mapping[str, Any], tree: Mapping[str, Any], here: str) -> str:
    if s["lineage"] is None and not s["pairs"]:
        return '<p class="note">This folder does not have the prompt.</p>'
    out = []
    if s["lineage"] is not None and s["lineage"]["arms"]:
        state = {
            "dimensions": s["dimensions"],
            "floors": s["floors"],
            "x": tree["query"].get("x"),
            "y": tree["query"].get("y"),
            "query": tree["query"],
        }
        out.append(spaces(s["lineage"], state, None, here))
    for row in s["pairs"]:
        out.append(_pair(row, s["dimensions"], s["may_harm"] and not tree["query"].get("texts")))
    if not s["pairs"]:
        out.append('<p class="note">No pair of it is in the dataset.</p>')
    return "".join(out)


def _pair(row: Mapping[str, Any], dims: Sequence[str], fold: bool) -> str:
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
    texts = f"<h3>prompt</h3>{said(row['prompt'][-1]['content'])}" + "".join(
        f"<h3>{side}</h3>{said(row[side][-1]['content'])}" for side in ("chosen", "rejected")
    )
    return (
        f"<h3>Pair {word(row['pair_id'])}, arm {word(row['arm'])}</h3>"
        + table(
            ["dimension", "chosen", "rejected", "margin", "scored again"],
            numbers,
            f"scores of {row['pair_id']}",
        )
        + folded("Show the texts (they may be harmful)", texts, fold)
    )
