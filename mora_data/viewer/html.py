"""The pieces that pages are made of. Whatever a source, a model or a URL says goes through `told`
or `word`: text, never markup.

document("Pairs", [table(["pair", "margin"], rows)], place)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote, urlencode

from ..report.figure import shown
from ..report.page import told

LONGEST = 20_000  # characters of a text that a page shows unless asked for all
NAV = (
    ("/", "Overview", "o"),
    ("/pairs", "Pairs", "p"),
    ("/drops", "Drops", "d"),
    ("/requests", "Requests", "r"),
    ("/compare", "Compare", "c"),
    ("/review", "Review", "v"),
)
KEYS = (
    "o overview, p pairs, d drops, r requests, c compare, v review, n next, b back, s search, u"
    " unfold."
)


class Html(str):
    """Markup that is made here; everything else is escaped."""

    __slots__ = ()


def word(value: Any, most: int = 300) -> str:
    """A short value on one line."""
    return told(" ".join(shown(value).split()), most)


def said(text: str, whole: bool = False, style: str = "said") -> str:
    """A text as it is, line breaks kept."""
    return f'<div class="{style}" dir="auto">{told(text, len(text) if whole else LONGEST)}</div>'


def url(path: str, query: Mapping[str, str] | None = None, anchor: str = "") -> str:
    """A link inside the viewer, escaped for an attribute."""
    full = (
        quote(path, safe="/")
        + (f"?{urlencode(query)}" if query else "")
        + (f"#{quote(anchor)}" if anchor else "")
    )
    return escape(full)


def a(
    path: str,
    text: str,
    query: Mapping[str, str] | None = None,
    key: str = "",
    anchor: str = "",
    current: bool = False,
) -> Html:
    """A link; `key` is its access key."""
    extra = (f' accesskey="{key}"' if key else "") + (' aria-current="page"' if current else "")
    return Html(f'<a href="{url(path, query, anchor)}"{extra}>{word(text)}</a>')


def document(title: str, body: Sequence[str], at: str, twin: str) -> str:
    """A whole page. `at`: its place in the navigation; `twin`: the URL of the same as JSON."""
    nav = "".join(
        f"<li>{a(path, name, key=key, current=path == at)}</li>" for path, name, key in NAV
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light'
        f' dark"><title>{word(title)} · mora-data</title><link rel="stylesheet"'
        ' href="/style.css"></head><body><a class="skip" href="#main">Skip to content</a><nav'
        f' aria-label="pages"><ul>{nav}</ul></nav><main id="main">\n'
        + "\n".join(body)
        + f'\n</main><footer><p class="dim"><a href="{escape(twin)}" accesskey="j">This page as'
        f" JSON (j)</a>. Access keys: {KEYS}</p></footer></body></html>\n"
    )


def table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], label: str = "table", style: str = ""
) -> str:
    """Cells are values, or Html made here."""
    numeric = [any(_is_number(row[i]) for row in rows) for i in range(len(head))]
    top = "".join(
        f'<th scope="col"{" class=num" if n else ""}>{word(h)}</th>'
        for h, n in zip(head, numeric, strict=True)
    )
    lines = "".join(
        "<tr>" + "".join(_cell(*c) for c in zip(row, head, numeric, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table'
        f' class="{style}"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _cell(value: Any, head: str, numeric: bool) -> str:
    if isinstance(value, Html):
        return f'<td data-name="{escape(head)}">{value}</td>'
    style = (
        "num"
        if numeric and (value is None or _is_number(value))
        else "w"
        if isinstance(value, str) and len(value) > 50
        else ""
    )
    wide = f' class="{style}"' if style else ""
    return f'<td data-name="{escape(head)}"{wide}>{told(shown(value), 400)}</td>'


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def tiles(pairs: Sequence[tuple[str, Any]]) -> str:
    """Short facts side by side."""
    return (
        '<dl class="tiles">'
        + "".join(f"<div><dt>{word(k)}</dt><dd>{word(v)}</dd></div>" for k, v in pairs)
        + "</dl>"
    )


def folded(summary: str, inside: str, fold: bool = True) -> str:
    """`inside` behind a line that opens it; as it is where there is nothing to fold for."""
    return f"<details><summary>{word(summary)}</summary>{inside}</details>" if fold else inside


def unfold(here: str, query: Mapping[str, str]) -> Html:
    """The link that opens, or folds again, every text of a page that may be harmful."""
    if query.get("texts"):
        return a(
            here, "fold the texts again", {k: v for k, v in query.items() if k != "texts"}, key="u"
        )
    return a(here, "unfold all texts", {**query, "texts": "1"}, key="u")


def bar(value: float, total: float, style: str = "") -> Html:
    """A share as a bar."""
    width = 100 * value / total if total else 0
    return Html(
        f'<svg class="bar {style}" viewBox="0 0 100 8" preserveAspectRatio="none"'
        ' aria-hidden="true"><rect class="track" width="100" height="8"/><rect class="fill"'
        f' width="{width:.1f}" height="8"/></svg>'
    )


def added(before: str, after: str) -> str:
    """The rewritten prompt with what is new in it marked; plain where little of the original is
    left."""
    a_words, b_words = (re.findall(r"\S+\s*", t[:LONGEST]) for t in (before, after))
    match = difflib.SequenceMatcher(
        None,
        [w.strip().casefold() for w in a_words],
        [w.strip().casefold() for w in b_words],
        autojunk=False,
    )
    kept = sum(block.size for block in match.get_matching_blocks())
    if len(a_words) * len(b_words) > 4_000_000 or not a_words or kept < 0.5 * len(a_words):
        return said(after)
    out = []
    for what, _, _, start, stop in match.get_opcodes():
        text = "".join(b_words[start:stop])
        if text:
            out.append(
                told(text, len(text)) if what == "equal" else f"<ins>{told(text, len(text))}</ins>"
            )
    return f'<div class="said" dir="auto">{"".join(out)}</div>'


def conversation(messages: Sequence[Mapping[str, Any]], whole: bool = False) -> str:
    """Turns; a single one without its role."""
    if len(messages) == 1:
        return said(messages[0]["content"], whole)
    return "".join(f"<h3>{word(m['role'])}</h3>{said(m['content'], whole)}" for m in messages)
