"""One pair: both answers side by side, scores against floors, where it stands among all answers of
its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..report.svg import Frame, axes, dot, panel, rule, short, text
from .html import LONGEST, a, conversation, document, folded, said, table, unfold, word
from .index import full
from .pairs import url_of
from .prompt import spaces
from .provenance import lineage, mark_selected
from .query import params, query_of

if TYPE_CHECKING:
    from .server import View


def data(view: View, query: dict[str, str], pair_id: str) -> dict[str, Any] | None:
    """The page's JSON twin; None where there is no such pair."""
    held = view.pairs()
    ix, q = held.index, query_of(query, held.index)
    at = ix.row_of.get(pair_id)
    if at is None:
        return None
    row = full(ix, at)
    steps = {}
    for name, change in (
        ("next", {"after": pair_id, "before": None}),
        ("back", {"before": pair_id, "after": None}),
    ):
        rows = held.page(
            query_of({**params(q), **{k: v for k, v in change.items() if v}}, ix), 1
        ).rows
        steps[name] = ix.ids[rows[0]] if rows and rows[0] != at else None
    tree = lineage(held.place, row["prompt_id"])
    if tree is not None:
        mark_selected(tree, [row])
    state = {k: v for k, v in params(q).items() if k not in ("after", "before")}
    return {
        "pair": row,
        "dimensions": list(ix.dims),
        "floors": dict(held.place.floors),
        "may_harm": bool(ix.flags["harm"][at]),
        "query": state,
        **steps,
        "x": query.get("x"),
        "y": query.get("y"),
        "whole": query.get("full") == "1",
        "lineage": tree,
    }


def html(tree: dict[str, Any]) -> str:
    """The page."""
    row, dims = tree["pair"], tree["dimensions"]
    about = [
        f"arm {row['arm']}",
        f"kind {row['kind']}",
        f"carries {row['carried_dim'] or 'nothing'}",
        f"fusion added {', '.join(row['target_dims'] or ()) or 'nothing'}",
        f"category {row['category'] or 'none'}",
        f"selector {row['selector']}",
    ]
    body = [
        f'<h1>Pair {word(row["pair_id"])}</h1><p class="dim">{word(" · ".join(about))}</p>',
        _steps(tree),
        (
            "<div"
            f' class="panels"><div>{_scores(row, dims, tree["floors"])}</div><div>{_numbers(row, dims)}</div></div>'  # noqa: E501
        ),
        folded(
            "Show the texts (they may be harmful)",
            _texts(tree),
            tree["may_harm"] and not tree["query"].get("texts"),
        ),
    ]
    if tree["lineage"] is not None:
        link = f"/prompt/{row['prompt_id']}"
        pictures = spaces(tree["lineage"], tree, link, f"/pair/{row['pair_id']}")
        body.append(
            f"<section><h2>Why this pair: every answer to the prompt</h2>{pictures}"
            f"<p>{a(link, 'The whole story of the prompt: rewrites, checks, all answers', key='l')}</p></section>"  # noqa: E501
        )
    else:
        body.append(
            '<p class="note">Neither a run folder nor a scored config is here: the other answers to'
            " this prompt are not known.</p>"
        )
    rest = [
        [
            k,
            (
                v
                if isinstance(v, (int, float))
                else ", ".join(map(str, v))
                if isinstance(v, list)
                else v
            ),
        ]
        for k, v in row.items()
        if k not in ("prompt", "chosen", "rejected", "source_prompt")
    ]
    body.append(folded("All columns", table(["column", "value"], rest, "all columns")))
    return document(
        f"Pair {row['pair_id']}",
        body,
        "/pair",
        url_of(f"/pair/{row['pair_id']}.json", tree["query"]),
    )


def _steps(tree: Mapping[str, Any]) -> str:
    links = [a("/pairs", "to the list", tree["query"])]
    links += [
        a(f"/pair/{tree[name]}", said, tree["query"], key=name[0])
        for name, said in (("back", "‹ back"), ("next", "next ›"))
        if tree[name]
    ]
    links.append(unfold(f"/pair/{tree['pair']['pair_id']}", tree["query"]))
    return f'<p class="pager">{" ".join(links)}</p>'


def _texts(tree: Mapping[str, Any]) -> str:
    row, whole = tree["pair"], tree["whole"]
    sides = "".join(
        f'<div><h3>{side}</h3><p class="dim">{row[f"len_{side}"]}'
        f" tokens</p>{said(row[side][-1]['content'], whole)}</div>"
        for side in ("chosen", "rejected")
    )
    long = any(
        len(m["content"] or "") > LONGEST for s in ("prompt", "chosen", "rejected") for m in row[s]
    )
    more = (
        f"<p>{a('/pair/' + row['pair_id'], 'Show the texts to their end', {**tree['query'], 'full': '1'})}</p>"  # noqa: E501
        if long and not whole
        else ""
    )
    return (
        f"<h2>Prompt</h2>{conversation(row['prompt'], whole)}{more}<h2>Answers</h2><div"
        f' class="sides">{sides}</div>'
    )


def _scores(row: Mapping[str, Any], dims: Sequence[str], floors: Mapping[str, float]) -> str:
    f = Frame((0, 1), (0, 1), 420, 62 + 34 * len(dims), 110, 16, 28, 36)
    marks = axes(f, "reward", "", [(v, f"{v:g}") for v in (0, 0.25, 0.5, 0.75, 1)], [])
    told = []
    for i, d in enumerate(dims):
        y = f.top + 17 + 34 * i
        chosen, rejected = row[f"chosen_reward_{d}"], row[f"rejected_reward_{d}"]
        marks.append(text(f.left - 8, y + 4, short(d, 14), "e"))
        if d in floors:
            marks.append(rule(f.px(floors[d]), y - 13, f.px(floors[d]), y + 13, "z"))
        if chosen is None or rejected is None:
            marks.append(text(f.left + 4, y + 4, "not measured", "s"))
            continue
        marks += [
            rule(f.px(rejected), y, f.px(chosen), y, "tie"),
            dot(f.px(rejected), y, "down", 1, f"rejected {rejected:.2f}"),
            dot(f.px(chosen), y, "up", 0, f"chosen {chosen:.2f}"),
        ]
        told.append(f"{d}: chosen {chosen:.2f}, rejected {rejected:.2f}")
    return panel(
        "Rewards: circle chosen, square rejected, dashed the floor", "; ".join(told), f, marks
    )


def _numbers(row: Mapping[str, Any], dims: Sequence[str]) -> str:
    rows = [
        [
            d,
            *(
                row[f"{k}_{d}"]
                for k in ("chosen_reward", "rejected_reward", "margin", "margin_confirmed")
            ),
            "must win" if d in (row["binding_dims"] or ()) else "",
        ]
        for d in dims
    ]
    rows.append(["total", None, None, row["margin_total"], None, ""])
    return table(
        ["dimension", "chosen", "rejected", "margin", "scored again", "rule"], rows, "scores"
    )
