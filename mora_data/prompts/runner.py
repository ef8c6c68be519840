"""Partitions under way: open prompts while the engines have room, finalize a partition when its
last prompt is done.

The window is not a setting: an HTTP engine wants another prompt while fewer calls wait than it may
send. So memory is bounded by the open prompts and partitions, whatever the size of the run.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engines.cached_client import CachedClient
from ..engines.engine import Engine
from ..rewards import NO_OPPONENT, NOT_RATED
from ..run.log import AnswerLog
from ..run.partitions import Partition
from ..run.stats import RunStats
from ..run.tasks import Gate, PromptGroup, to_its_end
from ..types import UNFUSED, Prompt, Role
from .context import BuildContext, PromptContext
from .flow import run_prompt
from .judge_quality import sums_of
from .result import PromptResult, tables

Flow = Callable[[CachedClient, Prompt], Awaitable[PromptResult]]


@dataclass(slots=True)
class OpenPartition:
    """A partition with its log open."""

    part: Partition
    prompts: list[Prompt]
    log: AnswerLog
    ask: CachedClient
    results: dict[str, PromptResult] = field(default_factory=dict)

    def in_order(self) -> list[PromptResult]:
        """The results in the order of the prompts."""
        return [self.results[p.prompt_id] for p in self.prompts]


class PartitionRunner:
    """Runs prompts through a flow, partition by partition."""

    def __init__(
        self,
        engines: Mapping[Role, Engine],
        stats: RunStats,
        seed: int,
        opening: asyncio.Lock | None = None,
        limiters: Sequence[Gate] = (),
    ) -> None:
        # where this command's answers begin; a partition may be opened twice by one command
        self.old_ends: dict[Path, int] = {}
        # shared: one of several runs opens prompts at a time
        self._opening = opening or asyncio.Lock()
        self.engines = engines
        self._gates: Sequence[Gate] = [*engines.values(), *limiters]
        self._stats = stats
        self._seed = seed
        self._logs: list[AnswerLog] = []
        self.damaged = 0

    async def run(
        self,
        parts: Iterable[Partition],
        flow: Flow,
        on_prompt: Callable[[PromptResult], None],
        on_part: Callable[[OpenPartition], None],
        only: frozenset[str] | None = None,
    ) -> None:
        """Every prompt of every partition (or those in `only`) through `flow`; each finished
        partition to `on_part`.

        Where an earlier command left answers, the last prompts come first: those are what it had
        not begun, so that the first new request need not wait for the replay of all others.

        Raises:
            MoraError: the run can't go on; what was answered is in the logs.
        """
        try:
            async with PromptGroup(self._gates, self._stats) as group, self._opening:
                for part in parts:
                    opened = self._open(part, only)
                    if not opened.prompts:
                        self._finish(opened, on_part)
                    for prompt in (
                        reversed(opened.prompts) if opened.log.is_resumed else opened.prompts
                    ):
                        if not await group.has_room():
                            return
                        result = group.open(flow(opened.ask, prompt))
                        await group.start(self._one(opened, prompt, result, on_prompt, on_part))
        finally:
            for log in self._logs:
                log.close()
            self._logs.clear()

    def _open(self, part: Partition, only: frozenset[str] | None) -> OpenPartition:
        prompts = [p for p in part.prompts() if only is None or p.prompt_id in only]
        log = AnswerLog(part.log_path, part.finalized_answers(), self.old_ends.get(part.log_path))
        self.old_ends[part.log_path] = log.old_end
        self._logs.append(log)
        self.damaged += log.damaged
        return OpenPartition(
            part, prompts, log, CachedClient(self.engines, log, self._seed, self._stats)
        )

    def _finish(self, opened: OpenPartition, on_part: Callable[[OpenPartition], None]) -> None:
        on_part(opened)
        opened.log.close()
        self._logs.remove(opened.log)

    async def _one(
        self,
        opened: OpenPartition,
        prompt: Prompt,
        work: Awaitable[PromptResult],
        on_prompt: Callable[[PromptResult], None],
        on_part: Callable[[OpenPartition], None],
    ) -> None:
        result = await work
        opened.results[prompt.prompt_id] = result
        self._stats.finished(prompt.prompt_id)
        on_prompt(result)
        if len(opened.results) == len(opened.prompts):
            await to_its_end(self._finish, opened, on_part)


async def ask_partitions(
    build: BuildContext,
    runner: PartitionRunner,
    parts: Sequence[Partition],
    on_prompt: Callable[[PromptResult], None],
) -> None:
    """Ask partitions to their end and finalize them.

    Raises:
        MoraError: it can't go on; what was answered is in the logs.
    """

    async def flow(ask: CachedClient, prompt: Prompt) -> PromptResult:
        return await run_prompt(PromptContext(build, ask), prompt)

    def finished(opened: OpenPartition) -> None:
        if build.reaches("select") and not (build.settings.select.confirm or build.heldout):
            from .candidates import find_candidates

            results = opened.in_order()
            find_candidates(build, [(r, arm) for r in results for arm in r.arms if arm.rewards])
        finalize(opened, build, build.partition_key(runner.engines, opened.part))

    for part in parts:
        part.invalidate()
    await runner.run(parts, flow, on_prompt, finished)


def is_finalized(build: BuildContext, engines: Mapping[Role, Engine], partition: Partition) -> bool:
    """Whether nothing is left to be done for a partition."""
    manifest = partition.manifest()
    if manifest is None or manifest.get("owed"):
        return False
    return bool(manifest.get("settings") == build.partition_key(engines, partition))


def finalize(opened: OpenPartition, build: BuildContext, cache_key: str) -> None:
    """Compact a partition whose prompts are all done (pending ones included: they keep it from
    counting as finished)."""
    from .candidates import n_pairs  # numpy comes with it

    results = opened.in_order()
    counts: Counter[tuple[str, str]] = Counter()
    by_source: dict[str, Counter[tuple[str, str]]] = {}
    for r in results:
        counts.update(r.counts)
        by_source.setdefault(r.prompt.source, Counter()).update(r.counts)
    errors = [e for r in results for e in errors_of(r)]
    manifest = {
        "settings": cache_key,
        "n_prompts": len(results),
        "answers": opened.ask.answers,
        "counts": _flat(counts),
        "sources": {source: _flat(found) for source, found in sorted(by_source.items())},
        "feedback": sums_of(results),
        "n_scores": sum(len(r.scores) for r in results),
        "n_answers": sum(len(a.rollouts) for r in results for a in r.all_arms),
        "pairs": sum(n_pairs(build, r) for r in results if r.arms),
        "errors": len(errors),
        "owed": [r.prompt.prompt_id for r in results if r.pending is not None],
    }
    opened.part.finalize(tables(results, build.dims), opened.log.items(), errors, manifest)


def _flat(counts: Mapping[tuple[str, str], int]) -> dict[str, int]:
    return {f"{stage}.{what}": n for (stage, what), n in sorted(counts.items())}


def errors_of(result: PromptResult) -> list[dict[str, Any]]:
    """A prompt's failed rows: what stopped it, answers that failed for good, verdicts that are
    missing.

    A rating that the source never had, and an answer alone before a judge that compares, are no
    failures: they are counted as unscored.
    """
    out: list[dict[str, Any]] = []
    if result.pending is not None:
        out.append({"prompt_id": result.prompt.prompt_id, "stage": "owed", "error": result.pending})
    for arm in result.all_arms:
        out += [
            {
                "prompt_id": r.prompt_id,
                "stage": "presample" if arm.name in UNFUSED else "rollout",
                "arm": arm.name,
                "index": r.index,
                "error": r.error,
            }
            for r in arm.rollouts
            if r.error is not None
        ]
    out += [
        {
            "prompt_id": result.prompt.prompt_id,
            "stage": "score",
            "arm": arm_name,
            "index": index,
            "purpose": purpose,
            "dimension": s.dimension,
            "error": s.reason,
        }
        for arm_name, index, purpose, s in result.scores
        if s.value is None and s.reason not in (NOT_RATED, NO_OPPONENT)
    ]
    return out
