"""A folder of pages that opens from disk, made from the viewer's own: for a colleague without the
run, or an archive.

    freeze(Path("runs/demo"), Path("runs/demo-pages"), 500)        {"pages": 231, "pairs": 80, "of":
    80}

From the overview on, links are followed to lists (whole, or by one filter or order), pairs,
prompts, drops and requests, each up to a number; a link to a page that is not there becomes text.
No script, nothing fetched, no server; the same folder gives the same bytes.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter, deque
from html import unescape
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from ..errors import MoraError, RunFolderError
from ..report.markup import escape_line
from ..run.files import check_inside
from ..text import digest
from .folder import OTHER_VERSION
from .server import PAGES, PAGES_OF, ViewerState, draw, page_of, viewer_style_sheet

LISTS = 200  # pages of each list, of drops
LISTED = ("pairs", "prompts", "drops")
ELSEWHERE = {"texts", "x", "y", "full", "calls"}  # the same page, drawn otherwise
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PLAIN = ({"after"}, {"from"}, {"flag", "sort"})  # whole lists, the overview's pairs to doubt
LEFT_OUT = {"review"}  # it needs the server
_PLAIN_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,99}")
Address = tuple[str, tuple[tuple[str, str], ...]]  # path, query
# attributes and texts are escaped: no quote, no bracket in them
_LINK = re.compile(r'<a href="([^"<>]*)"([^<>]*)>((?:[^<]|<(?!/?a\b))*)</a>', re.S)


def freeze(path: Path, out: Path, most: int) -> dict[str, int]:
    """Write the folder; returns how many pages, and pairs of how many, are in it.

    `most`: pairs at most; each comes with its prompt, and as many prompts without a pair may stand
    beside them.

    Raises:
        RunFolderError: nothing to show, or `out` is in use or can't be written.
    """
    state = ViewerState(path)
    for file in path.rglob("*"):  # what is given away must not lead elsewhere
        if file.is_symlink():
            check_inside(path, file)
    n = state.pairs().index.n
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise RunFolderError(f"{out} is not empty: give a new folder")
        names = _write_pages(state, out, most)
        pairs = sum(a[0].startswith("/pair/") for a in names)
        note = (
            f"A frozen copy: {pairs:,} of {n:,} pairs have their page; search and other filters"
            " need mora-data view."
        )
        if (path / "report.html").is_file():
            shutil.copyfile(path / "report.html", out / "report.html")
            note += ' <a href="report.html">The report</a> has the numbers.'
        for name in names.values():
            (out / name).write_text(
                _freeze_page((out / name).read_text("utf-8"), names, note), "utf-8"
            )
        (out / "robots.txt").write_text("User-agent: *\nDisallow: /\n", "utf-8")
    except OSError as e:
        raise RunFolderError(
            f"can't write {out}: {e.strerror}; free some space or give another folder"
        ) from e
    return {"pages": len(names), "pairs": pairs, "of": n}


def _write_pages(state: ViewerState, out: Path, most: int) -> dict[Address, str]:
    """Write the pages as the server gives them; address -> file name."""
    start: Address = ("/", ())
    names, todo, counts = {start: "index.html"}, deque([start]), Counter[str]()
    room = {"pair": most, "prompt": most, "requests": 1, **dict.fromkeys(LISTED, LISTS)}
    while todo:
        address = todo.popleft()
        page = _page(state, address)
        if page is None:  # gone since it was linked to
            del names[address]
            continue
        (out / names[address]).write_text(page, "utf-8", "replace")
        for link in filter(None, (_address(unescape(m[1])) for m in _LINK.finditer(page))):
            kind = link[0].split("/")[1]
            # a pair comes with its prompt
            of_pair = kind == "prompt" and address[0].startswith("/pair/")
            if link not in names and (of_pair or counts[kind] < room.get(kind, 0)):
                counts[kind] += not of_pair
                names[link] = _file(link)
                todo.append(link)
    return names


def _page(state: ViewerState, address: Address) -> str | None:
    name, _, key = address[0].removeprefix("/").partition("/")
    try:
        page = page_of(state, name, key, {**dict(address[1]), "still": "1"})
        return None if page is None else draw(page)
    except MoraError:
        raise
    except Exception as e:  # as the server's 500
        raise RunFolderError(
            f"the page {address[0][:80]} of {state.path} can't be made ({type(e).__name__}):"
            f" {OTHER_VERSION}"
        ) from e


def _address(link: str) -> Address | None:
    """What a link leads to; None where that is not frozen: another page, or the same with its texts
    or axes changed."""
    given = urlsplit(link)
    kind, query = given.path.strip("/").partition("/")[0], dict(parse_qsl(given.query))
    if (
        not given.path.startswith("/")
        or kind not in {*PAGES, *PAGES_OF} - LEFT_OUT
        or query.keys() & ELSEWHERE
    ):
        return None
    if kind in ("pair", "prompt"):
        return unquote(given.path), ()  # the page of a pair is the same wherever it is opened from
    if (
        kind in ("pairs", "prompts")
        and query.keys() not in PLAIN
        and (len(query) > 1 or query.keys() & {"before", "q", "low", "high"})
    ):
        return None
    return unquote(given.path), tuple(sorted((k, v) for k, v in query.items() if k != "still"))


def _file(address: Address) -> str:
    kind, _, key = address[0].removeprefix("/").partition("/")
    if key and not _PLAIN_ID.fullmatch(key):  # it may hold a slash, or be too long for a name
        key = digest(key)
    name = "-".join(filter(None, [kind, key]))
    return (
        f"{name}.html"
        if not address[1]
        else f"{name}-{digest(repr(address[1]), hex_digits=8)}.html"
    )


def _freeze_page(page: str, names: dict[Address, str], note: str) -> str:
    """A page that stands by itself: links inside the folder, style inside, no form."""

    def relink(found: re.Match[str]) -> str:
        href, more, inside = unescape(found[1]), found[2], found[3]
        anchor = f"#{href.partition('#')[2]}" if "#" in href else ""
        address = _address(href)
        if href.startswith("#") or href == "report.html":
            return found[0]
        if address is not None and address in names:
            return f'<a href="{escape_line(names[address] + anchor)}"{more}>{inside}</a>'
        if "texts=1" in href or "calls=1" in href:
            return ""  # every text is there, behind its own fold; calls need the run
        return f"<g>{inside}</g>" if inside.startswith("<title>") else inside

    page = re.sub(
        r'<form.*?</form>|<ul class="chips" aria-label="dimensions">.*?</ul>|<script>.*?</script>',
        "",
        page,
        flags=re.S,
    )
    page = re.sub(r'<li><a href="/review".*?</li>', "", page)
    page = re.sub(
        r"<footer>.*?</footer>", f'<footer><p class="dim">{note}</p></footer>', page, flags=re.S
    )
    head = (
        '<meta http-equiv="Content-Security-Policy"'
        f' content="{POLICY}"><style>{viewer_style_sheet().decode()}</style>'
    )
    page = page.replace('<link rel="stylesheet" href="/style.css">', head)
    return _LINK.sub(relink, page)
