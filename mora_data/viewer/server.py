"""The viewer's server: loopback only, standard library; GET only but for the votes of --review.
`mora-data view` runs it.

    server = server_of(Path("runs/demo"), 0); server.serve_forever()

A page is made from the value of its JSON twin (`/pairs.json`, or `?format=json`). The folder may
change at any time: what a page needs is read again when a file is another one.
"""

from __future__ import annotations

import errno
import hmac
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson

from ..errors import MoraError, SettingsError
from . import compare, overview, pair, pairs, prompt, review, rows
from .html import document, word
from .index import files_of
from .live import Watch
from .place import Place, place_of, stamp
from .query import Pairs

PORT = 7470
HOSTS = ("127.0.0.1", "localhost")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors"
        " 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PAGES: Mapping[
    str, tuple[Callable[..., dict[str, Any] | None], Callable[[dict[str, Any]], str]]
] = {
    "": (overview.data, overview.html),
    "pairs": (pairs.data, pairs.html),
    "pair": (pair.data, pair.html),
    "prompt": (prompt.data, prompt.html),
    "drops": (rows.drops, rows.drops_html),
    "requests": (rows.requests, rows.requests_html),
    "compare": (compare.data, compare.html),
    "review": (review.data, review.html),
}


class View:
    """The folder with what is held of it; shared by the threads that answer."""

    def __init__(self, path: Path, reviewer: str | None = None, other: Path | None = None) -> None:
        self.path = path
        self.other = View(other) if other is not None else None
        self.watch = Watch()
        self.reviewing = review.Reviewing(path, reviewer) if reviewer is not None else None
        self._indexing, self._looking = threading.Lock(), threading.Lock()
        self._pairs: Pairs | None = None

    def place(self) -> Place:
        """The folder as it stands now."""
        return place_of(self.path)

    def pairs(self) -> Pairs:
        """The pairs, indexed again when their files have changed."""
        place = self.place()
        with self._indexing:
            held = self._pairs
            same = held is not None and (held.place.dims, held.place.floors) == (
                place.dims,
                place.floors,
            )
            if held is None or not same or held.index.stamp != stamp(files_of(place)):
                self._pairs = None  # the old index need not stand beside the new one
                self._pairs = held = Pairs(place)
            return held

    def look(self, place: Place) -> dict[str, Any]:
        """How the run stands."""
        with self._looking:
            return self.watch.look(place)


class Server(ThreadingHTTPServer):
    """A server with its View."""

    daemon_threads = True

    def __init__(self, view: View, port: int) -> None:
        self.view = view
        super().__init__(("127.0.0.1", port), _Handler)


def server_of(
    path: Path, port: int | None, reviewer: str | None = None, other: Path | None = None
) -> Server:
    """A server that listens, its pairs indexed. `port`: 0 takes any; None takes 7470, or any where
    that is in use.

    `reviewer`: whose votes the page of reviews takes, None for nobody's; `other`: a folder to
    compare with.

    Raises:
        RunFolderError: the folder can't be shown.
        SettingsError: the port can't be had.
    """
    view = View(path, reviewer, other)
    if reviewer is not None and view.place().run is None:
        raise SettingsError(f"--review writes into a run folder, and {path} is a dataset alone")
    for folder in (view, view.other):
        if folder is not None:
            folder.pairs()
    try:
        return Server(view, PORT if port is None else port)
    except (OSError, OverflowError) as e:
        if port is None and isinstance(e, OSError) and e.errno == errno.EADDRINUSE:
            return Server(view, 0)
        why = (
            "is in use"
            if isinstance(e, OSError) and e.errno == errno.EADDRINUSE
            else f"can't be used ({e})"
        )
        raise SettingsError(
            f"port {port or PORT} of 127.0.0.1 {why}: give another one with --port, or leave it out"
        ) from e


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mora-data", ""
    timeout = 60
    server: Server

    def do_GET(self) -> None:
        self._send(*self._answer())

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET

    def do_POST(self) -> None:
        if self.server.view.reviewing is None or self.path != "/review":
            return self.do_GET()
        try:
            status, kind, body = 303, review.vote(self.server.view, self._form()), b""
        except PermissionError as e:
            status, kind, body = _problem(403, str(e), False)
        except SettingsError as e:
            status, kind, body = _problem(400, str(e), False)
        except MoraError as e:
            status, kind, body = _problem(503, str(e), False)
        self.close_connection = True  # what is left of a body that was not read is no request
        self._send(status, kind, body)

    def _form(self) -> dict[str, str]:
        """The vote's fields.

        Raises:
            PermissionError: it does not come from this viewer's own page.
            SettingsError: it is no form of a vote.
        """
        host = self.headers.get("Host", "")
        if host.rsplit(":", 1)[0] not in HOSTS:
            raise PermissionError("This viewer answers to 127.0.0.1 and localhost only.")
        foreign = self.headers.get("Origin", f"http://{host}") != f"http://{host}"
        if foreign or self.headers.get("Sec-Fetch-Site", "same-origin") not in (
            "same-origin",
            "none",
        ):
            raise PermissionError("A vote has to come from the viewer's own page.")
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > review.FORM_BYTES:
            raise SettingsError(f"a vote is a form of at most {review.FORM_BYTES} bytes")
        fields = dict(
            parse_qsl(self.rfile.read(int(size)).decode("utf-8", "replace"), max_num_fields=10)
        )
        reviewing = self.server.view.reviewing
        if reviewing is None or not hmac.compare_digest(
            fields.get("token", "").encode(), reviewing.token.encode()
        ):
            raise PermissionError(
                "This page is of an earlier start of the viewer: load it again and vote once more."
            )
        return fields

    def _send(self, status: int, kind: str, body: bytes, reload_s: int = 0) -> None:
        self.send_response(status)
        if status == 303:
            self.send_header("Location", kind)
            kind = "text/plain"
        if reload_s:
            self.send_header("Refresh", str(reload_s))
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if status == 405:
            self.send_header("Allow", "GET, HEAD")
            self.close_connection = True  # a body may follow that nobody reads
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows the URL, and errors are pages."""

    def _answer(self) -> tuple[int, str, bytes, int]:
        given = urlsplit(self.path)
        query = (
            dict(parse_qsl(given.query, max_num_fields=50)) if given.query.count("&") < 50 else {}
        )
        name = unquote(given.path).strip("/")
        as_json = query.pop("format", "") == "json" or name.endswith(".json")
        name = name.removesuffix(".json")
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in HOSTS:
            return (
                *_problem(403, "This viewer answers to 127.0.0.1 and localhost only.", as_json),
                0,
            )
        if self.command not in ("GET", "HEAD"):
            return (
                *_problem(405, f"{self.command} is not for this viewer: it only shows.", as_json),
                0,
            )
        if name == "style.css":
            return 200, "text/css; charset=utf-8", style(), 0
        kind, _, key = name.partition("/")
        if kind == "index":
            kind = ""
        if kind not in PAGES or not (
            kind in ("pair", "prompt", "compare") if key else kind not in ("pair", "prompt")
        ):
            return *_problem(404, f"There is no page {given.path[:80]!r}.", as_json), 0
        return self._page(kind, key, query, as_json)

    def _page(
        self, kind: str, key: str, query: dict[str, str], as_json: bool
    ) -> tuple[int, str, bytes, int]:
        make, html = PAGES[kind]
        try:
            tree = make(self.server.view, query, *([key] if key else []))
            if tree is None:
                return (
                    *_problem(404, f"There is no {kind} {key[:64]!r} in this folder.", as_json),
                    0,
                )
            if as_json:
                told = {k: v for k, v in tree.items() if not k.startswith("_")}
                return (
                    200,
                    "application/json",
                    orjson.dumps(told, default=str, option=orjson.OPT_NON_STR_KEYS),
                    0,
                )
            return (
                200,
                "text/html; charset=utf-8",
                html(tree).encode("utf-8", "replace"),
                tree.get("reload_s", 0),
            )
        except SettingsError as e:
            return *_problem(400, str(e), as_json), 0
        except MoraError as e:
            return *_problem(503, str(e), as_json), 0
        except Exception as e:  # a page that fails must not end the viewer
            print(
                f"mora-data: page {kind}/{key[:40]} failed: {type(e).__name__}: {str(e)[:200]}",
                file=sys.stderr,
            )
            return (
                *_problem(
                    500,
                    f"This page failed ({type(e).__name__}): the folder may be of another version,"
                    " or changing.",
                    as_json,
                ),
                0,
            )


def _problem(status: int, line: str, as_json: bool) -> tuple[int, str, bytes]:
    if as_json:
        return status, "application/json", orjson.dumps({"error": line})
    body = document(
        f"{status}",
        [f'<h1>{status}</h1><p class="problem">{word(line, 600)}</p>'],
        "",
        "/index.json",
    )
    return status, "text/html; charset=utf-8", body.encode("utf-8", "replace")


def style() -> bytes:
    """The one style sheet."""
    here = Path(__file__).parent
    return (
        (here.parent / "report" / "style.css").read_bytes()
        + b"\n"
        + (here / "view.css").read_bytes()
    )
