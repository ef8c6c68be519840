"""Three ways to POST a JSON body and read the whole reply. All raise `Fault` for anything that is
not a whole reply.

    PlainTransport     HTTP/1.1 to local servers (vLLM, llama.cpp, ...) at a third of aiohttp's CPU
                       per request: no proxies, no redirects, no compression, no TLS
    AiohttpTransport   TLS and proxies
    ClientTransport    over the openai package, for providers whose sign-in it knows; ten times the
                       CPU per request

`transport: openai` builds `openai.AsyncOpenAI` for the base URL; `transport: module:function` calls
the user's own `function(base_url) -> AsyncOpenAI`, say one that returns `AsyncAzureOpenAI` with a
token provider. Its retries are turned off: they are counted and bounded in one place, for all
transports.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import orjson

from .. import plugins
from ..errors import ExtraMissing, SettingsError
from ..text import one_line

if TYPE_CHECKING:
    import ssl

    from openai import AsyncOpenAI

CONNECT_S = 10.0
NO_SERVER = frozenset({"refused", "dns", "connect"})  # kinds of faults: nothing was asked
_SWEEP_S = 0.25
_INBOX_BYTES = 32 << 10  # of a connection; a longer reply comes in pieces
MOST_BYTES = 16 << 20  # of a reply
TOO_LONG = f"longer than {MOST_BYTES >> 20} MB"
_MOST_HEAD_BYTES = 64 << 10


class Reply(NamedTuple):
    """A whole HTTP reply."""

    status: int
    body: bytes
    retry_after: float | None = None  # seconds


class Patience(NamedTuple):
    """How long a reply is waited for, in seconds.

    Attributes:
        silence_s: while the server answers nothing at all that it was sent.
        total_s: whatever else it answers meanwhile.
    """

    silence_s: float
    total_s: float


class Fault(Exception):
    """No whole reply came. `kind`: refused, dns, connect (no connection in time), certificate,
    reset, timeout, protocol."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(one_line(f"{kind}: {detail}"))
        self.kind = kind


OnSend = Callable[[], None]
PatienceNow = Callable[[], Patience]
"""Asked again and again while a request waits: what is known of the server meanwhile counts."""


class Transport(Protocol):
    """POSTs bodies to one URL."""

    async def post(self, body: bytes, patience: PatienceNow) -> Reply:
        """The reply to `body`.

        Raises:
            Fault: none came in time.
        """

    async def close(self) -> None:
        """Drop every connection."""


class PlainTransport:
    """Keep-alive connections on asyncio.Protocol, one request at a time each; opened on demand,
    reused last in first out.

    A server that works off one request after the other is not cut off while it answers: silence
    counts from its last reply to any of them, and the longest that one of them may take holds for
    all. The other transports wait `silence_s` for each reply.
    """

    def __init__(self, url: str, headers: Mapping[str, str], on_send: OnSend) -> None:
        parts = urlsplit(url)
        self._on_send = on_send
        self._host, self._port = parts.hostname or "", parts.port or 80
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [
            f"POST {path or '/'} HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Content-Type: application/json",
            "Accept: application/json",
            *(f"{k}: {v}" for k, v in headers.items()),
            "Content-Length: ",
        ]
        self._head = "\r\n".join(lines).encode("latin-1")
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._answers, self._seen = 0, (0, 0.0)  # how many there were, and since when
        self._sweeper: asyncio.TimerHandle | None = None

    async def post(self, body: bytes, patience: PatienceNow) -> Reply:
        message = b"%s%d\r\n\r\n%s" % (self._head, len(body), body)
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                try:
                    return await self._exchange(connection, message, patience)
                except _ClosedIdle:
                    break  # the server had closed it: once more, on a fresh connection
        return await self._exchange(await self._connect(), message, patience)

    async def close(self) -> None:
        if self._sweeper:
            self._sweeper.cancel()
        for connection in [*self._idle, *self._busy]:
            connection.abort()
        self._idle.clear()  # each holds its last call, and that the log of its partition

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            opening = loop.create_connection(_Connection, self._host, self._port)
            return (await asyncio.wait_for(opening, CONNECT_S))[1]
        except (TimeoutError, asyncio.TimeoutError) as e:  # two classes before 3.11
            raise Fault("connect", f"no connection to {self._host}:{self._port}") from e
        except OSError as e:
            kind = "dns" if e.__class__.__name__ == "gaierror" else "refused"
            raise Fault(kind, e.strerror or str(e)) from e

    async def _exchange(
        self, connection: _Connection, message: bytes, patience: PatienceNow
    ) -> Reply:
        if self._sweeper is None:
            self._sweep()
        connection.patience, connection.sent_at = patience, time.monotonic()
        self._busy.add(connection)
        self._on_send()
        try:
            reply = await connection.send(message)
        except asyncio.CancelledError:
            connection.abort()
            raise
        finally:
            self._busy.discard(connection)
        self._answers += 1
        if connection.open:
            self._idle.append(connection)
        return reply

    def _sweep(self) -> None:
        """One timer for all requests in flight, instead of one each."""
        now = time.monotonic()
        if self._answers != self._seen[0]:
            self._seen = self._answers, now
        waits = [(c, c.patience()) for c in self._busy if c.patience is not None]
        silence_s = max((patience.silence_s for _, patience in waits), default=0.0)
        for c, patience in waits:
            if now - c.sent_at > patience.total_s:
                c.fail(no_reply(patience.total_s))
            elif now - max(c.sent_at, self._seen[1]) > silence_s:
                c.fail(no_reply(silence_s))
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)


def no_reply(seconds: float) -> Fault:
    """The fault of a reply that did not come in time."""
    return Fault("timeout", f"no reply within {seconds:.4g} s")


def out_of_files() -> bool:
    """Whether this process, or this machine, may open no further file or connection."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as e:
        return e.errno in (errno.EMFILE, errno.ENFILE)
    return False


class _ClosedIdle(Exception):
    """A reused connection died before a byte of the reply came."""


_CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r]*)?")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)")


class _ReplyHead(NamedTuple):
    """What the head of a reply says: `end` is where the body ends, -1 where no length is given."""

    status: int
    body_at: int
    end: int
    chunked: bool
    close_after: bool
    retry_after: float | None


class _Connection(asyncio.BufferedProtocol):
    __slots__ = (
        "_buffer",
        "_chunks",
        "_head",
        "_inbox",
        "_transport",
        "_used",
        "_waiter",
        "patience",
        "sent_at",
    )

    def __init__(self) -> None:
        # asyncio.Protocol would allocate 256 kB for every reply
        self._inbox = memoryview(bytearray(_INBOX_BYTES))
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Reply] | None = None
        self._buffer: bytes | bytearray = b""  # of one piece as a rule; else it grows in place
        self._chunks = bytearray()  # what was taken from the buffer, of a body in chunks
        self._head: _ReplyHead | None = None  # None until it is all there
        self._used = False
        self.patience: PatienceNow | None = None
        self.sent_at = 0.0

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: bytes) -> asyncio.Future[Reply]:
        self._waiter = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            self._lost(None)
        else:
            self._transport.write(message)
        return self._waiter

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self.abort()

    # asyncio.BufferedProtocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's, which Ray's workers run on, is none by inheritance
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbox

    def buffer_updated(self, nbytes: int) -> None:
        data = self._inbox[:nbytes]
        if not self._buffer:
            self._buffer = data.tobytes()
        else:
            if isinstance(self._buffer, bytes):
                self._buffer = bytearray(self._buffer)
            self._buffer += data
        try:
            if self._head is None:
                self._head = self._read_head()
            head = self._head
            end = len(self._buffer) if head is None else max(len(self._buffer), head.end)
            if end + len(self._chunks) > MOST_BYTES:
                raise ValueError(TOO_LONG)
            if head is not None:
                self._read_body(head)
        except ValueError as e:
            self.fail(Fault("protocol", f"not an HTTP reply ({e})"))

    def _lost(self, exc: Exception | None) -> None:
        if self._waiter is None or self._waiter.done():
            return
        head = self._head
        if head is not None and head.end < 0 and not head.chunked and exc is None:
            self._finish(head, self._buffer[head.body_at :])  # it ends with the connection
        elif self._used and head is None and not self._buffer:
            self._waiter.set_exception(_ClosedIdle())
        else:
            when = "in the middle of" if self._buffer or head is not None else "without"
            reason = f"the server closed the connection {when} a reply"
            self._waiter.set_exception(Fault("reset", reason))

    def _read_head(self) -> _ReplyHead | None:
        at = 0
        while True:  # past what a server says before its reply (100 to 199)
            end = self._buffer.find(b"\r\n\r\n", at)
            if (len(self._buffer) if end < 0 else end) > _MOST_HEAD_BYTES:
                raise ValueError("64 kB without the end of its head")
            if end < 0:
                return None
            head = bytes(self._buffer[at : end + 2]).lower()
            if not head.startswith(b"http/1."):
                raise ValueError(repr(head[:20]))
            if not head[9:12].isdigit():
                raise ValueError(repr(head[:20]))
            status = int(head[9:12])
            if status >= 200:
                break
            at = end + 4
        body_at = end + 4
        length = _LENGTH.search(head)
        if status in (204, 304):
            body_end = body_at
        else:
            body_end = body_at + int(length[1]) if length else -1
        return _ReplyHead(
            status,
            body_at,
            body_end,
            length is None and b"\r\ntransfer-encoding:" in head and b"chunked" in head,
            b"\r\nconnection: close" in head or head.startswith(b"http/1.0"),
            _retry_after(head) if status == 429 or status >= 500 else None,
        )

    def _read_body(self, head: _ReplyHead) -> None:
        if head.end >= 0:
            if len(self._buffer) >= head.end:
                self._finish(head, self._buffer[head.body_at : head.end])
        elif head.chunked and self._read_chunks(head):
            self._finish(head, self._chunks)

    def _read_chunks(self, head: _ReplyHead) -> bool:
        """Take the chunks that are all there; whether that was the last one.

        Raises:
            ValueError: a chunk has no length, or more than a head's worth of trailers follows.
        """
        at, buffer = head.body_at, self._buffer
        while (line := buffer.find(b"\r\n", at)) >= 0:
            length = _CHUNK.fullmatch(buffer, at, line)
            if length is None:
                raise ValueError(f"a chunk of {bytes(buffer[at : at + 20])!r} bytes")
            end = line + 2 + int(length[1], 16)
            if end == line + 2:  # trailers, of which there are none as a rule, and an empty line
                if len(buffer) - line > _MOST_HEAD_BYTES:
                    raise ValueError("64 kB of trailers")
                return buffer.find(b"\r\n\r\n", line) >= 0
            if end - at > MOST_BYTES:
                raise ValueError(TOO_LONG)
            if len(buffer) < end + 2:
                break
            self._chunks += buffer[line + 2 : end]
            at = end + 2
        else:
            if len(buffer) - at > _MOST_HEAD_BYTES:
                raise ValueError("64 kB without the length of a chunk")
        if at > head.body_at:
            self._buffer, self._head = buffer[at:], head._replace(body_at=0)
        return False

    def _finish(self, head: _ReplyHead, body: bytes | bytearray) -> None:
        self._buffer, self._head, self._used = b"", None, True
        self._chunks = bytearray()
        if head.close_after and self._transport is not None:
            self._transport.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Reply(head.status, bytes(body), head.retry_after))


_WAIT_HEADERS = re.compile(rb"\r\n([\w-]*(?:retry-after|rate-?limit)[\w-]*):[ \t]*([^\r]+)")
_MOST_WAIT_S, _MOST_RESET_S = 600.0, 60.0


def _retry_after(head: bytes) -> float | None:
    found = _WAIT_HEADERS.findall(head)
    return parse_retry_after({k.decode(): v.decode("latin-1") for k, v in found}) if found else None


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by the headers of a refusal, named in small letters; None where none of them
    can be read.

    `retry-after-ms` goes before `retry-after`, and that before the latest `x-ratelimit-reset-...`
    whose `...-remaining-...` is used up. At most 600 s, of a reset 60 s: limits are full again by
    then, and have room before.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (ms := _seconds(headers.get(name))) is not None:
            return min(ms / 1000, _MOST_WAIT_S)
    if (seconds := _seconds(headers.get("retry-after"))) is not None:
        return min(seconds, _MOST_WAIT_S)
    resets = [
        seconds
        for name, value in headers.items()
        if "reset" in name
        and (_seconds(headers.get(name.replace("reset", "remaining"))) or 0) == 0
        and (seconds := _seconds(value)) is not None
    ]
    return min(max(resets), _MOST_RESET_S) if resets else None


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(
    r"(?<!\d)(\d{1,9}(?:\.\d{1,9})?) ?"
    r"(ms|s|m|h|d)(?:ec(?:ond)?s?|in(?:ute)?s?|ours?|ays?)?(?![a-z]) ?",
    re.IGNORECASE,
)


def parse_duration(text: str) -> float | None:
    """Seconds of a text like `6m0s`, `120ms` or `45 seconds`; None where it is none."""
    if not text or _DURATION.sub("", text):
        return None
    return sum(float(n) * _UNITS[unit.lower()] for n, unit in _DURATION.findall(text))


def _seconds(value: str | None) -> float | None:
    """From now on: a number, `1m30s`, a Unix time in s or ms, or an HTTP date; at least 0."""
    try:
        seconds = float(value or "")
    except ValueError:
        seconds = parse_duration(value or "") or math.nan
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            if math.isnan(seconds):
                seconds = parsedate_to_datetime(value or "").timestamp() - time.time()
    if seconds > 1e12:
        seconds /= 1000
    if seconds > 1e9:
        seconds -= time.time()
    return None if math.isnan(seconds) else max(seconds, 0.0)


def _in_small(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class AiohttpTransport:
    """aiohttp, for TLS and proxies; imported when first used."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        connections: int,
        on_send: OnSend,
        context: ssl.SSLContext | None = None,
        proxies: bool = True,
    ) -> None:
        import aiohttp

        self._aiohttp = aiohttp
        self._url, self._context, self._proxies = url, context, proxies
        self._headers = {**headers, "Content-Type": "application/json"}
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._on_send = on_send

    async def post(self, body: bytes, patience: PatienceNow) -> Reply:
        a, timeout_s = self._aiohttp, patience().silence_s
        if self._session is None:
            self._session = a.ClientSession(
                connector=a.TCPConnector(limit=self._connections, ssl=self._context or True),
                headers=self._headers,
                trust_env=self._proxies,
            )
        timeout = a.ClientTimeout(total=timeout_s, connect=min(CONNECT_S, timeout_s))
        self._on_send()
        try:
            async with self._session.post(
                self._url, data=body, allow_redirects=False, timeout=timeout
            ) as r:
                raw = bytearray()
                async for part in r.content.iter_any():  # what was packed is unpacked by then
                    if len(raw) + len(part) > MOST_BYTES:
                        raise Fault("protocol", TOO_LONG)
                    raw += part
                after = parse_retry_after(_in_small(r.headers))
                return Reply(r.status, bytes(raw), after)
        except a.ConnectionTimeoutError as e:
            raise Fault("connect", f"no connection to {self._url}") from e
        except (TimeoutError, asyncio.TimeoutError) as e:
            raise no_reply(timeout_s) from e
        except a.ClientConnectorCertificateError as e:
            raise Fault("certificate", str(e.certificate_error)) from e
        except a.ClientConnectorError as e:
            kind = "dns" if isinstance(e, a.ClientConnectorDNSError) else "refused"
            raise Fault(kind, str(e.os_error)) from e
        except (a.ClientError, OSError) as e:
            raise Fault("reset", e.__class__.__name__) from e

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def require_openai(what: str) -> None:
    """Raises ExtraMissing where the openai package is not installed; `what` needs it."""
    if importlib.util.find_spec("openai") is None:
        raise ExtraMissing(f"{what} needs the openai package: pip install 'mora-data[openai]'")


class ClientTransport:
    """An AsyncOpenAI, made when it is first used."""

    def __init__(
        self, base_url: str, path: str, headers: Mapping[str, str], on_send: OnSend, kind: str
    ) -> None:
        require_openai(f"transport: {kind}")
        self._base_url, self._path, self._on_send = base_url, path, on_send
        self._key = headers.get("Authorization", "").removeprefix("Bearer ")
        self._name = kind
        self._make = None if kind == "openai" else plugins.load({}, kind, "transport").target
        self._client: AsyncOpenAI | None = None

    async def post(self, body: bytes, patience: PatienceNow) -> Reply:
        import openai

        timeout_s = patience().silence_s
        if self._client is None:
            self._client = self._open()
        self._on_send()
        asked = self._client.post(
            self._path,
            cast_to=object,
            body=orjson.loads(body),
            options={
                "timeout": timeout_s,
                "max_retries": 0,
                "headers": {"Accept-Encoding": "gzip"},
            },
        )
        try:
            await asyncio.wait_for(asked, timeout_s)
        except (_Taken, openai.APIConnectionError) as e:
            taken = e if isinstance(e, _Taken) else e.__cause__  # older versions wrap it
            if isinstance(taken, _Taken):
                if taken.reply is None:
                    raise Fault("protocol", TOO_LONG) from e
                return taken.reply
            if isinstance(e, openai.APITimeoutError):
                raise no_reply(timeout_s) from e
            raise Fault(_kind(e), str(e.__cause__ or e)) from e
        except (TimeoutError, asyncio.TimeoutError) as e:  # two classes before 3.11
            raise no_reply(timeout_s) from e
        raise SettingsError(f"transport: {self._name} gives a client that no reply passes through")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _open(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        try:
            if self._make is None:
                client = AsyncOpenAI(base_url=self._base_url, api_key=self._key or "none")
            else:
                client = self._make(self._base_url)
            client._client.event_hooks["response"].append(_take)
        except Exception as e:  # the user's code and what it calls
            raise SettingsError(
                f"the openai client can't sign in ({one_line(e, 160)}): set what it"
                " asks for, or leave `transport` out"
            ) from e
        return client


class _Taken(Exception):
    """Carries a reply past the openai client, which would read one of any size. `reply` is None
    where it is too long."""

    def __init__(self, reply: Reply | None) -> None:
        super().__init__()
        self.reply = reply


async def _take(response: Any) -> None:
    """Called by httpx, whose response this is, when the head of a reply is there. httpx itself
    would unpack a reply to any size."""
    raw = bytearray()
    async for part in response.aiter_raw():
        raw += part
        if len(raw) > MOST_BYTES:
            raise _Taken(None)
    body = bytes(raw)
    if response.headers.get("content-encoding", "").lower() == "gzip":
        with contextlib.suppress(zlib.error):  # then it is no JSON
            body = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(raw, MOST_BYTES + 1)
    if len(body) > MOST_BYTES:
        raise _Taken(None)
    after = parse_retry_after(_in_small(response.headers))
    raise _Taken(Reply(response.status_code, body, after))


def _kind(error: BaseException) -> str:
    """refused, dns or reset, by the classes of what lies under the client's own error."""
    classes = []
    cause: BaseException | None = error
    while cause is not None:
        classes.append(cause.__class__.__name__)
        cause = cause.__cause__ or cause.__context__
    if "gaierror" in classes:
        return "dns"
    return "refused" if "ConnectError" in classes else "reset"
