"""Runs a build's partitions on a Ray cluster: joins or starts it, hires workers, takes it down
again.

Ray's dashboard, usage statistics and log forwarding are off. The driver never touches a partition
that is out; it adds up what the meter knows, for the progress line and spending.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import ClusterError, LimitReached
from ..run.cost import CostTracker, Prices
from ..run.progress import Progress
from ..run.stats import RunStats
from ..settings import RaySettings
from .monitor import State, UsageMonitor
from .pool import WorkerPool, last_line, reply
from .schedule import Board, distribute
from .worker import ENVIRONMENT, Job, PartitionTask

POLL_S = 0.5
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


async def work_off(
    job: Job,
    orders: Sequence[PartitionTask],
    prices: Prices,
    spending: CostTracker,
    stats: RunStats,
    progress: Progress,
) -> tuple[dict[int, str], int]:
    """Every partition of `orders` sealed by workers of the cluster: (those that were given up, and
    why; damaged log lines).

    Raises:
        LimitReached: the money or tokens are used up.
        RunFolderError: the storage refuses to be written.
        ClusterError: no worker can do the work.
    """
    wanted = job.settings.ray
    with joined(wanted, progress.message):
        board = await _run(job, orders, prices, spending, stats, progress)
    given_up = {
        n: f"partition {n:05d} was given up after {wanted.tries} tries: {why}"
        for n, why in board.poisoned.items()
    }
    for why in given_up.values():
        progress.message(f"{why}; its prompts are in errors.jsonl, the same command tries it again")
    return given_up, board.damaged


def environment() -> dict[str, str]:
    """What of this process's environment its workers need."""
    return {k: os.environ[k] for k in ENVIRONMENT if k in os.environ}


@contextlib.contextmanager
def joined(settings: RaySettings, say: Callable[[str], None]) -> Iterator[None]:
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
                f"can't join the Ray cluster at {where} ({' '.join(str(e).split())[:150]}): start"
                " it with `ray start --head`, correct ray.address, or set RAY_AUTH_MODE=token"
                " where it wants one"
            ) from e
        try:
            signal.signal(signal.SIGTERM, before)  # Ray's own would not let the build end in order
            there = [n for n in ray.nodes() if n["Alive"]]
            say(
                f"Ray: {len(there)} nodes, {ray.cluster_resources().get('CPU', 0):g} CPUs, "
                f"{ray.cluster_resources().get('GPU', 0):g} GPUs"
            )
            yield
        finally:
            ray.shutdown()


async def _run(
    job: Job,
    orders: Sequence[PartitionTask],
    prices: Prices,
    spending: CostTracker,
    stats: RunStats,
    progress: Progress,
) -> Board:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    meter = (
        ray.remote(UsageMonitor)
        .options(num_cpus=0, scheduling_strategy=here, max_concurrency=1000)
        .remote(job.settings.limits, prices, spending.totals())
    )
    crew = WorkerPool(job, {o.number: o for o in orders}, meter, progress.message)
    ledger = _Ledger(stats, progress, spending)
    numbers = [o.number for o in orders]
    schedule = asyncio.ensure_future(
        distribute(numbers, crew.hire, crew.size, job.settings.ray.tries, progress.message)
    )
    watch = asyncio.ensure_future(ledger.watch(meter))
    try:
        done, _ = await asyncio.wait((schedule, watch), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (schedule, watch):
            task.cancel()
        await asyncio.wait((schedule, watch))
        with contextlib.suppress(ray.exceptions.RayError, LimitReached):
            ledger.enter(await reply(meter.state.remote()))
        ray.kill(meter)
    if watch in done:
        watch.result()
    return schedule.result()


class _Ledger:
    """Keeps usage, progress and spending up to what the meter knows."""

    def __init__(self, stats: RunStats, progress: Progress, spending: CostTracker) -> None:
        self._stats, self._progress, self._spending = stats, progress, spending
        self._before = stats.numbers()
        for limiter in stats.limiters:
            limiter.forget()  # idle while the workers ask, which is no news about them
        self._prompts = 0

    async def watch(self, meter: Any) -> None:
        """Raises LimitReached when a limit is used up."""
        import ray

        while True:
            await asyncio.sleep(POLL_S)
            try:
                self.enter(await reply(meter.state.remote()))
            except ray.exceptions.RayError as e:
                raise ClusterError(
                    f"the actor that holds the build's limits is gone ({last_line(e)}): run the"
                    " same command again, what was answered is kept"
                ) from e

    def enter(self, state: State) -> None:
        """Add up what the workers reported."""
        self._stats.take([self._before, *state.usages])
        prompts = sum(state.prompts.values())
        self._progress.step(prompts - self._prompts)
        self._prompts = prompts
        self._spending.check()
