"""An OpenAI-compatible stub server: a latency model, faults on demand, exact accounting. Loopback
only, one process.

    python -m benchmarks.stub       prints its port
    POST /_reset {"latency_ms": 50} new settings (see Settings), counters to zero
    GET  /_stats                    counters

A distinct request (model, messages, sampling, seed, n) is one key; the stub counts how often each
was asked and answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import orjson

with contextlib.suppress(ImportError):  # the stub should not be what is measured
    import uvloop

    uvloop.install()

WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or"
    " had an they which one you were all her she there would their we him been has when who will no"
    " more if out so up said what its about"
).split()
TOKENS = 160
REASONS = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    429: b"Too Many Requests",
    500: b"Internal Server Error",
}


@dataclass
class Settings:
    """What the stub does with requests."""

    latency_ms: float = 50.0
    admit: int = 0  # in service at most; the rest waits, `queue` of them, then 429. 0: no limit
    queue: int = 0
    p_429: float = 0.0  # share of the keys that fail once
    p_500: float = 0.0
    bad_keys: float = 0.0  # share of the keys that always get 400
    retry_after: int | None = None


@dataclass
class State:
    """Counters since the last reset."""

    cfg: Settings = field(default_factory=Settings)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    status: Counter[int] = field(default_factory=Counter)
    asked: Counter[bytes] = field(default_factory=Counter)
    answered: Counter[bytes] = field(default_factory=Counter)
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    in_service: int = 0
    in_flight: int = 0
    served_s: float = 0.0  # area under in_service
    area_s: float = 0.0  # area under in_flight
    last: float = 0.0
    first: float | None = None  # time.time() of the first request
    end: float = 0.0

    def tick(self, flight: int = 0, service: int = 0) -> None:
        now = time.time()
        if self.first is None:
            self.first = self.last = now
        self.served_s += self.in_service * (now - self.last)
        self.area_s += self.in_flight * (now - self.last)
        self.in_flight += flight
        self.in_service += service
        self.last = self.end = now

    def stats(self) -> dict[str, Any]:
        span = self.end - (self.first or self.end)
        return {
            "first": self.first,
            "span_s": span,
            "status": {str(k): v for k, v in self.status.items()},
            "received": sum(self.asked.values()),
            "keys": len(self.asked),
            "answered": len(self.answered),
            "answered_again": sum(self.answered.values()) - len(self.answered),
            "mean_in_flight": self.area_s / span if span else 0.0,
            "mean_in_service": self.served_s / span if span else 0.0,
        }


class Server:
    """The state that all connections share."""

    state = State()


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.need: tuple[bytes, bytes, int] | None = None  # method, path, length of the body
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def connection_lost(self, exc: Exception | None) -> None:
        for task in self.tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            if self.need is None:
                end = self.buffer.find(b"\r\n\r\n")
                if end < 0:
                    return
                first, *rest = bytes(self.buffer[:end]).split(b"\r\n")
                del self.buffer[: end + 4]
                method, path, _ = first.split(b" ", 2)
                length = next(
                    (int(h[15:]) for h in rest if h[:15].lower() == b"content-length:"), 0
                )
                self.need = (method, path, length)
            if len(self.buffer) < self.need[2]:
                return
            method, path, length = self.need
            body = bytes(self.buffer[:length])
            del self.buffer[:length]
            self.need = None
            self.dispatch(path, body)

    def dispatch(self, path: bytes, body: bytes) -> None:
        if path.endswith(b"/chat/completions"):
            task = asyncio.get_running_loop().create_task(self.chat(body))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        elif path == b"/_stats":
            self.send(200, orjson.dumps(Server.state.stats()))
        elif path == b"/_reset":
            Server.state = State(Settings(**json.loads(body or b"{}")))
            self.send(200, b"{}")
        elif path.endswith(b"/models"):
            self.send(200, orjson.dumps({"data": [{"id": "stub-gen"}, {"id": "stub-judge"}]}))
        else:
            self.fail(404)

    def send(self, status: int, body: bytes, extra: bytes = b"") -> None:
        if not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length:"
                b" %d\r\n%s\r\n%s" % (status, REASONS[status], len(body), extra, body)
            )

    def fail(self, status: int) -> None:
        after = Server.state.cfg.retry_after
        extra = b"retry-after: %d\r\n" % after if status == 429 and after is not None else b""
        self.send(status, orjson.dumps({"error": {"message": f"injected {status}"}}), extra)

    async def chat(self, raw: bytes) -> None:
        s = Server.state
        cfg = s.cfg
        key = hashlib.md5(raw).digest()
        first_time = key not in s.asked
        s.asked[key] += 1
        s.tick(flight=1)
        entered = False
        try:
            fault = self.fault(s, key, first_time)
            if not fault and cfg.admit:
                if s.in_service < cfg.admit:
                    s.tick(service=1)
                elif len(s.waiting) < cfg.queue:
                    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    s.waiting.append(turn)
                    await turn
                else:
                    fault = 429
                entered = not fault
            if fault:
                s.status[fault] += 1
                return self.fail(fault)
            if cfg.latency_ms:
                await asyncio.sleep(cfg.latency_ms / 1000)
            s.status[200] += 1
            s.answered[key] += 1
            self.send(200, reply(raw, key))
        finally:
            if entered:
                self.leave(s)
            s.tick(flight=-1)

    @staticmethod
    def leave(s: State) -> None:
        """Hand the place in service to the next that waits."""
        while s.waiting:
            turn = s.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        s.tick(service=-1)

    @staticmethod
    def fault(s: State, key: bytes, first_time: bool) -> int:
        if s.cfg.bad_keys and key[0] * 256 + key[1] < s.cfg.bad_keys * 65536:
            return 400
        u = s.rng.random()
        if first_time and u < s.cfg.p_429 + s.cfg.p_500:
            return 429 if u < s.cfg.p_429 else 500
        return 0


def reply(raw: bytes, key: bytes) -> bytes:
    """A chat completion that depends on the key alone: words, or a verdict where a schema was asked
    for."""
    model = "stub-judge" if b'"stub-judge"' in raw else "stub-gen"
    if b'"response_format"' in raw or model == "stub-judge":
        text, tokens = json.dumps({"score": 1 + key[2] % 5}), 8
    else:
        r = random.Random(key[:8])
        text, tokens = " ".join(r.choices(WORDS, k=TOKENS)), TOKENS
    return orjson.dumps(
        {
            "id": "chatcmpl-" + key.hex()[:12],
            "object": "chat.completion",
            "created": 1700000000,
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": text},
                }
            ],
            "usage": {"prompt_tokens": len(raw) // 4, "completion_tokens": tokens},
        }
    )


async def main() -> None:
    """Serves until the process is ended."""
    server = await asyncio.get_running_loop().create_server(
        Connection, "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
