"""A loopback server whose replies have no end worth waiting for: 10 GB each, in every way that a
reply can be framed.

    with Flood(KINDS["chunks"]) as flood: flood.base_url; flood.longest     # bytes sent of a reply
"""

from __future__ import annotations

import contextlib
import gzip
import socketserver
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

SIZE = 10 << 30
PIECE = b" " * (1 << 16)
PACKED = gzip.compress(PIECE)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _repeat(head: bytes, piece: bytes) -> Iterator[bytes]:
    yield HEAD + head + b"\r\n"
    for _ in range(SIZE // len(piece)):
        yield piece


def _packed() -> Iterator[bytes]:
    yield HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    for _ in range(SIZE // len(PIECE)):
        yield _chunk(PACKED)


CHUNKED = b"Transfer-Encoding: chunked\r\n"
KINDS = {
    "length": lambda: _repeat(b"Content-Length: %d\r\n" % SIZE, PIECE),
    "no length": lambda: _repeat(b"Connection: close\r\n", PIECE),
    "chunks": lambda: _repeat(CHUNKED, _chunk(PIECE)),
    "small chunks": lambda: _repeat(CHUNKED, _chunk(b" " * 64) * 4096),
    "one chunk": lambda: _repeat(CHUNKED + b"\r\n%x" % SIZE, PIECE),
    "a chunk's length": lambda: _repeat(CHUNKED, b"1" * (1 << 16)),
    "head": lambda: _repeat(b"X: ", b"x" * (1 << 16)),
    "packed": _packed,
    "error": lambda: (
        part.replace(b"200 OK", b"500 X", 1)
        for part in _repeat(b"Content-Length: %d\r\n" % SIZE, PIECE)
    ),
}


class Flood:
    """The server, in threads; `parts` makes the bytes of a reply."""

    def __init__(self, parts: Callable[[], Iterator[bytes]]) -> None:
        self.connections, self.replies, self.longest = 0, 0, 0
        flood = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                flood.connections += 1
                with contextlib.suppress(OSError):  # the client has had enough
                    while line := self.rfile.readline():
                        self.answer(line)

            def answer(self, line: bytes) -> None:
                length = 0
                while (field := self.rfile.readline()).strip():
                    if field.lower().startswith(b"content-length:"):
                        length = int(field.split(b":")[1])
                self.rfile.read(length)
                if line.startswith(b"GET"):
                    body = b'{"data": [{"id": "fake"}]}'
                    self.wfile.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                    return
                flood.replies += 1
                sent = 0
                for part in parts():
                    self.wfile.write(part)
                    sent += len(part)
                    flood.longest = max(flood.longest, sent)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Flood:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
