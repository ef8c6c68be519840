"""A loopback server that speaks enough of the OpenAI chat protocol to test an engine: n, seed,
usage, faults.

It stands in for servers that can't be made to fail on command. The text of choice i depends on
messages, model, temperature and seed + i, as on vLLM. A `script` decides what a request gets
instead: a function of (body, how often this body was asked) that returns a Fault or None.

    with FakeOpenAI(script=lambda body, time: Fault(status=429) if time == 1 else None) as server:
        server.base_url
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
import time as clock
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml


@dataclass
class Fault:
    """What a request gets instead of its answer. `drop`: closed, "before" or in the "middle" of the
    body."""

    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: str = ""
    choices: int | None = None  # answer with this many choices
    text: str | None = None
    finish_reason: str = "stop"
    hang: bool = False
    model: str | None = None  # the reply says that this one answered
    cached: int = 0  # prompt tokens of the 10 that the provider had cached


Rates = Callable[[dict[str, Any]], list[float]]
Script = Callable[[dict[str, Any], int], "Fault | None"]


class FakeOpenAI:
    """The server, in a thread. `requests` holds every chat body it read, in order; `delay_s` is how
    long an answer takes."""

    handler: type[BaseHTTPRequestHandler]

    def __init__(
        self,
        script: Script | None = None,
        models: tuple[str, ...] = ("fake",),
        max_n: int | None = None,
        delay_s: float = 0.0,
        vllm: str = "",
        port: int = 0,
        rates: Rates | None = None,
    ) -> None:
        self.script, self.models, self.max_n, self.delay_s = script, models, max_n, delay_s
        # raw outputs of /classify and /pooling for a body; None: there are no such paths
        self.rates = rates
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []  # of the requests, names in small letters
        self.only: str | None = None  # the one path, with its query, that is answered
        self.listed: Fault | None = None  # what GET /models says instead of its list
        self.vllm = vllm  # claims to be this version of vLLM
        self.requests: list[dict[str, Any]] = []
        self.answered: Counter[str] = Counter()
        self.times: Counter[str] = Counter()
        self.run = 0  # the caller's own count; answers are noted under it
        self.answered_in: list[tuple[int, str]] = []
        self.connections = 0
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.released = threading.Event()
        handler = type("Handler", (self.handler,), {"fake": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self._server.fake = self
        self.port = self._server.server_address[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FakeOpenAI:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def completion(self, body: dict[str, Any], fault: Fault) -> dict[str, Any]:
        """The reply to a chat body."""
        n = int(body.get("n") or 1)
        n = min(n, self.max_n) if self.max_n else n
        n = n if fault.choices is None else fault.choices
        choices = [
            {
                "index": i,
                "finish_reason": fault.finish_reason,
                "message": {
                    "role": "assistant",
                    "content": fault.text if fault.text is not None else answer(body, i),
                },
            }
            for i in range(n)
        ]
        return {
            "id": "x",
            "object": "chat.completion",
            "model": fault.model or body.get("model"),
            "choices": choices,
            "usage": {
                "prompt_tokens": 10,
                "completion_tokens": 5 * n,
                "total_tokens": 10 + 5 * n,
                "prompt_tokens_details": {"cached_tokens": fault.cached},
            },
        }

    def repeated(self) -> int:
        """Answers given more than once to the same body."""
        return sum(n - 1 for n in self.answered.values())

    def repeated_by_run(self) -> Counter[int]:
        """Answers that were given again later, by the run in which they were given first."""
        last: dict[str, int] = {}
        out: Counter[int] = Counter()
        for run, key in self.answered_in:
            if key in last:
                out[last[key]] += 1
            last[key] = run
        return out

    def drain(self) -> None:
        """Return when everything that a dead client had sent is read and answered."""
        # accepted after all others
        with socket.create_connection(("127.0.0.1", self.port)) as last:
            last.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
            last.recv(1)
        self.wait_for(lambda: self.connections == 0)

    def wait_for(self, true: Callable[[], bool], timeout_s: float = 600.0) -> None:
        """Return as soon as `true()` holds; it is asked after every request and closed
        connection."""
        with self.changed:
            assert self.changed.wait_for(true, timeout_s), (
                f"not so within {timeout_s:g} s, after {len(self.requests)} requests"
            )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # the default of 5 loses connections when 64 open at once
    fake: FakeOpenAI

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.fake.changed:
            self.fake.connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self.fake.changed:
            self.fake.connections -= 1
            self.fake.changed.notify_all()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    fake: FakeOpenAI

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.partition("?")[0].endswith("/models") and self.fake.listed:
            self._fail(self.fake.listed)
        elif self.path.endswith("/models"):
            owner = {"owned_by": "vllm"} if self.fake.vllm else {}
            self._send(
                200,
                json.dumps(
                    {"object": "list", "data": [{"id": m, **owner} for m in self.fake.models]}
                ).encode(),
            )
        elif self.path == "/version" and self.fake.vllm:
            self._send(200, json.dumps({"version": self.fake.vllm}).encode())
        else:
            self._send(404, b'{"error": {"message": "no such path"}}')

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        body = json.loads(raw)
        key = hashlib.sha256(raw).hexdigest()
        with self.fake.lock:
            self.fake.requests.append(body)
            self.fake.paths.append(self.path)
            self.fake.headers.append({k.lower(): v for k, v in self.headers.items()})
            self.fake.times[key] += 1
            time = self.fake.times[key]
            run = self.fake.run
            self.fake.changed.notify_all()
        fault = self.fake.script(body, time) if self.fake.script else None
        if self.fake.only not in (None, self.path):
            fault = Fault(404, b'{"detail": "Not Found"}')
        if fault is not None and (
            fault.hang or fault.drop or fault.body is not None or fault.status != 200
        ):
            return self._fail(fault)
        if self.fake.delay_s:
            clock.sleep(self.fake.delay_s)
        with self.fake.lock:
            self.fake.answered[key] += 1
            self.fake.answered_in.append((run, key))
        if self.path in ("/classify", "/pooling"):
            return self._rate(body)
        self._send(200, json.dumps(self.fake.completion(body, fault or Fault())).encode())

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client was killed
            super().handle()

    def _rate(self, body: dict[str, Any]) -> None:
        if self.fake.rates is None:
            return self._send(404, b'{"detail": "Not Found"}')
        field = "probs" if self.path == "/classify" else "data"
        self._send(
            200,
            json.dumps(
                {
                    "data": [{"index": 0, field: self.fake.rates(body)}],
                    "usage": {"prompt_tokens": 7},
                }
            ).encode(),
        )

    def _fail(self, fault: Fault) -> None:
        if fault.hang:
            self.fake.released.wait(30)
            self.close_connection = True
            return
        if fault.drop:
            if fault.drop == "middle":
                self.wfile.write(b'HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{"choices": [')
                self.wfile.flush()
            self.close_connection = True
            return
        body = (
            fault.body
            if fault.body is not None
            else json.dumps({"error": {"message": f"told to say {fault.status}"}}).encode()
        )
        self._send(fault.status, body, fault.headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


FakeOpenAI.handler = Handler


def answer(body: dict[str, Any], i: int) -> str:
    """The text of choice i: a verdict for a judge's question, words for another."""
    seed = int(body.get("seed") or 0) + i
    said = json.dumps(
        [body.get("messages"), body.get("model"), body.get("temperature"), seed], sort_keys=True
    )
    said = re.sub(r"-[a-z]{4,}>", "->", said)  # nonces differ from run to run
    h = hashlib.sha256(said.encode()).digest()
    if (known := harm_of_example(body)) is not None:
        return json.dumps({"score": known})
    if '{"rewritten"' in str(body.get("messages")):
        return json.dumps({"rewritten": _rewritten(str(body["messages"][-1]["content"]))})
    if (
        "judge" in str(body.get("model"))
        or "response_format" in body
        or "structured_outputs" in body
        or '{"score"' in str(body.get("messages"))
    ):
        return json.dumps({"score": grade(body, h)})
    return " ".join(WORDS[b % len(WORDS)] for b in h[: 6 + h[1] % 12])


@cache
def harm_levels() -> dict[str, int]:
    """The examples that the harm check is tried on, with the level of each."""
    path = Path(__file__).parents[2] / "templates" / "guard" / "examples.yaml"
    levels = {"question": 1, "about": 1, "for": 5}
    return {e[k]: n for e in yaml.safe_load(path.read_text()) for k, n in levels.items()}


def harm_of_example(body: dict[str, Any]) -> int | None:
    """The level that a competent guard gives to an example that the harm check is tried on."""
    asked = str(body["messages"][-1]["content"]) if body.get("messages") else ""
    found = re.search(r"<question-[^>]*>\n(.*?)\n</question-", asked, re.S)
    return harm_levels().get(found[1]) if found else None


def grade(body: dict[str, Any], h: bytes) -> int:
    """A judge's level: by the whole request, so that it is another one when asked once more."""
    return 1 + h[0] % 5


def steady_grade(body: dict[str, Any], h: bytes) -> int:
    """In place of `grade`: by the answer that is graded, whatever else is said."""
    graded = re.search(r"<answer-[^>]*>(.*?)</answer-", str(body["messages"][-1]["content"]), re.S)
    return 1 + (hashlib.sha256(graded[1].encode()).digest() if graded else h)[0] % 5


def _rewritten(order: str) -> str:
    """The question in a rewriter's order, and more of it."""
    question = re.search(r"<prompt-[^>]*>\n(.*?)\n</prompt", order, re.S)
    asked = question[1] if question else order
    return f"{asked} What could go wrong with it, and is it true that a pot of it keeps for hours?"


WORDS = (
    "ask bring check drink eat find give hear invite join keep learn make note open plan read see"
    " take use".split()
)
