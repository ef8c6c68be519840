"""The provider's batch API, and vLLM's run-batch files: answers at half the price, or without a
server, but later.

A prompt asks one thing after the other. So prompts are opened until `batch.prompts` are, and when
all of them wait for an answer, everything that waits is handed over at once: a wave. Its answers
let the prompts go on to their next question.

    wave 1 presamples -> wave 2 their verdicts -> wave 3 fusions -> ...
    one file for each model in a wave

Keys are those of engine `openai`: a run may begin as a batch and end live, or the other way round,
and asks nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import NamedTuple

import orjson

from ..errors import AnswersPending, EndpointError, PendingRetry, SettingsError
from ..run.log import Record
from ..run.stats import RunStats
from ..settings import BatchSettings, BuildSettings, RoleSettings
from ..text import one_line
from ..types import Request, Sampling
from .batch_jobs import RUNNING, BatchFolder, BatchJob, BatchReply, Provider, Unreachable, as_line
from .dialect import Dialect, Learner, Refusal, learner_of, shape_of
from .engine import OnRecord, Shared, deliver, extra_of, n_per_request, request_body, request_key
from .http import require_openai
from .replies import PASSING, UNUSABLE, ErrorReply, TransientFault, failure, parse_chat

LOOK_AGAIN_S = 0.02  # how often it is asked whether other engines still work
ALIKE = 3  # lines refused, and none answered, of which no single one is to blame
FAULTS = 20  # looks in a row that may fail for want of a connection

Sleep = Callable[[float], Awaitable[None]]


def open_batch(
    role: RoleSettings, build: BuildSettings, stats: RunStats, shared: Shared
) -> BatchEngine:
    """The provider's batch API, or files for vLLM's run-batch: cheaper and later; resumed by batch
    id.

    Raises:
        SettingsError: no model is named, or there is no run folder.
        ExtraMissing: the provider is asked through the openai package, which is not installed.
    """
    if not role.model:
        raise SettingsError(
            "engine 'batch' needs a model: give --model, as a batch can't be asked which models are"
            " served"
        )
    if role.batch.mode == "provider":
        require_openai("engine 'batch'")
    if shared.run_dir is None:
        raise SettingsError(
            "engine 'batch' keeps its files in a run folder, and there is none here"
        )
    folder = shared.run_dir / "batches"
    waves = shared.once("waves", lambda: Waves(BatchFolder(folder), stats, shared.log))
    url = (role.base_url or "").rstrip("/")
    return BatchEngine(waves, role, stats, learner_of(url, role.model, role, stats, shared))


class BatchTarget(NamedTuple):
    """Where requests of one model are handed over; a file never mixes two."""

    mode: str
    url: str
    model: str


@dataclass(slots=True, eq=False)
class _Request:
    """A request without an answer."""

    key: str
    target: BatchTarget
    request_bytes: bytes
    sampling: Sampling
    n: int
    seed: int
    on_record: OnRecord
    done: asyncio.Future[Record]
    learner: Learner
    shape: object
    form: Dialect | None = None  # in which it was handed over; None: by an earlier command
    tries: int = 0

    def full_body(self) -> bytes:
        return request_body(self.request_bytes, self.n, self.seed)


class Waves:
    """All batch requests of a build, wave after wave."""

    def __init__(
        self,
        folder: BatchFolder,
        stats: RunStats,
        log: Callable[[str], None],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._folder, self._stats, self._log, self._sleep = folder, stats, log, sleep
        self._waiting: dict[str, _Request] = {}
        self._settings: dict[BatchTarget, BatchSettings] = {}
        self._providers: dict[str, Provider] = {}
        self._task: asyncio.Task[None] | None = None
        self._failed = False

    def add_target(self, target: BatchTarget, role: RoleSettings) -> None:
        """Make a model of a role known."""
        self._settings.setdefault(target, role.batch)
        self._providers.setdefault(target.url, Provider(target.url, role, self._sleep))

    async def ask(self, waiting: _Request) -> Record:
        """The record of a request, once it is in the log.

        Raises:
            PendingRetry: no batch brought an answer.
            AnswersPending: files were written and wait to be run.
            EndpointError: the provider refuses.
        """
        self._waiting[waiting.key] = waiting
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._drive())
        try:
            return await waiting.done
        finally:
            self._waiting.pop(waiting.key, None)

    async def close(self) -> None:
        """Stop looking; batches under way go on at the provider."""
        if self._task is None or (self._task.done() and not self._failed):
            # everybody has what they asked for
            for job in [j for j in self._folder.jobs if j.step == "got"]:
                self._folder.drop(job)
        elif not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))
            if running := [j.batch_id for j in self._folder.jobs if j.step == "sent"]:
                self._log(
                    f"{len(running)} batches go on at the provider ({running[0]} ...): the same"
                    " command fetches them"
                )
        for provider in self._providers.values():
            await provider.close()

    async def _drive(self) -> None:
        try:
            while self._waiting:
                await self._wait_until_still()
                await self._wave()
        except Exception as e:  # nobody may wait for ever
            self._failed = True
            for w in self._waiting.values():
                if not w.done.done():
                    w.done.set_exception(e)

    async def _wait_until_still(self) -> None:
        """Return when every call that is under way waits here, so that nothing more comes before an
        answer does."""
        while True:
            await self._stats.until_still()
            if self._stats.under_way <= len(self._waiting):
                return
            await asyncio.sleep(LOOK_AGAIN_S)  # other engines are at work

    async def _wave(self) -> None:
        """Hand over what waits, wait for it, give it out. What an earlier batch asks for or has
        brought is not asked again."""
        self._give_out()
        mine = [w for w in self._waiting.values() if not w.done.done()]
        jobs = {id(j): j for w in mine if (j := self._folder.holder(w.key)) is not None}
        for job in self._write_jobs([w for w in mine if self._folder.holder(w.key) is None]):
            jobs[id(job)] = job
        await self._run(list(jobs.values()))
        self._tidy()
        for w in mine:
            w.tries += not w.done.done()
            if w.tries >= self._settings[w.target].tries and not w.done.done():
                w.done.set_exception(PendingRetry(f"no answer from {w.tries} batches"))

    def _write_jobs(self, waiting: Sequence[_Request]) -> list[BatchJob]:
        """New batches with these requests, within the limits of a file."""
        jobs = []
        for target in dict.fromkeys(w.target for w in waiting):
            limits = self._settings[target]
            lines: list[tuple[str, bytes]] = []
            size = 0
            for w in [w for w in waiting if w.target == target]:
                w.form = w.learner.dialect
                body = w.form.write(w.full_body())
                length = len(as_line(w.key, body))
                if lines and (
                    len(lines) >= limits.max_requests or size + length > limits.max_bytes
                ):
                    jobs.append(self._folder.write(*target, lines))
                    lines, size = [], 0
                lines.append((w.key, body))
                size += length
            if lines:
                jobs.append(self._folder.write(*target, lines))
        return jobs

    async def _run(self, jobs: Sequence[BatchJob]) -> None:
        """Have batches answered, each given out as it comes."""
        files = [j for j in jobs if j.mode == "files"]
        running = [j for j in jobs if j.mode != "files"]
        for job in running:
            fresh = job.step != "sent"
            await self._providers[job.url].send(self._folder, job)
            self._stats.sent += job.n if fresh else 0
            self._log(
                f"batch {job.batch_id}: {job.n} requests to"
                f" {job.model}{' sent' if fresh else ', sent before'}"
            )
        await self._poll(running)
        self._collect_files(files)

    async def _poll(self, running: list[BatchJob]) -> None:
        faults = 0
        while running:
            for job in list(running):
                try:
                    if await self._poll_one(job):
                        running.remove(job)
                    faults = 0
                except Unreachable as e:
                    faults += 1
                    if faults >= FAULTS:
                        raise EndpointError(
                            f"batch provider {job.url} can't be reached ({e}): the batches go on"
                            " there, run the same command again"
                        ) from e
            if running:
                await self._sleep(min(s.poll_s for s in self._settings.values()))

    async def _poll_one(self, job: BatchJob) -> bool:
        """Whether a batch has ended; then its answers are given out."""
        provider = self._providers[job.url]
        batch = await provider.look(job)
        if batch.status in RUNNING:
            return False
        if batch.status == "failed":
            self._folder.drop(job)
            errors = batch.errors.data if batch.errors else None
            reason = one_line(errors[0].message) if errors else "no reason given"
            raise EndpointError(
                f"batch {job.batch_id} of {job.n} requests to {job.model} was refused: {reason}"
            )
        await provider.fetch(self._folder, job, batch)
        self._folder.read(job)
        given = self._give_out()
        self._log(f"batch {job.batch_id}: {batch.status}, {given} of {job.n} answers used")
        if batch.status == "cancelled":
            raise EndpointError(
                f"batch {job.batch_id} was cancelled: the same command asks again what it left out"
            )
        return True

    def _collect_files(self, files: Sequence[BatchJob]) -> None:
        """Answers that another program has put beside the requests.

        Raises:
            AnswersPending: some are not there yet.
        """
        missing = []
        for job in files:
            if self._folder.file(job, "answers").is_file():
                job.step = "got"
                self._folder.save()
                self._folder.read(job)
            else:
                missing.append(job)
        given = self._give_out()
        if missing:
            self._tidy()
            commands = "; ".join(
                f"vllm run-batch --model {quote(j.model)}"
                f" -i {quote(str(self._folder.file(j, 'requests')))}"
                f" -o {quote(str(self._folder.file(j, 'answers')))}"
                for j in sorted(missing, key=lambda j: j.name)
            )
            raise AnswersPending(
                f"{sum(j.n for j in missing)} requests are"
                f" written{f' ({given} answers taken)' if given else ''}: run `{commands}`, then"
                " the same command again"
            )

    def _give_out(self) -> int:
        """Answers that are here go to those who wait for them; returns how many."""
        given, stop = 0, ""
        refused: dict[tuple[BatchTarget, object], list[tuple[_Request, Refusal]]] = {}
        for w in list(self._waiting.values()):
            reply = None if w.done.done() else self._folder.take(w.key)
            read = None if reply is None else self._read(w, reply)
            if isinstance(read, Record):
                w.learner.works.add(w.shape)
                deliver(w.done, w.on_record, read)
                given += 1
            elif read is not None and read.status in UNUSABLE:
                stop = f"says {read.status} ({read.message}): check --model and the key"
            elif read is not None:
                refused.setdefault((w.target, w.shape), []).append((w, read))
        for group in refused.values():
            stop = self._settle(group) or stop
        if stop:
            self._tidy()
            raise EndpointError(f"batch provider {stop}")
        return given

    def _settle(self, group: Sequence[tuple[_Request, Refusal]]) -> str:
        """Requests of one shape that were refused: the form is changed where a refusal names a
        field, and they wait for the next wave; else each failed for good. Why the run stops, where
        nothing of the shape was ever answered and no row is to blame."""
        final = []
        for w, refusal in group:
            learner = w.learner
            if w.shape in learner.works or refusal.of_row:
                final.append((w, refusal))
                continue
            if w.form is None or w.form == learner.dialect:
                tree = learner.dialect.apply(orjson.loads(w.full_body()))
                name = refusal.field(tree)
                other = learner.dialect.next_for(name, tree) if name else None
                if other is None:
                    final.append((w, refusal))
                    continue
                learner.adopt(other)
            w.tries -= 1  # the wave taught a form; there are but few
        blamed = [r for w, r in final if w.shape not in w.learner.works and not r.of_row]
        if len(blamed) >= ALIKE:
            return (
                f"refuses every request of this form (HTTP {blamed[0].status}:"
                f" {blamed[0].message}): correct the setting that it names, or see"
                " docs/endpoints.md"
            )
        for w, refusal in final:
            self._stats.failed[str(refusal.status)] += 1
            deliver(w.done, w.on_record, failure(w.n, f"HTTP {refusal.status}: {refusal.message}"))
        return ""

    def _read(self, w: _Request, reply: BatchReply) -> Record | Refusal | None:
        """Answers, or what was refused; None for a failure that may pass."""
        body = reply.body
        if reply.status == 200:
            try:
                return parse_chat(body, w.n, sampling=w.sampling)
            except ErrorReply as e:
                body = e.body
            except TransientFault:  # not a chat completion: asked again, as over HTTP
                self._stats.retries["not_json"] += 1
                return None
        refusal = Refusal(reply.status, body)
        status = refusal.status
        if status in PASSING or status >= 500 or status < 400:
            self._stats.retries[str(status)] += 1
            return None
        return refusal

    def _tidy(self) -> None:
        """Forget batches of which everything was given out, or which have brought what they had to
        those who asked."""
        for job in [j for j in self._folder.jobs if j.step == "got"]:
            # they waited, and it had nothing for them
            job.left -= {w.key for w in self._waiting.values()}
            if not job.left:
                self._folder.drop(job)


class BatchEngine:
    """One role's model, answered in batches."""

    simulated = False

    def __init__(self, waves: Waves, role: RoleSettings, stats: RunStats, learner: Learner) -> None:
        self.model = role.model or ""
        self.revision = role.revision
        self.extra = extra_of(role)
        self._n_per_request = n_per_request(role)
        self._learner = learner
        self._target = BatchTarget(role.batch.mode, role.base_url or "", self.model)
        self._waves, self._stats, self._prompts = waves, stats, role.batch.prompts
        waves.add_target(self._target, role)

    async def send(
        self, request: Request, request_bytes: bytes, seed: int, on_record: OnRecord
    ) -> Record:
        key = request_key(request_bytes, request.purpose, seed, self.revision).hex()
        done: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        return await self._waves.ask(
            _Request(
                f"{key}{request.first:08x}",
                self._target,
                request_bytes,
                request.sampling,
                request.n,
                (seed + request.first) & 0x7FFFFFFF,
                on_record,
                done,
                self._learner,
                shape_of(request),
            )
        )

    @property
    def n_per_request(self) -> int:
        return self._n_per_request if self._learner.dialect.many else 1

    @property
    def wants_more(self) -> bool:
        return self._stats.open_prompts < self._prompts

    async def changed(self) -> None:
        # only a prompt's end makes room, and whoever opens prompts sees that
        await asyncio.Event().wait()

    async def close(self) -> None:
        await self._waves.close()
