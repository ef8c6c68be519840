"""Runs a build's partitions on a Ray cluster: joins or starts it, hires workers, takes it down
again.

Ray's dashboard, usage statistics and log forwarding are off. The driver never touches a partition
that is delegated; it adds up what the monitor knows, for the progress line and spending.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ClusterError, LimitReached
from ..run.cost import CostTracker
from ..run.progress import Progress
from ..run.stats import RunStats
from ..run.tasks import GRACE_S
from ..settings import RaySettings
from ..text import one_line
from .schedule import Backlog, Outcome, UnfitWorker, WorkerDied, distribute
from .worker import ENVIRONMENT, Job, PartitionTask, UsageMonitor, Worker

POLL_S = 0.5
START_S = 30.0  # a worker that has no room by then is waited for, and that is said
CONFIRM_S = 60.0  # an actor that can't be reached is dead or back within this
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


async def work_off(
    job: Job, tasks: Sequence[PartitionTask], cost: CostTracker, progress: Progress
) -> tuple[dict[int, str], int]:
    """Have workers of the cluster finalize all `tasks`; returns the partitions that were given
    up, with the reason, and the number of damaged log lines.

    Raises:
        LimitReached: the money or tokens are used up.
        RunFolderError: the storage refuses to be written.
        ClusterError: no worker can do the work.
    """
    wanted = job.settings.ray
    with cluster_connection(wanted, progress.message):
        backlog = await _run(job, tasks, cost, progress)
    given_up = {
        n: f"partition {n:05d} was given up after {wanted.tries} tries: {why}"
        for n, why in backlog.poisoned.items()
    }
    for why in given_up.values():
        progress.message(f"{why}; its prompts are in errors.jsonl, the same command tries it again")
    return given_up, backlog.damaged


def worker_environment() -> dict[str, str]:
    """What of this process's environment its workers need."""
    return {k: os.environ[k] for k in ENVIRONMENT if k in os.environ}


@contextlib.contextmanager
def cluster_connection(settings: RaySettings, log: Callable[[str], None]) -> Iterator[None]:
    """A cluster to run on: the one at the address, else one that is known to this machine, else one
    that ends with the build.

    Raises:
        ClusterError: the address can't be reached.
    """
    os.environ.update({k: v for k, v in QUIET.items() if k not in os.environ})
    import ray

    before = signal.getsignal(signal.SIGTERM)
    # Ray writes messages about lost nodes to stdout, which is for results
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,  # noqa: PTH123
        contextlib.redirect_stdout(nowhere),
    ):
        try:
            ray.init(
                address=settings.address,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                configure_logging=False,
                include_dashboard=False,
            )
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
            where = settings.address or os.environ.get("RAY_ADDRESS") or "this machine"
            raise ClusterError(
                f"can't join the Ray cluster at {where} ({one_line(e, 150)}): start"
                " it with `ray start --head`, correct ray.address, or set RAY_AUTH_MODE=token"
                " where it wants one"
            ) from e
        try:
            signal.signal(signal.SIGTERM, before)  # Ray's own would not let the build end in order
            there = [n for n in ray.nodes() if n["Alive"]]
            log(
                f"Ray: {len(there)} nodes, {ray.cluster_resources().get('CPU', 0):g} CPUs, "
                f"{ray.cluster_resources().get('GPU', 0):g} GPUs"
            )
            yield
        finally:
            ray.shutdown()


async def _run(
    job: Job, tasks: Sequence[PartitionTask], cost: CostTracker, progress: Progress
) -> Backlog:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    monitor = (
        ray.remote(UsageMonitor)
        .options(num_cpus=0, scheduling_strategy=here, max_concurrency=1000)
        .remote(job.settings.limits, cost.prices, cost.totals())
    )
    pool = WorkerPool(job, {t.number: t for t in tasks}, monitor, progress.message)
    tally = _Tally(progress, cost)
    numbers = [t.number for t in tasks]
    schedule = asyncio.ensure_future(
        distribute(numbers, pool.hire, pool.size, job.settings.ray.tries, progress.message)
    )
    watch = asyncio.ensure_future(tally.watch(monitor))
    try:
        done, _ = await asyncio.wait((schedule, watch), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (schedule, watch):
            task.cancel()
        await asyncio.wait((schedule, watch))
        with contextlib.suppress(ray.exceptions.RayError, LimitReached):
            tally.enter(*await reply(monitor.state.remote()))
        ray.kill(monitor)
    if watch in done:
        watch.result()
    return schedule.result()


class _Tally:
    """Keeps statistics, progress and cost up to what the monitor knows."""

    def __init__(self, progress: Progress, cost: CostTracker) -> None:
        self._stats, self._progress, self._cost = progress.stats, progress, cost
        self._before = self._stats.snapshot()
        for limiter in self._stats.limiters:
            limiter.forget()  # idle while the workers ask, which is no news about them
        self._prompts = 0

    async def watch(self, monitor: Any) -> None:
        """Raises LimitReached when a limit is used up."""
        import ray

        while True:
            await asyncio.sleep(POLL_S)
            try:
                self.enter(*await reply(monitor.state.remote()))
            except ray.exceptions.RayError as e:
                raise ClusterError(
                    f"the actor that holds the build's limits is gone ({last_line(e)}): run the"
                    " same command again, what was answered is kept"
                ) from e

    def enter(self, of_workers: Sequence[RunStats], prompts: int) -> None:
        """Add up what the workers reported; `prompts` are done."""
        self._stats.take([self._before, *of_workers])
        self._progress.step(prompts - self._prompts)
        self._prompts = prompts
        self._cost.check()


@dataclass
class WorkerPool:
    """The workers of one build, started where there is room, and the monitor they share."""

    job: Job
    tasks: Mapping[int, PartitionTask]
    monitor: Any
    log: Callable[[str], None]
    n_hired: int = 0
    job_ref: Any = field(init=False)

    def __post_init__(self) -> None:
        import ray

        self.job_ref = ray.put(self.job)  # once, whatever the number of workers

    @property
    def size(self) -> int:
        """How many workers there should be."""
        import ray

        wanted = self.job.settings.ray
        if wanted.workers != "auto":
            return wanted.workers
        there = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        if wanted.gpus:
            return max(1, int(sum(float(r.get("GPU", 0)) for r in there) / wanted.gpus))
        return max(1, sum(float(r.get("CPU", 0)) >= wanted.cpus for r in there))

    async def hire(self) -> WorkerActor:
        """Start a worker where there is room.

        Raises:
            UnfitWorker: it can't do the work where it is.
            WorkerDied: it did not come up.
        """
        import ray

        wanted = self.job.settings.ray
        self.n_hired += 1
        actor = (
            ray.remote(Worker)
            .options(
                num_cpus=wanted.cpus,
                num_gpus=wanted.gpus,
                scheduling_strategy="SPREAD",
                max_restarts=0,
                max_concurrency=16,
            )
            .remote(self.job_ref, self.monitor, str(self.n_hired))
        )
        ready = asyncio.ensure_future(reply(actor.ready.remote()))
        try:
            await asyncio.wait((ready,), timeout=START_S)
            if not ready.done():
                self.log(
                    f"a worker waits for room: no node of the cluster has {wanted.cpus:g} CPUs and"
                    f" {wanted.gpus:g} GPUs free"
                )
            node, unfit = await ready
        except ray.exceptions.RayError as e:
            raise WorkerDied(last_line(e)) from e
        except BaseException:
            ready.cancel()
            ray.kill(actor)
            raise
        if unfit is not None:
            ray.kill(actor)
            raise UnfitWorker(unfit)
        return WorkerActor(actor, node, self.tasks)


@dataclass(frozen=True)
class WorkerActor:
    """A worker at work on a node."""

    actor: Any
    node: str
    tasks: Mapping[int, PartitionTask]

    async def finalize(self, number: int) -> Outcome:
        import ray

        try:
            outcome: Outcome = await reply(self.actor.finalize.remote(self.tasks[number]))
        except ray.exceptions.RayError as e:
            await self._wait_until_dead()
            lost = not any(n["NodeID"] == self.node and n["Alive"] for n in ray.nodes())
            crash = "its process ended: a crash, a kill or out of memory"
            raise WorkerDied("its node is gone" if lost else crash, lost) from e
        return outcome

    async def dismiss(self) -> None:
        import ray

        try:
            with contextlib.suppress(ray.exceptions.RayError, asyncio.TimeoutError):
                await asyncio.wait_for(
                    reply(self.actor.stop.remote("the build stops")), GRACE_S + 2
                )
        finally:
            ray.kill(self.actor)

    async def _wait_until_dead(self) -> None:
        """Return once it is sure that the actor is dead: until then its node counts as alive."""
        import ray

        end = asyncio.get_running_loop().time() + CONFIRM_S
        while asyncio.get_running_loop().time() < end:
            try:
                await asyncio.wait_for(reply(self.actor.ping.remote()), CONFIRM_S)
            except ray.exceptions.ActorUnavailableError:
                await asyncio.sleep(POLL_S)
            except (ray.exceptions.RayError, asyncio.TimeoutError):
                return
            else:
                break
        ray.kill(self.actor)


async def reply(ref: Any) -> Any:
    """What a Ray call returns."""
    return await ref


def last_line(error: Exception) -> str:
    """The last line of a Ray error, which comes with a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
