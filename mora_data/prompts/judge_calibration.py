"""How good the judges are: measured on the first prompts before the partitions run, and once more
on a few canaries when all is scored.

    stats = await measure_judges(build, run, parts)     reference.json; frozen while settings stand
    drift = await measure_drift(build, run, stats)      canaries: did the scorers change?
    check_drift(drift, limit)                           raises UnreliableScores
    check_reliability(build, stats, log)                before pairs are selected by noise
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from ..engines.cached_client import CachedClient
from ..engines.engine import Engine
from ..errors import PendingRetry, UnreliableScores
from ..rewards import canary
from ..rewards.judge_stats import JudgeStats, Measured, conclude
from ..run.files import read_json
from ..run.folder import RunFolder
from ..run.log import AnswerLog
from ..run.partitions import Partition
from ..run.progress import Progress
from ..run.stats import RunStats
from ..run.tasks import all_of
from ..text import seed_of
from ..types import Prompt, Role
from .budget import Mined, fit
from .context import BuildContext, PromptContext
from .flow import presample, sample_and_score, score
from .guard_trial import try_harm_guard
from .result import Arm, PromptResult
from .runner import PartitionRunner

REPEAT_UNIT = 10_000

Drift = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Running:
    """What a build asks with."""

    folder: RunFolder
    engines: Mapping[Role, Engine]
    stats: RunStats
    progress: Progress
    runner: PartitionRunner


async def measure_judges(
    build: BuildContext,
    run: Running,
    parts: Sequence[Partition],
    chosen: frozenset[str] | None = None,
) -> JudgeStats:
    """The judges' statistics, from reference.json where its settings still stand, else measured on
    the first prompts and frozen there; with the trial of the harm check, beside which nothing
    waits. With `chosen`, for a probe, on these prompts, not frozen."""
    works: list[Awaitable[Any]] = [
        try_harm_guard(build, run.engines, run.stats, run.folder.path),
        _measure(build, run, parts, chosen),
    ]
    trial, measured = await all_of(works)
    stats: JudgeStats = replace(measured, harm_guard=trial)
    tree, is_measured = stats.to_json(), build.settings.presample.enabled or stats.harm_guard
    if chosen is None and is_measured and tree != read_json(run.folder.path / "reference.json"):
        run.folder.write("reference.json", tree)
    for line in stats.doubts():
        run.progress.message(line)
    return stats


async def _measure(
    build: BuildContext,
    run: Running,
    parts: Sequence[Partition],
    chosen: frozenset[str] | None,
) -> JudgeStats:
    """What the first prompts show of the judges; canary.json holds what drift is measured by."""
    if not build.settings.presample.enabled:
        return build.judge_stats
    key, n_canaries = build.judge_stats_key(run.engines), _n_canaries(build, run.engines)
    frozen = read_json(run.folder.path / "reference.json")
    kept = read_json(run.folder.path / "canary.json")
    has_canaries = not n_canaries or (kept.get("basis"), kept.get("n")) == (key, n_canaries)
    if frozen.get("basis") == key and has_canaries:
        return JudgeStats.from_json(frozen)
    ids, first = _reference_prompts(parts, build.settings.presample.reference, chosen)
    measured, pending = await _measure_prompts(build, run, first, ids)
    presampling = build.settings.presample
    stats, sources = conclude(
        measured,
        build.sources,
        build.judge_stats.pass_thresholds,
        build.settings.select.kappa,
        with_prior=bool(presampling.step),
    )
    n_mined = read_json(run.folder.path / "mine.json")["kept"]
    stats = replace(
        stats,
        cache_key=None if pending else key,
        before_share=presampling.before_share(n_mined),
    )
    if presampling.budget is not None:
        calibrated = replace(build, sources=sources, judge_stats=stats)
        stats = await _with_mining_thresholds(calibrated, run, parts, first, ids)
    if chosen is not None:
        return stats
    if n_canaries:
        items = canary.choose_items(measured, sources, n_canaries)
        run.progress.start("canaries")
        start = await _score_canaries(replace(build, sources=sources), run, items, "start")
        tree = {"basis": stats.cache_key, "n": n_canaries, "items": items, "start": start}
        run.folder.write("canary.json", tree)
    return stats


async def measure_drift(build: BuildContext, run: Running, settled: str) -> Drift:
    """Score the canaries once more, when all is scored; once for each state of the partitions,
    which `settled` names. Empty where there are none."""
    kept = read_json(run.folder.path / "canary.json")
    if not (build.settings.presample.enabled and _n_canaries(build, run.engines) and kept):
        return {}
    run.progress.start("canaries")
    end = await _score_canaries(build, run, kept["items"], f"end:{settled}")
    sigma = {d: noise.sigma for d, noise in build.judge_stats.noise.items()}
    drift = canary.drift(kept["start"], end, sigma)
    run.folder.write("canary.json", {**kept, "end": end, "drift": drift})
    return drift


def check_drift(drift: Drift, limit: float) -> None:
    """Raises UnreliableScores when the scorers are not what they were at the start."""
    for d in canary.drifting_dims(drift, limit):
        v = drift[d]
        raise UnreliableScores(
            f"the scorers changed during the run: {v['n']} canary answers moved by"
            f" {v['shift']:+.3f} in {d} from start to end (presample.max_drift = {limit:g}): see"
            " that judge model and revision are what they were and start anew with --fresh, or"
            " raise presample.max_drift; the state is kept"
        )


def check_reliability(build: BuildContext, log: Callable[[str], None]) -> None:
    """Raises UnreliableScores before anything is selected by scores that are mostly noise; where
    that is allowed, or nothing is selected, `log` gets the line."""
    for d, v in build.judge_stats.unreliable(build.settings.presample.gamma).items():
        what = (
            f"the scores of dimension {d} are mostly noise: reliability {v['reliability']:.2f} (95"
            f" % sure to be under {v['reliability_upper']:.2f}) over {v['n']} answers scored twice,"
            " 0.3 is the least"
        )
        if build.settings.select.allow_unreliable or not build.reaches("select"):
            log(what)
            continue
        raise UnreliableScores(
            f"{what}: take a better judge or rubric, or leave {d} out of dimensions, or go on with"
            " --allow-unreliable, which is written down; the state is kept"
        )


async def _measure_prompts(
    build: BuildContext, run: Running, parts: Sequence[Partition], ids: frozenset[str]
) -> tuple[list[Measured], int]:
    """First presamples, scored, a share of them scored again; raw scores where no calibration map
    is there yet. By prompt id, as the order in which prompts finish must not show; and how many
    lack something."""
    found: dict[str, Measured] = {}
    pending = 0

    async def flow(ask: CachedClient, prompt: Prompt) -> PromptResult:
        nonlocal pending
        try:
            measured = await measure(PromptContext(build, ask), prompt)
            found[prompt.prompt_id] = measured
            pending += any(s.may_pass for _, s in [*measured.first, *measured.again])
        except PendingRetry:  # left out for now
            pending += 1
        return PromptResult(prompt)

    async def measure(context: PromptContext, prompt: Prompt) -> Measured:
        arm = Arm("presample", prompt.messages)
        settings = context.settings.presample
        first = await sample_and_score(context, prompt, arm, settings.n[0])
        scored = {i for i, _ in first}
        # of equal texts one: their second scores would be one verdict
        again = [
            i
            for i, r in enumerate(arm.rollouts)
            if r.is_usable
            and i in scored
            and is_repeated(prompt.prompt_id, i, settings.repeat_share)
        ]
        chosen = [arm.rollouts[i] for i in again]
        fresh = await score(context, prompt.messages, chosen, "repeat", arm.anchors)
        return Measured(prompt, arm.rollouts, first, [(again[k], s) for k, s in fresh], again)

    run.progress.start("judge calibration: prompts", len(ids))
    await run.runner.run(parts, flow, lambda r: run.progress.step(), lambda opened: None, ids)
    run.progress.finish()
    return [found[prompt_id] for prompt_id in sorted(found)], pending


async def _with_mining_thresholds(
    build: BuildContext,
    run: Running,
    parts: Sequence[Partition],
    first: Sequence[Partition],
    ids: frozenset[str],
) -> JudgeStats:
    """With the mining threshold per stratum, from the reference prompts presampled in full; their
    answers serve again later."""
    presampling = build.settings.presample
    found: list[Mined] = []
    pending: list[str] = []

    async def flow(ask: CachedClient, prompt: Prompt) -> PromptResult:
        try:
            stats, _, scores = await presample(PromptContext(build, ask), prompt)
            if any(s.may_pass for _, s in scores):
                pending.append(prompt.prompt_id)
            found.append(Mined(prompt.prompt_id, prompt.stratum or "all", stats))
        except PendingRetry:
            pending.append(prompt.prompt_id)
        return PromptResult(prompt)

    run.progress.start("budget: prompts", len(ids))
    await run.runner.run(first, flow, lambda r: run.progress.step(), lambda opened: None, ids)
    run.progress.finish()
    assert presampling.budget is not None
    by_id = sorted(found, key=lambda m: m.prompt_id)
    strata = Counter(p.stratum or "all" for part in parts for p in part.prompts())
    mining = fit(by_id, dict(sorted(strata.items())), presampling.budget, presampling.accept)
    stats = replace(build.judge_stats, mining=mining)
    return replace(stats, cache_key=None) if pending else stats


async def _score_canaries(
    build: BuildContext, run: Running, items: Sequence[canary.Item], when: str
) -> canary.Values:
    with closing(AnswerLog(run.folder.path / "canary.log")) as log:
        return await canary.score_items(
            CachedClient(run.engines, log, build.settings.seed, run.stats),
            run.engines.values(),
            run.stats,
            build.sources,
            items,
            when,
            build.settings.select.kappa,
        )


def _n_canaries(build: BuildContext, engines: Mapping[Role, Engine]) -> int:
    """How many reference answers are scored at both ends; the simulator never changes."""
    given = build.settings.presample.canaries
    if given != "auto":
        return int(given)
    scorers = [e for r, e in engines.items() if r not in ("policy", "rewriter")]
    return canary.AUTO if any(not e.simulated for e in scorers) else 0


def is_repeated(prompt_id: str, index: int, share: float) -> bool:
    """Whether a reference rollout is scored twice: a fixed draw by its name."""
    return seed_of("repeat", prompt_id, index) % REPEAT_UNIT < share * REPEAT_UNIT


def _reference_prompts(
    parts: Sequence[Partition], n: int, chosen: frozenset[str] | None
) -> tuple[frozenset[str], list[Partition]]:
    """Ids of the first `n` mined prompts, or those `chosen`, and the partitions that hold them."""
    ids: list[str] = []
    used: list[Partition] = []
    for part in parts:
        found = [p.prompt_id for p in part.prompts() if chosen is None or p.prompt_id in chosen]
        if len(ids) >= n:
            break
        if found:
            used.append(part)
            ids += found
    return frozenset(ids if chosen else ids[:n]), used
