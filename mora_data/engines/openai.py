"""Any OpenAI-compatible HTTP endpoint: one `Endpoint` per list of base URLs, one `HttpEngine` per
role on it.

What a reply means, by type and status code, never by its words:
    200                       answers; counted, and fewer than asked are topped up by the caller
    408 409 425 429 5xx       may pass: tried again with backoff, the slot free while waiting
    no reply, no JSON         the same
    401 403 404               the base URL can't be used: it is taken out, and with the last one the
    run stops, state kept 200 of another model      the same
    any other 4xx             this request can't be answered: a logged failure, never asked again
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import urllib.error
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import EndpointError, MoraError, PendingRetry, SettingsError
from ..run.cache_key import wire, with_pattern
from ..run.cost import same_model
from ..run.log import Record
from ..run.stats import RunStats
from ..settings import BuildSettings, RoleSettings
from ..types import Answer, Request, Task
from .engine import OnRecord
from .http import CHAT, Fault, Reply
from .limiter import ConcurrencyLimiter, Permit
from .rates import RateLimiter, RateLimits
from .replicas import PROBE_S, Replica, Replicas, answers, get_json
from .replies import Passing, error_message, parse_reply

if TYPE_CHECKING:
    from tenacity import RetryCallState

TRIES = 8
REFUSED_S = 900.0  # 429s are bounded by time, not by tries
NEVER_ANSWERED_S = 5.0
TIMEOUT_S, TIMEOUT_S_PER_TOKEN = 60.0, 0.5
_NAP_S = 0.25  # how often a waiting call looks whether the run stops
_PASSING = frozenset((408, 409, 425, 429))
_UNUSABLE = frozenset((401, 403, 404))


class _WrongModel(Exception):
    """A reply of another model than the one asked for."""


class _Unusable(Exception):
    """The base URL can't be used by this run."""


class Route(NamedTuple):
    """What is asked for at a base URL, and how its replies are read."""

    path: str
    # body, choices asked for, what gets the model's name
    parse: Callable[[bytes, int, Callable[[object], None]], Record]
    missing: str = ""  # what to say where there is no such path
    at_root: bool = False  # of the server, not under /v1


CHAT_ROUTE = Route(CHAT, parse_reply)


class Call(NamedTuple):
    """One request on its way: what is sent, and what is done with the reply."""

    body: bytes
    asked: int  # choices
    on_record: OnRecord
    served: Callable[[object], None]  # looks at the model that the reply names
    longest: int  # tokens that the choices may have together
    timeout_s: float
    pace: RateLimits | None = None
    route: Route = CHAT_ROUTE


def opened(
    role: RoleSettings, build: BuildSettings, stats: RunStats, shared: dict[str, Any]
) -> HttpEngine:
    """Any OpenAI-compatible HTTP endpoint: vLLM, llama.cpp, OpenAI, ...

    Raises:
        SettingsError: no model is named and the endpoint serves another number than one.
        EndpointError: it can't be asked which models it serves.
    """
    urls = (role.base_url or "", *role.replicas)
    name = " ".join(urls)
    endpoint = shared.get(name)
    if endpoint is None:
        endpoint = shared[name] = Endpoint(urls[0], role, stats)
        endpoint.takes_patterns = all(takes_patterns(url, role) for url in urls)
    model = role.model or _only_model(urls, role, shared)
    limits = (role.requests_per_min, role.tokens_per_min)
    pace = _turns(f"{name} {model} {limits}", limits, shared) if any(limits) else None
    return HttpEngine(endpoint, role, model, pace)


def _turns(
    key: str, limits: tuple[float | None, float | None], shared: dict[str, Any]
) -> RateLimits:
    """The clock of the rate limits; `shared["turns"]` makes another one where it is not this
    process's own."""
    make: Callable[[str, tuple[float | None, float | None]], RateLimits] = shared.get(
        "turns", lambda key, limits: RateLimiter(*limits)
    )
    if key not in shared:
        shared[key] = make(key, limits)
    turns: RateLimits = shared[key]
    return turns


def _only_model(urls: tuple[str, ...], role: RoleSettings, shared: dict[str, Any]) -> str:
    key = f"{' '.join(urls)}#models"
    if key not in shared:
        shared[key] = served_models(urls, role)
    url, served = shared[key]
    if len(served) != 1:
        raise SettingsError(
            f"endpoint {url} serves {len(served)} models ({', '.join(served[:5]) or 'none'}): give"
            " --model"
        )
    return str(served[0])


class Endpoint:
    """The base URLs of one model: connections, slots and health. Roles with the same URLs share
    it."""

    def __init__(self, base_url: str, settings: RoleSettings, stats: RunStats) -> None:
        urls = (base_url, *settings.replicas)
        headers = _headers(settings)
        self.stats = stats
        self.limiter = ConcurrencyLimiter(settings.concurrency, len(urls))
        stats.limiters.append(self.limiter)
        self.takes_patterns = False
        self.replicas = Replicas(
            [Replica(url, headers, settings, self._count) for url in urls],
            self.limiter,
            stats,
            lambda url: answers(url, headers),
        )
        for replica in self.replicas.all:
            replica.check(CHAT)
        more = f" and {len(urls) - 1} more" if len(urls) > 1 else ""
        self.url = urls[0].rstrip("/") + more
        self._key_env = settings.api_key_env
        self._give_up_s = settings.give_up_s
        self._started = time.monotonic()
        self._last_ok: float | None = None

    async def post(self, call: Call) -> Record:
        """One request to the end: tried again while faults may pass.

        Raises:
            PendingRetry: the tries ran out.
            EndpointError: the endpoint can't be used.
        """
        try:
            return await self._once(call)
        except Passing as fault:
            with self.limiter.failing():
                return await self._again(call, fault)

    async def close(self) -> None:
        await self.replicas.close()

    def _count(self) -> None:
        self.stats.sent += 1

    async def _once(self, call: Call) -> Record:
        reserved = await self._turn(call) if call.pace is not None else 0.0
        if self.stats.replicas_out:
            self.replicas.look()
        permit = await self.limiter.take()
        try:
            if self.stats.stopped is not None:
                raise self.stats.stopped
            record = await self._exchange(call, permit)
            if call.pace is not None:
                await call.pace.settle(reserved, record.tokens[0], record.tokens[1], call.longest)
            return record
        except _Unusable as e:
            error = EndpointError(str(e))
            if self.replicas.take_out(permit.at, str(e)):
                raise Passing("unusable", str(e)) from e
            self.stats.stop(error)
            raise error from e
        except MoraError as e:
            self.stats.stop(e)
            raise
        finally:
            self.limiter.free(permit)

    async def _exchange(self, call: Call, permit: Permit) -> Record:
        replica = self.replicas.all[permit.at]
        try:
            reply = await replica.post(
                call.route.path, call.body, call.timeout_s, call.route.at_root
            )
            if reply.status == 200:
                record = call.route.parse(reply.body, call.asked, call.served)
                self._answered(permit)
                self.limiter.succeeded(permit)
                call.on_record(record)
                return record
            if reply.status == 429:
                self.limiter.refused(permit)
            return self._sorted_out(reply, call, permit)
        except _WrongModel as e:
            raise _Unusable(f"endpoint {replica.url} {e}") from e
        except Fault as e:
            if e.kind == "timeout":
                self.limiter.timed_out(permit)
            self.replicas.failed(permit.at, e.kind, str(e))
            raise Passing(e.kind, str(e)) from e
        except Passing as e:
            if e.kind != "429":
                self.replicas.failed(permit.at, e.kind, str(e))
            raise

    def _answered(self, permit: Permit) -> None:
        self._last_ok = time.monotonic()
        self.replicas.ok(permit.at)

    async def _turn(self, call: Call) -> float:
        """Wait for the rate limits; the tokens that are set aside."""
        assert call.pace is not None
        wait_s, reserved = await call.pace.reserve(len(call.body), call.longest)
        if wait_s > 0:
            with self.limiter.paced():
                await self._pause(wait_s)
        return reserved

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not on when the run stops."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self.stats.stopped is None:
            await asyncio.sleep(min(left, _NAP_S))

    def _sorted_out(self, reply: Reply, call: Call, permit: Permit) -> Record:
        said, url = error_message(reply.body), self.replicas.all[permit.at].url
        if reply.status in _PASSING or reply.status >= 500:
            raise Passing(str(reply.status), f"HTTP {reply.status} {said}", reply.retry_after)
        if reply.status in _UNUSABLE:
            raise _Unusable(self._unusable(url, reply.status, said, call.route.missing))
        if reply.status < 400:
            raise _Unusable(
                f"endpoint {url} answered HTTP {reply.status}: check --base-url (it ends in /v1)"
            )
        self._answered(permit)
        self.stats.failed[str(reply.status)] += 1
        record = Record(
            call.asked, (Answer("", "error", error=f"HTTP {reply.status}: {said}"),) * call.asked
        )
        call.on_record(record)
        return record

    def _unusable(self, url: str, status: int, said: str, missing: str) -> str:
        if status == 404 and missing:
            return f"endpoint {url} says 404 ({said}): {missing}"
        if status == 404:
            return (
                f"endpoint {url} says 404 ({said}): check --model (GET {url}/models lists what it"
                " serves) and that --base-url ends in /v1"
            )
        return (
            f"endpoint {url} says {status} ({said}): put a valid key into the environment variable"
            f" {self._key_env}"
        )

    async def _again(self, call: Call, fault: Passing) -> Record:
        from tenacity import AsyncRetrying, RetryError, retry_if_exception_type

        pending: Passing | None = fault
        try:
            again = retry_if_exception_type(Passing)
            async for attempt in AsyncRetrying(
                sleep=self._pause, retry=again, wait=_wait_s, stop=_stop
            ):
                with attempt:
                    if pending is not None:
                        first, pending = pending, None
                        raise first
                    return await self._once(call)
                failure = attempt.retry_state.outcome
                error = failure.exception() if failure is not None else None
                if isinstance(error, Passing):
                    self.stats.retries[error.kind] += 1
                    self._check_alive(error)
        except RetryError as e:
            last = e.last_attempt.exception()
            raise PendingRetry(f"{last} ({e.last_attempt.attempt_number} tries)") from last
        raise AssertionError("unreachable")

    def _check_alive(self, error: Passing) -> None:
        """Stop the whole run when nothing has worked for long enough: each row would only fail the
        same way.

        Raises:
            EndpointError: give up.
        """
        if error.kind == "429":
            return
        now = time.monotonic()
        if self._last_ok is None and now - self._started > NEVER_ANSWERED_S:
            raise EndpointError(
                f"endpoint {self.url} never answered ({error}): start the server or fix --base-url"
            ) from error
        if self._last_ok is not None and now - self._last_ok > self._give_up_s:
            raise EndpointError(
                f"endpoint {self.url} has not answered for {self._give_up_s:g} s ({error}): "
                "restart it and run the same command again, what was answered is kept"
            ) from error


class HttpEngine:
    """One role's model on an endpoint."""

    simulated = False

    def __init__(
        self, endpoint: Endpoint, settings: RoleSettings, model: str, pace: RateLimits | None = None
    ) -> None:
        self.endpoint = endpoint
        self.model = model
        self.revision = settings.revision
        self.extra: Mapping[str, Any] = settings.extra_body
        self.n_per_request = 1 << 30 if settings.n_per_request == "all" else settings.n_per_request
        self._pace = pace
        self._timeout_s = settings.timeout_s
        self._names = {model, *settings.served_as}

    async def send(
        self,
        request_bytes: bytes,
        request: Request,
        n: int,
        first: int,
        seed: int,
        on_record: OnRecord,
    ) -> Record:
        sampling = request.sampling
        timeout_s = self._timeout_s or TIMEOUT_S + TIMEOUT_S_PER_TOKEN * sampling.max_tokens
        if request.task != "chat":
            return await self.endpoint.post(
                Call(
                    request_bytes,
                    1,
                    on_record,
                    self._served,
                    1,
                    timeout_s,
                    self._pace,
                    _route(request.task),
                )
            )
        if (
            self.endpoint.takes_patterns
            and sampling.pattern is not None
            and sampling.schema is not None
        ):
            request_bytes = with_pattern(request_bytes, sampling.schema, sampling.pattern)
        body = wire(request_bytes, n, (seed + first) & 0x7FFFFFFF)
        return await self.endpoint.post(
            Call(body, n, on_record, self._served, n * sampling.max_tokens, timeout_s, self._pace)
        )

    def _served(self, name: object) -> None:
        """Raises _WrongModel when a reply names another model than the one asked for."""
        if name in self._names or not name or not isinstance(name, str) or "*" in self._names:
            return
        if not same_model(self.model, name):
            raise _WrongModel(
                f"answers as {name[:80]!r} where {self.model!r} was asked: correct --model, or put"
                " that name into served_as where it is the same model"
            )
        self._names.add(name)

    @property
    def wants_more(self) -> bool:
        return self.endpoint.limiter.wants_more

    async def changed(self) -> None:
        await self.endpoint.limiter.changed()

    async def close(self) -> None:
        await self.endpoint.close()


def _route(task: Task) -> Route:
    from .classify import route

    return route(task)


def _wait_s(state: RetryCallState) -> float:
    """Retry-After (times 1 to 1.25), else 0.25 s doubling to 8 s (times 0.5 to 1)."""
    fault = state.outcome.exception() if state.outcome is not None else None
    if isinstance(fault, Passing) and fault.wait_s is not None:
        return fault.wait_s * random.uniform(1.0, 1.25)
    return float(min(8.0, 0.25 * 2 ** (state.attempt_number - 1)) * random.uniform(0.5, 1.0))


def _stop(state: RetryCallState) -> bool:
    fault = state.outcome.exception() if state.outcome is not None else None
    if isinstance(fault, Passing) and fault.kind == "429":
        return (state.seconds_since_start or 0.0) > REFUSED_S
    if isinstance(fault, Passing) and fault.kind in ("refused", "dns"):
        return False  # nothing was asked: the endpoint's health decides
    return state.attempt_number >= TRIES


def _headers(settings: RoleSettings) -> dict[str, str]:
    key = os.environ.get(settings.api_key_env)
    return {"Authorization": f"Bearer {key}"} if key else {}


def takes_patterns(base_url: str, settings: RoleSettings) -> bool:
    """Whether the server is a vLLM of 0.12 or later, which takes `structured_outputs`; False when
    it can't be told."""
    root, headers = base_url.rstrip("/").removesuffix("/v1"), _headers(settings)
    try:
        models = get_json(base_url.rstrip("/") + "/models", headers, PROBE_S)["data"]
        if {m.get("owned_by") for m in models} != {"vllm"}:
            return False
        version = str(get_json(root + "/version", headers, PROBE_S)["version"])
        return tuple(int(n) for n in version.split(".")[:2]) >= (0, 12)
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return False


def served_models(base_urls: tuple[str, ...], settings: RoleSettings) -> tuple[str, list[str]]:
    """The first of the base URLs that answers, and the names of the models that it lists.

    Raises:
        EndpointError: none can be asked.
    """
    deadline = time.monotonic() + NEVER_ANSWERED_S
    while True:
        for i, url in enumerate(base_urls, 1):
            try:
                return url, [
                    str(m["id"])
                    for m in get_json(url.rstrip("/") + "/models", _headers(settings), 10.0)["data"]
                ]
            except urllib.error.HTTPError as e:
                e.close()
                if i == len(base_urls):
                    raise EndpointError(
                        f"endpoint {url} says {e.code} to GET /models: check --base-url (it ends in"
                        f" /v1) and the key in {settings.api_key_env}, or give --model"
                    ) from e
            except (OSError, HTTPException, ValueError, KeyError, TypeError) as e:
                if i == len(base_urls) and (
                    time.monotonic() > deadline or not isinstance(e, OSError)
                ):
                    why = getattr(e, "reason", None) or e
                    raise EndpointError(
                        f"endpoint {url} can't be asked for its models ({why}): start the server, "
                        "fix --base-url, or give --model"
                    ) from e
        time.sleep(0.5)
