"""The one function that every model call goes through: first the answer log, then the engine.

    ask = CachedClient(engines, log, seed=0, stats=stats)
    answers = await ask(Request("policy", messages, sampling, "presample", prompt_id, n=16))

Resume is replay: a coroutine run again gets the answers already paid for at once, and only the rest
is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from ..run.log import AnswerLog, Record
from ..run.stats import RunStats
from ..run.tasks import all_of
from ..text import seed_of
from ..types import Answer, Request, Role
from .engine import Engine, encode, request_key

SILENT = 3  # replies of a role without a text; one alone is chance


def key_of_call(key: Any) -> bytes:
    """12 bytes that name a call that no engine makes."""
    tree = orjson.dumps(key, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return hashlib.sha256(b"call\n" + tree).digest()[:12]


@dataclass(slots=True)
class _Call:
    """A request with its key and the list its answers go to."""

    request: Request
    engine: Engine
    request_bytes: bytes
    key: bytes
    seed: int
    answers: list[Answer | None]

    def fill(self, first: int, record: Record) -> None:
        start = first - self.request.first
        for i, answer in enumerate(record.answers, start):
            if 0 <= i < len(self.answers):
                self.answers[i] = answer


class _Abandoned(Exception):
    """The caller that sent was cancelled; another that waits for the same reply sends anew."""


class CachedClient:
    """Asks through one partition's log."""

    def __init__(
        self, engines: Mapping[Role, Engine], log: AnswerLog, seed: int, stats: RunStats
    ) -> None:
        self._engines = engines
        self._log = log
        self._seed = seed
        self._stats = stats
        self.answers = 0  # handed out, replayed or fresh
        # under way; the future of those who wait for the same reply, where somebody does
        self._pending: dict[tuple[bytes, int], asyncio.Future[Record] | None] = {}

    async def __call__(self, request: Request) -> list[Answer]:
        """The request's answers in index order; one with `error` set is a failure that no retry can
        mend.

        Raises:
            PendingRetry: a sample could not be had now; what came is in the log.
            EndpointError: the endpoint can't be used at all.
        """
        self._stats.calls += 1
        engine = self._engines[request.role]
        request_bytes = encode(request, engine.model, engine.extra)
        seed = seed_of(self._seed, request.prompt_id, request.purpose)
        key = request_key(request_bytes, request.purpose, seed, engine.revision)
        call = _Call(request, engine, request_bytes, key, seed, [None] * request.n)
        groups = self._replay(call)
        if len(groups) == 1:
            await self._group(call, *groups[0])
        elif groups:
            await all_of(self._group(call, first, n) for first, n in groups)
        self.answers += request.n
        return [a if a is not None else Answer("", "error", error="missing") for a in call.answers]

    def _replay(self, call: _Call) -> list[tuple[int, int]]:
        """Take from the log what is there; what is missing, as (first, n) requests.

        A record that came short of what it asked for is followed by single requests, so that a run
        cut in the middle of topping up asks for the same samples in the same way as one that was
        not.
        """
        request, log = call.request, self._log
        end = request.first + request.n
        groups: list[tuple[int, int]] = []
        i = short_until = 0
        while i < end:
            record = log.get(call.key, i)
            if record is not None:
                call.fill(i, record)
                self._stats.heard(request.prompt_id)
                if self._stats.on_record is not None:
                    self._stats.on_record(request, call.key + i.to_bytes(4, "big"), record)
                n = len(record.answers)
                if log.is_old(call.key, i):
                    self._stats.replayed += max(0, min(i + n, end) - max(i, request.first))
                short_until = i + record.asked if n < record.asked else short_until
                i += n
            elif i < request.first:
                i = request.first if request.first >= short_until else i + 1
            elif i < short_until:
                groups.append((i, 1))
                i += 1
            else:
                stop = i + 1
                while stop < end and not log.has(call.key, stop):
                    stop += 1
                # vLLM refuses greedy n > 1
                step = call.engine.n_per_request if request.sampling.temperature > 0 else 1
                groups += [(j, min(step, stop - j)) for j in range(i, stop, step)]
                i = stop
        return groups

    async def _group(self, call: _Call, first: int, n: int) -> None:
        """One server call, and single ones for what it leaves out."""
        request = call.request
        if (n, first) != (request.n, request.first):
            request = request.part(n, first)

        def keep(record: Record) -> None:
            self._keep(call, first, record)

        def send() -> Awaitable[Record]:
            return call.engine.send(request, call.request_bytes, call.seed, keep)

        self._stats.asked_for[request.prompt_id] = request.purpose
        record = await self._shared(call.key, first, send)
        call.fill(first, record)
        came = len(record.answers)
        if came < n:
            await all_of(self._group(call, i, 1) for i in range(first + came, first + n))

    async def cached(
        self, key: Any, call: Callable[[], Awaitable[Any]], prompt_id: str = ""
    ) -> Any:
        """The JSON value of a call that no engine makes, as a plug-in's own server: from the log
        where the same `key` is there, else from `call`, then logged. What it raises is not logged.
        """
        base = key_of_call(key)
        record = self._log.get(base, 0)
        if record is None:

            async def made() -> Record:
                value = await call()
                new = Record(1, (Answer(orjson.dumps(value).decode()),))
                self._log.put(base, 0, new, prompt_id)
                self._stats.sent += 1
                return new

            record = await self._shared(base, 0, made)
        elif self._log.is_old(base, 0):
            self._stats.replayed += 1
        self.answers += 1
        return orjson.loads(record.answers[0].text)

    async def _shared(
        self, base: bytes, first: int, send: Callable[[], Awaitable[Record]]
    ) -> Record:
        """What `send` brings; a second caller with the same key waits for the first one's reply."""
        key = (base, first)
        while key in self._pending:
            running = self._pending[key]
            if running is None:
                running = self._pending[key] = asyncio.get_running_loop().create_future()
            with contextlib.suppress(_Abandoned):
                return await asyncio.shield(running)
        self._pending[key] = None
        self._stats.under_way += 1
        try:
            record = await send()
        except BaseException as e:
            if (shared := self._pending.pop(key)) is not None:
                shared.set_exception(e if isinstance(e, Exception) else _Abandoned())
                shared.exception()  # seen: those who waited may be gone
            raise
        finally:
            self._stats.under_way -= 1
        if (shared := self._pending.pop(key)) is not None:
            shared.set_result(record)
        return record

    def _keep(self, call: _Call, first: int, record: Record) -> None:
        if self._log.has(call.key, first):
            self._stats.repeated += len(record.answers)
        self._log.put(call.key, first, record, call.request.prompt_id)
        last = record.answers[-1]
        if last.tokens_out and not last.text:
            role = call.request.role
            self._stats.silent[role] += 1
            if self._stats.silent[role] == SILENT and self._stats.on_note is not None:
                cut_off = last.finish_reason == "length"
                self._stats.on_note(_advice(role, call.request.sampling.max_tokens, cut_off))
        if self._stats.on_record is not None:
            self._stats.on_record(call.request, call.key + first.to_bytes(4, "big"), record)
        account = self._stats.accounts.get(call.request.role, call.engine.model)
        self._stats.count(account, call.request.prompt_id, record.tokens)


def _advice(role: Role, max_tokens: int, cut_off: bool) -> str:
    """What to do where a role's replies have tokens and no text."""
    if cut_off:
        setting = f"{role}.max_tokens" if ":" not in role else "its endpoint's max_tokens"
        what = (
            f"max_tokens = {max_tokens} ends replies inside the model's thoughts: set {setting}"
            f" to {max(4096, 4 * max_tokens)} or so, or switch its thinking off"
        )
    else:
        what = "replies have tokens and no text, as where a server takes all for thoughts"
    return f"{role}: {what} (docs/endpoints.md, Reasoning models)"
