"""Any OpenAI-compatible HTTP endpoint: one `Endpoint` per list of base URLs, one `HttpEngine` per
role on it.

What a reply means:

    200                       answers; counted, and fewer than asked are topped up by the caller
    200 with an error in it   what its code or its words mean
    200 of another model      the base URL can't be used: it is taken out, and with the last one the
                              run stops, state kept
    401 402 403 404           the same; so does 429 where a quota is used up
    408 409 425 429 5xx       may pass: tried again with backoff, the permit free while waiting
    no reply, no JSON         the same
    any other 4xx             the row, the request's form or the endpoint is at fault: `_settle`

A refused form is written otherwise and sent again (`dialect`). The refusal of a row, which is too
long or was moderated, is a logged failure, never asked again. Where a short harmless request of the
same form is refused, too, every row would be: the run stops, and nothing is logged.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import orjson

from ..errors import EndpointError, MoraError, PendingRetry, SettingsError
from ..run.cost import same_model
from ..run.limiter import ConcurrencyLimiter, Permit, RateLimiter
from ..run.log import Record
from ..run.stats import RunStats
from ..settings import BuildSettings, RoleSettings
from ..text import one_line
from ..types import Request, Task
from .dialect import PLAIN, Dialect, Learner, Refusal, learner_of, probe_of, shape_of
from .engine import (
    OnRecord,
    Shared,
    endpoint_key,
    extra_of,
    n_per_request,
    request_body,
    with_pattern,
)
from .http import NO_SERVER, Fault, Patience, out_of_files
from .replicas import CHAT, Replica, Replicas, listed_models, served_models, takes_patterns
from .replies import (
    PASSING,
    RATING_PATHS,
    ErrorReply,
    TransientFault,
    failure,
    parse_chat,
    parse_rating,
)

if TYPE_CHECKING:
    from tenacity import Future

LOADING = frozenset(("502", "503", "504", "529"))  # from a server that starts or is full
MAY_PASS = frozenset((*PASSING, *map(int, LOADING)))  # whatever else a server says
LONG_WAIT_S = 30.0  # is told of
TRIES = 8
REFUSED_S = 900.0  # 429s are bounded by time, not by tries
NEVER_ANSWERED_S = 5.0
# what a first reply may take besides: weights are loaded, CUDA graphs captured
FIRST_REPLY_S = 600.0
TIMEOUT_S, TIMEOUT_S_PER_TOKEN = 60.0, 0.5
SLOWER = 4.0  # than the slowest reply of late, before silence is taken for a fault
_FORGET = 0.98  # with each reply, of how slow the slowest was
_TOTAL = 10.0  # for one reply, while others come
_NAP_S = 0.25  # how often a waiting call looks whether the run stops


class _WrongModel(Exception):
    """A reply under a name that is not like the model's; `accept` takes it for the same model."""

    def __init__(self, asked: str, name: str, accept: Callable[[], None]) -> None:
        super().__init__(
            f"answers as {name[:80]!r} where {asked!r} was asked: correct --model, or put that name"
            " into served_as where it is the same model"
        )
        self.asked, self.accept = asked, accept


class _Unusable(Exception):
    """The base URL can't be used by this run."""


class _Refused(Exception):
    """A request that was written in `dialect` is refused."""

    def __init__(self, refusal: Refusal, dialect: Dialect, url: str, at: int = 0) -> None:
        super().__init__(refusal.message)
        self.refusal, self.dialect, self.url, self.at = refusal, dialect, url, at


class ReplyTimes:
    """How long one role's replies took, and so how long the next one is waited for.

    `timeout_s` bounds every reply where it is given. Else the first may take 600 s and 0.5 s for
    each token that it may have, over its `n` choices; later ones 60 s and the longer of 0.5 s for
    each token of one choice and 4 times the slowest reply of late, token for token.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._slowest: float | None = None  # seconds per token that a reply might have had

    def patience(self, n: int, longest: int) -> Patience:
        """For a reply of `n` choices with up to `longest` tokens in all."""
        if self._timeout_s is not None:
            return Patience(self._timeout_s, self._timeout_s)
        if self._slowest is None:
            silence_s = FIRST_REPLY_S + TIMEOUT_S_PER_TOKEN * longest
        else:
            slow = max(TIMEOUT_S_PER_TOKEN / n, SLOWER * self._slowest)
            silence_s = TIMEOUT_S + slow * longest
        return Patience(silence_s, _TOTAL * silence_s)

    def note(self, seconds: float, longest: int) -> None:
        """A reply that might have had `longest` tokens took so long."""
        now, before = seconds / longest, _FORGET * (self._slowest or 0.0)
        self._slowest = now if now > before else before


class Call(NamedTuple):
    """One request on its way: what is sent, and what is done with the reply."""

    body: bytes
    n: int  # choices asked for
    read: Callable[[bytes], Record]  # the body of a reply
    on_record: OnRecord
    longest: int  # tokens that the choices may have together
    times: ReplyTimes
    rate_limiter: RateLimiter | None = None
    task: Task = "chat"
    learner: Learner | None = None  # of chat requests
    shape: object = None  # what of the form differs between requests to one model

    def patience(self) -> Patience:
        """How long its reply is waited for."""
        return self.times.patience(self.n, self.longest)


def open_openai(
    role: RoleSettings, build: BuildSettings, stats: RunStats, shared: Shared
) -> HttpEngine:
    """Any OpenAI-compatible HTTP endpoint: vLLM, llama.cpp, OpenAI, ...

    Raises:
        SettingsError: no model is named and the endpoint serves another number than one.
        EndpointError: it can't be asked which models it serves.
    """
    urls = (role.base_url or "", *role.replicas)
    name = endpoint_key(role)

    def make() -> Endpoint:
        endpoint = Endpoint(urls[0], role, stats)
        endpoint.takes_patterns = all(takes_patterns(url, role) for url in urls)
        endpoint.say = shared.log
        return endpoint

    endpoint = shared.once(name, make)
    model = role.model
    if not model:
        url, served = shared.once(
            f"{name}#models", lambda: served_models(urls, role, NEVER_ANSWERED_S)
        )
        if len(served) != 1:
            raise SettingsError(
                f"endpoint {url} serves {len(served)} models ({', '.join(served[:5]) or 'none'}):"
                " give --model"
            )
        model = served[0]
    limits = (role.requests_per_min, role.tokens_per_min)
    key = f"{name} {model} {limits}"
    limiter = shared.once(key, lambda: shared.rate_limiter(key, limits)) if any(limits) else None
    return HttpEngine(
        endpoint, role, model, limiter, learner_of(endpoint.url, model, role, stats, shared)
    )


class Endpoint:
    """The base URLs of one model: connections, permits and health. Roles with the same URLs, key
    and transport share it."""

    def __init__(self, base_url: str, settings: RoleSettings, stats: RunStats) -> None:
        urls = (base_url, *settings.replicas)
        self.stats = stats
        self.limiter = ConcurrencyLimiter(settings.concurrency, len(urls))
        stats.limiters.append(self.limiter)
        self.takes_patterns = False
        self.replicas = Replicas(urls, settings, self.limiter, stats)
        for replica in self.replicas.all:
            replica.check(CHAT)
        more = f" and {len(urls) - 1} more" if len(urls) > 1 else ""
        self.url = urls[0].rstrip("/") + more
        self._settings = settings
        self._first_sent: float | None = None
        self._answered = False
        self._starts = True  # no answer since it was not there
        self._failing_since: float | None = None  # with no answer since
        self.say: Callable[[str], None] = lambda line: None
        self._said: set[str] = set()  # kinds of waits that a line was printed of

    async def post(self, call: Call) -> Record:
        """One request to the end: tried again while faults may pass.

        Raises:
            PendingRetry: the tries ran out.
            EndpointError: the endpoint can't be used.
        """
        try:
            return await self._settled(call)
        except TransientFault as fault:
            with self.limiter.failing():
                return await self._retry(call, fault)

    async def close(self) -> None:
        await self.replicas.close()

    async def _once(self, call: Call) -> Record:
        reserved = await self._reserve(call) if call.rate_limiter is not None else 0.0
        if self.stats.replicas_out:
            self.replicas.probe_due()
        permit = await self.limiter.take()
        try:
            if self.stats.stopped is not None:
                raise self.stats.stopped
            record = await self._exchange(call, permit)
            if call.rate_limiter is not None:
                tokens_in, tokens_out, _ = record.tokens
                await call.rate_limiter.settle(reserved, tokens_in, tokens_out, call.longest)
            return record
        except _Unusable as e:
            error = EndpointError(str(e))
            if self.replicas.take_out(permit.at, str(e)):
                raise TransientFault("unusable", str(e)) from e
            self.stats.stop(error)
            raise error from e
        except MoraError as e:
            self.stats.stop(e)
            raise
        finally:
            self.limiter.free(permit)

    async def _exchange(self, call: Call, permit: Permit) -> Record:
        replica, learner = self.replicas.all[permit.at], call.learner
        dialect = PLAIN if learner is None else learner.dialect
        sent = time.monotonic()
        if self._first_sent is None:
            self._first_sent = sent
        try:
            path = dialect.path + CHAT if call.task == "chat" else RATING_PATHS[call.task]
            reply = await replica.post(
                path, dialect.write(call.body), call.patience, at_root=call.task != "chat"
            )
            if reply.status == 200:
                try:
                    try:
                        record = call.read(reply.body)
                    except _WrongModel as e:
                        await self._look_up(e, replica)
                        record = call.read(reply.body)
                except ErrorReply as e:
                    refusal, asked_wait_s = Refusal(200, e.body), None
                else:
                    self._note_success(permit)
                    call.times.note(time.monotonic() - sent, call.longest)
                    self.limiter.succeeded(permit)
                    if learner is not None:
                        learner.works.add(call.shape)
                    call.on_record(record)
                    return record
            else:
                refusal, asked_wait_s = Refusal(reply.status, reply.body), reply.retry_after
            if refusal.status == 429:
                self.limiter.refused(permit)
            self._no_answer(refusal, asked_wait_s, call, permit, dialect)
        except Fault as e:
            if out_of_files():
                raise EndpointError(
                    f"no connection to {replica.url}: this process may open no more files; raise"
                    " the limit (ulimit -n) or lower concurrency"
                    f" ({self._settings.concurrency}), and run the same command again, what was"
                    " answered is kept"
                ) from e
            if e.kind == "certificate":
                raise _Unusable(
                    f"endpoint {replica.url} shows a certificate that nothing vouches for"
                    f" ({e}): give ca_file, the PEM file of who signed it"
                ) from e
            if e.kind == "timeout":
                self.limiter.timed_out(permit)
                if self._answered:  # the next wait is about twice as long
                    call.times.note(2 * (time.monotonic() - sent) / SLOWER, call.longest)
            self.replicas.failed(permit.at, e.kind, str(e))
            raise TransientFault(e.kind, str(e)) from e
        except TransientFault as e:
            if e.kind != "429":
                self.replicas.failed(permit.at, e.kind, str(e))
            raise

    async def _look_up(self, wrong: _WrongModel, replica: Replica) -> None:
        """A deployment, a router or a file may have a name of its own: the server's list of models
        decides, where it has one.

        Raises:
            _Unusable: it lists others, and not the one asked for.
        """
        listed = await asyncio.to_thread(listed_models, replica.url, self._settings)
        if listed is not None and not any(same_model(wrong.asked, name) for name in listed):
            raise _Unusable(f"endpoint {replica.url} {wrong}") from wrong
        wrong.accept()

    def _note_success(self, permit: Permit) -> None:
        self._answered, self._starts, self._failing_since = True, False, None
        self.replicas.succeeded(permit.at)

    async def _reserve(self, call: Call) -> float:
        """Wait for the rate limits; returns the tokens that are set aside."""
        assert call.rate_limiter is not None
        wait_s, reserved = await call.rate_limiter.reserve(len(call.body), call.longest)
        if wait_s > 0:
            with self.limiter.paced():
                await self._pause(wait_s)
        return reserved

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not on when the run stops."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self.stats.stopped is None:
            await asyncio.sleep(min(left, _NAP_S))

    def _no_answer(
        self,
        refusal: Refusal,
        asked_wait_s: float | None,
        call: Call,
        permit: Permit,
        dialect: Dialect,
    ) -> NoReturn:
        """Raises what becomes of a request that got no answer; `asked_wait_s` is from a header."""
        status, url = refusal.status, self.replicas.all[permit.at].url
        says = f"endpoint {url} says {status} ({refusal.message})"
        learner = call.learner
        new = learner is not None and call.shape not in learner.works
        if refusal.of_account:
            raise _Unusable(f"{says}: add credit or raise the limit; what was answered is kept")
        if status in PASSING or status >= 500:
            if new and status not in MAY_PASS and self._other_form(refusal, call, dialect):
                raise _Refused(refusal, dialect, url)
            detail = f"HTTP {status} {refusal.message}"
            wait_s = refusal.wait_s if asked_wait_s is None else asked_wait_s
            raise TransientFault(str(status), detail, wait_s)
        known = learner is not None and learner.works and self.replicas.all[permit.at].answered
        if not known and (status == 404 or (status == 400 and refusal.of_model)):
            lacks_v1 = not (dialect.path or url.partition("?")[0].endswith("/v1"))
            if new and lacks_v1 and not refusal.of_model:
                raise _Refused(refusal, dialect, url)
            hint = (
                f"check --model (GET {url}/models lists what it serves) and that --base-url ends in"
                " /v1"
            )
            if call.task != "chat":
                hint = (
                    "check the reward's `endpoint`: it has to be a server with"
                    f" {RATING_PATHS[call.task]}, and to serve that model"
                )
            raise _Unusable(f"{says}: {hint}")
        if status == 401 or (status == 403 and learner is None):
            key = self._settings.api_key_env
            raise _Unusable(f"{says}: put a valid key into the environment variable {key}")
        if status < 400:
            raise _Unusable(
                f"endpoint {url} answered HTTP {status}: check its base URL (it ends in /v1)"
            )
        self._note_success(permit)
        raise _Refused(refusal, dialect, url, permit.at)

    @staticmethod
    def _other_form(refusal: Refusal, call: Call, dialect: Dialect) -> Dialect | None:
        """How to write instead, where the refusal names a field."""
        if refusal.status == 404:
            return replace(dialect, path="/v1")
        tree = dialect.apply(orjson.loads(call.body))
        name = refusal.field(tree)
        return dialect.next_for(name, tree) if name else None

    async def _settled(self, call: Call) -> Record:
        """One request, written otherwise as long as a refusal teaches how."""
        while True:
            try:
                return await self._once(call)
            except _Refused as refused:
                record = await self._settle(call, refused)
                if record is not None:
                    return record

    async def _settle(self, call: Call, refused: _Refused) -> Record | None:
        """What a refusal means: a record of failure where the row is at fault, None where the
        request is to be sent again in another form.

        Raises:
            EndpointError: every request would be refused.
            TransientFault: it can't be told now.
        """
        learner, refusal = call.learner, refused.refusal
        # too many tokens may be asked of the model, or of the model with this prompt
        of_row = refusal.of_row and not refusal.of_length
        if learner is None or of_row:
            return self._row_failed(call, refusal)
        async with learner.lock:
            if self.stats.stopped is not None:
                raise self.stats.stopped
            if learner.dialect != refused.dialect:
                return None  # another request has learned since
            if call.shape in learner.works:
                return self._row_failed(call, refusal)
            other = None
            if not (refusal.of_length or refusal.status == 403):
                other = self._other_form(refusal, call, refused.dialect)
            if other is None:
                other = await self._try_forms(call, refused)
            if other is None:
                error = EndpointError(self._no_form(refused))
                if refusal.status == 403 and self.replicas.take_out(refused.at, str(error)):
                    return None
                self.stats.stop(error)
                raise error
            if other == refused.dialect:
                learner.works.add(call.shape)
                return self._row_failed(call, refusal)
            learner.adopt(other)
            return None

    def _no_form(self, refused: _Refused) -> str:
        """What to do where a short harmless request is refused, too."""
        refusal = refused.refusal
        says = f"(HTTP {refusal.status}: {refusal.message})"
        if refusal.status == 403:
            key = self._settings.api_key_env
            return (
                f"endpoint {refused.url} lets nobody in {says}: put a valid key into the"
                f" environment variable {key}, or ask for access to the model"
            )
        if refusal.of_length:
            return f"endpoint {refused.url} refuses so many tokens {says}: lower max_tokens"
        return (
            f"endpoint {refused.url} refuses every request of this form {says}: correct the"
            " setting that it names, or see docs/endpoints.md"
        )

    async def _try_forms(self, call: Call, refused: _Refused) -> Dialect | None:
        """A form in which a short harmless request is answered: the same one (then the row is at
        fault), the fullest that works, or None."""
        dialect, refusal = refused.dialect, refused.refusal
        body = probe_of(call.body, refusal.of_length)
        forms = [dialect, *dialect.simpler(orjson.loads(body))]
        if refusal.of_length or refusal.status == 403:
            forms = forms[:1]
        for form in forms[:2]:
            if await self._takes(call, body, form):
                break
        else:
            return None
        if form == dialect:
            return dialect
        for form in forms[2:]:
            if await self._takes(call, body, form):
                return form
        return forms[1]

    async def _takes(self, call: Call, body: bytes, form: Dialect) -> bool:
        try:
            await self._once(
                call._replace(body=body, on_record=lambda r: None, learner=Learner(form))
            )
        except _Refused:
            return False
        return True

    def _row_failed(self, call: Call, refusal: Refusal) -> Record:
        """Log a failure that no retry can mend."""
        self.stats.failed[str(refusal.status)] += 1
        record = failure(call.n, f"HTTP {refusal.status}: {refusal.message}")
        call.on_record(record)
        return record

    async def _retry(self, call: Call, fault: TransientFault) -> Record:
        """Further tries; the fault that led here counts as the first one."""
        from tenacity import AsyncRetrying, RetryError, retry_if_exception_type

        faults = [fault]

        async def attempt() -> Record:
            if faults:
                raise faults.pop()
            return await self._settled(call)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(TransientFault),
            sleep=self._pause,
            wait=lambda state: _wait_s(_fault_of(state.outcome), state.attempt_number),
            stop=lambda state: self._is_last_try(
                _fault_of(state.outcome), state.attempt_number, state.seconds_since_start or 0.0
            ),
            after=lambda state: self._note_fault(_fault_of(state.outcome)),
        )
        try:
            return await retrying(attempt)
        except RetryError as e:
            last = e.last_attempt.exception()
            tries = e.last_attempt.attempt_number
            if not self._answered and _fault_of(e.last_attempt).kind == "timeout":
                raise self._silent(str(last)) from last
            raise PendingRetry(f"{last} ({tries} tries)") from last

    def _note_fault(self, fault: TransientFault) -> None:
        self.stats.retries[fault.kind] += 1
        self._check_alive(fault)
        self._starts |= fault.kind in NO_SERVER
        loads = fault.kind in LOADING and self._starts
        if (loads or (fault.wait_s or 0.0) >= LONG_WAIT_S) and fault.kind not in self._said:
            self._said.add(fault.kind)
            longest = FIRST_REPLY_S if loads else fault.wait_s
            self.say(f"endpoint {self.url} is waited for, up to {longest:.4g} s ({fault})")

    def _is_last_try(self, fault: TransientFault, tries: int, seconds: float) -> bool:
        if fault.kind == "429":
            return seconds > REFUSED_S
        # where nothing was asked, or a model is loaded, the endpoint's health decides
        if fault.kind in NO_SERVER or (fault.kind in LOADING and self._starts):
            return False
        return tries >= TRIES

    def _check_alive(self, error: TransientFault) -> None:
        """Stop the whole run when nothing has worked for long enough: each row would only fail the
        same way.

        Raises:
            EndpointError: give up.
        """
        if error.kind == "429":
            return
        now, silent = time.monotonic(), error.kind == "timeout"
        if self._failing_since is None:
            self._failing_since = now
        if not self._answered and self._first_sent is not None:
            patient = silent or error.kind in LOADING
            if now - self._first_sent <= (FIRST_REPLY_S if patient else NEVER_ANSWERED_S):
                return
            if silent:
                raise self._silent(str(error)) from error
            remedy = "start the server or correct its base URL"
            if error.kind.isdecimal():
                remedy = "its log says why; what was answered is kept"
            raise EndpointError(
                f"endpoint {self.url} never answered ({error}): {remedy}"
            ) from error
        give_up_s = self._settings.give_up_s
        if error.kind in LOADING and self._starts:  # again
            give_up_s = max(give_up_s, FIRST_REPLY_S)
        if now - self._failing_since > give_up_s:
            if silent:
                raise self._silent(str(error)) from error
            raise EndpointError(
                f"endpoint {self.url} has not answered for {give_up_s:g} s ({error}): "
                "restart it and run the same command again, what was answered is kept"
            ) from error

    def _silent(self, fault: str) -> EndpointError:
        """It takes requests and does not answer."""
        when = "has answered nothing of late" if self._answered else "has not answered yet"
        at_once = self._settings.concurrency
        return EndpointError(
            f"endpoint {self.url} takes connections and {when} ({fault}): see that its model"
            f" is loaded, lower concurrency ({at_once}) or n_per_request, or raise"
            " timeout_s, and run the same command again, what was answered is kept"
        )


class HttpEngine:
    """One role's model on an endpoint."""

    simulated = False

    def __init__(
        self,
        endpoint: Endpoint,
        settings: RoleSettings,
        model: str,
        rate_limiter: RateLimiter | None = None,
        learner: Learner | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.learner = Learner() if learner is None else learner
        self.model = model
        self.revision = settings.revision
        self.extra = extra_of(settings)
        self._n_per_request = n_per_request(settings)
        self._rate_limiter = rate_limiter
        self._times = ReplyTimes(settings.timeout_s)
        self._names = {model, *settings.served_as, *self.learner.dialect.answers_as}

    async def send(
        self, request: Request, request_bytes: bytes, seed: int, on_record: OnRecord
    ) -> Record:
        sampling, endpoint = request.sampling, self.endpoint
        times, limiter = self._times, self._rate_limiter
        if request.task != "chat":
            read = partial(parse_rating, request.task, asked=1, served=self._served)
            return await endpoint.post(
                Call(request_bytes, 1, read, on_record, 1, times, limiter, request.task)
            )
        if endpoint.takes_patterns and sampling.pattern is not None and sampling.schema is not None:
            request_bytes = with_pattern(request_bytes, sampling.schema, sampling.pattern)
        n = request.n
        body = request_body(request_bytes, n, (seed + request.first) & 0x7FFFFFFF)
        return await endpoint.post(
            Call(
                body,
                n,
                partial(parse_chat, asked=n, served=self._served, sampling=sampling),
                on_record,
                n * sampling.max_tokens,
                times,
                limiter,
                learner=self.learner,
                shape=shape_of(request),
            )
        )

    def _served(self, name: object) -> None:
        """Raises _WrongModel when a reply names another model than the one asked for."""
        if name in self._names or not name or not isinstance(name, str) or "*" in self._names:
            return
        if not same_model(self.model, name):
            raise _WrongModel(self.model, name, lambda: self._accept(name))
        self._accept(name)

    def _accept(self, name: str) -> None:
        self._names.add(name)
        self.learner.note_name(one_line(name, 80))

    @property
    def n_per_request(self) -> int:
        return self._n_per_request if self.learner.dialect.many else 1

    @property
    def wants_more(self) -> bool:
        return self.endpoint.limiter.wants_more

    async def changed(self) -> None:
        await self.endpoint.limiter.changed()

    async def close(self) -> None:
        await self.endpoint.close()


def _fault_of(attempt: Future | None) -> TransientFault:
    fault = attempt.exception() if attempt is not None else None
    assert isinstance(fault, TransientFault)
    return fault


def _wait_s(fault: TransientFault, tries: int) -> float:
    """Retry-After (times 1 to 1.25; 0.25 s at least from the fourth try on), else 0.25 s doubling
    to 8 s (times 0.5 to 1)."""
    if fault.wait_s is not None:
        return max(fault.wait_s, 0.0 if tries < 4 else 0.25) * random.uniform(1.0, 1.25)
    return float(min(8.0, 0.25 * 2 ** (tries - 1)) * random.uniform(0.5, 1.0))
