"""HTML from the Jinja templates of templates/: the pages of the viewer and of the report.

    render("viewer/pairs.html", page=page)

Whatever a source, a model or a URL says is text. Every value that a template prints is escaped, and
characters that hide or turn others around are shown by their code; only `Markup` goes through as
it is.

Filters: `text(most)` cuts a text, `line(most)` puts a value on one line, `number`, `percent` and
`interval` format numbers. Function: `url(path, query, anchor)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment
from markupsafe import Markup

from .. import resources
from .svg import escape, interval, percent, shown

TEXT_CHARS = 1200
LINE_CHARS = 300


def render(name: str, **values: Any) -> str:
    """The template `name` of templates/ with these values."""
    return environment().get_template(name).render(values)


@cache
def environment() -> Environment:
    """The one environment of all pages; a template is read once."""
    env = resources.document_environment(
        "templates",
        autoescape=True,
        finalize=escape_value,
        extensions=["jinja2.ext.do"],
        auto_reload=False,
        cache_size=-1,
    )
    env.filters |= {
        "text": escape_text,
        "line": escape_line,
        "number": shown,
        "percent": percent,
        "interval": interval,
    }
    env.globals["url"] = url
    return env


def escape_value(value: object) -> Markup:
    """Any value as escaped text; markup stays as it is."""
    if isinstance(value, Markup):
        return value
    return Markup(escape(str(value)))


def escape_text(text: str, most: int = TEXT_CHARS) -> Markup:
    """Text that may be hostile, escaped; what is longer than `most` characters is cut."""
    return escape_value(text if len(text) <= most else text[:most].rstrip() + " … [cut]")


def escape_line(value: object, most: int = LINE_CHARS) -> Markup:
    """A short value on one line, numbers formatted; markup stays as it is."""
    if isinstance(value, Markup):
        return value
    return escape_text(" ".join(shown(value).split()), most)


def url(path: str, query: Mapping[str, str] | None = None, anchor: str = "") -> str:
    """A link; a template escapes it as it prints it."""
    return (
        quote(path, safe="/")
        + (f"?{urlencode(query)}" if query else "")
        + (f"#{quote(anchor)}" if anchor else "")
    )
