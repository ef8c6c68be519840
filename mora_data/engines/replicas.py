"""The base URLs of one model, each a `Replica` with its connections and its health, and what is
asked of a server about itself.

A replica that fails three requests in a row with no success between (one refused connection is
enough) is taken out while another is in; so is one that can't be used (401, 403, 404, another
model). It is asked for GET /models after 2 s, then at longer intervals up to 60 s, and takes
requests again as soon as it answers. The last one is never taken out: what becomes of the run when
it fails is for the endpoint to say.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import orjson

from ..errors import EndpointError, SettingsError
from ..run.limiter import ConcurrencyLimiter
from ..run.stats import RunStats
from ..secrets import is_loopback, key_in, refuse_password, signed_in, without_key
from ..settings import RoleSettings
from ..text import one_line
from .http import (
    MOST_BYTES,
    NO_SERVER,
    AiohttpTransport,
    ClientTransport,
    OnSend,
    PatienceNow,
    PlainTransport,
    Reply,
    Transport,
)

FAULTS_IN_A_ROW = 3
FIRST_PROBE_S, LAST_PROBE_S = 2.0, 60.0
PROBE_S, ASK_S = 2.0, 10.0
LOADED_S = 600.0  # until a server that starts lists its models
CHAT = "/chat/completions"


class Replica:
    """One base URL."""

    def __init__(
        self, url: str, headers: Mapping[str, str], settings: RoleSettings, on_send: OnSend
    ) -> None:
        self.url = url.rstrip("/")
        self.answered = False
        self.in_a_row = 0
        self.out_since: float | None = None
        self.probe_at = 0.0
        self.pause_s = FIRST_PROBE_S  # until the next look at it
        self._headers, self._settings, self._on_send = headers, settings, on_send
        self._transports: dict[str, Transport] = {}

    def check(self, path: str) -> None:
        """Raises SettingsError when the base URL is none."""
        self._transport(path)

    async def post(
        self, path: str, body: bytes, patience: PatienceNow, at_root: bool = False
    ) -> Reply:
        """The reply to `body`.

        Raises:
            Fault: none came.
        """
        reply = await self._transport(path, at_root).post(body, patience)
        body = without_key(reply.body, self._headers)
        return reply if body is reply.body else reply._replace(body=body)

    async def close(self) -> None:
        """Drop every connection."""
        for transport in self._transports.values():
            await transport.close()

    def _transport(self, path: str, at_root: bool = False) -> Transport:
        transport = self._transports.get(path)
        if transport is None:
            transport = transport_for(
                self.url, path, self._headers, self._settings, self._on_send, at_root
            )
            self._transports[path] = transport
        return transport


def address(base_url: str, path: str, at_root: bool = False) -> str:
    """The URL of `path` under a base URL, which may name /chat/completions itself and have a query,
    as `?api-version=...`; `at_root` leaves /v1 out."""
    before, mark, query = base_url.partition("?")
    before = before.rstrip("/").removesuffix(CHAT).rstrip("/")
    return (before.removesuffix("/v1") if at_root else before) + path + mark + query


def transport_for(
    base_url: str,
    path: str,
    headers: Mapping[str, str],
    settings: RoleSettings,
    on_send: OnSend,
    at_root: bool = False,
) -> Transport:
    """The transport for `path` under a base URL; `on_send` is called for every request that goes
    out, resent ones too.

    Raises:
        SettingsError: not an http(s) URL, or no such kind of transport.
        ExtraMissing: the transport's package is not installed.
    """
    url = address(base_url, path, at_root)
    refuse_password(base_url, "a base URL")
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        known = known and url.isprintable() and " " not in url
    except ValueError:  # of the port, or of an IPv6 address
        known = False
    if not known:
        raise SettingsError(
            f"base URL {base_url!r} is not an http(s) address: write it as http://127.0.0.1:8000/v1"
        )
    if settings.transport != "auto":
        return ClientTransport(
            address(base_url, "", at_root), path, headers, on_send, settings.transport
        )
    proxied = any(os.environ.get(v) for v in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"))
    local = is_loopback(url)
    if parts.scheme == "http" and (local or not proxied):
        return PlainTransport(url, headers, on_send)
    context = trusting(settings.ca_file)
    return AiohttpTransport(url, headers, settings.concurrency, on_send, context, not local)


def trusting(ca_file: str | None) -> ssl.SSLContext | None:
    """A TLS context that also trusts the certificates in a PEM file; None for the default one.

    Raises:
        SettingsError: the file can't be read as such.
    """
    if ca_file is None:
        return None
    try:
        context = ssl.create_default_context()
        context.load_verify_locations(ca_file)
    except (OSError, ValueError) as e:
        raise SettingsError(
            f"ca_file {ca_file} holds no certificates ({e}): give a PEM file"
        ) from e
    return context


class Replicas:
    """Which of the base URLs are in."""

    def __init__(
        self,
        urls: Sequence[str],
        settings: RoleSettings,
        limiter: ConcurrencyLimiter,
        stats: RunStats,
    ) -> None:
        self._settings, self._limiter, self._stats = settings, limiter, stats
        self.all = [Replica(url, headers_of(settings), settings, self._count) for url in urls]
        self._probing: set[asyncio.Task[None]] = set()

    def _count(self) -> None:
        self._stats.sent += 1

    def succeeded(self, at: int) -> None:
        """Replica `at` answered."""
        replica = self.all[at]
        replica.answered, replica.in_a_row, replica.pause_s = True, 0, FIRST_PROBE_S

    def failed(self, at: int, kind: str, detail: str) -> None:
        """A request to it failed in a way that may pass."""
        replica = self.all[at]
        replica.in_a_row += 1
        if kind in NO_SERVER or replica.in_a_row >= FAULTS_IN_A_ROW:
            self.take_out(at, detail)

    def take_out(self, at: int, why: str) -> bool:
        """Send it nothing for now; False when it is the last that is in."""
        replica = self.all[at]
        if all(r.out_since is not None for r in self.all if r is not replica):
            return False
        if replica.out_since is None:
            replica.out_since = time.monotonic()
            replica.probe_at = replica.out_since + replica.pause_s
            self._stats.replicas_out[replica.url] = why
            self._limiter.take_out(at)
        return True

    def probe_due(self) -> None:
        """Ask those that are out, and whose time has come, whether they are back."""
        now = time.monotonic()
        for at, replica in enumerate(self.all):
            if replica.out_since is not None and now >= replica.probe_at:
                replica.pause_s = min(LAST_PROBE_S, 2 * replica.pause_s)
                replica.probe_at = now + replica.pause_s
                task = asyncio.ensure_future(self._ask(at))
                self._probing.add(task)
                task.add_done_callback(self._probing.discard)

    async def close(self) -> None:
        """Drop every connection."""
        for task in self._probing:
            task.cancel()
        if self._probing:
            await asyncio.wait(self._probing)
        for replica in self.all:
            await replica.close()

    async def _ask(self, at: int) -> None:
        replica = self.all[at]
        if await asyncio.to_thread(is_up, replica.url, self._settings):
            replica.out_since, replica.in_a_row = None, 0
            self._limiter.take_out(at, False)


def headers_of(settings: RoleSettings) -> dict[str, str]:
    """What signs a role in: its key, and the further headers whose values are in environment
    variables."""
    more = {name: key_in(variable) for name, variable in settings.headers_env.items()}
    return signed_in(settings.api_key_env) | {k: v for k, v in more.items() if v}


def get_json(url: str, settings: RoleSettings, timeout_s: float) -> Any:
    """The JSON behind a URL, asked for as the role signs in; never of this machine by a proxy. It
    is there within the time, however slowly its bytes come. The headers stay with it: a server
    that sends us elsewhere does not send our key there.

    Raises:
        OSError, HTTPException, ValueError: it can't be had, or is none.
    """
    request, headers = urllib.request.Request(url), headers_of(settings)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    handlers: list[urllib.request.BaseHandler] = []
    if is_loopback(url):
        handlers.append(urllib.request.ProxyHandler({}))
    if (context := trusting(settings.ca_file)) is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)
    got: Future[bytes] = Future()

    def read() -> None:
        try:
            with opener.open(request, timeout=timeout_s) as reply:
                got.set_result(reply.read(MOST_BYTES))
        except BaseException as e:
            if isinstance(e, urllib.error.HTTPError):
                e.close()  # its code is all that is asked for
            got.set_exception(e)

    threading.Thread(target=read, daemon=True).start()  # one that hangs keeps nothing from ending
    try:
        raw = got.result(timeout_s + PROBE_S)
    except FutureTimeout as e:  # of a class of its own before 3.11
        if got.done():
            raise
        raise TimeoutError(f"no whole reply within {timeout_s:g} s") from e
    return orjson.loads(without_key(raw, headers))


def model_names(tree: Any) -> list[str]:
    """The models in a reply to GET /models: under `data` or `models`, or a bare list.

    Raises:
        ValueError: it is none.
    """
    models = tree.get("data", tree.get("models")) if isinstance(tree, dict) else tree
    if not isinstance(models, list):
        raise ValueError("no list of models")
    found = [m.get("id") or m.get("name") if isinstance(m, dict) else m for m in models]
    return [one_line(name) for name in found if name]


def get_models(base_url: str, settings: RoleSettings, timeout_s: float) -> Any:
    """The reply to GET /models, which is looked for under /v1, too."""
    try:
        return get_json(address(base_url, "/models"), settings, timeout_s)
    except (urllib.error.HTTPError, ValueError) as e:
        if isinstance(e, urllib.error.HTTPError) and e.code not in (404, 405):
            raise
        try:
            return get_json(address(base_url, "/v1/models"), settings, timeout_s)
        except (OSError, ValueError):
            raise e from None


def listed_models(base_url: str, settings: RoleSettings) -> tuple[str, ...] | None:
    """The names of the models that an endpoint lists; None where it has no such list."""
    try:
        return tuple(model_names(get_models(base_url, settings, ASK_S)))
    except (OSError, HTTPException, ValueError):
        return None


def is_up(base_url: str, settings: RoleSettings) -> bool:
    """Whether a server answers at base URL `url` and does not say that it is broken."""
    try:
        get_json(address(base_url, "/models"), settings, PROBE_S)
    except urllib.error.HTTPError as e:
        return e.code not in (401, 403) and e.code < 500
    except (OSError, HTTPException):
        return False
    except ValueError:
        return True
    return True


def takes_patterns(base_url: str, settings: RoleSettings) -> bool:
    """Whether the server is a vLLM of 0.12 or later, which takes `structured_outputs`; False when
    it can't be told."""
    try:
        models = get_models(base_url, settings, PROBE_S)["data"]
        if {m.get("owned_by") for m in models} != {"vllm"}:
            return False
        root = address(base_url, "/version", at_root=True)
        version = str(get_json(root, settings, PROBE_S)["version"])
        return tuple(int(n) for n in version.split(".")[:2]) >= (0, 12)
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return False


def served_models(
    base_urls: Sequence[str], settings: RoleSettings, patience_s: float
) -> tuple[str, list[str]]:
    """The first of the base URLs that answers, and the names of the models that it lists; asked
    again for `patience_s` while none can be reached.

    Raises:
        EndpointError: none can be asked.
    """
    started = time.monotonic()
    while True:
        late = time.monotonic() - started > patience_s
        for i, url in enumerate(base_urls, 1):
            is_last = i == len(base_urls)
            try:
                return url, model_names(get_models(url, settings, ASK_S))
            except urllib.error.HTTPError as e:
                loads = e.code == 503 and time.monotonic() - started < LOADED_S
                if is_last and not loads and (late or e.code < 500):
                    raise EndpointError(
                        f"endpoint {url} says {e.code} to GET /models: check its URL (it ends in"
                        f" /v1) and the key in {settings.api_key_env}, or give --model"
                    ) from e
            except (OSError, HTTPException, ValueError) as e:
                if is_last and (late or not isinstance(e, OSError)):
                    why = one_line(getattr(e, "reason", None) or e)
                    remedy = "start the server, correct its base URL, or name the model"
                    if type(e) is TimeoutError:  # of the reply; a connection's has a reason
                        why = f"it takes connections and gave no whole reply in {ASK_S:g} s"
                        remedy = "wait until it has loaded its model, or give --model"
                    raise EndpointError(
                        f"endpoint {url} can't be asked for its models ({why}): {remedy}"
                    ) from e
        time.sleep(0.5)
