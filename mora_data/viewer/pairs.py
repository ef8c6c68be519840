"""The list of pairs: facets, a histogram that filters, search, order, pages. Every state is a
URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ..report.figure import shown
from ..report.svg import Frame, axes, panel
from .html import Html, a, document, table, url, word
from .index import FACETS, FLAGS
from .query import Pairs, Query, params, query_of

if TYPE_CHECKING:
    from .server import View

NAMES = {
    "split": "split",
    "arm": "arm",
    "kind": "kind of prompt",
    "carried_dim": "carries",
    "adds": "fusion added",
    "flag": "look for",
    "category": "category",
    "source_dataset": "source",
}
MOST = 12  # values of a facet that are shown


def data(view: View, query: dict[str, str]) -> dict[str, Any]:
    """The page's JSON twin."""
    held = view.pairs()
    q = query_of(query, held.index)
    page = held.page(q)
    return {
        "query": params(q),
        "n": held.index.n,
        "total": page.total,
        "first": page.first,
        "after": page.after,
        "before": page.before,
        "searched": page.searched,
        "dimensions": list(held.index.dims),
        "facets": held.facets(q),
        "histogram": held.histogram(q),
        "sorts": list(held.index.numbers),
        "pairs": cards(held, page.rows, q),
    }


def cards(held: Pairs, rows: Sequence[int], q: Query) -> list[dict[str, Any]]:
    """What the list says of some pairs; texts that may be harmful only where they are asked for."""
    ix, out = held.index, []
    for i in rows:
        harm = bool(ix.flags["harm"][i])
        out.append(
            {
                "pair_id": ix.ids[i],
                **{k: ix.labels[k].names[int(ix.labels[k].code_Q[i])] for k in FACETS},
                "may_harm": harm,
                **{
                    t: ix.words(i, t) if q.texts or not harm else None
                    for t in ("prompt", "chosen", "rejected")
                },
                **{name: _number(values[i]) for name, values in ix.numbers.items()},
            }
        )
    return out


def _number(value: Any) -> float | None:
    return None if value != value else round(float(value), 4)


def html(tree: dict[str, Any]) -> str:
    """The page."""
    q = _query(tree["query"])
    body = [
        f"<h1>{tree['total']:,} of {tree['n']:,} pairs</h1>",
        _active(q),
        '<div class="split">',
        _facets(tree, q),
        "<div>",
        _find(tree, q),
    ]
    if tree["searched"] is not None:
        body.append(
            f'<p class="note" role="status">The time sufficed for {tree["searched"]:,} pairs; there'
            " may be more hits.</p>"
        )
    if tree["histogram"]:
        body.append(histogram(tree["histogram"], q, f"{_column(q)} of these pairs"))
    body += [
        _pager(tree, q),
        listing(tree["pairs"], tree["dimensions"], q) if tree["pairs"] else _nothing(tree),
        _pager(tree, q, keys=False),
        "</div></div>",
    ]
    return document("Pairs", body, "/pairs", escape(url_of("/pairs.json", tree["query"])))


def url_of(path: str, query: Mapping[str, str]) -> str:
    """An unescaped link."""
    from urllib.parse import urlencode

    return path + (f"?{urlencode(query)}" if query else "")


def _query(given: Mapping[str, str]) -> Query:
    tree: dict[str, Any] = dict(given)
    for name in ("low", "high"):
        if name in tree:
            tree[name] = float(tree[name])
    return Query(**{**tree, "whole": "whole" in tree, "texts": "texts" in tree})


def _column(q: Query) -> str:
    return q.sort.removeprefix("-").replace("_", " ")


def _active(q: Query) -> str:
    chips: list[tuple[str, dict[str, Any]]] = [
        (f"{NAMES[k]}: {FLAGS.get(v, v) if k == 'flag' else v}", {k: None})
        for k in NAMES
        if (v := getattr(q, k))
    ]
    if q.q:
        chips.append((f"text: {q.q}", {"q": "", "whole": False}))
    if q.low is not None or q.high is not None:
        chips.append(
            (f"{_column(q)} {shown(q.low)} to {shown(q.high)}", {"low": None, "high": None})
        )
    if not chips:
        return ""
    return (
        '<ul class="chips" aria-label="filters">'
        + "".join(
            f"<li>{a('/pairs', name + ' ✕', params(q, **change))}</li>" for name, change in chips
        )
        + f"<li>{a('/pairs', 'all pairs')}</li></ul>"
    )


def _facets(tree: dict[str, Any], q: Query) -> str:
    out = ['<aside class="facets" aria-label="filters by value">']
    for name, title in NAMES.items():
        counts, chosen = tree["facets"][name], getattr(q, name)
        if name not in ("adds", "flag") and len(counts) < 2 and chosen is None:
            continue
        shown_values = list(counts.items())[:MOST]
        if chosen in counts and chosen not in dict(shown_values):
            shown_values.append((chosen, counts[chosen]))
        items = "".join(f"<li>{_value(q, name, v, n, chosen == v)}</li>" for v, n in shown_values)
        more = f'<li class="dim">and {len(counts) - MOST} more</li>' if len(counts) > MOST else ""
        out.append(f"<h2>{word(title)}</h2><ul>{items}{more}</ul>")
    return "".join(out) + "</aside>"


def _value(q: Query, name: str, value: str, n: int, chosen: bool) -> str:
    said = FLAGS[value] if name == "flag" else value
    link = url("/pairs", params(q, **{name: None if chosen else value}))
    now = " aria-current=true" if chosen else ""
    return (
        f'<a href="{link}"{now}><span>{word(said, 60)}</span><span class="count">{n:,}</span></a>'
    )


def _find(tree: dict[str, Any], q: Query) -> str:
    held = {
        k: v for k, v in params(q, q="", whole=False).items() if k not in ("sort", "low", "high")
    }
    hidden = "".join(
        f'<input type="hidden" name="{escape(k)}" value="{escape(v)}">' for k, v in held.items()
    )
    sorts = "".join(
        f'<option value="{escape(s)}"{" selected" if s == q.sort else ""}>{word(name)}</option>'
        for s, name in _sorts(tree["sorts"])
    )
    texts = a(
        "/pairs",
        "hide texts that may be harmful" if q.texts else "show texts that may be harmful",
        params(q, texts=not q.texts, after=q.after, before=q.before),
    )
    return (
        f'<form class="find" action="/pairs" method="get" role="search">{hidden}<label for="q"'
        ' class="skip">words in the texts</label><input type="search" id="q" name="q"'
        ' accesskey="s" maxlength="200" placeholder="words in the beginning of a text"'
        f' value="{escape(q.q)}"><label><input type="checkbox" name="whole"'
        f' value="1"{" checked" if q.whole else ""}> whole texts (slow)</label><label'
        ' for="sort">order</label><select id="sort"'
        f' name="sort">{sorts}</select><button>show</button></form><p class="dim">{texts}</p>'
    )


def _sorts(columns: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (sign + c, f"{c.replace('_', ' ')}, {way} first")
        for c in columns
        for sign, way in (("-", "largest"), ("", "smallest"))
    ]


def histogram(bins: Sequence[Sequence[Any]], q: Query, title: str) -> str:
    """Bars that are links to the pairs in their range."""
    if not bins:
        return f'<p class="dim">{word(title)}: none is known.</p>'
    low, high, most = bins[0][0], bins[-1][1], max(b[2] for b in bins)
    if low == high:
        return f'<p class="dim">{word(title)}: {shown(low)} for all {bins[0][2]:,}.</p>'
    f = Frame((low, high), (0, most * 1.05), 400, 150, 46, 10, 24, 34)
    marks = axes(f, "", "pairs")
    for start, stop, n in bins:
        if n:
            here = q.low is not None and abs(q.low - start) < 1e-5
            marks.append(
                _bar(
                    f,
                    start,
                    stop,
                    n,
                    url("/pairs", params(q, low=round(start, 5), high=round(stop, 5))),
                    here,
                )
            )
    said = f"{sum(b[2] for b in bins):,} pairs from {low:.2f} to {high:.2f}; each bar is a link"
    return f'<div class="hist">{panel(title, said, f, marks, "group")}</div>'


def _bar(f: Frame, start: float, stop: float, n: int, link: str, here: bool) -> str:
    """A bar, and over its whole height a place to point at."""
    x, y, width, floor = f.px(start), f.py(n), f.px(stop) - f.px(start), f.height - f.bottom
    said = f"{start:.2f} to {stop:.2f}: {n:,} pairs"
    return (
        f'<a href="{link}"'
        f' aria-label="{said}"{" aria-current=true" if here else ""}><title>{said}</title><rect'
        f' class="h" x="{x + 0.7:.1f}" y="{y:.1f}" width="{width - 1.4:.1f}"'
        f' height="{max(floor - y, 1.5):.1f}"/><rect class="hit" x="{x:.1f}" y="{f.top}"'
        f' width="{width:.1f}" height="{floor - f.top}"/></a>'
    )


def _pager(tree: dict[str, Any], q: Query, keys: bool = True) -> str:
    last = tree["first"] + len(tree["pairs"])
    links = []
    if tree["before"]:
        links.append(
            a(
                "/pairs",
                "‹ back",
                params(q, before=tree["before"], after=None),
                key="b" if keys else "",
            )
        )
    if tree["after"]:
        links.append(
            a(
                "/pairs",
                "next ›",
                params(q, after=tree["after"], before=None),
                key="n" if keys else "",
            )
        )
    said = f"{tree['first'] + 1:,} to {last:,} of {tree['total']:,}" if tree["pairs"] else ""
    return f'<p class="pager"><span class="dim">{said}</span>{" ".join(links)}</p>'


def _nothing(tree: dict[str, Any]) -> str:
    said = (
        "No pair passes these filters."
        if tree["n"]
        else "No pairs are written here yet: the overview shows how far the run is."
    )
    return f'<p class="note">{said}</p>'


def listing(cards: Sequence[Mapping[str, Any]], dims: Sequence[str], q: Query) -> str:
    """Pairs as a table; on a narrow screen each is a card."""
    rows = [
        [
            _snippet(c, q),
            *(_margin(c[f"margin_{d}"], c[f"margin_confirmed_{d}"]) for d in dims),
            _margin(c["margin_total"], None),
            Html(
                word(f"{shown(int(c['len_chosen'] or 0))} : {shown(int(c['len_rejected'] or 0))}")
            ),
            Html(word(", ".join(str(c[k]) for k in ("arm", "kind", "split")))),
        ]
        for c in cards
    ]
    return table(["pair", *dims, "total", "length", "about"], rows, "pairs", "pairs")


def _snippet(c: Mapping[str, Any], q: Query) -> Html:
    state = params(q, after=q.after, before=q.before)
    state = {k: v for k, v in state.items() if k not in ("after", "before")}
    if c["prompt"] is None:
        return Html(
            f'<span class="snip">{a("/pair/" + c["pair_id"], c["pair_id"], state)}</span><span'
            f' class="snip">may be harmful: carries {word(c["carried_dim"])}, category'
            f" {word(c['category'])}</span>"
        )
    sides = "".join(
        f'<span class="snip" dir="auto"><b>{side}</b>{word(c[side])}</span>'
        for side in ("chosen", "rejected")
    )
    return Html(
        '<span class="snip"'
        f' dir="auto">{a("/pair/" + c["pair_id"], c["prompt"] or c["pair_id"], state)}</span>{sides}'  # noqa: E501
    )


def _margin(value: float | None, again: float | None) -> Html:
    if value is None:
        return Html("–")
    lost = again is not None and value > 1e-6 >= again
    second = (
        f' <span class="{"down" if lost else "dim"}">({again:+.2f})</span>'
        if again is not None
        else ""
    )
    return Html(
        "<span"
        f' class="{"up" if value > 1e-6 else "down" if value < -1e-6 else "dim"}">{value:+.2f}</span>{second}'  # noqa: E501
    )
