"""The actor that works on partitions: the context of the build, engines of its own, the partition's
own answer log; and the small one that holds what the workers share: rate limits, cost, how far each
partition is.

A worker returns what became of a partition, never an exception, so that nothing has to be unpickled
to be understood. It reports four times a second and learns whether the build has to stop; a request
waits for its turn only where the settings limit requests or tokens a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__, resources
from ..engines import connect
from ..engines.engine import Engine, Shared
from ..errors import (
    EndpointError,
    ExtraMissing,
    LimitReached,
    LogHeld,
    MoraError,
    RunFolderError,
    SettingsError,
)
from ..prompts.context import FORMAT, BuildContext, load_context
from ..prompts.result import PromptResult
from ..prompts.runner import PartitionRunner, ask_partitions
from ..rewards.judge_stats import JudgeStats
from ..run.cost import Prices, check_totals
from ..run.files import read_json
from ..run.limiter import Limits, LocalRateLimiter
from ..run.partitions import Partition
from ..run.remote import WorkerCopy
from ..run.stats import RunStats, added
from ..run.tasks import to_its_end
from ..settings import BuildSettings, LimitSettings
from ..sources.benchmarks import Benchmarks
from ..text import one_line
from ..types import Role
from .schedule import Outcome

REPORT_S = 0.25
NAP_S = 0.05
# those whose version may show in the rows or their files
PACKAGES = ("pyarrow", "numpy", "orjson", "pydantic", "jinja2")
# what of the driver's environment a worker needs; keys are each node's own affair
ENVIRONMENT = ("OPENAI_BASE_URL",)


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker of a build gets."""

    settings: BuildSettings
    sample: bool
    until: str
    place: str  # of the run folder: path or URL
    mine_key: str  # `basis` of mine.json: a worker that reads another one sees another folder
    judge_stats: JudgeStats
    benchmarks: Benchmarks
    secret: bytes = field(repr=False)  # of the run folder's nonces
    versions: Mapping[str, str]
    environment: Mapping[str, str]
    cwd: str  # what relative paths in the settings start from


@dataclass(frozen=True, slots=True)
class PartitionTask:
    """A partition to be worked on."""

    number: int
    cache_key: str  # of what the driver would write
    old_end: int  # where this command's own answers begin in the log


class Worker:
    """Runs as a Ray actor; `name` says which worker of the build it is."""

    def __init__(self, job: Job, monitor: Any, name: str) -> None:
        self._job, self._monitor, self._name = job, monitor, name
        self._stats = RunStats()
        self._prompts: dict[int, int] = {}
        self._opening = asyncio.Lock()
        self._engines: dict[Role, Engine] = {}
        self._context: BuildContext | None = None
        self._report_task: asyncio.Task[None] | None = None
        self._n_open = 0
        self._copy = WorkerCopy(job.place)

    async def ready(self) -> tuple[str, str | None]:
        """The node's id, and why this worker can't do the work there; None when it can."""
        import ray

        return ray.get_runtime_context().get_node_id(), self._why_unfit()

    def _why_unfit(self) -> str | None:
        job = self._job
        # where there is no such folder, the settings' files are looked for at their absolute paths
        with contextlib.suppress(OSError):
            os.chdir(job.cwd)
        os.environ.update({k: v for k, v in job.environment.items() if k not in os.environ})
        try:
            reason = version_mismatch(job.versions, versions()) or self._folder_mismatch()
            if reason is not None:
                return f"node {platform.node()} {reason}"
            context = load_context(
                job.settings, job.until, job.benchmarks, resources.Secret(job.secret)
            )
            self._context = context.with_judge_stats(job.judge_stats)
            shared = Shared(rate_limiter=partial(SharedRateLimiter, self._monitor))
            self._engines = connect(
                job.settings, job.sample, self._stats, self._copy.path, lambda text: None, shared
            )
        except MoraError as e:
            return f"node {platform.node()}: {e}"
        self._report_task = asyncio.ensure_future(self._report())
        return None

    async def finalize(self, task: PartitionTask) -> Outcome:
        """Ask a partition to its end and finalize it."""
        self._n_open += 1
        try:
            return await self._finalize(task)
        finally:
            self._n_open -= 1

    async def _finalize(self, task: PartitionTask) -> Outcome:
        context, job, part = self._context, self._job, Partition(self._copy.path, task.number)
        assert context is not None
        runner = PartitionRunner(
            self._engines, self._stats, job.settings.seed, self._opening, context.limiters
        )
        runner.old_ends[part.log_path] = task.old_end
        self._prompts[task.number] = 0
        try:
            await to_its_end(self._copy.fetch, f"parts/{part.folder.name}/")
            if context.partition_key(self._engines, part) != task.cache_key:
                return Outcome(
                    "unfit",
                    f"node {platform.node()} would make other rows than the driver (templates,"
                    " models or files differ): install the same on every node",
                )
            await ask_partitions(context, runner, [part], partial(self._one_more, task.number))
            await to_its_end(self._copy.upload)
            await self._report_once()
        except LogHeld as e:
            return Outcome("locked", str(e))
        except (EndpointError, SettingsError, ExtraMissing) as e:
            return Outcome("unfit", f"node {platform.node()}: {e}")
        except RunFolderError as e:
            return Outcome("storage", f"node {platform.node()}: {e}")
        except LimitReached as e:
            return Outcome("stopped", str(e))
        # whatever a partition's rows make the code raise, the others can go on
        except Exception as e:
            if type(e) is MoraError:  # "interrupted": it was the partition beside it that failed
                return Outcome("stopped", str(e))
            return Outcome("raised", f"{type(e).__name__}: {one_line(e)}")
        return Outcome("finalized", damaged=runner.damaged)

    async def stop(self, why: str) -> None:
        """Send nothing more; return when what is in flight is answered or given up."""
        self._stats.stop(LimitReached(why))
        while self._n_open:
            await asyncio.sleep(NAP_S)
        await self._report_once()
        await to_its_end(self._copy.close)

    def _folder_mismatch(self) -> str | None:
        self._copy.fetch("mine.json")
        if read_json(self._copy.path / "mine.json").get("basis") == self._job.mine_key:
            return None
        return (
            f"does not see the run folder {self._job.place}: give --out on storage that all nodes"
            " share"
        )

    async def ping(self) -> None:
        """Alive."""

    def _one_more(self, number: int, result: PromptResult) -> None:
        self._prompts[number] += 1

    async def _report_once(self) -> None:
        why = await self._monitor.report.remote(
            self._name, self._stats.snapshot(), dict(self._prompts)
        )
        if why is not None:
            self._stats.stop(LimitReached(why))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            await self._report_once()


def versions() -> dict[str, str]:
    """What has to be the same on every node for the rows to be the same, byte for byte."""
    found = {
        "mora-data": __version__,
        "the format of partitions": str(FORMAT),
        "Python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    found["the code of mora-data"] = _code()
    return found


def version_mismatch(wanted: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """The first version that differs, in words."""
    for name, v in wanted.items():
        if there.get(name) != v:
            return f"has {name} {there.get(name)}, the driver {v}: install the same on every node"
    return None


def _code() -> str:
    package = Path(resources.__file__).parent
    content = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), package / "simulator" / "phrases.yaml"]):
        content.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return content.hexdigest()[:12]


class UsageMonitor:
    """Runs as one Ray actor, beside the driver; `before` are the tokens by model that were used up
    already."""

    def __init__(
        self, limits: LimitSettings, prices: Prices, before: Mapping[str, Sequence[int]]
    ) -> None:
        self._limits, self._prices, self._before = limits, prices, before
        self._rate_limiters: dict[str, LocalRateLimiter] = {}
        self._usages: dict[str, RunStats] = {}
        self._prompts: dict[int, int] = {}
        self._stopped: str | None = None

    async def reserve(
        self, key: str, limits: Limits, body_bytes: int, longest: int
    ) -> tuple[float, float]:
        """A turn under the limits that `key` names."""
        if key not in self._rate_limiters:
            self._rate_limiters[key] = LocalRateLimiter(*limits)
        return await self._rate_limiters[key].reserve(body_bytes, longest)

    async def settle(
        self, key: str, reserved: float, tokens_in: int, tokens_out: int, longest: int
    ) -> None:
        """What a reserved turn brought."""
        await self._rate_limiters[key].settle(reserved, tokens_in, tokens_out, longest)

    async def report(self, worker: str, stats: RunStats, prompts: Mapping[int, int]) -> str | None:
        """A worker's numbers so far; why the build has to stop, if it has to."""
        self._usages[worker] = stats
        self._prompts.update(prompts)
        if self._stopped is None:
            try:
                used = added([self._before, *(u.by_account for u in self._usages.values())])
                check_totals(used, self._limits, self._prices)
            except LimitReached as e:
                self._stopped = str(e)
        return self._stopped

    async def state(self) -> tuple[list[RunStats], int]:
        """The numbers of all workers, those that are gone too, and how many prompts are done."""
        return list(self._usages.values()), sum(self._prompts.values())


class SharedRateLimiter:
    """The limits of one model for all workers: asks the monitor."""

    def __init__(self, monitor: Any, key: str, limits: Limits) -> None:
        self._monitor, self._key, self._limits = monitor, key, limits

    async def reserve(self, body_bytes: int, longest: int) -> tuple[float, float]:
        wait_s, reserved = await self._monitor.reserve.remote(
            self._key, self._limits, body_bytes, longest
        )
        return float(wait_s), float(reserved)

    async def settle(self, reserved: float, tokens_in: int, tokens_out: int, longest: int) -> None:
        self._monitor.settle.remote(self._key, reserved, tokens_in, tokens_out, longest)
