"""Models in this process: a queue, batches of like length, one worker thread for all models of a
build.

    requests that wait -> all of one lane -> sorted by length -> batches -> worker thread
        -> on_record, as each batch ends

A lane is what may share a batch: one model, one task, one way of sampling. The current lane goes on
until it is dry, then comes the one with most waiting, so that phases appear by themselves where
models take turns on one device. The event loop stays free: it opens prompts and writes the log
while a batch runs.

    policy: {engine: transformers, model: org/policy-1b}
    policy: {engine: vllm, model: org/policy-8b,
             local: {options: {gpu_memory_utilization: 0.45, tensor_parallel_size: 2}}}

The models are in `hf` and `vllm`. Sample i of a request depends on seed + i and on nothing that
shares its batch, but for rounding: see `hf.Generator`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import EndpointError, ExtraMissing, MoraError, PendingRetry, SettingsError
from ..run.log import Record
from ..run.stats import RunStats
from ..settings import BuildSettings, LocalSettings, RoleSettings
from ..text import one_line
from ..types import Answer, Request, Task
from .engine import LocalModel, OnRecord, Piece, RefusedRequest, Shared, deliver, n_per_request
from .replies import failure

SMALLEST_BATCH = 8  # where doubling begins
GAIN = 1.1  # a doubled batch that is not this much faster is not worth its memory


@dataclass(slots=True, eq=False)
class LazyModel:
    """A model that is loaded when it is first asked, in the worker thread; roles that name the same
    one share it.

    Attributes:
        whole: it takes all samples of a request as one piece and batches by itself, whatever their
            lengths and sampling.
    """

    name: str
    load: Callable[[], LocalModel]
    settings: LocalSettings
    whole: bool = False
    model: LocalModel | None = None

    def loaded(self) -> LocalModel:
        """The model; loads it on the first call."""
        if self.model is None:
            self.model = self.load()
        return self.model


class BatchSizer:
    """Finds the batch size: doubled while that pays, halved when memory ends, then left alone."""

    def __init__(self, most: int, fixed: bool = False) -> None:
        self.size = most if fixed else min(SMALLEST_BATCH, most)
        self._most = most
        self._growing = not fixed
        self._before = 0.0
        self._rates: list[float] = []

    def ran(self, n: int, work: float, seconds: float) -> None:
        """A batch of `n` did `work` tokens; two full ones tell how fast a size is (the first may
        warm up)."""
        if not self._growing or n != self.size:
            return
        self._rates.append(work / max(seconds, 1e-9))
        if len(self._rates) < 2:
            return
        rate, self._rates = max(self._rates), []
        if rate < GAIN * self._before:
            self.size, self._growing = self.size // 2, False
        elif self.size * 2 > self._most:
            self._growing = False
        else:
            self._before, self.size = rate, self.size * 2

    def out_of_memory(self, n: int) -> bool:
        """A batch of `n` did not fit. Returns whether a smaller one can be tried; after a single
        one, growing begins anew."""
        self.size, self._growing = max(1, n // 2), n == 1
        self._before, self._rates = 0.0, []
        return n > 1


@dataclass(slots=True, eq=False)
class _Pending:
    """A request on its way, and where its answers go."""

    pieces: list[Piece]
    n: int
    on_record: OnRecord
    done: asyncio.Future[Record]
    answers: dict[int, Answer] = field(default_factory=dict)
    tokens_in: int = 0

    def put(self, piece: Piece, answers: Sequence[Answer]) -> None:
        """Keep a piece's answers; when all are there, the record goes to the log."""
        if self.done.done():
            return
        self.answers.update(enumerate(answers, piece.first))
        if len(self.answers) == self.n:
            kept = tuple(self.answers[i] for i in sorted(self.answers))
            tokens = (self.tokens_in, sum(a.tokens_out for a in kept), 0)
            deliver(self.done, self.on_record, Record(self.n, kept, tokens))

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class ModelQueue:
    """The queue and the worker thread of a build.

    Attributes:
        tokens: prompt tokens in batches so far.
        padded: the same with padding.
        stop: set when the build ends; a running batch may end early.
    """

    def __init__(self, stats: RunStats, clock: Callable[[], float] = time.perf_counter) -> None:
        self.stop = threading.Event()
        self.tokens = self.padded = self.waiting = 0
        self._stats, self._clock = stats, clock
        self._lanes: dict[tuple[LazyModel, Hashable], list[_Pending]] = {}
        self._sizers: dict[tuple[LazyModel, Hashable], BatchSizer] = {}
        self._models: list[LazyModel] = []
        self._taken = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, "model")
        self._task: asyncio.Task[None] | None = None
        self._window = 1

    async def ask(
        self, lazy: LazyModel, lane: Hashable, piece: Piece, on_record: OnRecord
    ) -> Record:
        """The record of answers to a request, once it is in the log.

        Raises:
            PendingRetry: not even alone does it fit into memory.
            MoraError: the model can't be loaded, or failed.
        """
        pieces = [piece] if lazy.whole else piece.singles()
        job = _Pending(pieces, piece.n, on_record, asyncio.get_running_loop().create_future())
        self._lanes.setdefault((lazy, lane), []).append(job)
        self._window = lazy.settings.window
        self.waiting += piece.n
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._drive())
        return await job.done

    async def taken(self) -> None:
        """Return when waiting requests have been taken."""
        self._taken.clear()
        await self._taken.wait()

    async def close(self) -> None:
        """End the running batch, let go of the models."""
        self.stop.set()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))
        models, self._models = self._models, []
        for lazy in models:
            model, lazy.model = lazy.model, None
            if model is not None:
                await asyncio.get_running_loop().run_in_executor(self._pool, model.close)
        await asyncio.to_thread(self._pool.shutdown)

    async def _drive(self) -> None:
        key: tuple[LazyModel, Hashable] | None = None
        jobs: list[_Pending] = []
        try:
            while self.waiting:
                await self._stats.until_still(lambda: self.waiting >= self._window)
                if key not in self._lanes:
                    key = max(self._lanes, key=lambda k: sum(j.n for j in self._lanes[k]))
                jobs = self._lanes.pop(key)
                self.waiting -= sum(j.n for j in jobs)
                self._taken.set()
                await self._run(key, jobs)
        except Exception as e:  # the build ends: nobody may wait for ever
            for job in [*jobs, *(j for lane in self._lanes.values() for j in lane)]:
                job.fail(e)
            self._lanes.clear()
            self.waiting = 0

    async def _run(self, key: tuple[LazyModel, Hashable], jobs: Sequence[_Pending]) -> None:
        lazy = key[0]
        if lazy.model is None:
            self._models.append(lazy)
        model = await self._call(lazy, lazy.loaded)
        work: list[tuple[Piece, _Pending]] = []
        for job, tokens in zip(jobs, await self._call(lazy, _encode_all, model, jobs), strict=True):
            if isinstance(tokens, str):
                deliver(job.done, job.on_record, failure(job.n, tokens))
            else:
                job.tokens_in = len(tokens)
                work += [(replace(p, tokens=tokens), job) for p in job.pieces]
        work.sort(key=lambda w: -len(w[0].tokens))  # the largest first: what fits then, fits later
        sizer = self._sizers.setdefault(key, BatchSizer(lazy.settings.max_batch, lazy.whole))
        while work := [w for w in work if not w[1].done.done()]:
            batch = work[: sizer.size]
            if await self._batch(lazy, model, sizer, batch):
                del work[: len(batch)]

    async def _batch(
        self,
        lazy: LazyModel,
        model: LocalModel,
        sizer: BatchSizer,
        batch: Sequence[tuple[Piece, _Pending]],
    ) -> bool:
        """Run one batch; False when memory ended and a smaller one is to be tried."""
        pieces, started = [p for p, _ in batch], self._clock()
        try:
            answers = await self._call(lazy, model.run, pieces)
        except MemoryError as e:
            if sizer.out_of_memory(len(batch)):
                return False
            batch[0][1].fail(
                PendingRetry(
                    f"out of memory on a single prompt of {len(pieces[0].tokens)} tokens with model"
                    f" {lazy.name} ({e}): use a larger device, or a smaller max_tokens or"
                    " local.max_length"
                )
            )
            return True
        n_tokens = sum(len(p.tokens) for p in pieces)
        sizer.ran(
            len(batch),
            n_tokens + sum(a.tokens_out for some in answers for a in some),
            self._clock() - started,
        )
        self.tokens += n_tokens
        self.padded += n_tokens if lazy.whole else max(len(p.tokens) for p in pieces) * len(pieces)
        for (piece, job), some in zip(batch, answers, strict=True):
            job.put(piece, some)
        return True

    async def _call(self, lazy: LazyModel, work: Callable[..., Any], *args: Any) -> Any:
        """Run in the worker thread; whatever it raises becomes one line."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)
        except (MoraError, MemoryError):
            raise
        except Exception as e:
            raise EndpointError(
                f"model {lazy.name} failed ({type(e).__name__}: {one_line(e)}): what was"
                " answered is kept, the same command goes on"
            ) from e


def _encode_all(model: LocalModel, jobs: Sequence[_Pending]) -> list[Sequence[int] | str]:
    """The tokens of each request, or why the model can't take it."""
    out: list[Sequence[int] | str] = []
    for job in jobs:
        try:
            out.append(model.encode(job.pieces[0].request))
        except RefusedRequest as e:
            out.append(str(e))
    return out


class InProcessEngine:
    """One role's model in this process."""

    simulated = False

    def __init__(
        self,
        queue: ModelQueue,
        model_for: Callable[[Task], LazyModel],
        role: RoleSettings,
        stats: RunStats,
    ) -> None:
        if not role.model:
            raise SettingsError(
                f"engine {role.engine!r} needs a model: give --model with a folder or the name of a"
                " model"
            )
        local = role.local
        self.model = role.model
        self.revision = role.revision
        self.extra: Mapping[str, Any] = {
            **role.extra_body,
            **({"max_length": local.max_length} if local.max_length else {}),
            **({"text_pair": True} if local.text_pair else {}),
        }
        self.n_per_request = n_per_request(role)
        self._queue, self._model_for, self._stats = queue, model_for, stats
        self._window = local.window

    async def send(
        self, request: Request, request_bytes: bytes, seed: int, on_record: OnRecord
    ) -> Record:
        lazy = self._model_for("chat" if request.task == "chat" else "classify")
        lane: Hashable = None
        if not lazy.whole:
            lane = (request.task, replace(request.sampling, schema=None, pattern=None))
        self._stats.sent += 1
        piece = Piece(request, request.first, request.n, (seed + request.first) & 0x7FFFFFFF)
        return await self._queue.ask(lazy, lane, piece, on_record)

    @property
    def wants_more(self) -> bool:
        return self._queue.waiting < self._window

    async def changed(self) -> None:
        if not self.wants_more:
            await self._queue.taken()

    async def close(self) -> None:
        await self._queue.close()


def open_transformers(
    role: RoleSettings, build: BuildSettings, stats: RunStats, shared: Shared
) -> InProcessEngine:
    """A transformers model in this process (extra `transformers`): generation and classifiers, on
    one GPU or the CPU.

    Slower than a server that batches continuously; right for small models, for classifiers, and
    where no server can be run.

    Raises:
        ExtraMissing: torch or transformers is not installed.
        SettingsError: no model is named.
    """
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        raise ExtraMissing(
            "engine 'transformers' needs torch and transformers: pip install"
            " 'mora-data[transformers]'"
        )

    def load(task: Task, stop: threading.Event) -> LocalModel:
        from .hf import Generator, SequenceClassifier

        if task == "chat":
            return Generator(role.model or "", role.revision, role.local, stop)
        return SequenceClassifier(role.model or "", role.revision, role.local)

    return _open(role, stats, shared, load, whole=False)


def open_vllm(
    role: RoleSettings, build: BuildSettings, stats: RunStats, shared: Shared
) -> InProcessEngine:
    """A vLLM engine in this process (extra `vllm`): generation and classifiers, without a server.

    Raises:
        ExtraMissing: vllm is not installed.
        SettingsError: no model is named.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ExtraMissing(
            "engine 'vllm' needs vllm: pip install 'mora-data[vllm]' (Linux with a GPU), or start a"
            " vLLM server anywhere and give --base-url in place of --engine"
        )

    def load(task: Task, stop: threading.Event) -> LocalModel:
        from .vllm import Vllm

        return Vllm(role, task)

    return _open(role, stats, shared, load, whole=True)


def _open(
    role: RoleSettings,
    stats: RunStats,
    shared: Shared,
    load: Callable[[Task, threading.Event], LocalModel],
    whole: bool,
) -> InProcessEngine:
    """The engine of a role; roles that name the same model in the same way share it."""
    queue = shared.once("model queue", lambda: ModelQueue(stats))

    def model_for(task: Task) -> LazyModel:
        key = f"{role.engine} {role.model} {role.revision} {task} {role.local.model_dump_json()}"
        return shared.once(
            key,
            lambda: LazyModel(role.model or "", lambda: load(task, queue.stop), role.local, whole),
        )

    return InProcessEngine(queue, model_for, role, stats)
