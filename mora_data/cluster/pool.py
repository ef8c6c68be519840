"""The workers of a build as Ray actors: started where there is room, listened to until they are
dead for sure."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..run.tasks import GRACE_S
from .schedule import Died, Ended, Unfit
from .worker import Job, PartitionTask, Worker

START_S = 30.0  # a worker that has no room by then is waited for, and that is said
CONFIRM_S = 60.0  # an actor that can't be reached is dead or back within this
NAP_S = 0.5


@dataclass
class WorkerPool:
    """The workers of one build, and the meter they share."""

    job: Job
    orders: Mapping[int, PartitionTask]
    meter: Any
    say: Callable[[str], None]
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

    async def hire(self) -> Actor:
        """Start a worker where there is room.

        Raises:
            Unfit: it can't do the work where it is.
            Died: it did not come up.
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
            .remote(self.job_ref, self.meter, str(self.n_hired))
        )
        ready = asyncio.ensure_future(reply(actor.ready.remote()))
        try:
            await asyncio.wait((ready,), timeout=START_S)
            if not ready.done():
                self.say(
                    f"a worker waits for room: no node of the cluster has {wanted.cpus:g} CPUs and"
                    f" {wanted.gpus:g} GPUs free"
                )
            node, unfit = await ready
        except ray.exceptions.RayError as e:
            raise Died(last_line(e)) from e
        except BaseException:
            ready.cancel()
            ray.kill(actor)
            raise
        if unfit is not None:
            ray.kill(actor)
            raise Unfit(unfit)
        return Actor(actor, node, self.orders)


@dataclass(frozen=True)
class Actor:
    """A worker at work on a node."""

    actor: Any
    node: str
    orders: Mapping[int, PartitionTask]

    async def seal(self, number: int) -> Ended:
        import ray

        try:
            ended: Ended = await reply(self.actor.seal.remote(self.orders[number]))
        except ray.exceptions.RayError as e:
            await self._buried()
            lost = not any(n["NodeID"] == self.node and n["Alive"] for n in ray.nodes())
            raise Died(
                (
                    "its node is gone"
                    if lost
                    else "its process ended: a crash, a kill or out of memory"
                ),
                lost,
            ) from e
        return ended

    async def dismiss(self) -> None:
        import ray

        try:
            with contextlib.suppress(ray.exceptions.RayError, asyncio.TimeoutError):
                await asyncio.wait_for(
                    reply(self.actor.rest.remote("the build stops")), GRACE_S + 2
                )
        finally:
            ray.kill(self.actor)

    async def _buried(self) -> None:
        """Return once it is sure that the actor is dead: until then its node counts as alive."""
        import ray

        end = asyncio.get_running_loop().time() + CONFIRM_S
        while asyncio.get_running_loop().time() < end:
            try:
                await asyncio.wait_for(reply(self.actor.ping.remote()), CONFIRM_S)
            except ray.exceptions.ActorUnavailableError:
                await asyncio.sleep(NAP_S)
            except (ray.exceptions.RayError, asyncio.TimeoutError):
                return
            else:
                break
        ray.kill(self.actor)


async def reply(ref: Any) -> Any:
    """What a Ray call returns."""
    return await ref


def last_line(error: Exception) -> str:
    """What a Ray error says in the end; it comes with a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
