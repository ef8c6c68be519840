"""Everything that is asked: engines connected, judges measured, partitions run, drift measured.

How many requests that takes is known from the settings low and high, for the time that is left
before a prompt is finished; a dry run knows more. The ends differ by what only the model can tell:
how many presamples a prompt needs, whether it goes on, how many tries its rewrite takes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from ..engines import connect
from ..engines.cached_client import CachedClient
from ..engines.engine import Engine
from ..errors import UnreliableScores
from ..prompts.context import BuildContext, PromptContext
from ..prompts.flow import run_prompt
from ..prompts.judge_audit import FILE, audit_basis, audit_of, score_pairs, scorers
from ..prompts.judge_quality import self_preference
from ..prompts.result import PromptResult
from ..prompts.runner import PartitionRunner, ask_partitions, is_finalized
from ..rewards import asks_model
from ..rewards.audit import labelled_pairs
from ..rewards.combine import RewardSources
from ..run import Audit
from ..run.files import json_hash, read_json
from ..run.folder import manifest_of
from ..run.partitions import Partition
from ..run.progress import PROMPTS, Progress, heartbeat
from ..run.remote import shared_address
from ..run.tasks import distinct
from ..settings import BuildSettings, RewardSettings
from ..sources.mine import open_sources
from ..types import Prompt, Role
from .judge_calibration import (
    check_reliability,
    measure_drift,
    measure_judges,
    n_canaries,
)
from .values import Asked, Build


async def ask_some(
    build: Build,
    context: BuildContext,
    parts: Sequence[Partition],
    chosen: frozenset[str],
    pairs: dict[str, int],
) -> None:
    """Ask for the `chosen` prompts alone; `pairs` gets those that are finished."""
    async with connected(build, context) as runner:
        context = context.with_judge_stats(
            await measure_judges(build, context, runner, parts, chosen)
        )
        try:
            check_reliability(context, build.progress.message)
        except UnreliableScores as e:
            build.progress.message(f"the build would end here: {e}")

        async def flow(ask: CachedClient, prompt: Prompt) -> PromptResult:
            return await run_prompt(PromptContext(context, ask), prompt)

        def on_prompt(result: PromptResult) -> None:
            if result.pending is None:
                pairs[result.prompt.prompt_id] = _n_pairs(context, result)
            build.progress.step()

        build.progress.start(PROMPTS, len(chosen))
        some = [p for p in parts if chosen & {x.prompt_id for x in p.prompts()}]
        await runner.run(some, flow, on_prompt, lambda opened: None, chosen)


def _n_pairs(context: BuildContext, result: PromptResult) -> int:
    if not any(arm.pairs for arm in result.arms):  # none, or found when the partition is done
        return 0
    from ..prompts.candidates import n_pairs  # numpy comes with it

    return n_pairs(context, result)


async def ask(build: Build, context: BuildContext, parts: Sequence[Partition]) -> Asked:
    """Connect, measure the judges, run the partitions, measure drift."""
    settings, progress = build.settings, build.progress
    n_prompts = sum(p.n_prompts() for p in parts)
    progress.expect(n_prompts, None if build.recorded else requests_of(settings, n_prompts))
    async with connected(build, context) as runner:
        engines = runner.engines
        audit = await _audit(build, context.sources, engines)
        context = context.with_judge_stats(await measure_judges(build, context, runner, parts))
        _warn_of_family(engines, progress)
        check_reliability(context, progress.message)
        given_up, damaged = await _run_partitions(build, context, runner, parts)
        drift: Mapping[str, Any] = {}
        if context.reaches("select"):
            keys = [context.partition_key(engines, p) for p in parts]
            drift = await measure_drift(build, context, engines, json_hash(keys))
        damaged += runner.damaged
        if damaged:
            progress.message(
                f"{damaged} damaged lines in the answer logs of {build.folder.path}/parts: their"
                " answers were asked again"
            )
        return Asked(context, engines, audit, drift, damaged, given_up)


@asynccontextmanager
async def connected(build: Build, context: BuildContext) -> AsyncIterator[PartitionRunner]:
    """Engines that answer, a beat for those who watch, and every reply counted."""
    progress, folder, cost = build.progress, build.folder, build.spending
    stats = progress.stats
    progress.watch_cost(cost.cost, cost.prices.currency)
    with heartbeat(folder, progress):
        engines = connect(
            build.settings, build.options.sample, stats, folder.path, progress.message
        )
        try:
            if unpriced := cost.start(stats.accounts.values()):
                progress.message(
                    f"no price is known for {', '.join(unpriced)}, so the money is not counted:"
                    " limits.prices takes a table"
                )
            yield PartitionRunner(engines, stats, build.settings.seed, limiters=context.limiters)
        finally:
            for engine in distinct(engines.values()):
                await engine.close()
            cost.save()


async def _audit(
    build: Build, sources: RewardSources, engines: Mapping[Role, Engine]
) -> Audit | None:
    """The judges against the source's labels: what is on disk where it rests on the same and on as
    many pairs. None where there are no labels (the sample's are nobody's), and for a judge that is
    simulated."""
    s, options, folder = build.settings, build.options, build.folder
    simulated = any(e.simulated for e in scorers(engines).values())
    if options.sample or build.recorded or not s.audit.limit or simulated:
        return None
    revision = str(manifest_of(folder.path)["identity"]["revision"])
    basis = audit_basis(s, sources, engines, revision)
    kept = read_json(folder.path / FILE)
    if kept.get("basis") == basis and not kept["owed"] and kept["limit"] >= s.audit.limit:
        return cast(Audit, kept)
    labelled = labelled_pairs(open_sources(s, False, options.data), s)
    if not labelled.pairs:
        return None
    scores = await score_pairs(s, sources, labelled, engines, folder, build.progress)
    audit = audit_of(s, basis, labelled, sources, scores, engines)
    folder.write(FILE, audit)
    for row in audit["rows"]:
        build.progress.message(f"audit: {row['sentence']}")
    return audit


async def _run_partitions(
    build: Build, context: BuildContext, runner: PartitionRunner, parts: Sequence[Partition]
) -> tuple[Mapping[int, str], int]:
    """Ask the partitions that are not finalized: partitions given up and why, damaged log lines
    seen by workers."""
    done = [p for p in parts if is_finalized(context, runner.engines, p)]
    todo = [p for p in parts if p not in done]
    build.progress.stats.finalized = sum(int((p.manifest() or {}).get("answers", 0)) for p in done)
    build.progress.pairs = sum(int((p.manifest() or {}).get("pairs", 0)) for p in done)
    n_done = sum(p.n_prompts() for p in done)
    build.progress.start(PROMPTS, n_done + sum(p.n_prompts() for p in todo), n_done)
    given_up, damaged = await _ask_partitions(build, context, runner, todo)
    # checked behind the requests, which need not wait for it
    if again := [p for p in done if _is_damaged(build, p)]:
        build.progress.start(PROMPTS, sum(p.n_prompts() for p in again))
        more, lines = await _ask_partitions(build, context, runner, again)
        given_up, damaged = {**given_up, **more}, damaged + lines
    build.progress.finish()
    return given_up, damaged


def _is_damaged(build: Build, part: Partition) -> bool:
    if (why := part.damage()) is not None:
        build.progress.message(f"{why.partition(': ')[0]}: made anew from what was answered")
    return why is not None


async def _ask_partitions(
    build: Build, context: BuildContext, runner: PartitionRunner, todo: Sequence[Partition]
) -> tuple[Mapping[int, str], int]:
    if build.settings.executor == "ray" and todo:
        return await _on_cluster(build, context, runner, todo)

    def on_prompt(result: PromptResult) -> None:
        build.progress.pairs += _n_pairs(context, result)
        build.progress.step()

    await ask_partitions(context, runner, todo, on_prompt)
    return {}, 0


async def _on_cluster(
    build: Build, context: BuildContext, runner: PartitionRunner, todo: Sequence[Partition]
) -> tuple[dict[int, str], int]:
    from ..cluster.driver import work_off, worker_environment
    from ..cluster.worker import Job, PartitionTask, versions

    job = Job(
        build.settings,
        build.options.sample,
        build.options.until,
        shared_address(build.folder.path),
        read_json(build.folder.path / "mine.json")["basis"],
        context.judge_stats,
        build.benchmarks,
        build.folder.secret,
        versions(),
        worker_environment(),
        str(Path.cwd()),
    )
    old_ends = runner.old_ends
    tasks = [
        PartitionTask(
            p.number,
            context.partition_key(runner.engines, p),
            old_ends.get(p.log_path, p.log_size()),
        )
        for p in todo
    ]
    with build.folder.delegated():
        given_up, damaged = await work_off(job, tasks, build.spending, build.progress)
    for number, why in given_up.items():
        Partition(build.folder.path, number).give_up(why)
    return given_up, damaged


def _warn_of_family(engines: Mapping[Role, Engine], progress: Progress) -> None:
    """A judge favours answers of its own kind; a warning where names tell."""
    found = self_preference(engines)
    if found["family"] and not found["same_model"]:
        progress.message(
            f"judge and policy are of one family ({found['family']}): a judge may favour answers"
            " of its own kind"
        )


GUARD_EXAMPLES = 18  # questions that the harm check is tried on, where a model checks


def requests_of(settings: BuildSettings, n_prompts: int) -> tuple[float, float]:
    """Requests for so many prompts that are answered by models: all stop at the first step and half
    are mined, or none stops and all are."""
    return _requests_at(settings, n_prompts, 0), _requests_at(settings, n_prompts, 1)


def scorer_name(dimension: str, i: int, reward: RewardSettings) -> str:
    """A name of a dimension's `i`-th reward; those that ask for `together` are asked once for all
    dimensions, and have one."""
    return f"{'together' if reward.options.get('together') else dimension}:{i}"


def _requests_at(s: BuildSettings, n_prompts: int, upper: int) -> float:
    dims = len(
        {
            scorer_name(d, i, r)
            for d in s.dimensions
            for i, r in enumerate(s.reward_sources(d))
            if asks_model(r)
        }
    )
    looks, n_arms = s.presample.looks(), len(s.fuse.arms)
    presamples = (looks[-1] if upper else looks[0]) if s.presample.enabled else 0
    steps = (len(looks) if upper else 1) if presamples else 0
    arms = n_prompts * (1.0 if upper or not presamples else 0.5) * n_arms
    rewriting = sum(a not in ("identity", "concat") for a in s.fuse.arms)
    fused = arms * rewriting / max(n_arms, 1) * s.fuse.candidates
    harm_before = arms / n_arms if rewriting and "harm" in s.fuse.checks else 0
    tries = (s.fuse.retries + 1) if upper else 1
    fusing = sum(a not in ("identity", *s.fuse.length_matched) for a in s.fuse.arms)
    # whether the targets are asked for: a verdict on each rewrite in which cues can't tell
    undecided = arms * fusing / max(n_arms, 1) * s.fuse.candidates * upper
    checked = (fused * len(s.fuse.checks) + harm_before + undecided) * tries
    probes = fused * tries * s.fuse.probe if presamples else 0.0
    confirmed_answers = arms * min(2 * s.select.confirm_top, s.rollout.n)
    confirmed = confirmed_answers * dims if s.select.confirm else 0.0
    heldout = confirmed_answers * len(s.dimensions) * upper if s.heldout_judge else 0.0
    canaries = 2 * min(n_canaries(s, ["judge"]), n_prompts * presamples) * dims * upper
    policy = n_prompts * _requests(s, presamples, steps) + arms * _requests(s, s.rollout.n, 1)
    policy += fused * tries * _requests(s, s.fuse.probe, 1) if probes else 0.0
    scored = n_prompts * presamples + arms * s.rollout.n + probes
    if presamples and "identity" not in s.fuse.arms:
        before = arms / n_arms * s.presample.before_share(n_prompts)
        policy += before * _requests(s, s.presample.before, 1)
        scored += before * s.presample.before
    judged = scored * dims + confirmed + heldout + canaries
    rewrites = fused * tries
    asked = rewrites / s.fuse.candidates  # one request for all candidates
    tried = GUARD_EXAMPLES * upper if rewriting and "harm" in s.fuse.checks else 0
    return policy + judged + asked + checked + tried


def _requests(s: BuildSettings, samples: int, steps: int) -> float:
    """Policy requests for `samples` answers that are asked for in `steps` steps."""
    size = s.policy.n_per_request
    return float(min(steps, samples)) if size == "all" else float(-(-samples // size))
