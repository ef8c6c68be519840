"""The floors of the endpoint job: a fixed set of workers that do the same requests and nothing
else.

    python -m benchmarks.floor aiohttp|raw --base-url URL --m 200 --k 8 --out rows.jsonl

aiohttp: a bare aiohttp session. raw: keep-alive connections on asyncio.Protocol, made for this one
    job.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import orjson

from benchmarks.endpoint import JUDGE_USER, SLOTS, prompt_text

Post = Callable[[bytes], Awaitable[tuple[int, bytes]]]
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "reply",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"score": {"type": "integer"}},
            "required": ["score"],
        },
    },
}


class Raw(asyncio.Protocol):
    """One request at a time on one connection."""

    def __init__(self) -> None:
        self.buffer, self.need, self.status, self.start = b"", -1, 0, 0
        self.transport: Any = None
        self.reply: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        if self.need < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:") + 15
            stop = head.find(b"\r\n", at)
            self.status, self.start = int(head[9:12]), end + 4
            self.need = self.start + int(head[at : stop if stop > 0 else None])
        if len(self.buffer) >= self.need:
            body = self.buffer[self.start : self.need]
            self.buffer, self.need = b"", -1
            self.reply.set_result((self.status, body))


async def raw_posts(base_url: str) -> list[Post]:
    """A connection for each worker."""
    loop, u = asyncio.get_running_loop(), urlsplit(base_url)
    head = (
        f"POST {u.path}/chat/completions HTTP/1.1\r\nHost: {u.netloc}\r\nContent-Type:"
        " application/json\r\nContent-Length: "
    ).encode()

    def poster(c: Raw) -> Post:
        def post(body: bytes) -> Awaitable[tuple[int, bytes]]:
            c.reply = loop.create_future()
            c.transport.write(b"%s%d\r\n\r\n%s" % (head, len(body), body))
            return c.reply

        return post

    return [
        poster((await loop.create_connection(Raw, u.hostname, u.port))[1]) for _ in range(SLOTS)
    ]


async def aiohttp_posts(base_url: str) -> tuple[list[Post], Any]:
    """One session for all workers."""
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=SLOTS))

    async def post(body: bytes) -> tuple[int, bytes]:
        async with session.post(
            base_url + "/chat/completions", data=body, headers={"content-type": "application/json"}
        ) as r:
            return r.status, await r.read()

    return [post] * SLOTS, session


async def call(post: Post, model: str, text: str, seed: int, **more: Any) -> str | None:
    """One answer; None for a refusal that stands."""
    body = orjson.dumps(
        {
            "model": model,
            "temperature": 1.0,
            "seed": seed,
            "messages": [{"role": "user", "content": text}],
            **more,
        }
    )
    for attempt in range(8):
        status, raw = await post(body)
        if status == 200:
            return str(orjson.loads(raw)["choices"][0]["message"]["content"])
        if status != 429 and status < 500:
            return None
        await asyncio.sleep(min(8, 0.25 * 2**attempt) * random.uniform(0.5, 1))
    raise RuntimeError("gave up")


async def main() -> None:
    """All rows, each asked and judged."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("aiohttp", "raw"))
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--m", type=int, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--out", required=True)
    a = parser.parse_args()
    session = None
    if a.kind == "raw":
        posts = await raw_posts(a.base_url)
    else:
        posts, session = await aiohttp_posts(a.base_url)
    rows = ((i, j) for i in range(a.m) for j in range(a.k))
    with open(a.out, "wb") as f:  # noqa: PTH123

        async def worker(post: Post) -> None:
            for i, j in rows:
                question = prompt_text(i)
                answer = await call(post, "stub-gen", question, j)
                if answer is None:
                    continue
                asked = JUDGE_USER.replace("{{ question }}", question).replace(
                    "{{ answer }}", answer
                )
                rated = await call(post, "stub-judge", asked, j, response_format=SCHEMA)
                row = {
                    "row": i * a.k + j,
                    "answer": answer,
                    "score": orjson.loads(rated) if rated else None,
                }
                f.write(orjson.dumps(row) + b"\n")

        await asyncio.gather(*(worker(p) for p in posts))
    if session is not None:
        await session.close()


if __name__ == "__main__":
    asyncio.run(main())
