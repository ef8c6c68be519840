"""The viewer's server: loopback only, standard library; GET only but for the votes of --review.
`mora-data view` runs it.

    server = server_of(Path("runs/demo"), 0); print(server.url); server.serve_forever()

Other users of the machine reach the port, too: a page wants the token of this start, which the
printed URL holds. The first visit leaves it as a cookie, and drops it from the address.

Every page is also there as JSON (`/pairs.json`, or `?format=json`): the fields of the value that
its template draws. The folder may change at any time: what a page needs is read again when a file
is another one.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import socket
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson
from markupsafe import Markup

from ..errors import MoraError, SettingsError
from ..report.markup import escape_json, render, url
from . import pictures
from .folder import FLAGS, Page, Query, ViewedFolder, look_at, open_folder, pair_files, stamp_files
from .overview import drops_page, overview_page, requests_page
from .pairs import (
    FORM_BYTES,
    PairQuery,
    PairSearch,
    ReviewSession,
    pair_list_page,
    pair_page,
    review_page,
    take_vote,
)
from .prompts import PromptIndex, prompt_list_page, prompt_page

PORT = 7470
HOSTS = ("127.0.0.1", "localhost")
CLOSE_S = 2.0  # that requests under way have when the viewer ends
NO_TOKEN = "Open the address that mora-data view printed: it holds the token of this start."
FOREIGN = "This viewer answers to 127.0.0.1 and localhost only."
# one script, which moves the focus; a page runs this text and no other
SCRIPT = (Path(__file__).parent / "keys.js").read_text("utf-8")
_SCRIPT_HASH = b64encode(sha256(SCRIPT.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'sha256-{_SCRIPT_HASH}'; style-src 'self'; form-action"
        " 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ViewerState:
    """The folder with what is kept of it; shared by the threads that answer."""

    def __init__(self, path: Path, reviewer: str | None = None) -> None:
        self.path = path
        self.session = ReviewSession(path, reviewer) if reviewer is not None else None
        self._indexing = threading.Lock()
        self._pairs: PairSearch | None = None
        self.prompts = PromptIndex()

    def folder(self) -> ViewedFolder:
        """The folder as it stands now."""
        return open_folder(self.path)

    def pairs(self) -> PairSearch:
        """The pairs, indexed again when their files have changed."""
        folder = self.folder()
        with self._indexing:
            kept = self._pairs
            if (
                kept is None
                or (kept.folder.dims, kept.folder.floors) != (folder.dims, folder.floors)
                or kept.index.stamp != stamp_files(pair_files(folder))
            ):
                kept = self._pairs = None  # the old index need not stand beside the new one
                kept = self._pairs = PairSearch(folder)
            return kept


# by the first part of the address; those of PAGES_OF belong to the id that follows it
PAGES: Mapping[str, Callable[[ViewerState, Query], Page]] = {
    "": lambda s, q: overview_page(folder := s.folder(), look_at(folder), s.pairs(), s.prompts, q),
    "pairs": lambda s, q: pair_list_page(s.pairs(), q),
    "prompts": lambda s, q: prompt_list_page(s.prompts, s.pairs(), q),
    "drops": lambda s, q: drops_page(folder := s.folder(), look_at(folder), s.pairs(), q),
    "requests": lambda s, q: requests_page(folder := s.folder(), look_at(folder), q),
    "review": lambda s, q: review_page(s.pairs(), s.session, q),
}
PAGES_OF: Mapping[str, Callable[[ViewerState, Query, str], Page | None]] = {
    "pair": lambda s, q, pair_id: pair_page(s.pairs(), q, pair_id),
    "prompt": lambda s, q, prompt_id: prompt_page(s.prompts, s.pairs(), q, prompt_id),
}


def page_of(state: ViewerState, name: str, key: str, query: Query) -> Page | None:
    """A page; None where the folder does not have it.

    Raises:
        KeyError: there is no page of this name.
        SettingsError: a parameter that there is not.
        RunFolderError: the folder can't be shown.
    """
    return PAGES_OF[name](state, query, key) if key else PAGES[name](state, query)


def draw(page: Page, texts: bool = False) -> str:
    """The page as HTML. `texts`: with the answers that may be harmful unfolded, here and on the
    pages that it links to."""
    known: dict[str, object] = {"pictures": pictures, "PairQuery": PairQuery, "FLAGS": FLAGS}
    known |= {"keep": {"texts": "1"} if texts else {}, "script": Markup(SCRIPT)}
    return render(page.template, page=page.fields, **known, **page.helpers)


def viewer_style_sheet() -> bytes:
    """The one style sheet."""
    here = Path(__file__).parent
    files = here.parent / "report" / "style.css", here / "view.css"
    return b"\n".join(path.read_bytes() for path in files)


class ViewerServer(ThreadingHTTPServer):
    """A server with the state of its folder.

    Attributes:
        token: what a request has to carry, as a cookie or in its address.
    """

    daemon_threads = True

    def __init__(self, state: ViewerState, port: int) -> None:
        self.state, self.token = state, token_urlsafe(24)
        self._open: dict[threading.Thread, socket.socket] = {}
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def cookie(self) -> str:
        """Name of the cookie: browsers send one to every port of a host."""
        return f"mora-view-{self.server_address[1]}"

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://127.0.0.1:{self.server_address[1]}/?token={self.token}"

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection, which is known while it is open."""
        self._open[threading.current_thread()] = request
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._open[threading.current_thread()]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news; anything else is a line."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            print(f"mora-data: a request failed: {type(error).__name__}", file=sys.stderr)

    def server_close(self) -> None:
        """Hang up on every client and wait for its thread: one that still runs when Python ends may
        abort it."""
        super().server_close()
        still = dict(self._open)
        for request in still.values():
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + CLOSE_S
        for thread in still:
            thread.join(max(end - time.monotonic(), 0))


def server_of(path: Path, port: int | None, reviewer: str | None = None) -> ViewerServer:
    """A server that listens, its pairs indexed. `port`: 0 takes any; None takes 7470, or any where
    that is in use.

    `reviewer`: whose votes the page of reviews takes, None for nobody's.

    Raises:
        RunFolderError: the folder can't be shown.
        SettingsError: the port can't be had.
    """
    state = ViewerState(path, reviewer)
    if reviewer is not None and state.folder().run is None:
        raise SettingsError(f"--review writes into a run folder, and {path} is a dataset alone")
    state.pairs()
    try:
        return ViewerServer(state, PORT if port is None else port)
    except (OSError, OverflowError) as e:
        taken = isinstance(e, OSError) and e.errno == errno.EADDRINUSE
        if port is None and taken:
            return ViewerServer(state, 0)
        why = "is in use" if taken else f"can't be used ({e})"
        raise SettingsError(
            f"port {port or PORT} of 127.0.0.1 {why}: give another one with --port, or leave it out"
        ) from e


def serve(path: Path, port: int | None, open_browser: bool, reviewer: str | None = None) -> None:
    """Show a folder until it is interrupted; the URL goes to stdout. For the rest see
    `server_of`."""
    server = server_of(path, port, reviewer)
    port = server.server_address[1]
    print(server.url, flush=True)
    print(
        f"ctrl-c ends it; from another machine: ssh -L {port}:127.0.0.1:{port} HOST",
        file=sys.stderr,
    )
    has_screen = sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if open_browser and has_screen:
        import webbrowser

        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


class _Reply(NamedTuple):
    status: int
    kind: str
    body: bytes
    reload_s: int = 0
    location: str = ""
    cookie: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mora-data", ""
    timeout = 60
    server: ViewerServer

    def do_GET(self) -> None:
        self._send(self._answer())

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET

    def do_POST(self) -> None:
        session = self.server.state.session
        if session is None or self.path != "/review":
            return self.do_GET()
        self.close_connection = True  # what is left of a body that was not read is no request
        try:
            form = self._read_vote(session.token)
            location = take_vote(self.server.state.pairs(), session, form)
        except (MoraError, PermissionError) as e:
            return self._send(_problem(_status_of(e), str(e)))
        self._send(_Reply(303, "text/plain", b"", location=location))

    def _read_vote(self, token: str) -> dict[str, str]:
        """The vote's fields.

        Raises:
            PermissionError: it does not come from this viewer's own page.
            SettingsError: it is no form of a vote.
        """
        host, site = self.headers.get("Host", ""), self.headers.get("Sec-Fetch-Site", "none")
        if not self._is_own_host():
            raise PermissionError(FOREIGN)
        if not self._has_token({}):
            raise PermissionError(NO_TOKEN)
        if self.headers.defects or self.headers.get_payload():
            # what stands behind a line that is no header was not read: an Origin, say
            raise SettingsError("the headers of the request can't be read")
        foreign = self.headers.get("Origin", f"http://{host}") != f"http://{host}"
        if foreign or site not in ("same-origin", "none"):
            raise PermissionError("A vote has to come from the viewer's own page.")
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or len(size) > 9 or int(size) > FORM_BYTES:
            raise SettingsError(f"a vote is a form of at most {FORM_BYTES} bytes")
        body = self.rfile.read(int(size)).decode("utf-8", "replace")
        if body.count("&") >= 10:
            raise SettingsError("a vote has at most ten fields")
        fields = dict(parse_qsl(body))
        if not hmac.compare_digest(fields.get("token", "").encode(), token.encode()):
            raise PermissionError(
                "This page is of an earlier start of the viewer: load it again and vote once more."
            )
        return fields

    def _is_own_host(self) -> bool:
        return self.headers.get("Host", "").rsplit(":", 1)[0] in HOSTS

    def _has_token(self, query: Query) -> bool:
        cookies = SimpleCookie()
        with contextlib.suppress(CookieError):
            cookies.load(self.headers.get("Cookie", ""))
        sent = [query.get("token", ""), *(m.value for m in cookies.values())]
        token = self.server.token.encode()
        return any(hmac.compare_digest(s.encode("utf-8", "replace"), token) for s in sent)

    def _send(self, reply: _Reply) -> None:
        self.send_response(reply.status)
        length = str(len(reply.body))
        headers = {"Content-Type": reply.kind, "Content-Length": length, **HEADERS}
        if reply.location:
            headers["Location"] = reply.location
        if reply.cookie:
            headers["Set-Cookie"] = f"{reply.cookie}; Path=/; HttpOnly; SameSite=Strict"
        if reply.reload_s:
            headers["Refresh"] = str(reply.reload_s)
        if reply.status == 405:
            headers["Allow"] = "GET, HEAD"
            self.close_connection = True  # a body may follow that nobody reads
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows the URL, and errors are pages."""

    def _answer(self) -> _Reply:
        try:
            given = urlsplit(self.path)
        except ValueError:
            return _problem(400, "This is no address of a page.")
        short = given.query.count("&") < 50
        query = dict(parse_qsl(given.query)) if short else {}
        path = unquote(given.path).strip("/")
        as_json = query.pop("format", "") == "json" or path.endswith(".json")
        if not self._is_own_host():
            return _problem(403, FOREIGN, as_json)
        if self.command not in ("GET", "HEAD"):
            line = f"{self.command} is not for this viewer: it only shows."
            return _problem(405, line, as_json)
        if path.removesuffix(".json") == "style.css":
            return _Reply(200, "text/css; charset=utf-8", viewer_style_sheet())
        if not self._has_token(query):
            return _problem(403, NO_TOKEN, as_json)
        if query.pop("token", "") and not as_json:  # not to stay in the address
            cookie = f"{self.server.cookie}={self.server.token}"
            return _Reply(302, "text/plain", b"", location=url(f"/{path}", query), cookie=cookie)
        name, _, key = path.removesuffix(".json").partition("/")
        name = "" if name == "index" else name
        if name not in (PAGES_OF if key else PAGES):
            return _problem(404, f"There is no page {given.path[:80]!r}.", as_json)
        try:
            return self._page(name, key, query, as_json)
        except MoraError as e:
            return _problem(_status_of(e), str(e), as_json)
        except Exception as e:  # a page that fails must not end the viewer
            kind = type(e).__name__
            print(
                f"mora-data: page {name}/{key[:40]} failed: {kind}: {str(e)[:200]}", file=sys.stderr
            )
            line = f"This page failed ({kind}): the folder may be of another version, or changing."
            return _problem(500, line, as_json)

    def _page(self, name: str, key: str, query: Query, as_json: bool) -> _Reply:
        page = page_of(self.server.state, name, key, query)
        if page is None:
            return _problem(404, f"There is no {name} {key[:64]!r} in this folder.", as_json)
        if as_json:
            body = orjson.dumps(page.fields, default=str, option=orjson.OPT_NON_STR_KEYS)
            return _Reply(200, "application/json", escape_json(body.decode()).encode())
        html = draw(page, query.get("texts") == "1")
        return _html(200, html, page.fields.get("reload_s", 0))


def _status_of(e: Exception) -> int:
    if isinstance(e, PermissionError):
        return 403
    return 400 if isinstance(e, SettingsError) else 503


def _problem(status: int, line: str, as_json: bool = False) -> _Reply:
    if as_json:
        return _Reply(status, "application/json", orjson.dumps({"error": line}))
    return _html(
        status, render("viewer/problem.html", status=status, line=line, keep={}, script="")
    )


def _html(status: int, page: str, reload_s: int = 0) -> _Reply:
    return _Reply(status, "text/html; charset=utf-8", page.encode("utf-8", "replace"), reload_s)
